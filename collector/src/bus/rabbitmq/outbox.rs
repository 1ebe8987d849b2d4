//! What waits for the broker: a line for each shard, so that a queue which is full or slow holds up nobody else's batches.
//! Batches that come while others of their shard are on their way share the next message, so single events cost the broker
//! no message each.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::publisher::Unconfirmed;
use crate::bus::wire::{HEAD_BYTES, MESSAGE_BYTES_MAX};
use crate::bus::{DrainRate, Error};

/// Bytes that wait for a confirm or to be sent: 48 MiB, a quarter of what an edge may take. More are refused with 429. A line
/// may hold as many as all lines together leave free: one that is slow ends at 24 MiB and leaves 24, two at 16 each and
/// leave 16, and so on.
const WAITING_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Messages of one shard under way while little waits: the second is filled while the first is confirmed.
const UNDER_WAY_SMALL: usize = 2;

/// From here on a message is worth sending at once: at 64 KiB the cost of a message is a hundredth of its bytes' (2 µs of
/// 116 per event).
const WORTH_SENDING_BYTES: usize = 64 * 1024;

/// Messages of one shard under way at most. From 32 on that a quorum queue has not confirmed, RabbitMQ reads nothing more
/// from the whole connection (`quorum_commands_soft_limit`); 8 are left for those that are tried while the queue stands.
const UNDER_WAY_MAX: usize = 24;

/// How long a shard whose queue didn't confirm is left alone before one message is tried again: that one waits for its
/// confirm as long as any, so that hardly a moment passes without one under way, whose confirm is the sign that it works.
const STALLED_PAUSE: Duration = Duration::from_secs(5);

/// How a client waits for a shard beyond the next try: for its answer.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

pub(super) type Answer = Result<(), Error>;

/// Messages of one batch each, or of parts of one, that stand in line together and go in one.
pub(super) type Parcel = Vec<Bytes>;

/// A parcel, and who waits for its confirm.
pub(super) struct Waiting {
    parcel: Parcel,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

impl Waiting {
    pub(super) fn messages(&self) -> impl Iterator<Item = &[u8]> {
        self.parcel.iter().map(|message| &message[..])
    }
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Bytes waiting and under way.
    bytes: usize,
    under_way: usize,
    /// How fast they are confirmed.
    confirmed: DrainRate,
    /// What its queue refused lately, and is wanted again.
    refused: DrainRate,
    /// Its queue refused the last message.
    full: bool,
    /// Its queue doesn't confirm: when one message is tried again.
    stalled: Option<Instant>,
}

impl Line {
    fn is_ready(&self) -> bool {
        let worth = self.waiting_bytes >= WORTH_SENDING_BYTES && self.under_way < UNDER_WAY_MAX;
        !self.waiting.is_empty() && (worth || self.under_way < UNDER_WAY_SMALL)
    }

    /// Refuses while the queue doesn't confirm, but for one message at a time.
    fn check(&self, now: Instant) -> Result<(), Error> {
        match self.stalled {
            Some(again) if now < again || self.bytes > 0 => {
                let reason = "RabbitMQ does not confirm what this project's queue was sent".into();
                let retry_after = again.saturating_duration_since(now) + RETRY_AFTER_MIN;
                Err(Error::Unavailable { reason, retry_after })
            }
            _ => Ok(()),
        }
    }

    /// When there should be room in the queue for what it refused lately, by the speed at which it takes.
    fn full(&mut self, now: Instant) -> Error {
        let wanted = self.refused.recent(now);
        Error::Full { retry_after: self.confirmed.time_for(wanted, now) }
    }

