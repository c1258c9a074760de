//! The tables by which the hooks decide: what the agent writes into them, and the counts that it reads back.
//!
//! Enters: selections, destinations, listeners. Leaves: entries that the hooks read. Must never: leave a table half
//! changed so that less is intercepted than before or after the change: what is new goes in before what is old goes out.

use std::{collections::BTreeMap, io, net::IpAddr};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray},
};
use ipnet::IpNet;
use weir_ebpf::{
    DestinationKey, FileKey, JobCounts, Listeners, LostTold, OWN_PORTS_ROOM, STRAY_JOB, Selected, Settings,
    Tag, action, address, verdict,
};

use super::{
    KernelError,
    guard::{Changed, Table, Watched},
    lookup_missing, take, unreadable,
};

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
    pub settings: Watched<Array<MapData, Settings>>,
    pub tasks: HashMap<MapData, u32, Tag>,
    pub cgroups: Watched<HashMap<MapData, u64, Selected>>,
    pub executables: Watched<HashMap<MapData, FileKey, Selected>>,
    pub users: Watched<HashMap<MapData, u32, Selected>>,
    pub jobs: HashMap<MapData, u64, JobCounts>,
    pub lost_told: HashMap<MapData, u64, LostTold>,
    pub destinations: Watched<LpmTrie<MapData, DestinationKey, u32>>,
    pub netns: Watched<HashMap<MapData, u64, Listeners>>,
    pub own_ports: Watched<HashMap<MapData, u16, u8>>,
    pub counts: PerCpuArray<MapData, u64>,
    /// Whether an agent before this one may still write into them.
    is_shared: bool,
}

impl Tables {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let mut tables = Self {
            settings: watched(ebpf, "SETTINGS")?,
            tasks: take(ebpf, "TASKS")?.try_into().map_err(unreadable)?,
            cgroups: watched(ebpf, "CGROUPS")?,
            executables: watched(ebpf, "EXECUTABLES")?,
            users: watched(ebpf, "USERS")?,
            jobs: take(ebpf, "JOBS")?.try_into().map_err(unreadable)?,
            lost_told: take(ebpf, "LOST_TOLD")?.try_into().map_err(unreadable)?,
            destinations: watched(ebpf, "DESTINATIONS")?,
            netns: watched(ebpf, "NETNS")?,
            own_ports: watched(ebpf, "OWN_PORTS")?,
            counts: take(ebpf, "COUNTS")?.try_into().map_err(unreadable)?,
            is_shared: true,
        };
        tables.begin_job(STRAY_JOB)?;
        Ok(tables)
    }

    /// What the agent wrote; until the tables are its own, what stands there.
    pub fn settings(&self) -> Result<Settings, KernelError> {
        let settings = if self.is_shared {
            self.settings.entries()?.into_iter().next().map(|(_, settings)| settings)
        } else {
            self.settings.written().get(&0).copied()
        };
        settings.ok_or_else(|| KernelError::Table {
            doing: "find the settings of the hooks",
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// From here on nobody else writes into the tables of rules: what stands in them now counts as this agent's.
    pub fn take_over(&mut self) -> Result<(), KernelError> {
        self.settings.take_over()?;
        self.cgroups.take_over()?;
        self.users.take_over()?;
        self.executables.take_over()?;
        self.destinations.take_over()?;
        self.netns.take_over()?;
        self.own_ports.take_over()?;
        self.is_shared = false;
        Ok(())
    }

    pub fn set_settings(&mut self, settings: Settings) -> Result<(), KernelError> {
        self.settings.insert(0, settings)
    }

    /// Makes the ports protected that selected cgroups may not reach, and no others.
    pub fn protect(&mut self, ports: &[u16]) -> Result<(), KernelError> {
        if ports.len() > OWN_PORTS_ROOM as usize {
            return Err(KernelError::TooManyPorts(ports.len()));
        }
        for port in ports {
            self.own_ports.insert(port, 1)?;
        }
        let mut old = self.own_ports.entries()?.into_iter().map(|(port, _)| port);
        old.try_for_each(|port| if ports.contains(&port) { Ok(()) } else { self.own_ports.remove(&port) })
    }

    /// Makes these the destinations with an action of their own.
    pub fn set_destinations(&mut self, destinations: &[Destination]) -> Result<(), KernelError> {
        let wanted = entries(destinations);
        wanted.iter().try_for_each(|(key, action)| self.destinations.insert(key, action))?;
        let mut old = self.destinations.entries()?.into_iter().map(|(key, _)| key);
        old.try_for_each(
            |key| if wanted.contains_key(&key) { Ok(()) } else { self.destinations.remove(&key) },
        )
    }

    pub fn add_destination(&mut self, destination: Destination) -> Result<(), KernelError> {
        self.destinations.insert(entry(destination.network, destination.port), destination.action)
    }

    /// Looks whether somebody else wrote into the tables of rules, and puts right what it finds.
    pub fn watch(&mut self) -> Result<Vec<Changed>, KernelError> {
        // What selects goes first.
        let found = [
            self.settings.watch()?,
            self.cgroups.watch()?,
            self.users.watch()?,
            self.executables.watch()?,
            self.destinations.watch()?,
            self.netns.watch()?,
            self.own_ports.watch()?,
        ];
        Ok(found.into_iter().flatten().collect())
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

fn watched<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<Watched<T>, KernelError>
where
    T: Table + TryFrom<Map, Error = MapError>,
{
    Watched::open(name, T::try_from(take(ebpf, name)?).map_err(unreadable)?)
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
