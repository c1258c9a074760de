//! Where a replay goes: a URL and the servers of the record come in, an address that is none of theirs goes out. What is
//! connected to is the very address that was looked at, so no name can mean another one a moment later.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use hyper::Uri;

use crate::bundle::Server;

/// A server that may be asked.
#[derive(Debug, Clone)]
pub struct Target {
    pub uri: Uri,
    pub host: String,
    pub address: SocketAddr,
    pub is_tls: bool,
}

/// Why nothing is asked. The operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{0:?} is no URL of an MCP server, such as http://127.0.0.1:9000/mcp")]
    Form(String),
    #[error("{host} has no address: {why}")]
    Unresolved { host: String, why: String },
    #[error(
        "{target} is a server of the record ({server}): a replay goes to a sandbox, or with --force-original"
    )]
    Original { target: String, server: String },
}

impl Target {
    /// Reads the URL, looks its name up, and refuses what is a server of the record unless `force`.
    pub fn of(url: &str, servers: &[Server], force: bool) -> Result<Self, TargetError> {
        let form = || TargetError::Form(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| form())?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(form()),
        };
        let host = uri.host().ok_or_else(form)?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let unresolved = |why: String| TargetError::Unresolved { host: host.clone(), why };
        let found = (host.as_str(), port).to_socket_addrs().map_err(|e| unresolved(e.to_string()))?;
        let addresses: Vec<SocketAddr> = found.collect();
        // A name for loopback has two addresses, and a server of its own may listen at one of them alone.
        let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied();
        let address = first.ok_or_else(|| unresolved("it has none".into()))?;
        for server in servers.iter().filter(|_| !force) {
            let is_named = server.port == port && server.name.eq_ignore_ascii_case(&host);
            if is_named || addresses.iter().any(|address| is_at(server, *address)) {
                let server = format!("{} at {} port {}", server.name, server.address, server.port);
                return Err(TargetError::Original { target: format!("{host}:{port}"), server });
            }
        }
        Ok(Self { uri, host, address, is_tls })
    }
}

/// Loopback is one host, whichever of its addresses is used.
fn is_at(server: &Server, address: SocketAddr) -> bool {
    let Ok(recorded) = server.address.parse::<IpAddr>() else { return false };
    let (one, other) = (recorded.to_canonical(), address.ip().to_canonical());
    server.port == address.port() && (one == other || (one.is_loopback() && other.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Vec<Server> {
        let one =
            |name: &str, address: &str, port| Server { name: name.into(), address: address.into(), port };
        vec![one("localhost", "127.0.0.1", 8443), one("203.0.113.7", "::ffff:203.0.113.7", 443)]
    }

    #[test]
    fn the_servers_of_the_record_are_refused_by_any_of_their_names() {
        for url in [
            "https://localhost:8443/mcp",
            "http://127.0.0.1:8443/",
            "http://127.0.0.2:8443/other",
            "http://[::1]:8443/",
            "https://203.0.113.7/mcp",
        ] {
            assert!(matches!(Target::of(url, &servers(), false), Err(TargetError::Original { .. })), "{url}");
            assert!(Target::of(url, &servers(), true).is_ok(), "{url}");
        }
        let sandbox = Target::of("http://127.0.0.1:9000/mcp", &servers(), false).unwrap();
        assert_eq!((sandbox.address.port(), sandbox.is_tls), (9000, false));
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        for url in ["", "localhost:9000", "ftp://x/", "http://", "/mcp"] {
            assert!(matches!(Target::of(url, &[], false), Err(TargetError::Form(_))), "{url}");
        }
    }
}
