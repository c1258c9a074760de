//! Accounting: what the hooks counted, beside what is recorded. Each connect that does not come here as a connection is
//! told by the hooks in a ring and gets its flow record here; what is owed a record when an agent ends is recorded as a gap
//! by the next; and the hooks' own sums are stated for each job, so that whoever reads the records back can compare.
//!
//! Enters: the ring, the tables of counts. Leaves: flow, gap and completeness records. Must never: take the kernel's sums
//! from what the agent saw, or let go of a connect before its record is on disk.
//!
//! # When a connect has which form
//! counted by the hook -> (redirected) kept with its socket until it is begun -> pending -> taken -> recorded, or
//! counted -> told in the ring -> taken -> recorded. [`Accounts::state`] reads the counts first and the rest in that order,
//! so that nothing is missed on its way: at the record's place in the log, of what the counts hold at most `in_flight`
//! redirected connects are not recorded, and none of the others.

mod jobs;
mod told;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use weir_core::mask::Masked;
use weir_core::record::{
    Completeness, Connect, ConnectReason, ConnectSums, ConnectVerdict, Flow, Gap, GapReason,
};
use weir_ebpf::{JobCounts, counter, verdict};

pub use jobs::Extent;
use jobs::Jobs;

use crate::kernel::{Hooks, KernelError, Origin};
use crate::ledger::{Entry, Ledger, LedgerError};
use crate::process::Processes;

/// How often it is looked whether a job has ended.
const LOOK: Duration = Duration::from_secs(1);
/// The pause before a record that the disk did not take is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the last sums may take.
const LAST_SUMS: Duration = Duration::from_secs(5);

/// Called with each connect that was told of, as soon as it is read.
pub type Listener = Arc<dyn Fn(&Origin) + Send + Sync>;

/// See the module.
pub struct Accounts {
    hooks: Arc<Hooks>,
    ledger: Ledger,
    processes: Arc<Processes>,
    /// How often the sums of a job that goes on are stated.
    every: Duration,
    jobs: Mutex<Jobs>,
    listener: Option<Listener>,
    /// Asks the reader of the ring to answer when all that is in it by now is recorded.
    marks: mpsc::Sender<oneshot::Sender<()>>,
    asked: Mutex<Option<mpsc::Receiver<oneshot::Sender<()>>>>,
    /// Nothing waits for the disk any more.
    ended: CancellationToken,
}

/// Why sums could not be stated.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The agent is ending.
    #[error("nobody reads the ring of connects any more")]
    Unread,
}

impl Accounts {
    pub fn new(
        hooks: Arc<Hooks>,
        ledger: Ledger,
        processes: Arc<Processes>,
        every: Duration,
        listener: Option<Listener>,
    ) -> Arc<Self> {
        let (marks, asked) = mpsc::channel(1);
        let jobs = Mutex::new(Jobs::new());
        Arc::new(Self {
            hooks,
            ledger,
            processes,
            every,
            jobs,
            listener,
            marks,
            asked: Mutex::new(Some(asked)),
            ended: CancellationToken::new(),
        })
    }

    /// A job whose sums are to be stated under this name. One that is known keeps its name.
    pub fn begin(&self, job: u64, name: String, extent: Extent) {
        self.jobs().begin(job, name, extent);
    }

    /// What is known of processes.
    pub fn processes(&self) -> &Arc<Processes> {
        &self.processes
    }

    /// The name of a job in records: unlike any other's, of this host or another.
    pub fn key(&self, job: u64) -> String {
        self.processes.job_key(job)
    }

    /// What a flow record says of its connect. `source` is the address that the client would have had without Weir, if it
    /// was bound to none.
    pub fn connect(&self, origin: &Origin, source: Option<IpAddr>) -> Connect {
        let bound = Some(origin.source.ip()).filter(|ip| !ip.is_unspecified());
        let label = |all: &'static [ConnectVerdict]| all.get(usize::from(origin.verdict)).copied();
        Connect {
            job_key: self.key(origin.job),
            verdict: label(ConnectVerdict::ALL).unwrap_or(ConnectVerdict::Failed),
            reason: ConnectReason::ALL
                .get(usize::from(origin.reason))
                .copied()
                .unwrap_or(ConnectReason::None),
            protocol: origin.protocol,
            at_ns: u64::try_from(origin.connected_at.as_nanos()).unwrap_or(u64::MAX),
            source: bound.or(source).map(|ip| ip.to_string()).unwrap_or_default(),
            source_port: origin.source.port(),
        }
    }

