//! Who a process was: kept from what the kernel tells of it, so that it is known at once, and after it is gone.
//!
//! Enters: events of the kernel's, in order, and what /proc says while a process lives. Leaves: a [`Process`] for a number
//! and a moment, with its texts masked. Must never: wait for a process's own memory while an event waits.

mod callers;
pub mod container;
pub mod proc;
mod readers;
mod table;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use weir_core::mask::{Masked, Masker};
use weir_core::record::Ancestor;
use weir_ebpf::task::{TaskEvent, event};

pub use self::callers::{Callers, Described};
use self::proc::{Facts, NANOS_A_TICK};
pub use self::readers::Readers;
use self::table::ANCESTORS;
pub use self::table::{Bounds, Image, Key, Process, Table, ticks};
use crate::kernel::Told;

/// The most bytes of a command line that are kept.
pub const MAX_COMMAND_LINE: usize = 4096;
/// The most bytes of any other text that a process chose.
const MAX_TEXT: usize = 512;
/// Of processes that ended, how many are kept, and how long.
const BOUNDS: Bounds = Bounds { ended: 16_384, age: Duration::from_secs(15 * 60) };
/// How long the kernel's word of a process is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// How many processes are looked at at a time for connections: a quarter of the threads that may wait (tokio's own bound is 512).
const READERS: usize = 128;
/// Cgroups that are gone and whose paths are still known.
const GONE_CGROUPS: usize = 4096;

/// All that are known.
#[derive(Debug)]
pub struct Processes {
    table: Mutex<Table>,
    cgroups: Mutex<CgroupPaths>,
    masker: Masker,
    /// Up to when everything was read that the kernel told, in nanoseconds since boot.
    told_until: watch::Sender<u64>,
    /// Wakes whoever reads what the kernel tells, when somebody waits for that.
    asks: OnceLock<UnixStream>,
    callers: Callers,
    /// What job numbers are of.
    epoch: u64,
    /// Who may read a process's own memory now.
    readers: Readers,
}

#[derive(Debug, Default)]
struct CgroupPaths {
    there: BTreeMap<u64, String>,
    gone: BTreeMap<u64, String>,
}

impl Processes {
    /// An empty table. Until somebody says so by [`Processes::told_until`], nothing is waited for.
    pub fn new(masker: Masker, epoch: u64) -> Self {
        Self::with_bounds(masker, epoch, BOUNDS)
    }

    /// The same with other bounds.
    pub fn with_bounds(masker: Masker, epoch: u64, bounds: Bounds) -> Self {
        Self {
            table: Mutex::new(Table::new(bounds)),
            cgroups: Mutex::default(),
            masker,
            told_until: watch::Sender::new(u64::MAX),
            asks: OnceLock::new(),
            callers: Callers::default(),
            epoch,
            readers: Readers::new(READERS),
        }
    }

    /// Everything that the kernel told up to here, in nanoseconds since boot, is in the table.
    pub fn told_until(&self, at: u64) {
        self.told_until.send_replace(at);
    }

    /// A byte comes out of the other end whenever somebody waits for what the kernel told.
    pub fn ask_through(&self, asks: UnixStream) {
        let _ = self.asks.set(asks);
    }

    /// Those that were described lately.
    pub fn callers(&self) -> &Callers {
        &self.callers
    }

    /// The process that had this number at this moment, once the kernel's word of it has been read.
    pub async fn find(&self, pid: u32, at: Duration) -> Option<Process> {
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let mut told = self.told_until.subscribe();
        if let (true, Some(mut asks)) = (*told.borrow() < at, self.asks.get()) {
            // If there is no room for it, enough others have asked.
            let _ = asks.write(&[1]);
        }
        // Past the wait it is looked for all the same.
        let _ = tokio::time::timeout(PATIENCE, told.wait_for(|until| *until >= at)).await;
        self.at(pid, at)
    }

    /// The same, by what is known now.
    pub fn at(&self, pid: u32, at: u64) -> Option<Process> {
        lock(&self.table).at(pid, at).cloned()
    }

    pub fn of(&self, key: Key) -> Option<Process> {
        lock(&self.table).of(key).cloned()
    }

    /// Takes in what the kernel told. Gives the process as it is after that.
    pub fn apply(&self, told: &Told) -> Option<Process> {
        let of = &told.event;
        let key = Key { pid: of.tgid, start: of.start };
        match of.kind {
            event::FORK => self.forked(key, of),
            event::EXEC => self.became(key, told),
            event::EXIT => {
                let mut table = lock(&self.table);
                table.exited(key, of.at);
                return table.of(key).cloned();
            }
            event::MOVE | event::SOCKET => self.moved(key, of),
            _ => return None,
        }
        self.of(key)
    }

