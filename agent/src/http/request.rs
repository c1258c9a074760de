//! Reading a request: its head checked, and its body, untouched: whole and within the limits where some reader could find
//! JSON in it, else as it comes.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::header::{self, HeaderMap};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper::upgrade::OnUpgrade;

use super::coding::{Coding, CodingError, Decoder};
use super::first::{First, Start};
use super::guarded::Guard;
use super::head::{claims_json, in_origin_form, one_connections_alone, wants_websocket};
use super::outgoing::Outgoing;
use super::received::{Broke, Received};
use crate::share::Kept;

/// How long a body that must be judged by its first bytes may take for them before its head goes on without. They are judged when they
/// come; a client that waits for its server's head before it says anything (as gRPC's may) must not wait for ever.
const FIRST_BYTES: Duration = Duration::from_millis(500);
/// So much of a refused body is read all the same, for at most so long.
const DISCARDED: usize = 1 << 20;
const DISCARD_WAIT: Duration = Duration::from_millis(300);

/// A request that was read.
#[derive(Debug)]
pub enum Read {
    /// With all of its body.
    Whole(ReadRequest),
    /// No reader can find a message in its body, which goes on as it comes.
    Streamed(StreamedRequest),
}

/// A request whose body is here.
#[derive(Debug)]
pub struct ReadRequest {
    /// Its head, without what concerns the client's connection alone.
    pub parts: Parts,
    /// What the body says: decoded, if it came encoded.
    pub body: Bytes,
    /// The body as it came, where that is something else.
    pub encoded: Option<Bytes>,
    trailers: Option<Box<HeaderMap>>,
    /// Where the client's connection is to be had if the server changes the protocol as the client asked.
    pub upgrade: Option<Upgrade>,
    #[expect(dead_code, reason = "held for as long as the body is")]
    kept: Kept,
}

/// A request whose body goes on as it comes.
#[derive(Debug)]
pub struct StreamedRequest {
    pub parts: Parts,
    pub body: Outgoing,
}

/// A client's connection, for when it is no longer HTTP's.
#[derive(Debug)]
pub struct Upgrade {
    connection: OnUpgrade,
    guard: Option<Guard>,
}

impl Upgrade {
    fn of(parts: &mut Parts) -> Option<Self> {
        let guard = parts.extensions.get::<Guard>().cloned();
        let connection = wants_websocket(parts).then(|| parts.extensions.remove::<OnUpgrade>()).flatten()?;
        Some(Self { connection, guard })
    }

    /// The server has agreed: what the client sends from now on is not HTTP.
    pub fn agreed(self) -> OnUpgrade {
        if let Some(guard) = self.guard {
            guard.switch();
        }
        self.connection
    }
}

