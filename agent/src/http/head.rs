//! Heads on their way through: without what concerns one connection alone, and with nothing in them that two
//! readers could take for two lengths of a body.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::response::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use weir_core::http1::{Ambiguous, MAX_LENGTH};

use crate::tls::Protocol;

const WEBSOCKET: &str = "websocket";

/// What a Connection header cannot take out: it would change which request this is.
const KEPT: [HeaderName; 4] =
    [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING];

/// Takes out what concerns one connection only (RFC 9110, 7.6.1), among it offers to upgrade the protocol, but for one to a web socket
/// where that is wanted. That the client takes trailers is told again: Weir passes them on.
pub fn one_connections_alone(headers: &mut HeaderMap, to_websocket: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    let takes_trailers = lists(headers, &header::TE, "trailers");
    for name in named {
        headers.remove(name);
    }
    for name in [header::CONNECTION, header::UPGRADE, header::TE, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if to_websocket {
        headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
}

/// Whether a client asks to go on as a web socket, and as nothing else (RFC 6455, 4.1). Other upgrades are not offered to a server: one to
/// `h2c` would go past the parser that policy has read the request with.
pub fn wants_websocket(parts: &http::request::Parts) -> bool {
    let upgrades: Vec<&[u8]> =
        parts.headers.get_all(header::UPGRADE).iter().map(|value| value.as_bytes().trim_ascii()).collect();
    let one = matches!(upgrades.as_slice(), [only] if only.eq_ignore_ascii_case(WEBSOCKET.as_bytes()));
    one && parts.method == http::Method::GET
        && parts.version == http::Version::HTTP_11
        && lists(&parts.headers, &header::CONNECTION, "upgrade")
}

/// What in a head of HTTP/2 that is no malformed one could be read in two ways where it goes on, as HTTP/1.1 or as a program's variables.
/// In heads of HTTP/1.1 `guarded` finds it.
pub fn two_readings(headers: &HeaderMap) -> Option<Ambiguous> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().map(HeaderValue::as_bytes);
    let resembles_framing = |name: &HeaderName| {
        let framing = [header::CONNECTION, header::CONTENT_LENGTH, header::HOST, header::TRANSFER_ENCODING];
        name.as_str().contains('_') && framing.iter().any(|one| *one == *name.as_str().replace('_', "-"))
    };
    match length {
        _ if lengths.next().is_some() => Some(Ambiguous::LengthRepeated),
        Some(length) if !is_plain_length(length) => Some(Ambiguous::LengthMalformed),
        _ if headers.get_all(header::HOST).iter().nth(1).is_some() => Some(Ambiguous::TwoHosts),
        _ if headers.keys().any(resembles_framing) => Some(Ambiguous::BadHeaderName),
        _ => None,
    }
}

/// Decimal digits without a leading zero, that no reader takes for another number.
fn is_plain_length(length: &[u8]) -> bool {
    let is_plain = length == b"0" || length.first().is_some_and(|digit| (b'1'..=b'9').contains(digit));
    let is_small = |text: &str| text.parse::<u64>().is_ok_and(|length| length <= MAX_LENGTH);
    is_plain && length.iter().all(u8::is_ascii_digit) && std::str::from_utf8(length).is_ok_and(is_small)
}

/// The scheme that a client of HTTP/2 named.
#[derive(Debug, Clone)]
struct Named(Scheme);

/// Makes the head of a request of HTTP/2 look like any other's: with a Host, and a path alone as its target.
pub fn in_origin_form(parts: &mut http::request::Parts) {
    if parts.version != http::Version::HTTP_2 {
        return;
    }
    let uri = std::mem::take(&mut parts.uri).into_parts();
    if let (Some(authority), false) = (uri.authority, parts.headers.contains_key(header::HOST))
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(header::HOST, host);
    }
    if let Some(scheme) = uri.scheme {
        parts.extensions.insert(Named(scheme));
    }
    parts.uri = uri.path_and_query.map_or_else(http::Uri::default, http::Uri::from);
}

