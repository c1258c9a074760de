//! Lineage: the one who reads what the kernel tells of processes, keeps the table of them true, and selects what comes to be.
//!
//! Enters: the ring of events, the cgroup2 hierarchy, /proc. Leaves: [`Processes`], the hooks' tables, and records of what no hook
//! can see. Must never: wait for a job's process, since every job's events wait behind it.

mod notes;
mod seeds;
mod sockets;
pub mod stdio;

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_core::mask::Masked;
use weir_core::record::AgentEvent;
use weir_ebpf::task::{TaskEvent, event};

use crate::account::{Accounts, Extent};
use crate::config::{Select, Stdio};
use crate::kernel::{Hooks, KernelError, TaskEvents, Told, since_boot};
use crate::ledger::Ledger;
use crate::netns::Namespaces;
use crate::process::{Key, Process, Processes, Readers, proc};
use crate::select::{Scan, SelectError, Selection};
use notes::Losses;

/// How long an event may lie unread, unless the kernel asks for attention.
const LOOK: Duration = Duration::from_millis(10);
/// How often the hierarchy is looked at, should an event of a new cgroup have been lost.
const SCAN: Duration = Duration::from_secs(1);
/// How often the table is compared with what is there.
const RECONCILE: Duration = Duration::from_secs(5);
/// How many records may wait for the ledger. Past it they are counted.
const NOTES: usize = 4096;
/// How many processes' own memories are read at a time, of one job a quarter of them. Past it the process is not asked.
const ENRICHED_AT_A_TIME: usize = 64;

/// How many that wait are answered by one look, at least.
const ASKED_AT_A_TIME: usize = 1024;

/// Marks the job of a selected executable's start.
const EXECUTABLE_JOB: u64 = 1 << 63;

/// What is wrong with the selection, or with the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("another reader has the kernel's events of processes")]
    Taken,
    #[error("cannot make a pair of sockets: {0}")]
    Sockets(#[from] std::io::Error),
}

/// See the module.
pub struct Lineage {
    hooks: Arc<Hooks>,
    accounts: Arc<Accounts>,
    processes: Arc<Processes>,
    namespaces: Arc<Namespaces>,
    selection: Selection,
    patterns: Vec<String>,
    events: TaskEvents,
    /// Says that somebody waits for what the kernel told.
    asked: UnixStream,
    notes: mpsc::Sender<AgentEvent<Masked<String>>>,
    written: Option<mpsc::Receiver<AgentEvent<Masked<String>>>>,
    sockets: sockets::Told,
    enriching: Arc<Readers>,
    runtime: Handle,
    told: Losses,
    unwritten: u64,
    /// Whether the start is over.
    is_following: bool,
}

impl Lineage {
    /// Attaches the hooks and selects what there is; when it returns, what is selected is followed. To be called on a
    /// runtime, which [`Lineage::run`] needs.
    pub fn start(
        hooks: Arc<Hooks>,
        accounts: Arc<Accounts>,
        select: &Select,
        stdio: &Stdio,
        namespaces: Arc<Namespaces>,
    ) -> Result<Self, LineageError> {
        let (notes, written) = mpsc::channel(NOTES);
        let (asks, asked) = UnixStream::pair()?;
        asks.set_nonblocking(true)?;
        asked.set_nonblocking(true)?;
        accounts.processes().ask_through(asks);
        let mut own = Self {
            asked,
            events: hooks.task_events()?.ok_or(LineageError::Taken)?,
            selection: Selection::new(select)?,
            patterns: stdio.patterns.clone(),
            notes,
            written: Some(written),
            sockets: sockets::Told::default(),
            enriching: Arc::new(Readers::new(ENRICHED_AT_A_TIME)),
            runtime: Handle::current(),
            told: Losses::default(),
            unwritten: 0,
            is_following: false,
            hooks,
            processes: accounts.processes().clone(),
            accounts,
            namespaces,
        };
        own.selection.begin(&own.hooks, &own.accounts)?;
        // Tags of processes that ended while nobody followed them.
        own.reconcile()?;
        own.scan()?;
        own.selection.settle(&own.hooks)?;
        own.seed_others();
        // Those that have left what is selected, and were followed by an agent before this one.
        for (pid, tag) in own.hooks.tags()? {
            own.describe_tagged(pid, tag);
        }
        if let Some(fault) = own.hooks.socket_fault() {
            tracing::info!(fault, "sockets of unseen families are looked for each second");
        }
        own.is_following = true;
        own.processes.told_until(0);
        Ok(own)
    }

