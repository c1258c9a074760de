//! The arguments of calls, masked before they go anywhere: in the body, and in the headers that repeat them.

use http::{HeaderMap, HeaderValue};
use weir_core::mask::Masker;
use weir_core::mcp::header::{PARAM, decoded, encoded};
use weir_core::mcp::rewrite::{Arguments, Told, mask_arguments};
use weir_core::record::Direction;

use crate::gate::call::OpenCall;
use crate::gate::{Flow, Gate};
use crate::http::ReadRequest;

impl Gate {
    /// Masks what policy wants to be masked of the calls' arguments.
    pub(in crate::gate) async fn mask_arguments(
        &self,
        flow: &Flow,
        mut request: ReadRequest,
        calls: &[OpenCall],
    ) -> ReadRequest {
        if !calls.iter().any(|call| call.wants().in_flight.arguments) {
            return request;
        }
        let wants = |id: Option<&_>| {
            calls.iter().any(|call| call.request_id() == id && call.wants().in_flight.arguments)
        };
        let Some(masked) = mask_arguments(&request.body, &self.masker, wants) else { return request };
        let Arguments { text, spans, replaced } = masked;
        mask_headers(&mut request.parts.headers, &self.masker, &replaced);
        if spans.is_empty() {
            return request;
        }
        request.replace_body(text);
        let told = Told { masked: spans, ..Told::default() };
        let call = match calls {
            [call] => Some(call.call_id()),
            _ => None,
        };
        self.note_rewritten(flow, call, Direction::ClientToServer, &told).await;
        request
    }
}

/// The same of the head alone, for a request whose body will be another that was masked.
pub(in crate::gate) fn mask_repeated(request: &mut ReadRequest, masker: &Masker) {
    if let Some(Arguments { replaced, .. }) = mask_arguments(&request.body, masker, |_| true) {
        mask_headers(&mut request.parts.headers, masker, &replaced);
    }
}

/// An argument that is masked in the body is masked in the header that repeats it, and no other secret is left there.
fn mask_headers(headers: &mut HeaderMap, masker: &Masker, replaced: &[(String, String)]) {
    for (name, value) in headers.iter_mut().filter(|(name, _)| name.as_str().starts_with(PARAM)) {
        let Some(text) = decoded(value.as_bytes()) else { continue };
        let masked = replaced.iter().find(|(was, _)| *was == text).map(|(_, is)| is.clone());
        let masked = masked.unwrap_or_else(|| masker.text(&text).as_str().to_owned());
        if masked != text {
            match HeaderValue::try_from(encoded(&masked)) {
                Ok(masked) => *value = masked,
                Err(_) => tracing::error!(%name, "a masked header cannot be written"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_core::mask::MaskKey;

    use super::*;

    #[test]
    fn a_header_that_repeats_an_argument_follows_it() {
        let masker = Masker::new(MaskKey::new([7; 32]));
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("mcp-param-password", "hunter2"),
            ("mcp-param-place", "=?base64?TcO8bmNoZW4gaHVudGVyMg==?="),
            ("mcp-param-token", "ghp_abcdefghijklmnopqrstuvwxyz0123456789"),
            ("mcp-param-plain", "eu-west"),
            ("mcp-name", "hunter2"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let replaced = [("hunter2", "[masked]"), ("München hunter2", "München [masked]")]
            .map(|(was, is)| (was.to_owned(), is.to_owned()));
        mask_headers(&mut headers, &masker, &replaced);
        let of = |name: &str| decoded(headers[name].as_bytes()).unwrap();
        assert_eq!(
            (of("mcp-param-password"), of("mcp-param-place")),
            ("[masked]".into(), "München [masked]".into())
        );
        assert!(of("mcp-param-token").starts_with("[masked:github-token:"));
        assert_eq!((of("mcp-param-plain"), of("mcp-name")), ("eu-west".into(), "hunter2".into()));
    }
}
