//! Heads on their way through: without what concerns one connection alone, and with nothing in them that two
//! readers could take for two lengths of a body.

use http::header::{self, HeaderMap, HeaderName};
use http::response::Parts;

/// What a Connection header cannot take out: it would change which request this is.
const KEPT: [HeaderName; 4] =
    [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING];

/// Takes out what concerns one connection only (RFC 9110, 7.6.1), among it offers to upgrade the protocol.
pub fn one_connections_alone(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [header::CONNECTION, header::UPGRADE, header::TE, header::TRAILER, header::TRANSFER_ENCODING]
    {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
}

/// Makes a server's head that of an answer to the client: framed anew, in the client's version of HTTP.
pub fn answer(head: &mut Parts) {
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        // It overrides a length that is there too (RFC 9112, 6.3), and goes no further itself.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    one_connections_alone(&mut head.headers);
    head.version = http::Version::HTTP_11;
}

/// How the content is encoded, if it is.
pub fn content_coding(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter().map(|value| value.as_bytes());
    let coding = values.find(|value| !value.is_empty() && !value.eq_ignore_ascii_case(b"identity"))?;
    Some(String::from_utf8_lossy(coding).into_owned())
}

/// Whether any Content-Type names JSON.
pub fn claims_json(headers: &HeaderMap) -> bool {
    let names_json = |value: &http::HeaderValue| {
        value.as_bytes().to_ascii_lowercase().windows(4).any(|part| part == b"json")
    };
    headers.get_all(header::CONTENT_TYPE).iter().any(names_json)
}

/// Whether the content is an event stream.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    content_type.to_ascii_lowercase().starts_with(b"text/event-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let mut headers = headers(&[
            ("connection", "Upgrade, HTTP2-Settings, X-Own, Host, Content-Type"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("x-own", "1"),
            ("host", "a.test"),
            ("content-type", "application/json"),
            ("mcp-session-id", "s"),
        ]);
        one_connections_alone(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "host", "mcp-session-id"]);
    }

    #[test]
    fn an_answer_has_one_length() {
        let response = http::Response::builder()
            .version(http::Version::HTTP_10)
            .header("transfer-encoding", "chunked")
            .header("content-length", "5")
            .body(())
            .unwrap();
        let mut head = response.into_parts().0;
        answer(&mut head);
        assert!(head.headers.is_empty() && head.version == http::Version::HTTP_11);
    }

    #[test]
    fn no_second_header_hides_behind_the_first() {
        let coded = headers(&[("content-encoding", "identity")]);
        assert_eq!(content_coding(&coded), None);
        let mut two = coded;
        two.append("content-encoding", http::HeaderValue::from_static("gzip"));
        assert_eq!(content_coding(&two).as_deref(), Some("gzip"));
        let mut types = headers(&[("content-type", "text/plain")]);
        assert!(!claims_json(&types));
        types.append("content-type", http::HeaderValue::from_static("application/JSON"));
        assert!(claims_json(&types));
    }
}
