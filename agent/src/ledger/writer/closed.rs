//! What is left of a writer that has given its log away: enough to take it back, or to say what became of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;
use weir_core::ids::CallId;
use weir_core::record::Body;

use super::super::item::Answer;
use super::super::{LedgerConfig, LedgerError, Text, Vitals};
use super::{Writer, agent_event};
use crate::spool;

/// What is left of a writer that has released its log.
pub(in crate::ledger) struct Closed {
    pub(super) config: LedgerConfig,
    /// The calls that were open, and are for whoever made them to close.
    pub(super) open: BTreeSet<CallId>,
    pub(super) sealed_below: watch::Sender<u64>,
    pub(in crate::ledger) vitals: Arc<Vitals>,
}

impl Closed {
    /// Opens the log again that nobody else has taken.
    pub(in crate::ledger) fn reopen(self) -> Result<Writer, Box<(Self, LedgerError)>> {
        let found = match spool::open(self.config.storage.clone(), self.config.limits) {
            Ok(found) => found,
            Err(error) => return Err(Box::new((self, error.into()))),
        };
        let Self { config, open, sealed_below, vitals } = self;
        let again = (config.clone(), open.clone(), sealed_below.clone(), vitals.clone());
        Writer::go_on(config, found, &open, sealed_below, vitals).map_err(|error| {
            let (config, open, sealed_below, vitals) = again;
            Box::new((Self { config, open, sealed_below, vitals }, error))
        })
    }

    /// Answers what cannot be recorded.
    pub(in crate::ledger) fn refuse(&self, answer: Answer, error: LedgerError) {
        if answer.is_note() {
            tracing::error!(%error, "a note could not be recorded");
            self.vitals.lost_notes.fetch_add(1, Ordering::Relaxed);
        }
        answer.give(Err(error));
    }

    /// What this process says last.
    pub(in crate::ledger) fn stopped(&self, unknown_calls: usize) -> Body<Text> {
        agent_event(&self.config, "agent.stopped", [("unknown_calls", unknown_calls.to_string())])
    }
}