    /// Follows processes until the agent ends. What is to be recorded goes to the ledger.
    pub async fn run(mut self, ledger: Ledger, ending: CancellationToken) {
        let Some(mut written) = self.written.take() else { return };
        let following = tokio::task::spawn_blocking(move || self.follow(&ending));
        // Until the follower has let its end go.
        while let Some(event) = written.recv().await {
            if let Err(error) = ledger.note(event).await {
                tracing::error!(%error, "an event of lineage was not recorded");
            }
        }
        if let Err(error) = following.await {
            tracing::error!(%error, "the reader of processes failed");
        }
    }

    fn follow(&mut self, ending: &CancellationToken) {
        let (mut scanned, mut reconciled) = (Instant::now(), Instant::now());
        while !ending.is_cancelled() {
            self.wait();
            self.drain();
            if scanned.elapsed() >= SCAN {
                scanned = Instant::now();
                if let Err(error) = self.scan() {
                    tracing::error!(%error, "cannot look for new cgroups");
                }
                self.look_for_unseen_sockets();
                self.tell_losses();
            }
            if reconciled.elapsed() >= RECONCILE {
                reconciled = Instant::now();
                if let Err(error) = self.reconcile() {
                    tracing::error!(%error, "cannot compare the table of processes");
                }
            }
        }
        self.drain();
        self.tell_losses();
        // Nobody reads on: nothing is to be waited for any more.
        self.processes.told_until(u64::MAX);
    }

    /// Until the kernel, or a connection whose process is to be known, asks for attention, or it is time to look.
    fn wait(&mut self) {
        let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
        let sources = [self.events.as_fd(), self.asked.as_fd()];
        // An interrupted wait is a short one.
        let _ = poll(&mut sources.map(|source| PollFd::new(source, PollFlags::POLLIN)), timeout);
        // What is asked for after this, the next look answers; of more than so many the rest makes that a short wait.
        let _ = self.asked.read(&mut [0; ASKED_AT_A_TIME]);
    }

    /// Takes in all that was told by now.
    fn drain(&mut self) {
        let now = nanos(since_boot());
        while let Some(told) = self.events.take() {
            self.take(&told);
        }
        self.processes.told_until(now);
    }

    fn take(&mut self, told: &Told) {
        if told.event.kind == event::CGROUP {
            return self.made(told.event.cgroup_id, &String::from_utf8_lossy(&told.path));
        }
        let key = Key { pid: told.event.tgid, start: told.event.start };
        let is_known = self.processes.of(key).is_some();
        let Some(process) = self.processes.apply(told) else { return };
        self.look_for_another_namespace(told);
        match told.event.kind {
            event::EXEC => {
                self.name_job(&told.event, &process);
                self.enrich(&process);
                self.look_for_stdio(&process, &told.arguments);
            }
            // It comes from elsewhere, with what it has open.
            event::MOVE if !is_known => self.describe_seeded(&process),
            event::SOCKET => {
                let (family, errno) = (told.event.detail, told.event.error);
                let more = [("family", sockets::family_name(family)), ("errno", errno.to_string())];
                self.note("socket.unseen", &process, more);
            }
            _ => {}
        }
    }

