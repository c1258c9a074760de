//! Reading a request: its head checked, its body whole and within the limit, its bytes untouched.

use bytes::Bytes;
use http::Uri;
use http::header::{self, HeaderMap, HeaderName};
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

/// A request whose body is here.
#[derive(Debug)]
pub struct ReadRequest {
    pub parts: Parts,
    pub body: Bytes,
}

/// Why a request cannot be read. The client is at fault.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the body is over {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the body's content encoding {0:?} cannot be read here; send it unencoded")]
    Encoded(String),
    #[error("the body broke off: {0}")]
    BrokenOff(String),
}

/// The host that a request names, without its port; lower-case, IPv6 without brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority(String);

impl Authority {
    /// What the Host header names. `None` if there is none, or more than one, or if the request's target names
    /// another: then it depends on the server which of them counts.
    pub fn of(target: &Uri, headers: &HeaderMap) -> Option<Self> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (host, None) = (hosts.next()?, hosts.next()) else { return None };
        let host = Self::from(&host.to_str().ok()?.parse().ok()?);
        match target.authority() {
            Some(authority) if Self::from(authority) != host => None,
            _ => Some(host),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&http::uri::Authority> for Authority {
    fn from(named: &http::uri::Authority) -> Self {
        let host = named.host().trim_start_matches('[').trim_end_matches(']');
        Self(host.trim_end_matches('.').to_ascii_lowercase())
    }
}

/// Reads the whole body, at most `limit` bytes.
pub async fn read(
    request: hyper::Request<Incoming>,
    limit: usize,
) -> Result<ReadRequest, (Parts, RequestError)> {
    let (parts, body) = request.into_parts();
    let encoding = parts.headers.get(header::CONTENT_ENCODING);
    if let Some(encoding) = encoding.filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
        return Err((parts, RequestError::Encoded(encoding)));
    }
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(ReadRequest { parts, body: body.to_bytes() }),
        Err(e) if e.is::<LengthLimitError>() => Err((parts, RequestError::TooLarge { limit })),
        Err(e) => Err((parts, RequestError::BrokenOff(e.to_string()))),
    }
}

/// Takes out what concerns one connection only (RFC 9110, 7.6.1), among it offers to upgrade the protocol.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(build: http::request::Builder) -> Parts {
        build.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_authority_is_the_host_without_port_case_or_brackets() {
        let of_request = |build| {
            let parts = parts(build);
            Authority::of(&parts.uri, &parts.headers)
        };
        let of = |host: &str| of_request(http::Request::get("/").header("host", host));
        for (host, expected) in [
            ("MCP.Example.test:8443", "mcp.example.test"),
            ("mcp.example.test.", "mcp.example.test"),
            ("[::1]:8443", "::1"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(of(host).unwrap().as_str(), expected);
        }
        assert_eq!(of("a b"), None);
        assert_eq!(of_request(http::Request::get("/")), None);
        let two = http::Request::get("/").header("host", "a.test").header("host", "b.test");
        assert_eq!(of_request(two), None);
        let absolute = http::Request::get("http://a.test/x").header("host", "b.test");
        assert_eq!(of_request(absolute), None);
        let agreeing = http::Request::get("http://a.test/x").header("host", "A.test:80");
        assert_eq!(of_request(agreeing).unwrap().as_str(), "a.test");
    }

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let request = http::Request::get("/")
            .header("connection", "Upgrade, HTTP2-Settings, X-Own")
            .header("upgrade", "h2c")
            .header("http2-settings", "AAMAAABkAAQAAP__")
            .header("x-own", "1")
            .header("mcp-session-id", "s");
        let mut headers = parts(request).headers;
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["mcp-session-id"]);
    }
}
