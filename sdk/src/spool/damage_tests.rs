//! Files that aren't whole, aren't ours, or were never finished.

use std::fs;
use std::path::Path;

use super::tests::{batch_id, ending, events, filled, folder, open};
use super::*;

#[test]
fn a_file_of_a_newer_version_or_another_program_is_left_alone() {
    for settings in ["PRAGMA user_version = 2", "PRAGMA application_id = 7"] {
        let folder = folder();
        let (spool, _) = filled(folder.path(), 1, 0..5);
        let file = spool.claim.file().to_owned();
        spool.connection.execute_batch(settings).unwrap();
        drop(spool);
        let before = fs::read(&file).unwrap();
        let (mut spool, adopted) = open(folder.path());
        assert_eq!(adopted, Adopted { left: 1, ..Adopted::default() });
        assert_eq!(spool.adopt().unwrap(), Adopted { left: 1, ..Adopted::default() });
        assert_ne!(spool.claim.file(), file);
        assert_eq!(fs::read(&file).unwrap(), before);
    }
}

#[test]
fn a_file_whose_process_died_while_making_it_is_used() {
    let folder = folder();
    fs::write(folder.path().join("spool-0190163d-8694-739b-aea5-966c26f8ad91.db"), b"").unwrap();
    let (mut spool, adopted) = open(folder.path());
    assert_eq!(adopted, Adopted { files: 1, ..Adopted::default() });
    let key = spool.begin(batch_id(1));
    spool.append(key, &events(0..1), true).unwrap();
    assert_eq!(ending(folder.path(), ".lock").len(), 1);
}

/// Damages a full, closed file and says what must have become of it.
fn set_aside_after(damage: impl FnOnce(&Path)) {
    let folder = folder();
    let (mut spool, _) = filled(folder.path(), 1, 0..500);
    for batch in 2..10 {
        let key = spool.begin(batch_id(batch));
        spool.append(key, &events(batch * 500..batch * 500 + 500), false).unwrap();
    }
    let file = spool.claim.file().to_owned();
    drop(spool);
    damage(&file);
    let damaged = fs::read(&file).unwrap();
    let (mut spool, adopted) = open(folder.path());
    assert_eq!(adopted, Adopted { set_aside: 1, ..Adopted::default() });
    assert!(!file.exists());
    let aside: Vec<_> = ending(folder.path(), ".corrupt-");
    let aside: Vec<_> = aside.iter().filter(|path| !path.to_str().unwrap().ends_with("-wal")).collect();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(aside[0]).unwrap(), damaged, "kept byte for byte");
    let key = spool.begin(batch_id(1));
    spool.append(key, &events(0..1), false).unwrap();
    drop(spool);
    assert_eq!(open(folder.path()).1, Adopted { events: 1, batches: 1, files: 1, ..Adopted::default() });
}

#[test]
fn garbage_is_set_aside() {
    set_aside_after(|file| fs::write(file, vec![0xA5; 50_000]).unwrap());
}

#[test]
fn a_cut_file_is_set_aside() {
    set_aside_after(|file| {
        let whole = fs::read(file).unwrap();
        fs::write(file, &whole[..whole.len() / 2]).unwrap();
    });
    set_aside_after(|file| fs::write(file, &fs::read(file).unwrap()[..50]).unwrap());
}

#[test]
fn an_empty_file_beside_a_full_log_is_set_aside() {
    set_aside_after(|file| {
        fs::rename(file, file::log_of(file)).unwrap();
        fs::write(file, b"").unwrap();
    });
}

#[test]
fn a_file_with_a_torn_page_is_set_aside() {
    set_aside_after(|file| {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2 / 4096 * 4096;
        bytes[middle..middle + 4096].fill(0xFF);
        fs::write(file, bytes).unwrap();
    });
}

#[test]
fn a_spool_that_turns_out_corrupt_can_be_set_aside_and_opened_anew() {
    let folder = folder();
    let (spool, _) = filled(folder.path(), 1, 0..5);
    spool.set_aside().unwrap();
    assert_eq!(ending(folder.path(), ".corrupt-").len(), 1);
    assert_eq!(open(folder.path()).1, Adopted::default());
}
