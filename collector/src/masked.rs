//! What was masked, found again in recorded text: `[masked:<detector>:<pseudonym>]` comes in, places and pseudonyms go
//! out. The secret itself is nowhere in it, and is never needed here.

use std::ops::Range;

const OPEN: &str = "[masked:";

/// One masked value in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place<'a> {
    pub range: Range<usize>,
    pub detector: &'a str,
    /// Such as `p0:0123456789abcdef`.
    pub pseudonym: &'a str,
}

/// Each masked value, from left to right.
pub fn places(text: &str) -> Vec<Place<'_>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = text.get(from..).and_then(|rest| rest.find(OPEN)).map(|at| from + at) {
        from = start + OPEN.len();
        let Some(rest) = text.get(from..) else { break };
        let Some(inside) = rest.find(']').and_then(|end| rest.get(..end)) else { continue };
        let Some((detector, pseudonym)) = inside.split_once(':') else { continue };
        if !detector.is_empty() && is_pseudonym(pseudonym) {
            let end = from + inside.len() + 1;
            found.push(Place { range: start..end, detector, pseudonym });
            from = end;
        }
    }
    found
}

/// The pseudonym that a text is, alone or as it stands in the record. Anything else might be the secret itself.
pub fn pseudonym(text: &str) -> Option<&str> {
    let text = text.trim();
    if is_pseudonym(text) {
        return Some(text);
    }
    match places(text).as_slice() {
        [only] if only.range == (0..text.len()) => Some(only.pseudonym),
        _ => None,
    }
}

/// `p`, the key's number, `:`, 16 hex digits.
fn is_pseudonym(text: &str) -> bool {
    let Some((key, tag)) = text.strip_prefix('p').and_then(|rest| rest.split_once(':')) else { return false };
    let is_number = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
    is_number && tag.len() == 16 && tag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use weir_core::mask::{MaskKey, Masker};

    use super::*;

    #[test]
    fn what_the_masker_writes_is_found_again() {
        let masker = Masker::new(MaskKey::new([1; 32]));
        let text = masker.text(
            "a ghp_abcdefghijklmnopqrstuvwxyz0123456789 and ghp_zbcdefghijklmnopqrstuvwxyz0123456789 b",
        );
        let found = places(text.as_str());
        let [one, other] = &found[..] else { panic!("{text:?}") };
        assert_eq!(one.detector, other.detector);
        assert_ne!(one.pseudonym, other.pseudonym);
        assert_eq!(pseudonym(one.pseudonym), Some(one.pseudonym));
        assert_eq!(pseudonym(&text.as_str()[one.range.clone()]), Some(one.pseudonym));
    }

    #[test]
    fn what_is_no_pseudonym_is_not_taken_for_one() {
        for text in [
            "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
            "p0:",
            "p0:0123456789abcdeg",
            "p:0123456789abcdef",
            "x p0:0123456789abcdef",
            "[masked:a:p0:0123456789abcdef] [masked:a:p0:0123456789abcdef]",
            "[masked:p0:0123456789abcdef",
            "[masked::p0:0123456789abcdef]",
        ] {
            assert_eq!(pseudonym(text), None, "{text}");
        }
        assert_eq!(places("[masked:[masked:a:p0:0123456789abcdef]").len(), 1);
    }
}
