//! What was recorded against what came now: two JSON values come in, the places where they differ go out. A recorded
//! text with something masked in it fits each text that has the rest of it in place.

use serde_json::Value;

use crate::masked::places;

/// The most differences that are told of one call.
pub const MAX_DIFFERENCES: usize = 20;
/// The most characters of a value that are shown.
const MAX_SHOWN: usize = 160;

/// One place where they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// JSON pointer.
    pub pointer: String,
    /// `absent` where it was not there.
    pub recorded: String,
    pub now: String,
}

/// The differences, and whether masked text was in what was compared.
pub fn compare(recorded: &Value, now: &Value) -> (Vec<Difference>, bool) {
    let mut out = Found::default();
    out.compare("", recorded, now);
    (out.differences, out.masked)
}

#[derive(Default)]
struct Found {
    differences: Vec<Difference>,
    masked: bool,
}

impl Found {
    fn compare(&mut self, at: &str, recorded: &Value, now: &Value) {
        match (recorded, now) {
            (Value::Object(one), Value::Object(other)) => {
                for (name, value) in one {
                    let at = member(at, name);
                    match other.get(name) {
                        Some(now) => self.compare(&at, value, now),
                        None => self.differ(&at, Some(value), None),
                    }
                }
                for (name, value) in other.iter().filter(|(name, _)| !one.contains_key(*name)) {
                    self.differ(&member(at, name), None, Some(value));
                }
            }
            (Value::Array(one), Value::Array(other)) => {
                for index in 0..one.len().max(other.len()) {
                    let at = format!("{at}/{index}");
                    match (one.get(index), other.get(index)) {
                        (Some(recorded), Some(now)) => self.compare(&at, recorded, now),
                        (recorded, now) => self.differ(&at, recorded, now),
                    }
                }
            }
            (Value::String(one), Value::String(other)) if one != other => {
                let is_masked = !places(one).is_empty();
                self.masked |= is_masked;
                if !(is_masked && fits(one, other)) {
                    self.differ(at, Some(recorded), Some(now));
                }
            }
            // A number that was masked became a text.
            (Value::String(one), Value::Number(_) | Value::Bool(_))
                if places(one).iter().any(|place| place.range == (0..one.len())) =>
            {
                self.masked = true;
            }
            (Value::Number(one), Value::Number(other)) if one.as_f64() == other.as_f64() => {}
            _ if recorded == now => {}
            _ => self.differ(at, Some(recorded), Some(now)),
        }
    }

    fn differ(&mut self, at: &str, recorded: Option<&Value>, now: Option<&Value>) {
        if self.differences.len() < MAX_DIFFERENCES {
            let shown = |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), shown);
            self.differences.push(Difference {
                pointer: at.to_owned(),
                recorded: shown(recorded),
                now: shown(now),
            });
        }
    }
}

fn member(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= MAX_SHOWN {
        return text;
    }
    text.chars().take(MAX_SHOWN).chain("...".chars()).collect()
}

/// Whether `now` is `masked` with some text for each masked place.
fn fits(masked: &str, now: &str) -> bool {
    let (mut from, mut rest, mut first) = (0, now, true);
    for place in places(masked) {
        let literal = masked.get(from..place.range.start).unwrap_or_default();
        let at = if first { rest.starts_with(literal).then_some(0) } else { rest.find(literal) };
        let Some(at) = at else { return false };
        rest = rest.get(at + literal.len()..).unwrap_or_default();
        (from, first) = (place.range.end, false);
    }
    rest.ends_with(masked.get(from..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_difference_is_told_with_its_place() {
        let (found, masked) = compare(
            &json!({"a": 1, "b": [1, {"c/d": "x"}], "gone": null, "same": 2.0}),
            &json!({"a": "1", "b": [1, {"c/d": "y"}, 3], "new": true, "same": 2}),
        );
        let places: Vec<_> =
            found.iter().map(|one| (one.pointer.as_str(), one.recorded.as_str(), one.now.as_str())).collect();
        assert_eq!(
            places,
            [
                ("/a", "1", "\"1\""),
                ("/b/1/c~1d", "\"x\"", "\"y\""),
                ("/b/2", "absent", "3"),
                ("/gone", "null", "absent"),
                ("/new", "absent", "true"),
            ]
        );
        assert!(!masked);
        let many = json!((0..MAX_DIFFERENCES * 2).collect::<Vec<_>>());
        assert_eq!(compare(&many, &json!([])).0.len(), MAX_DIFFERENCES);
        let long = compare(&json!("x".repeat(1000)), &json!("")).0.remove(0);
        assert_eq!(long.recorded.chars().count(), MAX_SHOWN + 3);
    }

    #[test]
    fn masked_text_fits_what_has_the_rest_in_place() {
        let masked = "key=[masked:a:p0:0123456789abcdef] end [masked:a:p0:0123456789abcdef]";
        for (now, expected) in [
            ("key=AKIA end AKIA", true),
            ("key= end ", true),
            ("key=AKIA stop AKIA", false),
            ("no key=AKIA end x", false),
        ] {
            let (found, inexact) = compare(&json!(masked), &json!(now));
            assert_eq!((found.is_empty(), inexact), (expected, true), "{now}");
        }
        assert_eq!(compare(&json!("[masked:a:p0:0123456789abcdef]"), &json!(7)), (vec![], true));
    }
}
