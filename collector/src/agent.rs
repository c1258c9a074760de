//! Who an agent is: what a connection proves comes in (the kernel's word on a unix socket, a certificate over TLS), and
//! an [`Agent`] goes out that each handler judges requests by. Nothing that a body says ever makes one.

use std::fmt;

use weir_core::wire::{Reason, Refusal};

/// The peer of an admitted connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Agent {
    /// An agent of this very host, by the kernel's word: it runs as this user. What it calls its host is its own affair.
    Local { uid: u32 },
    /// An agent that showed a certificate of the agents' CA.
    Enrolled(Enrolled),
}

/// What a certificate says. It stays the same when the certificate is renewed, but for the fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Enrolled {
    pub tenant: String,
    /// What the host calls itself in each of its records.
    pub host: String,
    /// Names the enrolment: 32 hex digits, the same in each renewed certificate. A revocation is of it.
    pub enrolment: String,
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
}

/// The user of an agent that has none here: no process runs as it.
pub const NO_UID: u32 = u32::MAX;

impl Agent {
    /// The user by the kernel's word, or [`NO_UID`].
    pub fn uid(&self) -> u32 {
        match self {
            Agent::Local { uid } => *uid,
            Agent::Enrolled(_) => NO_UID,
        }
    }

    /// What the store keeps beside what came: `uid:0`, or `agent:` and the enrolment. Shares are of it, too.
    pub fn identity(&self) -> String {
        self.to_string()
    }

    /// Whether this agent may speak for a host of a tenant: an enrolled one for its own alone.
    pub fn may_speak_for(&self, tenant: &str, host: &str) -> bool {
        match self {
            Agent::Local { .. } => true,
            Agent::Enrolled(own) => own.tenant == tenant && own.host == host,
        }
    }

    /// The same, as the refusal that the agent gets.
    pub fn speaks_for(&self, tenant: &str, host: &str) -> Result<(), Refusal> {
        match self {
            Agent::Enrolled(own) if !self.may_speak_for(tenant, host) => {
                let message = format!(
                    "this certificate is of the host {}/{}, and the request is of {tenant}/{host}; set the host's name back, \
                     or enrol it under the new one",
                    own.tenant, own.host
                );
                Err(Refusal { reason: Reason::Forbidden, message: crate::visible::line(&message) })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Agent::Local { uid } => write!(f, "uid:{uid}"),
            Agent::Enrolled(own) => write!(f, "agent:{}", own.enrolment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enrolled_agent_speaks_for_its_own_host_alone() {
        let own = Enrolled {
            tenant: "t".into(),
            host: "h".into(),
            enrolment: "e".repeat(32),
            fingerprint: "f".repeat(64),
        };
        let agent = Agent::Enrolled(own);
        assert!(agent.speaks_for("t", "h").is_ok());
        for (tenant, host) in [("t", "other"), ("other", "h"), ("t", ""), ("h", "t"), ("t", "h\u{202e}")] {
            let refused = agent.speaks_for(tenant, host).unwrap_err();
            assert_eq!(refused.reason, Reason::Forbidden);
            assert!(refused.message.contains("t/h") && !refused.message.contains('\u{202e}'), "{refused}");
        }
        assert_eq!((agent.uid(), agent.identity()), (NO_UID, format!("agent:{}", "e".repeat(32))));
    }

    #[test]
    fn a_local_agent_is_known_by_its_user() {
        let agent = Agent::Local { uid: 7 };
        assert!(agent.speaks_for("any", "host").is_ok());
        assert_eq!((agent.uid(), agent.identity()), (7, "uid:7".to_owned()));
    }
}
