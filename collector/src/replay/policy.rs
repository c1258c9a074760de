//! What another policy would have decided: rules of a file or a folder, and a story, come in; each call's verdict then
//! and now goes out.
//!
//! The record has a server's name and its address, not all other names of its certificate, under which rules that deny
//! or hold would apply, too.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use weir_core::policy::{Action, Call as Asked, Policy, PolicyError, Rule, Verdict};

use crate::bundle::{Call, Story};
use crate::masked::places;

/// The most bytes of a policy's file.
const MAX_FILE: u64 = 4 << 20;
/// The most entries of a folder.
const MAX_FILES: usize = 1_000;

/// Why there is no policy. The operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFault {
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}", path = path.display())]
    Wrong { path: PathBuf, message: String },
    #[error("{path} holds no file that ends in .toml, or more than {MAX_FILES} files", path = path.display())]
    Folder { path: PathBuf },
    #[error(transparent)]
    Rules(#[from] PolicyError),
}

/// The parts of an agent's configuration that decide; the others mean nothing here.
#[derive(Deserialize)]
struct Document {
    default_action: Option<Action>,
    #[serde(default)]
    rule: Vec<Rule>,
}

/// Reads the rules of an agent's configuration, or of each `.toml` file of a folder in the order of their names.
pub fn read(path: &Path) -> Result<Policy, PolicyFault> {
    let unreadable = |source| PolicyFault::Unreadable { path: path.to_owned(), source };
    let mut files = vec![path.to_owned()];
    if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        let entries: Result<Vec<_>, _> =
            std::fs::read_dir(path).map_err(unreadable)?.take(MAX_FILES + 1).collect();
        files = entries.map_err(unreadable)?.into_iter().map(|entry| entry.path()).collect();
        let are_too_many = files.len() > MAX_FILES;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
        files.sort();
        if files.is_empty() || are_too_many {
            return Err(PolicyFault::Folder { path: path.to_owned() });
        }
    }
    let (mut rules, mut default_action) = (Vec::new(), Action::Allow);
    for file in files {
        let unreadable = |source| PolicyFault::Unreadable { path: file.clone(), source };
        if std::fs::metadata(&file).map_err(unreadable)?.len() > MAX_FILE {
            return Err(PolicyFault::Wrong { path: file.clone(), message: "too large for a policy".into() });
        }
        let text = std::fs::read_to_string(&file).map_err(unreadable)?;
        let document: Document = toml::from_str(&text).map_err(|e| PolicyFault::Wrong {
            path: file.clone(),
            message: e.message().trim().replace('\n', ", "),
        })?;
        default_action = document.default_action.unwrap_or(default_action);
        rules.extend(document.rule);
    }
    Ok(Policy::new(rules, default_action)?)
}

/// One call under both policies.
#[derive(Debug, Clone)]
pub struct Judged {
    pub number: usize,
    pub seq: u64,
    pub method: String,
    pub tool: Option<String>,
    pub server: String,
    pub recorded: Verdict,
    pub now: Verdict,
    /// Whether what the rules look at was masked.
    pub inexact: bool,
}

impl Judged {
    fn of(call: &Call, policy: &Policy) -> Self {
        let intent = &call.intent;
        let (server, tool) = (&intent.server, intent.mcp.tool.as_deref());
        let also: Vec<String> =
            [&server.address].into_iter().filter(|address| **address != server.name).cloned().collect();
        let asked = Asked { server: &server.name, also: &also, method: &intent.mcp.method, tool };
        let names = [Some(server.name.as_str()), Some(intent.mcp.method.as_str()), tool];
        Self {
            number: call.number,
            seq: call.seq,
            method: intent.mcp.method.clone(),
            tool: intent.mcp.tool.clone(),
            server: server.name.clone(),
            recorded: intent.verdict.clone(),
            now: policy.verdict(asked),
            inexact: names.into_iter().flatten().any(|name| !places(name).is_empty()),
        }
    }

    /// Whether the call would have fared differently.
    pub fn is_changed(&self) -> bool {
        self.recorded.action != self.now.action
    }

    pub fn json(&self) -> Value {
        let verdict = |one: &Verdict| json!({ "action": one.action.as_str(), "rule": one.rule, "policy": one.policy_digest });
        let inexact = if self.inexact { vec!["masked name"] } else { Vec::new() };
        json!({
            "number": self.number, "seq": self.seq, "method": self.method, "tool": self.tool, "server": self.server,
            "changed": self.is_changed(), "recorded": verdict(&self.recorded), "now": verdict(&self.now),
            "inexact": inexact,
        })
    }

    /// For people.
    pub fn line(&self) -> String {
        let Self { number, method, tool, recorded, now, .. } = self;
        let what = tool.as_ref().map_or_else(|| method.clone(), |tool| format!("{method} {tool}"));
        let inexact = if self.inexact { "  inexact: masked name" } else { "" };
        let told = |one: &Verdict| format!("{} by {}", one.action.as_str(), one.rule);
        let word = if self.is_changed() { "different" } else { "same" };
        format!("{number:>4}  {word:<9}  {what}  {} -> {}{inexact}", told(recorded), told(now))
    }
}

/// Each call of the story under another policy.
pub fn judge(story: &Story, policy: &Policy) -> Vec<Judged> {
    story.calls.iter().map(|call| Judged::of(call, policy)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folders_rules_come_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert!(matches!(read(folder.path()), Err(PolicyFault::Folder { .. })));
        write("20.toml", "default_action = \"deny\"\n[[rule]]\nid = \"b\"\naction = \"deny\"\n");
        write(
            "10.toml",
            "tenant = \"x\"\n[[rule]]\nid = \"a\"\nwhen = { tool = \"deploy\" }\naction = \"allow\"\n",
        );
        write("README", "no policy");
        let policy = read(folder.path()).unwrap();
        let rule = |tool| policy.verdict(Asked { server: "s", also: &[], method: "tools/call", tool }).rule;
        assert_eq!((rule(Some("deploy")), rule(Some("echo"))), ("a".into(), "b".into()));
        write("30.toml", "[[rule]]\nid = \"a\"\naction = \"allow\"\n");
        assert!(read(folder.path()).unwrap_err().to_string().contains("two rules have the id"));
        write("30.toml", "[[rule]]\nid = 7\n");
        assert!(read(folder.path()).unwrap_err().to_string().contains("30.toml"));
    }
}
