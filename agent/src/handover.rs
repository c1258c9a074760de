//! A hot upgrade: how a new process takes over from the running agent, on the connection on which it asked for that.
//!
//! ```text
//! new                                   old
//!  ask: replace (version, layout) ->     refuses here what it does not know
//!                                    <- lock       the folder of pins, if there is one
//!  ready, its programs are loaded    ->
//!                                        lets go of the log; calls wait from here
//!                                    <- state      what is left of the log, open calls, listening sockets, links
//!  opened, the log is its own        ->
//!                                    <- go         from here on records of the old come over its link; calls go on
//!                                        stops accepting, shipping, watching
//!                                    <- done
//!  begins with all of that               ends when its last connection and hold has
//! ```
//!
//! Until `go` whatever goes wrong leaves the old one as it was: it takes its log back and has never stopped to accept.
//! From then on the new one is the agent, whatever becomes of the old. What is in the queue of a listening socket belongs
//! to the socket, so no connection is lost on the way.
//!
//! Enters: a connection whose other end belongs to the same user. Leaves: sockets, and what is left of a log. Must never:
//! wait for the other side without a deadline, or leave two processes in the belief that the log is theirs.

mod wire;

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use weir_core::ids::{Boot, CallId};
use weir_ebpf::LAYOUT;

use crate::admin::{self, Answer, Ask};
use crate::ledger::{Guest, Handed, Ledger, LedgerError};
use crate::spool::Left;

/// The version of what is said here.
pub const VERSION: u32 = 1;
/// How long the new process may take to load its programs; the old one serves meanwhile.
const LOADING: Duration = Duration::from_secs(60);
/// How long the new process may take to open the log. Calls wait for it, and their clients would not much longer.
const OPENING: Duration = Duration::from_secs(10);
/// How long the old process may take to let go.
const LETTING_GO: Duration = Duration::from_secs(30);

/// What a process says of itself that asks to take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// See [`VERSION`].
    pub handover: u32,
    /// Of the kernel's tables, see [`LAYOUT`].
    pub layout: u32,
    pub version: String,
    pub pid: u32,
}

impl Hello {
    pub fn own() -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { handover: VERSION, layout: LAYOUT, version, pid: std::process::id() }
    }

    /// Why there can be no hand-over to it.
    pub fn fault(&self) -> Option<String> {
        let (what, theirs, ours) = match self {
            Self { handover, .. } if *handover != VERSION => ("hand-over", handover, VERSION),
            Self { layout, .. } if *layout != LAYOUT => ("kernel table layout", layout, LAYOUT),
            _ => return None,
        };
        Some(format!(
            "the running agent (version {}) knows {what} {ours}, and the new one (version {}) {what} {theirs}; \
             stop the one and start the other",
            env!("CARGO_PKG_VERSION"),
            self.version,
        ))
    }
}

/// A process that asks to take over, and the connection on which it does.
#[derive(Debug)]
pub struct Asking {
    pub hello: Hello,
    pub stream: UnixStream,
}

/// Why there was no hand-over. The old agent goes on.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("no agent answers for this state folder: {0}")]
    NoAgent(io::Error),
    #[error("the running agent goes on: {0}")]
    Refused(String),
    #[error("the hand-over broke off at {at:?}: {source}; the running agent goes on")]
    Broken { at: Step, source: io::Error },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Where a hand-over was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Loading,
    Releasing,
    Opening,
    Going,
}

impl Step {
    fn broken(self) -> impl FnOnce(io::Error) -> HandoverError {
        move |source| HandoverError::Broken { at: self, source }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Lock {
        pinned: bool,
    },
    Ready,
    State(Box<State>),
    Opened,
    Go,
    Done,
    /// There will be no hand-over, and why.
    Off(String),
}

/// With it travel: the link, each guest's link, then the listening sockets, two a namespace.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    left: Left,
    boot: Boot,
    pid: u32,
    version: String,
    open: Vec<CallId>,
    guests: Vec<Told>,
    namespaces: Vec<u64>,
}

/// A guest, but for its link.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    boot: Boot,
    pid: u32,
    open: Vec<CallId>,
}

/// The listening sockets of one network namespace.
#[derive(Debug)]
pub struct Sockets {
    /// The namespace's cookie.
    pub namespace: u64,
    pub v4: OwnedFd,
    pub v6: OwnedFd,
}

/// What the old process gives away.
pub struct Estate<'a> {
    pub ledger: &'a Ledger,
    pub boot: Boot,
    /// Who holds it uses the folder of pins.
    pub lock: Option<BorrowedFd<'a>>,
    pub sockets: &'a [Sockets],
}

