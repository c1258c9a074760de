//! Who may not know whom: the edges between rooms that must not exist, and the check that they do not.
//!
//! In: the source files of the workspace and cargo's own graph of crates. Out: each forbidden edge with file, line and the
//! rule. Inside a crate it reads paths, in `use` and elsewhere; between crates it asks cargo. Test modules are not looked at.

mod crates;
mod paths;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A room, and what it must not name. docs/architecture.md gives the reasons.
#[derive(Debug)]
struct Rule {
    /// Files and folders, from the workspace's root.
    room: &'static [&'static str],
    /// Parts of them that may.
    except: &'static [&'static str],
    /// A crate's name, `a::b` anywhere in a path, or `*::Name` for a name anywhere.
    forbids: &'static [&'static str],
    says: &'static str,
}

const ROOTS: [&str; 7] = [
    "agent/src",
    "agent/core/src",
    "agent-ebpf/src",
    "collector/src",
    "collector/embedded/src",
    "tests/src",
    "xtask/src",
];

const RULES: &[Rule] = &[
    Rule {
        room: &ROOTS,
        except: &["agent/src/kernel.rs", "agent/src/kernel", "agent-ebpf/src"],
        forbids: &["aya", "aya_obj"],
        says: "only agent/src/kernel knows aya",
    },
    Rule {
        room: &["agent/core/src"],
        except: &[],
        forbids: &[
            "tokio",
            "aya",
            "rustls",
            "hyper",
            "nix",
            "std::fs",
            "std::process",
            "std::os",
            "net::TcpStream",
            "net::TcpListener",
            "net::UdpSocket",
            "SystemTime::now",
            "Instant::now",
            "Timestamp::now",
            "Zoned::now",
        ],
        says: "agent/core is pure: no runtime, no TLS, no files, no sockets, no clock",
    },
    Rule {
        room: &["agent/src/tls.rs", "agent/src/tls"],
        except: &[],
        forbids: &["weir_core::mcp", "weir_core::policy", "weir::gate"],
        says: "tls does not know MCP or policy",
    },
    Rule {
        room: &["agent/src/http.rs", "agent/src/http"],
        except: &[],
        forbids: &["weir_core::policy", "weir::spool", "weir::ledger"],
        says: "http does not know policy or the spool",
    },
    Rule {
        room: &["agent/core/src/mcp.rs", "agent/core/src/mcp"],
        except: &[],
        forbids: &["http", "hyper", "rustls", "http_body_util"],
        says: "core/mcp does not know HTTP or TLS",
    },
    Rule {
        room: &["agent/core/src/policy.rs", "agent/core/src/policy"],
        except: &[],
        forbids: &["*::Flow", "*::FlowOrigin", "net::SocketAddr", "weir_ebpf"],
        says: "core/policy sees a Subject and a Call, no sockets and no Flow",
    },
    Rule {
        room: &["agent/src/spool.rs", "agent/src/spool"],
        except: &[],
        forbids: &["weir_core::record", "*::Record", "*::OpenRecord", "weir::ledger"],
        says: "the spool stores bytes and does not know Record",
    },
    Rule {
        room: &ROOTS,
        except: &["agent/core/src/mask.rs", "agent/src/ledger"],
        forbids: &["*::MaskedByPeer"],
        says: "only the ledger trusts what another process masked",
    },
    Rule {
        room: &["collector/src"],
        except: &[],
        forbids: &["weir", "weir_ebpf"],
        says: "the collector shares agent/core alone with the agent",
    },
    Rule {
        room: &["agent/src", "agent/core/src"],
        except: &[],
        forbids: &["weir_collector", "clickhouse"],
        says: "the agent does not know the collector or ClickHouse",
    },
];

/// The crates by their folders, as paths name them.
const CRATES: [(&str, &str); 7] = [
    ("agent/core/src", "weir_core"),
    ("agent/src", "weir"),
    ("agent-ebpf/src", "weir_ebpf"),
    ("collector/embedded/src", "weir_store"),
    ("collector/src", "weir_collector"),
    ("tests/src", "weir_tests"),
    ("xtask/src", "xtask"),
];

/// A forbidden edge that was found.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    file: PathBuf,
    line: usize,
    path: String,
    rule: &'static str,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: `{}`: {}", self.file.display(), self.line, self.path, self.rule)
    }
}

/// Looks at all rooms; fails when there is a forbidden edge, after printing each.
pub fn check(workspace: &Path) -> Result<()> {
    let mut faults: Vec<String> = Vec::new();
    for rule in RULES {
        let files = files_of(workspace, rule)?;
        if files.is_empty() {
            faults.push(format!("{}: no such room: has it moved? ({})", rule.room.join(", "), rule.says));
        }
        for file in files {
            let source = std::fs::read_to_string(workspace.join(&file))
                .with_context(|| format!("{}", file.display()))?;
            faults.extend(in_source(rule, &file, &source).iter().map(ToString::to_string));
        }
    }
    faults.extend(crates::check(workspace)?);
    for fault in &faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        bail!("edges between rooms that must not be: {}", faults.len());
    }
    Ok(())
}

/// The forbidden edges in one file of a room.
fn in_source(rule: &Rule, file: &Path, source: &str) -> Vec<Found> {
    paths::named_in(source, &module_of(file))
        .into_iter()
        .filter(|named| rule.forbids.iter().any(|forbidden| names(&named.segments, forbidden)))
        .map(|named| Found {
            file: file.to_path_buf(),
            line: named.line,
            path: named.segments.join("::"),
            rule: rule.says,
        })
        .collect()
}

