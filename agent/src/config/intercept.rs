//! Which connections are read: by the name that their client asks for, by address, by port, and what is left unread all the same.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use weir_core::policy::glob;
use weir_ebpf::action;

use crate::kernel::Destination;

/// Which destinations are terminated.
#[derive(Debug, Clone)]
pub struct InterceptList {
    entries: Vec<Intercept>,
    bypass: Bypass,
}

/// What is relayed although it is on the list: for clients that pin their servers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Bypass {
    names: Vec<String>,
    cidrs: Vec<IpNet>,
}

/// A destination is terminated when its port is here, and its name or its address matches.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Intercept {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    cidrs: Vec<IpNet>,
    #[serde(default = "https")]
    ports: Vec<u16>,
}

fn https() -> Vec<u16> {
    vec![443]
}

impl Default for InterceptList {
    /// Everything on the web's ports.
    fn default() -> Self {
        let everywhere = [IpNet::from(ipnet::Ipv4Net::default()), IpNet::from(ipnet::Ipv6Net::default())];
        let entries = vec![Intercept { names: vec![], cidrs: everywhere.to_vec(), ports: vec![80, 443] }];
        Self { entries, bypass: Bypass::default() }
    }
}

impl Intercept {
    pub(super) fn fault(&self) -> Option<&'static str> {
        (self.names.is_empty() && self.cidrs.is_empty()).then_some(
            "an intercept entry needs names or cidrs; cidrs = [\"0.0.0.0/0\", \"::/0\"] is everywhere",
        )
    }
}

impl InterceptList {
    /// Without any entry the usual ones.
    pub(super) fn new(entries: Vec<Intercept>, bypass: Bypass) -> Self {
        let entries = if entries.is_empty() { Self::default().entries } else { entries };
        Self { entries, bypass }
    }

    /// Whether a connection to this address is terminated, given the name that the client asked for.
    pub fn covers(&self, name: Option<&str>, address: IpAddr, port: u16) -> bool {
        let name = name.map(str::to_ascii_lowercase);
        self.entries.iter().filter(|entry| entry.ports.contains(&port)).any(|entry| {
            let named = |name: &String| entry.names.iter().any(|n| glob(&n.to_ascii_lowercase(), name));
            name.as_ref().is_some_and(named) || entry.cidrs.iter().any(|cidr| cidr.contains(&address))
        })
    }

    /// What the hooks are to be told of it. An entry by name covers its ports everywhere: which name is meant shows later.
    pub fn destinations(&self) -> Vec<Destination> {
        let everywhere = [IpNet::from(ipnet::Ipv4Net::default()), IpNet::from(ipnet::Ipv6Net::default())];
        let mut destinations = Vec::new();
        for entry in &self.entries {
            let networks = if entry.names.is_empty() { &entry.cidrs[..] } else { &everywhere };
            for &port in &entry.ports {
                let action = action::INTERCEPT;
                destinations.extend(networks.iter().map(|&network| Destination { network, port, action }));
            }
        }
        destinations
    }

    /// Whether connections to this address are relayed in any case.
    pub fn bypasses_address(&self, address: IpAddr) -> bool {
        self.bypass.cidrs.iter().any(|cidr| cidr.contains(&address))
    }

    /// Whether connections are relayed whose client asks for this name. It is the client's word.
    pub fn bypasses_name(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.bypass.names.iter().any(|pattern| glob(&pattern.to_ascii_lowercase(), &name))
    }

    /// Whether some name could make a connection to this port terminated: then its first bytes must be read.
    pub fn may_cover(&self, port: u16) -> bool {
        self.entries.iter().any(|entry| entry.ports.contains(&port))
    }
}
