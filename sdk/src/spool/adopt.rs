use std::path::Path;

use super::folder::{Claim, Folder};
use super::merge::Failed;
use super::{Spool, SpoolError, SpoolLimits, file, merge};

/// What was found in the folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Adopted {
    /// Events taken over from abandoned files.
    pub(crate) events: u64,
    /// Batches taken over from abandoned files.
    pub(crate) batches: u64,
    /// Abandoned files taken over.
    pub(crate) files: u64,
    /// Files that weren't whole and were renamed.
    pub(crate) set_aside: u64,
    /// Files left alone: of a newer version or another application, or unreadable.
    pub(crate) left: u64,
}

impl Spool {
    /// Claims a file of the folder: an abandoned one with its batches, else a new one. Further abandoned files are merged
    /// in as far as the bound allows. Creates the folder, readable by its owner alone.
    ///
    /// # Errors
    /// When the folder can't be made, read or written, or no file in it can be locked.
    pub(crate) fn open(path: &Path, limits: SpoolLimits) -> Result<(Self, Adopted), SpoolError> {
        let folder = Folder::open(path)?;
        let mut adopted = Adopted::default();
        let mut abandoned = folder.claim_abandoned()?.into_iter();
        let mut own = None;
        for claim in abandoned.by_ref() {
            if let Some(spool) = Self::adopt_as_own(&folder, claim, limits, &mut adopted)? {
                own = Some(spool);
                break;
            }
        }
        let mut spool = match own {
            Some(spool) => spool,
            None => Self::create(&folder, limits)?,
        };
        for claim in abandoned {
            spool.merge_in(claim, &mut adopted)?;
        }
        Ok((spool, adopted))
    }

    /// Merges in files that were abandoned since, or were too many before. Worth a call whenever the spool is empty.
    ///
    /// # Errors
    /// When the folder can't be read or the own file fails.
    pub(crate) fn adopt(&mut self) -> Result<Adopted, SpoolError> {
        let mut adopted = Adopted::default();
        for claim in self.folder.claim_abandoned()? {
            self.merge_in(claim, &mut adopted)?;
        }
        Ok(adopted)
    }

    /// Claims every abandoned file of a folder as a spool of its own, the oldest first.
    ///
    /// # Errors
    /// When the folder can't be read, or no file in it can be locked.
    pub(super) fn claim_each(
        folder: &Folder,
        limits: SpoolLimits,
    ) -> Result<(Vec<Self>, Adopted), SpoolError> {
        let (mut spools, mut adopted) = (Vec::new(), Adopted::default());
        for claim in folder.claim_abandoned()? {
            spools.extend(Self::adopt_as_own(folder, claim, limits, &mut adopted)?);
        }
        Ok((spools, adopted))
    }

    /// Makes a new file.
    ///
    /// # Errors
    /// When it can't be made or locked.
    pub(super) fn create(folder: &Folder, limits: SpoolLimits) -> Result<Self, SpoolError> {
        let claim = folder.claim_new()?;
        // What a full disk has left of it would be in the way of nothing, and stay.
        let connection = file::create(claim.file()).inspect_err(|_| claim.remove_files())?;
        Self::over(connection, claim, folder.clone(), limits)
    }

    fn adopt_as_own(
        folder: &Folder,
        claim: Claim,
        limits: SpoolLimits,
        adopted: &mut Adopted,
    ) -> Result<Option<Self>, SpoolError> {
        match file::adopt(claim.file()) {
            Ok(connection) => {
                let spool = Self::over(connection, claim, folder.clone(), limits)?;
                adopted.files += 1;
                adopted.events += spool.events;
                adopted.batches += u64::try_from(spool.batches()?).unwrap_or_default();
                Ok(Some(spool))
            }
            Err(error) => {
                Self::pass_over(claim, &error, adopted)?;
                Ok(None)
            }
        }
    }

    fn merge_in(&mut self, claim: Claim, adopted: &mut Adopted) -> Result<(), SpoolError> {
        let room = self.limits.bytes_max.saturating_sub(self.bytes);
        match merge::file_into(&mut self.connection, claim.file(), self.next_key - 1, room) {
            Ok(merged) => {
                claim.remove_files();
                adopted.files += 1;
                adopted.events += merged.events;
                adopted.batches += merged.batches;
                self.count()
            }
            Err(Failed::Other(error)) => Self::pass_over(claim, &error, adopted),
            Err(Failed::Own(error)) => {
                // The commit may have happened before it failed: what is in the file is what counts.
                self.count()?;
                Err(error)
            }
        }
    }

    fn pass_over(claim: Claim, error: &SpoolError, adopted: &mut Adopted) -> Result<(), SpoolError> {
        match error {
            SpoolError::Corrupt(_) => {
                claim.set_aside()?;
                adopted.set_aside += 1;
            }
            // There will be room for it later, or another process takes it.
            SpoolError::Full { .. } => {}
            _ => adopted.left += 1,
        }
        Ok(())
    }

    fn batches(&self) -> Result<i64, SpoolError> {
        Ok(self.connection.query_row("SELECT count(*) FROM batches", [], |row| row.get(0))?)
    }
}
