//! Masking of JSON text in place: string by string, on the decoded string, with all else kept to the letter. A string
//! that is itself JSON, as the text of a tool's structured result is, is masked as JSON.

mod step;

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::detectors::is_secret_name;
use super::{MAX_POINTER, MIN_SECRET, Masker, Span, Spans};
use step::{Step, pointer};

/// So many texts of JSON may lie in one another; what is deeper is masked as plain text.
const MAX_NESTED: usize = 3;

/// Nesting past this is no JSON that Weir would read; the text is masked as plain text then.
const MAX_DEPTH: usize = 128;

/// What stands in a pointer for a name that was masked.
const MASKED_STEP: &str = "~masked";

/// The members of a JSON schema that say what a value is, and not which.
const SCHEMA_WORDS: [&str; 18] = [
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "deprecated",
    "description",
    "format",
    "items",
    "maxLength",
    "minLength",
    "oneOf",
    "pattern",
    "properties",
    "readOnly",
    "required",
    "title",
    "type",
    "writeOnly",
];

/// One open object or array.
struct Level<'a> {
    /// What is being read in it.
    step: Step<'a>,
    expects_name: bool,
    /// What the object's members are.
    members: Members,
    /// Whether all values in here, or just the one being read, are secret by name.
    all_secret: bool,
    this_secret: bool,
    /// Whether the value being read, of the outermost object, is to stay to the letter.
    this_kept: bool,
}

/// For what the text is masked.
#[derive(Default)]
pub(super) enum Purpose<'a> {
    /// To be recorded: what is secret becomes a string.
    #[default]
    Record,
    /// To be passed on: each value stays of its type.
    PassOn(&'a PassOn<'a>),
}

/// See [`Purpose::PassOn`].
#[derive(Default)]
pub(super) struct PassOn<'a> {
    /// The members of the outermost object that stay to the letter.
    pub keeps: &'a [&'a str],
    /// What is secret by its name somewhere, and what stands for it.
    pub named: &'a [(String, String)],
}

/// What masking made of a text.
pub(super) struct Outcome {
    pub text: String,
    pub spans: Vec<Span>,
    /// Each string that became another one, with what became of it.
    pub replaced: Vec<(String, String)>,
    /// Those of them that are secret by their name.
    pub named: Vec<(String, String)>,
}

/// A schema describes a secret's member; it does not hold one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Members {
    Values,
    /// The object of a member `properties`: an object in it is a schema, anything else a value.
    Properties,
    /// The schema of a property with a secret's name: what is no word of a schema may be the secret.
    OfSchema,
}

/// `None` when the text is not JSON as far as it goes.
pub(super) fn mask(masker: &Masker, text: &str) -> Option<(String, Vec<Span>)> {
    let Outcome { text, spans, .. } = mask_for(masker, text, &Purpose::Record, 0)?;
    Some((text, spans))
}

/// The same for a purpose; the text lies in so many others.
pub(super) fn mask_for(masker: &Masker, text: &str, purpose: &Purpose, nested: usize) -> Option<Outcome> {
    let mut scan = Scan {
        masker,
        purpose,
        nested,
        text,
        at: 0,
        copied: 0,
        out: String::new(),
        levels: Vec::new(),
        spans: Spans::default(),
        replaced: Vec::new(),
        named: Vec::new(),
    };
    if !matches!(text.trim_ascii_start().as_bytes().first(), Some(b'{' | b'[' | b'"')) {
        return None;
    }
    while let Some(byte) = text.as_bytes().get(scan.at) {
        scan.step(*byte)?;
    }
    scan.copy()?;
    Some(Outcome { text: scan.out, spans: scan.spans.0, replaced: scan.replaced, named: scan.named })
}

struct Scan<'a> {
    masker: &'a Masker,
    purpose: &'a Purpose<'a>,
    nested: usize,
    text: &'a str,
    at: usize,
    /// Up to where the text is in `out`, or was replaced there.
    copied: usize,
    out: String,
    levels: Vec<Level<'a>>,
    spans: Spans,
    replaced: Vec<(String, String)>,
    named: Vec<(String, String)>,
}

