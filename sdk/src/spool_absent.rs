//! Stands where the spool stands in builds with it, so that the backlog is written once. Nothing of it can exist.

use std::convert::Infallible;
use std::path::Path;

use eventbucket_protocol::BatchId;
use uuid::Uuid;

use crate::encoded::EncodedEvent;

#[derive(Clone, Copy, Debug)]
pub(crate) struct SpoolLimits {
    pub(crate) bytes_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FullBy {
    Bound,
}

#[expect(dead_code, reason = "nothing can be corrupt here")]
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    #[error("this build has no spool; add the feature `spool`")]
    Full { by: FullBy },
    #[error("this build has no spool; add the feature `spool`")]
    Corrupt(Infallible),
    #[error("this build has no spool; add the feature `spool`")]
    NoSuchBatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BatchKey(Infallible);

#[expect(dead_code, reason = "the spool that can exist fills it")]
pub(crate) struct SpooledBatch {
    pub(crate) key: BatchKey,
    pub(crate) id: BatchId,
    pub(crate) events: usize,
    pub(crate) bytes: u64,
    pub(crate) first_captured_ms: i64,
}

pub(crate) struct Spool(Infallible);

pub(crate) struct Adopted {
    pub(crate) set_aside: u64,
    pub(crate) left: u64,
}

impl Spool {
    pub(crate) fn open(_: &Path, limits: SpoolLimits) -> Result<(Self, Adopted), SpoolError> {
        Err(if limits.bytes_max == 0 {
            SpoolError::Full { by: FullBy::Bound }
        } else {
            SpoolError::NoSuchBatch
        })
    }

    pub(crate) fn adopt(&mut self) -> Result<Adopted, SpoolError> {
        match self.0 {}
    }

    pub(crate) fn begin(&mut self, _: BatchId) -> BatchKey {
        match self.0 {}
    }

    pub(crate) fn close_batch(&mut self) {
        match self.0 {}
    }

    pub(crate) fn append(&mut self, key: BatchKey, _: &[EncodedEvent], _: bool) -> Result<(), SpoolError> {
        match key.0 {}
    }

    pub(crate) fn oldest_batches(&self, _: usize) -> Result<Vec<SpooledBatch>, SpoolError> {
        match self.0 {}
    }

    pub(crate) fn read(&self, key: BatchKey) -> Result<Vec<EncodedEvent>, SpoolError> {
        match key.0 {}
    }

    pub(crate) fn ids(&self, key: BatchKey) -> Result<Vec<Uuid>, SpoolError> {
        match key.0 {}
    }

    pub(crate) fn remove(&mut self, key: BatchKey) -> Result<u64, SpoolError> {
        match key.0 {}
    }

    pub(crate) fn replace(
        &mut self,
        key: BatchKey,
        _: &[(BatchId, Vec<usize>)],
    ) -> Result<Vec<BatchKey>, SpoolError> {
        match key.0 {}
    }

    pub(crate) fn dead_letter(&mut self, _: &EncodedEvent, _: &str) -> Result<(), SpoolError> {
        match self.0 {}
    }

    pub(crate) fn set_aside(self) -> Result<(), SpoolError> {
        match self.0 {}
    }
}
