use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;

pub(super) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(super) fn open(folder: &Path) -> (Spool, Adopted) {
    Spool::open(folder, SpoolLimits::default()).unwrap()
}

pub(super) fn batch_id(number: u64) -> BatchId {
    BatchId::from_text(&format!("batch-{number}"))
}

/// An event whose body depends on its number alone.
pub(super) fn event(number: u64) -> EncodedEvent {
    let mut random = fastrand::Rng::with_seed(number);
    let body: Vec<u8> = (0..100 + number % 300).map(|_| random.u8(..)).collect();
    EncodedEvent::new(Uuid::from_u128(u128::from(number) + 1), 1_700_000_000_000 + number.cast_signed(), body)
}

pub(super) fn events(numbers: std::ops::Range<u64>) -> Vec<EncodedEvent> {
    numbers.map(event).collect()
}

pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap() != "spool.lock")
        .collect();
    files.sort();
    files
}

pub(super) fn ending(folder: &Path, with: &str) -> Vec<PathBuf> {
    files(folder).into_iter().filter(|path| path.to_str().unwrap().contains(with)).collect()
}

pub(super) fn filled(folder: &Path, batch: u64, numbers: std::ops::Range<u64>) -> (Spool, BatchKey) {
    let (mut spool, _) = open(folder);
    let key = spool.begin(batch_id(batch));
    spool.append(key, &events(numbers), false).unwrap();
    spool.close_batch();
    (spool, key)
}

/// Leaves a file as a killed process does: the log not yet moved into it, the lock free.
fn abandon(spool: Spool) {
    let file = spool.claim.file().to_owned();
    let log = file::log_of(&file);
    let copies = [file, log].map(|path| (fs::read(&path).unwrap(), path));
    drop(spool);
    for (bytes, path) in copies {
        fs::write(path, bytes).unwrap();
    }
}

fn sent_order(spool: &Spool) -> Vec<Vec<EncodedEvent>> {
    let batches = spool.oldest_batches(usize::MAX).unwrap();
    batches.iter().map(|batch| spool.read(batch.key).unwrap()).collect()
}

#[test]
fn a_spool_can_move_to_the_worker_thread() {
    fn assert_send<T: Send>() {}
    assert_send::<Spool>();
}

#[test]
fn batches_come_back_with_the_same_ids_and_bytes() {
    let folder = folder();
    let (mut spool, first) = filled(folder.path(), 1, 0..5);
    let second = spool.begin(batch_id(2));
    spool.append(second, &events(5..7), true).unwrap();
    spool.append(second, &events(7..9), false).unwrap();
    let before = (spool.bytes(), spool.events());
    assert_eq!(spool.read(first).unwrap(), events(0..5));
    drop(spool);

    let (spool, adopted) = open(folder.path());
    assert_eq!(adopted, Adopted { events: 9, batches: 2, files: 1, ..Adopted::default() });
    assert_eq!((spool.bytes(), spool.events()), before);
    let batches = spool.oldest_batches(10).unwrap();
    assert_eq!(batches.iter().map(|batch| batch.id).collect::<Vec<_>>(), [batch_id(1), batch_id(2)]);
    assert_eq!(batches[1].events, 4);
    assert_eq!(batches[1].first_captured_ms, event(5).captured_ms);
    assert_eq!(sent_order(&spool), [events(0..5), events(5..9)]);
}

#[test]
fn the_open_batch_is_listed_once_it_is_closed_or_its_process_is_gone() {
    let folder = folder();
    let (mut spool, _) = open(folder.path());
    let key = spool.begin(batch_id(1));
    assert!(spool.oldest_batches(10).unwrap().is_empty());
    spool.append(key, &events(0..2), false).unwrap();
    assert!(spool.oldest_batches(10).unwrap().is_empty());
    assert_eq!(spool.events(), 2);
    let next = spool.begin(batch_id(2));
    assert_eq!(spool.oldest_batches(10).unwrap()[0].key, key);
    assert!(matches!(spool.append(key, &events(2..3), false), Err(SpoolError::NoSuchBatch)));
    spool.append(next, &events(2..3), false).unwrap();
    abandon(spool);
    let (spool, adopted) = open(folder.path());
    assert_eq!((adopted.events, adopted.batches), (3, 2));
    assert_eq!(sent_order(&spool), [events(0..2), events(2..3)]);
}

