//! Random histories of users: live, rebuilt and recounted they are the same, on both stores.

use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::Store;
use eventbucket_protocol::Event;
use proptest::prelude::*;
use serde_json::json;

use crate::store_fixture::{Folder, Place, batch, project};
use crate::store_identifications::{alias, everything, holds, identify, seen};
use crate::store_postgres::Database;

#[derive(Clone, Debug)]
enum Step {
    /// A batch: events as (id, kind, user, other, time), drawn from few of each so that they overlap.
    Append(Vec<(u8, u8, u8, u8, i64)>),
    Apply(u64),
    Rebuild,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let event = (0_u8..80, 0_u8..6, 0_u8..6, 0_u8..6, -3_i64..3);
    prop_oneof![
        6 => prop::collection::vec(event, 0..12).prop_map(Step::Append),
        3 => (0_u64..60).prop_map(Step::Apply),
        1 => Just(Step::Rebuild),
        1 => Just(Step::Reopen),
    ]
}

fn real((id, kind, user, other, time): &(u8, u8, u8, u8, i64)) -> Event {
    let (id, user) = (format!("id{id}"), format!("user-{user}"));
    let value = [json!(1), json!("x"), json!(null), json!({"a": [1.5]})][usize::from(*other) % 4].clone();
    match kind {
        0 | 1 => alias(&id, &user, &format!("user-{other}"), *time),
        2 => identify(&id, &user, *time, &json!({"email": value})),
        3 => identify(&id, &user, *time, &json!({"plan": value, "city": other})),
        _ => seen(&id, &user, *time),
    }
}

/// Plays a history and returns what came of it, after checking that a rebuild gives the same.
async fn play(place: Place, steps: &[Step]) -> String {
    let mut store: Store = place.open().await;
    let shop: ProjectId = project(&store, "shop").await.project.id;
    for step in steps {
        match step {
            Step::Append(events) => {
                store.append(vec![batch(shop, events.iter().map(real).collect())]).await.unwrap();
            }
            Step::Apply(through) => {
                store.apply_counts(shop, *through).await.unwrap();
            }
            Step::Rebuild => {
                store.rebuild_identifications(shop, |_, _| {}).await.unwrap();
            }
            Step::Reopen => {
                store.close().await.unwrap();
                store = place.open().await;
            }
        }
    }
    // The audit makes everything once more of the log, and compares the bytes of every row.
    holds(&store).await;
    let live = everything(&store, shop).await;
    store.rebuild_identifications(shop, |_, _| {}).await.unwrap();
    let rebuilt = everything(&store, shop).await;
    assert_eq!(live, rebuilt);
    holds(&store).await;
    format!("{live:?}")
}

proptest! {
    // Each history has a database of its own, which takes longer to make than the history.
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_make_the_same_users_live_rebuilt_and_on_both_stores(
        steps in prop::collection::vec(step(), 1..20),
    ) {
        run(async {
            let sqlite = play(Place::Sqlite(Folder::new()), &steps).await;
            assert_eq!(sqlite, play(Place::Postgres(Database::new().await), &steps).await);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_make_the_same_users_live_and_rebuilt_on_sqlite(steps in prop::collection::vec(step(), 1..25)) {
        run(async { play(Place::Sqlite(Folder::new()), &steps).await; });
    }
}

fn run(history: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(history);
}