    /// Notes what became of a message, and says what its publishers are told.
    fn note(&mut self, bytes: usize, outcome: &Result<(), Unconfirmed>, now: Instant) -> Answer {
        match outcome {
            Ok(()) => {
                (self.full, self.stalled) = (false, None);
                self.confirmed.add(bytes, now);
                Ok(())
            }
            Err(Unconfirmed::Full) => {
                (self.full, self.stalled) = (true, None);
                if self.refused.recent(now) == 0 {
                    // How fast it filled up says nothing of how fast it empties.
                    self.confirmed = DrainRate::default();
                }
                self.refused.add(bytes, now);
                Err(self.full(now))
            }
            Err(Unconfirmed::Late) => {
                self.stalled = Some(now + STALLED_PAUSE);
                let reason = "RabbitMQ did not confirm in time".into();
                Err(Error::Unavailable { reason, retry_after: STALLED_PAUSE + RETRY_AFTER_MIN })
            }
            Err(other) => Err(other.error()),
        }
    }
}

/// What publishers and the task that sends share.
pub(super) struct Outbox {
    state: Mutex<State>,
    pub(super) arrived: Notify,
}

struct State {
    lines: Vec<Line>,
    /// Bytes waiting and under way in all of them.
    bytes: usize,
    /// Which line is looked at first, so that each has its turn.
    turn: usize,
    /// Why there is nobody to send anything.
    away: Option<Error>,
}

impl Outbox {
    pub(super) fn new(shards: u16) -> Self {
        let lines = (0..shards).map(|_| Line::default()).collect();
        let state = State { lines, bytes: 0, turn: 0, away: None };
        Self { state: Mutex::new(state), arrived: Notify::new() }
    }

    /// The state is consistent between statements, so a panic elsewhere doesn't make it unusable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether a shard's queue confirms what it is sent, as far as that is known.
    pub(super) fn check(&self, shard: u16) -> Result<(), Error> {
        self.lock().lines[usize::from(shard)].check(Instant::now())
    }

    /// Says whether a shard's queue refused the last message, and when it should have room.
    pub(super) fn check_room(&self, shard: u16) -> Result<(), Error> {
        let mut state = self.lock();
        let line = &mut state.lines[usize::from(shard)];
        if line.full { Err(line.full(Instant::now())) } else { Ok(()) }
    }

    /// Puts parcels into a shard's line; each answer comes with its confirm.
    pub(super) fn push(
        &self,
        shard: u16,
        parcels: Vec<Parcel>,
    ) -> Result<Vec<oneshot::Receiver<Answer>>, Error> {
        let size = |parcel: &Parcel| parcel.iter().map(Bytes::len).sum::<usize>();
        let (bytes, now): (usize, _) = (parcels.iter().map(size).sum(), Instant::now());
        let mut state = self.lock();
        if let Some(away) = &state.away {
            return Err(away.clone());
        }
        let all = state.bytes;
        let line = &mut state.lines[usize::from(shard)];
        line.check(now)?;
        if all > 0 && all + line.bytes + bytes > WAITING_BYTES_MAX {
            return Err(Error::Full { retry_after: line.confirmed.time_for(line.bytes.max(bytes), now) });
        }
        line.waiting_bytes += bytes;
        line.bytes += bytes;
        let mut answers = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let (answer, receiver) = oneshot::channel();
            line.waiting.push_back(Waiting { bytes: size(&parcel), parcel, answer });
            answers.push(receiver);
        }
        state.bytes += bytes;
        drop(state);
        self.arrived.notify_one();
        Ok(answers)
    }

    /// Takes the next message that should be sent now, from each line in turn.
    pub(super) fn next(&self) -> Option<(u16, Vec<Waiting>)> {
        let mut state = self.lock();
        let count = state.lines.len();
        let mut places = (state.turn..count).chain(0..state.turn);
        let place = places.find(|place| state.lines[*place].is_ready())?;
        state.turn = (place + 1) % count;
        let line = &mut state.lines[place];
        let (mut bytes, mut batches) = (HEAD_BYTES, Vec::new());
        while let Some(next) = line.waiting.front() {
            bytes += next.bytes;
            if bytes > MESSAGE_BYTES_MAX && !batches.is_empty() {
                break;
            }
            line.waiting_bytes -= next.bytes;
            batches.extend(line.waiting.pop_front());
        }
        line.under_way += 1;
        Some((u16::try_from(place).expect("shards are counted in 16 bits"), batches))
    }

    /// Answers everybody whose batches shared a message. When it is late, what waits behind it is refused, too.
    pub(super) fn settle(&self, shard: u16, mut batches: Vec<Waiting>, outcome: &Result<(), Unconfirmed>) {
        let answer = {
            let mut state = self.lock();
            let line = &mut state.lines[usize::from(shard)];
            let sent: usize = batches.iter().map(|waiting| waiting.bytes).sum();
            let answer = line.note(sent, outcome, Instant::now());
            line.under_way -= 1;
            if matches!(outcome, Err(Unconfirmed::Late)) {
                batches.extend(line.waiting.drain(..));
                line.waiting_bytes = 0;
            }
            let gone: usize = batches.iter().map(|waiting| waiting.bytes).sum();
            line.bytes -= gone;
            state.bytes -= gone;
            answer
        };
        for waiting in batches {
            // A publisher that stopped waiting has its batch on the broker all the same.
            let _ = waiting.answer.send(answer.clone());
        }
    }

