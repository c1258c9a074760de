//! Which suites there are: a side, an SDK on the other one, a revision, and how they speak.

use std::ffi::OsString;
use std::fmt;

use anyhow::{Context, Result, ensure};

use crate::places::{Setup, binary};
use crate::server::Scheme;

/// What the suite tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Server,
    Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// 2025-11-25: sessions, and all that the older ones have.
    Sessions,
    /// 2026-07-28.
    Stateless,
}

impl Revision {
    pub const BOTH: [Self; 2] = [Self::Sessions, Self::Stateless];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sessions => "2025-11-25",
            Self::Stateless => "2026-07-28",
        }
    }
}

/// A released SDK, which the tested server or client is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    TypeScript1,
    TypeScript2,
    Python1,
    Python2,
    /// rmcp.
    Rust,
}

impl Sdk {
    pub const ALL: [Self; 5] =
        [Self::TypeScript1, Self::TypeScript2, Self::Python1, Self::Python2, Self::Rust];

    pub fn name(self) -> &'static str {
        match self {
            Self::TypeScript1 => "TypeScript 1.x",
            Self::TypeScript2 => "TypeScript 2.x",
            Self::Python1 => "Python 1.x",
            Self::Python2 => "Python 2.x",
            Self::Rust => "rmcp",
        }
    }

    fn speaks(self, revision: Revision) -> bool {
        match self {
            Self::TypeScript1 | Self::Python1 => revision == Revision::Sessions,
            Self::TypeScript2 | Self::Python2 | Self::Rust => true,
        }
    }

    /// The command of its server, to which options are added.
    pub(crate) fn server(self, setup: &Setup) -> Result<Vec<OsString>> {
        Ok(match self {
            Self::TypeScript1 => node(setup, "server-typescript-1.mjs"),
            Self::TypeScript2 => node(setup, "server-typescript-2.mjs"),
            Self::Python1 => vec![setup.python_1().into(), setup.sdk_file("server_python.py").into()],
            Self::Python2 => vec![setup.python().into(), setup.sdk_file("server_python.py").into()],
            Self::Rust => vec![binary("weir-tests-rmcp-server")?.into()],
        })
    }

    /// The command of its client, to which the server's URL is added.
    pub(super) fn client(self, setup: &Setup) -> Result<Vec<OsString>> {
        Ok(match self {
            Self::TypeScript1 => node(setup, "conformance-client-typescript-1.mjs"),
            Self::TypeScript2 => node(setup, "conformance-client-typescript-2.mjs"),
            Self::Python1 => {
                vec![setup.python_1().into(), setup.sdk_file("conformance_client_python.py").into()]
            }
            Self::Python2 => {
                vec![setup.python().into(), setup.sdk_file("conformance_client_python.py").into()]
            }
            Self::Rust => vec![setup.shared_binary("weir-tests-rmcp-client")?.into()],
        })
    }

    /// The suite's scenarios that its client is put through: all, or without those of OAuth, which the TypeScript clients stand for.
    fn scenarios(self, revision: Revision) -> Option<Vec<&'static str>> {
        match (self, revision) {
            (Self::TypeScript1 | Self::TypeScript2, _) => None,
            (_, Revision::Sessions) => {
                Some(vec!["initialize", "tools_call", "elicitation-sep1034-client-defaults", "sse-retry"])
            }
            (_, Revision::Stateless) => {
                let all = [
                    "tools_call",
                    "request-metadata",
                    "http-standard-headers",
                    "http-custom-headers",
                    "http-invalid-tool-headers",
                    "sep-2322-client-request-state",
                    "json-schema-2020-12-preservation",
                    "json-schema-ref-no-deref",
                ];
                Some(all.to_vec())
            }
        }
    }
}

fn node(setup: &Setup, file: &str) -> Vec<OsString> {
    vec![setup.node_22().into(), setup.sdk_file(file).into()]
}

/// Behind any relay of TLS these fail or not by what the suite does and not by what the relay does: it writes other Host headers than
/// the certificate's, and leaves TLS to a library of its own. They are compared in plain text.
pub const PLAIN_ALONE: [&str; 3] =
    ["dns-rebinding-protection", "http-header-validation", "http-custom-header-server-validation"];

