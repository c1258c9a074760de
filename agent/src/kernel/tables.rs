//! The tables by which the hooks decide: what the agent writes into them, and the counts that it reads back.
//!
//! Enters: selections, destinations, listeners. Leaves: entries that the hooks read. Must never: leave a table half
//! changed so that less is intercepted than before or after the change: what is new goes in before what is old goes out.

use std::{collections::BTreeMap, io, net::IpAddr};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, lpm_trie::Key},
};
use ipnet::IpNet;
use weir_ebpf::{
    DestinationKey, FileKey, JobCounts, Listeners, LostTold, OWN_PORTS_ROOM, STRAY_JOB, Selected, Settings,
    Tag, action, address, verdict,
};

use super::{KernelError, lookup_missing, take, unreadable};

/// What becomes of connects to some addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// An IPv6 network never covers IPv4 addresses.
    pub network: IpNet,
    /// 0 is any. An entry with the very port goes before one for any, then the longer prefix before the shorter.
    pub port: u16,
    /// See [`weir_ebpf::action`].
    pub action: u32,
}

pub(super) struct Tables {
    pub settings: Array<MapData, Settings>,
    pub tasks: HashMap<MapData, u32, Tag>,
    pub cgroups: HashMap<MapData, u64, Selected>,
    pub executables: HashMap<MapData, FileKey, Selected>,
    pub users: HashMap<MapData, u32, Selected>,
    pub jobs: HashMap<MapData, u64, JobCounts>,
    pub lost_told: HashMap<MapData, u64, LostTold>,
    pub destinations: LpmTrie<MapData, DestinationKey, u32>,
    pub netns: HashMap<MapData, u64, Listeners>,
    pub own_ports: HashMap<MapData, u16, u8>,
    pub counts: PerCpuArray<MapData, u64>,
}

impl Tables {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let mut tables = Self {
            settings: take(ebpf, "SETTINGS")?.try_into().map_err(unreadable)?,
            tasks: take(ebpf, "TASKS")?.try_into().map_err(unreadable)?,
            cgroups: take(ebpf, "CGROUPS")?.try_into().map_err(unreadable)?,
            executables: take(ebpf, "EXECUTABLES")?.try_into().map_err(unreadable)?,
            users: take(ebpf, "USERS")?.try_into().map_err(unreadable)?,
            jobs: take(ebpf, "JOBS")?.try_into().map_err(unreadable)?,
            lost_told: take(ebpf, "LOST_TOLD")?.try_into().map_err(unreadable)?,
            destinations: take(ebpf, "DESTINATIONS")?.try_into().map_err(unreadable)?,
            netns: take(ebpf, "NETNS")?.try_into().map_err(unreadable)?,
            own_ports: take(ebpf, "OWN_PORTS")?.try_into().map_err(unreadable)?,
            counts: take(ebpf, "COUNTS")?.try_into().map_err(unreadable)?,
        };
        tables.begin_job(STRAY_JOB)?;
        Ok(tables)
    }

    pub fn settings(&self) -> Result<Settings, KernelError> {
        self.settings.get(&0, 0).map_err(unreadable)
    }

    pub fn set_settings(&mut self, settings: Settings) -> Result<(), KernelError> {
        self.settings.set(0, settings, 0).map_err(unreadable)
    }

    /// Makes the ports protected that selected cgroups may not reach, and no others.
    pub fn protect(&mut self, ports: &[u16]) -> Result<(), KernelError> {
        if ports.len() > OWN_PORTS_ROOM as usize {
            return Err(KernelError::TooManyPorts(ports.len()));
        }
        for port in ports {
            self.own_ports.insert(port, 1, 0).map_err(unreadable)?;
        }
        let old = self.own_ports.keys().collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        for port in old.iter().filter(|port| !ports.contains(port)) {
            gone(self.own_ports.remove(port))?;
        }
        Ok(())
    }

    /// Makes these the destinations with an action of their own.
    pub fn set_destinations(&mut self, destinations: &[Destination]) -> Result<(), KernelError> {
        let wanted = entries(destinations);
        for ((bits, key), action) in &wanted {
            self.destinations.insert(&Key::new(*bits, *key), action, 0).map_err(unreadable)?;
        }
        let old = self.destinations.keys().collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        for key in old {
            let (bits, data) = (key.prefix_len(), key.data());
            if !wanted.contains_key(&(bits, data)) {
                gone(self.destinations.remove(&key))?;
            }
        }
        Ok(())
    }

    pub fn add_destination(&mut self, destination: Destination) -> Result<(), KernelError> {
        let (bits, key) = entry(destination.network, destination.port);
        self.destinations.insert(&Key::new(bits, key), destination.action, 0).map_err(unreadable)
    }

    /// A job is accounted for from now on; one that is already goes on.
    pub fn begin_job(&mut self, job: u64) -> Result<(), KernelError> {
        match self.jobs.insert(job, JobCounts::default(), BPF_NOEXIST) {
            Err(e) if !is_there_already(&e) => Err(unreadable(e)),
            _ => Ok(()),
        }
    }

    /// The same where selection must not fail for want of room: connects of a job that is not in the table count as strays.
    pub fn begin_job_or_stray(&mut self, job: u64) {
        if let Err(error) = self.begin_job(job) {
            tracing::error!(%error, job, "a job is not accounted for by itself: its connects count as strays");
        }
    }

    pub fn end_job(&mut self, job: u64) -> Result<(), KernelError> {
        gone(self.jobs.remove(&job))?;
        gone(self.lost_told.remove(&job))
    }

    pub fn lost_told(&self, job: u64) -> Result<[u64; verdict::KINDS as usize], KernelError> {
        match self.lost_told.get(&job, 0) {
            Ok(told) => Ok(told.verdicts),
            Err(e) if lookup_missing(&e) => Ok(LostTold::default().verdicts),
            Err(e) => Err(unreadable(e)),
        }
    }

    pub fn jobs(&self) -> Result<BTreeMap<u64, JobCounts>, KernelError> {
        Ok(entries_of(&self.jobs)?.into_iter().collect())
    }

    pub fn tags(&self) -> Result<BTreeMap<u32, Tag>, KernelError> {
        Ok(entries_of(&self.tasks)?.into_iter().collect())
    }

    pub fn count(&self, slot: u32) -> Result<u64, KernelError> {
        let per_cpu = self.counts.get(&slot, 0).map_err(unreadable)?;
        Ok(per_cpu.iter().fold(0_u64, |sum, n| sum.wrapping_add(*n)))
    }
}

