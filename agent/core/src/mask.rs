//! Masking: clear text comes in, [`Masked`] text goes out. Nothing else can be recorded, shipped or shown to
//! an approver, and only this module makes a `Masked`.
//!
//! What is found is replaced by `[masked:<detector>:<pseudonym>]`. The pseudonym is keyed (HMAC-SHA-256 with
//! the tenant's key), so equal secrets can be joined by whoever reads the record, and none can be guessed.
//!
//! ```compile_fail,E0603
//! // There is no other way to a `Masked` than through a `Masker`.
//! let text = weir_core::mask::Masked(String::from("hunter2"));
//! ```
//!
//! ```compile_fail,E0277
//! // Reading one back from outside would be a way around masking.
//! let text: weir_core::mask::Masked<String> = serde_json::from_str("\"hunter2\"").unwrap();
//! ```

mod detectors;
mod forms;
mod in_flight;
mod json;
mod target;

use std::ops::Range;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::ids::hex;
use detectors::{Found, REPLACED};
pub use in_flight::PassedOn;

/// No shorter text has a secret in it that is known by its form.
const MIN_SECRET: usize = 6;
/// The most places that are listed for one text; more are masked all the same.
pub const MAX_SPANS: usize = 256;
/// The most bytes of a place's pointer.
pub const MAX_POINTER: usize = 512;
/// The last entry of a list of places that is not whole.
pub const MORE: &str = "more";

/// Text that went through a [`Masker`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub struct Masked<T>(T);

impl<T> Masked<T> {
    /// The masked text.
    pub fn as_inner(&self) -> &T {
        &self.0
    }
}

impl Masked<String> {
    /// A text from the program itself, in which there is nothing to mask.
    pub fn literal(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// A text whose every part its maker knows to be masked, or free of secrets.
    pub(crate) fn vouched_for(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Both, one after the other.
    pub fn then(mut self, rest: &Self) -> Self {
        self.0.push_str(&rest.0);
        self
    }

    /// Keeps at most `limit` bytes, cut between characters.
    pub fn truncate(mut self, limit: usize) -> Self {
        let end = (0..=limit.min(self.0.len())).rev().find(|at| self.0.is_char_boundary(*at)).unwrap_or(0);
        self.0.truncate(end);
        self
    }
}

/// Text that another process of this agent masked. While an agent is replaced, the old process hands the events of its
/// last calls to the new one, which alone writes the log; there they arrive as this.
///
/// It can be read from outside, which a [`Masked`] cannot, and is trusted as one: it comes over a socket that no other
/// process has an end of (the two made it between them, after each had seen the other's user), from the same program,
/// where it was a `Masked` when it was sent. Only the ledger may name it; `cargo xtask check` looks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaskedByPeer(String);

/// Text that may be recorded: it is masked, here or by the process that it comes from.
pub trait Recordable: Serialize + Default + sealed::Sealed {
    /// Keeps at most `limit` bytes, cut between characters.
    #[must_use]
    fn cut(self, limit: usize) -> Self;
}

impl Recordable for Masked<String> {
    fn cut(self, limit: usize) -> Self {
        self.truncate(limit)
    }
}

impl Recordable for MaskedByPeer {
    fn cut(self, limit: usize) -> Self {
        Self(Masked(self.0).truncate(limit).0)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Masked<String> {}
    impl Sealed for super::MaskedByPeer {}
}

/// The tenant's masking key: 32 random bytes that never leave the host.
#[derive(Clone)]
pub struct MaskKey([u8; 32]);

impl MaskKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MaskKey(..)")
    }
}

/// One place that was masked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The detector that fired.
    pub detector: String,
    /// JSON pointer (RFC 6901) of the text it was found in; empty for plain text.
    pub pointer: String,
}

/// A [`Masker::digest`] under way.
#[derive(Clone)]
pub struct Digesting(Hmac<Sha256>);