fn names(path: &[String], forbidden: &str) -> bool {
    let wanted: Vec<&str> = forbidden.split("::").collect();
    match wanted.as_slice() {
        [krate] => path.first().is_some_and(|first| first == krate),
        ["*", name] => path.iter().any(|segment| segment == name),
        _ => path.windows(wanted.len()).any(|window| window == wanted.as_slice()),
    }
}

/// The module that a file is: `agent/src/tls/accept.rs` is `weir::tls::accept`.
fn module_of(file: &Path) -> Vec<String> {
    let Some((inside, name)) =
        CRATES.iter().find_map(|(folder, name)| Some((file.strip_prefix(folder).ok()?, *name)))
    else {
        return Vec::new();
    };
    let mut module = vec![name.to_owned()];
    module.extend(
        inside.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()),
    );
    if module.len() == 2 && (module[1] == "lib" || module[1] == "main") {
        module.truncate(1);
    }
    module
}

fn files_of(workspace: &Path, rule: &Rule) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for room in rule.room {
        gather(workspace, Path::new(room), &mut files)?;
    }
    files.retain(|file| !rule.except.iter().any(|except| file.starts_with(except)));
    files.sort();
    Ok(files)
}

fn gather(workspace: &Path, at: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let whole = workspace.join(at);
    if whole.is_file() {
        files.push(at.to_path_buf());
    } else if whole.is_dir() {
        for entry in std::fs::read_dir(&whole)? {
            let inner = at.join(entry?.file_name());
            if workspace.join(&inner).is_dir() || inner.extension().is_some_and(|extension| extension == "rs")
            {
                gather(workspace, &inner, files)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, source: &str) -> Vec<(usize, &'static str)> {
        RULES
            .iter()
            .filter(|rule| {
                rule.room.iter().any(|room| Path::new(file).starts_with(room))
                    && !rule.except.iter().any(|except| Path::new(file).starts_with(except))
            })
            .flat_map(|rule| in_source(rule, Path::new(file), source))
            .map(|found| (found.line, found.rule))
            .collect()
    }

    #[test]
    fn each_forbidden_edge_is_caught() {
        for (file, source) in [
            ("agent/src/gate.rs", "use aya::maps::HashMap;"),
            ("collector/src/rows.rs", "fn f() { aya::Ebpf::load(&[]); }"),
            ("agent/core/src/record.rs", "use std::{fs, io};"),
            ("agent/core/src/record.rs", "let now = std::time::SystemTime::now();"),
            ("agent/core/src/record.rs", "use std::time::Instant; fn f() { Instant::now(); }"),
            ("agent/core/src/mcp/sse.rs", "use hyper::body::Body;"),
            ("agent/core/src/policy.rs", "use weir_ebpf::FlowOrigin;"),
            ("agent/src/tls/accept.rs", "use weir_core::{ids, policy::Verdict};"),
            ("agent/src/http/exchange.rs", "use crate::spool::Writer;"),
            ("agent/src/http/exchange.rs", "use super::super::spool;"),
            ("agent/src/http.rs", "use weir_core::policy as p;"),
            ("agent/src/spool/writer.rs", "use weir_core::record::Record;"),
            ("collector/src/ingest.rs", "use weir::config::Config;"),
            ("agent/src/gate.rs", "use weir_core::mask::MaskedByPeer;"),
            ("agent/src/ship.rs", "use ::clickhouse::Client;"),
        ] {
            assert!(!found(file, source).is_empty(), "{file}: {source}");
        }
    }

    #[test]
    fn what_is_allowed_is_left_alone() {
        for (file, source) in [
            ("agent/src/kernel/load.rs", "use aya::Ebpf;"),
            ("agent/core/src/record.rs", "use std::net::{IpAddr, SocketAddr}; use std::time::Duration;"),
            (
                "agent/core/src/record.rs",
                "// std::fs::read is not called here\nconst S: &str = \"std::fs::read\";",
            ),
            ("agent/core/src/record.rs", "#[cfg(test)]\nmod tests { use std::fs; }"),
            ("agent/src/http/exchange.rs", "use crate::limits::Limits; use weir_core::mcp::Message;"),
            ("collector/src/ingest.rs", "use weir_core::wire; use crate::rows;"),
            ("agent/src/gate.rs", "use weir_core::policy::Verdict; let x: &'static str = r#\"aya::x\"#;"),
        ] {
            assert_eq!(found(file, source), [], "{file}: {source}");
        }
    }

    #[test]
    fn an_edge_is_told_with_its_line_and_rule() {
        let source =
            "//! A room.\n\nuse std::io;\nuse weir_core::{\n    ids::CallId,\n    record::Record,\n};\n";
        let rule = RULES.iter().find(|rule| rule.room[0] == "agent/src/spool.rs").unwrap();
        let edges = in_source(rule, Path::new("agent/src/spool.rs"), source);
        assert_eq!(
            edges[0].to_string(),
            "agent/src/spool.rs:6: `weir_core::record::Record`: the spool stores bytes and does not know Record"
        );
    }

    #[test]
    fn a_file_is_the_module_it_lies_in() {
        assert_eq!(module_of(Path::new("agent/src/tls/accept.rs")), ["weir", "tls", "accept"]);
        assert_eq!(module_of(Path::new("agent/core/src/lib.rs")), ["weir_core"]);
    }
}
