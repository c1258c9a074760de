//! What goes to the writer: an event's body, who is told what became of it, and how it becomes bytes.

use std::sync::OnceLock;
use std::sync::mpsc::{SendError, Sender};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use weir_core::ids::{Boot, CallId, Origin};
use weir_core::mask::{MaskedByPeer, Recordable};
use weir_core::policy::Action;
use weir_core::record::{self, Body, CallResult, Intent, Message, Outcome, Payload, Placed, Scribe};
use weir_core::segment::{EventFrames, MAX_FRAME};

use super::book::Book;
use super::guest::GuestAnswer;
use super::released::Release;
use super::{Clock, LedgerError, Rotated, Text, Unsealed};
use crate::spool::Priority;

/// Bytes of a payload's text that are left when the whole does not fit an event. Escaped, it is six times as much.
const CUT_TEXT: usize = 512 << 10;

/// The name of the event that says that nothing happens.
pub(super) const HEARTBEAT: &str = "heartbeat";

pub(super) enum Command {
    Put(Box<Item>),
    Seal {
        age: Duration,
        answer: oneshot::Sender<Result<bool, LedgerError>>,
    },
    SealAfter(Duration),
    /// The collector would have segments grow this old.
    Advise(Duration),
    /// A checkpoint of what is not sealed.
    Checkpoint {
        answer: oneshot::Sender<Result<Option<Unsealed>, LedgerError>>,
    },
    /// Another epoch of the same key.
    BeginEpoch {
        why: String,
        answer: oneshot::Sender<Result<(), LedgerError>>,
    },
    RotateKey {
        answer: oneshot::Sender<Result<Rotated, LedgerError>>,
    },
    /// Says that this agent has begun, in another's place.
    Begin {
        replaces: String,
        guests: usize,
    },
    Stop {
        answer: oneshot::Sender<Result<(), LedgerError>>,
    },
    Release {
        answer: oneshot::Sender<Result<Release, LedgerError>>,
    },
    /// A guest ended without closing these.
    GuestLost {
        boot: Boot,
        pid: u32,
        calls: Vec<(CallId, Option<OwnedSemaphorePermit>)>,
    },
    /// The log is with another process, and that is about to hand it on: nothing is to be sent until [`Command::GoOn`].
    BeSilent,
    GoOn,
}

/// What is to be written.
#[expect(clippy::large_enum_variant, reason = "nearly all are this process's own")]
pub(super) enum Content {
    Own(Body<Text>),
    /// Made by a process that this one replaces.
    Guest(Boot, Box<Body<MaskedByPeer>>),
}

/// Something to be written.
pub(super) struct Item {
    pub(super) content: Content,
    pub(super) answer: Answer,
    /// The place in the queue, or the slot, that it takes until it is written or given up.
    pub(super) room: Option<OwnedSemaphorePermit>,
    /// When it was sent, microseconds since 1970; of what the writer says itself, nothing.
    pub(super) sent_us: Option<u64>,
}

/// Who is told what became of an item.
pub(super) enum Answer {
    Waiter(oneshot::Sender<Result<u64, LedgerError>>),
    /// One that is in no hurry.
    Patient(oneshot::Sender<Result<u64, LedgerError>>),
    /// A process that this one replaces.
    Guest(GuestAnswer),
    /// Nobody, but it is counted when it is lost.
    Note,
    Nobody,
    /// Nobody; the item says that so many notes were lost.
    Lost(u64),
}

impl Answer {
    pub(super) fn give(self, result: Result<u64, LedgerError>) {
        match self {
            // Who no longer waits does not want to know.
            Answer::Waiter(waiter) | Answer::Patient(waiter) => drop(waiter.send(result)),
            Answer::Guest(guest) => guest.give(result),
            Answer::Note | Answer::Nobody | Answer::Lost(_) => {}
        }
    }

    /// Whether nobody but the log would tell that it was lost.
    pub(super) fn is_note(&self) -> bool {
        match self {
            Answer::Note => true,
            Answer::Guest(guest) => guest.is_note(),
            Answer::Waiter(_) | Answer::Patient(_) | Answer::Nobody | Answer::Lost(_) => false,
        }
    }
}

impl Item {
    pub(super) fn new(body: Body<Text>, answer: Answer, room: Option<OwnedSemaphorePermit>) -> Self {
        Self { content: Content::Own(body), answer, room, sent_us: None }
    }

    /// An item that is told to nobody and takes no room.
    pub(super) fn of(body: Body<Text>) -> Self {
        Self::new(body, Answer::Nobody, None)
    }
}

impl Command {
    /// Whether somebody waits for it, and not for long.
    pub(super) fn hurries(&self) -> bool {
        match self {
            Command::Put(item) => matches!(item.answer, Answer::Waiter(_) | Answer::Guest(_)),
            _ => true,
        }
    }
}

/// The way to the writer's thread.
pub(super) struct ToWriter {
    pub(super) commands: Sender<Command>,
    pub(super) clock: Clock,
    /// Whom to wake; nobody yet, while the writer starts.
    pub(super) thread: OnceLock<Thread>,
}

