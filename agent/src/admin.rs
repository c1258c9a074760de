//! The admin socket: what a running agent says of itself and does when asked, for root on this host alone.
//!
//! Enters: one line of JSON, an [`Ask`]. Leaves: one line of JSON, its [`Answer`]. Must never: let one that asks nothing
//! keep others waiting.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_core::ids::Origin;

use crate::handover::{Asking, Hello};
use crate::ledger::{Ledger, Rotated, Standing};
use crate::netns::{For, Namespaces, Registered};
use crate::ship::WitnessedTo;

/// The most bytes of what is asked, and of an answer.
const MAX_ASK: u64 = 64 << 10;
const MAX_ANSWER: u64 = 1 << 20;
/// How many may ask at a time; who comes next waits.
const ASKING: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after an accept that failed for lack of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What can be asked: `{"ask":"status"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    Status,
    /// That the network namespace of this process be registered: see [`crate::netns`].
    Register {
        pid: u32,
    },
    /// That the log's key be changed: see [`Ledger::rotate_key`].
    RotateKey,
    /// To take this agent's place: see [`crate::handover`].
    Replace(Hello),
}

/// What is answered: `{"status":{...}}`, or `{"refused":"why"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Status(Box<Status>),
    Registered(Registered),
    Rotated(Box<Rotated>),
    /// What follows on this connection is the hand-over's.
    Replacing,
    Refused(String),
}

/// What the agent answers with.
pub struct Desk {
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    pub namespaces: Arc<Namespaces>,
    pub ledger: Ledger,
    /// Where processes go that are to take this one's place. None: this agent ends with its command.
    pub successors: Option<mpsc::Sender<Asking>>,
}

impl Desk {
    async fn answer(&self, ask: Ask) -> Answer {
        match ask {
            Ask::Replace(hello) => match hello.fault() {
                Some(fault) => Answer::Refused(fault),
                None if self.successors.is_none() => {
                    Answer::Refused("it runs for one command, and ends with that".into())
                }
                None => Answer::Replacing,
            },
            Ask::RotateKey => match self.ledger.rotate_key().await {
                Ok(rotated) => Answer::Rotated(Box::new(rotated)),
                Err(error) => Answer::Refused(error.to_string()),
            },
            Ask::Status => Answer::Status(Box::new((self.status)())),
            Ask::Register { pid } => match self.namespaces.register(pid, For::Runtime).await {
                Ok(registered) => Answer::Registered(registered),
                Err(error) => Answer::Refused(error.to_string()),
            },
        }
    }
}

/// A running agent's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Hooks are attached, and listeners are up.
    pub ready: bool,
    pub pid: u32,
    pub origin: Origin,
    pub listen: ListenStatus,
    pub connects: ConnectStatus,
    /// What this kernel has not, and what is lost by that; Weir intercepts all the same.
    #[serde(default)]
    pub missing: Vec<String>,
    pub calls: CallStatus,
    pub spool: SpoolStatus,
    #[serde(default)]
    pub evidence: EvidenceStatus,
    pub ca: CaStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenStatus {
    pub v4: String,
    pub v6: String,
}

/// What became of the TCP connects of selected cgroups, as the kernel counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectStatus {
    pub redirected: u64,
    pub passed: u64,
    pub refused: u64,
    pub unanswered: u64,
    pub failed: u64,
}

/// How recording fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallStatus {
    /// Calls between their intent and their outcome.
    pub open: u64,
    /// Calls that ended and whose outcome waits for the disk.
    pub owed_outcomes: u64,
    /// Events that could not be written since the start, and for which no call waited.
    pub lost_notes: u64,
    /// Calls since the start that did not wait for their record (`durability = "best_effort"`).
    #[serde(default)]
    pub unwaited_intents: u64,
    /// Why nothing can be written now, if nothing can: then every call is refused.
    pub fault: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    pub segments: u64,
    pub unshipped_events: u64,
    pub bytes: u64,
    pub set_aside_bytes: u64,
    /// How old a segment grows before it is sealed and shipped: as configured, or as the collector advises.
    #[serde(default)]
    pub seal_after_ms: u64,
}

