use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{LOOK_MS, Role, Simulation};
use crate::bus::Hint;
use crate::bus::message::{StoredRange, ValidBatch};
use crate::project::ProjectId;
use crate::workers::insight::{Follower, Look, reset};
use crate::workers::storage::Writer;
use crate::workers::tests::sending::pick;
use crate::workers::tests::world::{Ask, At, Fate, Ticket, Waiting, Way};

impl Simulation {
    pub(super) fn start(&mut self, place: usize, task: impl Future<Output = ()> + 'static) {
        self.workers[place].task = Some(Box::pin(task));
        self.poll(place);
    }

    /// Lets a worker take up what waits for it.
    pub(super) fn begin(&mut self, place: usize) {
        let now = self.now();
        let way = self.workers[place].way.clone();
        match self.workers[place].role {
            Role::Storage(project) => {
                let taken = self.take(place, project);
                if !taken.is_empty() {
                    let writer = Writer { bus: way.clone(), store: way.clone(), cache: way };
                    self.start(place, async move {
                        writer.append(taken).await;
                    });
                }
            }
            Role::Insight => {
                let heard = self.workers[place].heard.len();
                // It is lost with a task that is: a process that died has nothing left to do and doubts nothing.
                let mut follower = self.workers[place].follower.take();
                if heard > 0 && self.random.percent(70) {
                    let (count, mut missed) = (1 + pick(heard, &mut self.random).unwrap_or(0), false);
                    for hint in self.workers[place].heard.drain(..count) {
                        missed |= follower.hear(hint);
                    }
                    // What fails is found again by the next look.
                    self.follow(place, follower, async move |follower| {
                        if missed {
                            drop(follower.look(Look::OutOfTime, &way, &way).await);
                        }
                        turn(follower, &way).await;
                    });
                } else if self.workers[place].look_at <= now {
                    self.workers[place].look_at = now + LOOK_MS;
                    self.follow(place, follower, async move |follower| {
                        drop(follower.look(Look::InTime, &way, &way).await);
                        reset_some(follower, &way).await;
                    });
                } else if !follower.is_idle() {
                    self.follow(place, follower, async move |follower| turn(follower, &way).await);
                } else {
                    self.workers[place].follower.replace(follower);
                }
            }
            Role::Rebuild => {}
        }
    }

    fn follow(
        &mut self,
        place: usize,
        mut follower: Follower,
        next: impl AsyncFnOnce(&mut Follower) + 'static,
    ) {
        let kept = Rc::clone(&self.workers[place].follower);
        self.start(place, async move {
            next(&mut follower).await;
            kept.replace(follower);
        });
    }

    fn take(&mut self, place: usize, project: Option<ProjectId>) -> Vec<(ValidBatch, Ticket)> {
        let most = 1 + pick(4, &mut self.random).unwrap_or(0);
        let Some(project) = project else {
            return self.inbox.drain(..most.min(self.inbox.len())).collect();
        };
        if self.active.get(&project) != Some(&place) {
            return Vec::new();
        }
        let given = self.world.borrow_mut().broker.give(project, place, most);
        let restored = self.world.borrow().restored;
        let ticket = |(batch, tag): (ValidBatch, _)| {
            let world = Rc::clone(&self.world);
            let ticket = Ticket { world, batch: batch.clone(), to: Waiting::Broker(tag), restored };
            (batch, ticket)
        };
        given.into_iter().map(ticket).collect()
    }

    pub(super) fn step(&mut self, place: usize) {
        let fate = match self.workers[place].way.stops.at() {
            Some(At::Before(ask)) => self.fate(ask),
            Some(At::After(_)) => Fate::Answered,
            Some(At::Asleep(_)) => {
                self.note("held");
                Fate::Answered
            }
            None => return,
        };
        self.workers[place].way.stops.pass(fate);
        self.poll(place);
    }

    fn fate(&mut self, ask: Ask) -> Fate {
        let (now, trouble) = (self.now(), self.trouble);
        let (until, refused, lost) = match ask {
            Ask::Bury => (self.letters_away, "dead letters refuse", "dead letters' answer lost"),
            Ask::Append => (self.store_away, "append refused", "append's answer lost"),
            ask if ask.is_of_cache() => (self.cache_away, "cache refuses", "cache's answer lost"),
            _ => (self.store_away, "store refuses", "store's answer lost"),
        };
        if now < until || self.random.percent(trouble / 2) {
            self.note(refused);
            Fate::Refused
        } else if self.random.percent(trouble / 2) {
            self.note(lost);
            Fate::AnswerLost
        } else {
            Fate::Answered
        }
    }

    pub(super) fn poll(&mut self, place: usize) {
        let from = self.workers[place].way.stops.at();
        let worker = &mut self.workers[place];
        let Some(task) = &mut worker.task else { return };
        if let Poll::Ready(()) = task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            worker.task = None;
        }
        let role = worker.role;
        let to = worker.way.stops.at();
        self.trace.push(format!("{:>6} {place} {role:?}: {from:?} → {to:?}", self.now()));
        self.fan_out();
    }

    /// Announcements get lost, doubled, late, and wider than they were.
    fn fan_out(&mut self) {
        let listeners = self.filter(|worker| worker.role == Role::Insight);
        let announced: Vec<StoredRange> = self.world.borrow_mut().announced.drain(..).collect();
        for range in announced {
            let copies = match self.random.percent(self.trouble) {
                true => [0, 0, 2, 3][pick(4, &mut self.random).unwrap_or(0)],
                false => 1,
            };
            self.note(["range lost", "range announced", "range doubled", "range doubled"][copies]);
            for _ in 0..copies {
                let Some(place) = pick(listeners.len(), &mut self.random) else { continue };
                let hint = self.bend(range);
                let heard = &mut self.workers[listeners[place]].heard;
                let late = pick(heard.len() + 1, &mut self.random).unwrap_or(0);
                heard.insert(if self.random.percent(self.trouble) { late } else { heard.len() }, hint);
            }
        }
    }

    fn bend(&mut self, range: StoredRange) -> Hint {
        if !self.random.percent(self.trouble) {
            return Hint::Range(range);
        }
        self.note("range bent");
        match self.random.below(4) {
            0 => Hint::Missed,
            1 => Hint::Range(StoredRange { first: range.first.saturating_sub(3).max(1), ..range }),
            2 => Hint::Range(StoredRange { last: range.last + 1 + self.random.below(4), ..range }),
            _ => Hint::Range(StoredRange { last: range.last - 1, ..range }),
        }
    }
}

async fn turn(follower: &mut Follower, way: &Way) {
    drop(follower.turn(way, way).await);
    reset_some(follower, way).await;
}

/// What is done beside the turns of other projects is done between them here: a worker stands at one place at a time.
async fn reset_some(follower: &mut Follower, way: &Way) {
    while let Some(project) = follower.begin_reset() {
        drop(follower.end_reset(reset(project, way, way).await));
    }
}
