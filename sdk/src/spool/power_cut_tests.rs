//! A power cut forgets what was written and not synced; a kill doesn't, so it can't show a missing sync. Here SQLite runs
//! over a file system layer that keeps, beside each file, what it held when it was last synced. A cut is a new folder made
//! of that.
#![expect(unsafe_code, reason = "SQLite's file system layer is a C interface")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rusqlite::ffi;

use super::fault_tests::{child, child_first, child_folder, said, say};
use super::tests::{batch_id, events, files, folder, open};

type Open = unsafe extern "C" fn(
    *mut ffi::sqlite3_vfs,
    *const c_char,
    *mut ffi::sqlite3_file,
    c_int,
    *mut c_int,
) -> c_int;

/// An open file: its path, and the methods it would have without this layer.
struct Under {
    path: PathBuf,
    methods: &'static ffi::sqlite3_io_methods,
}

static OPEN: OnceLock<Open> = OnceLock::new();
static FILES: Mutex<BTreeMap<usize, Under>> = Mutex::new(BTreeMap::new());

fn synced(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.synced", path.file_name().unwrap().to_str().unwrap()))
}

/// Opens the file and puts its own closing and syncing in place of the original.
unsafe extern "C" fn open_file(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: called by SQLite with what it would give the original, which is given the same.
    unsafe {
        let code = OPEN.get().unwrap()(vfs, name, file, flags, out_flags);
        if code == ffi::SQLITE_OK && !name.is_null() && !(*file).pMethods.is_null() {
            let methods = &*(*file).pMethods;
            let own = ffi::sqlite3_io_methods { xSync: Some(sync), xClose: Some(close), ..*methods };
            (*file).pMethods = Box::leak(Box::new(own));
            let path = PathBuf::from(CStr::from_ptr(name).to_str().unwrap());
            FILES.lock().unwrap().insert(file as usize, Under { path, methods });
        }
        code
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let files = FILES.lock().unwrap();
    let under = &files[&(file as usize)];
    fs::copy(&under.path, synced(&under.path)).unwrap();
    // SAFETY: the original method, on the file it belongs to.
    unsafe { under.methods.xSync.unwrap()(file, flags) }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let under = FILES.lock().unwrap().remove(&(file as usize)).unwrap();
    // SAFETY: the original method, on the file it belongs to.
    unsafe { under.methods.xClose.unwrap()(file) }
}

/// Puts the layer below every file this process opens from now on.
fn install() {
    // SAFETY: the original lives as long as the process; the copy is leaked so that it does, too.
    unsafe {
        let original = *ffi::sqlite3_vfs_find(std::ptr::null());
        OPEN.set(original.xOpen.unwrap()).unwrap();
        let own = ffi::sqlite3_vfs { xOpen: Some(open_file), zName: c"synced".as_ptr(), ..original };
        assert_eq!(ffi::sqlite3_vfs_register(Box::leak(Box::new(own)), 1), ffi::SQLITE_OK);
    }
}

/// What a disk holds after the power was cut now.
fn cut(from: &Path) -> tempfile::TempDir {
    let after = folder();
    for file in files(from) {
        let name = file.file_name().unwrap().to_str().unwrap();
        // What SQLite deleted it has also synced away: a journal left over from making the file.
        if let Some(name) = name.strip_suffix(".synced").filter(|name| from.join(name).exists()) {
            fs::copy(&file, after.path().join(name)).unwrap();
        }
    }
    after
}

fn numbers_after(cut: &Path) -> BTreeSet<u64> {
    let (spool, adopted) = open(cut);
    assert_eq!((adopted.set_aside, adopted.left), (0, 0), "{adopted:?}");
    let mut numbers = BTreeSet::new();
    for batch in spool.oldest_batches(usize::MAX).unwrap() {
        for found in spool.read(batch.key).unwrap() {
            let number = u64::try_from(found.id.as_u128()).unwrap() - 1;
            assert_eq!(found, super::tests::event(number));
            numbers.insert(number);
        }
    }
    numbers
}

#[test]
#[ignore = "the child of `a_power_cut_loses_nothing_durable`"]
fn child_whose_power_is_cut() {
    let folder = child_folder();
    let mut random = fastrand::Rng::with_seed(child_first());
    install();
    let (mut spool, _) = open(&folder);
    let (mut number, mut durable_until, mut forgotten, mut cuts) = (0, 0, 0, 0);
    for round in 0..200 {
        let key = spool.begin(batch_id(round));
        let durable = random.u8(..3) == 0;
        let count = random.u64(1..60);
        spool.append(key, &events(number..number + count), durable).unwrap();
        number += count;
        if durable {
            durable_until = number;
        }
        if random.u8(..3) == 0 {
            cuts += 1;
            let after = cut(&folder);
            let found = numbers_after(after.path());
            let missing = (0..durable_until).find(|number| !found.contains(number));
            assert_eq!(missing, None, "durable up to {durable_until}, {} found", found.len());
            assert_eq!(found.len() as u64, found.last().map_or(0, |last| last + 1), "a gap before the end");
            forgotten += u64::from((found.len() as u64) < number);
        }
    }
    say(&format!("cuts {cuts} forgetting {forgotten}"));
}

#[test]
fn a_power_cut_loses_nothing_durable() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let folder = folder();
    let (mut child, mut lines) = child("child_whose_power_is_cut", folder.path(), seed, module_path!());
    let line = said(&mut lines).expect("the child found nothing missing");
    assert!(child.wait().unwrap().success());
    println!("{line}");
    let words: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(
        words[0] > 30 && words[1] > 5,
        "the cuts forget what isn't durable, else they show nothing: {line}"
    );
}
