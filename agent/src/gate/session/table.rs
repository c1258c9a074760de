//! Which session an exchange belongs to. Requests' heads, ids and endpoints come in, sessions go out; the table never
//! grows past its limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::request::Parts;
use weir_core::mask::Masked;

use super::{IDLE, Kind, MAX_SESSIONS, Session};
use crate::gate::{Flow, Gate};
use crate::share::{Share, Taken};

/// The header that names a session.
const SESSION_ID: &str = "mcp-session-id";

/// All sessions; clones share them.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    sessions: HashMap<Key, Entry>,
    /// How many of them are legacy ones.
    endpoints: usize,
    evicted: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// As it was proven; without proof, as it was dialled.
    server: String,
    port: u16,
    name: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    Id(Masked<String>),
    /// Path and query to which the client posts.
    Endpoint(String),
    Process {
        pid: u32,
        start: Option<u64>,
    },
}

struct Entry {
    session: Arc<Session>,
    /// The job that it is of, by the address of its share.
    job: usize,
    used: Instant,
    #[expect(dead_code, reason = "held for as long as the session has its place")]
    room: Option<Taken>,
}

/// What reading an answer needs to know of its request.
pub(in crate::gate) struct Exchange {
    pub session: Arc<Session>,
    /// Path and query of a GET: its stream may announce an endpoint.
    pub get: Option<String>,
}

impl Exchange {
    /// Of a request with this head, and in this session.
    pub fn of(session: Arc<Session>, parts: &Parts) -> Self {
        let get = (parts.method == http::Method::GET)
            .then(|| parts.uri.path_and_query().map(|target| target.as_str().to_owned()))
            .flatten();
        Self { session, get }
    }
}

impl Gate {
    /// The session of a request.
    pub fn session_of(&self, flow: &Flow, parts: &Parts) -> Arc<Session> {
        if let Some(id) = self.session(&parts.headers) {
            return self.sessions.named(flow, id);
        }
        let target = || parts.uri.path_and_query().map(|target| target.as_str().to_owned());
        if parts.method == http::Method::POST
            && let Some(session) = self.sessions.announced(flow, target)
        {
            return session;
        }
        let name = Name::Process { pid: flow.caller.pid, start: flow.caller.start_time };
        self.sessions.of(flow, name, Kind::Process, None)
    }

    pub(in crate::gate) fn exchange_of(&self, flow: &Flow, parts: &Parts) -> Exchange {
        Exchange::of(self.session_of(flow, parts), parts)
    }

    /// A server announced where its client is to post.
    pub(in crate::gate) fn endpoint(&self, flow: &Flow, target: String) -> Arc<Session> {
        let pseudonym = self.masker.pseudonym_of("session", &target);
        self.sessions.of(flow, Name::Endpoint(target), Kind::Endpoint, Some(pseudonym))
    }

    /// A pseudonym of the MCP session: its id would let whoever reads it take the session over.
    pub(in crate::gate) fn session(&self, headers: &http::HeaderMap) -> Option<Masked<String>> {
        let mut ids = headers.get_all(SESSION_ID).iter();
        let first = ids.next()?;
        let mut id = String::from_utf8_lossy(first.as_bytes()).into_owned();
        for more in ids {
            id.push_str(", ");
            id.push_str(&String::from_utf8_lossy(more.as_bytes()));
        }
        Some(self.masker.pseudonym_of("session", &id))
    }
}

impl Sessions {
    /// The session with this pseudonym of an id.
    pub(in crate::gate) fn named(&self, flow: &Flow, id: Masked<String>) -> Arc<Session> {
        self.of(flow, Name::Id(id.clone()), Kind::Id, Some(id))
    }

    /// How many went before their time, for want of room.
    pub fn evicted(&self) -> u64 {
        self.table().evicted
    }

    /// The session is over: it is not found again.
    pub(in crate::gate) fn end(&self, session: &Arc<Session>) {
        let mut table = self.table();
        let key = table.sessions.iter().find(|(_, entry)| Arc::ptr_eq(&entry.session, session));
        let ended = key.map(|(key, _)| key.clone()).and_then(|key| table.remove(&key));
        drop(table);
        drop(ended);
    }

    fn announced(&self, flow: &Flow, target: impl FnOnce() -> Option<String>) -> Option<Arc<Session>> {
        let mut table = self.table();
        if table.endpoints == 0 {
            return None;
        }
        let entry = table.sessions.get_mut(&key(flow, Name::Endpoint(target()?)))?;
        entry.used = Instant::now();
        Some(entry.session.clone())
    }

    fn of(&self, flow: &Flow, name: Name, kind: Kind, pseudonym: Option<Masked<String>>) -> Arc<Session> {
        let (key, now) = (key(flow, name), Instant::now());
        let mut gone = Vec::new();
        let mut table = self.table();
        if let Some(entry) = table.sessions.get_mut(&key) {
            entry.used = now;
            return entry.session.clone();
        }
        let job = Arc::as_ptr(&flow.share) as usize;
        let room = table.room(&flow.share, job, now, &mut gone);
        let session = Arc::new(Session::new(kind, pseudonym, flow.share.keep()));
        table.endpoints += usize::from(kind == Kind::Endpoint);
        table.sessions.insert(key, Entry { session: session.clone(), job, used: now, room });
        drop(table);
        for session in gone {
            for open in session.parked() {
                open.give_up();
            }
        }
        session
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn remove(&mut self, key: &Key) -> Option<Arc<Session>> {
        let entry = self.sessions.remove(key)?;
        self.endpoints -= usize::from(entry.session.kind == Kind::Endpoint);
        Some(entry.session)
    }

    /// Room for one more, if need be in the place of one that was used long ago: idle ones first, then the job's own,
    /// then anybody's.
    fn room(
        &mut self,
        share: &Share,
        job: usize,
        now: Instant,
        gone: &mut Vec<Arc<Session>>,
    ) -> Option<Taken> {
        if let Some(room) = share.session() {
            return Some(room);
        }
        let idle = |entry: &Entry| now.duration_since(entry.used) > IDLE;
        let idle: Vec<Key> =
            self.sessions.iter().filter(|(_, entry)| idle(entry)).map(|(key, _)| key.clone()).collect();
        gone.extend(idle.iter().filter_map(|key| self.remove(key)));
        let oldest = |own: bool| {
            let entries = self.sessions.iter().filter(|(_, entry)| !own || entry.job == job);
            entries.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone())
        };
        if idle.is_empty()
            && let Some(key) = oldest(true).or_else(|| oldest(false))
        {
            gone.extend(self.remove(&key));
            self.evicted += 1;
            if self.evicted.is_power_of_two() {
                tracing::warn!(evicted = self.evicted, limit = MAX_SESSIONS, "sessions go before their time");
            }
        }
        share.session()
    }
}

fn key(flow: &Flow, name: Name) -> Key {
    Key { server: flow.server.name.clone(), port: flow.server.record.port, name }
}
