use super::{Redis, Shared};
use crate::cache::Error;

impl Redis {
    /// Marks the keys as this store's.
    ///
    /// # Errors
    /// [`Error::OtherStore`] when they are another's. A Redis that can't be written says nothing of that.
    pub(super) async fn claim(&self) -> Result<(), Error> {
        let Some(store) = &self.0.store else { return Ok(()) };
        match self.0.owner(store).await {
            Some(owner) if owner != *store => {
                Err(Error::OtherStore { server: self.0.server.clone(), prefix: self.0.prefix.clone(), owner })
            }
            _ => Ok(()),
        }
    }

    /// Marks them again when the mark was lost with everything else, so that nobody takes the place of those at work.
    pub(super) async fn keep_claim(&self) {
        if let Err(error) = self.claim().await
            && self.0.foreign.is_due()
        {
            tracing::error!(%error, "two collectors mix in one redis");
        }
    }
}

impl Shared {
    async fn owner(&self, store: &str) -> Option<String> {
        let mut call = self.scripts.claim.prepare_invoke();
        call.key(format!("{}:{{store}}", self.prefix)).arg(store);
        self.asks.ask(async |mut connection| call.invoke_async(&mut connection).await).await
    }
}
