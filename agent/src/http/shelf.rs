//! Connections of HTTP/1.1 that wait for their next exchange, for all flows of one job to one server.
//!
//! Enters: a connection whose exchange is over, with what its server proved on it. Leaves: the same connection, for the next exchange of any
//! flow with the same job, network namespace, destination, proven name and offer. Must never: hand a connection to another job, or to a
//! flow that had its server proven in another way; give a new flow a proof that no longer counts ([`crate::tls`]'s sessions have the same
//! bound); keep more than [`KEPT_FOR_A_SERVER`] and [`KEPT_IN_ALL`], or any of them for longer than [`KEPT_FOR_FLOWS`].
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

/// The most connections that wait for one job's flows to one server; past it the one that has waited longest is closed.
pub const KEPT_FOR_A_SERVER: usize = 64;
/// The most of all jobs; past it one that would be kept is closed.
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
    in_all: Arc<AtomicUsize>,
}

/// A connection that another flow left, whose server is there.
pub struct Spare {
    pub(super) connection: Http1,
    pub proven: Arc<Proven>,
}

impl Shelf {
    fn new(in_all: Arc<AtomicUsize>) -> Self {
        Self { waiting: Mutex::default(), in_all }
    }

    pub(super) fn put(&self, connection: Http1) {
        let mut waiting = self.waiting();
        let over = if waiting.len() >= KEPT_FOR_A_SERVER {
            waiting.pop_front()
        } else if self.in_all.fetch_add(1, Ordering::Relaxed) >= KEPT_IN_ALL {
            self.in_all.fetch_sub(1, Ordering::Relaxed);
            return;
        } else {
            None
        };
        waiting.push_back((Instant::now(), connection));
        drop(waiting);
        // Not under the lock: its end is a task's.
        drop(over);
    }

    /// The one that was used last.
    pub(super) fn take(&self) -> Option<Http1> {
        self.take_since(KEPT_FOR_FLOWS)
    }

    /// One for a flow that begins: it waited for a moment only, and what its server proved still counts.
    pub async fn spare(&self, now: SystemTime) -> Option<Spare> {
        while let Some(mut connection) = self.take_since(KEPT_FOR_A_NEW_FLOW) {
            let proven = connection.proven.clone().filter(|proven| now < proven.until);
            if let Some(proven) = proven
                && connection.is_ready(false).await
            {
                return Some(Spare { connection, proven });
            }
        }
        None
    }

    fn take_since(&self, within: Duration) -> Option<Http1> {
        let mut waiting = self.waiting();
        waiting.back().filter(|(since, _)| since.elapsed() <= within)?;
        let (_, connection) = waiting.pop_back()?;
        self.in_all.fetch_sub(1, Ordering::Relaxed);
        Some(connection)
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
        self.in_all.fetch_sub(go.len(), Ordering::Relaxed);
        waiting.is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(Instant, Http1)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of all keys.
#[derive(Default)]
pub struct Shelves {
    by_key: Mutex<HashMap<ShelfKey, Arc<Shelf>>>,
    in_all: Arc<AtomicUsize>,
}

impl Shelves {
    pub fn of(&self, key: ShelfKey) -> Arc<Shelf> {
        let mut by_key = self.by_key();
        by_key.entry(key).or_insert_with(|| Arc::new(Shelf::new(self.in_all.clone()))).clone()
    }

    /// Closes what has waited for too long, until it is dropped; without it nothing is to be kept.
    pub async fn tend(&self) {
        loop {
            tokio::time::sleep(TENDED_EVERY).await;
            self.tend_once();
        }
    }

    fn tend_once(&self) {
        self.by_key().retain(|_, shelf| {
            // Others get one from here alone, under this lock.
            let is_used = Arc::strong_count(shelf) > 1;
            let is_empty = shelf.tend(if is_used { KEPT_FOR_FLOWS } else { KEPT_FOR_A_NEW_FLOW });
            is_used || !is_empty
        });
    }

    /// Closes all that waits.
    pub fn clear(&self) {
        self.by_key().retain(|_, shelf| {
            shelf.tend(Duration::ZERO);
            false
        });
    }

    /// How many wait, of all jobs.
    pub fn waiting(&self) -> usize {
        self.in_all.load(Ordering::Relaxed)
    }

    fn by_key(&self) -> MutexGuard<'_, HashMap<ShelfKey, Arc<Shelf>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A connection, and its server's end.
    async fn connection(tasks: &Tasks) -> (Http1, DuplexStream) {
        let (near, far) = duplex(64);
        let (stream, guard) = Guarded::responses(near, First::default());
        let (sender, driven) = http1::handshake::<_, Outgoing>(TokioIo::new(stream)).await.unwrap();
        (Http1::new(sender, guard, tasks.here(async move { drop(driven.await) }), None), far)
    }

    fn key(job: u64) -> ShelfKey {
        let destination = "127.0.0.1:443".parse().unwrap();
        let scope = Scope { job, namespace: 1, destination };
        ShelfKey { scope, name: "mcp.example.test".try_into().unwrap(), offer: vec![Protocol::Http1] }
    }

    #[tokio::test]
    async fn what_one_job_leaves_is_for_its_own_flows_alone() {
        let (tasks, shelves) = (Tasks::default(), Shelves::default());
        let (left, _server) = connection(&tasks).await;
        shelves.of(key(1)).put(left);
        assert!(shelves.of(key(2)).take().is_none());
        assert!(shelves.of(key(1)).take().is_some());
        assert!(shelves.of(key(1)).take().is_none() && shelves.waiting() == 0);
    }

    #[tokio::test]
    async fn what_proved_nothing_is_for_no_new_flow() {
        let (tasks, shelves) = (Tasks::default(), Shelves::default());
        let (left, _server) = connection(&tasks).await;
        shelves.of(key(1)).put(left);
        assert!(shelves.of(key(1)).spare(SystemTime::now()).await.is_none());
    }

    #[tokio::test]
    async fn no_more_are_kept_than_may_be() {
        let (tasks, shelves, mut servers) = (Tasks::default(), Shelves::default(), Vec::new());
        let shelf = shelves.of(key(0));
        for _ in 0..=KEPT_FOR_A_SERVER {
            let (left, server) = connection(&tasks).await;
            shelf.put(left);
            servers.push(server);
        }
        assert_eq!(shelves.waiting(), KEPT_FOR_A_SERVER);
        for job in 1..=(KEPT_IN_ALL / KEPT_FOR_A_SERVER) as u64 {
            for _ in 0..KEPT_FOR_A_SERVER {
                let (left, server) = connection(&tasks).await;
                shelves.of(key(job)).put(left);
                servers.push(server);
            }
        }
        assert_eq!(shelves.waiting(), KEPT_IN_ALL);
        shelves.clear();
        assert_eq!(shelves.waiting(), 0);
        assert!(shelves.by_key().is_empty());
    }

    #[tokio::test]
    async fn one_that_its_server_closed_goes_and_one_that_nobody_wants_any_more() {
        let (tasks, shelves) = (Tasks::default(), Shelves::default());
        let shelf = shelves.of(key(1));
        let ((closed, server), (open, _other)) = (connection(&tasks).await, connection(&tasks).await);
        shelf.put(closed);
        shelf.put(open);
        drop(server);
        shelves.tend_once();
        assert_eq!(shelves.waiting(), 1);
        assert!(!shelf.tend(KEPT_FOR_FLOWS) && shelf.tend(Duration::ZERO));
        drop(shelf);
        shelves.tend_once();
        assert!(shelves.by_key().is_empty());
    }
}
