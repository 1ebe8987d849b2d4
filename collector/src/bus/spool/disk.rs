use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use eventbucket::message_spool::{Abandoned, Group, Message, MessageSpool, Trouble};
use tokio::sync::oneshot;

use super::{Board, Coming, Spooled, ValidBatch, record, time};

/// Bytes of one commit: 4 MiB, thirty usual batches. More only make who waits wait longer.
const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is read at once for sending: 4 MiB keep a broker busy for a round trip at 1 GB/s, and are all that draining takes
/// in memory besides the broker's own lines.
const SENDING_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Groups read at once: when batches come one at a time each is a group, and 256 of them share the wait for a confirm.
const SENDING_GROUPS_MAX: usize = 256;

/// What the thread is told.
pub(super) enum Order {
    /// Keep a message, and say when it is on the disk.
    Keep { message: Message, answer: oneshot::Sender<Result<(), Trouble>> },
    /// Read what is to be sent next.
    Oldest { answer: oneshot::Sender<Vec<Taken>> },
    /// Forget what was sent.
    Remove { groups: Vec<Place>, answer: oneshot::Sender<()> },
    /// Take files of dead processes over.
    Adopt(Vec<MessageSpool>),
    /// Close everything.
    End,
}

/// A group of batches that were kept together, with what can't be read of it.
pub(in crate::bus) struct Taken {
    /// Where it is, for [`super::Spool::remove`].
    pub(in crate::bus) place: Place,
    /// What is in it, in order.
    pub(in crate::bus) batches: Vec<Result<ValidBatch, record::Unreadable>>,
}

/// A group and the file it is in.
pub(in crate::bus) struct Place {
    file: u64,
    group: Group,
}

struct File {
    number: u64,
    spool: MessageSpool,
}

/// The files, used by one thread.
pub(super) struct Disk {
    folder: PathBuf,
    board: Arc<Board>,
    /// Taken over from dead processes, the oldest first: they are emptied before the own one.
    adopted: VecDeque<File>,
    /// What this process writes to. None after it failed: dropped, it is taken over at the next look like any other.
    own: Option<File>,
    next_number: u64,
}

type Waiting = (Message, oneshot::Sender<Result<(), Trouble>>);

impl Disk {
    pub(super) fn open(
        folder: PathBuf,
        board: Arc<Board>,
        files: Vec<MessageSpool>,
    ) -> Result<Self, Trouble> {
        let mut disk = Self { folder, board, adopted: VecDeque::new(), own: None, next_number: 0 };
        disk.adopt(files);
        let own = MessageSpool::create(&disk.folder)?;
        disk.own = Some(disk.file(own));
        disk.tell();
        Ok(disk)
    }

    /// Does what it is told until the end, or until nobody is left to tell it anything.
    pub(super) fn obey(mut self, orders: &mpsc::Receiver<Order>) {
        let mut put_back = None;
        while let Some(order) = put_back.take().or_else(|| orders.recv().ok()) {
            match order {
                Order::Keep { message, answer } => {
                    let mut waiting = vec![(message, answer)];
                    put_back = more(&mut waiting, orders);
                    self.keep(waiting);
                }
                Order::Oldest { answer } => {
                    // Who doesn't wait any more asks again.
                    let _ = answer.send(self.oldest());
                }
                Order::Remove { groups, answer } => {
                    groups.iter().for_each(|place| self.remove(place));
                    self.tell();
                    let _ = answer.send(());
                }
                Order::Adopt(files) => {
                    self.adopt(files);
                    self.try_again();
                }
                Order::End => return,
            }
        }
    }

    fn file(&mut self, spool: MessageSpool) -> File {
        self.next_number += 1;
        File { number: self.next_number, spool }
    }

    fn adopt(&mut self, files: Vec<MessageSpool>) {
        for spool in files {
            let file = self.file(spool);
            self.adopted.push_back(file);
        }
        self.tell();
    }

    /// Commits messages together and answers for each.
    fn keep(&mut self, waiting: Vec<Waiting>) {
        let (messages, answers): (Vec<Message>, Vec<_>) = waiting.into_iter().unzip();
        let bytes = messages.iter().map(|message| message.bytes.len() as u64).sum();
        let came = Coming { batches: messages.len() as u64, bytes };
        let kept = self.append(&messages);
        let trouble = kept.as_ref().err().map(ToString::to_string);
        // Known here before anybody hears of it, so that what comes after an answer finds it waiting.
        self.settle(came, trouble);
        for answer in answers {
            let outcome = match &kept {
                Ok(()) => Ok(()),
                Err(Trouble::DiskFull) => Err(Trouble::DiskFull),
                Err(other) => Err(Trouble::Failed(other.to_string())),
            };
            // One that stopped waiting has its batch kept all the same.
            let _ = answer.send(outcome);
        }
    }

    fn append(&mut self, messages: &[Message]) -> Result<(), Trouble> {
        let mut own = match self.own.take() {
            Some(own) => own,
            None => {
                let spool = MessageSpool::create(&self.folder)?;
                self.file(spool)
            }
        };
        match own.spool.append(messages) {
            Ok(()) => {
                self.own = Some(own);
                Ok(())
            }
            Err(Trouble::DiskFull) => {
                self.own = Some(own);
                Err(Trouble::DiskFull)
            }
            Err(trouble) => {
                give_up(own, &trouble);
                Err(trouble)
            }
        }
    }

    /// A file that was given up may be whole again, and a disk may have room.
    fn try_again(&mut self) {
        if self.board.lock().trouble.is_none() {
            return;
        }
        let opened = match &self.own {
            Some(_) => has_room(&self.folder),
            None => MessageSpool::create(&self.folder)
                .map(|spool| {
                    let file = self.file(spool);
                    self.own = Some(file);
                })
                .is_ok(),
        };
        if opened {
            self.board.lock().trouble = None;
        }
    }

