//! What numbers and histories say after a Postgres was restored while collectors ran.

use eventbucket_collector::store::{Error, Store};
use eventbucket_protocol::Verdict;

use crate::store_fixture::{batch, count_all, events, eventually};
use crate::store_postgres::{Cut, Database, Proxy, holds, is_stored, open, with_project};

async fn number(database: &Database, select: &str) -> i64 {
    database.sql().await.query_one(select, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn numbers_of_ranges_that_are_given_out_twice_cost_no_event() {
    let (database, store, shop) = with_project().await;
    let many = (0..100).map(|number| batch(shop, events(&format!("x{number}-"), 1)));
    store.append(many.collect::<Vec<_>>()).await.unwrap();
    // A restored database gives out again what a running process took before, and has used since.
    database.sql().await.batch_execute("SELECT setval('range_id', 1, false)").await.unwrap();
    let other = database.open().await;
    let sent = vec![batch(shop, events("y", 3)), batch(shop, events("z", 3))];
    let appended = other.append_each(sent.into()).await;
    for one in appended {
        assert!(one.unwrap().verdicts.iter().all(is_stored));
    }
    store.append(vec![batch(shop, events("w", 3))]).await.unwrap();
    assert_eq!(store.head(shop).await.unwrap(), 109);
    assert_eq!(store.ledger(Some(shop)).await.unwrap().quarantined, 0);
    holds(&store).await;
}

#[tokio::test]
async fn processes_that_notice_a_restore_one_after_the_other_agree_on_one_epoch() {
    let (database, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    let (other, third) = (database.open().await, database.open().await);
    let all = [&store, &other, &third];
    for each in all {
        each.view_progress().await.unwrap();
    }
    let before = store.epoch();
    // What a restore to a point in time does: another timeline, an earlier state, and no connection outlives it.
    let restore = "
        TRUNCATE event, event_id, ranges, event_block, segment_project;
        UPDATE head SET position = 0, segment = 0, received = 0, stored = 0;
        UPDATE epoch SET timeline = timeline + 1;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    database.sql().await.batch_execute(restore).await.unwrap();
    for each in all {
        eventually("it is connected again", async || each.view_progress().await.is_ok()).await;
        each.head(shop).await.unwrap();
    }
    assert_ne!(store.epoch(), before);
    assert_eq!(all.map(Store::epoch), [store.epoch(); 3]);
    // One that is renewed while all stay connected is heard of, too.
    database.sql().await.batch_execute("UPDATE epoch SET id = gen_random_uuid()").await.unwrap();
    other.view_progress().await.unwrap();
    assert_ne!(other.epoch(), store.epoch());
}

#[tokio::test]
async fn numbers_of_ranges_are_forgotten_with_the_epoch() {
    let (database, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    assert_eq!(number(&database, "SELECT max(id) FROM ranges").await, 1);
    let back = "TRUNCATE event, event_id, ranges, event_block, segment_project;
                UPDATE head SET position = 0, segment = 0, received = 0, stored = 0";
    database.sql().await.batch_execute(back).await.unwrap();
    let before = store.epoch();
    store.view_progress().await.unwrap();
    assert_ne!(store.epoch(), before);
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    assert_eq!(number(&database, "SELECT max(id) FROM ranges").await, 1_001, "a block of the new epoch");
    holds(&store).await;
}

#[tokio::test]
async fn a_commit_that_did_not_happen_is_not_taken_for_anothers() {
    let (database, store, shop) = with_project().await;
    let proxy = Proxy::before(&database.url).await;
    let through = open(&proxy.url).await.unwrap();
    through.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    let id = number(&database, "SELECT max(id) FROM ranges").await + 1;
    let instead = format!(
        "INSERT INTO ranges (id, project, part, parts, first, last, batch, received_ms, received, stored, duplicate,
                             quarantined, rejected)
         VALUES ({id}, {shop}, 0, 1, 4, 6, gen_random_uuid(), 0, 3, 3, 0, 0, 0)"
    );
    *proxy.cut.lock().unwrap() = Some(Cut::Commit { instead });
    let lost = through.append(vec![batch(shop, events("y", 3))]).await;
    assert!(proxy.cut.lock().unwrap().is_none(), "the proxy cut the commit");
    let error = lost.expect_err("nothing of it is stored");
    assert!(error.retry().is_some(), "{error:?}");
    assert_eq!(store.head(shop).await.unwrap(), 3);
    let only = format!("DELETE FROM ranges WHERE id = {id}");
    database.sql().await.batch_execute(&only).await.unwrap();
    let again = through.append(vec![batch(shop, events("y", 3))]).await.unwrap();
    assert!(again[0].verdicts.iter().all(is_stored));
    holds(&store).await;
}

#[tokio::test]
async fn a_position_that_is_taken_is_the_databases_fault_and_not_the_events() {
    let (database, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    let stray = "INSERT INTO event (project, segment, position, time_ms, received_ms, id, name, properties)
                 SELECT project, segment, 5, time_ms, received_ms, gen_random_uuid(), name, properties
                 FROM event WHERE position = 3";
    database.sql().await.batch_execute(stray).await.unwrap();
    let sent = vec![batch(shop, events("y", 3))];
    let refused = store.append_each(sent.clone().into()).await.remove(0).unwrap_err();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused:?}");
    assert_eq!(number(&database, "SELECT count(*) FROM quarantine").await, 0);
    database.sql().await.batch_execute("DELETE FROM event WHERE position = 5").await.unwrap();
    let stored = store.append_each(sent.into()).await.remove(0).unwrap();
    assert!(stored.verdicts.iter().all(|verdict| *verdict == Verdict::Stored));
    holds(&store).await;
}

#[tokio::test]
async fn a_history_that_can_not_be_read_is_no_other_history() {
    let (database, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    count_all(&store, shop).await;
    let (admin, name) = (database.sql().await, database.url.rsplit_once('/').unwrap().1);
    let first = format!("ALTER DATABASE {name} SET search_path = public, pg_catalog");
    admin.batch_execute(&first).await.unwrap();
    // A question that was cancelled, a recovery that is about to end with another timeline, and a role without the right.
    for (code, opens) in [("57014", false), ("55000", false), ("42501", true)] {
        let fails = format!(
            "CREATE OR REPLACE FUNCTION public.pg_control_system() RETURNS TABLE (system_identifier bigint)
             LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now' USING errcode = '{code}'; END $$"
        );
        admin.batch_execute(&fails).await.unwrap();
        match open(&database.url).await {
            Ok(other) => assert!(opens && other.epoch() == store.epoch(), "{code}"),
            Err(error) => assert!(!opens && error.retry().is_some(), "{code}: {error:?}"),
        }
    }
    admin.batch_execute("DROP FUNCTION public.pg_control_system()").await.unwrap();
    assert_eq!(database.open().await.epoch(), store.epoch());
}
