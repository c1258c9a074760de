//! Connections to the letter, whole or torn, from a job; and a server that keeps each byte it is sent.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::world::World;

const CLIENT: &str = include_str!("../clients/bytes.py");
/// For all connections of one job together.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long a server's connection may stand without a byte, so that no thread of a test is left behind.
const SILENCE: Duration = Duration::from_secs(60);

/// One connection of a job's.
#[derive(Debug, Clone, Serialize)]
pub struct Talk {
    pub host: String,
    pub port: u16,
    /// Bytes as latin-1.
    pub send: Vec<String>,
    pub tls: Option<TornTls>,
    pub end: End,
}

/// A handshake that may end early; see `clients/bytes.py`.
#[derive(Debug, Clone, Serialize)]
pub struct TornTls {
    pub name: String,
    /// How many bytes of the ClientHello are sent; less than 0: how many are not.
    pub cut: Option<i32>,
    pub after: &'static str,
    pub then: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    Fin,
    Rst,
    /// The other side's to say.
    Wait,
}

/// What came of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Heard {
    /// The client's own port, by which its flow is known.
    pub port: u16,
    pub heard: String,
    /// `closed`, or an exception's name.
    pub end: String,
}

impl Heard {
    /// The status of the first answer; 0 without one.
    pub fn status(&self) -> u16 {
        let code = self.heard.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        code.and_then(|code| code.parse().ok()).unwrap_or(0)
    }
}

impl World {
    /// Makes these connections from a job in the watched cgroup, one after the other.
    pub fn talk(&self, talks: &[Talk]) -> Result<Vec<Heard>> {
        let plan = self.folder().join(format!("talks-{}.json", talks.len()));
        std::fs::write(&plan, serde_json::to_vec(talks)?)?;
        let command: [OsString; 4] = [self.setup.python().into(), "-c".into(), CLIENT.into(), plan.into()];
        let mut job = self.job().command(&command)?;
        let exit = job.wait(DEADLINE)?;
        ensure!(exit.success(), "the client failed: {}", job.stderr()?);
        let heard: Vec<Heard> =
            job.stdout()?.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("its words")?;
        ensure!(heard.len() == talks.len(), "{} of {} connections", heard.len(), talks.len());
        Ok(heard)
    }
}

/// A server on all of 127.0.0.0/8 that keeps what it is sent, by the address that it was sent to, and answers each whole request.
#[derive(Debug)]
pub struct Recorder {
    port: u16,
    kept: Arc<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    said: Mutex<HashMap<IpAddr, Vec<Vec<u8>>>>,
    answers: Mutex<HashMap<IpAddr, Vec<u8>>>,
}

impl Recorder {
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("0.0.0.0:0")?;
        let port = listener.local_addr()?.port();
        let kept = Arc::<Kept>::default();
        let keeping = kept.clone();
        thread::Builder::new().name("recorder".into()).spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = keeping.clone();
                thread::spawn(move || kept.serve(stream));
            }
        })?;
        Ok(Self { port, kept })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What is said at this address to whoever asks, instead of the usual answer; the connection is closed then.
    pub fn answer_with(&self, address: IpAddr, bytes: impl Into<Vec<u8>>) {
        self.kept.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(address, bytes.into());
    }

    /// What came to this address, each connection by itself.
    pub fn said(&self, address: IpAddr) -> Vec<Vec<u8>> {
        let said = self.kept.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.get(&address).cloned().unwrap_or_default()
    }
}

impl Kept {
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(SILENCE))?;
        let at = stream.local_addr()?.ip();
        let number = {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            let connections = said.entry(at).or_default();
            connections.push(Vec::new());
            connections.len() - 1
        };
        let (mut buffer, mut request) = ([0; 4096], Vec::new());
        loop {
            let read = stream.read(&mut buffer)?;
            let came = buffer.get(..read).unwrap_or_default();
            if came.is_empty() {
                return Ok(());
            }
            request.extend_from_slice(came);
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(connection) = said.get_mut(&at).and_then(|all| all.get_mut(number)) {
                connection.extend_from_slice(came);
            }
            drop(said);
            if !is_whole(&request) {
                continue;
            }
            request.clear();
            let own = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned();
            match own {
                Some(answer) => return Ok(stream.write_all(&answer)?),
                None => stream.write_all(OK)?,
            }
        }
    }
}

/// What is answered to each call with the id 1.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n\
                    {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}";

/// Whether it ends as Weir's own requests do.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    match (value("content-length: "), value("transfer-encoding: ")) {
        (Some(length), _) => length.parse().is_ok_and(|length: usize| body.len() >= length),
        (None, Some(_)) => body.ends_with("0\r\n\r\n"),
        (None, None) => true,
    }
}