impl std::fmt::Debug for Digesting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digesting(..)")
    }
}

impl Digesting {
    pub fn update(&mut self, content: &[u8]) {
        self.0.update(content);
    }

    /// Hex.
    pub fn finish(self) -> String {
        hex(&self.0.finalize().into_bytes())
    }
}

/// Finds secrets and replaces them.
#[derive(Clone)]
pub struct Masker {
    /// Has the key in it, and nothing else yet.
    keyed: Hmac<Sha256>,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Masker(..)")
    }
}

impl Masker {
    pub fn new(MaskKey(key): MaskKey) -> Self {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let keyed = <Hmac<Sha256> as Mac>::new_from_slice(&key).expect("any key length");
        Self { keyed }
    }

    /// Masks plain text.
    pub fn text(&self, text: &str) -> Masked<String> {
        self.text_spans(text).0
    }

    /// Masks plain text and says what was found.
    pub fn text_spans(&self, text: &str) -> (Masked<String>, Vec<Span>) {
        let mut spans = Spans::default();
        let out = self.detect(text, String::new, &mut spans);
        (Masked(out.unwrap_or_else(|| text.to_owned())), spans.0)
    }

    /// Masks a text that should be a name. One of more than `limit` bytes is masked as a whole: cut, it might show
    /// half a secret.
    pub fn name(&self, text: &str, limit: usize) -> Masked<String> {
        if text.len() > limit {
            return Masked(self.replacement("overlong", text)).truncate(limit);
        }
        self.text(text).truncate(limit)
    }

    /// Masks JSON without reading it into values, so that numbers, duplicate members and spacing stay to the
    /// letter. Text that is no JSON is masked as plain text.
    pub fn json(&self, text: &str) -> (Masked<String>, Vec<Span>) {
        self.json_within(text, usize::MAX)
    }

    /// Masks the first `limit` bytes of JSON. What the cut hit is dropped, since half a secret is not found by
    /// its form: a string, or a word of what is no JSON.
    pub fn json_within(&self, text: &str, limit: usize) -> (Masked<String>, Vec<Span>) {
        let kept = text.get(..text.floor_char_boundary(limit)).unwrap_or_default();
        if let Some((out, spans)) = json::mask(self, kept) {
            return (Masked(out), spans);
        }
        let whole_words = || kept.rfind(char::is_whitespace).and_then(|end| kept.get(..end));
        let words = if kept.len() < text.len() { whole_words().unwrap_or_default() } else { kept };
        self.text_spans(words)
    }

    /// A stable stand-in for an identifier that must not be recorded itself (a session id).
    pub fn pseudonym_of(&self, class: &str, value: &str) -> Masked<String> {
        Masked(self.pseudonym(class, value))
    }

    /// A keyed digest (HMAC-SHA-256, hex) of a content that is not recorded to the letter: equal contents have equal
    /// ones, and whoever has no key can check no guess. The prefix keeps it apart from all pseudonyms.
    pub fn digest(&self, content: &[u8]) -> String {
        let mut digest = self.digesting();
        digest.update(content);
        digest.finish()
    }

    /// The same, of a content that comes in pieces.
    pub fn digesting(&self) -> Digesting {
        let mut mac = self.mac();
        mac.update(b"content\0");
        Digesting(mac)
    }

    fn mac(&self) -> Hmac<Sha256> {
        self.keyed.clone()
    }

    /// Whether a masker wrote this, and nothing else is in it.
    fn is_replacement(&self, text: &str) -> bool {
        detectors::find(text).iter().any(|found| found.rank == REPLACED && found.range == (0..text.len()))
    }

    fn replacement(&self, detector: &str, secret: &str) -> String {
        format!("[masked:{detector}:{}]", self.pseudonym(detector, secret))
    }

    fn pseudonym(&self, class: &str, value: &str) -> String {
        let mut mac = self.mac();
        mac.update(class.as_bytes());
        mac.update(&[0]);
        mac.update(value.as_bytes());
        let tag = mac.finalize().into_bytes();
        format!("p0:{}", hex(tag.get(..8).unwrap_or_default()))
    }