#[test]
fn a_batch_nothing_was_appended_to_leaves_no_trace() {
    let folder = folder();
    let (mut spool, _) = open(folder.path());
    let empty = spool.begin(batch_id(1));
    spool.append(empty, &[], true).unwrap();
    spool.close_batch();
    assert!(spool.oldest_batches(10).unwrap().is_empty());
    assert!(matches!(spool.remove(empty), Err(SpoolError::NoSuchBatch)));
    assert!(matches!(spool.read(empty), Err(SpoolError::NoSuchBatch)));
}

#[test]
fn a_second_handle_takes_a_file_over_only_when_its_lock_is_free() {
    let folder = folder();
    let (first, _) = filled(folder.path(), 1, 0..5);
    let (mut second, adopted) = open(folder.path());
    assert_eq!(adopted, Adopted::default());
    assert_eq!(second.adopt().unwrap(), Adopted::default());
    abandon(first);
    let adopted = second.adopt().unwrap();
    assert_eq!(adopted, Adopted { events: 5, batches: 1, files: 1, ..Adopted::default() });
    assert_eq!(sent_order(&second), [events(0..5)]);
    assert_eq!(ending(folder.path(), ".db").len(), 2, "the own file and its log");
    assert_eq!(ending(folder.path(), ".lock").len(), 1);
}

#[test]
fn own_batches_go_before_those_of_merged_files() {
    let folder = folder();
    let spools: Vec<_> = (0..4).map(|n| filled(folder.path(), n, n * 10..n * 10 + 3).0).collect();
    spools.into_iter().for_each(abandon);
    let (mut spool, adopted) = open(folder.path());
    assert_eq!((adopted.files, adopted.batches, adopted.events), (4, 4, 12));
    assert_eq!(sent_order(&spool), [0, 10, 20, 30].map(|n| events(n..n + 3)));
    let next = spool.begin(batch_id(9));
    spool.append(next, &events(40..41), false).unwrap();
    spool.close_batch();
    assert_eq!(sent_order(&spool).last().unwrap(), &events(40..41));
    assert_eq!(spool.events(), 13);
}

#[test]
fn merging_while_a_batch_is_open_leaves_its_place_alone() {
    let folder = folder();
    let (other, _) = filled(folder.path(), 1, 0..3);
    let (mut spool, _) = open(folder.path());
    let key = spool.begin(batch_id(2));
    abandon(other);
    assert_eq!(spool.adopt().unwrap().events, 3);
    spool.append(key, &events(10..12), false).unwrap();
    spool.close_batch();
    assert_eq!(sent_order(&spool), [events(10..12), events(0..3)]);
}

#[test]
fn merging_again_what_was_merged_before_the_kill_adds_nothing() {
    let folder = folder();
    let (first, _) = filled(folder.path(), 1, 0..5);
    let (second, _) = filled(folder.path(), 2, 5..9);
    let other = second.claim.file().to_owned();
    abandon(second);
    let (kept, kept_log) = (fs::read(&other).unwrap(), fs::read(file::log_of(&other)).unwrap());
    let mut first = first;
    assert_eq!(first.adopt().unwrap().events, 4);
    // The process died between the commit and the removal of the other file.
    fs::write(&other, kept).unwrap();
    fs::write(file::log_of(&other), kept_log).unwrap();
    let adopted = first.adopt().unwrap();
    assert_eq!(adopted, Adopted { files: 1, ..Adopted::default() });
    assert_eq!(sent_order(&first), [events(0..5), events(5..9)]);
    assert!(!other.exists());
}