    /// A process that was there before it could be followed; with its start, if the kernel has told that more exactly than
    /// /proc does. None: it is gone.
    pub fn adopt(&self, pid: u32, start: Option<u64>, job: u64) -> Option<Process> {
        let facts = Facts::read(pid)?;
        let key = Key { pid, start: start.unwrap_or(facts.start_ticks * NANOS_A_TICK) };
        if ticks(key.start) != facts.start_ticks {
            return None;
        }
        if let Some(known) = self.of(key) {
            return Some(known);
        }
        let process = self.described(key, job, &facts);
        lock(&self.table).put(process.clone());
        Some(process)
    }

    /// What the process's environment and arguments say, read from its own memory: may wait, and belongs on a thread of its
    /// own. Only texts of the very process are taken.
    pub fn enrich(&self, key: Key, since: u64) {
        let environment = proc::environment(key.pid).unwrap_or_default();
        let command_line = proc::command_line(key.pid).unwrap_or_default();
        let is_same = proc::start_ticks_of(key.pid) == Some(ticks(key.start));
        if !is_same {
            return;
        }
        let ci = crate::identity::ci_job(&environment, &self.masker);
        let command_line = self.command_line(&command_line);
        let mut table = lock(&self.table);
        let Some(process) = table.of_mut(key) else { return };
        if !ci.provider.is_empty() {
            process.ci = Arc::new(ci);
        }
        // Should it have become yet another program meanwhile, its event brings its own.
        if let Some(image) = process.images.last_mut().filter(|image| image.since == since)
            && !command_line.as_str().is_empty()
        {
            image.command_line = command_line;
        }
    }

    /// Takes an entry back that was made in vain.
    pub fn forget(&self, key: Key) {
        lock(&self.table).forget(key);
    }

    /// From here on what it makes is of this stdio server.
    pub fn is_stdio(&self, key: Key) {
        if let Some(process) = lock(&self.table).of_mut(key) {
            process.stdio = true;
        }
    }

    /// Ends the entries of processes of whose end the kernel's word was lost.
    pub fn reconcile(&self, now: u64, is_there: impl Fn(Key) -> bool) {
        let mut table = lock(&self.table);
        let missing: Vec<Key> =
            table.living().map(|process| process.key).filter(|key| !is_there(*key)).collect();
        for key in missing {
            table.exited(key, now);
        }
        table.evict(now);
    }

    /// How many entries had to go before their time.
    pub fn evicted(&self) -> u64 {
        lock(&self.table).evicted()
    }

    pub fn len(&self) -> usize {
        lock(&self.table).len()
    }

    pub fn is_empty(&self) -> bool {
        lock(&self.table).is_empty()
    }

    /// The cgroups that are there.
    pub fn know_cgroups(&self, paths: BTreeMap<u64, String>) {
        let mut cgroups = lock(&self.cgroups);
        let before = std::mem::replace(&mut cgroups.there, paths);
        for (id, path) in before {
            if !cgroups.there.contains_key(&id) {
                cgroups.gone.insert(id, path);
            }
        }
        // Numbers of cgroups grow: the oldest go.
        while cgroups.gone.len() > GONE_CGROUPS {
            cgroups.gone.pop_first();
        }
    }

    pub fn know_cgroup(&self, id: u64, path: &str) {
        lock(&self.cgroups).there.insert(id, path.trim_start_matches('/').to_owned());
    }

    /// The path of a cgroup that is or was, from the hierarchy's root.
    pub fn cgroup_path(&self, id: u64) -> Option<String> {
        let cgroups = lock(&self.cgroups);
        let path = cgroups.there.get(&id).or_else(|| cgroups.gone.get(&id))?;
        Some(format!("/{path}"))
    }

    /// The name of a job in records.
    pub fn job_key(&self, job: u64) -> String {
        format!("{:016x}-{job:016x}", self.epoch)
    }