    /// Takes batches again.
    pub(super) fn open(&self) {
        self.lock().away = None;
    }

    /// Tells everybody who still waits that the broker went away, and whoever comes until [`Outbox::open`].
    pub(super) fn fail_all(&self, error: &Error) {
        let mut failed = Vec::new();
        {
            let mut state = self.lock();
            for line in &mut state.lines {
                failed.extend(line.waiting.drain(..));
                (line.waiting_bytes, line.bytes, line.under_way) = (0, 0, 0);
                (line.full, line.stalled) = (false, None);
            }
            state.bytes = 0;
            state.away = Some(error.clone());
        }
        for waiting in failed {
            let _ = waiting.answer.send(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn push(outbox: &Outbox, shard: u16, bytes: usize) -> Result<oneshot::Receiver<Answer>, Error> {
        outbox.push(shard, vec![vec![vec![0; bytes].into()]]).map(|mut answers| answers.remove(0))
    }

    fn fill(outbox: &Outbox, shard: u16) -> usize {
        (0..).take_while(|_| push(outbox, shard, MIB).is_ok()).count()
    }

    #[test]
    fn a_line_that_stands_leaves_room_for_the_others() {
        let outbox = Outbox::new(8);
        assert_eq!(fill(&outbox, 0), 24);
        let refused = push(&outbox, 0, MIB).unwrap_err();
        assert_eq!(refused.status(), 429, "{refused}");
        assert_eq!(fill(&outbox, 1), 12);
        push(&outbox, 2, MIB).expect("there is room for the others");
    }

    #[test]
    fn nobody_gets_in_line_for_a_broker_that_went_away() {
        let outbox = Outbox::new(1);
        let mut waits = push(&outbox, 0, MIB).unwrap();
        outbox.fail_all(&crate::bus::rabbitmq::failure::unavailable("away"));
        assert_eq!(waits.try_recv().unwrap().unwrap_err().to_string(), "away");
        assert_eq!(push(&outbox, 0, MIB).unwrap_err().to_string(), "away");
        outbox.open();
        push(&outbox, 0, MIB).expect("it is back");
    }

    #[test]
    fn every_line_has_its_turn() {
        let outbox = Outbox::new(3);
        for shard in [0, 0, 0, 0, 2, 2, 1] {
            push(&outbox, shard, MIB).unwrap();
        }
        let order: Vec<u16> = std::iter::from_fn(|| outbox.next()).map(|(shard, _)| shard).collect();
        assert_eq!(order, [0, 1, 2, 0, 2, 0, 0]);
    }

    #[test]
    fn the_time_to_wait_for_a_full_queue_follows_the_speed_at_which_it_takes() {
        let (mut line, start) = (Line::default(), Instant::now());
        let told = |answer: Answer| answer.unwrap_err().retry().unwrap().as_secs();
        line.note(100 * MIB, &Ok(()), start).unwrap();
        assert_eq!(told(line.note(MIB, &Err(Unconfirmed::Full), start)), 30, "it takes nothing");
        let at = |seconds| start + Duration::from_secs(seconds);
        line.note(MIB, &Ok(()), at(1)).unwrap();
        line.note(MIB, &Ok(()), at(2)).unwrap();
        assert_eq!(told(line.note(3 * MIB, &Err(Unconfirmed::Full), at(3))), 4, "4 MiB at 1 MiB/s");
        assert_eq!(told(line.note(4 * MIB, &Err(Unconfirmed::Full), at(3))), 8);
    }

    #[test]
    fn a_queue_that_does_not_confirm_is_tried_by_one_message_at_a_time() {
        let (mut line, start) = (Line::default(), Instant::now());
        let told = line.note(MIB, &Err(Unconfirmed::Late), start).unwrap_err();
        assert_eq!(told.status(), 503);
        assert!(line.check(start).is_err());
        let again = start + STALLED_PAUSE;
        line.check(again).expect("it is time");
        line.bytes = 1;
        assert!(line.check(again).is_err(), "one is under way");
        line.note(1, &Ok(()), again).unwrap();
        line.check(again).expect("it confirms");
    }
}
