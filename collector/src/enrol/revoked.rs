//! Which enrolments were revoked, as of some seconds ago at most: asked of the store, however many requests come in between.
//! Where the store does not answer nobody is let through; without it nothing could be stored anyway.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Registry;
use crate::store::StoreError;

/// How old the answer may be.
pub const FRESH: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Revoked {
    registry: Registry,
    known: Mutex<Option<(Instant, HashSet<String>)>>,
}

impl Revoked {
    pub fn new(registry: Registry) -> Self {
        Self { registry, known: Mutex::default() }
    }

    /// Whether an enrolment was revoked.
    pub async fn has(&self, enrolment: &str) -> Result<bool, StoreError> {
        // One asks, and the others wait for the same answer.
        let mut known = self.known.lock().await;
        if known.as_ref().is_none_or(|(asked, _)| asked.elapsed() >= FRESH) {
            let asked = Instant::now();
            *known = Some((asked, self.registry.revoked(SystemTime::now()).await?));
        }
        Ok(known.as_ref().is_some_and(|(_, revoked)| revoked.contains(enrolment)))
    }
}
