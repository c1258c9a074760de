//! Where the parts of a JSON text are, so that one of them can be exchanged and the rest stays to the letter.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// Of its value, in the object's text.
    pub value: Range<usize>,
}

/// The members of the object that `text` is.
pub fn members(text: &str) -> Option<Vec<Member>> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let found = reader.deserialize_map(Parts).ok()?;
    let part = |(name, raw): (String, &RawValue)| Some(Member { name, value: place(text, raw.get())? });
    found.into_iter().map(part).collect()
}

/// The elements of the array that `text` is.
pub fn elements(text: &str) -> Option<Vec<Range<usize>>> {
    let found: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    found.into_iter().map(|raw| place(text, raw.get())).collect()
}

/// The last member of this name.
pub fn member(text: &str, name: &str) -> Option<Range<usize>> {
    let named = members(text)?.into_iter().rev().find(|member| member.name == name);
    named.map(|member| member.value)
}

/// Where `part`, which lies in `text`, lies there.
fn place(text: &str, part: &str) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    let range = start..start.checked_add(part.len())?;
    text.get(range.clone()).map(|_| range)
}

/// The text with other parts in it; `edits` lie one behind the other.
pub fn splice(text: &str, edits: &[(Range<usize>, String)]) -> String {
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for (range, new) in edits {
        out.push_str(text.get(at..range.start).unwrap_or_default());
        out.push_str(new);
        at = range.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

/// The ranges to cut out of an array's text so that the elements of which `keeps` says so stay, each with one comma.
pub fn cuts(elements: &[Range<usize>], keeps: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let kept: Vec<bool> = (0..elements.len()).map(keeps).collect();
    let last_kept = kept.iter().rposition(|keeps| *keeps);
    let mut cuts = Vec::new();
    for (at, own) in elements.iter().enumerate() {
        let next = elements.get(at + 1);
        match (kept.get(at), next) {
            (Some(false), Some(next)) if last_kept.is_some_and(|last| at < last) => {
                cuts.push(own.start..next.start);
            }
            _ => {}
        }
    }
    let behind = last_kept.and_then(|last| elements.get(last)).map(|last| last.end);
    let start = behind.or_else(|| elements.first().map(|first| first.start));
    if let (Some(start), Some(last)) = (start, elements.last())
        && start < last.end
    {
        cuts.push(start..last.end);
    }
    cuts
}

struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut parts = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            parts.push((name, map.next_value()?));
        }
        Ok(parts)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(serde::de::Error::custom("an array is no object"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_where_they_stand() {
        let text = r#" { "a" : [1 , 2], "\u0062":{"a":7} , "a": "é" } "#;
        let found = members(text).unwrap();
        let values: Vec<_> = found.iter().map(|m| (m.name.as_str(), &text[m.value.clone()])).collect();
        assert_eq!(values, [("a", "[1 , 2]"), ("b", r#"{"a":7}"#), ("a", "\"é\"")]);
        assert_eq!(&text[member(text, "a").unwrap()], "\"é\"");
        assert_eq!((members("[1]"), members("7"), member("{}", "a")), (None, None, None));
        let array = "[ 1,  {\"a\":[2]} , \"x\"]";
        let found: Vec<_> = elements(array).unwrap().into_iter().map(|range| &array[range]).collect();
        assert_eq!(found, ["1", "{\"a\":[2]}", "\"x\""]);
    }

    #[test]
    fn what_is_cut_out_of_an_array_leaves_an_array() {
        let text = "[ 10 , 11 ,12,  13 ]";
        let found = elements(text).unwrap();
        for set in 0..16_u32 {
            let edits: Vec<_> =
                cuts(&found, |at| set >> at & 1 == 1).into_iter().map(|cut| (cut, String::new())).collect();
            let left: Vec<u32> = serde_json::from_str(&splice(text, &edits)).unwrap();
            let expected: Vec<u32> = (0..4).filter(|at| set >> at & 1 == 1).map(|at| at + 10).collect();
            assert_eq!(left, expected, "{}", splice(text, &edits));
        }
        assert_eq!(splice(text, &[]), text);
    }
}
