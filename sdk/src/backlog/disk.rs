use std::collections::HashSet;
use std::path::PathBuf;

use eventbucket_protocol::BatchId;

use crate::config::Settings;
use crate::ledger::Tally;
use crate::spool::{Adopted, Spool, SpoolError, SpoolLimits, SpooledBatch};

/// How long the disk is left alone after it failed.
const DISK_RETRY_MS: u64 = 30 * 1_000;
/// How often a spool looks for files that other processes have left since.
const ADOPT_EVERY_MS: u64 = 60 * 1_000;

/// The spool where one is wanted, and what is known about the disk under it. A disk that fails is tried again later;
/// meanwhile events live in memory.
pub(crate) struct Disk {
    folder: Option<PathBuf>,
    limits: SpoolLimits,
    spool: Option<Spool>,
    /// Nothing is written before this monotonic time.
    again_ms: u64,
    adopt_ms: u64,
    /// How many files of others `on_error` knows of.
    left: u64,
}

fn adopt(spool: &mut Spool) -> Result<(Adopted, Vec<SpooledBatch>), SpoolError> {
    let before: HashSet<BatchId> = spool.oldest_batches(usize::MAX)?.iter().map(|batch| batch.id).collect();
    let adopted = spool.adopt()?;
    let mut batches = spool.oldest_batches(usize::MAX)?;
    batches.retain(|batch| !before.contains(&batch.id));
    Ok((adopted, batches))
}

impl Disk {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            folder: settings.spool.clone(),
            limits: SpoolLimits { bytes_max: settings.spool_bytes_max },
            spool: None,
            again_ms: 0,
            adopt_ms: 0,
            left: 0,
        }
    }

    /// Says whether the application asked for a spool.
    pub(crate) fn is_wanted(&self) -> bool {
        self.folder.is_some()
    }

    /// The spool for reading and removing.
    pub(crate) fn spool(&mut self) -> Option<&mut Spool> {
        self.spool.as_mut()
    }

    /// The spool for writing, unless the disk is left alone.
    pub(crate) fn writable(&mut self, now_ms: u64) -> Option<&mut Spool> {
        if now_ms < self.again_ms { None } else { self.spool.as_mut() }
    }

    /// Says when the disk is tried again, if it isn't in use.
    pub(crate) fn next_try_ms(&self, now_ms: u64) -> Option<u64> {
        (self.folder.is_some() && now_ms < self.again_ms).then_some(self.again_ms)
    }

    /// Opens the spool when that is due, and lists what is in it.
    pub(crate) fn open(&mut self, now_ms: u64, tally: &mut Tally) -> Option<Vec<SpooledBatch>> {
        let folder = self.folder.as_ref()?;
        if self.spool.is_some() || now_ms < self.again_ms {
            return None;
        }
        let opened = Spool::open(folder, self.limits).and_then(|(spool, adopted)| {
            let batches = spool.oldest_batches(usize::MAX)?;
            Ok((spool, adopted, batches))
        });
        match opened {
            Ok((spool, adopted, batches)) => {
                self.spool = Some(spool);
                self.adopt_ms = now_ms + ADOPT_EVERY_MS;
                self.note_left_overs(adopted.set_aside, adopted.left, tally);
                Some(batches)
            }
            Err(error) => {
                self.failed(error, now_ms, tally);
                None
            }
        }
    }

    /// Brings in files that were abandoned since, when that is due, and returns what was in them. What the spool held before
    /// may be on its way.
    pub(crate) fn adopt(&mut self, now_ms: u64, tally: &mut Tally) -> Vec<SpooledBatch> {
        if now_ms < self.adopt_ms {
            return Vec::new();
        }
        self.adopt_ms = now_ms + ADOPT_EVERY_MS;
        let Some(spool) = &mut self.spool else { return Vec::new() };
        match adopt(spool) {
            Ok((adopted, batches)) => {
                self.note_left_overs(adopted.set_aside, adopted.left, tally);
                batches
            }
            Err(error) => {
                self.failed(error, now_ms, tally);
                Vec::new()
            }
        }
    }

    /// Forgets that the disk failed lately.
    pub(crate) fn hurry(&mut self) {
        self.again_ms = 0;
    }

    /// Closes the spool, so that another process can take it over.
    pub(crate) fn close(&mut self) {
        self.spool = None;
    }

    /// Takes note of an error. Only a full spool stays open: after anything else, what is in the file is known only
    /// after reading it again.
    pub(crate) fn failed(&mut self, error: SpoolError, now_ms: u64, tally: &mut Tally) {
        tally.spool_failed(&error);
        self.again_ms = now_ms + DISK_RETRY_MS;
        match error {
            SpoolError::Full { .. } => {}
            SpoolError::Corrupt(_) => {
                if let Some(Err(error)) = self.spool.take().map(Spool::set_aside) {
                    tally.spool_file_failed(format!("its file can't be set aside: {error}"));
                }
            }
            _ => self.spool = None,
        }
    }

    /// Files that others left are looked at again and again, and told of once.
    fn note_left_overs(&mut self, set_aside: u64, left: u64, tally: &mut Tally) {
        if set_aside > 0 {
            tally.spool_file_failed(format!(
                "{set_aside} of its files weren't whole and were renamed to *.corrupt-*; look at them"
            ));
        }
        if left > self.left {
            tally.spool_file_failed(format!(
                "{left} of its files are left alone: another version or program wrote them"
            ));
        }
        self.left = left;
    }
}
