//! What a request's body holds, as far as policy cares: messages, nothing that is called, or something that some
//! server might read as a call and policy cannot.

use weir_core::mcp::jsonrpc::{Body as Messages, ParseError};

use crate::http::{ReadRequest, claims_json};

/// See the module.
pub(super) enum Contents {
    /// MCP messages.
    Messages(Messages),
    /// No body, or one that is no MCP.
    Nothing(NothingCalled),
    Unreadable(ParseError),
}

/// Proves that nothing is called: what it is of may go upstream without any intent.
#[derive(Debug)]
pub(super) struct NothingCalled(());

impl Contents {
    pub fn of(request: &ReadRequest) -> Self {
        let nothing = Contents::Nothing(NothingCalled(()));
        if request.body.is_empty() {
            return nothing;
        }
        match Messages::parse(&request.body) {
            Ok(messages) => Contents::Messages(messages),
            Err(ParseError::NotJsonRpc(_)) => nothing,
            Err(ParseError::NotJson(_))
                if !claims_json(&request.parts.headers) && !begins_as_json(&request.body) =>
            {
                nothing
            }
            Err(error) => Contents::Unreadable(error),
        }
    }
}

impl NothingCalled {
    /// Of messages that are all responses to the server's own requests.
    pub fn in_messages(messages: &Messages) -> Option<Self> {
        messages.messages().iter().all(|message| message.method().is_none()).then_some(Self(()))
    }
}

/// Whether a lenient parser could find JSON here, whatever the head says: behind a byte-order mark, in UTF-16 or
/// UTF-32, or with something behind it.
fn begins_as_json(body: &[u8]) -> bool {
    let mark = |byte: &u8| matches!(byte, 0 | 0xef | 0xbb | 0xbf | 0xfe | 0xff) || byte.is_ascii_whitespace();
    matches!(body.iter().find(|byte| !mark(byte)), Some(b'{' | b'['))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_seen_in_any_encoding() {
        let text = "\u{feff}{\"jsonrpc\":\"2.0\"}";
        let wide: Vec<u16> = text.encode_utf16().collect();
        let bytes = |of: fn(u16) -> [u8; 2]| wide.iter().copied().flat_map(of).collect::<Vec<u8>>();
        let long: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
        for body in [text.as_bytes(), &bytes(u16::to_le_bytes), &bytes(u16::to_be_bytes), &long, b" \n[1,2]x"]
        {
            assert!(begins_as_json(body), "{body:?}");
        }
        for body in [&b"grant_type=client_credentials"[..], b"--boundary\r\n{", b"\x1f\x8b\x08\x00{", b""] {
            assert!(!begins_as_json(body), "{body:?}");
        }
    }
}
