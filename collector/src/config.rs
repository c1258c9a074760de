//! The collector's configuration: a TOML file comes in, a checked [`Config`] goes out. A mistake is named with
//! its file, line and column; an unknown key is a mistake. The password comes from a file of its own, which
//! nobody but its owner may read, and is never shown.

use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::authority::server_files;

/// The most bytes of a password file: more is some other file.
const MAX_PASSWORD_FILE: u64 = 4096;

/// Where the agents' CA is unless the configuration says otherwise.
pub const CA_FOLDER: &str = "/var/lib/weir-collector/ca";

/// The most bytes of a retention policy's name.
const MAX_POLICY_NAME: usize = 200;

/// Everything the operator decides.
#[derive(Debug, Clone)]
pub struct Config {
    pub store: Store,
    pub listen: Listen,
    pub witness: Witness,
    /// What is kept for how long; all of it for ever, when absent.
    pub retention: Option<Retention>,
}

/// The collector as a witness of what it stores.
#[derive(Debug, Clone)]
pub struct Witness {
    /// Made on first use; collectors of one database have the same.
    pub key_file: PathBuf,
    /// Under which it signs.
    pub name: String,
    /// Where each cosigned checkpoint is put besides, for a further witness.
    pub publish_dir: Option<PathBuf>,
}

/// Which ClickHouse, and as whom.
#[derive(Debug, Clone)]
pub struct Store {
    pub url: String,
    pub user: String,
    pub password: Password,
    pub database: String,
}

/// Where agents reach the collector.
#[derive(Debug, Clone)]
pub struct Listen {
    /// For agents of this host.
    pub socket: Option<PathBuf>,
    /// The users that they run as. Any other peer is refused, by what the kernel says of it.
    pub agent_uids: Vec<u32>,
    /// For agents of other hosts.
    pub tls: Option<ListenTls>,
}

/// The listener for TLS.
#[derive(Debug, Clone)]
pub struct ListenTls {
    pub address: SocketAddr,
    /// The folder of the agents' CA, as `weir-collector ca init` makes it.
    pub ca: PathBuf,
    /// The collector's own certificate and its key; those in `ca` unless named.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// How long events are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// What tombstones call it.
    pub name: String,
    /// Events of segments that were sealed before so many days are retired; at least 1.
    pub events_days: u32,
    /// Runs that are kept whatever their age, by their ids.
    #[serde(default)]
    pub keep_runs: Vec<String>,
    /// Logs that are kept whatever their age.
    #[serde(default)]
    pub keep_origins: Vec<String>,
}

impl Retention {
    fn checked(self) -> Result<Self, &'static str> {
        if self.events_days == 0 {
            return Err("events_days must be at least 1: the day that runs is never retired");
        }
        if self.name.is_empty()
            || self.name.len() > MAX_POLICY_NAME
            || self.name.chars().any(char::is_control)
        {
            return Err("name must be one line of at most 200 bytes, such as \"audit-7y\"");
        }
        Ok(self)
    }
}

/// A password. Its `Debug` says nothing.
#[derive(Clone, Default)]
pub struct Password(String);

