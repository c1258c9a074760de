//! Values for what was masked: a pseudonym and where its value lies come in; texts with the value in its place go out,
//! and texts that are shown with the value taken out again. A value comes from a file or the environment, never from
//! the command line itself, which others on the host can read.

use std::path::Path;

use crate::masked::{self, places};

/// The most bytes of a value.
const MAX_VALUE: u64 = 64 << 10;

/// Why a binding is none. It never repeats what might be a value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BindError {
    #[error("a binding is PSEUDONYM=@FILE or PSEUDONYM=env:NAME, such as p0:0123456789abcdef=@token.txt")]
    Form,
    #[error("the value for {pseudonym} cannot be read: {why}")]
    Unreadable { pseudonym: String, why: String },
    #[error("the value for {0} is empty")]
    Empty(String),
}

/// Values by pseudonym.
#[derive(Default, Clone)]
pub struct Bindings(Vec<(String, String)>);

impl std::fmt::Debug for Bindings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bindings({} values)", self.0.len())
    }
}

/// A value out of `@FILE` or `env:NAME`.
pub fn value(source: &str) -> Result<String, String> {
    let text = if let Some(path) = source.strip_prefix('@') {
        let about = std::fs::metadata(Path::new(path)).map_err(|e| e.to_string())?;
        if about.len() > MAX_VALUE {
            return Err(format!("more than {MAX_VALUE} bytes"));
        }
        std::fs::read_to_string(path).map_err(|e| e.to_string())?
    } else if let Some(name) = source.strip_prefix("env:") {
        std::env::var(name).map_err(|e| e.to_string())?
    } else {
        return Err("it is neither @FILE nor env:NAME".into());
    };
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl Bindings {
    /// Each as `PSEUDONYM=@FILE` or `PSEUDONYM=env:NAME`.
    pub fn read(bindings: &[String]) -> Result<Self, BindError> {
        let mut out = Self::default();
        for binding in bindings {
            let (name, source) = binding.split_once('=').ok_or(BindError::Form)?;
            let pseudonym = masked::pseudonym(name).ok_or(BindError::Form)?.to_owned();
            if !source.starts_with('@') && !source.starts_with("env:") {
                return Err(BindError::Form);
            }
            let value =
                value(source).map_err(|why| BindError::Unreadable { pseudonym: pseudonym.clone(), why })?;
            if value.is_empty() {
                return Err(BindError::Empty(pseudonym));
            }
            out.0.push((pseudonym, value));
        }
        Ok(out)
    }

    /// A JSON text with each bound value in its place, and whether something masked is left. What is masked stands inside
    /// the text's strings.
    pub fn fill(&self, text: &str) -> (String, bool) {
        let (mut out, mut from, mut left) = (String::with_capacity(text.len()), 0, false);
        for place in places(text) {
            let Some((_, value)) = self.0.iter().find(|(pseudonym, _)| pseudonym == place.pseudonym) else {
                left = true;
                continue;
            };
            out.push_str(text.get(from..place.range.start).unwrap_or_default());
            out.push_str(&escaped(value));
            from = place.range.end;
        }
        out.push_str(text.get(from..).unwrap_or_default());
        (out, left)
    }

    /// A text in which no bound value stands.
    pub fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (pseudonym, value)| {
            let shown = format!("[bound:{pseudonym}]");
            text.replace(&escaped(value), &shown).replace(value, &shown)
        })
    }
}

/// Inside a JSON string.
fn escaped(value: &str) -> String {
    let quoted = serde_json::Value::from(value).to_string();
    quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "p0:0123456789abcdef";

    #[test]
    fn a_bound_value_goes_into_its_place_and_is_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "a\"b\\c\n").unwrap();
        let bindings = Bindings::read(&[format!("{NAME}=@{}", file.path().display())]).unwrap();
        let text = format!(r#"{{"t":"x [masked:a:{NAME}] y","u":"[masked:a:p0:ffffffffffffffff]"}}"#);
        let (filled, left) = bindings.fill(&text);
        assert!(left);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&filled).unwrap()["t"], "x a\"b\\c y");
        let hidden = text.replace(&format!("[masked:a:{NAME}]"), &format!("[bound:{NAME}]"));
        assert_eq!(bindings.hide(&filled), hidden);
        assert!(!format!("{bindings:?}").contains("a\""));
    }

    #[test]
    fn a_value_is_never_taken_from_the_command_line() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        for binding in ["x", NAME, "p0:0123456789abcdef=hunter2", "secret=@f"] {
            let error = Bindings::read(&[binding.to_owned()]).unwrap_err();
            assert_eq!(error, BindError::Form, "{binding}");
        }
        let of = |source: String| Bindings::read(&[format!("{NAME}={source}")]).unwrap_err();
        assert!(matches!(of("@/nonexistent".into()), BindError::Unreadable { .. }));
        assert_eq!(of(format!("@{}", empty.path().display())), BindError::Empty(NAME.into()));
    }
}