impl<'a> Scan<'a> {
    fn step(&mut self, byte: u8) -> Option<()> {
        match byte {
            b'"' => return self.string(),
            b'{' | b'[' => self.open(byte == b'[')?,
            b'}' | b']' => {
                self.levels.pop()?;
            }
            b',' => {
                let level = self.levels.last_mut()?;
                match &mut level.step {
                    Step::Element(index) => *index += 1,
                    Step::Member(_) | Step::Masked => level.expects_name = true,
                }
            }
            b':' => self.levels.last_mut()?.expects_name = false,
            b' ' | b'\t' | b'\n' | b'\r' => {}
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'+' | b'.' => return self.scalar(),
            _ => return None,
        }
        self.at += 1;
        Some(())
    }

    fn open(&mut self, array: bool) -> Option<()> {
        if self.levels.len() == MAX_DEPTH {
            return None;
        }
        let mut all_secret = self.is_secret();
        let members = match self.levels.last() {
            Some(outer) if array || matches!(outer.step, Step::Element(_)) => Members::Values,
            Some(outer) if outer.members == Members::Properties && outer.this_secret => {
                all_secret = outer.all_secret;
                Members::OfSchema
            }
            Some(Level { step: Step::Member(name), .. }) if name == "properties" => Members::Properties,
            _ => Members::Values,
        };
        self.levels.push(Level {
            step: if array { Step::Element(0) } else { Step::Member("".into()) },
            expects_name: !array,
            members,
            all_secret,
            this_secret: false,
            this_kept: false,
        });
        Some(())
    }

    /// Copies what was read since the last time.
    fn copy(&mut self) -> Option<()> {
        self.out.push_str(self.text.get(self.copied..self.at)?);
        self.copied = self.at;
        Some(())
    }

    /// Puts a string in place of what goes on to `end`.
    fn replace(&mut self, end: usize, masked: &str) -> Option<()> {
        self.copy()?;
        self.out.push_str(&serde_json::to_string(masked).ok()?);
        (self.at, self.copied) = (end, end);
        Some(())
    }

    fn is_secret(&self) -> bool {
        self.levels.last().is_some_and(|level| level.all_secret || level.this_secret)
    }

    fn string(&mut self) -> Option<()> {
        let rest = self.text.get(self.at..)?;
        let Some((len, escapes)) = literal(rest) else {
            // Cut off in the middle: what is left of the string is dropped.
            self.copy()?;
            (self.at, self.copied) = (self.text.len(), self.text.len());
            return Some(());
        };
        let inner = rest.get(1..len - 1)?;
        let unescaped = || serde_json::from_str(rest.get(..len).unwrap_or_default()).ok();
        // A lone surrogate or a raw control character: masked as it stands.
        let value = if escapes { unescaped().map(Cow::Owned) } else { None }.unwrap_or(Cow::Borrowed(inner));
        let names = self.levels.last().is_some_and(|level| level.expects_name);
        let masked = if names { self.member(&value) } else { self.value(&value) };
        let end = self.at + len;
        match masked {
            Some(masked) => {
                if matches!(self.purpose, Purpose::PassOn(_)) {
                    self.replaced.push((value.into_owned(), masked.clone()));
                }
                self.replace(end, &masked)?;
            }
            None => {
                if names && let Some(level) = self.levels.last_mut() {
                    level.step = Step::Member(value);
                }
                self.at = end;
            }
        }
        Some(())
    }

    /// A member's name. A pointer never shows one that is masked.
    fn member(&mut self, name: &str) -> Option<String> {
        let outermost = self.levels.len() == 1 && self.nested == 0;
        let level = self.levels.last_mut()?;
        level.this_kept =
            matches!(self.purpose, Purpose::PassOn(pass_on) if outermost && pass_on.keeps.contains(&name));
        level.this_secret =
            is_secret_name(name) || (level.members == Members::OfSchema && !SCHEMA_WORDS.contains(&name));
        level.step = Step::Masked;
        let kept = self.is_kept();
        let (levels, spans) = (&self.levels, &mut self.spans);
        if kept {
            None
        } else {
            self.masker.detect(name, || pointer(levels.iter().map(|level| &level.step)), spans)
        }
    }

