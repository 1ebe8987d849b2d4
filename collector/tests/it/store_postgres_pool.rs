//! Connections to Postgres: who gets one while reads are slow, and what becomes of one that nobody waits for any more.

use std::time::Duration;

use eventbucket_collector::project::{ProjectId, Standing};
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{CountsQuery, Error, PostgresOptions, Store};
use eventbucket_protocol::Verdict;
use eventbucket_servers::{Postgres, shared};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::harness::{Collector, http};
use crate::store_fixture::{batch, events, eventually, project};
use crate::store_postgres::{Cut, Database, Proxy, holds, is_stored, open, with_project};

/// Far less than a slow read takes here, far more than an append does.
const SOON: Duration = Duration::from_secs(8);

/// Holds a table that reads need and appends don't, which keeps each of them waiting for 20 s.
async fn slow_reads(database: &Database, table: &str) -> Client {
    let holder = database.sql().await;
    holder.batch_execute(&format!("BEGIN; LOCK TABLE {table}")).await.unwrap();
    holder
}

/// Waits until so many, or more, of this database's sessions wait for a lock.
async fn waiting(database: &Database, wanted: fn(i64) -> bool) {
    let admin = database.sql().await;
    let select = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let holds = async || wanted(admin.query_one(select, &[]).await.unwrap().get(0));
    eventually("sessions wait for a lock", holds).await;
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("it is held up by reads")
}