/// One run of the suite, to be done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    pub side: Side,
    pub sdk: Sdk,
    pub revision: Revision,
    pub scheme: Scheme,
    /// None: all that the revision requires, and what the suite runs besides.
    pub scenarios: Option<Vec<&'static str>>,
}

impl Suite {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for sdk in Sdk::ALL {
            for revision in Revision::BOTH.into_iter().filter(|&revision| sdk.speaks(revision)) {
                let suite = |side, scheme, scenarios| Self { side, sdk, revision, scheme, scenarios };
                all.push(suite(Side::Server, Scheme::Https, None));
                let plain = PLAIN_ALONE
                    .into_iter()
                    .filter(|name| revision == Revision::Stateless || *name == PLAIN_ALONE[0]);
                all.push(suite(Side::Server, Scheme::Http, Some(plain.collect())));
                // The suite's own servers speak plain text alone.
                all.push(suite(Side::Client, Scheme::Http, sdk.scenarios(revision)));
            }
        }
        all
    }

    /// What runs with every test: one SDK, and of the clients' scenarios those that need no seconds of waiting.
    pub fn quick() -> Vec<Self> {
        let of_one = |suite: &Self| {
            suite.sdk == Sdk::TypeScript2 && (suite.side == Side::Client || suite.scheme == Scheme::Https)
        };
        let mut quick: Vec<_> = Self::all().into_iter().filter(of_one).collect();
        for suite in quick.iter_mut().filter(|suite| suite.side == Side::Client) {
            suite.scenarios = Some(match suite.revision {
                Revision::Sessions => vec!["tools_call", "elicitation-sep1034-client-defaults"],
                Revision::Stateless => vec!["tools_call", "sep-2322-client-request-state"],
            });
        }
        quick
    }

    /// Whether a scenario's checks are compared in this suite.
    pub(super) fn compares(&self, scenario: &str) -> bool {
        self.side == Side::Client || self.scheme == Scheme::Http || !PLAIN_ALONE.contains(&scenario)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Server => "server",
            Side::Client => "client",
        };
        let scheme = match self.scheme {
            Scheme::Https => "TLS",
            Scheme::Http => "plain",
        };
        write!(f, "{side} {} {} {scheme}", self.sdk.name(), self.revision.name())
    }
}

/// Where the suite itself is.
pub(super) fn harness(setup: &Setup) -> Vec<OsString> {
    let mut command = vec![setup.node_22().into(), "--import".into(), setup.sdk_file("tap.mjs").into()];
    command.push(setup.sdk_file("node_modules/@modelcontextprotocol/conformance/dist/index.js").into());
    command
}

/// What a revision requires of a client, and what the suite runs besides, as its own list has it: `client:` and its names, then
/// `not_scored:` and its entries, each with a `leg`.
pub(super) fn client_scenarios(setup: &Setup, revision: Revision) -> Result<Vec<String>> {
    let folder = "node_modules/@modelcontextprotocol/conformance/requirements";
    let file = setup.sdk_file(folder).join(format!("{}.yaml", revision.name()));
    let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let scenarios = client_scenarios_in(&text);
    ensure!(!scenarios.is_empty(), "{} names no scenario of a client", file.display());
    Ok(scenarios)
}

fn client_scenarios_in(yaml: &str) -> Vec<String> {
    let (mut section, mut scenarios, mut unscored) = ("", Vec::new(), None);
    for line in yaml.lines() {
        let entry = line.trim_start();
        if !line.starts_with([' ', '#']) && line.ends_with(':') {
            section = line;
        } else if section == "client:"
            && let Some(name) = entry.strip_prefix("- ")
        {
            scenarios.push(name.to_owned());
        } else if let Some(name) = entry.strip_prefix("- scenario: ") {
            unscored = Some(name.to_owned());
        } else if entry == "leg: client" {
            scenarios.extend(unscored.take());
        }
    }
    scenarios
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenarios_of_clients_are_read_from_the_suites_own_list() {
        let yaml = "# client:\nserver:\n  - ping\nclient:\n  - initialize\n  - auth/basic\n\nnot_scored:\n  \
                    - scenario: tasks\n    leg: server\n  - scenario: auth/dpop\n    leg: client\n    reason: extension\n";
        assert_eq!(client_scenarios_in(yaml), ["initialize", "auth/basic", "auth/dpop"]);
    }
}
