//! The book of open calls: what each segment carries over, and what recovery must close. Bytes of carries and
//! events come in, calls without an outcome go out.

use std::collections::BTreeSet;

use weir_core::ids::CallId;
use weir_core::record::{Body, Stored};

use super::carry::Carry;

/// The calls whose intent is on disk and whose outcome is not.
#[derive(Debug, Default)]
pub(super) struct Book {
    open: BTreeSet<CallId>,
}

impl Book {
    /// The state behind `events`, which follow `carry`. Also says how many of these could not be read.
    pub(super) fn replay(carry: Option<&[u8]>, events: &[Vec<u8>]) -> (Self, u64) {
        let mut unreadable = 0;
        let carry = carry.map(Carry::read).transpose().unwrap_or_else(|_| {
            unreadable += 1;
            None
        });
        let mut book = Self { open: carry.unwrap_or_default().open };
        for event in events {
            match Stored::read(event) {
                Ok(event) => book.apply(&event.body),
                Err(_) => unreadable += 1,
            }
        }
        (book, unreadable)
    }

    /// Notes that an event is on disk.
    pub(super) fn apply<T>(&mut self, body: &Body<T>) {
        match body {
            Body::Intent(intent) => drop(self.open.insert(intent.call_id.clone())),
            Body::Outcome(outcome) => drop(self.open.remove(&outcome.call_id)),
            Body::Decision(_)
            | Body::Message(_)
            | Body::Flow(_)
            | Body::Agent(_)
            | Body::Completeness(_)
            | Body::Gap(_) => {}
        }
    }

    pub(super) fn is_open(&self, call_id: &CallId) -> bool {
        self.open.contains(call_id)
    }

    pub(super) fn open(&self) -> impl Iterator<Item = &CallId> {
        self.open.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_counted() {
        let (book, unreadable) = Book::replay(Some(b"{"), &[b"nonsense".to_vec()]);
        assert_eq!((book.len(), unreadable), (0, 2));
    }
}