fn all_stored(verdicts: &[Verdict]) -> bool {
    verdicts.iter().all(is_stored)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_whose_clients_left_hold_up_nothing() {
    let database = Database { url: shared::database() };
    let folder = tempfile::tempdir().unwrap();
    let file = format!("[store]\nurl = \"{}\"\n", database.url);
    std::fs::write(folder.path().join("eventbucket.toml"), file).unwrap();
    let collector = Collector::start_in(folder.path(), &[]);
    collector.send(json!({ "name": "first" })).await;
    let holder = slow_reads(&database, "rollup_counts").await;
    let mut readers = JoinSet::new();
    for _ in 0..10 {
        let url = format!("{}/v1/counts?from=2020-01-01T00:00:00Z", collector.url());
        readers.spawn(http().get(url).bearer_auth(&collector.keys().secret).send());
    }
    waiting(&database, |count| count >= 4).await;
    readers.shutdown().await;
    for _ in 0..10 {
        soon(collector.send(json!({ "name": "later" }))).await;
    }
    // The collector's own counting waits, too.
    waiting(&database, |count| count <= 1).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reads_leave_the_connections_of_the_work_alone_and_too_many_are_told_so() {
    let (database, store, shop) = with_project().await;
    let made = project(&store, "blog").await;
    let holder = slow_reads(&database, "rollup_users").await;
    let mut readers = JoinSet::new();
    for _ in 0..12 {
        let store = store.clone();
        readers.spawn(async move { store.users(shop, CountsQuery::default()).await });
    }
    waiting(&database, |count| count >= 4).await;
    let appended = soon(store.append(vec![batch(shop, events("x", 5))])).await.unwrap();
    assert!(all_stored(&appended[0].verdicts));
    soon(store.apply_counts(shop, 5)).await.unwrap();
    let found = soon(store.find_key(&made.write_key.hash())).await.unwrap();
    assert!(matches!(found, Standing::Valid(_)));
    let refused = soon(readers.join_next()).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(refused, Error::Crowded), "{refused:?}");
    assert_eq!(refused.status(), 503);
    assert!(refused.retry().is_some() && refused.told().contains("too many reads"), "{}", refused.told());
    holder.batch_execute("ROLLBACK").await.unwrap();
    soon(store.users(shop, CountsQuery::default())).await.unwrap();
    readers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_nobody_waits_for_any_more_keeps_no_session() {
    let (database, store, shop) = with_project().await;
    let holder = slow_reads(&database, "rollup_users").await;
    for _ in 0..12 {
        let reader = tokio::spawn({
            let store = store.clone();
            async move { store.users(shop, CountsQuery::default()).await.map(drop) }
        });
        waiting(&database, |count| count >= 1).await;
        reader.abort();
        waiting(&database, |count| count == 0).await;
    }
    holder.batch_execute("ROLLBACK").await.unwrap();
    soon(store.users(shop, CountsQuery::default())).await.unwrap();
}

/// The server hangs in the middle, and what is asked of it is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_of_a_server_that_hung_is_given_up_and_the_next_is_answered() {
    let server = tokio::task::spawn_blocking(|| Postgres::start().unwrap()).await.unwrap();
    let store = Store::postgres(PostgresOptions::parse(&server.url(), None).unwrap()).await.unwrap();
    let shop = project(&store, "shop").await.project.id;
    store.append(vec![batch(shop, events("x", 5))]).await.unwrap();
    server.pause().unwrap();
    let mut asked = JoinSet::new();
    for round in 0..12 {
        let store = store.clone();
        asked.spawn(async move {
            if round % 2 == 0 {
                return store.head(shop).await.map(drop);
            }
            store.append(vec![batch(shop, events(&format!("r{round}-"), 5))]).await.map(drop)
        });
    }
    // All of them have been asked once some are told that there is no connection.
    while let Some(told) = asked.join_next().await {
        if told.unwrap().is_err() {
            break;
        }
    }
    asked.shutdown().await;
    server.resume().unwrap();
    let appended = soon(store.append(vec![batch(shop, events("y", 5))])).await.unwrap();
    assert!(all_stored(&appended[0].verdicts));
    soon(store.head(shop)).await.unwrap();
    holds(&store).await;
}

#[tokio::test]
async fn identities_are_never_taken_without_their_transaction() {
    let (database, store, shop) = with_project().await;
    let proxy = Proxy::before(&database.url).await;
    let through = open(&proxy.url).await.unwrap();
    through.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    *proxy.cut.lock().unwrap() = Some(Cut::Begin);
    let refused = through.append(vec![batch(shop, events("y", 3))]).await;
    assert!(proxy.cut.lock().unwrap().is_none() && refused.is_err(), "the transaction did not begin");
    let again = store.append(vec![batch(shop, events("y", 3))]).await.unwrap();
    assert!(all_stored(&again[0].verdicts), "{:?}", again[0].verdicts);
    holds(&store).await;
}

#[tokio::test]
async fn identities_that_no_range_knows_are_found_by_an_audit() {
    let (database, store, shop) = with_project().await;
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    let lost = "INSERT INTO event_id (project, place, id, range_id, digest)
                SELECT project, place, gen_random_uuid(), 999999, digest FROM event_id LIMIT 1";
    database.sql().await.batch_execute(lost).await.unwrap();
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    let check = found.store.iter().find(|check| check.name == "references_hold").unwrap();
    assert!(!check.holds && check.detail.contains("no range"), "{check:?}");
}

#[tokio::test]
async fn a_damaged_project_costs_the_others_of_its_append_nothing() {
    let (database, store, shop) = with_project().await;
    let others: Vec<ProjectId> =
        [project(&store, "a").await, project(&store, "b").await].map(|made| made.project.id).to_vec();
    store.append(vec![batch(shop, events("x", 3))]).await.unwrap();
    let stray = "INSERT INTO event (project, segment, position, time_ms, received_ms, id, name, properties)
                 SELECT project, segment, 5, time_ms, received_ms, gen_random_uuid(), name, properties
                 FROM event WHERE position = 3";
    database.sql().await.batch_execute(stray).await.unwrap();
    let sent = [(others[0], "p"), (shop, "q"), (others[1], "r"), (others[0], "s"), (shop, "t")];
    let sent: Vec<_> = sent.into_iter().map(|(of, id)| batch(of, events(id, 3))).collect();
    let outcomes = store.append_each(sent.into()).await;
    for (place, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(appended) => assert!(matches!(place, 0 | 2 | 3) && all_stored(&appended.verdicts), "{place}"),
            Err(error) => {
                assert!(matches!(place, 1 | 4) && matches!(error, Error::Corrupt { .. }), "{place}: {error}");
            }
        }
    }
    let mend = format!("DELETE FROM event WHERE project = {shop} AND position = 5");
    database.sql().await.batch_execute(&mend).await.unwrap();
    holds(&store).await;
}
