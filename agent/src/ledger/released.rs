//! Giving the log away, and taking it over: between two processes there is at any time one that holds the folder's lock
//! and writes. The old one lets go of it in good order and says what it [`Released`]; until it is told that the new one
//! has the log ([`Released::given_to`]) what it has to record waits, and if it is never told, it takes the log back.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;

use weir_core::ids::CallId;

use super::guest::Guest;
use super::item::Command;
use super::{Ledger, LedgerError, Shared};
use crate::spool::Left;

/// What the writer's thread gives out, and how it is told what came of it: dropped, it takes the log back.
pub(super) struct Release {
    pub(super) left: Left,
    pub(super) open: Vec<CallId>,
    pub(super) decide: mpsc::Sender<Away>,
}

/// The log is another process's, which listens at the other end.
pub(super) struct Away {
    pub(super) link: UnixStream,
    pub(super) own: Vec<CallId>,
}

/// A log that this process writes no more. Dropped, it is taken back.
pub struct Released {
    shared: Arc<Shared>,
    left: Option<Left>,
    own: Vec<CallId>,
    guests: Vec<Guest>,
    decide: Option<mpsc::Sender<Away>>,
}

impl Released {
    pub(super) fn new(shared: Arc<Shared>, release: Release, guests: Vec<Guest>) -> Self {
        let Release { left, open, decide } = release;
        let theirs: BTreeSet<&CallId> = guests.iter().flat_map(|guest| &guest.open).collect();
        let own = open.into_iter().filter(|call| !theirs.contains(call)).collect();
        Self { shared, left: Some(left), own, guests, decide: Some(decide) }
    }

    /// What the next writer needs to know of the folder. Once.
    pub fn take_left(&mut self) -> Option<Left> {
        self.left.take()
    }

    /// This process's calls that are open.
    pub fn own(&self) -> &[CallId] {
        &self.own
    }

    /// Processes that this one replaced, and that have calls. They wait.
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// Another process has the log, and hears this one at the other end of `link`.
    pub fn given_to(mut self, link: UnixStream) {
        if let Some(decide) = self.decide.take() {
            let _ = decide.send(Away { link, own: std::mem::take(&mut self.own) });
        }
        // The other process has its own ends of them.
        self.guests.clear();
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        if self.decide.take().is_some() {
            self.shared.host(std::mem::take(&mut self.guests));
        }
    }
}

/// What another process has released for this one.
#[derive(Debug)]
pub struct Handed {
    pub left: Left,
    /// The process that released it, and those that it had replaced itself.
    pub guests: Vec<Guest>,
}

/// A log that was taken over, in which this process has written nothing yet. Dropped, it is free again.
pub struct TakenOver {
    pub(super) ledger: Ledger,
    pub(super) guests: Vec<Guest>,
}

impl TakenOver {
    /// The log is this process's for good: lets those that wait go on, and records that it has begun in place of
    /// `replaced` (for people).
    pub fn begin(self, replaced: &str) -> Result<Ledger, LedgerError> {
        let Self { ledger, guests } = self;
        ledger.shared.send(Command::Begin { replaces: replaced.to_owned(), guests: guests.len() })?;
        ledger.shared.living.send_replace(guests.len());
        ledger.shared.host(guests);
        Ok(ledger)
    }
}
