use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Makes both ends of an answer. It can be awaited on any executor, because it uses nothing but its waker, and a
/// thread can block on it inside any runtime, because it blocks on a condition variable and no runtime is asked.
pub(crate) fn promise<T>() -> (Promise<T>, Awaited<T>) {
    let slot = Arc::new(Slot { state: Mutex::new(State::Open(None)), changed: Condvar::new() });
    (Promise(Some(Arc::clone(&slot))), Awaited(slot))
}

struct Slot<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

enum State<T> {
    Open(Option<Waker>),
    /// `None` when the promise was given up.
    Kept(Option<T>),
    Taken,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, value: Option<T>) {
        let before = std::mem::replace(&mut *self.lock(), State::Kept(value));
        self.changed.notify_all();
        if let State::Open(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// The end that answers. Dropped without an answer, it says so.
pub(crate) struct Promise<T>(Option<Arc<Slot<T>>>);

impl<T> Promise<T> {
    pub(crate) fn keep(mut self, value: T) {
        if let Some(slot) = self.0.take() {
            slot.settle(Some(value));
        }
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            slot.settle(None);
        }
    }
}

/// The end that waits; yields `None` when the promise was given up.
pub(crate) struct Awaited<T>(Arc<Slot<T>>);

impl<T> Awaited<T> {
    /// Blocks the thread, at most until the deadline when there is one. `Err` means that it has passed.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Option<T>, TimedOut> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.0.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Kept(value) => return Ok(value),
                State::Taken => return Ok(None),
                open @ State::Open(_) => *state = open,
            }
            state = match deadline {
                None => self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now()).ok_or(TimedOut)?;
                    self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl<T> Future for Awaited<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Kept(value) => Poll::Ready(value),
            State::Taken => Poll::Ready(None),
            State::Open(_) => {
                *state = State::Open(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

/// The answer didn't come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimedOut;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_promise_reaches_a_blocked_thread() {
        let (promise, awaited) = promise();
        let thread = std::thread::spawn(move || awaited.wait(None));
        promise.keep(7);
        assert_eq!(thread.join().unwrap(), Ok(Some(7)));
    }

    #[test]
    fn a_promise_given_up_ends_the_wait() {
        let (promise, awaited) = promise::<()>();
        drop(promise);
        assert_eq!(awaited.wait(None), Ok(None));
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let (_promise, awaited) = promise::<()>();
        assert_eq!(awaited.wait(Some(Duration::from_millis(1))), Err(TimedOut));
    }

    #[test]
    fn a_future_is_woken() {
        struct Woken(Mutex<bool>);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                *self.0.lock().unwrap() = true;
            }
        }
        let woken = Arc::new(Woken(Mutex::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let (promise, awaited) = promise();
        let mut awaited = Box::pin(awaited);
        assert!(awaited.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        promise.keep(1);
        assert!(*woken.0.lock().unwrap());
        assert_eq!(awaited.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(Some(1)));
    }
}
