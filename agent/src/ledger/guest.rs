//! Guests: agents that this one replaces, itself or by way of others, and that still have calls. They have no log any more;
//! what they want written comes in over a socket, and what became of it goes out. Their calls take slots of this ledger.
//! A guest that ends without saying so was lost: its open calls are closed as `unknown` at once.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use weir_core::ids::{Boot, CallId};
use weir_core::mask::MaskedByPeer;
use weir_core::record::Body;

use super::LedgerError;
use super::item::{Answer, Command, Content, Item, ToWriter, call};
use super::link::{self, Reply, Say};

/// How many guests there may be at a time.
pub const MAX_GUESTS: usize = 16;
/// How long a guest may take to fall silent, or to take what it is told; it has a thread that does nothing else.
const PATIENCE: Duration = Duration::from_secs(5);

/// A guest as one writer of the log hands it to the next.
#[derive(Debug)]
pub struct Guest {
    pub boot: Boot,
    pub pid: u32,
    /// Its calls whose intent is in the log, and whose outcome is not.
    pub open: Vec<CallId>,
    pub link: UnixStream,
}

/// The calls of a guest, with their slots.
type Calls = Arc<Mutex<BTreeMap<CallId, Option<OwnedSemaphorePermit>>>>;

fn lock(calls: &Calls) -> MutexGuard<'_, BTreeMap<CallId, Option<OwnedSemaphorePermit>>> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest that is served: by a thread that reads what it says, and one that tells it what became of that.
pub(super) struct Hosted {
    boot: Boot,
    pid: u32,
    link: UnixStream,
    calls: Calls,
    say: Sender<Reply>,
    reader: JoinHandle<()>,
    speaker: JoinHandle<()>,
    ended: Receiver<End>,
}

/// Why nothing more is read from a guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Silent,
    Gone,
}

impl Hosted {
    /// Lets a guest go on.
    pub(super) fn start(
        guest: Guest,
        commands: Weak<ToWriter>,
        slots: Arc<Semaphore>,
        living: Arc<watch::Sender<usize>>,
    ) -> io::Result<Self> {
        let Guest { boot, pid, open, link } = guest;
        link.set_write_timeout(Some(PATIENCE))?;
        let taken = open.into_iter().map(|call| (call, slots.clone().try_acquire_owned().ok()));
        let calls = Arc::new(Mutex::new(taken.collect()));
        let (say, told) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let reading =
            Reading { boot: boot.clone(), pid, commands, slots, calls: calls.clone(), say: say.clone() };
        let (from, to) = (link.try_clone()?, link.try_clone()?);
        let reader = thread::Builder::new().name("guest".into()).spawn(move || {
            let ended = reading.read(from);
            if ended == End::Gone {
                living.send_modify(|living| *living = living.saturating_sub(1));
            }
            // Dropped with its end of the answers' channel before anybody learns of it.
            drop(reading);
            let _ = end.send(ended);
        })?;
        let speaker = thread::Builder::new().name("guest-told".into()).spawn(move || speak(to, &told))?;
        let _ = say.send(Reply::GoOn);
        Ok(Self { boot, pid, link, calls, say, reader, speaker, ended })
    }

    pub(super) fn is_gone(&self) -> bool {
        self.reader.is_finished()
    }

    /// Waits until the guest says nothing any more. One that does not obey is given up as lost.
    pub(super) fn hush(self) -> Silent {
        let _ = self.say.send(Reply::BeSilent);
        let end = self.ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = self.link.shutdown(Shutdown::Both);
            End::Gone
        });
        let _ = self.reader.join();
        let Self { boot, pid, link, calls, speaker, say, .. } = self;
        drop(say);
        Silent { guest: (end == End::Silent).then_some((boot, pid, link, calls)), speaker }
    }

    /// Breaks the connection: what the guest has open is nobody's now.
    pub(super) fn turn_out(self) {
        let _ = self.link.shutdown(Shutdown::Both);
        let _ = self.reader.join();
        drop(self.say);
        // The writer holds answers to it until it has written or refused them; the thread ends with the last.
        drop(self.speaker);
    }
}