    /// `None` when nothing was found.
    fn detect(&self, text: &str, pointer: impl Fn() -> String, spans: &mut Spans) -> Option<String> {
        let found = if text.len() < MIN_SECRET { Vec::new() } else { places(text) };
        if found.is_empty() {
            return None;
        }
        let (mut out, mut at) = (String::with_capacity(text.len()), 0);
        for (range, name) in found {
            out.push_str(text.get(at..range.start)?);
            out.push_str(&self.replacement(name, text.get(range.clone())?));
            spans.add(name, &pointer);
            at = range.end;
        }
        out.push_str(text.get(at..)?);
        Some(out)
    }
}

/// Where secrets are, front to back, and what each is. Places that overlap are one, named by the first detector.
/// What a masker wrote before is left as it is: it says nothing, and its names look like secrets' names.
fn places(text: &str) -> Vec<(Range<usize>, &'static str)> {
    let mut found = detectors::find(text);
    if found.is_empty() {
        return Vec::new();
    }
    found.sort_by_key(|found| (found.range.start, std::cmp::Reverse(found.range.end)));
    let mut merged: Vec<(Range<usize>, usize)> = Vec::new();
    for Found { range, rank } in found {
        match merged.last_mut() {
            Some((last, REPLACED)) if range.end <= last.end => {}
            Some((last, last_rank)) if range.start < last.end => {
                last.end = last.end.max(range.end);
                *last_rank = (*last_rank).min(rank);
            }
            _ => merged.push((range, rank)),
        }
    }
    let name = |rank: usize| detectors::all().get(rank).map(|detector| detector.name);
    merged.into_iter().filter_map(|(range, rank)| Some((range, name(rank)?))).collect()
}

/// The places found so far; never more than [`MAX_SPANS`].
#[derive(Default)]
struct Spans(Vec<Span>);

impl Spans {
    fn add(&mut self, detector: &str, pointer: impl FnOnce() -> String) {
        let span = match self.0.len() {
            MAX_SPANS.. => return,
            n if n == MAX_SPANS - 1 => Span { detector: MORE.into(), pointer: String::new() },
            _ => Span { detector: detector.to_owned(), pointer: pointer() },
        };
        self.0.push(span);
    }
}

