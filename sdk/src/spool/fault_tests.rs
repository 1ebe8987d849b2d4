//! What other processes, kills and full disks do to a spool. Children are this test binary run again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::tests::{batch_id, event, events, files, folder, open};
use super::*;

const FOLDER: &str = "EVENTBUCKET_TEST_SPOOL_FOLDER";
const FIRST: &str = "EVENTBUCKET_TEST_FIRST_NUMBER";

/// Runs one of the ignored tests below in a process of its own.
pub(super) fn child(test: &str, folder: &Path, first: u64, module: &str) -> (Child, BufReader<ChildStdout>) {
    let (_crate_name, module) = module.split_once("::").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--ignored", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(FIRST, first.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

pub(super) fn child_folder() -> std::path::PathBuf {
    std::env::var_os(FOLDER).expect("run by its parent").into()
}

pub(super) fn child_first() -> u64 {
    std::env::var(FIRST).expect("run by its parent").parse().unwrap()
}

/// Says something to the parent in one write, past the capture of the test harness.
pub(super) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n> {line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

pub(super) fn said(lines: &mut BufReader<ChildStdout>) -> Option<String> {
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        // A line without its end was cut by the kill.
        if let Some(text) = line.strip_prefix("> ").and_then(|text| text.strip_suffix('\n')) {
            return Some(text.to_owned());
        }
        line.clear();
    }
    None
}

fn all_events(spool: &Spool) -> BTreeMap<u128, EncodedEvent> {
    let mut found = BTreeMap::new();
    for batch in spool.oldest_batches(usize::MAX).unwrap() {
        let events = spool.read(batch.key).unwrap();
        assert_eq!(events.len(), batch.events);
        for event in events {
            assert!(found.insert(event.id.as_u128(), event).is_none(), "an event is there twice");
        }
    }
    found
}

#[test]
#[ignore = "the child of `sigkill_in_the_middle_of_appends_loses_nothing_confirmed`"]
fn child_that_appends_until_it_is_killed() {
    let (mut spool, adopted) = open(&child_folder());
    say(&format!("adopted {}", adopted.events));
    let mut number = child_first();
    let mut removable = Vec::new();
    loop {
        let key = spool.begin(batch_id(number));
        let first = number;
        for size in 1..=5 {
            spool.append(key, &events(number..number + size), size == 3).unwrap();
            say(&format!("appended {number} {}", number + size));
            number += size;
        }
        removable.push((key, first));
        if removable.len() == 8 {
            let (key, first) = removable.remove(3);
            say(&format!("removing {first} {}", first + 15));
            spool.remove(key).unwrap();
        }
    }
}

#[test]
fn sigkill_in_the_middle_of_appends_loses_nothing_confirmed() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = folder();
    let mut must = BTreeMap::new();
    let mut may = BTreeMap::new();
    for round in 0..20_u64 {
        let (mut child, mut lines) =
            child("child_that_appends_until_it_is_killed", folder.path(), round << 32, module_path!());
        let adopted = said(&mut lines).unwrap();
        let expected = must.len();
        let found: usize = adopted.strip_prefix("adopted ").unwrap().parse().unwrap();
        assert!(found >= expected, "round {round}: adopted {found} of {expected}");
        let mut to_read = random.u32(0..150);
        while let Some(line) = said(&mut lines) {
            let words: Vec<&str> = line.split(' ').collect();
            let numbers = words[1].parse::<u64>().unwrap()..words[2].parse().unwrap();
            let (from, to) =
                if words[0] == "appended" { (&mut may, &mut must) } else { (&mut must, &mut may) };
            for event in events(numbers) {
                from.remove(&event.id.as_u128());
                to.insert(event.id.as_u128(), event);
            }
            if to_read == 0 {
                // What was said before it died is still in the pipe.
                child.kill().unwrap();
            }
            to_read = to_read.saturating_sub(1);
        }
        child.wait().unwrap();
    }
    let (spool, adopted) = open(folder.path());
    assert_eq!((adopted.files, adopted.set_aside, adopted.left), (1, 0, 0));
    let found = all_events(&spool);
    println!("{} confirmed, {} found", must.len(), found.len());
    assert!(must.len() > 100);
    for (id, event) in &must {
        assert_eq!(found.get(id), Some(event), "a confirmed event is missing or changed");
    }
    let known = |id: &u128| must.contains_key(id) || may.contains_key(id);
    let unconfirmed = found.keys().filter(|id| !known(id)).count();
    assert!(
        unconfirmed <= 20 * 5,
        "{unconfirmed} events nobody appended; one append a kill may be unconfirmed"
    );
}

#[test]
#[ignore = "the child of `two_processes_never_share_a_file`"]
fn child_that_holds_its_file_until_told_to_die() {
    let (mut spool, adopted) = open(&child_folder());
    let first = child_first();
    let key = spool.begin(batch_id(first));
    spool.append(key, &events(first..first + 5), false).unwrap();
    say(&format!("adopted {}", adopted.events));
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    // Neither Drop nor SQLite gets to tidy up.
    std::process::abort();
}

