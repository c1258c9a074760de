//! The collector, `weir-collector`: its service, and its command line as an analyst uses it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::daemon::{Daemon, Program};
use crate::places::{binary, free_port};
use crate::store::Store;

const START: Duration = Duration::from_secs(60);

/// The collector's service on a socket of its own.
#[derive(Debug)]
pub struct Collector {
    program: Program,
    daemon: Daemon,
    config: PathBuf,
    socket: PathBuf,
    for_others: Option<ForOthers>,
}

/// Where agents of other hosts come in.
#[derive(Debug, Clone)]
pub struct ForOthers {
    pub port: u16,
    /// The folder of their CA.
    pub ca: PathBuf,
}

impl ForOthers {
    /// A CA in `folder`, whose collector is called by any name of this host's loopback.
    fn make(folder: &Path) -> Result<Self> {
        let ca = folder.join("ca");
        if !ca.exists() {
            let dir = ca.display().to_string();
            run(
                &folder.join("none.toml"),
                &["ca", "init", "--dir", &dir, "--name", "localhost", "--name", "127.0.0.1"],
            )?;
        }
        Ok(Self { port: free_port()?, ca })
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Collector {
    /// Migrates the store and starts the service, for agents of this very user.
    pub fn start(store: &Store, folder: &Path, log: &str, outlives: bool) -> Result<Self> {
        Self::start_for(store, folder, log, outlives, None)
    }

    /// The same with something between it and its store, at this URL.
    pub fn start_behind(url: &str, store: &Store, folder: &Path, log: &str) -> Result<Self> {
        Self::start_at(url, store, folder, log, false, None, None)
    }

    /// The same for agents of another user.
    pub fn start_for(
        store: &Store,
        folder: &Path,
        log: &str,
        outlives: bool,
        agent_uid: Option<u32>,
    ) -> Result<Self> {
        Self::start_at(&store.url(), store, folder, log, outlives, agent_uid, None)
    }

    /// For agents of other hosts, too.
    pub fn start_for_others(store: &Store, folder: &Path, log: &str, outlives: bool) -> Result<Self> {
        let others = ForOthers::make(folder)?;
        Self::start_at(&store.url(), store, folder, log, outlives, None, Some(others))
    }

    fn start_at(
        url: &str,
        store: &Store,
        folder: &Path,
        log: &str,
        outlives: bool,
        agent_uid: Option<u32>,
        for_others: Option<ForOthers>,
    ) -> Result<Self> {
        let (config, socket) = (folder.join("collector.toml"), folder.join("collector.sock"));
        let mut text = format!(
            "[store]\nurl = \"{}\"\nuser = \"default\"\npassword_file = \"{}\"\ndatabase = \"weir\"\n\n\
             [listen]\nsocket = \"{}\"\nagent_uids = [{}]\n",
            url,
            store.secret().display(),
            socket.display(),
            agent_uid.unwrap_or(0),
        );
        if let Some(ForOthers { port, ca }) = &for_others {
            text += &format!("tls = \"127.0.0.1:{port}\"\nca = {ca:?}\n");
        }
        std::fs::write(&config, text)?;
        run(&config, &["migrate"])?;
        let program = Program::new("the collector", binary("weir-collector")?, folder.join("collector.log"))
            .arg("--config")
            .arg(&config)
            .arg("serve")
            .env("RUST_LOG", log)
            .outlives(outlives);
        let daemon = up(&program, &socket)?;
        if let Some(uid) = agent_uid {
            // Of the group that both would be in.
            std::os::unix::fs::chown(&socket, None, Some(uid))?;
        }
        Ok(Self { program, daemon, config, socket, for_others })
    }

    /// Starts it again, after it was ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = up(&self.program, &self.socket)?;
        Ok(())
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where agents of other hosts come in, if they do.
    pub fn for_others(&self) -> Option<&ForOthers> {
        self.for_others.as_ref()
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    /// `weir-collector ARGUMENTS...`, its output; fails when it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(&self.config, arguments)
    }

    /// The same, whatever its exit code.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        attempt(&self.config, arguments)
    }

    /// Free SQL; each row an object.
    pub fn sql(&self, question: &str) -> Result<Vec<Value>> {
        rows(&self.run(&["query", "--json", question])?)
    }
}

fn up(program: &Program, socket: &Path) -> Result<Daemon> {
    let mut daemon = program.start()?;
    daemon.until_ready(START, || Ok(UnixStream::connect(socket).is_ok().then_some(())))?;
    Ok(daemon)
}

fn attempt(config: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("weir-collector")?);
    command.arg("--config").arg(config).args(arguments).stdin(std::process::Stdio::null());
    command.output().context("running weir-collector")
}

fn run(config: &Path, arguments: &[&str]) -> Result<String> {
    let output = attempt(config, arguments)?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`weir-collector {}` failed ({}): {}", arguments.join(" "), output.status, errors.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Rows as a JSON array, or as an object a line.
pub fn rows(json: &str) -> Result<Vec<Value>> {
    if json.trim_start().starts_with('[') {
        return serde_json::from_str(json).with_context(|| format!("rows: {json}"));
    }
    json.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).with_context(|| format!("a row: {line}")))
        .collect()
}
