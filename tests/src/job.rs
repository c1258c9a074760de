//! A pipeline job: a command in a cgroup, under an unprivileged uid, with a parent and an environment like those of a
//! GitHub Actions job.
//!
//! Its environment is made from nothing, so none of this machine's own CA variables reach a client: the only ones are those
//! that the test lists.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::client::{ClientKind, Conversation};
use crate::daemon::tail;
use crate::machine::JOB_UID;
use crate::net::Net;
use crate::places::Setup;
use crate::wait::until;

/// Joins the cgroup named first, then becomes the rest of the arguments. No code runs between fork and exec this way.
const JOIN: &str = "echo $$ > \"$1/cgroup.procs\" || exit 97; shift; exec \"$@\"";
/// Runs its arguments as a child and waits: the shell stays, as the parent that the agent sees.
const WORKER: &str = "\"$@\"; exit $?";

/// Which certificates the job trusts: the listed CA variables, and no other difference between a run with Weir and one without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// For clients that add to their roots (Node).
    pub extra: PathBuf,
    /// For clients whose roots are replaced (OpenSSL, Python, curl).
    pub bundle: PathBuf,
}

impl Trust {
    /// One file for all.
    pub fn only(file: &Path) -> Self {
        Self { extra: file.to_path_buf(), bundle: file.to_path_buf() }
    }

    /// The CA variables, by name.
    pub fn variables(&self) -> [(&'static str, &Path); 4] {
        [
            ("NODE_EXTRA_CA_CERTS", &self.extra),
            ("SSL_CERT_FILE", &self.bundle),
            ("REQUESTS_CA_BUNDLE", &self.bundle),
            ("CURL_CA_BUNDLE", &self.bundle),
        ]
    }
}

/// What the runner tells a job of itself.
pub const GITHUB: [(&str, &str); 14] = [
    ("CI", "true"),
    ("GITHUB_ACTIONS", "true"),
    ("GITHUB_ACTOR", "octocat"),
    ("GITHUB_EVENT_NAME", "push"),
    ("GITHUB_JOB", "deploy"),
    ("GITHUB_REF", "refs/heads/main"),
    ("GITHUB_REPOSITORY", "example/payments"),
    ("GITHUB_RUN_ATTEMPT", "1"),
    ("GITHUB_RUN_ID", "7312905518"),
    ("GITHUB_SERVER_URL", "https://github.com"),
    ("GITHUB_SHA", "3f9a2c51d7e84b06a1c5f20d98e7b6430ac1d2ef"),
    ("GITHUB_WORKFLOW", "release"),
    ("RUNNER_ENVIRONMENT", "self-hosted"),
    ("RUNNER_NAME", "runner-01"),
];

/// A job to run.
#[derive(Debug)]
pub struct JobPlan<'a> {
    pub setup: &'a Setup,
    pub cgroup: &'a Cgroup,
    /// Gets the job's home and output; jobs can pass through it.
    pub folder: &'a Path,
    /// Names the job's files.
    pub name: String,
    pub trust: Option<Trust>,
}

