//! Every event that was confirmed is there when the power comes back, whatever of the unsynced writes survived.

use std::path::Path;

use eventbucket_collector::bus::message::ValidBatch;
use eventbucket_collector::project::ProjectId;
use eventbucket_collector::query::audit::audit;
use eventbucket_collector::store::{DATABASE_FILE, Error, SqliteOptions, Store, Synchronous};
use eventbucket_protocol::{BatchId, Event, EventId, Properties, Timestamp, Verdict};

use rusqlite::{Connection, OpenFlags};

use super::disk::{Disk, Fault};
use crate::random::{Random, rounds};
use crate::store_fixture::count_all_projects;

/// Appenders at once: their batches share commits.
const APPENDERS: u64 = 3;

fn event(number: u64) -> Event {
    let padding = "x".repeat(usize::try_from(number % 7 * 300).unwrap());
    Event {
        id: EventId::from_text(&format!("event-{number}")),
        name: format!("name-{}", number % 3),
        description: None,
        user: number.is_multiple_of(2).then(|| format!("user-{}", number % 5)),
        time: Timestamp::from_ms(1_700_000_000_000 + i64::try_from(number).unwrap()).unwrap(),
        stream: None,
        correlation: None,
        properties: Properties::parse(&format!(r#"{{"number":{number},"padding":"{padding}"}}"#)).unwrap(),
    }
}

fn batch(project: ProjectId, numbers: impl IntoIterator<Item = u64>) -> ValidBatch {
    let events: Vec<Event> = numbers.into_iter().map(event).collect();
    ValidBatch {
        project,
        batch: BatchId::from_uuid(events[0].id.uuid()),
        received: Timestamp::from_ms(1_700_000_100_000).unwrap(),
        skew_ms: None,
        events,
        undated: Vec::new(),
        refused: Vec::new(),
        part: 0,
        parts: 1,
    }
}

/// A store on a disk of its own, with one project.
struct Machine {
    disk: Disk,
    store: Store,
    project: ProjectId,
    // Dropped last: the store's files live in it.
    folder: tempfile::TempDir,
}

impl Machine {
    async fn start(synchronous: Synchronous) -> Self {
        let (disk, folder) = (Disk::new(), tempfile::tempdir().unwrap());
        let mut options = SqliteOptions::new(folder.path().join(DATABASE_FILE));
        options.vfs = Some(disk.name().to_owned());
        options.synchronous = synchronous;
        let store = Store::sqlite(options).unwrap();
        let account = store.create_account("a@example.com", "team").await.unwrap();
        let project = store.create_project(account, "p").await.unwrap().project.id;
        Self { disk, store, project, folder }
    }

    /// Appends from several tasks until one fails; returns the numbers that were confirmed.
    async fn append_until_failure(&self, seed: u64) -> Vec<u64> {
        let tasks = (0..APPENDERS).map(|appender| {
            let (store, project) = (self.store.clone(), self.project);
            tokio::spawn(async move {
                let mut random = Random::new(seed * APPENDERS + appender);
                let (mut confirmed, mut next) = (Vec::new(), appender);
                loop {
                    let size = 1 + random.below(20);
                    let numbers: Vec<u64> = (0..size).map(|i| next + i * APPENDERS).collect();
                    next += size * APPENDERS;
                    match store.append(vec![batch(project, numbers.iter().copied())]).await {
                        Ok(appended) => {
                            assert!(appended[0].verdicts.iter().all(|verdict| *verdict == Verdict::Stored));
                            confirmed.extend(numbers);
                        }
                        Err(_) => return confirmed,
                    }
                }
            })
        });
        let mut confirmed = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            confirmed.extend(task.await.unwrap());
        }
        confirmed
    }

    /// Ends all I/O and returns what a machine finds on its disk afterwards.
    async fn cut(self, survives: impl FnMut() -> bool) -> tempfile::TempDir {
        self.disk.cut();
        let _ = self.store.close().await;
        drop(self.store);
        let after = tempfile::tempdir().unwrap();
        self.disk.aftermath(after.path(), survives);
        drop(self.folder);
        after
    }
}

/// Opens what is left and says which confirmed numbers are missing; everything else must hold regardless.
async fn missing_after(folder: &Path, project: ProjectId, confirmed: &[u64]) -> Vec<u64> {
    let store = Store::sqlite(SqliteOptions::new(folder.join(DATABASE_FILE))).unwrap();
    if store.projects(None).await.unwrap().is_empty() {
        return confirmed.to_vec();
    }
    let mut missing = Vec::new();
    for number in confirmed {
        match store.event(project, event(*number).id.uuid()).await.unwrap() {
            Some(found) => assert_eq!(found.event, event(*number)),
            None => missing.push(*number),
        }
    }
    count_all_projects(&store).await;
    let before = audit(&store, None, |_, _| {}).await.unwrap();
    assert!(before.holds(), "{before:?}");
    // A client that never heard sends everything again: what was there is a duplicate, the rest takes the next positions.
    if !confirmed.is_empty() {
        let again = store.append(vec![batch(project, confirmed.iter().copied())]).await.unwrap();
        let stored = again[0].verdicts.iter().filter(|verdict| **verdict == Verdict::Stored).count();
        assert_eq!(stored, missing.len());
        count_all_projects(&store).await;
        assert!(audit(&store, None, |_, _| {}).await.unwrap().holds());
    }
    store.close().await.unwrap();
    missing
}

/// Runs until the power goes off somewhere and returns what was confirmed and lost.
async fn cut_once(seed: u64, synchronous: Synchronous) -> (usize, Vec<u64>) {
    let mut random = Random::new(seed);
    let machine = Machine::start(synchronous).await;
    // A commit of this size takes 5 to 40 writes and a sync; every 10th run lasts past a checkpoint.
    machine.disk.cut_after(1 + random.below(if seed.is_multiple_of(10) { 20_000 } else { 600 }));
    let confirmed = machine.append_until_failure(seed).await;
    let project = machine.project;
    // Sometimes nothing unsynced survives, sometimes all, mostly some sectors of it.
    let chance = [0, 50, 90, 100][usize::try_from(random.below(4)).unwrap()];
    let after = machine.cut(|| random.percent(chance)).await;
    let missing = missing_after(after.path(), project, &confirmed).await;
    (confirmed.len(), missing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_confirmed() {
    let mut confirmed = 0;
    for seed in 0..rounds("POWER_CUTS", 100) {
        let (events, missing) = cut_once(seed, Synchronous::Full).await;
        assert!(missing.is_empty(), "seed {seed}: {} of {events} confirmed events are gone", missing.len());
        confirmed += events;
    }
    assert!(
        confirmed > 1_000,
        "only {confirmed} events were confirmed; the runs were too short to show anything"
    );
    println!("{confirmed} confirmed events survived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_is_noticed_when_commits_do_not_wait_for_the_disk() {
    let mut lost = 0;
    for seed in 0..20 {
        lost += cut_once(seed, Synchronous::Normal).await.1.len();
    }
    assert!(lost > 0, "the disk forgot nothing although nothing was synced: the test above proves nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_while_the_store_is_being_made_leaves_something_that_opens() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let (disk, folder) = (Disk::new(), tempfile::tempdir().unwrap());
        disk.cut_after(1 + random.below(60));
        let mut options = SqliteOptions::new(folder.path().join(DATABASE_FILE));
        options.vfs = Some(disk.name().to_owned());
        if let Ok(store) = Store::sqlite(options) {
            let _ = store.create_account("a@example.com", "team").await;
            disk.cut();
            let _ = store.close().await;
        }
        disk.cut();
        let after = tempfile::tempdir().unwrap();
        disk.aftermath(after.path(), || random.percent(50));
        let store = Store::sqlite(SqliteOptions::new(after.path().join(DATABASE_FILE)));
        let store = store.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(store.is_empty().await.is_ok());
        store.close().await.unwrap();
    }
}

/// Waits until appends work again and returns the first answer that was not an error.
async fn append_when_healed(machine: &Machine, number: u64) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while let Err(error) = machine.store.append(vec![batch(machine.project, [number])]).await {
        assert!(tokio::time::Instant::now() < deadline, "the store did not come back: {error}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_and_heals_costs_no_confirmed_event_even_if_the_power_goes_later() {
    for (seed, fault) in
        [Fault::NoSpace, Fault::WriteError, Fault::SyncError].into_iter().cycle().take(30).enumerate()
    {
        let seed = u64::try_from(seed).unwrap();
        let mut random = Random::new(seed);
        let machine = Machine::start(Synchronous::Full).await;
        let mut confirmed: Vec<u64> = Vec::new();
        for round in 0..3 {
            let start = 1_000_000 * round;
            let numbers: Vec<u64> = (start..start + 1 + random.below(50)).collect();
            machine.store.append(vec![batch(machine.project, numbers.iter().copied())]).await.unwrap();
            confirmed.extend(numbers);
            machine.disk.fail(fault, 1 + u32::try_from(random.below(3)).unwrap());
            let failed = machine.store.append(vec![batch(machine.project, [start + 500_000])]).await;
            match (fault, failed) {
                (Fault::NoSpace, Err(error)) => assert!(matches!(error, Error::DiskFull), "{error}"),
                (_, Err(error)) => assert!(matches!(error, Error::Unavailable { .. }), "{error}"),
                (_, Ok(_)) => panic!("seed {seed}: {fault:?} went unnoticed"),
            }
            machine.disk.heal();
            append_when_healed(&machine, start + 600_000).await;
            confirmed.push(start + 600_000);
        }
        let project = machine.project;
        let after = machine.cut(|| random.percent(50)).await;
        let missing = missing_after(after.path(), project, &confirmed).await;
        assert!(missing.is_empty(), "seed {seed}, {fault:?}: {missing:?} are gone");
    }
}

/// Somebody who looks into the file and takes a long time over it.
fn long_read(machine: &Machine) -> Connection {
    let file = machine.folder.path().join(DATABASE_FILE);
    let reader =
        Connection::open_with_flags_and_vfs(file, OpenFlags::SQLITE_OPEN_READ_ONLY, machine.disk.name())
            .unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM event").unwrap();
    reader
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_read_does_not_keep_the_store_closed_after_a_full_disk() {
    let machine = Machine::start(Synchronous::Full).await;
    append_when_healed(&machine, 1).await;
    let reader = long_read(&machine);
    machine.disk.fail(Fault::NoSpace, 1);
    let failed = machine.store.append(vec![batch(machine.project, [2])]).await;
    assert!(matches!(failed, Err(Error::DiskFull)), "{failed:?}");
    append_when_healed(&machine, 3).await;
    drop(reader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_sync_the_store_waits_for_a_long_read_and_says_so() {
    let machine = Machine::start(Synchronous::Full).await;
    append_when_healed(&machine, 1).await;
    let reader = long_read(&machine);
    machine.disk.fail(Fault::SyncError, 1);
    assert!(machine.store.append(vec![batch(machine.project, [2])]).await.is_err());
    let refused = machine.store.append(vec![batch(machine.project, [3])]).await.unwrap_err().to_string();
    assert!(refused.contains("a long read"), "{refused}");
    drop(reader);
    append_when_healed(&machine, 3).await;
}