/// Inserts only what is not there (linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

pub(super) fn is_there_already(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(e) if e.io_error.kind() == io::ErrorKind::AlreadyExists)
}

/// All of a table. The keys first: entries come and go meanwhile, and what went is left out.
pub(super) fn entries_of<K: aya::Pod, V: aya::Pod>(
    table: &HashMap<MapData, K, V>,
) -> Result<Vec<(K, V)>, KernelError> {
    let mut entries = Vec::new();
    for key in table.keys().collect::<Result<Vec<_>, _>>().map_err(unreadable)? {
        match table.get(&key, 0) {
            Ok(value) => entries.push((key, value)),
            Err(e) if lookup_missing(&e) => {}
            Err(e) => return Err(unreadable(e)),
        }
    }
    Ok(entries)
}

/// What is removed may be gone already.
pub(super) fn gone(removed: Result<(), MapError>) -> Result<(), KernelError> {
    match removed {
        Err(e) if !lookup_missing(&e) => Err(unreadable(e)),
        _ => Ok(()),
    }
}

fn entries(destinations: &[Destination]) -> BTreeMap<(u32, DestinationKey), u32> {
    let mut entries = BTreeMap::new();
    for Destination { network, port, action } in destinations {
        entries.insert(entry(*network, *port), *action);
        // In the table IPv4 lies within IPv6; without an entry of its own it would be covered.
        if network.contains(&V4_MAPPED) {
            let v4 = (
                DestinationKey::PORT_BITS + V4_PREFIX_BITS,
                DestinationKey::new(*port, address::mapped([0; 4])),
            );
            entries.entry(v4).or_insert(action::UNKNOWN);
        }
    }
    for Destination { network, port, action } in destinations {
        entries.insert(entry(*network, *port), *action);
    }
    entries
}

/// `::ffff:0:0`
const V4_MAPPED: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0));
/// Bits of `::ffff:0:0/96`.
const V4_PREFIX_BITS: u32 = 96;

fn entry(network: IpNet, port: u16) -> (u32, DestinationKey) {
    let (address, bits) = match network.network() {
        IpAddr::V4(v4) => (address::mapped(v4.octets()), V4_PREFIX_BITS + u32::from(network.prefix_len())),
        IpAddr::V6(v6) => (v6.octets(), u32::from(network.prefix_len())),
    };
    (DestinationKey::PORT_BITS + bits, DestinationKey::new(port, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(network: &str, port: u16, action: u32) -> Destination {
        Destination { network: network.parse().unwrap(), port, action }
    }

    #[test]
    fn an_ipv6_network_does_not_cover_ipv4() {
        let everywhere = entries(&[destination("::/0", 443, action::INTERCEPT)]);
        let v4 = entry("0.0.0.0/0".parse().unwrap(), 443);
        assert_eq!(everywhere.get(&v4), Some(&action::UNKNOWN));
        let both = entries(&[
            destination("0.0.0.0/0", 443, action::DENY),
            destination("::/0", 443, action::INTERCEPT),
        ]);
        assert_eq!((both.get(&v4), both.len()), (Some(&action::DENY), 2));
        assert_eq!(entries(&[destination("2001:db8::/32", 0, action::PASS)]).len(), 1);
    }
}