    /// Writes the record of a connect, however long the disk takes, and lets the connect go. Only the end of the ledger or of the
    /// agent ends this; then the next agent records a gap. One that no log can hold is a gap at once, or its job would stay open.
    pub async fn record(&self, origin: &Origin, flow: Flow<Masked<String>>) {
        let mut written = self.write(flow).await;
        if let Err(fault @ (LedgerError::TooLarge(_) | LedgerError::NotCanonical(_))) = &written {
            let Connect { job_key, verdict, .. } = self.connect(origin, None);
            let fault = self.processes.masker().text(&fault.to_string()).truncate(told::MAX_TEXT);
            let detail = BTreeMap::from([("fault".to_owned(), fault)]);
            written = self.write(Gap { job_key, verdict, reason: GapReason::NoRoom, count: 1, detail }).await;
        }
        if written.is_ok()
            && let Err(error) = self.hooks.recorded(origin)
        {
            tracing::error!(%error, "a connect that is recorded stays among those that are not");
        }
    }

    /// Records connections of which only the number is told as gaps, one for each job, and lets the connects go.
    pub async fn no_room(&self, origins: Vec<Origin>) {
        let mut by_job: BTreeMap<(u64, u8), Vec<Origin>> = BTreeMap::new();
        for origin in origins {
            by_job.entry((origin.job, origin.verdict)).or_default().push(origin);
        }
        for of_job in by_job.into_values() {
            let Some(first) = of_job.first() else { continue };
            let Connect { job_key, verdict, .. } = self.connect(first, None);
            let count = of_job.len() as u64;
            let gap = Gap { job_key, verdict, reason: GapReason::NoRoom, count, detail: BTreeMap::new() };
            if self.write(gap).await.is_err() {
                continue;
            }
            for origin in &of_job {
                if let Err(error) = self.hooks.recorded(origin) {
                    tracing::error!(%error, "a connect that is recorded stays among those that are not");
                }
            }
        }
    }

