//! What the store refuses for its own sake is counted once, waits among the dead letters once, and keeps nothing behind when
//! it is stored in the end.

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::bus::{Bus, DeadLetter, RabbitOptions};
use eventbucket_collector::cache::Cache;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::store::{BatchRecord, EventFilter, EventOrder, Ledger, Store};
use eventbucket_collector::workers;
use eventbucket_protocol::Verdict;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bus_dead_letters::letters;
use crate::bus_fixture::{Direct, batch_of, bus, options, shared, soon, take, until};
use crate::store_fixture::{Folder, Place, event, project};
use crate::store_postgres::Database;

/// A collector with one project, without an edge.
struct Line {
    options: RabbitOptions,
    bus: Bus,
    direct: Direct,
    place: Place,
    store: Store,
    shop: ProjectId,
}

const REFUSE_POSTGRES: &str = "ALTER TABLE event ADD CONSTRAINT no_poison CHECK (name <> 'poison')";
const ACCEPT_POSTGRES: &str = "ALTER TABLE event DROP CONSTRAINT no_poison";
const REFUSE_SQLITE: &str = "CREATE TRIGGER no_poison BEFORE INSERT ON event WHEN new.name = 'poison'
    BEGIN SELECT raise(ABORT, 'no_poison'); END";
const ACCEPT_SQLITE: &str = "DROP TRIGGER no_poison";

impl Line {
    async fn new(place: Place, store: Store) -> Self {
        let shop = project(&store, "shop").await.project.id;
        let options = options(shared());
        let (bus, direct) = (bus(&options).await, Direct::to(shared(), &options).await);
        Self { options, bus, direct, place, store, shop }
    }

    async fn on_postgres() -> Self {
        let database = Database::new().await;
        let store = database.open().await;
        let line = Self::new(Place::Postgres(database), store).await;
        line.place.change(REFUSE_POSTGRES).await;
        line
    }

    async fn on_sqlite() -> Self {
        let folder = Folder::new();
        let store = folder.open();
        let line = Self::new(Place::Sqlite(folder), store).await;
        line.place.change(REFUSE_SQLITE).await;
        line
    }

    fn start(&self) -> JoinHandle<()> {
        let (bus, store, cache) = (self.bus.clone(), self.store.clone(), Cache::memory());
        tokio::spawn(workers::storage::run(bus, store, cache, CancellationToken::new()))
    }

    /// Three events of which the second is refused and came without a time.
    fn batch(&self) -> ValidBatch {
        let events = vec![event("a", "fine"), event("b", "poison"), event("c", "fine")];
        let batch = batch_of(self.shop.0, 1, events);
        ValidBatch { skew_ms: Some(3_600_000), undated: vec![1], ..batch }
    }

    async fn ledger(&self) -> Ledger {
        self.store.ledger(Some(self.shop)).await.unwrap()
    }

    async fn until_received(&self, received: u64) -> Ledger {
        until("all is counted", || async { self.ledger().await.received == received }).await;
        let ledger = self.ledger().await;
        assert!(ledger.balances(), "{ledger:?}");
        ledger
    }

    async fn until_dead(&self, letters: u32) {
        until("they are dead letters", || async { self.direct.look("dead").await.unwrap().0 == letters })
            .await;
    }

    /// Waits until nothing is under way any more.
    async fn end(&self, storage: JoinHandle<()>) {
        self.bus.close();
        soon("storage ends", storage).await.unwrap();
        assert_eq!(self.direct.accepted().await, 0, "nothing comes again");
    }

    async fn verdicts(&self) -> Vec<&'static str> {
        let found = self.store.batch(self.shop, self.batch().batch).await.unwrap();
        let Some(BatchRecord::Final(verdicts)) = found else { panic!("not final: {found:?}") };
        let word = |verdict: &Verdict| match verdict {
            Verdict::Stored => "stored",
            Verdict::Quarantined(_) => "quarantined",
            other => panic!("{other:?}"),
        };
        verdicts.iter().map(word).collect()
    }
}

