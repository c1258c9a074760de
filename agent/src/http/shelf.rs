//! Connections of HTTP/1.1 that wait for their next exchange, for all flows of one job to one server.
//!
//! Enters: a connection whose exchange is over, with what its server proved on it. Leaves: the same connection, for the next
//! exchange of any flow with the same job, network namespace, destination, proven name and offer. Must never: hand a
//! connection to another job, or to a flow that had its server proven in another way; give a new flow a proof that no longer
//! counts ([`crate::tls`]'s sessions have the same bound); keep more than [`KEPT_FOR_A_SERVER`], [`KEPT_FOR_A_JOB`] and
//! [`KEPT_IN_ALL`], or any of them for longer than [`KEPT_FOR_FLOWS`]. One that there is no room for stays with the flow that
//! used it: no job takes reuse from another.
//!
//! Nobody drives a connection that waits here. That its server closed it is seen when it is taken, or in the next look that
//! [`Shelves::tend`] takes.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::ServerName;
use weir_core::ids::FlowId;

use super::idle::Http1;
use crate::tls::{Protocol, ProvenName, Scope};

/// The most connections that wait for one job's flows to one server; past it, as past the other two, each flow keeps its own.
pub const KEPT_FOR_A_SERVER: usize = 64;
/// The most of one job, whatever the number of its servers.
pub const KEPT_FOR_A_JOB: usize = 256;
/// The most of all jobs.
pub const KEPT_IN_ALL: usize = 1024;
/// How long one waits while flows are there that it may serve.
pub const KEPT_FOR_FLOWS: Duration = Duration::from_secs(30);
/// How long one waits for a flow that is yet to come. Its client expects a new connection, so this is shorter than the time after which a
/// server closes what is idle (2 seconds is the shortest that common servers have).
pub const KEPT_FOR_A_NEW_FLOW: Duration = Duration::from_secs(1);
/// How often it is looked what may go.
const TENDED_EVERY: Duration = Duration::from_millis(500);

/// For whom a connection may be used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ShelfKey {
    pub scope: Scope,
    /// What the server proved.
    pub name: ServerName<'static>,
    /// What the server was offered.
    pub offer: Vec<Protocol>,
}

/// What a connection's server proved, and when it was dialled.
#[derive(Debug)]
pub struct Proven {
    pub name: ProvenName,
    /// Until when that counts for another flow.
    pub until: SystemTime,
    /// The address from which it was dialled.
    pub source: Option<IpAddr>,
    /// The flow that dialled it.
    pub by: FlowId,
}

/// The connections of one key.
pub struct Shelf {
    waiting: Mutex<VecDeque<(Instant, Http1)>>,
    counts: Counts,
}

/// How many wait: of one job, and of all.
#[derive(Clone)]
struct Counts {
    of_job: Arc<AtomicUsize>,
    in_all: Arc<AtomicUsize>,
}

impl Counts {
    /// Room for one more, if there is any.
    fn take_room(&self) -> bool {
        if self.of_job.fetch_add(1, Ordering::Relaxed) >= KEPT_FOR_A_JOB {
            self.of_job.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        if self.in_all.fetch_add(1, Ordering::Relaxed) >= KEPT_IN_ALL {
            self.give_back(1);
            return false;
        }
        true
    }

    fn give_back(&self, count: usize) {
        self.of_job.fetch_sub(count, Ordering::Relaxed);
        self.in_all.fetch_sub(count, Ordering::Relaxed);
    }
}

/// A connection that another flow left, whose server is there.
pub struct Spare {
    pub(super) connection: Http1,
    pub proven: Arc<Proven>,
}

impl Shelf {
    fn new(counts: Counts) -> Self {
        Self { waiting: Mutex::default(), counts }
    }

    /// Keeps a connection; gives it back if there is no room for it.
    pub(super) fn put(&self, connection: Http1) -> Option<Http1> {
        let mut waiting = self.waiting();
        let stale = self.stale(&mut waiting);
        let no_room = waiting.len() >= KEPT_FOR_A_SERVER || !self.counts.take_room();
        let back = if no_room {
            Some(connection)
        } else {
            waiting.push_back((Instant::now(), connection));
            None
        };
        drop(waiting);
        // Not under the lock: their end is a task's.
        drop(stale);
        back
    }

    /// Of those that may serve this flow, the one that was used last. What was proven to another flow may not count any more.
    pub(super) fn take(&self, flow: &FlowId, now: SystemTime) -> Option<Http1> {
        self.take_since(KEPT_FOR_FLOWS, |connection| {
            connection.proven.as_ref().is_some_and(|proven| proven.by == *flow || now < proven.until)
        })
    }

    /// One for a flow that begins: it waited for a moment only, and what its server proved still counts.
    pub async fn spare(&self, now: SystemTime) -> Option<Spare> {
        let still_counts =
            |connection: &Http1| connection.proven.as_ref().is_some_and(|proven| now < proven.until);
        while let Some(mut connection) = self.take_since(KEPT_FOR_A_NEW_FLOW, still_counts) {
            if let Some(proven) = connection.proven.clone()
                && connection.is_ready(false).await
            {
                return Some(Spare { connection, proven });
            }
        }
        None
    }