impl ToWriter {
    pub(super) fn send(&self, mut command: Command) -> Result<(), SendError<Command>> {
        if let Command::Put(item) = &mut command {
            item.sent_us = Some((self.clock)());
        }
        let hurries = command.hurries();
        self.commands.send(command)?;
        if hurries && let Some(thread) = self.thread.get() {
            thread.unpark();
        }
        Ok(())
    }
}

impl From<Item> for Command {
    fn from(item: Item) -> Self {
        Self::Put(Box::new(item))
    }
}

impl Content {
    /// The call that it opens (true) or closes.
    pub(super) fn call(&self) -> Option<(CallId, bool)> {
        match self {
            Content::Own(body) => call(body),
            Content::Guest(_, body) => call(body),
        }
    }

    pub(super) fn priority(&self) -> Priority {
        match self {
            Content::Own(body) => priority(body),
            Content::Guest(_, body) => priority(body),
        }
    }

    /// Adds the event to those that are written together. Of a payload too large for a frame a part is kept, and the event
    /// says so. The boot stays that of the process in which it happened.
    pub(super) fn encode(
        &mut self,
        place: &Place<'_>,
        scribe: &mut Scribe,
        frames: &mut EventFrames,
    ) -> Result<(), LedgerError> {
        match self {
            Content::Own(body) => encode(body, place.boot, place, scribe, frames),
            Content::Guest(boot, body) => encode(body, boot, place, scribe, frames),
        }
    }

    pub(super) fn note_in(&self, book: &mut Book) {
        match self {
            Content::Own(body) => book.apply(body),
            Content::Guest(_, body) => book.apply(body),
        }
    }

    /// Whether it only says that nothing happens.
    pub(super) fn is_heartbeat(&self) -> bool {
        matches!(self, Content::Own(Body::Agent(event)) if event.name == HEARTBEAT)
    }
}

/// What an event gets beside its body and its number.
pub(super) struct Place<'a> {
    pub(super) tenant: &'a str,
    pub(super) host: &'a str,
    pub(super) origin: &'a Origin,
    /// Of this process.
    pub(super) boot: &'a Boot,
    pub(super) time_us: u64,
}

/// The call that a body opens (true) or closes.
pub(super) fn call<T>(body: &Body<T>) -> Option<(CallId, bool)> {
    match body {
        Body::Intent(intent) => Some((intent.call_id.clone(), true)),
        Body::Outcome(outcome) => Some((outcome.call_id.clone(), false)),
        _ => None,
    }
}

/// The outcome of a call of which nothing more is known.
pub(super) fn ended(call_id: CallId, result: CallResult) -> Body<Text> {
    Body::Outcome(Outcome::new(call_id, result))
}

/// Refusals, decisions, outcomes, sums and what the agent says of itself are written on a full disk too.
fn priority<T>(body: &Body<T>) -> Priority {
    match body {
        Body::Intent(intent) if intent.verdict.action == Action::Deny => Priority::Reserved,
        Body::Decision(_) | Body::Outcome(_) | Body::Agent(_) | Body::Completeness(_) | Body::Gap(_) => {
            Priority::Reserved
        }
        Body::Intent(_) | Body::Message(_) | Body::Flow(_) => Priority::Ordinary,
    }
}

fn encode<T: Recordable>(
    body: &mut Body<T>,
    boot: &Boot,
    place: &Place<'_>,
    scribe: &mut Scribe,
    frames: &mut EventFrames,
) -> Result<(), LedgerError> {
    let &Place { tenant, host, origin, time_us, .. } = place;
    let seq = frames.next_seq();
    frames.push(|out| {
        let start = out.len();
        let mut write = |body: &Body<T>, out: &mut Vec<u8>| {
            out.truncate(start);
            let event = Placed { body, boot, host, origin, seq, tenant, time_us, v: record::VERSION };
            let written = event.append(scribe, out);
            written.map_err(|error| LedgerError::NotCanonical(error.to_string())).map(|()| out.len() - start)
        };
        let mut bytes = write(body, out)?;
        if bytes > MAX_FRAME && cut(body) {
            bytes = write(body, out)?;
        }
        if bytes > MAX_FRAME { Err(LedgerError::TooLarge(bytes)) } else { Ok(()) }
    })
}

/// Leaves a part of the payload, if there is one.
pub(super) fn cut<T: Recordable>(body: &mut Body<T>) -> bool {
    let Some(payload) = payload(body) else { return false };
    payload.text = std::mem::take(&mut payload.text).cut(CUT_TEXT);
    payload.truncated = true;
    true
}

fn payload<T>(body: &mut Body<T>) -> Option<&mut Payload<T>> {
    match body {
        Body::Intent(intent) => {
            let Intent { payload, .. } = &mut **intent;
            Some(payload)
        }
        Body::Message(Message { payload, .. }) | Body::Outcome(Outcome { payload, .. }) => Some(payload),
        Body::Decision(_) | Body::Flow(_) | Body::Agent(_) | Body::Completeness(_) | Body::Gap(_) => None,
    }
}