    /// For each connection's own look at its process.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    pub fn masker(&self) -> &Masker {
        &self.masker
    }

    fn forked(&self, key: Key, of: &TaskEvent) {
        let forker = Key { pid: of.parent_tgid, start: of.parent_start };
        let known = lock(&self.table).of(forker).cloned();
        let cgroup = self.cgroup(of.cgroup_id, key.pid);
        let (container_id, cgroup) = (container::id(&cgroup).to_owned(), (of.cgroup_id, self.text(&cgroup)));
        let process = match known {
            Some(forker) => {
                let mut parents = vec![Arc::new(forker.ancestor())];
                parents.extend(forker.parents.iter().take(ANCESTORS - 1).cloned());
                let image = forker.images.last().cloned();
                let images = image.map(|image| Image { since: of.start, ..image }).into_iter().collect();
                Process { key, parents, images, exited: None, ..forker }
            }
            None => {
                let executable = self.text(&proc::executable(forker.pid).unwrap_or_default());
                let command_line = self.text(&lossy(&of.comm));
                Process {
                    images: vec![Image { since: of.start, executable, command_line }],
                    parents: self.ancestors(forker.pid),
                    ..self.described(key, of.job, &Facts::default())
                }
            }
        };
        let (uid, gid, job, netns) = (of.uid, of.gid, of.job, of.netns);
        let (mount_ns, pid_ns) = (of.mount_ns, of.pid_ns);
        let process = Process { uid, gid, job, cgroup, container_id, netns, mount_ns, pid_ns, ..process };
        lock(&self.table).put(process);
    }

    fn became(&self, key: Key, told: &Told) {
        let of = &told.event;
        self.know(key, of);
        let executable = self.text(&executable(key.pid, told));
        let arguments = String::from_utf8_lossy(&told.arguments).into_owned();
        let image = Image { since: of.at, executable, command_line: self.command_line(&arguments) };
        let mut table = lock(&self.table);
        let Some(process) = table.of_mut(key) else { return };
        process.became(image);
        (process.uid, process.gid, process.job) = (of.uid, of.gid, of.job);
        (process.netns, process.mount_ns, process.pid_ns) = (of.netns, of.mount_ns, of.pid_ns);
    }

    fn moved(&self, key: Key, of: &TaskEvent) {
        self.know(key, of);
        let cgroup = self.cgroup(of.cgroup_id, key.pid);
        let mut table = lock(&self.table);
        let Some(process) = table.of_mut(key) else { return };
        process.job = of.job;
        process.cgroup = (of.cgroup_id, self.text(&cgroup));
        let container_id = container::id(&cgroup);
        if !container_id.is_empty() {
            container_id.clone_into(&mut process.container_id);
        }
    }

    /// Makes an entry for a process of which nothing was told before.
    fn know(&self, key: Key, of: &TaskEvent) {
        if lock(&self.table).of(key).is_some() {
            return;
        }
        let facts = Facts::read(key.pid).filter(|facts| facts.start_ticks == ticks(key.start));
        let process = self.described(key, of.job, &facts.unwrap_or_default());
        lock(&self.table).put(process);
    }

    fn described(&self, key: Key, job: u64, facts: &Facts) -> Process {
        let cgroup_id = {
            let cgroups = lock(&self.cgroups);
            let path = facts.cgroup.trim_start_matches('/');
            cgroups.there.iter().find(|(_, there)| *there == path).map_or(0, |(id, _)| *id)
        };
        Process {
            key,
            uid: facts.uid,
            gid: facts.gid,
            job,
            cgroup: (cgroup_id, self.text(&facts.cgroup)),
            netns: facts.netns,
            mount_ns: facts.mount_ns,
            pid_ns: facts.pid_ns,
            container_id: container::id(&facts.cgroup).to_owned(),
            parents: if facts.parent == 0 { Vec::new() } else { self.ancestors(facts.parent) },
            images: vec![Image {
                since: key.start,
                executable: self.text(&facts.executable),
                command_line: self.text(&facts.comm),
            }],
            ci: Arc::default(),
            stdio: false,
            exited: None,
        }
    }

    /// From /proc: the process of this number, and those above it.
    fn ancestors(&self, nearest: u32) -> Vec<Arc<Ancestor<Masked<String>>>> {
        let mut ancestors = Vec::new();
        let mut pid = nearest;
        while pid != 0 && ancestors.len() < ANCESTORS {
            let Some(facts) = Facts::read(pid) else { break };
            let executable = self.text(&facts.executable);
            ancestors.push(Arc::new(Ancestor { pid, start_time: Some(facts.start_ticks), executable }));
            pid = facts.parent;
        }
        ancestors
    }

    /// The path of a cgroup, by its number, else by one of its processes.
    fn cgroup(&self, id: u64, pid: u32) -> String {
        self.cgroup_path(id).or_else(|| proc::cgroup(pid)).unwrap_or_default()
    }

    fn text(&self, text: &str) -> Masked<String> {
        self.masker.text(text).truncate(MAX_TEXT)
    }

    /// Arguments are separated by zeros.
    fn command_line(&self, arguments: &str) -> Masked<String> {
        self.masker.text(&spaced(arguments)).truncate(MAX_COMMAND_LINE)
    }
}

/// Arguments that are separated by zeros, separated by spaces.
pub fn spaced(arguments: &str) -> String {
    arguments.trim_end_matches('\0').replace('\0', " ")
}

/// What a process runs: by its link in /proc, as long as that is the file of which the kernel told; else by the name that it
/// was started under.
fn executable(pid: u32, told: &Told) -> String {
    use std::os::unix::fs::MetadataExt;
    let link = proc::folder(pid).join("exe");
    let is_it = |link: &Path| std::fs::metadata(link).is_ok_and(|file| file.ino() == told.inode);
    if told.inode != 0
        && is_it(&link)
        && let Some(path) = proc::executable(pid)
    {
        return path;
    }
    String::from_utf8_lossy(&told.path).into_owned()
}

fn lossy(comm: &[u8]) -> String {
    String::from_utf8_lossy(comm.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// What these locks guard stays whole when a thread panics with one in hand.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