/// The process that has taken over.
#[derive(Debug)]
pub struct Successor {
    pub hello: Hello,
    stream: UnixStream,
}

impl Successor {
    /// This process does nothing any more that only one agent may do.
    pub fn done(self) {
        if let Err(error) = wire::send(&self.stream, &Message::Done, &[]) {
            tracing::warn!(%error, "the new agent does not listen");
        }
    }
}

/// The old process's side, on a thread that may block. After an error everything is as it was.
pub fn give(asking: Asking, estate: &Estate<'_>, runtime: &Handle) -> Result<Successor, HandoverError> {
    let Asking { hello, stream } = asking;
    match give_step_by_step(&stream, estate, runtime) {
        Ok(()) => Ok(Successor { hello, stream }),
        Err(error) => {
            // Without this the new process would take silence for this one's death, and go on by itself.
            let _ = wire::send(&stream, &Message::Off(error.to_string()), &[]);
            Err(error)
        }
    }
}

fn give_step_by_step(
    stream: &UnixStream,
    estate: &Estate<'_>,
    runtime: &Handle,
) -> Result<(), HandoverError> {
    let broken = Step::Loading.broken();
    let lock: Vec<_> = estate.lock.into_iter().collect();
    let ready = stream
        .set_write_timeout(Some(OPENING))
        .and_then(|()| wire::send(stream, &Message::Lock { pinned: !lock.is_empty() }, &lock))
        .and_then(|()| expect(stream, LOADING))
        .map_err(broken)?;
    let (Message::Ready, _) = ready else { return Err(Step::Loading.broken()(unexpected(&ready.0))) };

    let mut released = runtime.block_on(estate.ledger.release())?;
    let (here, there) = UnixStream::pair().map_err(Step::Releasing.broken())?;
    let told = |guest: &Guest| Told { boot: guest.boot.clone(), pid: guest.pid, open: guest.open.clone() };
    let state = State {
        left: released.take_left().ok_or(LedgerError::GivenAway)?,
        boot: estate.boot.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        open: released.own().to_vec(),
        guests: released.guests().iter().map(told).collect(),
        namespaces: estate.sockets.iter().map(|sockets| sockets.namespace).collect(),
    };
    let mut sockets = vec![there.as_fd()];
    sockets.extend(released.guests().iter().map(|guest| guest.link.as_fd()));
    sockets.extend(estate.sockets.iter().flat_map(|pair| [pair.v4.as_fd(), pair.v6.as_fd()]));
    wire::send(stream, &Message::State(Box::new(state)), &sockets).map_err(Step::Opening.broken())?;
    drop(sockets);
    drop(there);
    match expect(stream, OPENING).map_err(Step::Opening.broken())? {
        (Message::Opened, _) => {}
        (Message::Off(why), _) => return Err(HandoverError::Refused(why)),
        (other, _) => return Err(Step::Opening.broken()(unexpected(&other))),
    }
    wire::send(stream, &Message::Go, &[]).map_err(Step::Going.broken())?;
    released.given_to(here);
    Ok(())
}

/// A running agent that was asked to let this process take over.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
}

impl Predecessor {
    /// Asks the agent of a state folder. With it comes the lock on its folder of pins, if it has one.
    pub fn ask(state_dir: &Path) -> Result<(Self, Option<File>), HandoverError> {
        let stream = UnixStream::connect(admin::socket(state_dir)).map_err(HandoverError::NoAgent)?;
        let asked = stream
            .set_write_timeout(Some(LETTING_GO))
            .and_then(|()| admin::write_line(&stream, &Ask::Replace(Hello::own())));
        asked.map_err(Step::Loading.broken())?;
        match admin::read_line(&stream, LETTING_GO).map_err(Step::Loading.broken())? {
            Answer::Replacing => {}
            Answer::Refused(why) => return Err(HandoverError::Refused(why)),
            other => {
                return Err(HandoverError::Refused(format!("asked to be replaced, it said {other:?}")));
            }
        }
        match expect(&stream, LETTING_GO).map_err(Step::Loading.broken())? {
            (Message::Lock { pinned: false }, _) => Ok((Self { stream }, None)),
            (Message::Lock { pinned: true }, mut sockets) => match sockets.pop() {
                Some(lock) => Ok((Self { stream }, Some(lock.into()))),
                None => Err(Step::Loading.broken()(io::Error::other("no lock came with the lock"))),
            },
            (Message::Off(why), _) => Err(HandoverError::Refused(why)),
            (other, _) => Err(Step::Loading.broken()(unexpected(&other))),
        }
    }

