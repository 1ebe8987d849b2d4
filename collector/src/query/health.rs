use super::{Error, Ledger, Reader};
use crate::cache::Node;

impl Reader {
    /// Says whether events are being stored, without asking the disk.
    ///
    /// # Errors
    /// What stopped the store.
    pub fn serving(&self) -> Result<(), Error> {
        Ok(self.store.serving()?)
    }

    /// Lists the processes of this collector; `None` when that can't be known now.
    pub async fn nodes(&self) -> Option<Vec<Node>> {
        self.cache.nodes().await
    }

    /// Reads the ledger over all projects.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn ledger(&self) -> Result<Ledger, Error> {
        Ok(self.store.ledger(None).await?)
    }
}