/// What a client may make the agent keep of one request, and wait for.
#[derive(Debug)]
pub struct Patience {
    /// Bytes of the body, encoded or decoded.
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
    #[error(transparent)]
    Encoded(#[from] CodingError),
    /// As it came it is JSON, decoded it is something else: two servers may act on two things.
    #[error("the body reads as JSON although its Content-Encoding says that it is encoded")]
    TwoReadings,
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
            RequestError::TooLarge { .. }
            | RequestError::Encoded(CodingError::TooLarge { .. } | CodingError::Malformed(_))
            | RequestError::TwoReadings
            | RequestError::BrokenOff(_) => 400,
            RequestError::Encoded(CodingError::Unknown(_)) => 415,
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
    /// What the Host header names, or in HTTP/2 the `:authority`. `None` if there is none, or more than one Host, or if the
    /// request's target names another: then it depends on the server which of them counts.
    pub fn of(version: http::Version, target: &Uri, headers: &HeaderMap) -> Option<Self> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (None, _) if version == http::Version::HTTP_2 => return Self::read(target.authority()?),
            (Some(host), None) => Self::read(&host.to_str().ok()?.parse().ok()?)?,
            _ => return None,
        };
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

/// Reads as much of a request as must be read before it may go on. The head that comes with it has no more in it than goes upstream.
pub async fn read(
    request: hyper::Request<Received>,
    patience: Patience,
) -> Result<Read, (Parts, RequestError)> {
    let (mut parts, mut body) = request.into_parts();
    if parts.method == http::Method::CONNECT {
        return Err((parts, RequestError::Connect));
    }
    let begun = Coding::of(&parts.headers).and_then(|coding| Ok((coding, Start::new(coding)?)));
    let (coding, start) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let error = error.into();
            discard(&parts, &mut body, &error).await;
            return Err((parts, error));
        }
    };
    let must_be_whole = claims_json(&parts.headers);
    let upgrade = Upgrade::of(&mut parts);
    let tells_trailers = parts.headers.contains_key(header::TRAILER);
    let mut reading = Reading { body, bytes: Vec::new(), tells_trailers, trailers: None, patience };
    let had_body = !reading.body.is_end_stream();
    let streams = match reading.first(start, must_be_whole).await {
        Ok(streams) => streams,
        Err(error) => {
            discard(&parts, &mut reading.body, &error).await;
            return Err((parts, error));
        }
    };
    let with_upgrade = upgrade.is_some();
    one_connections_alone(&mut parts.headers, with_upgrade);
    in_origin_form(&mut parts);
    if let Some(start) = streams {
        let Reading { body, bytes, patience, .. } = reading;
        let body = Outgoing::streamed(bytes.into(), body, start, patience.pause);
        parts.headers.remove(header::EXPECT);
        return Ok(Read::Streamed(StreamedRequest { parts, body }));
    }
    let decoded = match reading.whole(coding).await {
        Ok(decoded) => decoded,
        Err(error) => {
            discard(&parts, &mut reading.body, &error).await;
            return Err((parts, error));
        }
    };
    parts.headers.remove(header::EXPECT);
    let Reading { bytes, trailers, patience, .. } = reading;
    let bytes = Bytes::from(bytes);
    parts.headers.remove(header::CONTENT_LENGTH);
    if had_body && trailers.is_none() {
        parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    }
    let (body, encoded) = match decoded {
        Some(decoded) => (decoded.into(), Some(bytes)),
        None => (bytes, None),
    };
    Ok(Read::Whole(ReadRequest { parts, body, encoded, trailers, upgrade, kept: patience.kept }))
}

/// Throws away what is left of a body that is refused: the connection is closed behind the answer, and a client that still sends
/// then would be told of that, and not why. One that waits to be told to go on is not.
async fn discard(parts: &Parts, body: &mut Received, why: &RequestError) {
    let is_over = matches!(why, RequestError::TooSlow(_) | RequestError::BrokenOff(_));
    if is_over || parts.headers.contains_key(header::EXPECT) {
        return;
    }
    let mut left = DISCARDED;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Some(less) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
            left = less;
        }
    };
    let _ = tokio::time::timeout(DISCARD_WAIT, reading).await;
}

impl ReadRequest {
    /// Its client waits for it: by closing its half of the connection it has left, and takes back what it asked for.
    pub fn is_waited_for(&self) {
        if let Some(guard) = self.parts.extensions.get::<Guard>() {
            guard.strict();
        }
    }

    /// Puts another text in the place of the body, unencoded, and lets the head say so.
    pub fn replace_body(&mut self, text: String) {
        let headers = &mut self.parts.headers;
        headers.remove(header::CONTENT_ENCODING);
        for name in ["digest", "content-digest", "repr-digest", "content-md5"] {
            headers.remove(name);
        }
        if headers.contains_key(header::CONTENT_LENGTH) {
            headers.insert(header::CONTENT_LENGTH, text.len().into());
        }
        (self.body, self.encoded) = (text.into(), None);
    }

    /// Parts the head from the body as it came.
    pub fn into_outgoing(self) -> (Parts, Outgoing) {
        let data = self.encoded.unwrap_or(self.body);
        let data = Some(data).filter(|data| !data.is_empty());
        (self.parts, Outgoing::Whole { data, trailers: self.trailers })
    }
}