/// Makes a request's head that of one to a server that speaks `protocol`.
pub fn request_to(parts: &mut http::request::Parts, protocol: Protocol) {
    // A name and a scheme are the connection's own in HTTP/1.1, and the request's in HTTP/2.
    let path = parts.uri.path_and_query().cloned();
    match protocol {
        Protocol::Http1 => {
            if let Some(path) = path {
                parts.uri = path.into();
            }
            if parts.headers.contains_key(header::TE) {
                parts.headers.append(header::CONNECTION, HeaderValue::from_static("TE"));
            }
            join_cookies(&mut parts.headers);
            parts.version = http::Version::HTTP_11;
        }
        Protocol::Http2 => {
            let host = parts.headers.remove(header::HOST);
            let mut uri = http::uri::Parts::default();
            uri.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
            let named = parts.extensions.remove::<Named>();
            uri.scheme = Some(named.map_or(Scheme::HTTPS, |Named(scheme)| scheme));
            uri.path_and_query = path.or_else(|| Some(PathAndQuery::from_static("/")));
            if let Ok(uri) = http::Uri::from_parts(uri) {
                parts.uri = uri;
            }
            parts.version = http::Version::HTTP_2;
        }
    }
}

/// HTTP/2 lets a client send its cookies one by one, HTTP/1.1 does not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// Whether one of the items that a header lists is this one.
fn lists(headers: &HeaderMap, name: &HeaderName, item: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|listed| listed.trim().eq_ignore_ascii_case(item))
}

/// Makes a server's head that of an answer to the client, framed anew.
pub fn answer(head: &mut Parts) {
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        // It overrides a length that is there too (RFC 9112, 6.3), and goes no further itself.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    let to_websocket = head.status == http::StatusCode::SWITCHING_PROTOCOLS;
    one_connections_alone(&mut head.headers, to_websocket);
    head.version = http::Version::HTTP_11;
}

/// Whether any Content-Type names JSON.
pub fn claims_json(headers: &HeaderMap) -> bool {
    let names_json = |value: &http::HeaderValue| {
        value.as_bytes().to_ascii_lowercase().windows(4).any(|part| part == b"json")
    };
    headers.get_all(header::CONTENT_TYPE).iter().any(names_json)
}

/// The type of event streams.
const EVENTS: &str = "text/event-stream";

/// Whether a client takes an answer of this type, by its very name (RFC 9110, 12.5.1).
pub fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let items =
        headers.get_all(header::ACCEPT).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut types = items.filter_map(|item| item.split(|byte| *byte == b';').next());
    types.any(|name| name.trim_ascii().eq_ignore_ascii_case(media_type.as_bytes()))
}

/// Whether a client takes events, perhaps besides other things.
pub fn takes_events(headers: &HeaderMap) -> bool {
    accepts(headers, EVENTS)
}

/// Whether the content is an event stream.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    content_type.to_ascii_lowercase().starts_with(EVENTS.as_bytes())
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
        one_connections_alone(&mut headers, false);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "host", "mcp-session-id"]);
    }

    fn request(of: &[(&'static str, &'static str)]) -> http::request::Parts {
        let mut parts = http::Request::get("/x?y").body(()).unwrap().into_parts().0;
        parts.headers = headers(of);
        parts
    }

    #[test]
    fn an_upgrade_to_a_web_socket_alone_is_passed_on() {
        let asks = |of| wants_websocket(&request(of));
        assert!(asks(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]));
        assert!(!asks(&[("connection", "Upgrade"), ("upgrade", "h2c")]));
        assert!(!asks(&[("connection", "Upgrade"), ("upgrade", "h2c, websocket")]));
        assert!(!asks(&[("upgrade", "websocket")]));
        let mut headers = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        one_connections_alone(&mut headers, true);
        assert_eq!((headers["upgrade"].as_bytes(), headers.len()), (&b"websocket"[..], 2));
    }

    #[test]
    fn a_request_changes_its_version_and_nothing_else() {
        let mut parts = request(&[("host", "a.test:8443"), ("te", "trailers"), ("cookie", "a=1")]);
        one_connections_alone(&mut parts.headers, false);
        request_to(&mut parts, Protocol::Http2);
        assert_eq!(parts.uri.to_string(), "https://a.test:8443/x?y");
        assert!(!parts.headers.contains_key("host") && parts.headers["te"] == "trailers");
        parts.headers.append("cookie", HeaderValue::from_static("b=2"));
        in_origin_form(&mut parts);
        request_to(&mut parts, Protocol::Http1);
        assert_eq!(parts.uri.to_string(), "/x?y");
        assert_eq!(parts.headers["host"], "a.test:8443");
        assert_eq!(parts.headers["cookie"], "a=1; b=2");
        assert_eq!(parts.headers["connection"], "TE");
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
        let mut types = headers(&[("content-type", "text/plain")]);
        assert!(!claims_json(&types));
        types.append("content-type", http::HeaderValue::from_static("application/JSON"));
        assert!(claims_json(&types));
    }
}
