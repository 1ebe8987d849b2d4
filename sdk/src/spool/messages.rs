//! Messages of the collector's in files of the same kind, for it has the same need: bytes that outlive a kill and a power cut,
//! one file a process, locked while it lives and taken over when it doesn't. A group of messages that were kept together is a
//! batch of the file, a message an event. No part of this crate's API.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use eventbucket_protocol::Timestamp;
use uuid::Uuid;

use super::folder::Folder;
use super::place::Place;
use super::{BatchKey, FullBy, Spool, SpoolError, SpoolLimits};
use crate::encoded::EncodedEvent;
use crate::id;

/// What the files' names begin with, so that no application takes messages for its events.
const PREFIX: &str = "edge-";

/// Whoever keeps messages bounds them over all its files.
const UNBOUNDED: SpoolLimits = SpoolLimits { bytes_max: u64::MAX };

/// A message that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// When it was kept, in Unix milliseconds.
    pub kept_ms: i64,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
}

/// Messages that were kept together, and go together.
#[derive(Clone, Debug)]
pub struct Group {
    /// How many they are.
    pub messages: usize,
    /// Their bytes, with what keeping them takes.
    pub bytes: u64,
    /// When the first of them was kept, in Unix milliseconds.
    pub oldest_ms: i64,
    key: BatchKey,
}

/// What was found beside the files that were taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// Files that weren't whole and were renamed.
    pub set_aside: u64,
    /// Files left alone: of a newer version or another application, or unreadable.
    pub left: u64,
}

/// Why messages can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// There is no room on the disk; nothing was kept, and the file stays usable.
    #[error("the disk is full")]
    DiskFull,
    /// The file isn't whole: it is to be set aside.
    #[error("a file isn't whole: {0}")]
    Corrupt(String),
    /// The file or its folder was moved or deleted: what is written to it is found by nobody.
    #[error("its folder or files were moved or deleted; move them back, or start the edge again")]
    Moved,
    /// Anything else: the file is to be dropped, and taken over again later.
    #[error("{0}")]
    Failed(String),
}

impl From<SpoolError> for Trouble {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Full { by: FullBy::Disk } => Self::DiskFull,
            SpoolError::Corrupt(what) => Self::Corrupt(what),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// A file of messages that belongs to this process. Dropping it leaves it to others, and removes it when it is empty.
pub struct MessageSpool {
    spool: Spool,
    place: Place,
}

impl From<Spool> for MessageSpool {
    fn from(spool: Spool) -> Self {
        Self { place: Place::of(spool.path()), spool }
    }
}

impl MessageSpool {
    /// Makes a new file. Makes the folder too, readable by its owner alone.
    ///
    /// # Errors
    /// When the folder or the file can't be made.
    pub fn create(folder: &Path) -> Result<Self, Trouble> {
        Ok(Spool::create(&Folder::open_for(folder, PREFIX)?, UNBOUNDED)?.into())
    }

    /// Takes over every file whose process is dead, the oldest first. One that isn't whole is renamed.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn abandoned(folder: &Path) -> Result<(Vec<Self>, Abandoned), Trouble> {
        let (spools, found) = Spool::claim_each(&Folder::open_for(folder, PREFIX)?, UNBOUNDED)?;
        let found = Abandoned { set_aside: found.set_aside, left: found.left };
        Ok((spools.into_iter().map(Self::from).collect(), found))
    }

    /// Appends messages as one group, all or none; they are on the disk when it returns, in a file that is found there.
    ///
    /// # Errors
    /// [`Trouble::DiskFull`], [`Trouble::Moved`], or what is wrong with the file.
    pub fn append(&mut self, messages: &[Message]) -> Result<(), Trouble> {
        self.check_place()?;
        let group = self.spool.begin(id::batch(Timestamp::from_system(SystemTime::now())));
        let event =
            |message: &Message| EncodedEvent::new(Uuid::nil(), message.kept_ms, Arc::clone(&message.bytes));
        let events: Vec<_> = messages.iter().map(event).collect();
        let appended = self.spool.append(group, &events, true);
        self.spool.close_batch();
        appended?;
        // Only now is it known where it was written.
        self.check_place()
    }

    /// Makes sure that the file is where it was opened.
    ///
    /// # Errors
    /// [`Trouble::Moved`]; what is in it can be read as long as it is open.
    pub fn check_place(&self) -> Result<(), Trouble> {
        if self.place.is_kept() { Ok(()) } else { Err(Trouble::Moved) }
    }