impl Password {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// What is wrong with a configuration; the operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}; name another with --config", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line}:{column}: {message}", path = path.display())]
    Wrong { path: PathBuf, line: usize, column: usize, message: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    store: StoreSection,
    #[serde(default)]
    witness: WitnessSection,
    listen: Spanned<ListenSection>,
    retention: Option<Spanned<Retention>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenSection {
    socket: Option<PathBuf>,
    #[serde(default)]
    agent_uids: Vec<u32>,
    tls: Option<SocketAddr>,
    #[serde(default = "default_ca")]
    ca: PathBuf,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl ListenSection {
    fn checked(self) -> Result<Listen, &'static str> {
        let Self { socket, agent_uids, tls, ca, certificate, key } = self;
        if socket.is_none() && tls.is_none() {
            return Err(
                "listen needs a socket for agents of this host, or tls for those of others, such as \
                        \"0.0.0.0:8443\"",
            );
        }
        if socket.is_some() && agent_uids.is_empty() {
            return Err("agent_uids must name the users that agents run as, such as [0]");
        }
        let (own_certificate, own_key) = match (certificate, key) {
            (None, None) => server_files(&ca),
            (Some(certificate), Some(key)) => (certificate, key),
            _ => return Err("certificate and key go together"),
        };
        let tls = tls.map(|address| ListenTls { address, ca, certificate: own_certificate, key: own_key });
        Ok(Listen { socket, agent_uids, tls })
    }
}

fn default_ca() -> PathBuf {
    CA_FOLDER.into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreSection {
    url: Spanned<String>,
    #[serde(default = "default_user")]
    user: String,
    password_file: Option<Spanned<PathBuf>>,
    #[serde(default = "default_database")]
    database: Spanned<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WitnessSection {
    key_file: Option<PathBuf>,
    name: Option<String>,
    publish_dir: Option<PathBuf>,
}

impl WitnessSection {
    /// The key is beside the configuration unless that says otherwise.
    fn checked(self, config: &Path) -> Witness {
        Witness {
            key_file: self.key_file.unwrap_or_else(|| config.with_file_name("witness.key")),
            name: self.name.unwrap_or_else(|| "weir-collector".into()),
            publish_dir: self.publish_dir,
        }
    }
}

fn default_user() -> String {
    "default".into()
}

fn default_database() -> Spanned<String> {
    Spanned::new(0..0, "weir".into())
}

impl Config {
    /// Reads and checks a configuration file and the password file that it names.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks a configuration's text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |span: Range<usize>, message: String| {
            let (line, column) = weir_core::visible::position(text, span.start);
            ConfigError::Wrong { path: path.to_owned(), line, column, message }
        };
        let document: Document = toml::from_str(text)
            .map_err(|e| wrong(e.span().unwrap_or_default(), e.message().trim().replace('\n', ", ")))?;
        let StoreSection { url, user, password_file, database } = document.store;
        if !["http://", "https://"].iter().any(|scheme| url.get_ref().starts_with(scheme)) {
            let message = "url must begin with http:// or https://, such as \"http://127.0.0.1:8123\"";
            return Err(wrong(url.span(), message.into()));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if database.get_ref().is_empty() || !database.get_ref().chars().all(plain) {
            return Err(wrong(database.span(), "database must consist of letters, digits and _".into()));
        }
        let span = document.listen.span();
        let listen = document.listen.into_inner().checked().map_err(|message| wrong(span, message.into()))?;
        let retention = match document.retention {
            None => None,
            Some(retention) => {
                let span = retention.span();
                Some(retention.into_inner().checked().map_err(|message| wrong(span, message.into()))?)
            }
        };
        let password = match password_file {
            None => Password::default(),
            Some(file) => password(file.get_ref()).map_err(|message| wrong(file.span(), message))?,
        };
        let store = Store { url: url.into_inner(), user, password, database: database.into_inner() };
        let witness = document.witness.checked(path);
        Ok(Self { store, listen, witness, retention })
    }
}

/// The file's content without the line's end.
fn password(path: &Path) -> Result<Password, String> {
    let shown = path.display();
    let unreadable = |e: std::io::Error| format!("the password file {shown} cannot be read: {e}");
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "the password file {shown} is open to others (mode {mode:04o}); close it with `chmod 600 {shown}`"
        ));
    }
    let mut text = String::new();
    file.take(MAX_PASSWORD_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_PASSWORD_FILE {
        return Err(format!("the password file {shown} is too long to be one"));
    }
    Ok(Password(text.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("collector.toml")).map_err(|e| e.to_string())
    }

    const LISTEN: &str = "[listen]\nsocket = \"/run/c.sock\"\nagent_uids = [0]\n";

    #[test]
    fn a_short_configuration_gets_the_usual_user_and_database() {
        let config = parse(&format!("[store]\nurl = \"http://127.0.0.1:8123\"\n{LISTEN}")).unwrap();
        assert_eq!((config.store.user.as_str(), config.store.database.as_str()), ("default", "weir"));
        assert_eq!(config.listen.agent_uids, [0]);
    }

    #[test]
    fn a_collector_for_other_hosts_needs_no_socket() {
        let text = "[store]\nurl = \"http://x\"\n[listen]\ntls = \"0.0.0.0:8443\"\nca = \"/ca\"\n";
        let listen = parse(text).unwrap().listen;
        let tls = listen.tls.unwrap();
        assert!(listen.socket.is_none());
        assert_eq!((tls.certificate, tls.key), server_files(Path::new("/ca")));
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        for (text, expected) in [
            ("[store]\nurl = ", "collector.toml:2:7"),
            ("[store]\nurl = \"ftp://x\"\n", "missing field `listen`"),
            (&format!("[store]\nurl = \"ftp://x\"\n{LISTEN}"), "collector.toml:2:7: url must begin"),
            (
                &format!("[store]\nurl = \"http://x\"\nusr = 1\n{LISTEN}"),
                "collector.toml:3:1: unknown field `usr`",
            ),
            (
                &format!("[store]\nurl = \"http://x\"\ndatabase = \"a`b\"\n{LISTEN}"),
                "collector.toml:3:12: database must",
            ),
            (
                &format!("[store]\nurl = \"http://x\"\npassword_file = \"/nonexistent\"\n{LISTEN}"),
                "collector.toml:3:17: the password file /nonexistent cannot be read",
            ),
            (
                "[store]\nurl = \"http://x\"\n[listen]\nsocket = \"s\"\nagent_uids = []\n",
                "collector.toml:3:1: agent_uids must name",
            ),
            ("[store]\nurl = \"http://x\"\n[listen]\n", "collector.toml:3:1: listen needs a socket"),
            (
                "[store]\nurl = \"http://x\"\n[listen]\ntls = \"0.0.0.0:1\"\nkey = \"k\"\n",
                "collector.toml:3:1: certificate and key go together",
            ),
            (
                "[store]\nurl = \"http://x\"\n[listen]\ntls = \"collector:8443\"\n",
                "collector.toml:4:7: invalid socket address",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{text}\n{error}");
        }
    }

    #[test]
    fn a_password_that_others_can_read_is_refused_and_none_is_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "s3cret\n").unwrap();
        let text =
            format!("[store]\nurl = \"http://x\"\npassword_file = \"{}\"\n{LISTEN}", file.path().display());
        for mode in [0o640, 0o604] {
            std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
            let error = parse(&text).unwrap_err();
            assert!(error.contains("is open to others") && error.contains("chmod 600"), "{error}");
        }
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o600)).unwrap();
        let config = parse(&text).unwrap();
        assert_eq!(config.store.password.as_str(), "s3cret");
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