    fn value(&mut self, value: &str) -> Option<String> {
        if self.is_kept() {
            return None;
        }
        let secret = self.is_secret() && !value.is_empty();
        let (levels, spans) = (&self.levels, &mut self.spans);
        if secret {
            if self.masker.is_replacement(value) {
                return None;
            }
            spans.add("secret-name", || pointer(levels.iter().map(|level| &level.step)));
            let masked = self.masker.replacement("secret-name", value);
            if matches!(self.purpose, Purpose::PassOn(_)) && value.len() >= MIN_SECRET {
                self.named.push((value.to_owned(), masked.clone()));
            }
            return Some(masked);
        }
        if let Some(text) = self.json_within(value) {
            return text;
        }
        let known = self.known(value);
        let (levels, spans) = (&self.levels, &mut self.spans);
        let detected = self.masker.detect(
            known.as_deref().unwrap_or(value),
            || pointer(levels.iter().map(|level| &level.step)),
            spans,
        );
        detected.or(known)
    }

    /// What becomes of a string that is JSON; `None` for one that is not.
    fn json_within(&mut self, value: &str) -> Option<Option<String>> {
        let begins = matches!(value.trim_ascii_start().bytes().next(), Some(b'{' | b'['));
        if self.nested == MAX_NESTED || !begins || serde_json::from_str::<IgnoredAny>(value).is_err() {
            return None;
        }
        let inner = mask_for(self.masker, value, self.purpose, self.nested + 1)?;
        let (levels, spans) = (&self.levels, &mut self.spans);
        for span in &inner.spans {
            spans.add(&span.detector, || {
                let whole = pointer(levels.iter().map(|level| &level.step)) + &span.pointer;
                whole.get(..whole.floor_char_boundary(MAX_POINTER)).unwrap_or_default().to_owned()
            });
        }
        self.named.extend(inner.named);
        // A secret that runs over several strings, as a key's lines may, is only seen in the whole.
        let whole = match self.purpose {
            Purpose::PassOn(_) if !value.contains("PRIVATE KEY-----") => None,
            _ => self.masker.detect(&inner.text, || pointer(levels.iter().map(|level| &level.step)), spans),
        };
        let changed = (inner.text != value).then_some(inner.text);
        Some(whole.or(changed))
    }

    /// What is secret by its name elsewhere in the text is no less so here.
    fn known(&mut self, value: &str) -> Option<String> {
        let Purpose::PassOn(PassOn { named, .. }) = self.purpose else { return None };
        let mut out: Option<String> = None;
        for (secret, masked) in *named {
            let text = out.as_deref().unwrap_or(value);
            if text.contains(secret.as_str()) {
                out = Some(text.replace(secret.as_str(), masked));
                let levels = &self.levels;
                self.spans.add("secret-name", || pointer(levels.iter().map(|level| &level.step)));
            }
        }
        out
    }

    fn is_kept(&self) -> bool {
        self.levels.first().is_some_and(|outermost| outermost.this_kept)
    }

    fn scalar(&mut self) -> Option<()> {
        let rest = self.text.get(self.at..)?;
        let end = rest
            .bytes()
            .position(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'+' | b'.'));
        let token = rest.get(..end.unwrap_or(rest.len()))?;
        let number = token.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if !number && !matches!(token, "true" | "false" | "null") && end.is_some() {
            return None;
        }
        let end = self.at + token.len();
        let passed_on = matches!(self.purpose, Purpose::PassOn(_));
        if number && self.is_secret() && !self.is_kept() && !(passed_on && token == "0") {
            let levels = &self.levels;
            self.spans.add("secret-name", || pointer(levels.iter().map(|level| &level.step)));
            if !passed_on {
                let masked = self.masker.replacement("secret-name", token);
                return self.replace(end, &masked);
            }
            self.copy()?;
            self.out.push('0');
            self.copied = end;
        }
        self.at = end;
        Some(())
    }
}

