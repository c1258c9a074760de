//! Masking: clear text comes in, [`Masked`] text goes out. Nothing else can be recorded, shipped or shown to
//! an approver, and only this module makes a `Masked`.
//!
//! What is found is replaced by `[masked:<detector>:<pseudonym>]`. The pseudonym is keyed (HMAC-SHA-256 with
//! the tenant's key), so equal secrets can be joined by whoever reads the record, and none can be guessed.
//!
//! ```compile_fail,E0423
//! // There is no other way to a `Masked` than through a `Masker`.
//! let text = weir_core::mask::Masked(String::from("hunter2"));
//! ```
//!
//! ```compile_fail,E0277
//! // Reading one back from outside would be a way around masking.
//! let text: weir_core::mask::Masked<String> = serde_json::from_str("\"hunter2\"").unwrap();
//! ```

mod detectors;
mod json;

use std::ops::Range;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::ids::hex;

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

    /// Keeps at most `limit` bytes, cut between characters.
    pub fn truncate(mut self, limit: usize) -> Self {
        let end = (0..=limit.min(self.0.len())).rev().find(|at| self.0.is_char_boundary(*at)).unwrap_or(0);
        self.0.truncate(end);
        self
    }
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

/// Finds secrets and replaces them.
#[derive(Debug, Clone)]
pub struct Masker {
    key: MaskKey,
}

impl Masker {
    pub fn new(key: MaskKey) -> Self {
        Self { key }
    }

    /// Masks plain text.
    pub fn text(&self, text: &str) -> Masked<String> {
        self.text_spans(text).0
    }

    /// Masks plain text and says what was found.
    pub fn text_spans(&self, text: &str) -> (Masked<String>, Vec<Span>) {
        let mut spans = Vec::new();
        let out = self.detect(text, "", &mut spans);
        (Masked(out.unwrap_or_else(|| text.to_owned())), spans)
    }

    /// Masks JSON without reading it into values, so that numbers, duplicate members and spacing stay to the
    /// letter. Text cut off in the middle is read as far as it goes; a string that the cut hit is dropped,
    /// since half a secret is not found by its form. Text that is no JSON is masked as plain text.
    pub fn json(&self, text: &str) -> (Masked<String>, Vec<Span>) {
        match json::mask(self, text) {
            Some((out, spans)) => (Masked(out), spans),
            None => self.text_spans(text),
        }
    }

    /// A stable stand-in for an identifier that must not be recorded itself (a session id).
    pub fn pseudonym_of(&self, class: &str, value: &str) -> Masked<String> {
        Masked(self.pseudonym(class, value))
    }

    fn replacement(&self, detector: &str, secret: &str) -> String {
        format!("[masked:{detector}:{}]", self.pseudonym(detector, secret))
    }

    fn pseudonym(&self, class: &str, value: &str) -> String {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.key.0).expect("any key length");
        mac.update(class.as_bytes());
        mac.update(&[0]);
        mac.update(value.as_bytes());
        let tag = mac.finalize().into_bytes();
        format!("p0:{}", hex(tag.get(..8).unwrap_or_default()))
    }

    /// `None` when nothing was found.
    fn detect(&self, text: &str, pointer: &str, spans: &mut Vec<Span>) -> Option<String> {
        // What a masker wrote before is left as it is: it says nothing, and its names look like secrets' names.
        let mut found: Vec<(Range<usize>, &str)> =
            detectors::replacements(text).map(|range| (range, "")).collect();
        for detector in detectors::all() {
            for range in detector.find(text) {
                if found.iter().all(|(taken, _)| range.end <= taken.start || taken.end <= range.start) {
                    found.push((range, detector.name));
                }
            }
        }
        found.retain(|(_, name)| !name.is_empty());
        if found.is_empty() {
            return None;
        }
        found.sort_by_key(|(range, _)| range.start);
        let (mut out, mut at) = (String::with_capacity(text.len()), 0);
        for (range, name) in found {
            out.push_str(text.get(at..range.start)?);
            out.push_str(&self.replacement(name, text.get(range.clone())?));
            spans.push(Span { detector: name.to_owned(), pointer: pointer.to_owned() });
            at = range.end;
        }
        out.push_str(text.get(at..)?);
        Some(out)
    }
}

/// What in a person's own words must not be recorded, by its detector. In prose a word that merely follows "token"
/// or "secret" is a word.
pub fn secret_in_prose(text: &str) -> Option<&'static str> {
    let is_assigned = |range: &Range<usize>| {
        let before = text.get(..range.start).unwrap_or_default().trim_end_matches([' ', '"', '\'']);
        before.ends_with([':', '='])
    };
    let holds = |detector: &&detectors::Detector| {
        detector.find(text).any(|range| detector.name != detectors::ASSIGNED || is_assigned(&range))
    };
    detectors::all().iter().find(holds).map(|detector| detector.name)
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
    fn truncation_cuts_between_characters() {
        assert_eq!(masker().text("aé").truncate(2).as_str(), "a");
        assert_eq!(masker().text("aé").truncate(3).as_str(), "aé");
    }

    #[test]
    fn a_key_is_not_shown_by_debug() {
        assert!(!format!("{:?}", masker()).contains('7'));
    }
}