#[test]
fn a_file_that_does_not_fit_is_left_until_there_is_room() {
    let folder = folder();
    let (first, key) = filled(folder.path(), 1, 0..50);
    let (second, _) = filled(folder.path(), 2, 50..100);
    let limits = SpoolLimits { bytes_max: first.bytes() + second.bytes() - 1 };
    abandon(first);
    abandon(second);
    let (mut spool, adopted) = Spool::open(folder.path(), limits).unwrap();
    assert_eq!((adopted.files, adopted.left, adopted.events), (1, 0, 50));
    assert_eq!(spool.adopt().unwrap().left, 0);
    assert_eq!(spool.remove(key).unwrap(), 50);
    assert_eq!(spool.adopt().unwrap().events, 50);
    assert_eq!(sent_order(&spool), [events(50..100)]);
}

#[test]
fn an_empty_spool_leaves_no_file_behind() {
    let folder = folder();
    let (mut spool, key) = filled(folder.path(), 1, 0..5);
    assert_eq!(spool.remove(key).unwrap(), 5);
    assert_eq!((spool.bytes(), spool.events()), (0, 0));
    drop(spool);
    assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
}

#[test]
fn the_bound_refuses_an_append_as_a_whole() {
    let folder = folder();
    let limits = SpoolLimits { bytes_max: 10_000 };
    let (mut spool, _) = Spool::open(folder.path(), limits).unwrap();
    let mut appended = 0;
    let error = loop {
        let key = spool.begin(batch_id(appended));
        match spool.append(key, &events(appended * 3..appended * 3 + 3), false) {
            Ok(()) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Full { by: FullBy::Bound }));
    assert!(spool.bytes() <= 10_000);
    assert_eq!(spool.events(), appended * 3);
    assert_eq!(spool.oldest_batches(100).unwrap().len() as u64, appended);
    let oldest = spool.oldest_batches(1).unwrap()[0].key;
    assert_eq!(spool.remove(oldest).unwrap(), 3);
    let key = spool.begin(batch_id(99));
    spool.append(key, &events(90..91), false).unwrap();
    assert_eq!(spool.events(), (appended - 1) * 3 + 1);
}

#[test]
fn the_counted_bytes_stay_close_to_what_the_file_takes() {
    let folder = folder();
    let (mut spool, _) = open(folder.path());
    for batch in 0..40 {
        let key = spool.begin(batch_id(batch));
        spool.append(key, &events(batch * 500..batch * 500 + 500), false).unwrap();
    }
    let counted = spool.bytes();
    let file = spool.claim.file().to_owned();
    drop(spool);
    let taken = fs::metadata(file).unwrap().len();
    assert!(taken < counted * 11 / 10 && taken > counted * 8 / 10, "{taken} for {counted}");
}

#[test]
fn a_file_does_not_grow_while_batches_come_and_go_and_shrinks_after_an_outage() {
    let folder = folder();
    let (mut spool, _) = open(folder.path());
    let file = spool.claim.file().to_owned();
    let mut keys = Vec::new();
    for batch in 0..60 {
        let key = spool.begin(batch_id(batch));
        spool.append(key, &events(batch * 1000..batch * 1000 + 1000), false).unwrap();
        keys.push(key);
    }
    spool.close_batch();
    let outage_bytes = spool.bytes();
    assert!(outage_bytes > 3 * 4 * 1024 * 1024);
    for key in keys {
        spool.remove(key).unwrap();
    }
    for batch in 100..300 {
        let key = spool.begin(batch_id(batch));
        spool.append(key, &events(batch * 1000..batch * 1000 + 1000), false).unwrap();
        spool.close_batch();
        spool.remove(key).unwrap();
    }
    let taken = fs::metadata(&file).unwrap().len();
    let log = fs::metadata(file::log_of(&file)).unwrap().len();
    assert!(taken <= 5 * 1024 * 1024, "{taken} after an outage of {outage_bytes}");
    assert!(log <= 8 * 1024 * 1024, "log of {log}");
}