    async fn write(&self, entry: impl Into<Entry> + Clone) -> Result<u64, LedgerError> {
        loop {
            match self.ledger.write_soon(entry.clone()).await {
                Err(
                    error @ (LedgerError::Stopped
                    | LedgerError::PeerGone
                    | LedgerError::TooLarge(_)
                    | LedgerError::NotCanonical(_)),
                ) => {
                    tracing::error!(%error, "a connect was not recorded");
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connect waits for its record");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = self.ended.cancelled() => return Err(error),
                    }
                }
                written => return written,
            }
        }
    }

    /// Reads the ring and states sums until the agent ends. `predecessor` resolves when the agent that handed over, if one
    /// did, is gone: only then is it known what it still owes.
    pub async fn run(self: Arc<Self>, predecessor: Option<oneshot::Receiver<()>>, ending: CancellationToken) {
        let reader = tokio::spawn(self.clone().read(ending.clone()));
        self.settle_owed(predecessor, &ending).await;
        let mut stated = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = ending.cancelled() => break,
            }
            let all = stated.elapsed() >= self.every;
            if all {
                stated = tokio::time::Instant::now();
            }
            if let Err(error) = self.state(all).await {
                tracing::error!(%error, "the hooks' sums were not stated");
            }
        }
        if let Err(error) = reader.await {
            tracing::error!(%error, "the reader of the ring of connects failed");
        }
    }

    /// The last sums, when no connection is served any more. To be called before [`Accounts::run`] is ended.
    pub async fn finish(&self) {
        match tokio::time::timeout(LAST_SUMS, self.state(true)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the hooks' last sums were not stated"),
            Err(_) => tracing::error!("the hooks' last sums were not stated in time"),
        }
    }

    /// The agent ends: a record that the disk does not take now is a gap of the next one's.
    pub fn end(&self) {
        self.ended.cancel();
    }

    /// What an earlier agent had taken and not recorded: it ended before. Each is a gap of one, with what the kernel knew.
    async fn settle_owed(&self, predecessor: Option<oneshot::Receiver<()>>, ending: &CancellationToken) {
        if let Some(gone) = predecessor {
            tokio::select! {
                // An error is its end, too.
                _ = gone => {}
                () = ending.cancelled() => return,
            }
        }
        // One that it had read and not yet taken out of the ring is told of anew.
        let settled = async {
            self.mark().await?;
            for origin in self.hooks.owed()? {
                let connect = self.connect(&origin, None);
                let text = |value: String| self.processes.masker().text(&value).truncate(told::MAX_TEXT);
                let detail = BTreeMap::from([
                    ("destination".to_owned(), text(origin.destination.to_string())),
                    ("pid".to_owned(), text(origin.tgid.to_string())),
                    ("comm".to_owned(), text(origin.comm.clone())),
                    ("at_ns".to_owned(), text(connect.at_ns.to_string())),
                ]);
                let Connect { job_key, verdict, .. } = connect;
                self.write(Gap { job_key, verdict, reason: GapReason::AgentEnded, count: 1, detail }).await?;
                self.hooks.recorded(&origin)?;
            }
            Ok::<_, AccountError>(())
        };
        if let Err(error) = settled.await {
            tracing::error!(%error, "what an earlier agent owed was not recorded");
        }
    }

    /// Resolves when all that was told in the ring by now is recorded.
    async fn mark(&self) -> Result<(), AccountError> {
        let (answer, read) = oneshot::channel();
        self.marks.send(answer).await.map_err(|_| AccountError::Unread)?;
        read.await.map_err(|_| AccountError::Unread)
    }

    /// States the sums of each job that has ended, and with `all` of each that has new ones.
    async fn state(&self, all: bool) -> Result<(), AccountError> {
        let counts = self.hooks.jobs()?;
        // A chain of forks can run ahead of one look: what is new lies where it looked before. Two it has to outrun one after the other.
        let mut tags = self.hooks.tags()?;
        tags.extend(self.hooks.tags()?);
        let due = self.jobs().due(&counts, &tags, all);
        // At once, while the counts are those that were looked at.
        self.let_go(&counts)?;
        if due.is_empty() {
            return Ok(());
        }
        let in_flight = self.in_flight(&counts)?;
        self.mark().await?;
        let tables = self.tables()?;
        for (job, name, has_ended) in due {
            let Some(own) = counts.get(&job) else { continue };
            self.tell_lost(job, own).await?;
            let in_flight = in_flight.get(&job).copied().unwrap_or(0);
            let closed = has_ended && in_flight == 0;
            let statement = Completeness {
                job_key: self.key(job),
                name: self.processes.masker().text(&name).truncate(told::MAX_TEXT),
                closed,
                kernel: sums(&own.verdicts),
                lost: sums(&own.lost),
                in_flight,
                tables: tables.clone(),
            };
            self.write(statement).await?;
            self.jobs().stated(job, *own, closed);
        }
        Ok(())
    }

    /// Jobs that are closed, or did nothing, and whose cgroup or processes are gone for good.
    fn let_go(&self, counts: &BTreeMap<u64, JobCounts>) -> Result<(), AccountError> {
        let gone = self.jobs().gone(counts, Instant::now());
        for job in gone {
            self.hooks.unselect_cgroup(job)?;
            self.hooks.end_job(job)?;
        }
        Ok(())
    }

    /// Redirected connects that are counted and not recorded, by job: not begun, pending, taken.
    fn in_flight(&self, counts: &BTreeMap<u64, JobCounts>) -> Result<BTreeMap<u64, u64>, KernelError> {
        let unrecorded = self.hooks.unrecorded()?;
        let mut on_the_way: BTreeMap<u64, i64> = BTreeMap::new();
        for (job, counts) in counts {
            let [redirected, .., begun] = counts.verdicts;
            // Of what was begun since, the rest of the sum has as much more.
            let unbegun =
                i64::try_from(redirected).unwrap_or(i64::MAX) - i64::try_from(begun).unwrap_or(i64::MAX);
            on_the_way.insert(*job, unbegun);
        }
        for origin in unrecorded.iter().filter(|origin| origin.verdict == verdict::REDIRECTED) {
            *on_the_way.entry(origin.job).or_default() += 1;
        }
        Ok(on_the_way.into_iter().map(|(job, n)| (job, u64::try_from(n).unwrap_or(0))).collect())
    }

    /// What the ring had no room for, since the last time.
    async fn tell_lost(&self, job: u64, counts: &JobCounts) -> Result<(), AccountError> {
        let told = self.hooks.lost_told(job)?;
        for (slot, verdict) in ConnectVerdict::ALL.iter().enumerate() {
            let of = |sums: &[u64]| sums.get(slot).copied().unwrap_or(0);
            let count = of(&counts.lost).saturating_sub(of(&told));
            if count > 0 {
                let (job_key, detail) = (self.key(job), BTreeMap::new());
                let reason = GapReason::RingFull;
                self.write(Gap { job_key, verdict: *verdict, reason, count, detail }).await?;
            }
        }
        if told != counts.lost {
            self.hooks.set_lost_told(job, counts.lost)?;
        }
        Ok(())
    }

    fn tables(&self) -> Result<BTreeMap<String, u64>, KernelError> {
        const COUNTED: [(&str, u32); 5] = [
            ("stray", counter::STRAY),
            ("tasks_full", counter::TASKS_FULL),
            ("jobs_full", counter::JOBS_FULL),
            ("task_events_lost", counter::TASK_EVENTS_LOST),
            ("not_held", counter::NOT_HELD),
        ];
        COUNTED.iter().map(|(name, slot)| Ok(((*name).to_owned(), self.hooks.count(*slot)?))).collect()
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sums(verdicts: &[u64]) -> ConnectSums {
    let mut sums = ConnectSums::default();
    for (verdict, count) in ConnectVerdict::ALL.iter().zip(verdicts) {
        *sums.of_mut(*verdict) = *count;
    }
    sums
}

#[cfg(test)]
mod tests;