    /// This process has loaded what it could: takes what the other lets go of.
    pub fn ready(self) -> Result<Inheritance, HandoverError> {
        let Self { stream } = self;
        wire::send(&stream, &Message::Ready, &[]).map_err(Step::Releasing.broken())?;
        let (state, sockets) = match expect(&stream, LETTING_GO).map_err(Step::Releasing.broken())? {
            (Message::State(state), sockets) => (*state, sockets),
            (Message::Off(why), _) => return Err(HandoverError::Refused(why)),
            (other, _) => return Err(Step::Releasing.broken()(unexpected(&other))),
        };
        Inheritance::of(stream, state, sockets).map_err(Step::Releasing.broken())
    }
}

/// What the old process has let go of.
#[derive(Debug)]
pub struct Inheritance {
    /// For [`Ledger::take_over`]. Once.
    pub handed: Option<Handed>,
    pub sockets: Vec<Sockets>,
    /// Whom this process replaces, for people.
    pub replaced: String,
    stream: UnixStream,
}

impl Inheritance {
    fn of(stream: UnixStream, state: State, sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let mut sockets = sockets.into_iter();
        let mut next = || sockets.next().ok_or_else(|| io::Error::other("too few sockets came"));
        let own = Guest { boot: state.boot, pid: state.pid, open: state.open, link: next()?.into() };
        let mut guests = vec![own];
        for Told { boot, pid, open } in state.guests {
            guests.push(Guest { boot, pid, open, link: next()?.into() });
        }
        let mut pairs = Vec::new();
        for namespace in state.namespaces {
            pairs.push(Sockets { namespace, v4: next()?, v6: next()? });
        }
        let replaced = format!("pid {}, version {}", state.pid, state.version);
        let handed = Some(Handed { left: state.left, guests });
        Ok(Self { handed, sockets: pairs, replaced, stream })
    }

    /// The log is open: waits for the old process's word. Should it die in these moments, this process goes on without it.
    pub fn opened(&self) -> Result<(), HandoverError> {
        let told =
            wire::send(&self.stream, &Message::Opened, &[]).and_then(|()| expect(&self.stream, LETTING_GO));
        match told {
            Ok((Message::Go, _)) => Ok(()),
            Ok((Message::Off(why), _)) => Err(HandoverError::Refused(why)),
            Ok((other, _)) => Err(Step::Going.broken()(unexpected(&other))),
            Err(error) if is_death(&error) => {
                tracing::warn!(%error, "the agent that was to be replaced is gone");
                Ok(())
            }
            Err(error) => Err(Step::Going.broken()(error)),
        }
    }

    /// Why this process cannot have the log.
    pub fn give_up(&self, why: &dyn std::fmt::Display) {
        let _ = wire::send(&self.stream, &Message::Off(why.to_string()), &[]);
    }

    /// Waits until the old process does nothing any more that only one may do.
    pub fn until_done(self) {
        if let Err(error) = expect(&self.stream, LETTING_GO) {
            tracing::warn!(%error, "the agent that was replaced did not say that it has let go");
        }
    }
}

impl Sockets {
    /// Copies of the handles of two listening sockets.
    pub fn copy_of(namespace: u64, v4: impl AsFd, v6: impl AsFd) -> io::Result<Self> {
        let copy = |socket: BorrowedFd<'_>| socket.try_clone_to_owned();
        Ok(Self { namespace, v4: copy(v4.as_fd())?, v6: copy(v6.as_fd())? })
    }

    /// As listeners of the standard library's, which do not block.
    pub fn into_listeners(self) -> io::Result<[TcpListener; 2]> {
        let listeners = [TcpListener::from(self.v4), TcpListener::from(self.v6)];
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        Ok(listeners)
    }
}

fn expect(stream: &UnixStream, within: Duration) -> io::Result<(Message, Vec<OwnedFd>)> {
    stream.set_read_timeout(Some(within))?;
    wire::receive(stream)
}

/// Both sides only ever close this connection when they end; a wait that was too long is another error.
fn is_death(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn unexpected(message: &Message) -> io::Error {
    // Of its contents nothing: they are not for a log.
    let kind = match message {
        Message::Lock { .. } => "lock",
        Message::Ready => "ready",
        Message::State(_) => "state",
        Message::Opened => "opened",
        Message::Go => "go",
        Message::Done => "done",
        Message::Off(why) => return io::Error::other(why.clone()),
    };
    io::Error::other(format!("`{kind}` came out of turn"))
}
