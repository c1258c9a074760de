//! The agent, `weir agent`, with a configuration of its own, and what `weir status` says of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::daemon::{Daemon, Program};
use crate::job::Trust;
use crate::places::binary;
use crate::service::Service;

const START: Duration = Duration::from_secs(60);

/// What the agent is told; written as its TOML.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub tenant: String,
    pub default_action: String,
    pub cgroups: Vec<PathBuf>,
    /// Where its hooks outlive it.
    pub pin_dir: PathBuf,
    /// What is in `[failure]`.
    pub failure: String,
    /// None: root.
    pub service: Option<Service>,
    pub collector: Option<PathBuf>,
    pub protect: Vec<u16>,
    pub names: Vec<String>,
    pub cidrs: Vec<String>,
    pub ports: Vec<u16>,
    pub roots: Vec<PathBuf>,
    /// What else is in `[upstream]`.
    pub upstream: String,
    pub allowed_signers: Option<PathBuf>,
    pub deadline: String,
    pub keepalive: String,
    /// What else is in `[approval]`.
    pub approval: String,
    /// `[[rule]]` tables, and whatever else belongs at the end.
    pub rules: String,
}

impl AgentConfig {
    /// The configuration file.
    pub fn toml(&self, state: &Path) -> String {
        let mut text = format!(
            "tenant = {:?}\nstate_dir = {:?}\ndefault_action = {:?}\n\n[select]\nattach = {:?}\ncgroups = {:?}\n",
            self.tenant, state, self.default_action, self.cgroups, self.cgroups
        );
        text += &format!("\n[kernel]\npin_dir = {:?}\n\n[failure]\n{}\n", self.pin_dir, self.failure);
        if let Some(socket) = &self.collector {
            text += &format!("\n[collector]\nsocket = {socket:?}\n");
        }
        text += &format!("\n[protect]\nports = {:?}\n", self.protect);
        text += &format!(
            "\n[[intercept]]\nnames = {:?}\ncidrs = {:?}\nports = {:?}\n",
            self.names, self.cidrs, self.ports
        );
        text += &format!("\n[upstream]\nroots = {:?}\n{}\n", self.roots, self.upstream);
        if let Some(signers) = &self.allowed_signers {
            text += &format!(
                "\n[approval]\nallowed_signers = {signers:?}\ndeadline = {:?}\nkeepalive = {:?}\n{}\n",
                self.deadline, self.keepalive, self.approval
            );
        }
        text + "\n" + &self.rules
    }
}

/// What `weir status --json` says.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentStatus {
    pub ready: bool,
    pub pid: u32,
    pub origin: String,
    pub listen: Listen,
    pub connects: Connects,
    /// What this host does not let Weir do.
    pub missing: Vec<String>,
    pub spool: Spool,
    pub ca: Authority,
}

/// Where redirected connections are led.
#[derive(Debug, Clone, Deserialize)]
pub struct Listen {
    pub v4: SocketAddr,
    pub v6: SocketAddr,
}

/// The kernel's own counts.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Connects {
    pub redirected: u64,
    pub passed: u64,
    pub refused: u64,
    pub failed: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Spool {
    pub segments: u64,
    pub unshipped_events: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Authority {
    /// Its distinguished name.
    pub issuer: String,
    pub certificate: PathBuf,
    pub bundle: PathBuf,
}

impl Authority {
    /// The common name, by which clients tell the issuer they saw.
    pub fn common_name(&self) -> &str {
        let after = self.issuer.rsplit_once("CN=").map_or(self.issuer.as_str(), |(_, name)| name);
        after.split(',').next().unwrap_or(after)
    }
}

/// The running agent.
#[derive(Debug)]
pub struct Agent {
    program: Program,
    /// The same with `--replace`.
    replacing: Program,
    daemon: Daemon,
    config: PathBuf,
    state: PathBuf,
}

impl Agent {
    pub fn start(config: &AgentConfig, folder: &Path, log: &str, outlives: bool) -> Result<Self> {
        let (file, state) = (folder.join("weir.toml"), folder.join("state"));
        std::fs::write(&file, config.toml(&state))?;
        let command = match &config.service {
            Some(service) => {
                Service::prepare_pins(&config.pin_dir)?;
                service.command(folder, &state)?
            }
            None => vec![binary("weir")?.into()],
        };
        let (first, others) = command.split_first().context("no command")?;
        let program = || {
            let program = Program::new("the agent", first, folder.join("agent.log"));
            others
                .iter()
                .fold(program, Program::arg)
                .arg("agent")
                .arg("--config")
                .arg(&file)
                .env("RUST_LOG", log)
                .outlives(outlives)
        };
        let (program, replacing) = (program(), program().arg("--replace"));
        let daemon = up(&program, &file)?;
        Ok(Self { program, replacing, daemon, config: file, state })
    }

    /// Starts it again, after it was ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = up(&self.program, &self.config)?;
        Ok(())
    }

    /// Starts another in its place, as an upgrade does. What is left of the old one is given back.
    pub fn replace(&mut self) -> Result<Daemon> {
        let new = up(&self.replacing, &self.config)?;
        Ok(std::mem::replace(&mut self.daemon, new))
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    pub fn status(&self) -> Result<AgentStatus> {
        status(&self.config)?.context("the agent is not ready")
    }

    /// What a job needs to trust Weir.
    pub fn trust(&self) -> Trust {
        Trust { extra: self.state.join("ca/ca.pem"), bundle: self.state.join("ca/bundle.pem") }
    }
}

fn up(program: &Program, config: &Path) -> Result<Daemon> {
    let mut daemon = program.start()?;
    let pid = daemon.pid();
    // By pid: an earlier agent's socket must not pass for this one's.
    daemon.until_ready(START, || Ok(status(config)?.filter(|status| status.ready && status.pid == pid)))?;
    Ok(daemon)
}

/// None while there is no agent to answer.
fn status(config: &Path) -> Result<Option<AgentStatus>> {
    let output = Command::new(binary("weir")?).args(["status", "--json", "--config"]).arg(config).output()?;
    match output.status.code() {
        Some(0) => {
            serde_json::from_slice(&output.stdout).map(Some).context("what `weir status --json` printed")
        }
        Some(2) => bail!("`weir status` was used wrongly: {}", String::from_utf8_lossy(&output.stderr)),
        _ => Ok(None),
    }
}
