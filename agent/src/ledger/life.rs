//! The life of the writer's thread: it writes; it may give the log away, and wait to hear whether that went well; then it
//! either sends what comes to the new writer, or takes the log back. What comes while it waits, waits with it.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::item::{Answer, Command, Content, Item, ToWriter};
use super::remote::Remote;
use super::writer::{Closed, Ran, Writer};
use super::{LedgerError, RETRY_AFTER};
use crate::spool::Shelf;
use weir_core::record::Body;

/// How long calls wait for a log that cannot be taken back at once: the process that was to have it may be ending.
const TAKE_BACK: Duration = Duration::from_secs(5);
/// How often it is tried.
const STEP: Duration = Duration::from_millis(20);

pub(super) struct Life {
    pub(super) commands: Receiver<Command>,
    pub(super) to_self: Weak<ToWriter>,
    /// Where others look for the sealed segments.
    pub(super) shelf: Arc<Mutex<Shelf>>,
}

impl Life {
    pub(super) fn live(self, mut writer: Writer) {
        loop {
            let (closed, decision) = match writer.run(&self.commands) {
                Ran::Stopped => return,
                Ran::Released(closed, decision) => (*closed, decision),
            };
            match decision.recv() {
                Ok(away) => {
                    return Remote::new(closed, away.link, away.own).run(&self.commands, self.to_self);
                }
                Err(_) => match self.take_back(closed) {
                    Some(again) => writer = again,
                    None => return,
                },
            }
            *self.shelf.lock().unwrap_or_else(PoisonError::into_inner) = writer.shelf();
        }
    }

    /// Opens the log once more. While that fails everything is refused; outcomes are kept.
    fn take_back(&self, mut closed: Closed) -> Option<Writer> {
        let (began, mut kept) = (Instant::now(), Vec::new());
        loop {
            let error = match closed.reopen() {
                Ok(mut writer) => {
                    kept.into_iter().for_each(|item| writer.put(item));
                    return Some(writer);
                }
                Err(refused) => {
                    let (same, error) = *refused;
                    closed = same;
                    error
                }
            };
            if began.elapsed() < TAKE_BACK {
                thread::sleep(STEP);
                continue;
            }
            tracing::error!(%error, "cannot take the log back");
            *closed.vitals.fault() = Some(error.to_string());
            closed.vitals.unable.store(true, Ordering::Release);
            let again = Instant::now() + RETRY_AFTER;
            loop {
                match self.commands.recv_timeout(again.saturating_duration_since(Instant::now())) {
                    Ok(command) => {
                        if let Some(item) = refuse(&closed, command, &error)? {
                            kept.push(item);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return None,
                }
            }
        }
    }
}

/// Answers a command that nothing can be done for. `None` ends the thread; an item is to be kept.
fn refuse(closed: &Closed, command: Command, error: &LedgerError) -> Option<Option<Item>> {
    match command {
        Command::Put(item) => {
            let Item { content, answer, room, sent_us } = *item;
            let outcome = matches!(&content, Content::Own(Body::Outcome(_)))
                || matches!(&content, Content::Guest(_, body) if matches!(**body, Body::Outcome(_)));
            closed.refuse(answer, error.clone());
            return Some(outcome.then_some(Item { content, answer: Answer::Nobody, room, sent_us }));
        }
        Command::GuestLost { calls, .. } => drop(calls),
        Command::Seal { answer, .. } => drop(answer.send(Err(error.clone()))),
        Command::Release { answer } => drop(answer.send(Err(error.clone()))),
        Command::Checkpoint { answer } => drop(answer.send(Err(error.clone()))),
        Command::BeginEpoch { answer, .. } => drop(answer.send(Err(error.clone()))),
        Command::RotateKey { answer } => drop(answer.send(Err(error.clone()))),
        Command::Stop { answer } => {
            let _ = answer.send(Err(error.clone()));
            return None;
        }
        Command::SealAfter(_)
        | Command::Advise(_)
        | Command::Begin { .. }
        | Command::BeSilent
        | Command::GoOn => {}
    }
    Some(None)
}
