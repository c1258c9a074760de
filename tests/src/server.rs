//! The MCP server: `tests/server/server.py`, and its log of executed calls, the oracle of the tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::daemon::{Daemon, Program};
use crate::job::Trust;
use crate::net::Net;
use crate::places::{Setup, workspace};

/// A cold Python on a busy machine takes its time.
const START: Duration = Duration::from_secs(60);

/// The option with which it speaks the revision 2024-11-05: a GET stream, and POSTs whose answers come on that.
pub const LEGACY_SSE: &str = "--legacy-sse";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    #[default]
    Https,
    Http,
}

/// A call that the server executed.
#[derive(Debug, Clone, Deserialize)]
pub struct Executed {
    pub time_ns: i64,
    pub tool: String,
    pub nonce: String,
    pub arguments: serde_json::Value,
}

/// The running server.
#[derive(Debug)]
pub struct McpServer {
    daemon: Daemon,
    scheme: Scheme,
    port: u16,
    path: &'static str,
    tls: PathBuf,
    log: PathBuf,
}

#[derive(Deserialize)]
struct Ready {
    port: u16,
}

impl McpServer {
    /// Starts it on 127.0.0.1 and ::1, serving `names` (TLS and Host), with its files in `folder`.
    pub fn start(
        setup: &Setup,
        folder: &Path,
        scheme: Scheme,
        names: &[&str],
        outlives: bool,
    ) -> Result<Self> {
        Self::start_with(setup, folder, scheme, names, outlives, &[])
    }

    /// The same with more options on its command line.
    pub fn start_with(
        setup: &Setup,
        folder: &Path,
        scheme: Scheme,
        names: &[&str],
        outlives: bool,
        options: &[&str],
    ) -> Result<Self> {
        Self::start_inside(None, setup, folder, scheme, names, outlives, options)
    }

    /// The same in another network namespace, at the addresses that the options name.
    pub fn start_inside(
        net: Option<&Net>,
        setup: &Setup,
        folder: &Path,
        scheme: Scheme,
        names: &[&str],
        outlives: bool,
        options: &[&str],
    ) -> Result<Self> {
        let (tls, log, output) =
            (folder.join("tls"), folder.join("calls.jsonl"), folder.join("mcp-server.log"));
        std::fs::create_dir_all(folder)?;
        let mut words = net.map(Net::enter).unwrap_or_default();
        words.push(setup.python().into());
        let mut words = words.into_iter();
        let first = words.next().context("no command")?;
        let program = Program::new("the MCP server", first, output.clone());
        let mut program = words
            .fold(program, Program::arg)
            .arg(workspace().join("tests/server/server.py"))
            .arg("--log")
            .arg(&log)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .outlives(outlives);
        if scheme == Scheme::Https {
            program = program.arg("--tls").arg(&tls);
        }
        for name in names {
            program = program.arg("--name").arg(name);
        }
        for option in options {
            program = program.arg(option);
        }
        let mut daemon = program.start()?;
        let ready = until_ready(&mut daemon)?;
        let path = if options.contains(&LEGACY_SSE) { "/sse" } else { "/mcp" };
        Ok(Self { daemon, scheme, port: ready.port, path, tls, log })
    }

    /// Starts `swift.py` instead: no SDK, plain HTTP on 127.0.0.1, and each call takes so long.
    pub fn start_swift(setup: &Setup, folder: &Path, delay: Duration) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let log = folder.join("calls.jsonl");
        let mut daemon = Program::new("the MCP server", setup.python(), folder.join("mcp-server.log"))
            .arg(workspace().join("tests/server/swift.py"))
            .arg("--log")
            .arg(&log)
            .arg("--delay-ms")
            .arg(delay.as_millis().to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .start()?;
        let port = until_ready(&mut daemon)?.port;
        Ok(Self { daemon, scheme: Scheme::Http, port, path: "/mcp", tls: folder.join("tls"), log })
    }

    /// Where it notes each call that it executes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Its URL by a host name, or by an address (`127.0.0.1`, `[::1]`).
    pub fn url(&self, host: &str) -> String {
        let scheme = match self.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        };
        format!("{scheme}://{host}:{}{}", self.port, self.path)
    }

    /// The CA of its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.tls.join("ca.pem")
    }

    /// Its certificate and key, for other servers of the same names.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        (self.tls.join("server.pem"), self.tls.join("server.key"))
    }

    /// What a client needs that calls it directly.
    pub fn trust(&self) -> Option<Trust> {
        (self.scheme == Scheme::Https).then(|| Trust::only(&self.ca()))
    }

    /// The calls it has executed, in order.
    pub fn executed(&self) -> Result<Vec<Executed>> {
        let text = match std::fs::read_to_string(&self.log) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).context("a line of the server's log")).collect()
    }
}

fn until_ready(daemon: &mut Daemon) -> Result<Ready> {
    let output = daemon.log_path().to_owned();
    daemon.until_ready(START, || {
        let text = std::fs::read_to_string(&output)?;
        let line =
            text.split_inclusive('\n').find(|line| line.starts_with("{\"ready\"") && line.ends_with('\n'));
        line.map(|line| serde_json::from_str(line).context("the server's ready line")).transpose()
    })
}