/// What can be proven of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EvidenceStatus {
    /// The epoch that is written, and its tree.
    pub standing: Standing,
    /// How far the collector has cosigned; it may be an epoch before.
    pub witnessed: Option<WitnessedTo>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    pub issuer: String,
    pub certificate: PathBuf,
    pub bundle: PathBuf,
}

/// Where the socket of a state folder is.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// Listens at `path`; only the agent's own user may connect. The spool's lock says that no other agent of this
/// state folder is in charge, so a socket that is there is a dead one's, or that of one which this replaces: whoever asks
/// meets the one or the other, and never nobody.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let aside = path.with_extension("sock.new");
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&aside)?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&aside, path)?;
    Ok(listener)
}

/// Answers until the agent ends.
pub async fn serve(listener: UnixListener, desk: Arc<Desk>, ending: CancellationToken) {
    let mut asking = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if asking.len() < ASKING => accepted,
            Some(_) = asking.join_next() => continue,
            () = ending.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let desk = desk.clone();
        asking.spawn(async move {
            // Whoever does not ask or listen in time gets no answer.
            let _ = tokio::time::timeout(TIMEOUT, attend(stream, &desk)).await;
        });
    }
    asking.shutdown().await;
}

async fn attend(stream: UnixStream, desk: &Desk) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(MAX_ASK).read_until(b'\n', &mut line).await?;
    let mut hello = None;
    let mut answer = match serde_json::from_slice(&line) {
        Ok(ask) => {
            if let Ask::Replace(asked) = &ask {
                hello = Some(asked.clone());
            }
            desk.answer(ask).await
        }
        Err(error) => Answer::Refused(format!("not understood: {error}")),
    };
    let own = stream.get_ref().peer_cred()?.uid() == nix::unistd::geteuid().as_raw();
    let place = desk.successors.as_ref().and_then(|successors| successors.try_reserve().ok());
    match (&answer, hello, place) {
        (Answer::Replacing, ..) if !own => answer = Answer::Refused("you are not the agent's user".into()),
        (Answer::Replacing, Some(hello), Some(place)) => {
            write_answer(stream.get_mut(), &answer).await?;
            let stream = stream.into_inner().into_std()?;
            stream.set_nonblocking(false)?;
            place.send(Asking { hello, stream });
            return Ok(());
        }
        (Answer::Replacing, ..) => {
            answer = Answer::Refused("another process is about to replace it, or has".into());
        }
        _ => {}
    }
    write_answer(stream.get_mut(), &answer).await
}

/// Asks the agent of a state folder.
///
/// # Errors
/// Nobody answers there in time, or not so that it can be understood.
pub async fn ask(state_dir: &Path, ask: &Ask) -> io::Result<Answer> {
    let asking = async {
        let mut stream = UnixStream::connect(socket(state_dir)).await?;
        write_answer(&mut stream, ask).await?;
        let mut line = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut line).await?;
        serde_json::from_slice(&line).map_err(io::Error::other)
    };
    tokio::time::timeout(TIMEOUT, asking).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Asks the agent of a state folder how it fares.
pub async fn status(state_dir: &Path) -> io::Result<Status> {
    match ask(state_dir, &Ask::Status).await? {
        Answer::Status(status) => Ok(*status),
        other => Err(io::Error::other(format!("asked for its status, the agent said {other:?}"))),
    }
}

async fn write_answer(stream: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    stream.write_all(&line_of(value)?).await
}

/// Asks on a connection that is used for more than one question.
pub(crate) fn write_line(mut stream: &StdUnixStream, ask: &Ask) -> io::Result<()> {
    stream.write_all(&line_of(ask)?)
}

/// Reads the answer to it, and nothing behind it.
pub(crate) fn read_line(mut stream: &StdUnixStream, within: Duration) -> io::Result<Answer> {
    stream.set_read_timeout(Some(within))?;
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
        if line.len() as u64 > MAX_ANSWER {
            return Err(io::Error::other("an answer longer than any may be"));
        }
    }
    serde_json::from_slice(&line).map_err(io::Error::other)
}

fn line_of(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}
