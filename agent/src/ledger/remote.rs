//! The log is another process's now: what this one still has to record goes there over a socket, and what became of it
//! comes back. An intent counts as written when that process says that it is on disk. Should it be gone, nothing
//! passes for written any more: every call that is not recorded yet is refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{io, thread};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use weir_core::ids::CallId;
use weir_core::record::{Body, CallResult};
use weir_core::segment::MAX_FRAME;

use super::item::{Answer, Command, Content, Item, ToWriter, call, cut, ended};
use super::link::{self, Reply, Say};
use super::writer::Closed;
use super::{LedgerError, Text};

/// The writer's part once the log was given away.
pub(super) struct Remote {
    closed: Closed,
    link: UnixStream,
    owed: Arc<Mutex<Owed>>,
    /// What came while nothing was to be sent.
    waiting: Option<VecDeque<Item>>,
    next_id: u64,
}

/// What was sent and not answered.
struct Owed {
    /// None once the other process is gone.
    items: Option<BTreeMap<u64, Sent>>,
    /// This process's calls whose intent was sent and not refused, and whose outcome was not sent.
    open: BTreeSet<CallId>,
}

struct Sent {
    answer: Answer,
    room: Option<OwnedSemaphorePermit>,
    opens: Option<CallId>,
}

fn lock(owed: &Mutex<Owed>) -> MutexGuard<'_, Owed> {
    owed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    pub(super) fn new(closed: Closed, link: UnixStream, own: Vec<CallId>) -> Self {
        let owed = Owed { items: Some(BTreeMap::new()), open: own.into_iter().collect() };
        Self { closed, link, owed: Arc::new(Mutex::new(owed)), waiting: None, next_id: 0 }
    }

    /// Works until it is told to stop, or until nobody is left who could.
    pub(super) fn run(mut self, commands: &Receiver<Command>, to_self: Weak<ToWriter>) {
        let listening = Listening { owed: self.owed.clone(), to_self, vitals: self.closed.vitals.clone() };
        let from = self.link.try_clone();
        let reader = from.and_then(|from| {
            thread::Builder::new().name("ledger-answers".into()).spawn(move || listening.read(from))
        });
        let reader = reader.inspect_err(|error| {
            tracing::error!(%error, "cannot hear the agent that writes the log now");
            lock(&self.owed).items = None;
            self.closed.vitals.unable.store(true, Ordering::Release);
            self.closed.vitals.peer_gone.cancel();
        });
        self.serve(commands);
        // All that was sent is still read there; then the other side closes, too.
        let _ = self.link.shutdown(Shutdown::Write);
        if let Ok(reader) = reader {
            let _ = reader.join();
        }
    }

    fn serve(&mut self, commands: &Receiver<Command>) {
        while let Ok(command) = commands.recv() {
            match command {
                Command::Put(item) => match &mut self.waiting {
                    Some(waiting) => waiting.push_back(*item),
                    None => self.send(*item),
                },
                Command::BeSilent => {
                    self.waiting.get_or_insert_default();
                    self.say(&Say::Silent);
                }
                Command::GoOn => {
                    for item in self.waiting.take().unwrap_or_default() {
                        self.send(item);
                    }
                }
                Command::Seal { answer, .. } => drop(answer.send(Err(LedgerError::GivenAway))),
                Command::Release { answer } => drop(answer.send(Err(LedgerError::GivenAway))),
                // Tree and key are the writer's.
                Command::Checkpoint { answer } => drop(answer.send(Err(LedgerError::GivenAway))),
                Command::BeginEpoch { answer, .. } => drop(answer.send(Err(LedgerError::GivenAway))),
                Command::RotateKey { answer } => drop(answer.send(Err(LedgerError::GivenAway))),
                Command::SealAfter(_)
                | Command::Advise(_)
                | Command::Begin { .. }
                | Command::GuestLost { .. } => {}
                Command::Stop { answer } => {
                    let stopped = self.stop();
                    return drop(answer.send(stopped));
                }
            }
        }
    }

    /// Closes what is open, and says that this process has ended.
    fn stop(&mut self) -> Result<(), LedgerError> {
        for item in self.waiting.take().unwrap_or_default() {
            self.send(item);
        }
        let open: Vec<_> = lock(&self.owed).open.iter().cloned().collect();
        let stopped = self.closed.stopped(open.len());
        for call_id in open {
            self.send(Item::of(ended(call_id, CallResult::Unknown)));
        }
        let (answer, written) = oneshot::channel();
        self.send(Item::new(stopped, Answer::Waiter(answer), None));
        self.say(&Say::Left);
        // The log is written in the order in which things are sent: this was the last.
        written.blocking_recv().unwrap_or(Err(LedgerError::Stopped)).map(drop)
    }

    fn send(&mut self, item: Item) {
        let Item { content, answer, room, .. } = item;
        let Content::Own(mut body) = content else { return };
        let note = answer.is_note();
        let id = self.next_id;
        self.next_id += 1;
        if let Err(error) = fit(&mut body) {
            return answer.give(Err(error));
        }
        let call = call(&body);
        {
            let mut owed = lock(&self.owed);
            let Some(items) = &mut owed.items else {
                drop(owed);
                return self.closed.refuse(answer, LedgerError::PeerGone);
            };
            let opens = call.as_ref().filter(|(_, opens)| *opens).map(|(call, _)| call.clone());
            items.insert(id, Sent { answer, room, opens });
            // At once, since a call that does not wait may be over before its intent is written.
            match call {
                Some((call, true)) => drop(owed.open.insert(call)),
                Some((call, false)) => drop(owed.open.remove(&call)),
                None => {}
            }
        }
        self.say(&Say::Put { id, note, body: &body });
    }

    /// Should it fail, the reader sees the same and answers all that is owed.
    fn say(&self, say: &Say<&Body<Text>>) {
        if let Err(error) = link::write(&self.link, say) {
            tracing::error!(%error, "cannot reach the agent that writes the log now");
            let _ = self.link.shutdown(Shutdown::Both);
        }
    }
}

