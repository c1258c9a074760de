//! Masking of JSON text in place: string by string, on the decoded string, with all else kept to the letter.

use super::detectors::is_secret_name;
use super::{Masker, Span};

/// Nesting past this is no JSON that Weir would read; the text is masked as plain text then.
const MAX_DEPTH: usize = 128;

/// One open object or array.
struct Level {
    /// The member's name being read, escaped for a JSON pointer, or the element's index.
    step: String,
    /// `None` in an object.
    index: Option<usize>,
    expects_name: bool,
    /// Whether all values in here, or just the one being read, are secret by name.
    all_secret: bool,
    this_secret: bool,
}

/// `None` when the text is not JSON as far as it goes.
pub(super) fn mask(masker: &Masker, text: &str) -> Option<(String, Vec<Span>)> {
    let mut scan = Scan {
        masker,
        rest: text,
        out: String::with_capacity(text.len()),
        levels: Vec::new(),
        spans: Vec::new(),
    };
    if !matches!(text.trim_ascii_start().chars().next(), Some('{' | '[' | '"')) {
        return None;
    }
    while let Some(c) = scan.rest.chars().next() {
        scan.step(c)?;
    }
    Some((scan.out, scan.spans))
}

struct Scan<'a> {
    masker: &'a Masker,
    rest: &'a str,
    out: String,
    levels: Vec<Level>,
    spans: Vec<Span>,
}

impl<'a> Scan<'a> {
    fn step(&mut self, c: char) -> Option<()> {
        match c {
            '"' => return self.string(),
            '{' | '[' => {
                if self.levels.len() == MAX_DEPTH {
                    return None;
                }
                let secret = self.is_secret();
                let index = (c == '[').then_some(0);
                let step = index.map_or_else(String::new, |_| "0".to_owned());
                let expects_name = c == '{';
                self.levels.push(Level { step, index, expects_name, all_secret: secret, this_secret: false });
            }
            '}' | ']' => {
                self.levels.pop()?;
            }
            ',' => {
                let level = self.levels.last_mut()?;
                match &mut level.index {
                    Some(index) => {
                        *index += 1;
                        level.step = index.to_string();
                    }
                    None => level.expects_name = true,
                }
            }
            ':' => self.levels.last_mut()?.expects_name = false,
            ' ' | '\t' | '\n' | '\r' => {}
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '+' | '.' => return self.scalar(),
            _ => return None,
        }
        self.copy(c.len_utf8())
    }

    fn copy(&mut self, len: usize) -> Option<()> {
        self.out.push_str(self.rest.get(..len)?);
        self.rest = self.rest.get(len..)?;
        Some(())
    }

    fn is_secret(&self) -> bool {
        self.levels.last().is_some_and(|level| level.all_secret || level.this_secret)
    }

    fn pointer(&self) -> String {
        self.levels.iter().map(|level| format!("/{}", level.step)).collect()
    }

    fn string(&mut self) -> Option<()> {
        let Some(len) = literal_len(self.rest) else {
            // Cut off in the middle: what is left of the string is dropped.
            self.rest = "";
            return Some(());
        };
        let literal = self.rest.get(..len)?;
        let value: String = match serde_json::from_str(literal) {
            Ok(value) => value,
            // A lone surrogate or a raw control character: masked as it stands.
            Err(_) => literal.get(1..len - 1)?.to_owned(),
        };
        let is_name = self.levels.last().is_some_and(|level| level.expects_name);
        // A schema describes a secret's member; it does not hold one.
        let in_schema = self.levels.iter().rev().nth(1).is_some_and(|outer| outer.step == "properties");
        if is_name && let Some(level) = self.levels.last_mut() {
            level.this_secret = !in_schema && is_secret_name(&value);
            level.step = value.replace('~', "~0").replace('/', "~1");
        }
        let masked = if !is_name && self.is_secret() && !value.is_empty() {
            self.spans.push(Span { detector: "secret-name".into(), pointer: self.pointer() });
            Some(self.masker.replacement("secret-name", &value))
        } else {
            let pointer = self.pointer();
            self.masker.detect(&value, &pointer, &mut self.spans)
        };
        match masked {
            Some(masked) => {
                if is_name && let Some(level) = self.levels.last_mut() {
                    // The pointers of what is below must not show it either.
                    level.step = "~masked".into();
                    for span in &mut self.spans {
                        span.pointer = span.pointer.replace(&value, "~masked");
                    }
                }
                self.out.push_str(&serde_json::Value::String(masked).to_string());
            }
            None => self.out.push_str(literal),
        }
        self.rest = self.rest.get(len..)?;
        Some(())
    }

    fn scalar(&mut self) -> Option<()> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '+' | '.'));
        let token = self.rest.get(..end.unwrap_or(self.rest.len()))?;
        let number = token.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if !number && !matches!(token, "true" | "false" | "null") && end.is_some() {
            return None;
        }
        if number && self.is_secret() {
            self.spans.push(Span { detector: "secret-name".into(), pointer: self.pointer() });
            let masked = self.masker.replacement("secret-name", token);
            self.out.push_str(&serde_json::Value::String(masked).to_string());
            self.rest = self.rest.get(token.len()..)?;
            return Some(());
        }
        self.copy(token.len())
    }
}

/// The bytes of the string literal at the start of `text`, quotes included; `None` when its end is missing.
fn literal_len(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().enumerate().skip(1).find_map(|(at, byte)| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends.then_some(at + 1)
    })
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
