//! What a request's body holds, as far as policy cares: messages, nothing that is called, or something that some
//! server might read as a call and policy cannot.

use weir_core::mcp::jsonrpc::{Body as Messages, ParseError};

use crate::http::{First, ReadRequest, StreamedRequest, claims_json};

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
                if !claims_json(&request.parts.headers) && First::of(&request.body) != First::Json =>
            {
                nothing
            }
            Err(error) => Contents::Unreadable(error),
        }
    }
}

impl NothingCalled {
    /// Of a request whose body was judged by its first bytes to be no JSON, or is when they come.
    pub fn in_stream(_: &StreamedRequest) -> Self {
        Self(())
    }

    /// Of messages that are all responses to the server's own requests.
    pub fn in_messages(messages: &Messages) -> Option<Self> {
        messages.messages().iter().all(|message| message.method().is_none()).then_some(Self(()))
    }
}
