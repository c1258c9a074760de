//! `[select]`: whose connections are led through the proxy. One table, or several `[[select]]` with an egress of their own.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{MapAccess, SeqAccess, Visitor, value};
use serde::{Deserialize, Deserializer};

/// All that is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Select {
    pub entries: Vec<SelectEntry>,
}

/// What is selected together, and what holds for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectEntry {
    /// Where the hooks are attached: what lies outside of these cgroups is never looked at. Absolute, or relative to the
    /// cgroup2 mount. Nowhere named: the whole hierarchy.
    pub attach: Vec<PathBuf>,
    /// Cgroups with all those below: paths or globs, absolute or relative to the cgroup2 mount. One without a slash is
    /// the name of a folder at any depth.
    pub cgroups: Vec<String>,
    /// Executables: absolute paths or globs. Each start of one begins a job of its own.
    pub executables: Vec<String>,
    pub uids: Vec<UserName>,
    pub egress: Reach,
}

/// A number, or a name of the user database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum UserName {
    Number(u32),
    Name(String),
}

/// What a job may reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Everything that is not denied.
    #[default]
    Open,
    /// Named destinations alone.
    Strict,
}

impl Select {
    /// One cgroup alone, with the hooks at this very cgroup.
    pub fn only(cgroup: &Path) -> Self {
        let name = cgroup.to_string_lossy().into_owned();
        let entry =
            SelectEntry { attach: vec![cgroup.to_owned()], cgroups: vec![name], ..SelectEntry::default() };
        Self { entries: vec![entry] }
    }

    pub fn is_empty(&self) -> bool {
        self.entries
            .iter()
            .all(|entry| entry.cgroups.is_empty() && entry.executables.is_empty() && entry.uids.is_empty())
    }

    /// The first pattern that could select nothing, with what is wrong with it.
    pub fn fault(&self) -> Option<String> {
        let cgroups = self.entries.iter().flat_map(|entry| &entry.cgroups);
        for pattern in cgroups {
            let parts = pattern.trim_matches('/').split('/');
            if parts.clone().any(|part| part.is_empty() || part == "." || part == "..") {
                return Some(format!(
                    "{pattern:?} selects no cgroup: write a path below the cgroup2 mount, without . and .."
                ));
            }
        }
        let executables = self.entries.iter().flat_map(|entry| &entry.executables);
        let relative = executables.into_iter().find(|pattern| !pattern.starts_with('/'))?;
        Some(format!(
            "{relative:?} is no executable's path: write it from the root, as in \"/usr/bin/runner\""
        ))
    }
}

impl<'de> Deserialize<'de> for Select {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;
        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Select;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a [select] table or several [[select]]")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Select, A::Error> {
                let entry = SelectEntry::deserialize(value::MapAccessDeserializer::new(map))?;
                Ok(Select { entries: vec![entry] })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Select, A::Error> {
                let entries = Vec::deserialize(value::SeqAccessDeserializer::new(seq))?;
                Ok(Select { entries })
            }
        }
        reader.deserialize_any(OneOrSeveral)
    }
}

/// `[stdio]`: MCP servers that speak over pipes, which no hook sees.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stdio {
    /// Globs for a command line: the program's name without its folder, then its arguments, separated by spaces.
    pub patterns: Vec<String>,
}

impl Default for Stdio {
    fn default() -> Self {
        const RUNNERS: [&str; 9] =
            ["npx", "uvx", "uv", "bunx", "pipx run", "docker run", "podman run", "node", "python*"];
        const DIRECT: [&str; 4] = ["mcp-server-*", "*-mcp-server", "*-mcp-server *", "github-mcp-server *"];
        let runners = RUNNERS.iter().map(|runner| format!("{runner} *mcp*"));
        let known = ["npx *@modelcontextprotocol/*", "docker run *mcp/*", "uvx *mcp*"];
        let all = runners.chain(known.map(str::to_owned)).chain(DIRECT.map(str::to_owned));
        let mut patterns: Vec<String> = all.collect();
        patterns.dedup();
        Self { patterns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Document {
        select: Select,
    }

    fn select(text: &str) -> Result<Select, String> {
        toml::from_str::<Document>(text).map(|document| document.select).map_err(|e| e.to_string())
    }

    #[test]
    fn one_table_and_several_are_read() {
        let one =
            select("[select]\ncgroups = [\"a\"]\nuids = [1000, \"runner\"]\negress = \"strict\"").unwrap();
        assert_eq!(one.entries.len(), 1);
        assert_eq!(one.entries[0].uids, [UserName::Number(1000), UserName::Name("runner".into())]);
        assert_eq!(one.entries[0].egress, Reach::Strict);
        let two = select("[[select]]\ncgroups = [\"a\"]\n[[select]]\nexecutables = [\"/b\"]\n").unwrap();
        assert_eq!((two.entries.len(), two.entries[1].egress), (2, Reach::Open));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(select("[select]\ncgroup = []").unwrap_err().contains("unknown field `cgroup`"));
        assert!(select("select = 1").unwrap_err().contains("a [select] table"));
        assert!(select("[select]\negress = \"none\"").unwrap_err().contains("unknown variant"));
        for (text, expected) in [
            ("cgroups = [\"a/../b\"]", "selects no cgroup"),
            ("cgroups = [\"/\"]", "selects no cgroup"),
            ("executables = [\"runner\"]", "write it from the root"),
        ] {
            let fault = select(&format!("[select]\n{text}")).unwrap().fault().unwrap();
            assert!(fault.contains(expected), "{fault}");
        }
        assert_eq!(select("[select]\ncgroups = [\"*/actions.runner.*.service\"]").unwrap().fault(), None);
    }
}
