//! The first detectors: secrets that are known by their form. Rule files come later. Where two find the same
//! place, the earlier one names it.
//!
//! One pass over the text looks for the words that secrets begin with, and a detector looks at nothing but the places where its
//! own words are. Each [`Form`] reads a place at most once, or stops at the next one, so that the time grows with the
//! text's length alone, whatever is in it. Words and characters are ASCII's.

use std::ops::Range;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::forms::{Form, Token};

/// One kind of secret.
#[derive(Debug)]
pub struct Detector {
    pub name: &'static str,
    /// What its secrets begin with, or what stands before them; in any case of letters.
    words: &'static [&'static str],
    form: Form,
}

/// What stands behind a secret's name. The one detector that goes by the words around a secret.
pub const ASSIGNED: &str = "assigned-secret";

/// All detectors, in order.
pub fn all() -> &'static [Detector] {
    &DETECTORS
}

/// A place in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub range: Range<usize>,
    /// Which of [`all`] found it; [`REPLACED`] where a masker has been before.
    pub rank: usize,
}

const DETECTORS_IN_ALL: usize = 13;
/// Past all detectors.
pub const REPLACED: usize = usize::MAX;

/// Where secrets are, in the order of what they begin with. The places of one detector never overlap.
pub fn find(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    // Up to where each detector has looked.
    let mut seen = [0; DETECTORS_IN_ALL];
    for hit in WORDS.0.find_overlapping_iter(text) {
        let Some(&(rank, word)) = WORDS.1.get(hit.pattern().as_usize()) else { continue };
        let (Some(detector), Some(seen)) = (DETECTORS.get(rank), seen.get_mut(rank)) else { continue };
        let is_word = detector.form.ignores_case() || text.get(hit.range()) == Some(word);
        if hit.start() < *seen || !is_word {
            continue;
        }
        let (range, looked) = detector.form.at(text.as_bytes(), hit.start()..hit.end());
        *seen = looked;
        if let Some(range) = range {
            let rank = if matches!(detector.form, Form::Replaced) { REPLACED } else { rank };
            found.push(Found { range, rank });
        }
    }
    found
}