#[test]
fn two_processes_never_share_a_file() {
    let folder = folder();
    let mut children: Vec<_> = (0..4)
        .map(|n| child("child_that_holds_its_file_until_told_to_die", folder.path(), n * 10, module_path!()))
        .collect();
    for (_, lines) in &mut children {
        assert_eq!(said(lines).unwrap(), "adopted 0");
    }
    let (mut spool, adopted) = open(folder.path());
    assert_eq!(adopted, Adopted::default(), "every file is held");
    for (child, _) in &mut children[..2] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    assert_eq!(spool.adopt().unwrap(), Adopted { events: 10, batches: 2, files: 2, ..Adopted::default() });
    for (child, _) in &mut children[2..] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    assert_eq!(spool.adopt().unwrap().events, 10);
    assert_eq!(all_events(&spool).len(), 20);
    assert_eq!(files(folder.path()).len(), 3, "its file, log and lock: {:?}", files(folder.path()));
}

#[test]
fn one_of_many_opening_at_once_gets_an_abandoned_file() {
    let folder = folder();
    let (mut spool, _) = open(folder.path());
    let key = spool.begin(batch_id(1));
    spool.append(key, &events(0..5), false).unwrap();
    drop(spool);
    let opened: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| open(folder.path()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(opened.iter().map(|(_, adopted)| adopted.events).sum::<u64>(), 5);
    assert_eq!(opened.iter().map(|(spool, _)| spool.events()).sum::<u64>(), 5);
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "forks, limits and mounts are made by system calls")]
mod linux {
    use super::*;

    #[test]
    fn a_forked_child_that_drops_the_spool_leaves_it_to_the_parent() {
        let folder = folder();
        let (mut spool, _) = open(folder.path());
        let key = spool.begin(batch_id(1));
        spool.append(key, &events(0..5), false).unwrap();
        let mut status = 0;
        // SAFETY: the child only closes descriptors and leaves without unwinding or running exit handlers.
        unsafe {
            let process = libc::fork();
            assert!(process >= 0);
            if process == 0 {
                drop(spool);
                libc::_exit(7);
            }
            assert_eq!(libc::waitpid(process, &raw mut status, 0), process);
        }
        assert_eq!(libc::WEXITSTATUS(status), 7);
        assert_eq!(open(folder.path()).1, Adopted::default(), "the parent still holds its lock");
        spool.append(key, &events(5..9), true).unwrap();
        drop(spool);
        assert_eq!(open(folder.path()).1.events, 9);
    }