async fn replay_all(bus: &Bus) -> Vec<DeadLetter> {
    let (mut walk, held) = letters(bus).await;
    for letter in &held {
        walk.replay(letter).await.unwrap();
    }
    walk.close().await;
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_counted_and_buried_once_and_leaves_quarantine_when_it_is_stored() {
    let line = Line::on_postgres().await;
    let storage = line.start();
    line.bus.publish(line.batch()).await.unwrap();
    line.until_dead(1).await;
    let counted = |ledger: Ledger| (ledger.stored, ledger.duplicate, ledger.quarantined);
    assert_eq!(counted(line.until_received(3).await), (2, 0, 1));

    // A client sends it again: known, and not buried a second time.
    line.bus.publish(line.batch()).await.unwrap();
    assert_eq!(counted(line.until_received(6).await), (2, 3, 1));
    line.until_dead(1).await;

    // A person puts it back before the cause is mended: it is a dead letter again, and counted as known.
    let replayed = replay_all(&line.bus).await;
    assert_eq!(replayed.len(), 1);
    let letter = &replayed[0].batches[0];
    assert_eq!((letter.events.len(), &letter.undated[..]), (1, &[0][..]), "its time is still ours");
    assert_eq!(counted(line.until_received(7).await), (2, 4, 1));
    line.until_dead(1).await;
    let (walk, again) = letters(&line.bus).await;
    walk.close().await;
    let [before, again] = [&replayed[0], &again[0]];
    assert_eq!(again.id, before.id, "it is the same letter");
    assert_eq!(again.reason, format!("refused again: {}", before.reason));

    // And after it: stored, with the time it came with.
    line.place.change(ACCEPT_POSTGRES).await;
    replay_all(&line.bus).await;
    assert_eq!(counted(line.until_received(8).await), (3, 4, 1));
    line.until_dead(0).await;
    let Place::Postgres(database) = &line.place else { unreachable!() };
    let kept = database.sql().await.query("SELECT id FROM quarantine", &[]).await.unwrap();
    assert_eq!(kept.len(), 0, "it is in the log now");
    assert_eq!(line.verdicts().await, ["stored", "quarantined", "stored"], "what they were the first time");
    let filter = EventFilter::default();
    let page = line.store.events(line.shop, &filter, EventOrder::ByPosition { after: 0 }, 10).await.unwrap();
    let skewed: Vec<_> =
        page.events.iter().map(|found| (found.event.name.clone(), found.skew_ms.is_some())).collect();
    assert!(skewed.contains(&("poison".to_owned(), false)), "{skewed:?}");
    assert_eq!(skewed.iter().filter(|(_, skewed)| *skewed).count(), 2, "{skewed:?}");
    line.end(storage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_between_storing_and_burying_leaves_both_to_the_next() {
    let line = Line::on_postgres().await;
    let dying = bus(&line.options).await;
    dying.publish(line.batch()).await.unwrap();
    let taken = take(&mut dying.accepted(), 1).await;
    let stored = line.store.append_each(vec![taken[0].batch.clone()].into()).await;
    assert!(matches!(stored[0].as_ref().unwrap().verdicts[1], Verdict::Quarantined(_)));
    drop((taken, dying));
    let storage = line.start();
    line.until_dead(1).await;
    let ledger = line.until_received(6).await;
    assert_eq!((ledger.stored, ledger.duplicate, ledger.quarantined), (2, 3, 1));
    line.end(storage).await;
    line.until_dead(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_put_aside_whole_is_final_and_counted_once() {
    let line = Line::on_sqlite().await;
    let storage = line.start();
    line.bus.publish(line.batch()).await.unwrap();
    line.until_dead(1).await;
    assert_eq!(line.verdicts().await, ["quarantined"; 3]);
    line.bus.publish(line.batch()).await.unwrap();
    line.bus.publish(batch_of(line.shop.0, 2, vec![event("d", "fine")])).await.unwrap();
    let ledger = line.until_received(4).await;
    assert_eq!((ledger.stored, ledger.quarantined), (1, 3), "the second copy adds nothing");
    line.until_dead(1).await;

    line.place.change(ACCEPT_SQLITE).await;
    assert_eq!(replay_all(&line.bus).await.len(), 1);
    let ledger = line.until_received(7).await;
    assert_eq!((ledger.stored, ledger.quarantined), (4, 3));
    assert_eq!(line.verdicts().await, ["quarantined"; 3], "what they were the first time");
    line.end(storage).await;
    line.until_dead(0).await;
}
