//! Where selected processes may go: what becomes of destinations that are not on the intercept list.

use std::ops::Range;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;
use weir_ebpf::action;

use crate::kernel::Destination;

/// The rules of egress. Where both say something, the intercept list goes before them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// For destinations that no rule names, of jobs that are not strict.
    #[serde(default)]
    pub default: Treatment,
    #[serde(default)]
    rule: Vec<Spanned<Rule>>,
}

/// A rule with the very port goes before one for any, then the longer prefix before the shorter.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    cidrs: Vec<IpNet>,
    /// None is any port.
    #[serde(default)]
    ports: Vec<u16>,
    action: Treatment,
}

/// What becomes of a connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Treatment {
    /// Led through the agent, which passes it on and records its name and bytes.
    #[default]
    Relay,
    /// Made directly; that it was is recorded.
    Pass,
    /// Refused.
    Deny,
}

impl Treatment {
    /// As the hooks know it.
    pub fn action(self) -> u32 {
        match self {
            Treatment::Relay => action::RELAY,
            Treatment::Pass => action::PASS,
            Treatment::Deny => action::DENY,
        }
    }
}

impl Egress {
    /// What the hooks are to be told of it.
    pub fn destinations(&self) -> Vec<Destination> {
        let mut destinations = Vec::new();
        for rule in self.rule.iter().map(Spanned::get_ref) {
            let ports = if rule.ports.is_empty() { &[0][..] } else { &rule.ports };
            for &port in ports {
                let action = rule.action.action();
                destinations.extend(rule.cidrs.iter().map(|&network| Destination { network, port, action }));
            }
        }
        destinations
    }

    /// The first rule that says nothing, where it stands, and why.
    pub(super) fn fault(&self) -> Option<(Range<usize>, &'static str)> {
        self.rule.iter().find_map(|rule| Some((rule.span(), rule.get_ref().fault()?)))
    }
}

impl Rule {
    fn fault(&self) -> Option<&'static str> {
        if self.cidrs.is_empty() {
            Some("an egress rule needs cidrs; cidrs = [\"0.0.0.0/0\", \"::/0\"] is everywhere")
        } else if self.ports.contains(&0) {
            Some("port 0 is no port; leave ports out for any of them")
        } else {
            None
        }
    }
}
