//! The arguments of the calls in a request's body, masked in its text.

use super::text::{elements, member, splice};
use crate::mask::{Masker, Span};
use crate::mcp::jsonrpc::{Body as Messages, RequestId};

/// The text of a single request under another id. `None` for what has none.
pub fn with_id(body: &[u8], id: &RequestId) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let place = member(text, "id")?;
    Some(splice(text, &[(place, id.as_json().to_owned())]))
}

/// A body whose arguments were masked.
pub struct Arguments {
    pub text: String,
    /// What was masked; empty when nothing was.
    pub spans: Vec<Span>,
    /// Each string that became another one, in clear, with what became of it.
    pub replaced: Vec<(String, String)>,
}

/// Masks the arguments of those calls of which `wants` says so, by their ids. `None` for what holds no message.
pub fn mask_arguments(
    body: &[u8],
    masker: &Masker,
    wants: impl Fn(Option<&RequestId>) -> bool,
) -> Option<Arguments> {
    let text = std::str::from_utf8(body).ok()?;
    let messages = Messages::parse(body).ok()?;
    let places = match &messages {
        Messages::Single(_) => std::iter::once(0..text.len()).collect(),
        Messages::Batch(_) => elements(text)?,
    };
    let (mut edits, mut spans, mut replaced) = (Vec::new(), Vec::new(), Vec::new());
    for (message, place) in messages.messages().iter().zip(places) {
        if message.method().is_none() || !wants(message.id()) {
            continue;
        }
        let own = text.get(place.clone())?;
        let Some(params) = member(own, "params") else { continue };
        let Some(arguments) = member(own.get(params.clone())?, "arguments") else { continue };
        let start = place.start + params.start;
        let range = start + arguments.start..start + arguments.end;
        let masked = masker.pass_on(text.get(range.clone())?, &[])?;
        if !masked.spans.is_empty() {
            edits.push((range, masked.text));
            spans.extend(masked.spans);
            replaced.extend(masked.replaced);
        }
    }
    Some(Arguments { text: splice(text, &edits), spans, replaced })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::MaskKey;

    #[test]
    fn a_request_under_another_id_is_the_same_in_all_else() {
        let body = r#" { "id" : 7 ,"jsonrpc":"2.0","params":{"id":9}} "#;
        let other = RequestId::read("\"a\"").unwrap();
        assert_eq!(with_id(body.as_bytes(), &other).unwrap(), body.replace("7", "\"a\""));
        assert_eq!((with_id(b"{}", &other), with_id(b"[1]", &other)), (None, None));
    }

    #[test]
    fn the_arguments_of_a_call_are_masked_and_nothing_else_of_its_request() {
        let masker = Masker::new(MaskKey::new([7; 32]));
        let call = |id: u32, secret: &str| {
            format!(
                r#"{{"jsonrpc":"2.0", "id":{id},"method":"tools/call","params":{{"_meta":{{"k":"hunter2 token=correct-horse"}},"name":"login","arguments":{{"n": 1.0,"password":"{secret}"}}}}}}"#
            )
        };
        let body = format!("[{} , {}]", call(1, "hunter2"), call(2, "hunter2"));
        let second = RequestId::read("2").unwrap();
        let out = mask_arguments(body.as_bytes(), &masker, |id| id == Some(&second)).unwrap();
        let [(was, is)] = &out.replaced[..] else { panic!() };
        assert_eq!((was.as_str(), out.spans[0].pointer.as_str()), ("hunter2", "/password"));
        assert_eq!(out.text, format!("[{} , {}]", call(1, "hunter2"), call(2, is)));
        let none = mask_arguments(body.as_bytes(), &masker, |_| false).unwrap();
        assert!(none.text == body && none.spans.is_empty());
    }
}
