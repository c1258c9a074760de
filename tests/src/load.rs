//! Clients that mean harm, in a job of their own, beside a client of another job that makes its calls.
//!
//! In: an attack's name. Out: the times of the good client's calls while that goes on, and without it. How long they may be is
//! not the tests' to say: what else a machine does decides it, too. `cargo xtask bench load` judges it.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::daemon::{Daemon, Program};
use crate::job::JobPlan;
use crate::machine::require_kernel;
use crate::places::{fresh_folder, workspace};
use crate::{Agent, AgentConfig, Cgroup, Job, McpServer, PinFolder, Scheme, Setup, until};

/// What `clients/attack.py` does.
pub const ATTACKS: [&str; 6] =
    ["rapid_reset", "continuation", "slow_heads", "slow_bodies", "slow_readers", "half_open"];
const START: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(120);

/// A program in Python: an attack's name and a port are its arguments.
pub const ATTACKER: &str = include_str!("../clients/attack.py");
const STEADY: &str = include_str!("../clients/steady.py");

/// An agent without a collector, whose work would be measured too, a server of HTTP/2 for each of two jobs.
#[derive(Debug)]
pub struct Scene {
    agent: Agent,
    /// The good client's server, and the others'.
    ports: [u16; 2],
    setup: Setup,
    good: Cgroup,
    bad: Cgroup,
    jobs: usize,
    _servers: [Daemon; 2],
    _certified: McpServer,
    _pins: PinFolder,
    _parent: Cgroup,
    folder: tempfile::TempDir,
}

impl Scene {
    pub fn start() -> Result<Self> {
        require_kernel()?;
        let (setup, folder) = (Setup::complete()?, fresh_folder("load")?);
        let parent = Cgroup::fresh("load")?;
        let (good, bad) = (parent.child("good")?, parent.child("bad")?);
        // For its certificate.
        let place = folder.path().join("server");
        let certified = McpServer::start(&setup, &place, Scheme::Https, &["localhost"], false)?;
        let (server, port) = serve(&setup, folder.path(), &place.join("tls"), "good")?;
        let (other, other_port) = serve(&setup, folder.path(), &place.join("tls"), "bad")?;
        let pins = PinFolder::fresh("load");
        let config = AgentConfig {
            tenant: "load".into(),
            default_action: "allow".into(),
            cgroups: vec![good.path().to_path_buf(), bad.path().to_path_buf()],
            pin_dir: pins.path().to_path_buf(),
            failure: String::new(),
            service: None,
            collector: None,
            protect: vec![],
            names: vec!["localhost".into()],
            cidrs: vec!["127.0.0.0/8".into()],
            ports: vec![port, other_port],
            roots: vec![certified.ca()],
            upstream: String::new(),
            allowed_signers: None,
            deadline: String::new(),
            keepalive: String::new(),
            approval: String::new(),
            // A job may have half of them.
            rules: "[limits]\nflows = 24000\n".into(),
        };
        let agent = Agent::start(&config, folder.path(), "error", false)?;
        Ok(Self {
            agent,
            ports: [port, other_port],
            setup,
            good,
            bad,
            jobs: 0,
            _servers: [server, other],
            _certified: certified,
            _pins: pins,
            _parent: parent,
            folder,
        })
    }

    /// Runs one of the clients.
    fn job(&mut self, attacks: Option<&Cgroup>, script: &str, arguments: &[&str]) -> Result<Job> {
        self.jobs += 1;
        let mut command: Vec<OsString> = vec![self.setup.python().into(), "-c".into(), script.into()];
        command.extend(arguments.iter().map(Into::into));
        let trust = self.agent.trust();
        let plan = JobPlan {
            setup: &self.setup,
            cgroup: attacks.unwrap_or(&self.good),
            folder: self.folder.path(),
            name: format!("job-{}", self.jobs),
            trust: Some(trust),
        };
        plan.command(&command)
    }

    /// What curl says, asked by the good client of its server, with `--write-out` and no more of the answer.
    pub fn curl(&mut self, arguments: &[&str], path: &str, told: &str) -> Result<String> {
        self.jobs += 1;
        let url = format!("https://localhost:{}{path}", self.ports[0]);
        let quiet = ["curl", "--silent", "--show-error", "--max-time", "120", "--output", "/dev/null"];
        let last = ["--write-out", told, &url];
        let words = quiet.iter().chain(arguments).chain(&last);
        let command: Vec<OsString> = words.map(Into::into).collect();
        let plan = JobPlan {
            setup: &self.setup,
            cgroup: &self.good,
            folder: self.folder.path(),
            name: format!("job-{}", self.jobs),
            trust: Some(self.agent.trust()),
        };
        let mut job = plan.command(&command)?;
        let exit = job.wait(WINDOW)?;
        ensure!(exit.success(), "curl {arguments:?} {path}: {}", job.stderr()?);
        job.stdout()
    }

    /// Where its clients can read what is put there.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The most memory that the agent has had so far, in KiB.
    pub fn most_resident_kib(&mut self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.daemon().pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// The times of so many of the good client's calls, in microseconds.
    pub fn window(&mut self, calls: usize) -> Result<Vec<u64>> {
        let (port, calls) = (self.ports[0].to_string(), calls.to_string());
        let mut job = self.job(None, STEADY, &[&port, &calls])?;
        let exit = job.wait(WINDOW)?;
        ensure!(exit.success(), "the good client failed: {}", job.stderr()?);
        serde_json::from_str(&job.stdout()?).context("the good client's times")
    }

    /// The same while an attack goes on.
    pub fn window_with(&mut self, attack: &str, calls: usize) -> Result<Vec<u64>> {
        let port = self.ports[1].to_string();
        // A job of its own, which nobody knows anything of.
        let bad = self.bad.child(&format!("{attack}-{}", self.jobs))?;
        let mut attacker = self.job(Some(&bad), ATTACKER, &[attack, &port])?;
        until("the attack to begin", START, || {
            ensure!(attacker.ended()?.is_none(), "{attack} ended: {}", attacker.stderr()?);
            Ok(attacker.stdout()?.contains("ready").then_some(()))
        })?;
        let times = self.window(calls)?;
        ensure!(attacker.ended()?.is_none(), "{attack} ended: {}", attacker.stderr()?);
        drop(attacker);
        // It was a child of the worker's.
        until("the attackers to be gone", START, || {
            for pid in bad.pids()? {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            Ok(bad.pids()?.is_empty().then_some(()))
        })?;
        Ok(times)
    }
}

fn serve(setup: &Setup, folder: &Path, tls: &Path, whose: &str) -> Result<(Daemon, u16)> {
    #[derive(Deserialize)]
    struct Ready {
        port: u16,
    }
    let log = folder.join(format!("{whose}.log"));
    let program = Program::new("the server of HTTP/2", setup.node(), log.clone())
        .arg(workspace().join("tests/server/both.mjs"))
        .arg(tls.join("server.pem"))
        .arg(tls.join("server.key"));
    let mut daemon = program.start()?;
    let ready: Ready = daemon.until_ready(START, || {
        let text = std::fs::read_to_string(&log)?;
        let line =
            text.split_inclusive('\n').find(|line| line.starts_with("{\"port\"") && line.ends_with('\n'));
        line.map(|line| serde_json::from_str(line).context("the server's port")).transpose()
    })?;
    Ok((daemon, ready.port))
}

/// The time that all but one in a hundred stay below.
pub fn p99(times: &[u64]) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0)
}
