//! `[collector]`: where records go. A socket of this host, or the address of a collector on another, to which this host is
//! known by what it enrolled for.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where the identity lies below the state folder.
const IDENTITY_FOLDER: &str = "collector";

/// Where HTTPS is unless an address says otherwise.
const USUAL_PORT: u16 = 443;

/// Which collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CollectorPlace {
    Socket(PathBuf),
    /// Another host's, and the folder of what this host is known by there.
    Remote {
        url: CollectorUrl,
        identity: PathBuf,
    },
}

/// `https://host:port`, and nothing behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorUrl {
    pub host: String,
    pub port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CollectorSection {
    socket: Option<PathBuf>,
    url: Option<String>,
}

impl CollectorSection {
    pub fn checked(self, state_dir: &Path) -> Result<CollectorPlace, String> {
        match (self.socket, self.url) {
            (Some(socket), None) => Ok(CollectorPlace::Socket(socket)),
            (None, Some(url)) => {
                Ok(CollectorPlace::Remote { url: url.parse()?, identity: identity_folder(state_dir) })
            }
            _ => Err("a collector is named by its socket or by its url".into()),
        }
    }
}

/// Where the identity of the host with this state folder lies.
pub fn identity_folder(state_dir: &Path) -> PathBuf {
    state_dir.join(IDENTITY_FOLDER)
}

impl std::str::FromStr for CollectorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no address of a collector, such as \"https://collector.example:8443\"");
        let parsed: http::Uri = text.parse().map_err(|_| wrong())?;
        let authority = parsed.authority().ok_or_else(wrong)?;
        let path = parsed.path_and_query().map_or("/", |path| path.as_str());
        if parsed.scheme_str() != Some("https") || path != "/" || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if rustls::pki_types::ServerName::try_from(host).is_err() {
            return Err(wrong());
        }
        // Behind the host is a port, or nothing.
        let port = match authority.as_str().get(authority.host().len()..).unwrap_or_default() {
            "" => USUAL_PORT,
            port => port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or_else(wrong)?,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "https://[{}]:{}", self.host, self.port),
            false => write!(f, "https://{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_name_or_an_ip_and_a_port() {
        for (text, shown) in [
            ("https://collector.example:8443", "https://collector.example:8443"),
            ("https://collector.example", "https://collector.example:443"),
            ("https://10.0.0.7:8443/", "https://10.0.0.7:8443"),
            ("https://[::1]:8443", "https://[::1]:8443"),
        ] {
            assert_eq!(text.parse::<CollectorUrl>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "collector:8443",
            "http://c:1",
            "https://",
            "https://c/v1",
            "https://u@c",
            "https://c:99999",
            "https://a b",
        ] {
            assert!(bad.parse::<CollectorUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_collector_is_named_in_one_way() {
        let section = |text: &str| toml::from_str::<CollectorSection>(text).unwrap().checked(Path::new("/s"));
        assert_eq!(section("socket = \"/c\"").unwrap(), CollectorPlace::Socket("/c".into()));
        let CollectorPlace::Remote { identity, .. } = section("url = \"https://c\"").unwrap() else {
            panic!()
        };
        assert_eq!(identity, Path::new("/s/collector"));
        assert!(section("").is_err() && section("socket = \"/c\"\nurl = \"https://c\"").is_err());
    }
}
