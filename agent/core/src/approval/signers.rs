//! OpenSSH's allowed-signers file (ssh-keygen(1), ALLOWED SIGNERS): `principals [options] key`.
//!
//! An option that is not understood would widen what a key may do if it were passed over, so a line with one
//! is refused.

use ssh_key::PublicKey;

use super::NAMESPACE;
use crate::policy::glob;

/// Who may decide: public keys, and the principals that each stands for.
#[derive(Debug, Clone, Default)]
pub struct AllowedSigners {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    principals: Vec<String>,
    key: PublicKey,
}

/// A line that cannot be used. The operator is at fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {reason}")]
pub struct SignersError {
    pub line: usize,
    pub reason: String,
}

impl AllowedSigners {
    /// Reads the file's text. Lines for other namespaces than `weir-approval` are left out.
    pub fn parse(text: &str) -> Result<Self, SignersError> {
        let mut entries = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            entries.extend(entry(line).map_err(|reason| SignersError { line: at + 1, reason })?);
        }
        Ok(Self { entries })
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether any line has this key.
    pub fn knows(&self, key: &PublicKey) -> bool {
        self.entries.iter().any(|entry| entry.key.key_data() == key.key_data())
    }

    /// Whether `principal` may sign with this key.
    pub fn allows(&self, key: &PublicKey, principal: &str) -> bool {
        self.entries
            .iter()
            .filter(|entry| entry.key.key_data() == key.key_data())
            .any(|entry| entry.principals.iter().any(|pattern| glob(pattern, principal)))
    }

    /// The principals of this key that name one person (no pattern).
    pub fn principals(&self, key: &PublicKey) -> Vec<&str> {
        let entries = self.entries.iter().filter(|entry| entry.key.key_data() == key.key_data());
        let names = entries.flat_map(|entry| &entry.principals).map(String::as_str);
        names.filter(|name| !name.contains(['*', '?'])).collect()
    }
}

/// `None` for a line of another namespace.
fn entry(line: &str) -> Result<Option<Entry>, String> {
    let (principals, rest) = line.split_once([' ', '\t']).ok_or("expected `principals [options] key`")?;
    let principals: Vec<String> = principals.trim_matches('"').split(',').map(str::to_owned).collect();
    if let Some(odd) = principals.iter().find(|p| p.is_empty() || p.starts_with('!')) {
        return Err(format!("the principal {odd:?} is empty or negated, which is not supported"));
    }
    let rest = rest.trim_start();
    let (options, key) = match PublicKey::from_openssh(rest) {
        Ok(key) => ("", key),
        Err(_) => {
            let end = end_of_options(rest).ok_or("expected a public key, or options and a public key")?;
            let (options, key) = rest.split_at(end);
            (options, PublicKey::from_openssh(key.trim_start()).map_err(|e| format!("the public key: {e}"))?)
        }
    };
    let mut ours = true;
    for option in split_outside_quotes(options) {
        match option.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("namespaces") => {
                ours = value.trim_matches('"').split(',').any(|pattern| glob(pattern, NAMESPACE));
            }
            _ => return Err(format!("the option {option:?} is not supported; remove it or the line")),
        }
    }
    Ok(ours.then_some(Entry { principals, key }))
}

fn end_of_options(text: &str) -> Option<usize> {
    let mut quoted = false;
    text.find(|c: char| {
        quoted ^= c == '"';
        !quoted && c.is_ascii_whitespace()
    })
}

fn split_outside_quotes(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c: char| {
        quoted ^= c == '"';
        !quoted && c == ','
    })
    .filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    fn key() -> PublicKey {
        PublicKey::from_openssh(KEY).unwrap()
    }

    #[test]
    fn a_key_stands_for_its_principals_alone() {
        let text = format!("# approvers\n\nalice@example.test,bob {KEY} a comment\n");
        let signers = AllowedSigners::parse(&text).unwrap();
        assert!(signers.allows(&key(), "alice@example.test") && signers.allows(&key(), "bob"));
        assert!(!signers.allows(&key(), "mallory"));
        assert_eq!(signers.principals(&key()), ["alice@example.test", "bob"]);
    }

    #[test]
    fn a_line_of_another_namespace_is_no_approver() {
        let ours = AllowedSigners::parse(&format!("a namespaces=\"git,weir-approval\" {KEY}")).unwrap();
        assert!(ours.allows(&key(), "a"));
        let others = AllowedSigners::parse(&format!("a namespaces=\"git,file\" {KEY}")).unwrap();
        assert!(!others.knows(&key()));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for line in ["alice", "alice nonsense", &format!("a cert-authority {KEY}"), &format!("!a {KEY}")] {
            let error = AllowedSigners::parse(&format!("\n{line}")).unwrap_err();
            assert_eq!(error.line, 2, "{line}: {error}");
        }
        let until = AllowedSigners::parse(&format!("a valid-before=\"20300101\" {KEY}")).unwrap_err();
        assert!(until.reason.contains("valid-before"), "{until}");
    }
}
