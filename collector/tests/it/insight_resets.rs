//! Live counters that were lost are begun anew from a sum over all counts of their project. That may take long, or fail, and must
//! keep nobody from counting.

use std::time::Duration;

use eventbucket_collector::bus::{Bus, Limits};
use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::Store;

use crate::store_announcements::Insight;
use crate::store_fixture::{batch, count_all, events, eventually, project, totals};
use crate::store_postgres::{Database, holds};

/// An aggregate in the place of the server's own, which waits for a lock where it meets one number, and fails where it meets
/// another.
const SUM: &str = "
    CREATE SCHEMA slow;
    CREATE FUNCTION slow.add(numeric, bigint) RETURNS numeric LANGUAGE plpgsql AS $$
    BEGIN
        IF $2 = 77777 THEN PERFORM pg_advisory_xact_lock(7); END IF;
        IF $2 = 88888 THEN RAISE EXCEPTION 'more than it can bear'; END IF;
        RETURN coalesce($1, 0) + $2;
    END $$;
    CREATE AGGREGATE slow.sum(bigint) (sfunc = slow.add, stype = numeric);
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = public, slow, pg_catalog', current_database());
    END $$";

/// Less than the 20 s after which the store gives up waiting for a lock.
const SOON: Duration = Duration::from_secs(10);

/// Two projects with 30 counted events each, whose live counters are lost. The sum over the first one's counts, of an hour that
/// is over, meets that number.
async fn counted(database: &Database, met: u64) -> (Store, ProjectId, ProjectId) {
    let store = database.open().await;
    let [shop, blog] = [project(&store, "shop").await.project.id, project(&store, "blog").await.project.id];
    store.append(vec![batch(shop, events("x", 30)), batch(blog, events("x", 30))]).await.unwrap();
    for id in [shop, blog] {
        count_all(&store, id).await;
    }
    let of_old = format!(
        "INSERT INTO rollup_counts (project, generation, hour_ms, count, name) VALUES ({shop}, 1, 0, {met}, 'old')"
    );
    let sql = database.sql().await;
    sql.batch_execute(&of_old).await.unwrap();
    sql.batch_execute(SUM).await.unwrap();
    // Its connections are made after the change.
    (database.open().await, shop, blog)
}

async fn live(cache: &Cache, project: ProjectId) -> Option<u64> {
    cache.counters(project).await.map(|live| live.applied_to)
}

#[tokio::test]
async fn a_sum_that_takes_long_keeps_no_other_project_from_counting() {
    let database = Database::new().await;
    let (store, shop, blog) = counted(&database, 77_777).await;
    let holder = database.sql().await;
    holder.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    let bus = Bus::in_process(Limits::default());
    let insight = Insight::start(bus.clone(), &store, Cache::memory());
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let looker = database.sql().await;
    eventually("it adds up", async || looker.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 1)
        .await;
    let range = store.append(vec![batch(blog, events("y", 12))]).await.unwrap()[0].range;
    bus.announce(&[range]);
    let applied = async || store.view_state(blog).await.unwrap().applied_to;
    let counted = eventually("the other is counted", async || applied().await == 42);
    tokio::time::timeout(SOON, counted).await.expect("it doesn't wait for the sum");
    assert_eq!(live(&insight.cache, shop).await, None, "it still adds up");
    // What comes meanwhile is counted behind it.
    let range = store.append(vec![batch(shop, events("y", 12))]).await.unwrap()[0].range;
    bus.announce(&[range]);
    holder.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
    for id in [shop, blog] {
        eventually("both are counted", async || live(&insight.cache, id).await == Some(42)).await;
    }
    insight.stop().await;
    database.sql().await.batch_execute("DELETE FROM rollup_counts WHERE name = 'old'").await.unwrap();
    holds(&store).await;
}

#[tokio::test]
async fn a_sum_that_fails_keeps_not_even_its_own_project_from_counting() {
    let database = Database::new().await;
    let (store, shop, blog) = counted(&database, 88_888).await;
    let insight = Insight::start(Bus::in_process(Limits::default()), &store, Cache::memory());
    eventually("the other has live counters", async || live(&insight.cache, blog).await == Some(30)).await;
    // Found by a look, which finds the lost counters, too.
    store.append(vec![batch(shop, events("y", 12))]).await.unwrap();
    let applied = async || store.view_state(shop).await.unwrap().applied_to;
    eventually("it is counted", async || applied().await == 42).await;
    assert_eq!(live(&insight.cache, shop).await, None);
    let mended = format!("UPDATE rollup_counts SET count = 5 WHERE project = {shop} AND name = 'old'");
    database.sql().await.batch_execute(&mended).await.unwrap();
    eventually("it is tried again", async || live(&insight.cache, shop).await == Some(42)).await;
    assert_eq!(totals(&store, shop).await.last().unwrap(), &("old".to_owned(), 5));
    insight.stop().await;
}
