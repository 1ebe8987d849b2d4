use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use eventbucket::message_spool::{Abandoned, Group, Message, MessageSpool, Trouble};
use tokio::sync::oneshot;

use super::folder::Home;
use super::{Board, ShardOf, Spooled, record, rescue, time};
use crate::bus::message::ValidBatch;
use crate::project::ProjectId;

/// Bytes of one commit: 4 MiB, thirty usual batches. More only make who waits wait longer.
pub(super) const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is read at once for sending: 4 MiB keep a broker busy for a round trip at 1 GB/s, and are all that draining takes
/// in memory besides the broker's own lines.
const SENDING_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Groups read at once: when batches come one at a time each is a group, and 256 of them share the wait for a confirm.
const SENDING_GROUPS_MAX: usize = 256;

/// What the thread is told.
pub(super) enum Order {
    /// Keep a message of a shard, and say when it is on the disk.
    Keep { shard: u16, message: Message, answer: oneshot::Sender<Result<(), Trouble>> },
    /// Read what of a shard is to be sent next.
    Oldest { shard: u16, answer: oneshot::Sender<Vec<Taken>> },
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
    /// The file's number; none is given twice.
    pub(in crate::bus) file: u64,
    group: Group,
}

/// A file is one shard's, so that what waits for another queue is never in the way.
struct File {
    number: u64,
    shard: u16,
    spool: MessageSpool,
}

/// The files, used by one thread.
pub(super) struct Disk {
    home: Home,
    board: Arc<Board>,
    shard_of: ShardOf,
    /// Taken over from dead processes, the oldest first, and own ones that were moved or deleted: they are emptied before the
    /// own ones.
    adopted: VecDeque<File>,
    /// What this process writes to, by shard. One that failed is dropped, and taken over at the next look like any other.
    own: BTreeMap<u16, File>,
    next_number: u64,
}

type Waiting = (Message, oneshot::Sender<Result<(), Trouble>>);

/// Messages that wait for a commit, by shard.
type Lines = BTreeMap<u16, Vec<Waiting>>;

impl Disk {
    pub(super) fn open(
        home: Home,
        board: Arc<Board>,
        shard_of: ShardOf,
        files: Vec<MessageSpool>,
    ) -> Result<Self, Trouble> {
        let (adopted, own) = (VecDeque::new(), BTreeMap::new());
        let mut disk = Self { home, board, shard_of, adopted, own, next_number: 0 };
        disk.adopt(files);
        // Files are made when they are needed; whether they can be is told at the start.
        match disk.create() {
            // What is there is sent all the same, and makes room.
            Err(trouble) if matches!(trouble, Trouble::DiskFull) || disk.home.is_full() => {
                let folder = disk.home.path().display();
                tracing::error!(error = %trouble, %folder, "nothing can be kept in the spool; free some of its disk");
                disk.board.lock().trouble = Some(trouble.to_string().into());
            }
            made => drop(made?),
        }
        Ok(disk)
    }

    /// Does what it is told until the end, or until nobody is left to tell it anything.
    pub(super) fn obey(mut self, orders: &mpsc::Receiver<Order>) {
        let mut put_back = None;
        while let Some(order) = put_back.take().or_else(|| orders.recv().ok()) {
            match order {
                Order::Keep { shard, message, answer } => {
                    let mut lines = Lines::from([(shard, vec![(message, answer)])]);
                    put_back = more(&mut lines, orders);
                    lines.into_iter().for_each(|(shard, waiting)| self.keep(shard, waiting));
                }
                Order::Oldest { shard, answer } => {
                    // Who doesn't wait any more asks again.
                    let _ = answer.send(self.oldest(shard));
                }
                Order::Remove { groups, answer } => {
                    groups.iter().for_each(|place| self.remove(place));
                    self.tell();
                    let _ = answer.send(());
                }
                Order::Adopt(files) => {
                    self.adopt(files);
                    self.look();
                    self.try_again();
                }
                Order::End => return,
            }
        }
    }

