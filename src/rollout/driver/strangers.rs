//! Containers with our labels that no deployment on record has started.

use std::collections::BTreeSet;

use super::DriverTask;
use crate::rollout::strangers::{Stranger, news};
use crate::store::StoreError;

impl DriverTask {
    /// Tells of those that have not been told of, in this life of the agent or before. `there` is all that there is.
    pub(super) async fn meet(&mut self, strangers: Vec<Stranger>, there: &BTreeSet<String>) {
        if let Err(err) = self.tell_of(strangers, there).await {
            tracing::error!(app = %self.app, %err, "containers that are none of ours could not be recorded");
        }
    }

    async fn tell_of(&mut self, strangers: Vec<Stranger>, there: &BTreeSet<String>) -> Result<(), StoreError> {
        let told = match &mut self.strangers {
            Some(told) => told,
            unread => unread.insert(self.parts.store.strangers(&self.app).await?),
        };
        let (new, gone) = news(told, strangers, there);
        for Stranger { container, instance, what } in new {
            self.parts.journal.stranger(&self.app, &container, instance, what).await?;
            told.insert(container);
        }
        if !gone.is_empty() {
            self.parts.store.forget_strangers(&self.app, gone.clone()).await?;
            told.retain(|container| !gone.contains(container));
        }
        Ok(())
    }
}