    fn take_since(&self, within: Duration, may_serve: impl Fn(&Http1) -> bool) -> Option<Http1> {
        let mut waiting = self.waiting();
        let stale = self.stale(&mut waiting);
        let at = waiting.iter().rposition(|(_, connection)| may_serve(connection));
        let at = at.filter(|at| waiting.get(*at).is_some_and(|(since, _)| since.elapsed() <= within));
        let taken = at.and_then(|at| waiting.remove(at));
        self.counts.give_back(usize::from(taken.is_some()));
        drop(waiting);
        // Not under the lock: their end is a task's.
        drop(stale);
        taken.map(|(_, connection)| connection)
    }

    /// Those that have waited for too long for anybody: they are behind all others.
    fn stale(&self, waiting: &mut VecDeque<(Instant, Http1)>) -> Vec<Http1> {
        let mut stale = Vec::new();
        while waiting.front().is_some_and(|(since, _)| since.elapsed() > KEPT_FOR_FLOWS)
            && let Some((_, connection)) = waiting.pop_front()
        {
            stale.push(connection);
        }
        self.counts.give_back(stale.len());
        stale
    }

    /// Closes those that waited for too long, and those that their server closed. Says whether none is left.
    fn tend(&self, within: Duration) -> bool {
        let mut waiting = self.waiting();
        let mut context = Context::from_waker(Waker::noop());
        let mut stay = VecDeque::with_capacity(waiting.len());
        let mut go = Vec::new();
        for (since, mut connection) in waiting.drain(..) {
            let stays = since.elapsed() <= within && connection.is_there(&mut context);
            if stays { stay.push_back((since, connection)) } else { go.push(connection) }
        }
        *waiting = stay;
        self.counts.give_back(go.len());
        waiting.is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(Instant, Http1)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shelf {
    /// Flows may have put something here after the others let go of it.
    fn drop(&mut self) {
        self.counts.give_back(self.waiting().len());
    }
}

/// Those of all keys.
#[derive(Default)]
pub struct Shelves {
    kept: Mutex<Kept>,
    in_all: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Kept {
    by_key: HashMap<ShelfKey, Arc<Shelf>>,
    /// How many wait of each job.
    by_job: HashMap<u64, Arc<AtomicUsize>>,
}

impl Shelves {
    pub fn of(&self, key: ShelfKey) -> Arc<Shelf> {
        let mut kept = self.kept();
        let Kept { by_key, by_job } = &mut *kept;
        let job = key.scope.job;
        let shelf = by_key.entry(key).or_insert_with(|| {
            let of_job = by_job.entry(job).or_default().clone();
            Arc::new(Shelf::new(Counts { of_job, in_all: self.in_all.clone() }))
        });
        shelf.clone()
    }

    /// Closes what has waited for too long, until it is dropped; without it nothing is to be kept.
    pub async fn tend(&self) {
        loop {
            tokio::time::sleep(TENDED_EVERY).await;
            self.tend_once();
        }
    }

    fn tend_once(&self) {
        let mut kept = self.kept();
        kept.by_key.retain(|_, shelf| {
            // Others get one from here alone, under this lock.
            let is_used = Arc::strong_count(shelf) > 1;
            let is_empty = shelf.tend(if is_used { KEPT_FOR_FLOWS } else { KEPT_FOR_A_NEW_FLOW });
            is_used || !is_empty
        });
        // Each shelf of a job has its count.
        kept.by_job.retain(|_, count| Arc::strong_count(count) > 1);
    }

    /// Closes all that waits.
    pub fn clear(&self) {
        let mut kept = self.kept();
        for shelf in kept.by_key.values() {
            shelf.tend(Duration::ZERO);
        }
        kept.by_key.clear();
        kept.by_job.retain(|_, count| Arc::strong_count(count) > 1);
    }

    /// How many wait, of all jobs.
    pub fn waiting(&self) -> usize {
        self.in_all.load(Ordering::Relaxed)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::guarded::{First, Guarded};
    use crate::http::outgoing::Outgoing;
    use crate::tasks::Tasks;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::{DuplexStream, duplex};

    /// A connection that proved nothing, and its server's end.
    async fn connection(tasks: &Tasks) -> (Http1, DuplexStream) {
        proven(tasks, None).await
    }

    /// One that this flow dialled, whose server's proof counts until then.
    async fn of(tasks: &Tasks, by: &FlowId, until: SystemTime) -> (Http1, DuplexStream) {
        let name = ProvenName::for_test("mcp.example.test");
        proven(tasks, Some(Arc::new(Proven { name, until, source: None, by: by.clone() }))).await
    }

    async fn proven(tasks: &Tasks, proven: Option<Arc<Proven>>) -> (Http1, DuplexStream) {
        let (near, far) = duplex(64);
        let (stream, guard) = Guarded::responses(near, First::default());
        let (sender, driven) = http1::handshake::<_, Outgoing>(TokioIo::new(stream)).await.unwrap();
        (Http1::new(sender, guard, tasks.here(async move { drop(driven.await) }), proven), far)
    }

    fn key(job: u64) -> ShelfKey {
        let destination = "127.0.0.1:443".parse().unwrap();
        let scope = Scope { job, namespace: 1, destination };
        ShelfKey { scope, name: "mcp.example.test".try_into().unwrap(), offer: vec![Protocol::Http1] }
    }

    fn flow(n: u8) -> FlowId {
        FlowId::from_random([n; 16])
    }

    fn soon() -> SystemTime {
        SystemTime::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn what_one_job_leaves_is_for_its_own_flows_alone() {
        let (tasks, shelves, now) = (Tasks::default(), Shelves::default(), SystemTime::now());
        let (left, _server) = of(&tasks, &flow(1), soon()).await;
        assert!(shelves.of(key(1)).put(left).is_none());
        assert!(shelves.of(key(2)).take(&flow(1), now).is_none());
        assert!(shelves.of(key(1)).take(&flow(2), now).is_some());
        assert!(shelves.of(key(1)).take(&flow(2), now).is_none() && shelves.waiting() == 0);
    }

    #[tokio::test]
    async fn what_proved_nothing_is_for_no_new_flow() {
        let (tasks, shelves) = (Tasks::default(), Shelves::default());
        let (left, _server) = connection(&tasks).await;
        assert!(shelves.of(key(1)).put(left).is_none());
        assert!(shelves.of(key(1)).spare(SystemTime::now()).await.is_none());
    }

    #[tokio::test]
    async fn a_proof_that_no_longer_counts_is_for_the_flow_alone_that_it_was_given_to() {
        let (tasks, shelves, now) = (Tasks::default(), Shelves::default(), SystemTime::now());
        let shelf = shelves.of(key(1));
        let (counts, _server) = of(&tasks, &flow(1), soon()).await;
        let (over, _other) = of(&tasks, &flow(1), now).await;
        assert!(shelf.put(counts).is_none() && shelf.put(over).is_none());
        // It is the one that was used last, and passed over.
        assert!(shelf.take(&flow(2), now).is_some_and(|taken| taken.proven.unwrap().until > now));
        assert!(shelf.take(&flow(2), now).is_none() && shelf.spare(now).await.is_none());
        assert_eq!(shelves.waiting(), 1);
        assert!(shelf.take(&flow(1), now).is_some());
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_is_given_back_and_no_job_takes_the_room_of_all() {
        let (tasks, shelves, mut servers) = (Tasks::default(), Shelves::default(), Vec::new());
        // Each job has servers enough to fill more than its share.
        let server = |job: u64, server: u64| {
            let key = key(job);
            shelves.of(ShelfKey { scope: Scope { namespace: server, ..key.scope }, ..key })
        };
        let all = (KEPT_IN_ALL / KEPT_FOR_A_JOB) as u64;
        let servers_of_a_job = (KEPT_FOR_A_JOB / KEPT_FOR_A_SERVER) as u64;
        for job in 0..all {
            for shelf in (0..servers_of_a_job).map(|n| server(job, n)) {
                for _ in 0..KEPT_FOR_A_SERVER {
                    let (left, far) = connection(&tasks).await;
                    assert!(shelf.put(left).is_none());
                    servers.push(far);
                }
                let (left, _far) = connection(&tasks).await;
                assert!(shelf.put(left).is_some(), "of a server");
            }
            let (left, _far) = connection(&tasks).await;
            assert!(server(job, servers_of_a_job).put(left).is_some(), "of a job");
            assert_eq!(shelves.waiting(), KEPT_FOR_A_JOB * (job as usize + 1));
        }
        let (left, _far) = connection(&tasks).await;
        let last = server(all, 0);
        assert!(last.put(left).is_some(), "of all");
        shelves.clear();
        assert_eq!(shelves.waiting(), 0);
        let kept = shelves.kept();
        assert!(kept.by_key.is_empty() && kept.by_job.len() == 1, "the last one's job is there still");
    }

    #[tokio::test]
    async fn a_shelf_that_flows_alone_have_gives_its_room_back_with_the_last_of_them() {
        let (tasks, shelves) = (Tasks::default(), Shelves::default());
        let shelf = shelves.of(key(1));
        shelves.clear();
        let (left, _server) = connection(&tasks).await;
        assert!(shelf.put(left).is_none() && shelves.waiting() == 1);
        drop(shelf);
        assert_eq!(shelves.waiting(), 0);
    }

    #[tokio::test]
    async fn one_that_its_server_closed_goes_and_one_that_nobody_wants_any_more() {
        let (tasks, shelves) = (Tasks::default(), Shelves::default());
        let shelf = shelves.of(key(1));
        let ((closed, server), (open, _other)) = (connection(&tasks).await, connection(&tasks).await);
        assert!(shelf.put(closed).is_none() && shelf.put(open).is_none());
        drop(server);
        shelves.tend_once();
        assert_eq!(shelves.waiting(), 1);
        assert!(!shelf.tend(KEPT_FOR_FLOWS) && shelf.tend(Duration::ZERO));
        drop(shelf);
        shelves.tend_once();
        let kept = shelves.kept();
        assert!(kept.by_key.is_empty() && kept.by_job.is_empty());
    }
}
