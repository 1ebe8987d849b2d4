use std::fs;
use std::io;

use rusqlite::{OptionalExtension as _, params};

use super::transaction::commit;
use super::{BATCH_ORDINALS, BatchKey, FullBy, Spool, SpoolError, dead_letters, file};

impl Spool {
    /// Removes a batch whose events are all answered for, and returns how many they were.
    ///
    /// On a full disk not even that can be written. Then it is remembered and done when there is room; a batch owed that
    /// way is neither listed nor counted. Should the process end before, it is sent once more, and the collector knows it.
    ///
    /// # Errors
    /// [`SpoolError::NoSuchBatch`] when it isn't there, otherwise what the file says.
    pub(crate) fn remove(&mut self, key: BatchKey) -> Result<u64, SpoolError> {
        self.pay();
        let (events, bytes) = self.sums(key)?;
        match self.delete(key) {
            Ok(()) => file::give_back_pages(&self.connection)?,
            Err(SpoolError::Full { by: FullBy::Disk }) => self.owed.push(key),
            Err(error) => return Err(error),
        }
        self.open = self.open.filter(|open| open.key != key);
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes);
        // It may well be this file that fills the disk.
        if self.events == 0 && !self.owed.is_empty() {
            self.renew()?;
        }
        Ok(events)
    }

    /// Tries to do what is owed.
    pub(super) fn pay(&mut self) {
        while let Some(key) = self.owed.last() {
            if self.delete(*key).is_err() {
                return;
            }
            self.owed.pop();
        }
    }

    /// Events and bytes of what is owed, which the sums over the file still hold.
    pub(super) fn owed_sums(&self) -> Result<(u64, u64), SpoolError> {
        self.owed.iter().try_fold((0, 0), |(events, bytes), key| {
            let sums = self.batch_sums(*key)?.unwrap_or_default();
            Ok((events + sums.0, bytes + sums.1))
        })
    }

    fn sums(&self, key: BatchKey) -> Result<(u64, u64), SpoolError> {
        if self.owed.contains(&key) {
            return Err(SpoolError::NoSuchBatch);
        }
        self.batch_sums(key)?.ok_or(SpoolError::NoSuchBatch)
    }

    fn batch_sums(&self, key: BatchKey) -> Result<Option<(u64, u64)>, SpoolError> {
        let mut select = self.connection.prepare("SELECT events, bytes FROM batches WHERE key = ?1")?;
        let sums = select.query_row([key.0], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()))
        });
        Ok(sums.optional()?)
    }

    fn delete(&mut self, key: BatchKey) -> Result<(), SpoolError> {
        commit(&mut self.connection, false, |transaction| {
            transaction.execute("DELETE FROM batches WHERE key = ?1", [key.0])?;
            transaction.execute(
                "DELETE FROM events WHERE place >= ?1 AND place < ?2",
                params![key.place(0), key.place(BATCH_ORDINALS)],
            )?;
            Ok(())
        })
    }

    /// Makes the file anew when nothing in it waits any more; dead letters are carried over.
    fn renew(&mut self) -> Result<(), SpoolError> {
        let letters = dead_letters::read(&self.connection)?;
        self.connection.close();
        // Without its file the spool is of no use; any error here says so, also where the disk has no room for a new one.
        let lost = |error: SpoolError| SpoolError::Io(io::Error::other(error));
        fs::remove_file(self.claim.file()).map_err(SpoolError::Io)?;
        drop(fs::remove_file(file::log_of(self.claim.file())));
        self.connection = file::create(self.claim.file()).map_err(lost)?;
        self.owed.clear();
        let kept = commit(&mut self.connection, false, |transaction| {
            letters.iter().try_for_each(|(event, reason)| dead_letters::keep(transaction, event, reason))
        });
        kept.map_err(lost)
    }
}
