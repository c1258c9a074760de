//! What goes to the writer: an event's body, who is told what became of it, and how it becomes bytes.

use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use weir_core::ids::CallId;
use weir_core::policy::Action;
use weir_core::record::{Body, CallResult, Intent, Message, Outcome, Payload, Written};
use weir_core::segment::MAX_FRAME;

use super::{LedgerError, Text};
use crate::spool::Priority;

/// Bytes of a payload's text that are left when the whole does not fit an event. Escaped, it is six times as much.
const CUT_TEXT: usize = 512 << 10;

pub(super) enum Command {
    Put(Box<Item>),
    Seal { age: Duration, answer: oneshot::Sender<Result<bool, LedgerError>> },
    SealAfter(Duration),
    Stop { answer: oneshot::Sender<Result<(), LedgerError>> },
}

/// Something to be written.
pub(super) struct Item {
    pub(super) body: Body<Text>,
    pub(super) answer: Answer,
    /// The place in the queue, or the slot, that it takes until it is written or given up.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// Who is told what became of an item.
pub(super) enum Answer {
    Waiter(oneshot::Sender<Result<u64, LedgerError>>),
    /// Nobody, but it is counted when it is lost.
    Note,
    Nobody,
    /// Nobody; the item says that so many notes were lost.
    Lost(u64),
}

impl Answer {
    pub(super) fn give(self, result: Result<u64, LedgerError>) {
        if let Answer::Waiter(waiter) = self {
            // Who no longer waits does not want to know.
            let _ = waiter.send(result);
        }
    }
}

impl Item {
    pub(super) fn new(body: Body<Text>, answer: Answer, room: Option<OwnedSemaphorePermit>) -> Self {
        Self { body, answer, room }
    }

    /// An item that is told to nobody and takes no room.
    pub(super) fn of(body: Body<Text>) -> Self {
        Self::new(body, Answer::Nobody, None)
    }
}

impl From<Item> for Command {
    fn from(item: Item) -> Self {
        Self::Put(Box::new(item))
    }
}

/// The outcome of a call of which nothing more is known.
pub(super) fn ended(call_id: CallId, result: CallResult) -> Body<Text> {
    Body::Outcome(Outcome {
        call_id,
        result,
        http_status: None,
        error_code: None,
        duration_us: None,
        payload: Payload::default(),
    })
}

/// Refusals, decisions, outcomes, sums and what the agent says of itself are written on a full disk too.
pub(super) fn priority(body: &Body<Text>) -> Priority {
    match body {
        Body::Intent(intent) if intent.verdict.action == Action::Deny => Priority::Reserved,
        Body::Decision(_) | Body::Outcome(_) | Body::Agent(_) | Body::Completeness(_) | Body::Gap(_) => {
            Priority::Reserved
        }
        Body::Intent(_) | Body::Message(_) | Body::Flow(_) => Priority::Ordinary,
    }
}

/// The event's canonical bytes. Of a payload too large for a frame a part is kept, and the event says so.
pub(super) fn encode(event: &mut Written) -> Result<Vec<u8>, LedgerError> {
    let mut bytes = canonical(event)?;
    if bytes.len() > MAX_FRAME
        && let Some(payload) = payload(&mut event.body)
    {
        payload.text = std::mem::take(&mut payload.text).truncate(CUT_TEXT);
        payload.truncated = true;
        bytes = canonical(event)?;
    }
    if bytes.len() > MAX_FRAME { Err(LedgerError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

fn canonical(event: &Written) -> Result<Vec<u8>, LedgerError> {
    event.canonical().map_err(|error| LedgerError::NotCanonical(error.to_string()))
}

fn payload(body: &mut Body<Text>) -> Option<&mut Payload<Text>> {
    match body {
        Body::Intent(intent) => {
            let Intent { payload, .. } = &mut **intent;
            Some(payload)
        }
        Body::Message(Message { payload, .. }) | Body::Outcome(Outcome { payload, .. }) => Some(payload),
        Body::Decision(_) | Body::Flow(_) | Body::Agent(_) | Body::Completeness(_) | Body::Gap(_) => None,
    }
}