    fn file(&mut self, shard: u16, spool: MessageSpool) -> File {
        self.next_number += 1;
        File { number: self.next_number, shard, spool }
    }

    fn adopt(&mut self, files: Vec<MessageSpool>) {
        // An empty one is removed by being dropped.
        for spool in files.into_iter().filter(|spool| spool.messages() > 0) {
            // One that says nothing of its shard holds nothing that is anybody's.
            let shard = first_project(&spool).map_or(0, |project| (self.shard_of)(project));
            let file = self.file(shard, spool);
            self.adopted.push_back(file);
        }
        self.tell();
    }

    /// Commits messages of a shard together and answers for each.
    fn keep(&mut self, shard: u16, waiting: Vec<Waiting>) {
        let (messages, answers): (Vec<Message>, Vec<_>) = waiting.into_iter().unzip();
        let kept = self.append(shard, &messages);
        let trouble = kept.as_ref().err().map(ToString::to_string);
        // Known here before anybody hears of it, so that what comes after an answer finds it waiting.
        self.settle(shard, &messages, trouble);
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

    fn append(&mut self, shard: u16, messages: &[Message]) -> Result<(), Trouble> {
        let mut own = match self.own.remove(&shard) {
            Some(own) => own,
            None => {
                let spool = self.create()?;
                self.file(shard, spool)
            }
        };
        match own.spool.append(messages) {
            Ok(()) => {
                self.own.insert(shard, own);
                Ok(())
            }
            Err(Trouble::DiskFull) => {
                self.own.insert(shard, own);
                Err(Trouble::DiskFull)
            }
            // What it holds was accepted, and is to be had as long as it is open.
            Err(Trouble::Moved) => {
                self.adopted.push_back(own);
                Err(Trouble::Moved)
            }
            Err(trouble) => {
                give_up(own, &trouble);
                Err(trouble)
            }
        }
    }

    /// Makes a file where the folder was opened, and nowhere else.
    fn create(&self) -> Result<MessageSpool, Trouble> {
        self.home.check()?;
        MessageSpool::create(self.home.path())
    }

    /// Sees whether everything is where it was. What is in files that were deleted is written into new ones.
    fn look(&mut self) {
        self.adopted.retain(|file| file.spool.messages() > 0);
        let is_moved = |own: &File| own.spool.check_place().is_err();
        let moved: Vec<u16> =
            self.own.iter().filter(|(_, own)| is_moved(own)).map(|(shard, _)| *shard).collect();
        self.adopted.extend(moved.iter().filter_map(|shard| self.own.remove(shard)));
        let mut found = self.home.check();
        for index in 0..self.adopted.len() {
            let file = &self.adopted[index];
            if found.is_err() || file.spool.messages() == 0 || file.spool.check_place().is_ok() {
                continue;
            }
            let (batches, shard) = (file.spool.messages(), file.shard);
            match self.create().and_then(|into| rescue::copy(&file.spool, into)) {
                Ok(copied) => {
                    tracing::warn!(batches, "a file of the spool was moved or deleted and is written again");
                    let copied = self.file(shard, copied);
                    rescue::empty(&mut std::mem::replace(&mut self.adopted[index], copied).spool);
                }
                Err(trouble) => found = Err(trouble),
            }
        }
        if let Err(trouble) = found {
            self.board.lock().trouble = Some(trouble.to_string().into());
        }
        self.tell();
    }

    /// A folder may be there again, and a disk may have room.
    fn try_again(&mut self) {
        if self.board.lock().trouble.is_some()
            && self.home.has_room()
            && self.create().is_ok()
            && self.adopted.iter().all(|file| file.spool.check_place().is_ok())
        {
            self.board.lock().trouble = None;
        }
    }

    /// Reads the oldest groups of the first file of a shard that has any. Files that were taken over and are empty go.
    fn oldest(&mut self, shard: u16) -> Vec<Taken> {
        while let Some(place) = self.adopted.iter().position(|file| file.shard == shard) {
            match read(&self.adopted[place]) {
                Ok(taken) if taken.is_empty() => drop(self.adopted.remove(place)),
                Ok(taken) => return taken,
                Err(trouble) => {
                    self.adopted.remove(place).into_iter().for_each(|file| give_up(file, &trouble));
                }
            }
        }
        let taken = match self.own.get(&shard).map(read) {
            Some(Ok(taken)) => taken,
            Some(Err(trouble)) => {
                self.own.remove(&shard).into_iter().for_each(|own| give_up(own, &trouble));
                Vec::new()
            }
            None => Vec::new(),
        };
        self.tell();
        taken
    }

    fn remove(&mut self, place: &Place) {
        let files = self.adopted.iter_mut().chain(self.own.values_mut());
        // A file that was given up meanwhile comes again whole: what was sent of it is known by then.
        let mut files = files;
        let Some(file) = files.find(|file| file.number == place.file) else { return };
        let shard = file.shard;
        if let Err(trouble) = file.spool.remove(&place.group) {
            let failed = match self.adopted.iter().position(|file| file.number == place.file) {
                Some(index) => self.adopted.remove(index),
                None => self.own.remove(&shard),
            };
            failed.into_iter().for_each(|file| give_up(file, &trouble));
            return;
        }
        let freed = usize::try_from(place.group.bytes).unwrap_or(usize::MAX);
        self.board.lock().drained.add(freed, Instant::now());
    }

    fn settle(&self, shard: u16, came: &[Message], trouble: Option<String>) {
        let (batches, counted) = (came.len() as u64, self.count());
        {
            let mut state = self.board.lock();
            state.coming.batches -= batches;
            state.coming.bytes -= came.iter().map(|message| message.bytes.len() as u64).sum::<u64>();
            state.lines.entry(shard).or_default().coming -= batches;
            state.trouble = trouble.map(Into::into);
            state.set(counted);
        }
        self.board.arrived.notify_waiters();
    }

    /// Writes on the board how much waits.
    fn tell(&self) {
        let counted = self.count();
        self.board.lock().set(counted);
        self.board.arrived.notify_waiters();
    }

    /// Counts what waits, and the batches of each shard.
    fn count(&self) -> (Spooled, BTreeMap<u16, u64>) {
        let (mut all, mut lines) = (Spooled::default(), BTreeMap::new());
        for file in self.adopted.iter().chain(self.own.values()) {
            let batches = file.spool.messages();
            if batches == 0 {
                continue;
            }
            *lines.entry(file.shard).or_default() += batches;
            all.batches += batches;
            all.bytes += file.spool.bytes();
            let first = file.spool.oldest(1).ok().and_then(|groups| time(groups.first()?.oldest_ms));
            all.oldest = [all.oldest, first].into_iter().flatten().min();
        }
        (all, lines)
    }
}

/// The first project that a file tells of.
fn first_project(spool: &MessageSpool) -> Option<ProjectId> {
    let group = spool.oldest(1).ok()?.into_iter().next()?;
    let messages = spool.read(&group).ok()?;
    let project = |message: &Message| Some(record::read(&message.bytes).ok()?.first()?.project);
    messages.iter().find_map(project)
}

/// Takes the messages that came meanwhile, up to a commit's worth; what is no message comes back.
fn more(lines: &mut Lines, orders: &mpsc::Receiver<Order>) -> Option<Order> {
    let mut bytes: usize = lines.values().flatten().map(|(message, _)| message.bytes.len()).sum();
    while bytes < COMMIT_BYTES_MAX {
        match orders.try_recv().ok()? {
            Order::Keep { shard, message, answer } => {
                bytes += message.bytes.len();
                lines.entry(shard).or_default().push((message, answer));
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