    /// A process that is in another network namespace may connect soon: the agent should be listening there by then.
    fn look_for_another_namespace(&self, told: &Told) {
        let of = &told.event;
        let lives = matches!(of.kind, event::FORK | event::EXEC | event::MOVE);
        if lives && of.netns_cookie != 0 && of.netns_cookie != self.hooks.netns_cookie() {
            self.namespaces.want(of.netns_cookie, of.tgid, of.tgid, of.job);
        }
    }

    /// The start of a selected executable began a job.
    fn name_job(&self, of: &TaskEvent, process: &Process) {
        if of.by_executable != 0 && of.job == (of.start | EXECUTABLE_JOB) {
            let executable = process.images.last().map_or("", |image| image.executable.as_str());
            self.accounts.begin(of.job, executable.to_owned(), Extent::Lineage);
        }
    }

    /// A cgroup was made.
    fn made(&mut self, id: u64, path: &str) {
        self.processes.know_cgroup(id, path);
        let mut new = Vec::new();
        if let Err(error) = self.selection.made(&self.hooks, &self.accounts, id, path, &mut new) {
            tracing::error!(%error, path, "cannot select a new cgroup");
        }
        for cgroup in new {
            self.seed(&cgroup.path, cgroup.selected);
        }
        self.tell_of_selection();
    }

    fn scan(&mut self) -> Result<(), SelectError> {
        let Scan { new, paths } = self.selection.scan(&self.hooks, &self.accounts)?;
        self.processes.know_cgroups(paths);
        for cgroup in new {
            tracing::debug!(cgroup = cgroup.path, "selected");
            self.seed(&cgroup.path, cgroup.selected);
        }
        self.tell_of_selection();
        Ok(())
    }

    fn end(&self, key: Key) {
        if let Err(error) = self.hooks.untag(key.pid) {
            tracing::error!(%error, pid = key.pid, "a tag of a process that is gone stays");
        }
        self.processes.reconcile(nanos(since_boot()), |other| other != key);
    }

    /// What the process's memory says, read by another thread: the process can make its reader wait.
    fn enrich(&self, process: &Process) {
        let Some(image) = process.images.last() else { return };
        let Some(turn) = self.enriching.turn_now(process.job) else { return };
        let (processes, key, since) = (self.processes.clone(), process.key, image.since);
        self.runtime.spawn_blocking(move || {
            processes.enrich(key, since);
            drop(turn);
        });
    }

    fn look_for_stdio(&mut self, process: &Process, arguments: &[u8]) {
        // What a recorded server starts is that server.
        if process.stdio {
            return;
        }
        let Some(pattern) = stdio::pattern(&self.patterns, arguments).map(str::to_owned) else { return };
        self.processes.is_stdio(process.key);
        self.note("stdio_server_started", process, [("pattern", pattern)]);
    }

    /// Where the kernel does not tell of them: among what selected processes have open.
    fn look_for_unseen_sockets(&mut self) {
        if self.hooks.socket_fault().is_none() {
            return;
        }
        let Ok(tags) = self.hooks.tags() else { return };
        for (pid, tag) in tags {
            let found = self.sockets.unseen(pid);
            let Some(process) = self.processes.of(Key { pid, start: tag.process_start }) else { continue };
            for family in found {
                self.note("socket.unseen", &process, [("family", family), ("errno", "0".into())]);
            }
        }
    }

    /// Puts right what went wrong while events were lost: tags and entries of processes that are gone.
    fn reconcile(&mut self) -> Result<(), KernelError> {
        let tags = self.hooks.tags()?;
        for (pid, tag) in &tags {
            if proc::start_ticks_of(*pid) != Some(crate::process::ticks(tag.process_start))
                && self.hooks.tag_of(*pid)? == Some(*tag)
            {
                self.hooks.untag(*pid)?;
            }
        }
        let is_there = |key: Key| {
            tags.get(&key.pid).is_some_and(|tag| tag.process_start == key.start)
                || proc::start_ticks_of(key.pid) == Some(crate::process::ticks(key.start))
        };
        self.processes.reconcile(nanos(since_boot()), is_there);
        Ok(())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