/// The words of all detectors, and whose each is.
static WORDS: LazyLock<(AhoCorasick, Vec<(usize, &str)>)> = LazyLock::new(|| {
    let own =
        |(rank, detector): (usize, &'static Detector)| detector.words.iter().map(move |word| (rank, *word));
    let words: Vec<(usize, &str)> = DETECTORS.iter().enumerate().flat_map(own).collect();
    let built = AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .match_kind(MatchKind::Standard)
        .kind(Some(AhoCorasickKind::DFA))
        .build(words.iter().map(|(_, word)| word));
    #[expect(clippy::expect_used, reason = "the words are constants, and a test uses each")]
    let automaton = built.expect("so few words have an automaton");
    (automaton, words)
});

/// A secret that begins with one of these words, letter for letter.
const fn token(name: &'static str, words: &'static [&'static str], token: Token) -> Detector {
    Detector { name, words, form: Form::Token(token) }
}

const fn after(name: &'static str, words: &'static [&'static str], form: Form) -> Detector {
    Detector { name, words, form }
}

const WORD: Token =
    Token { more: |byte| byte.is_ascii_alphanumeric(), least: 0, exact: false, ends_word: false };

static DETECTORS: [Detector; DETECTORS_IN_ALL] = [
    after("private-key", &["-----BEGIN "], Form::PrivateKey),
    token(
        "aws-access-key",
        &["AKIA", "ASIA", "ABIA", "ACCA"],
        Token {
            more: |byte| byte.is_ascii_uppercase() || matches!(byte, b'2'..=b'7'),
            least: 16,
            exact: true,
            ends_word: true,
        },
    ),
    token(
        "github-token",
        &["ghp_", "gho_", "ghu_", "ghs_", "ghr_"],
        Token { least: 36, ends_word: true, ..WORD },
    ),
    token(
        "github-token",
        &["github_pat_"],
        Token { more: |byte| byte.is_ascii_alphanumeric() || byte == b'_', least: 60, ..WORD },
    ),
    token(
        "gitlab-token",
        &["glpat-", "glptt-", "gldt-", "glrt-", "glcbt-"],
        Token { more: in_token, least: 20, ..WORD },
    ),
    token(
        "slack-token",
        &["xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-"],
        Token { more: |byte| byte.is_ascii_alphanumeric() || byte == b'-', least: 10, ..WORD },
    ),
    token("npm-token", &["npm_"], Token { least: 36, exact: true, ends_word: true, ..WORD }),
    token("api-key", &["sk-"], Token { more: in_token, least: 20, ..WORD }),
    after("jwt", &["eyJ"], Form::Jwt),
    after("bearer", &["bearer"], Form::Bearer),
    after("url-password", &["://"], Form::UrlPassword),
    after(
        ASSIGNED,
        &[
            "password",
            "passwd",
            "pwd",
            "secret",
            "token",
            "apikey",
            "api_key",
            "api-key",
            "accesskey",
            "access_key",
            "access-key",
            "privatekey",
            "private_key",
            "private-key",
        ],
        Form::Assigned,
    ),
    // What a masker wrote before, whose names look like secrets' names.
    after("", &["[masked:"], Form::Replaced),
];

fn in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
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
    // Letters and digits alone, the last ones of them, from the end.
    let (mut end, mut length) = ([0; 32], 0);
    for byte in name.bytes().rev().filter(u8::is_ascii_alphanumeric) {
        let Some(slot) = end.get_mut(length) else { break };
        *slot = byte.to_ascii_lowercase();
        length += 1;
    }
    let end = end.get(..length).unwrap_or_default();
    let ends_with =
        |word: &str| word.len() <= end.len() && word.bytes().rev().eq(end.iter().copied().take(word.len()));
    WORDS.iter().any(|word| ends_with(word))
        && !HARMLESS.iter().any(|name| name.len() == end.len() && ends_with(name))
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

    /// The same as patterns, to which each detector is held.
    const PATTERNS: [(&str, &str); 12] = [
        (
            "private-key",
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\z)",
        ),
        ("aws-access-key", r"(?-u:\b)(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?-u:\b)"),
        ("github-token", r"(?-u:\b)gh[pousr]_[0-9A-Za-z]{36,}(?-u:\b)"),
        ("github-token", r"(?-u:\b)github_pat_[0-9A-Za-z_]{60,}(?-u:\b)"),
        ("gitlab-token", r"(?-u:\b)gl(?:pat|ptt|dt|rt|cbt)-[0-9A-Za-z_-]{20,}"),
        ("slack-token", r"(?-u:\b)xox[abeoprs]-[0-9A-Za-z-]{10,}"),
        ("npm-token", r"(?-u:\b)npm_[0-9A-Za-z]{36}(?-u:\b)"),
        ("api-key", r"(?-u:\b)sk-[0-9A-Za-z_-]{20,}"),
        ("jwt", r"(?-u:\b)eyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]*"),
        ("bearer", r"(?i)(?-u:\b)bearer(?-u:\s)+(?P<secret>[0-9A-Za-z._~+/=-]{8,})"),
        ("url-password", r"://(?-u:[^/\s:@]*):(?P<secret>(?-u:[^/\s@\[\]]+))@"),
        (
            ASSIGNED,
            r#"(?i-u)(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key)["']?\s{0,4}(?:[:=]|\s)\s{0,4}["']?(?P<secret>[^\s"',;&\[\]{}]{8,})"#,
        ),
    ];

    #[test]
    fn each_detector_finds_what_its_pattern_does() {
        // Parts of secrets and of what is around them, put together at random: many are nearly secrets.
        const PARTS: [&str; 64] = [
            "-----BEGIN ",
            "RSA ",
            "PRIVATE KEY-----",
            "-----END ",
            "MIIa",
            "AKIA",
            "asia",
            "IOSFODNN7EXAMPLE",
            "ghp_",
            "github_pat_",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "ABCDEFGHIJ",
            "0123456789",
            "glpat-",
            "gldt-",
            "xoxb-",
            "npm_",
            "sk-",
            "eyJ",
            "hbGciOiJIUzI1NiJ9",
            "eyJhbGciOiJIUzI1NiJ9.",
            "eyJzdWIiOiIxMjM0In0.",
            "_abcdefghijklmnopqrstuvwxyz0123456789",
            "npm_abcdefghijklmnopqrstuvwxyz0123456789",
            ".",
            "_",
            "-",
            "Bearer",
            "bearer ",
            " ",
            "\t",
            "\n",
            "  ",
            "    ",
            "://",
            "https://",
            "://u:",
            "hunter2@",
            "u",
            ":",
            "@",
            "host",
            "/",
            "password",
            "PASSWD",
            "pwd",
            "secret",
            "token",
            "api_key",
            "api-key",
            "accesskey",
            "private_key",
            "=",
            ": ",
            " = ",
            "\"",
            "'",
            ",",
            "hunter2",
            "correct-horse",
            "\u{e9}",
            "[",
            "]",
            "{",
        ];
        let patterns: Vec<_> =
            PATTERNS.map(|(name, pattern)| (name, regex::bytes::Regex::new(pattern).unwrap())).into();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        let mut secrets = [0; 12];
        for _ in 0..15_000 {
            let text: String = (0..=random(14)).map(|_| PARTS[random(PARTS.len())]).collect();
            let mut wanted = Vec::new();
            for (rank, (name, pattern)) in patterns.iter().enumerate() {
                assert_eq!(all()[rank].name, *name);
                wanted.extend(pattern.captures_iter(text.as_bytes()).map(|found| {
                    let secret = found.name("secret").or_else(|| found.get(0)).unwrap();
                    (rank, secret.range())
                }));
            }
            let mut found: Vec<_> = find(&text).into_iter().map(|found| (found.rank, found.range)).collect();
            found.sort_by_key(|(rank, range)| (*rank, range.start));
            assert_eq!(found, wanted, "{text:?}");
            for (rank, _) in found {
                secrets[rank] += 1;
            }
        }
        assert!(secrets.iter().all(|found| *found >= 3), "{secrets:?}");
    }

    #[test]
    fn words_in_places_that_are_no_secrets_cost_no_more_than_their_length() {
        for part in [
            "-eyJ",
            "eyJ-eyJaaaaaaaaaa.",
            "xoxb-",
            "-----BEGIN ",
            "-----BEGIN PRIVATE KEY",
            "://a:",
            "bearer ",
            "token ",
            "sk-",
            "ghp_ghp_",
        ] {
            let text = part.repeat((256 << 10) / part.len());
            let began = std::time::Instant::now();
            find(&text);
            // Hours where it takes the square of the length.
            assert!(began.elapsed() < std::time::Duration::from_secs(10), "{part}: {:?}", began.elapsed());
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
