//! The first detectors: secrets that are known by their form. Rule files come later. Where two find the same
//! place, the earlier one names it.

use std::ops::Range;
use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

/// One kind of secret.
#[derive(Debug)]
pub struct Detector {
    pub name: &'static str,
    /// The group `secret`, or else the whole match, is what gets replaced.
    pattern: Regex,
}

impl Detector {
    /// Where the secrets of this kind are, front to back.
    pub fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
        self.pattern.captures_iter(text).filter_map(|found| {
            let secret = found.name("secret").or_else(|| found.get(0))?;
            Some(secret.range())
        })
    }
}

/// What stands behind a secret's name. The one detector that goes by the words around a secret.
pub const ASSIGNED: &str = "assigned-secret";

/// All detectors, in order.
pub fn all() -> &'static [Detector] {
    &DETECTORS
}

/// Where a masker has been before.
pub fn replacements(text: &str) -> impl Iterator<Item = Range<usize>> {
    REPLACEMENT.find_iter(text).map(|found| found.range())
}

static REPLACEMENT: LazyLock<Regex> = LazyLock::new(|| compile(r"\[masked:[a-z-]{1,40}:p0:[0-9a-f]{16}\]"));

static DETECTORS: LazyLock<Vec<Detector>> = LazyLock::new(|| {
    [
        ("private-key", r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\z)"),
        ("aws-access-key", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
        ("github-token", r"\b(?:gh[pousr]_[0-9A-Za-z]{36,255}|github_pat_[0-9A-Za-z_]{60,255})\b"),
        ("gitlab-token", r"\bgl(?:pat|ptt|dt|rt|cbt)-[0-9A-Za-z_-]{20,64}"),
        ("slack-token", r"\bxox[abeoprs]-[0-9A-Za-z-]{10,250}"),
        ("npm-token", r"\bnpm_[0-9A-Za-z]{36}\b"),
        ("api-key", r"\bsk-[0-9A-Za-z_-]{20,250}"),
        ("jwt", r"\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]*"),
        ("bearer", r"(?i)\bbearer\s+(?P<secret>[0-9A-Za-z._~+/=-]{8,})"),
        ("url-password", r"://[^/\s:@]{0,256}:(?P<secret>[^/\s@\[\]]{1,256})@"),
        (
            ASSIGNED,
            r#"(?i)(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key)["']?\s{0,4}(?:[:=]|\s)\s{0,4}["']?(?P<secret>[^\s"',;&\[\]{}]{8,256})"#,
        ),
    ]
    .into_iter()
    .map(|(name, pattern)| Detector { name, pattern: compile(pattern) })
    .collect()
});

#[expect(clippy::expect_used, reason = "the patterns are constants, and a test uses each")]
fn compile(pattern: &str) -> Regex {
    RegexBuilder::new(pattern).size_limit(8 << 20).build().expect("a valid pattern")
}

/// Whether a JSON member or a variable of this name holds a secret whatever its value looks like.
pub fn is_secret_name(name: &str) -> bool {
    const WORDS: [&str; 14] = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "apikey",
        "accesskey",
        "secretkey",
        "privatekey",
        "clientsecret",
        "authorization",
        "credential",
        "credentials",
        "cookie",
    ];
    // MCP's own names that end alike and are no secrets.
    const HARMLESS: [&str; 2] = ["progresstoken", "nextpagetoken"];
    let letters = name.bytes().rev().filter(u8::is_ascii_alphanumeric).take(32);
    let end: Vec<u8> = letters.map(|byte| byte.to_ascii_lowercase()).collect();
    let folded: String = end.into_iter().rev().map(char::from).collect();
    !HARMLESS.contains(&folded.as_str()) && WORDS.iter().any(|word| folded.ends_with(word))
}

#[cfg(test)]
mod tests {
    use super::super::tests::masker;
    use super::*;

    #[test]
    fn each_kind_of_secret_is_found_and_plain_words_are_not() {
        for (name, text, secret) in [
            ("aws-access-key", "key AKIAIOSFODNN7EXAMPLE.", "AKIAIOSFODNN7EXAMPLE"),
            ("github-token", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijkl"),
            ("gitlab-token", "glpat-abcdefghij0123456789", "abcdefghij"),
            ("slack-token", "xoxb-123456789012-abcdef", "123456789012"),
            ("npm-token", "npm_abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijkl"),
            ("api-key", "sk-proj-abcdefghij0123456789", "abcdefghij"),
            ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln", "eyJzdWIi"),
            ("bearer", "Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
            ("url-password", "postgres://u:hunter2@db/x", "hunter2"),
            ("assigned-secret", "--password correct-horse", "correct-horse"),
            ("assigned-secret", "DB_TOKEN=correct-horse", "correct-horse"),
            ("private-key", "-----BEGIN RSA PRIVATE KEY-----\nMIIabc", "MIIabc"),
        ] {
            let (out, spans) = masker().text_spans(text);
            assert!(!out.as_str().contains(secret), "{}", out.as_str());
            assert!(spans.iter().any(|span| span.detector == name), "{name}: {spans:?}");
        }
        for text in ["the quick brown fox", "token: x", "sky-high", "https://example.test:8443/mcp"] {
            assert_eq!(masker().text(text).as_str(), text);
        }
    }

    #[test]
    fn names_of_secrets_are_known_by_their_end() {
        let long = format!("{}_password", "x".repeat(1000));
        for name in
            ["password", "db_password", "X-Api-Key", "accessKey", "Authorization", "client_secret", &long]
        {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["progressToken", "tokens_used", "name", "path"] {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