/// A guest that waits, and that may still have to be told of what was written last.
pub(super) struct Silent {
    guest: Option<(Boot, u32, UnixStream, Calls)>,
    speaker: JoinHandle<()>,
}

impl Silent {
    /// Waits until the guest has been told all; only when everything it sent has been answered. None: it is gone.
    pub(super) fn finish(self) -> Option<Guest> {
        let _ = self.speaker.join();
        let (boot, pid, link, calls) = self.guest?;
        let open = lock(&calls).keys().cloned().collect();
        Some(Guest { boot, pid, open, link })
    }
}

struct Reading {
    boot: Boot,
    pid: u32,
    commands: Weak<ToWriter>,
    slots: Arc<Semaphore>,
    calls: Calls,
    say: Sender<Reply>,
}

impl Reading {
    fn read(&self, mut from: UnixStream) -> End {
        let mut left = false;
        loop {
            match link::read::<Say<Body<MaskedByPeer>>>(&mut from) {
                Ok(Some(Say::Put { id, note, body })) => self.put(id, note, body),
                Ok(Some(Say::Silent)) => return End::Silent,
                Ok(Some(Say::Left)) => left = true,
                end @ (Ok(None) | Err(_)) => {
                    if !left {
                        tracing::warn!(pid = self.pid, why = ?end.err(), "an agent that was replaced is gone");
                        self.lost();
                    }
                    // It waits for nothing any more but this.
                    let _ = from.shutdown(Shutdown::Both);
                    return End::Gone;
                }
            }
        }
    }

    fn put(&self, id: u64, note: bool, body: Body<MaskedByPeer>) {
        let (mut room, mut opens) = (None, None);
        match call(&body) {
            Some((call, true)) => match self.slots.clone().try_acquire_owned() {
                Ok(permit) => {
                    lock(&self.calls).insert(call.clone(), Some(permit));
                    opens = Some((self.calls.clone(), call));
                }
                // Its call has gone upstream: it is recorded beyond the number that may be open.
                Err(_) if note => {
                    lock(&self.calls).insert(call.clone(), None);
                    opens = Some((self.calls.clone(), call));
                }
                Err(_) => {
                    let why = "as many calls as may be are open already, those of both agents taken together";
                    return drop(self.say.send(Reply::Refused { id, why: why.into() }));
                }
            },
            Some((call, false)) => room = lock(&self.calls).remove(&call).flatten(),
            None => {}
        }
        let answer = Answer::Guest(GuestAnswer { id, note, opens, say: self.say.clone() });
        let content = Content::Guest(self.boot.clone(), Box::new(body));
        self.send(Item { content, answer, room, sent_us: None }.into());
    }

    fn lost(&self) {
        let calls = std::mem::take(&mut *lock(&self.calls)).into_iter().collect();
        self.send(Command::GuestLost { boot: self.boot.clone(), pid: self.pid, calls });
    }

    /// What cannot be sent is not answered: the ledger has ended, and the guest is turned out.
    fn send(&self, command: Command) {
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.send(command);
        }
    }
}

fn speak(mut to: UnixStream, told: &Receiver<Reply>) {
    for reply in told {
        if let Err(error) = link::write(&mut to, &reply) {
            tracing::warn!(%error, "an agent that was replaced cannot be told of its records");
            // Its reader ends, and gives it up.
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Tells a guest what became of something.
pub(super) struct GuestAnswer {
    id: u64,
    note: bool,
    /// The call whose slot is to be freed should its intent not be written.
    opens: Option<(Calls, CallId)>,
    say: Sender<Reply>,
}

impl GuestAnswer {
    pub(super) fn is_note(&self) -> bool {
        self.note
    }

    pub(super) fn give(mut self, result: Result<u64, LedgerError>) {
        let opens = self.opens.take();
        let reply = match result {
            Ok(seq) => Reply::Written { id: self.id, seq },
            Err(error) => {
                if let Some((calls, call)) = opens {
                    lock(&calls).remove(&call);
                }
                Reply::Refused { id: self.id, why: error.to_string() }
            }
        };
        // A guest that is gone does not want to know.
        let _ = self.say.send(reply);
    }
}