/// The bytes of the string literal at the start of `text`, quotes included, and whether there are escapes in it; `None`
/// when its end is missing.
fn literal(text: &str) -> Option<(usize, bool)> {
    let (mut at, mut escapes) = (1, false);
    loop {
        let rest = text.as_bytes().get(at..)?;
        let next = memchr::memchr2(b'"', b'\\', rest)?;
        if rest.get(next) == Some(&b'"') {
            return Some((at + next + 1, escapes));
        }
        escapes = true;
        at += next + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::masker;

    fn masked(text: &str) -> String {
        masker().json(text).0.as_str().to_owned()
    }

    #[test]
    fn what_holds_no_secret_stays_to_the_letter() {
        for text in [
            r#"{"a":123456789012345678901234567890,"a":1e400, "b" : [true,null,-0.10],"c":"\u0041\/\ud800"}"#,
            r#"[]"#,
            r#""x""#,
            "plain words",
            "",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn escapes_do_not_hide_a_secret() {
        let out = masked(r#"{"note":"\u0041KIAIOSFODNN7EXAMPLE"}"#);
        assert!(out.starts_with(r#"{"note":"[masked:aws-access-key:p0:"#), "{out}");
    }

    #[test]
    fn members_named_like_secrets_are_masked_whatever_they_hold() {
        let (out, spans) =
            masker().json(r#"{"db":{"password":"hunter2","port":5},"tokens":1,"secret":[1,{"x":"y"}]}"#);
        let out = out.as_str();
        assert!(
            !out.contains("hunter2") && out.contains(r#""port":5"#) && out.contains(r#""tokens":1"#),
            "{out}"
        );
        let pointers: Vec<_> = spans.iter().map(|span| span.pointer.as_str()).collect();
        assert_eq!(pointers, ["/db/password", "/secret/0", "/secret/1/x"]);
        assert!(serde_json::from_str::<serde_json::Value>(out).is_ok());
    }

    #[test]
    fn a_schema_that_describes_a_secret_stays_readable() {
        let text =
            r#"{"inputSchema":{"type":"object","properties":{"token":{"type":"string","title":"Token"}}}}"#;
        assert_eq!(masked(text), text);
    }

    #[test]
    fn what_only_looks_like_a_schema_is_masked() {
        for text in [
            r#"{"properties":{"password":"hunter2"}}"#,
            r#"{"properties":{"password":["hunter2"]}}"#,
            r#"{"properties":{"password":{"value":"hunter2"}}}"#,
            r#"{"properties":{"password":{"type":"string","default":"hunter2"}}}"#,
            r#"{"password":{"properties":{"password":{"type":"hunter2"}}}}"#,
            r#"{"password":{"type":"hunter2"}}"#,
        ] {
            let out = masked(text);
            assert!(!out.contains("hunter2"), "{out}");
        }
        let nested =
            r#"{"properties":{"credentials":{"type":"object","properties":{"user":{"type":"string"}}}}}"#;
        assert_eq!(masked(nested), nested);
    }

    #[test]
    fn pointers_are_short_and_show_no_name_that_is_masked() {
        let long = format!(r#"{{"{}":{{"password":"x"}}}}"#, "n".repeat(100_000));
        let (_, spans) = masker().json(&long);
        assert_eq!((spans.len(), spans[0].pointer.len()), (1, super::MAX_POINTER));
        let (out, spans) = masker().json(r#"{"postgres://u:hunter2@db/x":{"password":"abc"}}"#);
        assert!(!out.as_str().contains("hunter2"), "{}", out.as_str());
        let pointers: Vec<_> = spans.iter().map(|span| span.pointer.as_str()).collect();
        assert_eq!(pointers, ["/~masked", "/~masked/password"]);
    }

    #[test]
    fn a_text_full_of_secrets_is_masked_in_time_and_in_little_room() {
        let members: Vec<String> = (0..20_000).map(|n| format!(r#""pwd{n}":"x","token":1"#)).collect();
        let text = format!(r#"{{"{}":{{{}}}}}"#, "n".repeat(100_000), members.join(","));
        let started = std::time::Instant::now();
        let (_, spans) = masker().json(&text);
        let listed: usize = spans.iter().map(|span| span.pointer.len()).sum();
        assert!(listed <= super::super::MAX_SPANS * super::MAX_POINTER, "{listed}");
        // Seconds where it takes the square of the text's length.
        assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
    }

    #[test]
    fn a_secret_used_as_a_name_is_masked_there_and_in_pointers() {
        let (out, spans) = masker().json(r#"{"AKIAIOSFODNN7EXAMPLE":{"password":"abc"}}"#);
        assert!(!out.as_str().contains("IOSFODNN"), "{}", out.as_str());
        assert!(spans.iter().all(|span| !span.pointer.contains("IOSFODNN")), "{spans:?}");
    }

    #[test]
    fn a_cut_through_a_secret_shows_none_of_it() {
        let text = r#"{"text":"AKIAIOSFODNN7EXAMPLE"}"#;
        for cut in 0..text.len() {
            let out = masked(&text[..cut]);
            assert!(!out.contains("AKIAI"), "cut at {cut}: {out}");
        }
    }
}
