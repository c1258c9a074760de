//! What the hooks counted, and each connect on its way to a record.
//!
//! Enters: the peers of accepted connections. Leaves: origins, each once, and counts. Must never: change what the hooks
//! decide by.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use weir_ebpf::{FlowKey, FlowOrigin, JobCounts, LostTold, address, counter, verdict};

use super::{Connects, Hooks, KernelError, Origin, lock, unreadable};

/// What became of the connects of selected processes, of all jobs that are accounted for. Each is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Led to the agent.
    pub redirected: u64,
    /// Left alone: by policy, or for want of an agent where that is allowed.
    pub passed: u64,
    /// Refused by policy: Weir's own ports, denied destinations, no listener or no agent.
    pub refused: u64,
    /// Refused (ECONNREFUSED) as they would have been without Weir: a loopback port at which nobody listens.
    pub unanswered: u64,
    /// Refused since their origin could not be kept: no memory, or too many connections not yet accepted.
    pub failed: u64,
    /// Datagrams to intercepted ports, refused.
    pub datagrams: u64,
    /// Sockets that no hook could see into, refused.
    pub sockets: u64,
    /// Of all these, what could not be told to the agent: the ring had no room.
    pub lost: u64,
    /// Connects of the agent's own sockets.
    pub exempt: u64,
}

impl Hooks {
    /// Takes the origin of the connection that came in from `peer` at a listener of that network namespace. None: the hooks
    /// did not lead it here, or it was taken already; whoever it is, it must be refused.
    ///
    /// It is owed a record until [`Hooks::recorded`]. When as many are owed as there is room for it is an error, and the origin is
    /// left where it is.
    pub fn take_origin(&self, netns_cookie: u64, peer: SocketAddr) -> Result<Option<Origin>, KernelError> {
        self.take_held_origin(netns_cookie, peer, 0)
    }

    /// The same of a connection that came in at a listener for one connect, by its port.
    pub fn take_held_origin(
        &self,
        netns_cookie: u64,
        peer: SocketAddr,
        held_port: u16,
    ) -> Result<Option<Origin>, KernelError> {
        let source = match peer.ip() {
            IpAddr::V4(v4) => address::mapped(v4.octets()),
            IpAddr::V6(v6) => v6.octets(),
        };
        // Held before it is taken, so that whoever looks at both tables sees it in one of them.
        let mut taken = lock(&self.taken);
        if taken.room() == 0 {
            return Err(KernelError::Table {
                doing: "take an origin before others are recorded",
                source: io::ErrorKind::StorageFull.into(),
            });
        }
        let key = FlowKey { held_port, ..FlowKey::new(netns_cookie, source, peer.port()) };
        let Some(flow) = self.pending.take(&key)? else {
            return Ok(None);
        };
        taken.put(&flow)?;
        drop(taken);
        let mut origin = Origin::from(flow);
        if origin.source.port() == 0 {
            origin.source.set_port(peer.port());
        }
        Ok(Some(origin))
    }

    /// Whether one more can be owed a record.
    pub(super) fn can_owe(&self) -> bool {
        lock(&self.taken).room() > 0
    }

    /// It is owed a record.
    pub(super) fn owe(&self, flow: &FlowOrigin) -> Result<(), KernelError> {
        lock(&self.taken).put(flow)
    }

    /// The record of this origin is written.
    pub fn recorded(&self, origin: &Origin) -> Result<(), KernelError> {
        lock(&self.taken).recorded(origin.key())
    }

    /// What was taken and is owed a record, by this agent or one before it.
    pub fn taken(&self) -> Result<Vec<Origin>, KernelError> {
        Ok(lock(&self.taken).all()?.into_iter().map(Origin::from).collect())
    }

    /// Of these, what another process took: an agent before this one, which must be gone by now.
    pub fn owed(&self) -> Result<Vec<Origin>, KernelError> {
        Ok(lock(&self.taken).of_others()?.into_iter().map(Origin::from).collect())
    }

    /// What is pending, or taken and not yet recorded: none is missed on its way from the one table to the other.
    pub fn unrecorded(&self) -> Result<Vec<Origin>, KernelError> {
        let taken = lock(&self.taken);
        let (pending, taken) = (self.pending.all()?, taken.all()?);
        Ok(pending.into_iter().chain(taken).map(Origin::from).collect())
    }

    /// What was counted of each job.
    pub fn jobs(&self) -> Result<BTreeMap<u64, JobCounts>, KernelError> {
        lock(&self.tables).jobs()
    }

    /// A job is accounted for no more: its sums are recorded.
    pub fn end_job(&self, job: u64) -> Result<(), KernelError> {
        lock(&self.tables).end_job(job)
    }

    /// Of what was lost of a job, how much is recorded as such, by verdict.
    pub fn lost_told(&self, job: u64) -> Result<[u64; verdict::KINDS as usize], KernelError> {
        lock(&self.tables).lost_told(job)
    }

    pub fn set_lost_told(
        &self,
        job: u64,
        verdicts: [u64; verdict::KINDS as usize],
    ) -> Result<(), KernelError> {
        lock(&self.tables).lost_told.insert(job, LostTold { verdicts }, 0).map_err(unreadable)
    }

    pub fn counts(&self) -> Result<Counts, KernelError> {
        let mut counts = Counts { exempt: self.count(counter::EXEMPT)?, ..Counts::default() };
        for job in self.jobs()?.into_values() {
            let [redirected, passed, refused, unanswered, failed, datagrams, sockets, _] = job.verdicts;
            counts.redirected += redirected;
            counts.passed += passed;
            counts.refused += refused;
            counts.unanswered += unanswered;
            counts.failed += failed;
            counts.datagrams += datagrams;
            counts.sockets += sockets;
            counts.lost += job.lost.iter().sum::<u64>();
        }
        Ok(counts)
    }

    /// One of the host's own counts, see [`weir_ebpf::counter`].
    pub fn count(&self, slot: u32) -> Result<u64, KernelError> {
        lock(&self.tables).count(slot)
    }

    /// The reader of what does not come here as a connection. There is one; None: it is taken already, or cannot be opened.
    /// It begins where the one before it stopped, so an agent before this one must have let go by now.
    pub fn connects(&self) -> Option<Connects> {
        let opened = Connects::open(lock(&self.connects).take()?);
        opened.inspect_err(|error| tracing::error!(%error, "the ring of connects cannot be opened")).ok()
    }

    /// Redirected connections that the agent has not yet taken.
    pub fn pending(&self) -> Result<Vec<Origin>, KernelError> {
        Ok(self.pending.all()?.into_iter().map(Origin::from).collect())
    }

    /// Takes the origins of connects made longer ago than this, whose connections never came. Each is owed a record.
    pub fn sweep_pending(&self, older_than: Duration) -> Result<Vec<Origin>, KernelError> {
        // As in `take_origin`.
        let mut taken = lock(&self.taken);
        let swept = self.pending.sweep(older_than, taken.room())?;
        for flow in &swept {
            taken.put(flow)?;
        }
        Ok(swept.into_iter().map(Origin::from).collect())
    }
}
