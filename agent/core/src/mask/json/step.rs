//! The way to a value, as a JSON pointer (RFC 6901).

use std::borrow::Cow;

use super::super::MAX_POINTER;
use super::MASKED_STEP;

/// One step of a pointer; it becomes text only where something is masked.
pub(super) enum Step<'a> {
    /// The member of this name; none yet where it is empty.
    Member(Cow<'a, str>),
    /// A member whose name was masked.
    Masked,
    /// The element of an array.
    Element(usize),
}

/// Where the value being read is. One that is too long is cut.
pub(super) fn pointer<'a>(steps: impl Iterator<Item = &'a Step<'a>>) -> String {
    let mut out = String::new();
    for step in steps {
        let room = MAX_POINTER.saturating_sub(out.len() + 1);
        if room == 0 {
            break;
        }
        out.push('/');
        let step = match step {
            // Of a long name the beginning is enough, and escaping makes none shorter.
            Step::Member(name) => {
                let name = name.get(..name.floor_char_boundary(room)).unwrap_or_default();
                name.replace('~', "~0").replace('/', "~1")
            }
            Step::Masked => MASKED_STEP.to_owned(),
            Step::Element(index) => index.to_string(),
        };
        out.push_str(step.get(..step.floor_char_boundary(room)).unwrap_or_default());
    }
    out
}