/// What in a person's own words must not be recorded, by its detector. In prose a word that merely follows "token"
/// or "secret" is a word.
pub fn secret_in_prose(text: &str) -> Option<&'static str> {
    let is_assigned = |range: &Range<usize>| {
        let before = text.get(..range.start).unwrap_or_default().trim_end_matches([' ', '"', '\'']);
        before.ends_with([':', '='])
    };
    let name = |found: &Found| detectors::all().get(found.rank).map(|detector| detector.name);
    let holds = |found: &Found| name(found) != Some(detectors::ASSIGNED) || is_assigned(&found.range);
    let found = detectors::find(text).into_iter().filter(|found| found.rank != REPLACED && holds(found));
    found.min_by_key(|found| found.rank).and_then(|found| name(&found))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn masker() -> Masker {
        Masker::new(MaskKey::new([7; 32]))
    }

    #[test]
    fn equal_secrets_get_equal_pseudonyms_and_other_keys_others() {
        let text = "token ghp_abcdefghijklmnopqrstuvwxyz0123456789";
        let once = masker().text(text);
        assert_eq!(once, masker().text(text));
        assert_ne!(once, Masker::new(MaskKey::new([8; 32])).text(text));
        assert!(!once.as_str().contains("abcdefghij"), "{}", once.as_str());
    }

    #[test]
    fn masking_twice_is_masking_once() {
        let text = "password=correct-horse sk-abcdefghij0123456789 ghp_abcdefghijklmnopqrstuvwxyz0123456789";
        let once = masker().text(text);
        assert_eq!(masker().text(once.as_str()), once);
    }

    #[test]
    fn prose_may_speak_of_secrets_and_hold_none() {
        for text in ["rotates the deploy token according to CHG-7", "password: short", "see https://a.test/b"]
        {
            assert_eq!(secret_in_prose(text), None, "{text}");
        }
        for (text, detector) in [
            ("password: correct-horse", "assigned-secret"),
            ("with token=\"correct-horse\"", "assigned-secret"),
            ("key AKIAIOSFODNN7EXAMPLE", "aws-access-key"),
        ] {
            assert_eq!(secret_in_prose(text), Some(detector), "{text}");
        }
    }

    #[test]
    fn secrets_that_overlap_are_masked_as_a_whole() {
        for text in [
            "password=abcdAKIAIOSFODNN7EXAMPLEefgh",
            "-----BEGIN PRIVATE KEY-----\nMIIabcd[masked:x:p0:0123456789abcdef]MIIefgh\n-----END PRIVATE KEY-----",
        ] {
            let out = masker().text(text);
            assert!(!out.as_str().contains("abcd") && !out.as_str().contains("efgh"), "{}", out.as_str());
        }
    }

    #[test]
    fn what_was_masked_is_listed_up_to_a_limit_and_masked_beyond_it() {
        let text = "pwd=correct-horse ".repeat(MAX_SPANS * 4);
        let (out, spans) = masker().text_spans(&text);
        assert!(!out.as_str().contains("horse"));
        assert_eq!((spans.len(), spans.last().unwrap().detector.as_str()), (MAX_SPANS, MORE));
        let (_, at_the_limit) = masker().text_spans(&"pwd=correct-horse ".repeat(MAX_SPANS - 1));
        assert!(at_the_limit.iter().all(|span| span.detector != MORE) && at_the_limit.len() == MAX_SPANS - 1);
    }

    #[test]
    fn a_name_past_its_limit_shows_nothing() {
        assert_eq!(masker().name("delete_repo", 11).as_str(), "delete_repo");
        let long = masker().name("delete_repo!", 11);
        assert!(!long.as_str().contains("delete"), "{}", long.as_str());
        let masked = masker().name(&"x".repeat(600), 512);
        assert!(masked.as_str().starts_with("[masked:overlong:p0:"), "{}", masked.as_str());
    }

    #[test]
    fn a_cut_through_plain_text_drops_the_word_it_hit() {
        let text = "see https://user:correct-horse@host.test and more";
        for cut in 0..text.len() {
            let out = masker().json_within(text, cut).0;
            assert!(!out.as_str().contains("corr"), "cut at {cut}: {}", out.as_str());
        }
        assert_eq!(masker().json_within("a b", 3).0.as_str(), "a b");
        assert_eq!(masker().json_within("a b", 2).0.as_str(), "a");
    }

    #[test]
    fn contents_are_told_apart_by_a_digest_that_needs_the_key() {
        let mut pieces = masker().digesting();
        pieces.update(b"correct-");
        pieces.update(b"horse");
        let digest = masker().digest(b"correct-horse");
        assert_eq!(digest, pieces.finish());
        assert_eq!(digest.len(), 64);
        assert_ne!(digest, masker().digest(b"correct-horsf"));
        assert_ne!(digest, Masker::new(MaskKey::new([8; 32])).digest(b"correct-horse"));
        let pseudonym = masker().pseudonym_of("content", "correct-horse");
        assert!(pseudonym.as_str().starts_with("p0:"));
    }

    #[test]
    fn truncation_cuts_between_characters() {
        assert_eq!(masker().text("aé").truncate(2).as_str(), "a");
        assert_eq!(masker().text("aé").truncate(3).as_str(), "aé");
    }

    #[test]
    fn a_key_is_not_shown_by_debug() {
        assert!(!format!("{:?}", masker()).contains('7'));
    }
}