    /// Reads the oldest groups of the first file that has any. Files that were taken over and are empty go.
    fn oldest(&mut self) -> Vec<Taken> {
        while let Some(file) = self.adopted.pop_front() {
            match read(&file) {
                Ok(taken) if taken.is_empty() => drop(file),
                Ok(taken) => {
                    self.adopted.push_front(file);
                    return taken;
                }
                Err(trouble) => give_up(file, &trouble),
            }
        }
        let taken = match self.own.as_ref().map(read) {
            Some(Ok(taken)) => taken,
            Some(Err(trouble)) => {
                self.own.take().into_iter().for_each(|own| give_up(own, &trouble));
                Vec::new()
            }
            None => Vec::new(),
        };
        self.tell();
        taken
    }

    fn remove(&mut self, place: &Place) {
        let files = self.adopted.iter_mut().chain(&mut self.own);
        // A file that was given up meanwhile comes again whole: what was sent of it is known by then.
        let Some(file) = files.into_iter().find(|file| file.number == place.file) else { return };
        if let Err(trouble) = file.spool.remove(&place.group) {
            let failed = match self.adopted.iter().position(|file| file.number == place.file) {
                Some(index) => self.adopted.remove(index),
                None => self.own.take(),
            };
            failed.into_iter().for_each(|file| give_up(file, &trouble));
            return;
        }
        let freed = usize::try_from(place.group.bytes).unwrap_or(usize::MAX);
        self.board.lock().drained.add(freed, Instant::now());
    }

    fn settle(&self, came: Coming, trouble: Option<String>) {
        let kept = self.count();
        let mut state = self.board.lock();
        state.coming.batches -= came.batches;
        state.coming.bytes -= came.bytes;
        state.kept = kept;
        state.trouble = trouble.map(Into::into);
        drop(state);
        self.board.arrived.notify_one();
    }

    /// Writes on the board how much waits.
    fn tell(&self) {
        let kept = self.count();
        self.board.lock().kept = kept;
        self.board.arrived.notify_one();
    }

    fn count(&self) -> Spooled {
        let files = || self.adopted.iter().chain(&self.own);
        let oldest = |file: &File| file.spool.oldest(1).ok()?.first().map(|group| group.oldest_ms);
        Spooled {
            batches: files().map(|file| file.spool.messages()).sum(),
            bytes: files().filter(|file| file.spool.messages() > 0).map(|file| file.spool.bytes()).sum(),
            oldest: files().filter_map(oldest).min().and_then(time),
        }
    }
}

/// Takes the messages that came meanwhile, up to a commit's worth; what is no message comes back.
fn more(waiting: &mut Vec<Waiting>, orders: &mpsc::Receiver<Order>) -> Option<Order> {
    let mut bytes: usize = waiting.iter().map(|(message, _)| message.bytes.len()).sum();
    while bytes < COMMIT_BYTES_MAX {
        match orders.try_recv().ok()? {
            Order::Keep { message, answer } => {
                bytes += message.bytes.len();
                waiting.push((message, answer));
            }
            other => return Some(other),
        }
    }
    None
}

fn read(file: &File) -> Result<Vec<Taken>, Trouble> {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for group in file.spool.oldest(SENDING_GROUPS_MAX)? {
        bytes += group.bytes;
        if bytes > SENDING_BYTES_MAX && !taken.is_empty() {
            break;
        }
        let mut batches = Vec::with_capacity(group.messages);
        for message in file.spool.read(&group)? {
            match record::read(&message.bytes) {
                Ok(read) => batches.extend(read.into_iter().map(Ok)),
                Err(unreadable) => batches.push(Err(unreadable)),
            }
        }
        taken.push(Taken { place: Place { file: file.number, group }, batches });
    }
    Ok(taken)
}

/// Lets go of a file that failed. One that isn't whole is set aside for people to look at; any other is taken over again at
/// the next look, here or elsewhere.
fn give_up(file: File, trouble: &Trouble) {
    match trouble {
        Trouble::Corrupt(what) => {
            tracing::error!(
                what,
                batches = file.spool.messages(),
                "a file of the spool isn't whole and is set aside"
            );
            if let Err(error) = file.spool.set_aside() {
                tracing::error!(%error, "the file could not be renamed; it stays where it is");
            }
        }
        other => {
            tracing::error!(error = %other, "a file of the spool failed; it is opened again in a moment");
        }
    }
}

/// Room for the largest batch and what SQLite writes beside it.
fn has_room(folder: &Path) -> bool {
    const ROOM_BYTES: u64 = 64 * 1024 * 1024;
    rustix::fs::statvfs(folder).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) >= ROOM_BYTES)
}

/// Says what a look into the folder found. `left_before` keeps what can't be used from being said at every look.
pub(super) fn report(folder: &Path, files: &[MessageSpool], found: Abandoned, left_before: &mut u64) {
    let folder = folder.display();
    let batches: u64 = files.iter().map(MessageSpool::messages).sum();
    if batches > 0 {
        let files = files.len();
        tracing::info!(batches, files, %folder, "batches that another process left in the spool are sent from here");
    }
    if found.set_aside > 0 {
        let files = found.set_aside;
        tracing::error!(files, %folder, "files of the spool aren't whole; they were renamed to *.corrupt-*, look at them");
    }
    if found.left > *left_before {
        let files = found.left;
        tracing::error!(files, %folder, "files of the spool are left alone: another version or program wrote them");
    }
    *left_before = found.left;
}