#[test]
fn parts_of_a_split_batch_stay_in_its_place_and_order() {
    let folder = folder();
    let (mut spool, first) = filled(folder.path(), 1, 0..8);
    let second = spool.begin(batch_id(2));
    spool.append(second, &events(8..10), false).unwrap();
    spool.close_batch();
    let halves = [(batch_id(3), (0..4).collect()), (batch_id(4), (4..8).collect())];
    let keys = spool.replace(first, &halves).unwrap();
    assert_eq!(sent_order(&spool), [events(0..4), events(4..8), events(8..10)]);
    assert!(matches!(spool.read(first), Err(SpoolError::NoSuchBatch)));
    // Of the first half, 0 and 2 were answered; the second half is cut again.
    spool.replace(keys[0], &[(batch_id(5), vec![1, 3])]).unwrap();
    let quarters = [(batch_id(6), vec![2, 3]), (batch_id(7), vec![0, 1])];
    spool.replace(keys[1], &quarters).unwrap();
    let expected = [vec![event(1), event(3)], events(4..6), events(6..8), events(8..10)];
    assert_eq!(sent_order(&spool), expected);
    assert_eq!(spool.events(), 8);
    let (bytes, batches) = (spool.bytes(), spool.oldest_batches(9).unwrap());
    assert_eq!(bytes, batches.iter().map(|batch| batch.bytes).sum::<u64>());
    abandon(spool);
    let (spool, _) = open(folder.path());
    assert_eq!(sent_order(&spool), expected);
    assert_eq!(spool.bytes(), bytes);
}

#[test]
fn a_split_that_does_not_fit_changes_nothing() {
    let folder = folder();
    let (mut spool, key) = filled(folder.path(), 1, 0..4);
    for parts in [
        vec![(batch_id(2), vec![0, 4])],
        vec![(batch_id(2), vec![0, 1]), (batch_id(3), vec![1])],
        vec![(batch_id(2), vec![0]), (batch_id(3), vec![])],
    ] {
        assert!(matches!(spool.replace(key, &parts), Err(SpoolError::NoSuchBatch)), "{parts:?}");
        assert_eq!(sent_order(&spool), [events(0..4)]);
        assert_eq!(spool.events(), 4);
    }
    assert!(spool.replace(key, &[]).unwrap().is_empty(), "everything was answered");
    assert_eq!(spool.events(), 0);
}

fn dead_letter_ids(spool: &Spool) -> Vec<u128> {
    let mut select = spool.connection.prepare("SELECT id FROM dead_letters ORDER BY seq").unwrap();
    let ids = select.query_map([], |row| Ok(u128::from_be_bytes(row.get(0)?))).unwrap();
    ids.map(Result::unwrap).collect()
}

#[test]
fn dead_letters_are_kept_within_both_bounds_and_the_oldest_go() {
    let folder = folder();
    let (mut spool, _) = open(folder.path());
    for number in 0..1_010 {
        spool.dead_letter(&event(number), "rejected: too_deep").unwrap();
    }
    spool.dead_letter(&event(1_009), "rejected: too_large").unwrap();
    let ids = dead_letter_ids(&spool);
    assert_eq!((ids.len(), ids[0], ids[999]), (1_000, 11, 1_010));
    assert_eq!(spool.events(), 0, "they aren't waiting for anything");
    for number in 2_000..2_005 {
        let large = EncodedEvent::new(Uuid::from_u128(number), 0, vec![b'x'; 250 * 1024]);
        spool.dead_letter(&large, "too large").unwrap();
    }
    assert_eq!(dead_letter_ids(&spool), [2_001, 2_002, 2_003, 2_004]);
    let huge = EncodedEvent::new(Uuid::from_u128(9), 0, vec![b'x'; 2 * 1024 * 1024]);
    spool.dead_letter(&huge, "too large").unwrap();
    assert_eq!(dead_letter_ids(&spool), [9], "the newest stays, whatever its size");
    drop(spool);
    let (spool, adopted) = open(folder.path());
    assert_eq!((adopted.files, adopted.events), (1, 0));
    assert_eq!(dead_letter_ids(&spool), [9]);
}

#[test]
fn dead_letters_of_merged_files_come_along() {
    let folder = folder();
    let (mut first, _) = filled(folder.path(), 1, 0..1);
    first.dead_letter(&event(100), "a").unwrap();
    let (mut second, _) = filled(folder.path(), 2, 1..2);
    second.dead_letter(&event(101), "b").unwrap();
    abandon(second);
    first.adopt().unwrap();
    assert_eq!(dead_letter_ids(&first), [101, 102]);
}
