//! Reading a request: its head checked, its body whole and within the limits, its bytes untouched.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::header::{self, HeaderMap};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::head::{content_coding, one_connections_alone};
use crate::share::Kept;

/// A request whose body is here.
#[derive(Debug)]
pub struct ReadRequest {
    /// Its head, without what concerns the client's connection alone.
    pub parts: Parts,
    pub body: Bytes,
    #[expect(dead_code, reason = "held for as long as the body is")]
    kept: Kept,
}

/// What a client may make the agent keep of one request, and wait for.
#[derive(Debug)]
pub struct Patience {
    /// Bytes of the body.
    pub bytes: usize,
    /// A pause within the body.
    pub pause: Duration,
    pub kept: Kept,
}

/// Why a request cannot be read. The client is at fault, but where there is no room.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the body is over {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the body's content encoding {0:?} cannot be read here; send it unencoded")]
    Encoded(String),
    #[error("the body's next bytes did not come within {0:?}")]
    TooSlow(Duration),
    #[error("there is no room for the body now; try again later")]
    NoRoom,
    #[error("the method is for proxies, and this is none")]
    Connect,
    #[error("the body broke off: {0}")]
    BrokenOff(String),
}

impl RequestError {
    /// The HTTP status that says so.
    pub fn status(&self) -> u16 {
        match self {
            RequestError::TooLarge { .. } | RequestError::Encoded(_) | RequestError::BrokenOff(_) => 400,
            RequestError::TooSlow(_) => 408,
            RequestError::NoRoom => 503,
            RequestError::Connect => 501,
        }
    }
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
        let host = Self::read(&host.to_str().ok()?.parse().ok()?)?;
        match target.authority() {
            Some(authority) if Self::read(authority)? != host => None,
            _ => Some(host),
        }
    }

    /// `None` for what has a user's name in it, which a Host must not (RFC 9110, 7.2).
    fn read(named: &http::uri::Authority) -> Option<Self> {
        if named.as_str().contains('@') {
            return None;
        }
        let host = named.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        // The library lets some odd ones through (`7[::1]`).
        if host.contains(['[', ']']) {
            return None;
        }
        Some(Self(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads the whole body. The head that comes with it has no more in it than goes upstream.
pub async fn read(
    request: hyper::Request<Incoming>,
    mut patience: Patience,
) -> Result<ReadRequest, (Parts, RequestError)> {
    let (mut parts, mut body) = request.into_parts();
    if parts.method == http::Method::CONNECT {
        return Err((parts, RequestError::Connect));
    }
    if let Some(coding) = content_coding(&parts.headers) {
        return Err((parts, RequestError::Encoded(coding)));
    }
    let bytes = match collect(&mut body, &mut patience).await {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) => return Err((parts, error)),
    };
    let framed = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    let had_body = framed.iter().any(|name| parts.headers.contains_key(name));
    one_connections_alone(&mut parts.headers);
    parts.headers.remove(header::EXPECT);
    parts.headers.remove(header::CONTENT_LENGTH);
    if had_body {
        parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    }
    Ok(ReadRequest { parts, body: bytes, kept: patience.kept })
}

async fn collect(body: &mut Incoming, patience: &mut Patience) -> Result<Vec<u8>, RequestError> {
    let limit = patience.bytes;
    let too_large = RequestError::TooLarge { limit };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large);
    }
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::time::timeout(patience.pause, body.frame()).await;
        let frame = match frame.map_err(|_| RequestError::TooSlow(patience.pause))? {
            None => return Ok(bytes),
            Some(frame) => frame.map_err(|e| RequestError::BrokenOff(e.to_string()))?,
        };
        // Trailers go no further.
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit - bytes.len() {
            return Err(too_large);
        }
        if !patience.kept.grow(data.len()) {
            return Err(RequestError::NoRoom);
        }
        bytes.extend_from_slice(&data);
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
        for odd in [
            "user@a.test",
            "user:word@a.test:80",
            "a.test@b.test",
            "a.test..",
            "[a.test",
            "b.test[::1]",
            "[::1]]",
            "::1",
            "a.test, b.test",
        ] {
            assert!(
                of(odd).is_none_or(|host| !["a.test", "b.test", "::1"].contains(&host.as_str())),
                "{odd}"
            );
        }
        let agreeing = http::Request::get("http://a.test/x").header("host", "A.test:80");
        assert_eq!(of_request(agreeing).unwrap().as_str(), "a.test");
    }
}