/// A request's body being read.
struct Reading {
    body: Received,
    bytes: Vec<u8>,
    /// Whether the head says that trailers follow; others are not sent on.
    tells_trailers: bool,
    trailers: Option<Box<HeaderMap>>,
    patience: Patience,
}

impl Reading {
    /// Reads until it is certain whether the body must be read whole (`None`), or may stream; in that case with what is to judge bytes that
    /// have not come.
    async fn first(
        &mut self,
        mut start: Start,
        must_be_whole: bool,
    ) -> Result<Option<Option<Start>>, RequestError> {
        if must_be_whole || self.body.is_end_stream() {
            return Ok(None);
        }
        let limit = self.patience.bytes;
        let mut judged = 0;
        loop {
            let next = tokio::time::timeout(FIRST_BYTES, self.body.frame()).await;
            let frame = match next {
                // Nothing has come: the head may go on, and what comes is judged on its way.
                Err(_) if self.bytes.is_empty() => return Ok(Some(Some(start))),
                Err(_) | Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame,
            };
            if !self.take(frame, limit)? {
                continue;
            }
            let new = self.bytes.get(judged..).unwrap_or_default();
            match start.push(new)? {
                First::Unknown => judged = self.bytes.len(),
                First::Json => return Ok(None),
                First::Other => return Ok(Some(None)),
            }
        }
    }

    /// Reads the rest, and decodes the whole if it is encoded.
    async fn whole(&mut self, coding: Option<Coding>) -> Result<Option<Vec<u8>>, RequestError> {
        let (limit, pause) = (self.patience.bytes, self.patience.pause);
        if self.body.size_hint().lower() > limit.saturating_sub(self.bytes.len()) as u64 {
            return Err(RequestError::TooLarge { limit });
        }
        loop {
            let frame = tokio::time::timeout(pause, self.body.frame()).await;
            match frame.map_err(|_| RequestError::TooSlow(pause))? {
                None => break,
                Some(frame) => self.take(frame, limit)?,
            };
        }
        let Some(coding) = coding.filter(|_| !self.bytes.is_empty()) else { return Ok(None) };
        if First::of(&self.bytes) == First::Json {
            return Err(RequestError::TwoReadings);
        }
        let decoded = Decoder::new(coding)?.push(&self.bytes, limit)?;
        if !self.patience.kept.grow(decoded.len()) {
            return Err(RequestError::NoRoom);
        }
        Ok(Some(decoded))
    }

    /// Says whether it was data.
    fn take(
        &mut self,
        frame: Result<hyper::body::Frame<Bytes>, Broke>,
        limit: usize,
    ) -> Result<bool, RequestError> {
        let frame = frame.map_err(|e| RequestError::BrokenOff(e.to_string()))?;
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                self.trailers = frame.into_trailers().ok().filter(|_| self.tells_trailers).map(Box::new);
                return Ok(false);
            }
        };
        if data.len() > limit.saturating_sub(self.bytes.len()) {
            return Err(RequestError::TooLarge { limit });
        }
        if !self.patience.kept.grow(data.len()) {
            return Err(RequestError::NoRoom);
        }
        self.bytes.extend_from_slice(&data);
        Ok(true)
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
            Authority::of(parts.version, &parts.uri, &parts.headers)
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

    #[test]
    fn in_http2_the_authority_is_enough_and_a_host_beside_it_must_agree() {
        let of = |host: Option<&str>| {
            let build = http::Request::get("https://A.test:8443/x").version(http::Version::HTTP_2);
            let parts = parts(match host {
                Some(host) => build.header("host", host),
                None => build,
            });
            Authority::of(parts.version, &parts.uri, &parts.headers)
        };
        assert_eq!(of(None).unwrap().as_str(), "a.test");
        assert_eq!(of(Some("a.test")).unwrap().as_str(), "a.test");
        assert_eq!(of(Some("b.test")), None);
    }
}
