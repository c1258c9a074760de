//! Sessions with servers that are taken up again: tickets come in from servers, and go out again to the same server for the same job.
//!
//! A resumed handshake shows no certificate. What it proves is that the server holds the secret of a session in which it
//! did show one, for this name, to this agent. That is taken for proof under these bounds:
//!
//! - TLS 1.3 alone (with a fresh key exchange), and no early data.
//! - A ticket is used once, for the job, network namespace, address and name that it was got for: it ties no job's
//!   connections to another's.
//! - It counts for [`PROVEN_FOR`] from the moment the certificate was *verified*, however often the session was taken up since, and
//!   never past the certificate's own end.
//! - It belongs to one set of roots and lists: with others there is another [`Sessions`], which is empty.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// How long a verified certificate may stand for later connections.
pub const PROVEN_FOR: Duration = Duration::from_secs(10 * 60);
/// Servers, each as one job knows it, whose tickets are kept; past it the one that was used longest ago goes.
pub const MAX_SERVERS: usize = 128;
/// Tickets kept for each; past it the oldest goes.
pub const MAX_TICKETS: usize = 8;
/// The longest certificate chain that is kept with a ticket; with a longer one there is no resumption.
pub const MAX_CHAIN: usize = 16 << 10;

/// Whose connection it is, and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The job's cgroup.
    pub job: u64,
    /// The network namespace's cookie.
    pub namespace: u64,
    pub destination: SocketAddr,
}

type Key = (Scope, ServerName<'static>);

/// The tickets of all jobs.
#[derive(Default)]
pub struct Sessions {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    servers: HashMap<Key, Server>,
    uses: u64,
}

#[derive(Default)]
struct Server {
    used: u64,
    tickets: VecDeque<Ticket>,
}

struct Ticket {
    value: Tls13ClientSessionValue,
    proof: Proof,
}

/// When a certificate was verified, and how long that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    pub(super) until: SystemTime,
}

impl Proof {
    /// Verified at `now`; `ends` is the certificate's own end.
    pub fn new(now: SystemTime, ends: SystemTime) -> Self {
        Self { until: ends.min(now + PROVEN_FOR) }
    }
}

impl Sessions {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, key: Key, ticket: Ticket) {
        let mut kept = self.kept();
        kept.uses += 1;
        let uses = kept.uses;
        if kept.servers.len() >= MAX_SERVERS && !kept.servers.contains_key(&key) {
            let oldest =
                kept.servers.iter().min_by_key(|(_, server)| server.used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                kept.servers.remove(&oldest);
            }
        }
        let server = kept.servers.entry(key).or_default();
        server.used = uses;
        if server.tickets.len() >= MAX_TICKETS {
            server.tickets.pop_front();
        }
        server.tickets.push_back(ticket);
    }

    /// The newest ticket that still counts.
    fn take(&self, key: &Key, now: SystemTime) -> Option<Ticket> {
        let mut kept = self.kept();
        kept.uses += 1;
        let uses = kept.uses;
        let server = kept.servers.get_mut(key)?;
        server.used = uses;
        server.tickets.retain(|ticket| now < ticket.proof.until);
        let ticket = server.tickets.pop_back();
        if server.tickets.is_empty() {
            kept.servers.remove(key);
        }
        ticket
    }

    #[cfg(test)]
    pub fn tickets(&self) -> Vec<usize> {
        self.kept().servers.values().map(|server| server.tickets.len()).collect()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("servers", &self.kept().servers.len()).finish_non_exhaustive()
    }
}

/// What one connection may take out, and puts back.
#[derive(Debug)]
pub struct OwnSessions {
    sessions: Arc<Sessions>,
    scope: Scope,
    now: SystemTime,
    /// What the ticket that was taken rests on.
    taken: OnceLock<Proof>,
    /// What this connection rests on. Tickets that come before it is known are let go.
    proof: OnceLock<Proof>,
}

impl OwnSessions {
    pub fn new(sessions: Arc<Sessions>, scope: Scope, now: SystemTime) -> Self {
        Self { sessions, scope, now, taken: OnceLock::new(), proof: OnceLock::new() }
    }

    /// What the ticket that this connection offered rests on.
    pub fn taken(&self) -> Option<Proof> {
        self.taken.get().copied()
    }

    /// The handshake is done, and rests on this: its tickets may be kept.
    pub fn rest_on(&self, proof: Proof) {
        let _ = self.proof.set(proof);
    }
}

impl ClientSessionStore for OwnSessions {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        if let Some(&proof) = self.proof.get() {
            self.sessions.keep((self.scope, name), Ticket { value, proof });
        }
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let Ticket { value, proof } = self.sessions.take(&(self.scope, name.clone()), self.now)?;
        let _ = self.taken.set(proof);
        Some(value)
    }
}
