use std::process::Command;
use std::time::Duration;

use eventbucket::{Bucket, event};

use crate::server::Server;

/// Tells the child process of a test which server to use.
const CHILD: &str = "EVENTBUCKET_TEST_FORK_URL";
const LONG: Duration = Duration::from_secs(60);

/// Runs one ignored test of this binary in a process of its own, for forking a test runner with its threads helps nobody.
fn run_child(name: &str, server: &Server, spool: Option<&std::path::Path>) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--ignored", "--nocapture"]).env(CHILD, &server.url);
    if let Some(spool) = spool {
        child.env("EVENTBUCKET_TEST_FORK_SPOOL", spool);
    }
    let output = child.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Forks; the child runs `in_child` and exits without unwinding into the test runner.
#[expect(unsafe_code, reason = "there is no safe fork")]
fn fork(in_child: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the child runs only code that is meant to work there, on glibc and musl whose allocators survive a fork,
    // and leaves by _exit.
    unsafe {
        match libc::fork() {
            0 => {
                let passed =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(in_child)).unwrap_or(false);
                libc::_exit(if passed { 0 } else { 1 })
            }
            pid => pid,
        }
    }
}

#[expect(unsafe_code, reason = "std has no wait for a forked pid")]
fn wait(pid: libc::pid_t) {
    assert!(pid > 0, "the fork failed");
    let mut status = 0;
    // SAFETY: status is a valid place for the result.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!((waited, status), (pid, 0), "the child failed");
}

fn server_of_parent() -> String {
    std::env::var(CHILD).expect("only started by the test above it")
}

fn builder() -> eventbucket::Builder {
    let builder = Bucket::builder(server_of_parent(), "key").batch_age_max(Duration::from_secs(3_600));
    #[cfg(feature = "spool")]
    if let Ok(folder) = std::env::var("EVENTBUCKET_TEST_FORK_SPOOL") {
        return builder.spool(folder);
    }
    builder
}

/// Everybody captures, forks, captures again: three generations over one bucket.
fn three_generations() {
    let bucket = builder().build().unwrap();
    for number in 0..10 {
        bucket.capture(event!("parent", number: number));
    }
    let child = fork(|| {
        let fresh = bucket.stats().captured == 0;
        bucket.capture("child");
        let grandchild = fork(|| {
            let fresh = bucket.stats().captured == 0;
            bucket.capture("grandchild");
            let report = bucket.shutdown_blocking(LONG);
            fresh && report.still_pending == 0 && report.delivered == 1
        });
        wait(grandchild);
        let report = bucket.flush_blocking(LONG);
        fresh && report.still_pending == 0 && report.delivered == 1 && report.ledger.balances()
    });
    wait(child);
    let sibling = fork(|| {
        bucket.capture("sibling");
        drop(bucket.clone());
        bucket.flush_blocking(LONG).still_pending == 0
    });
    wait(sibling);
    // A child that never uses a bucket and drops it, the last handle there is, touches nothing and waits for nobody.
    let other = builder().build().unwrap();
    other.capture("other");
    assert_eq!(other.flush_blocking(LONG).still_pending, 0);
    let idle = fork(move || {
        let began = std::time::Instant::now();
        drop(other);
        began.elapsed() < LONG
    });
    wait(idle);
    let report = bucket.shutdown_blocking(LONG);
    assert_eq!((report.delivered, report.still_pending, report.ledger.captured), (10, 0, 10), "{report:?}");
}

#[test]
#[ignore = "the child of `forked_children_start_afresh_and_deliver_their_own`"]
fn forking_process() {
    three_generations();
}

#[test]
fn forked_children_start_afresh_and_deliver_their_own() {
    let server = Server::start();
    run_child("fork::forking_process", &server, None);
    check(&server);
}

#[cfg(feature = "spool")]
#[test]
fn forked_children_get_a_spool_file_of_their_own() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    run_child("fork::forking_process", &server, Some(folder.path()));
    check(&server);
}

fn check(server: &Server) {
    let state = server.state();
    let mut names: Vec<_> = state.log.iter().map(|event| event.name.as_str()).collect();
    names.sort_unstable();
    let mut expected = vec!["child", "grandchild", "other", "sibling"];
    expected.splice(3..3, ["parent"; 10]);
    assert_eq!(names, expected);
}