    #[test]
    #[ignore = "the child of `a_write_error_spoils_nothing_that_was_confirmed`"]
    fn child_whose_files_may_not_grow() {
        let (mut spool, _) = open(&child_folder());
        // SAFETY: plain system calls on values that live through them.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: 500_000, rlim_max: 500_000 };
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        }
        let mut number = 0;
        loop {
            let key = spool.begin(batch_id(number));
            match spool.append(key, &events(number..number + 50), number % 100 == 0) {
                Ok(()) => number += 50,
                Err(SpoolError::Io(_)) => break,
                Err(other) => panic!("{other}"),
            }
        }
        say(&format!("appended {number} {}", all_events(&spool).len()));
        std::process::abort();
    }

    #[test]
    fn a_write_error_spoils_nothing_that_was_confirmed() {
        let folder = folder();
        let (mut child, mut lines) =
            child("child_whose_files_may_not_grow", folder.path(), 0, module_path!());
        let line = said(&mut lines).unwrap();
        child.wait().unwrap();
        let numbers: Vec<usize> = line.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
        assert!(numbers[0] >= 500, "{line}");
        assert_eq!(numbers[0], numbers[1], "it could still read them");
        let (spool, adopted) = open(folder.path());
        assert_eq!((adopted.set_aside, adopted.left), (0, 0));
        let found = all_events(&spool);
        for number in 0..numbers[0] as u64 {
            assert_eq!(found[&(u128::from(number) + 1)], event(number));
        }
    }

    /// Runs on a thread of its own, since the mount is seen by that thread alone. `None` when mounting isn't allowed.
    fn on_a_disk_of_1_mib<T: Send>(work: impl FnOnce(&Path) -> T + Send) -> Option<T> {
        let folder = folder();
        std::thread::scope(|scope| scope.spawn(|| mount(folder.path()).then(|| work(folder.path()))).join())
            .unwrap()
    }

    /// Cut, not removed: a process another test just forked may hold it open for a moment.
    fn make_room(filler: &Path) {
        fs::File::options().write(true).truncate(true).open(filler).unwrap();
    }

    fn mount(target: &Path) -> bool {
        let target = std::ffi::CString::new(target.to_str().unwrap()).unwrap();
        let none = std::ptr::null();
        // SAFETY: every pointer is null or a NUL-terminated text that outlives its call.
        unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    target.as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    c"size=1m".as_ptr().cast(),
                ) == 0
        }
    }

    #[test]
    fn a_full_disk_is_told_apart_and_the_spool_goes_on_when_there_is_room_again() {
        let ran = on_a_disk_of_1_mib(|folder| {
            let filler = folder.join("filler");
            fs::write(&filler, vec![0; 600_000]).unwrap();
            let (mut spool, _) = open(folder);
            let mut batches = 0;
            let refused = loop {
                let key = spool.begin(batch_id(batches));
                match spool.append(key, &events(batches * 20..batches * 20 + 20), false) {
                    Ok(()) => batches += 1,
                    Err(SpoolError::Full { by: FullBy::Disk }) => break key,
                    Err(other) => panic!("{other}"),
                }
            };
            assert!(batches > 10, "{batches}");
            let oldest = spool.oldest_batches(1).unwrap()[0].key;
            assert_eq!(spool.read(oldest).unwrap(), events(0..20), "it can still be delivered");
            make_room(&filler);
            spool.append(refused, &events(batches * 20..batches * 20 + 20), true).unwrap();
            spool.close_batch();
            assert_eq!(spool.remove(oldest).unwrap(), 20);
            let left = all_events(&spool);
            assert_eq!(left.len() as u64, batches * 20);
            drop(spool);
            let (spool, adopted) = open(folder);
            assert_eq!((adopted.events, adopted.set_aside), (batches * 20, 0));
            assert_eq!(all_events(&spool), left);
        });
        if ran.is_none() {
            println!(
                "mounting isn't allowed here; `a_write_error_spoils_nothing_that_was_confirmed` covers part of it"
            );
        }
    }

    #[test]
    fn what_is_delivered_from_a_full_disk_is_gone_and_frees_it() {
        on_a_disk_of_1_mib(|folder| {
            let (mut spool, _) = open(folder);
            spool.dead_letter(&event(1), "too_deep").unwrap();
            let mut batches = 0;
            loop {
                let key = spool.begin(batch_id(batches));
                match spool.append(key, &events(batches * 20..batches * 20 + 20), false) {
                    Ok(()) => batches += 1,
                    Err(error) => break assert!(matches!(error, SpoolError::Full { by: FullBy::Disk })),
                }
            }
            spool.close_batch();
            for left in (0..batches).rev() {
                let oldest = spool.oldest_batches(1).unwrap()[0].key;
                assert_eq!(spool.remove(oldest).unwrap(), 20);
                assert!(matches!(spool.remove(oldest), Err(SpoolError::NoSuchBatch)));
                assert_eq!(spool.oldest_batches(usize::MAX).unwrap().len() as u64, left);
                assert_eq!(spool.events(), left * 20);
            }
            assert_eq!(spool.bytes(), 0);
            let key = spool.begin(batch_id(10_000));
            spool.append(key, &events(0..500), true).unwrap();
            drop(spool);
            let (spool, adopted) = open(folder);
            assert_eq!((adopted.events, adopted.batches), (500, 1));
            assert_eq!(dead_letters::count(&spool.connection).unwrap(), 1);
        });
    }

    #[test]
    fn a_full_disk_refuses_to_open_without_a_panic() {
        on_a_disk_of_1_mib(|folder| {
            let mut filler = fs::File::create(folder.join("filler")).unwrap();
            while filler.write_all(&[0; 512]).is_ok() {}
            drop(filler);
            let refused = Spool::open(folder, SpoolLimits::default()).err();
            assert!(
                matches!(refused, Some(SpoolError::Full { by: FullBy::Disk } | SpoolError::Io(_))),
                "{refused:?}"
            );
            assert_eq!(files(folder), [folder.join("filler")], "no try leaves a file");
            make_room(&folder.join("filler"));
            let (spool, adopted) = open(folder);
            assert_eq!((spool.events(), adopted.events, adopted.set_aside), (0, 0, 0));
        });
    }

    #[test]
    fn a_folder_that_can_not_be_written_says_so() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
        let refuse = |path: &Path| {
            // SAFETY: only this thread becomes another user to the file system, which root needs to be refused anything.
            unsafe { libc::syscall(libc::SYS_setfsuid, 65_534) };
            Spool::open(path, SpoolLimits::default()).err()
        };
        let (existing, missing) = (folder.path().to_owned(), folder.path().join("spool"));
        for path in [existing, missing] {
            let error = std::thread::scope(|scope| scope.spawn(|| refuse(&path)).join().unwrap());
            assert!(matches!(error, Some(SpoolError::ReadOnly)), "{error:?}");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(matches!(Spool::open(&file, SpoolLimits::default()).err(), Some(SpoolError::Io(_))));
    }
}
