//! MCP on ports that nobody listed: a destination that is spoken MCP to in plain text is known by its first request, and
//! intercepted from then on.
//!
//! Enters: the first bytes of a relayed connection. Leaves: whether they are MCP's, and the destinations where they were.
//! Must never: keep a connection waiting whose server speaks first, or forget a destination while the agent runs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The most destinations that are learned; past it connections are still read, each by its own first request.
const MOST: usize = 4096;
/// The most bytes of a request that are looked at.
const LOOKED_AT: usize = 16 << 10;
/// How long a client may pause within them. It is not refused then, but relayed.
const PAUSE: Duration = Duration::from_secs(1);

/// Where MCP was spoken on ports that are not listed.
#[derive(Debug, Default)]
pub(super) struct Learned(Mutex<BTreeSet<SocketAddr>>);

impl Learned {
    pub fn knows(&self, destination: SocketAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&destination)
    }

    /// Says whether it is new, and kept.
    pub fn add(&self, destination: SocketAddr) -> bool {
        let mut learned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        learned.len() < MOST && learned.insert(destination)
    }
}

/// What a client says first, as far as it must be read to tell whether it is MCP. Nothing, when the server speaks first.
pub(super) async fn first_words(client: &mut TcpStream, server: &TcpStream) -> Bytes {
    let mut said = BytesMut::new();
    while said.len() < LOOKED_AT && (said.is_empty() || wants_more(&said)) {
        let read = tokio::select! {
            biased;
            _ = server.readable() => break,
            read = client.read_buf(&mut said) => read,
            () = tokio::time::sleep(PAUSE), if !said.is_empty() => break,
        };
        if !matches!(read, Ok(1..)) {
            break;
        }
    }
    said.freeze()
}

/// Whether it is a request whose head, or the beginning of whose JSON, is not there yet.
fn wants_more(said: &[u8]) -> bool {
    let is_request = [&b"POST "[..], b"GET ", b"DELETE "].iter().any(|method| begins(said, method));
    match head_end(said) {
        None => is_request,
        Some(end) => {
            let head = lower(said.get(..end).unwrap_or_default());
            said.len() == end && begins(said, b"POST ") && head.contains("application/json") && !marked(&head)
        }
    }
}

/// Whether a request's first bytes are MCP's: by the headers that only it has, by what its clients must accept
/// (streamable HTTP: JSON and event streams), or by a JSON-RPC message.
pub(super) fn speaks_mcp(said: &[u8]) -> bool {
    let end = head_end(said).unwrap_or(said.len());
    let (head, body) = (lower(said.get(..end).unwrap_or_default()), said.get(end..).unwrap_or_default());
    let is_http = head.lines().next().is_some_and(|line| line.contains(" http/1."));
    is_http && (marked(&head) || begins(said, b"POST ") && lower(body).contains("\"jsonrpc\""))
}

fn marked(head: &str) -> bool {
    head.lines().skip(1).any(|line| {
        line.starts_with("mcp-")
            || line.starts_with("accept:")
                && line.contains("text/event-stream")
                && line.contains("application/json")
    })
}

fn head_end(said: &[u8]) -> Option<usize> {
    said.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn begins(said: &[u8], word: &[u8]) -> bool {
    let length = said.len().min(word.len());
    said.get(..length) == word.get(..length)
}

fn lower(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcp_is_known_by_its_headers_by_what_it_accepts_or_by_json_rpc() {
        for yes in [
            "GET /mcp HTTP/1.1\r\nHost: a\r\nMcp-Session-Id: 1\r\n\r\n",
            "POST /x HTTP/1.1\r\nACCEPT: application/json, text/event-stream\r\n\r\n",
            "POST / HTTP/1.0\r\nContent-Type: application/json\r\n\r\n{\"jsonrpc\":\"2.0\"}",
        ] {
            assert!(speaks_mcp(yes.as_bytes()), "{yes}");
        }
        for no in [
            "",
            "POST",
            "GET / HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Type: application/json\r\n\r\n{\"id\":1}",
            "SSH-2.0-x\r\nmcp-session-id: 1\r\n\r\n",
        ] {
            assert!(!speaks_mcp(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn only_a_request_is_waited_for_and_no_longer_than_it_takes() {
        for more in [
            "P",
            "POST / HT",
            "GET / HTTP/1.1\r\nA: b\r\n",
            "POST / HTTP/1.1\r\nContent-Type: application/json\r\n\r\n",
        ] {
            assert!(wants_more(more.as_bytes()), "{more}");
        }
        for enough in [
            "SSH-2.0",
            "GET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Type: application/json\r\n\r\n{",
        ] {
            assert!(!wants_more(enough.as_bytes()), "{enough}");
        }
    }
}