/// Leaves out of a payload what no event has room for.
fn fit(body: &mut Body<Text>) -> Result<(), LedgerError> {
    let length = |body: &Body<Text>| {
        let mut counted = Counted(0);
        let written = serde_json::to_writer(&mut counted, body);
        written.map(|()| counted.0).map_err(|error| LedgerError::NotCanonical(error.to_string()))
    };
    let mut bytes = length(body)?;
    if bytes > MAX_FRAME && cut(body) {
        bytes = length(body)?;
    }
    if bytes > MAX_FRAME { Err(LedgerError::TooLarge(bytes)) } else { Ok(()) }
}

struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that hears what became of things.
struct Listening {
    owed: Arc<Mutex<Owed>>,
    to_self: Weak<ToWriter>,
    vitals: Arc<super::Vitals>,
}

impl Listening {
    fn read(&self, mut from: UnixStream) {
        let end = loop {
            match link::read::<Reply>(&mut from) {
                Ok(Some(Reply::Written { id, seq })) => self.settle(id, Ok(seq)),
                Ok(Some(Reply::Refused { id, why })) => self.settle(id, Err(LedgerError::Peer(why))),
                Ok(Some(Reply::BeSilent)) => self.tell_self(Command::BeSilent),
                Ok(Some(Reply::GoOn)) => self.tell_self(Command::GoOn),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let items = lock(&self.owed).items.take().unwrap_or_default();
        *self.vitals.fault() = Some(LedgerError::PeerGone.to_string());
        self.vitals.unable.store(true, Ordering::Release);
        self.vitals.peer_gone.cancel();
        if !items.is_empty() || end.is_some() {
            tracing::error!(owed = items.len(), why = ?end, "the agent that writes the log now is gone");
        }
        for (_, sent) in items {
            if sent.answer.is_note() {
                self.vitals.lost_notes.fetch_add(1, Ordering::Relaxed);
            }
            drop(sent.room);
            sent.answer.give(Err(LedgerError::PeerGone));
        }
        // What waits for the new owner's word need not wait any longer.
        self.tell_self(Command::GoOn);
    }

    fn settle(&self, id: u64, result: Result<u64, LedgerError>) {
        let sent = {
            let mut owed = lock(&self.owed);
            let Some(sent) = owed.items.as_mut().and_then(|items| items.remove(&id)) else { return };
            if let Some(call) = &sent.opens {
                self.vitals.unable.store(result.is_err(), Ordering::Release);
                if result.is_err() {
                    owed.open.remove(call);
                }
            }
            sent
        };
        // Who was told that a call is closed finds its slot free.
        drop(sent.room);
        sent.answer.give(result);
    }

    fn tell_self(&self, command: Command) {
        if let Some(commands) = self.to_self.upgrade() {
            let _ = commands.send(command);
        }
    }
}