impl JobPlan<'_> {
    /// Runs one of the clients. `arguments` follow the URL.
    pub fn client(&self, kind: ClientKind, url: &str, arguments: &[&str]) -> Result<Job> {
        self.start(None, &self.client_words(kind, url, arguments))
    }

    /// Runs any command.
    pub fn command(&self, command: &[OsString]) -> Result<Job> {
        self.start(None, command)
    }

    /// Runs a command with our own rights: what is no job, but has a job's environment and place.
    pub fn command_as_root(&self, command: &[OsString]) -> Result<Job> {
        self.start_as(None, None, command)
    }

    /// Runs one of the clients in another network namespace.
    pub fn client_in(&self, net: &Net, kind: ClientKind, url: &str, arguments: &[&str]) -> Result<Job> {
        self.start(Some(net), &self.client_words(kind, url, arguments))
    }

    /// Runs any command in another network namespace.
    pub fn command_in(&self, net: &Net, command: &[OsString]) -> Result<Job> {
        self.start(Some(net), command)
    }

    fn client_words(&self, kind: ClientKind, url: &str, arguments: &[&str]) -> Vec<OsString> {
        let mut command = client_command(self.setup, kind);
        command.push(url.into());
        command.extend(arguments.iter().map(Into::into));
        command
    }

    fn start(&self, net: Option<&Net>, command: &[OsString]) -> Result<Job> {
        self.start_as(net, Some(JOB_UID), command)
    }

    fn start_as(&self, net: Option<&Net>, user: Option<u32>, command: &[OsString]) -> Result<Job> {
        let home = self.folder.join(format!("{}.home", self.name));
        std::fs::create_dir_all(&home)?;
        std::os::unix::fs::chown(&home, Some(JOB_UID), Some(JOB_UID))?;
        let [output, errors] = ["out", "err"].map(|end| self.folder.join(format!("{}.{end}", self.name)));
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", JOIN, "sh"]).arg(self.cgroup.path());
        shell.args(net.map(Net::enter).unwrap_or_default());
        shell.args(["setpriv", "--pdeathsig", "KILL"]);
        if let Some(id) = user.map(|user| user.to_string()) {
            shell.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"]);
        }
        shell.arg("--");
        shell.arg(self.setup.runner_worker()).args(["-c", WORKER, "Runner.Worker"]).args(command);
        shell.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C.UTF-8");
        shell.env("HOME", &home).env("GITHUB_WORKSPACE", &home).envs(GITHUB);
        if let Some(trust) = &self.trust {
            shell.envs(trust.variables());
        }
        shell.current_dir(&home).stdin(Stdio::null());
        shell.stdout(File::create(&output)?).stderr(File::create(&errors)?);
        let child = shell.spawn().with_context(|| format!("starting the job {}", self.name))?;
        Ok(Job { child, output, errors, exit: None })
    }
}

/// The command of a client, up to its URL.
pub fn client_command(setup: &Setup, kind: ClientKind) -> Vec<OsString> {
    match kind {
        ClientKind::TypeScript => vec![setup.node().into(), setup.client_file("client.mjs").into()],
        ClientKind::Python => vec![setup.python().into(), setup.client_file("client.py").into()],
    }
}

/// A job that runs, or has run.
#[derive(Debug)]
pub struct Job {
    child: Child,
    output: PathBuf,
    errors: PathBuf,
    exit: Option<ExitStatus>,
}

impl Job {
    /// One that was started in another way.
    pub(crate) fn of(child: Child, output: PathBuf, errors: PathBuf) -> Self {
        Self { child, output, errors, exit: None }
    }

    /// What the client has told so far.
    pub fn told(&self) -> Result<Conversation> {
        Conversation::read(&self.stdout()?)
    }

    pub fn stdout(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.output)?).into_owned())
    }

    pub fn stderr(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.errors)?).into_owned())
    }

    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait()?;
        }
        Ok(self.exit)
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        until("the job to end", deadline, || self.ended()).with_context(|| {
            format!("its output ends:\n{}\n{}", tail(&self.output, 20), tail(&self.errors, 20))
        })
    }

    /// Waits for its end, and gives what the client told; fails when the client could not begin.
    pub fn finish(&mut self, deadline: Duration) -> Result<Conversation> {
        let exit = self.wait(deadline)?;
        let told = self.told()?;
        if let Some(why) = &told.failed {
            anyhow::bail!("the client failed ({exit}): {why}\n{}", tail(&self.errors, 20));
        }
        if told.tcp_connects.is_none() {
            anyhow::bail!(
                "the client ended early ({exit}):\n{}\n{}",
                tail(&self.output, 20),
                tail(&self.errors, 20)
            );
        }
        Ok(told)
    }

    /// Signals the client itself, which has told its pid; not its parent.
    pub fn signal_client(&mut self, signal: Signal) -> Result<()> {
        let pid = self.told()?.pid.context("the client has not told its pid yet")?;
        if self.ended()?.is_none() {
            kill(Pid::from_raw(pid.cast_signed()), signal)?;
        }
        Ok(())
    }

    /// kill -9 of the worker.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill()?;
            self.exit = Some(self.child.wait()?);
        }
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("a job cannot be ended: {error:#}");
        }
        if std::thread::panicking() || std::env::var_os("NEXTEST").is_some() {
            eprintln!(
                "---- the end of a job's output\n{}\n{}",
                tail(&self.output, 20),
                tail(&self.errors, 20)
            );
        }
    }
}
