//! Random histories against a plain model: verdicts, positions, ledger, counts and pages must agree.

use std::collections::{BTreeMap, HashMap};

use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{CountsBy, CountsQuery, EventFilter, EventOrder, Ledger, Store};
use eventbucket_protocol::{Event, Verdict};
use proptest::prelude::*;

use crate::store_fixture::{
    Folder, HOUR, NOON, Place, at, batch, count_all_projects, event, project, refused,
};
use crate::store_postgres::Database;

/// A batch of a random history: events as (id, name, hour), drawn from few ids so that they overlap.
#[derive(Clone, Debug)]
struct Sent {
    project: usize,
    events: Vec<(u8, u8, i64)>,
    rejected: u32,
    skew_hours: Option<i64>,
}

#[derive(Clone, Debug)]
enum Step {
    /// One transaction.
    Append(Vec<Sent>),
    Apply {
        project: usize,
        through: u64,
    },
    Rebuild {
        project: usize,
    },
    Reopen,
}

fn sent() -> impl Strategy<Value = Sent> {
    let events = prop::collection::vec((0_u8..60, 0_u8..3, -3_i64..3), 0..12);
    (0..2_usize, events, 0_u32..3, prop::option::of(-2_i64..3))
        .prop_map(|(project, events, rejected, skew_hours)| Sent { project, events, rejected, skew_hours })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(sent(), 1..4).prop_map(Step::Append),
        3 => (0..2_usize, 0_u64..40).prop_map(|(project, through)| Step::Apply { project, through }),
        1 => (0..2_usize).prop_map(|project| Step::Rebuild { project }),
        1 => Just(Step::Reopen),
    ]
}

/// What a project should look like.
#[derive(Default)]
struct Model {
    stored: HashMap<u8, (u8, i64)>,
    /// Ids, names and corrected hours by position.
    log: Vec<(u8, u8, i64)>,
    ledger: Ledger,
    applied_to: usize,
}

impl Model {
    fn append(&mut self, sent: &Sent) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for (id, name, hour) in &sent.events {
            verdicts.push(match self.stored.get(id) {
                Some(first) => Verdict::Duplicate { differs: *first != (*name, *hour) },
                None => {
                    self.stored.insert(*id, (*name, *hour));
                    self.log.push((*id, *name, hour + sent.skew_hours.unwrap_or(0)));
                    Verdict::Stored
                }
            });
        }
        let stored = verdicts.iter().filter(|verdict| **verdict == Verdict::Stored).count() as u64;
        let (events, rejected) = (verdicts.len() as u64, u64::from(sent.rejected));
        self.ledger += Ledger {
            received: events + rejected,
            stored,
            duplicate: events - stored,
            quarantined: 0,
            rejected,
        };
        verdicts
    }

    fn counts(&self) -> BTreeMap<(String, i64), u64> {
        let mut counts = BTreeMap::new();
        for (_, name, hour) in &self.log[..self.applied_to] {
            *counts.entry((name_of(*name), NOON - NOON % HOUR + hour * HOUR)).or_default() += 1;
        }
        counts
    }
}

fn name_of(name: u8) -> String {
    format!("name{name}")
}

fn real(sent: &Sent, projects: &[ProjectId]) -> eventbucket_collector::bus::message::ValidBatch {
    let made = |(id, name, hour): &(u8, u8, i64)| Event {
        time: at(NOON + hour * HOUR),
        ..event(&format!("id{id}"), &name_of(*name))
    };
    let mut batch = batch(projects[sent.project], sent.events.iter().map(made).collect());
    batch.refused = refused(sent.rejected);
    batch.skew_ms = sent.skew_hours.map(|hours| hours * HOUR);
    batch
}

async fn agrees(store: &Store, project: ProjectId, model: &Model) {
    assert_eq!(store.head(project).await.unwrap(), model.log.len() as u64);
    assert_eq!(store.ledger(Some(project)).await.unwrap(), model.ledger);
    let all = EventOrder::ByPosition { after: 0 };
    let page = store.events(project, &EventFilter::default(), all, 1000).await.unwrap();
    let ids: Vec<String> = page.events.iter().map(|event| event.event.id.to_string()).collect();
    let expected: Vec<String> = model.log.iter().map(|(id, ..)| format!("id{id}")).collect();
    assert_eq!(ids, expected);
    let query = CountsQuery { by: CountsBy::Hour, ..CountsQuery::default() };
    let rows = store.counts(project, query).await.unwrap();
    let counts: BTreeMap<(String, i64), u64> =
        rows.into_iter().map(|row| ((row.name, row.start.unwrap().ms()), row.count)).collect();
    assert_eq!(counts, model.counts());
}

async fn replay(place: Place, steps: Vec<Step>) {
    let mut store = place.open().await;
    let projects = [project(&store, "one").await.project.id, project(&store, "two").await.project.id];
    let mut models = [Model::default(), Model::default()];
    for step in steps {
        match step {
            Step::Append(batches) => {
                let appended =
                    store.append(batches.iter().map(|sent| real(sent, &projects)).collect()).await.unwrap();
                for (sent, one) in batches.iter().zip(appended) {
                    let before = models[sent.project].log.len() as u64;
                    assert_eq!(one.verdicts, models[sent.project].append(sent));
                    assert_eq!(one.range.first, before + 1);
                    assert_eq!(one.range.last, models[sent.project].log.len() as u64);
                }
            }
            Step::Apply { project, through } => {
                let model = &mut models[project];
                let applied = store.apply_counts(projects[project], through).await.unwrap();
                assert_eq!(applied.from, model.applied_to as u64);
                model.applied_to = model.applied_to.max((through as usize).min(model.log.len()));
                assert_eq!(applied.through, model.applied_to as u64);
            }
            Step::Rebuild { project } => {
                store.rebuild_counts(projects[project], |_, _| {}).await.unwrap();
                models[project].applied_to = models[project].log.len();
            }
            Step::Reopen => {
                store.close().await.unwrap();
                store = place.open().await;
            }
        }
    }
    for (project, model) in projects.iter().zip(&models) {
        agrees(&store, *project, model).await;
    }
    count_all_projects(&store).await;
    let found = audit(&store, None, |_, _| {}).await.unwrap();
    assert!(found.holds(), "{found:#?}");
}

proptest! {
    // 48 histories of up to 20 steps take about 3 s, most of it for the disk.
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_on_sqlite_agree_with_a_plain_model(steps in prop::collection::vec(step(), 1..20)) {
        run(replay(Place::Sqlite(Folder::new()), steps));
    }
}

proptest! {
    // Each history has a database of its own, which takes longer to make than the history.
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_on_postgres_agree_with_a_plain_model(steps in prop::collection::vec(step(), 1..20)) {
        run(async { replay(Place::Postgres(Database::new().await), steps).await });
    }
}

fn run(history: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(history);
}
