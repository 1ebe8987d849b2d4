use std::sync::Once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How often this process is a forked child of a process that used the SDK: 0, and one more in each child.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Workers that do something. A fork copies the calling thread alone: what another thread had locked or half
/// initialised at that moment (an allocator of SQLite's, a static of the TLS library's) stays so in the child for ever.
/// So a fork waits until all workers rest, and workers rest until it is done. Atomics, because a lock would itself be
/// such a thing.
static WORKING: AtomicUsize = AtomicUsize::new(0);

/// Forks under way.
static FORKING: AtomicUsize = AtomicUsize::new(0);

/// Returns the generation of this process. What was made in another one (threads, locks, files) belongs to the parent
/// and must not be touched.
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Sees to it that forked children learn that they are.
pub(crate) fn watch() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(register);
}

/// A worker that does something until this is dropped, but for the times between [`rest`] and [`work`].
pub(crate) struct Working;

impl Working {
    pub(crate) fn begin() -> Self {
        work();
        Self
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        rest();
    }
}

/// A worker begins to do something, once no fork is under way.
pub(crate) fn work() {
    loop {
        while FORKING.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        WORKING.fetch_add(1, Ordering::SeqCst);
        // Either this sees a fork that began meanwhile, or the fork sees the worker.
        if FORKING.load(Ordering::SeqCst) == 0 {
            return;
        }
        rest();
    }
}

/// A worker waits for something to do, and holds nothing.
pub(crate) fn rest() {
    // Never below zero: in a child forked by a worker's own hook the count began anew.
    let less = |working: usize| Some(working.saturating_sub(1));
    let _ = WORKING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
}

#[cfg(not(unix))]
fn register() {}

#[cfg(unix)]
#[expect(unsafe_code, reason = "only pthread_atfork tells of a fork without a system call a capture")]
fn register() {
    // SAFETY: the handlers are plain functions that use atomics and the clock alone, which is safe around a fork.
    // When memory for the registration is lacking, forks go unnoticed, as they would without the SDK's care.
    let _registered = unsafe {
        libc::pthread_atfork(Some(at_fork::before), Some(at_fork::in_parent), Some(at_fork::in_child))
    };
}

#[cfg(unix)]
mod at_fork {
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use super::{FORKING, GENERATION, WORKING};

    /// How long a fork may be held up. Workers rest every few milliseconds, unless a hook keeps one; then the fork goes
    /// ahead, as it would without the SDK's care.
    const WAIT_MAX: Duration = Duration::from_millis(500);

    pub(super) extern "C" fn before() {
        FORKING.fetch_add(1, Ordering::SeqCst);
        // The worker itself, in a hook, doesn't wait for itself.
        let is_worker = std::thread::current().name() == Some(crate::worker::THREAD_NAME);
        let deadline = Instant::now() + WAIT_MAX;
        while WORKING.load(Ordering::SeqCst) > usize::from(is_worker) && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }

    pub(super) extern "C" fn in_parent() {
        FORKING.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::SeqCst);
        WORKING.store(0, Ordering::SeqCst);
        FORKING.store(0, Ordering::SeqCst);
    }
}