    /// Lists the oldest groups in the order in which they were kept.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn oldest(&self, groups_max: usize) -> Result<Vec<Group>, Trouble> {
        let group = |batch: super::SpooledBatch| Group {
            messages: batch.events,
            bytes: batch.bytes,
            oldest_ms: batch.first_captured_ms,
            key: batch.key,
        };
        Ok(self.spool.oldest_batches(groups_max)?.into_iter().map(group).collect())
    }

    /// Reads the messages of a group in their order.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(&self, group: &Group) -> Result<Vec<Message>, Trouble> {
        let message = |event: EncodedEvent| Message { kept_ms: event.captured_ms, bytes: event.bytes };
        Ok(self.spool.read(group.key)?.into_iter().map(message).collect())
    }

    /// Removes a group. A power cut may undo that. On a full disk it is remembered and done later.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn remove(&mut self, group: &Group) -> Result<(), Trouble> {
        Ok(self.spool.remove(group.key).map(drop)?)
    }

    /// How many messages are in it.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.spool.events()
    }

    /// Their bytes, with what keeping them takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.spool.bytes()
    }

    /// Renames a file that turned out not to be whole.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn set_aside(self) -> Result<(), Trouble> {
        Ok(self.spool.set_aside()?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn message(text: &str) -> Message {
        Message { kept_ms: 7, bytes: text.as_bytes().into() }
    }

    fn texts(spool: &MessageSpool) -> Vec<String> {
        let groups = spool.oldest(usize::MAX).unwrap();
        let messages = groups.iter().flat_map(|group| spool.read(group).unwrap());
        messages.map(|message| String::from_utf8(message.bytes.to_vec()).unwrap()).collect()
    }

    #[test]
    fn groups_are_kept_in_order_and_taken_over_file_by_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = MessageSpool::create(folder.path()).unwrap();
        first.append(&[message("a"), message("b")]).unwrap();
        first.append(&[message("c")]).unwrap();
        let mut second = MessageSpool::create(folder.path()).unwrap();
        second.append(&[message("d")]).unwrap();
        assert!(MessageSpool::abandoned(folder.path()).unwrap().0.is_empty(), "both have an owner");
        drop((first, second));

        let (mut files, found) = MessageSpool::abandoned(folder.path()).unwrap();
        assert_eq!(found, Abandoned::default());
        assert_eq!(files.iter().map(texts).collect::<Vec<_>>(), [vec!["a", "b", "c"], vec!["d"]]);
        assert_eq!(files[0].messages(), 3);
        let groups = files[0].oldest(10).unwrap();
        files[0].remove(&groups[0]).unwrap();
        assert_eq!(texts(&files[0]), ["c"]);
        files[0].remove(&groups[1]).unwrap();
        drop(files);
        let (files, _) = MessageSpool::abandoned(folder.path()).unwrap();
        assert_eq!(files.iter().map(texts).collect::<Vec<_>>(), [vec!["d"]], "an empty file is removed");
    }

    #[test]
    fn a_file_that_was_deleted_takes_nothing_more_and_gives_what_it_has() {
        for ending in ["", "-wal"] {
            let folder = tempfile::tempdir().unwrap();
            let mut spool = MessageSpool::create(folder.path()).unwrap();
            spool.append(&[message("a")]).unwrap();
            let mut path = spool.spool.path().as_os_str().to_owned();
            path.push(ending);
            fs::remove_file(path).unwrap();
            assert!(matches!(spool.append(&[message("b")]), Err(Trouble::Moved)), "{ending}");
            assert_eq!(texts(&spool), ["a"]);
        }
    }

    #[test]
    fn an_application_with_its_spool_in_the_same_folder_takes_no_message_for_an_event() {
        let folder = tempfile::tempdir().unwrap();
        MessageSpool::create(folder.path()).unwrap().append(&[message("a")]).unwrap();
        let (_spool, adopted) = Spool::open(folder.path(), SpoolLimits::default()).unwrap();
        assert_eq!((adopted.files, adopted.left), (0, 0));
        assert_eq!(MessageSpool::abandoned(folder.path()).unwrap().0.len(), 1);
    }

    #[test]
    fn a_file_that_is_not_whole_is_set_aside_and_said() {
        let folder = tempfile::tempdir().unwrap();
        MessageSpool::create(folder.path()).unwrap().append(&[message("a")]).unwrap();
        let file = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let file = file.into_iter().find(|path| path.extension().is_some_and(|end| end == "db")).unwrap();
        fs::write(&file, b"not a database, though it is long enough to be looked at as one").unwrap();
        let (files, found) = MessageSpool::abandoned(folder.path()).unwrap();
        assert!(files.is_empty());
        assert_eq!(found, Abandoned { set_aside: 1, left: 0 });
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().any(|name| name.to_string_lossy().contains(".db.corrupt-")));
    }
}
