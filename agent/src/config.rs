//! The agent's configuration: a TOML text comes in, a checked [`Config`] goes out. A mistake is named with
//! its file, line and column; nothing is guessed, and an unknown key is a mistake.

mod approval;
mod collector;
mod egress;
mod intercept;
mod lifecycle;
mod limits;
mod select;
mod upstream;

use std::net::{SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::Spanned;
use weir_core::policy::{Action, Policy, PolicyError, Rule};

use approval::ApprovalSection;
pub use approval::{Approval, Ladder};
pub use collector::{CollectorPlace, CollectorUrl, identity_folder};
pub use egress::{Egress, Treatment};
pub use intercept::InterceptList;
pub use lifecycle::{Failure, Kernel, Mode, Refusal};
pub use limits::{Limits, Spool};
pub use select::{Reach, Select, SelectEntry, Stdio, UserName};
pub use upstream::{ClientAuth, ClientCertificate, Upstream};

use collector::CollectorSection;
use intercept::{Bypass, Intercept};

/// Everything the operator decides.
#[derive(Debug, Clone)]
pub struct Config {
    pub tenant: String,
    /// Spool, CA, keys and admin socket live here.
    pub state_dir: PathBuf,
    pub policy: Policy,
    pub select: Select,
    pub stdio: Stdio,
    pub listen: Listen,
    pub kernel: Kernel,
    pub failure: Failure,
    /// Where records go; without a collector they wait in the spool.
    pub collector: Option<CollectorPlace>,
    /// Ports of Weir's own that selected cgroups may not reach.
    pub protected_ports: Vec<u16>,
    pub intercept: InterceptList,
    pub egress: Egress,
    pub upstream: Upstream,
    pub approval: Approval,
    pub limits: Limits,
    pub spool: Spool,
    pub accounting: Accounting,
}

/// How the hooks' counts are stated.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accounting {
    /// How often the sums of a job that goes on are recorded; at its end they are in any case.
    #[serde(deserialize_with = "duration")]
    pub every: Duration,
}

impl Default for Accounting {
    fn default() -> Self {
        Self { every: Duration::from_secs(10) }
    }
}

/// The listeners' addresses; port 0 takes any free one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    pub v4: SocketAddrV4,
    pub v6: SocketAddrV6,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            v4: SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0),
            v6: SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, 0, 0, 0),
        }
    }
}

/// The most bytes of a tenant's name: it is in the name of each log, and that of its key.
const MAX_TENANT: usize = 100;
/// The longest duration that can be configured.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is wrong with a configuration; the operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line}:{column}: {message}", path = path.display())]
    Wrong { path: PathBuf, line: usize, column: usize, message: String },
    #[error("{path}: the allowed signers {file}: {reason}", path = path.display(), file = file.display())]
    Signers { path: PathBuf, file: PathBuf, reason: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    tenant: String,
    state_dir: PathBuf,
    #[serde(default)]
    default_action: Option<Spanned<Action>>,
    select: Option<Spanned<Select>>,
    #[serde(default)]
    stdio: Stdio,
    #[serde(default)]
    listen: Listen,
    #[serde(default)]
    kernel: Kernel,
    #[serde(default)]
    failure: Failure,
    collector: Option<Spanned<CollectorSection>>,
    #[serde(default)]
    protect: ProtectSection,
    #[serde(default)]
    intercept: Vec<Spanned<Intercept>>,
    #[serde(default)]
    bypass: Bypass,
    #[serde(default)]
    egress: Egress,
    #[serde(default)]
    upstream: Upstream,
    #[serde(default)]
    approval: ApprovalSection,
    #[serde(default)]
    policy: PolicySection,
    #[serde(default)]
    rule: Vec<Spanned<Rule>>,
    limits: Option<Spanned<Limits>>,
    spool: Option<Spanned<Spool>>,
    #[serde(default)]
    accounting: Accounting,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProtectSection {
    ports: Vec<u16>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicySection {
    hide_denied_tools: bool,
}

impl Config {
    /// Reads and checks a configuration file, and the allowed-signers file that it names.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// What `weir run` uses when it is given no configuration: everything on the web's ports is recorded, and
    /// no rule refuses anything.
    pub fn built_in(state_dir: PathBuf) -> Self {
        let text = "tenant = \"default\"\nstate_dir = \"\"\n";
        #[expect(clippy::expect_used, reason = "a constant, and a test reads it")]
        let config = Self::parse(text, Path::new("built-in")).expect("the built-in configuration");
        Self { state_dir, ..config }
    }

    /// Checks a configuration's text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |span: Range<usize>, message: String| {
            let (line, column) = weir_core::visible::position(text, span.start);
            ConfigError::Wrong { path: path.to_owned(), line, column, message }
        };
        let document: Document = toml::from_str(text)
            .map_err(|e| wrong(e.span().unwrap_or_default(), e.message().trim().replace('\n', ", ")))?;
        let tenant = &document.tenant;
        if !(1..=MAX_TENANT).contains(&tenant.len()) || tenant.chars().any(char::is_control) {
            return Err(wrong(0..0, format!("tenant must be a name of at most {MAX_TENANT} bytes")));
        }
        for entry in &document.intercept {
            if let Some(fault) = entry.get_ref().fault() {
                return Err(wrong(entry.span(), fault.into()));
            }
        }
        if let Some((span, fault)) = document.egress.fault().or_else(|| document.upstream.fault()) {
            return Err(wrong(span, fault.into()));
        }
        let spans: Vec<_> =
            document.rule.iter().map(|rule| (rule.get_ref().id.clone(), rule.span())).collect();
        let default_span = document.default_action.as_ref().map_or(0..0, Spanned::span);
        let default_action = document.default_action.map_or(Action::Allow, Spanned::into_inner);
        let rules: Vec<Rule> = document.rule.into_iter().map(Spanned::into_inner).collect();
        let policy = Policy::new(rules, default_action).map_err(|e| {
            let span = match &e {
                PolicyError::DoubleId(id)
                | PolicyError::HoldsMoreThanToolCalls(id)
                | PolicyError::BestEffortWithoutAllow(id)
                | PolicyError::MasksWhatIsDenied(id)
                | PolicyError::ReservedId(id) => {
                    spans.iter().rev().find(|(own, _)| own == id).map_or(0..0, |(_, span)| span.clone())
                }
                PolicyError::DefaultHold => default_span,
            };
            wrong(span, e.to_string())
        })?;
        let policy = policy.hiding_denied_tools(document.policy.hide_denied_tools);
        let select = match document.select {
            Some(select) => match select.get_ref().fault() {
                Some(fault) => return Err(wrong(select.span(), fault)),
                None => select.into_inner(),
            },
            None => Select::default(),
        };
        let limits = match document.limits {
            Some(limits) => match limits.get_ref().fault() {
                Some(fault) => return Err(wrong(limits.span(), fault.into())),
                None => limits.into_inner(),
            },
            None => Limits::default(),
        };
        let spool = match document.spool {
            Some(spool) => match spool.get_ref().fault() {
                Some(fault) => return Err(wrong(spool.span(), fault.into())),
                None => spool.into_inner(),
            },
            None => Spool::default(),
        };
        for (name, is_loopback) in
            [("v4", document.listen.v4.ip().is_loopback()), ("v6", document.listen.v6.ip().is_loopback())]
        {
            if !is_loopback {
                let message =
                    format!("listen.{name} must be a loopback address: only led connections belong there");
                return Err(wrong(0..0, message));
            }
        }
        let collector = match document.collector {
            Some(section) => {
                let span = section.span();
                let checked = section.into_inner().checked(&document.state_dir);
                Some(checked.map_err(|message| wrong(span, message))?)
            }
            None => None,
        };
        let listed = document.intercept.into_iter().map(Spanned::into_inner).collect();
        let intercept = InterceptList::new(listed, document.bypass);
        Ok(Self {
            tenant: document.tenant,
            state_dir: document.state_dir,
            policy,
            select,
            stdio: document.stdio,
            listen: document.listen,
            kernel: document.kernel,
            failure: document.failure,
            collector,
            protected_ports: document.protect.ports,
            intercept,
            egress: document.egress,
            upstream: document.upstream,
            approval: document.approval.checked(path)?,
            limits,
            spool,
            accounting: document.accounting,
        })
    }
}

/// `"10s"`, `"15m"`, `"1h 30m"`; at most [`LONGEST`].
fn duration<'de, D: Deserializer<'de>>(reader: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(reader)?;
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    parsed.filter(|duration| !duration.is_zero() && *duration <= LONGEST).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "{text:?} is not a duration such as \"10s\" or \"15m\", of a week at most"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("weir.toml")).map_err(|e| e.to_string())
    }

    const HEAD: &str = "tenant = \"t\"\nstate_dir = \"/x\"\n";

    #[test]
    fn the_built_in_configuration_intercepts_the_webs_ports() {
        let config = Config::built_in("/state".into());
        let address = "203.0.113.7".parse().unwrap();
        assert!(config.intercept.covers(None, address, 443) && !config.intercept.covers(None, address, 22));
        assert_eq!(config.state_dir, Path::new("/state"));
    }

    #[test]
    fn a_name_or_an_address_on_a_listed_port_is_covered() {
        let text = format!(
            "{HEAD}[[intercept]]\nnames = [\"*.mcp.test\"]\ncidrs = [\"10.0.0.0/8\"]\nports = [8443]\n"
        );
        let list = parse(&text).unwrap().intercept;
        let (inside, outside) = ("10.1.2.3".parse().unwrap(), "192.0.2.1".parse().unwrap());
        assert!(list.covers(Some("A.mcp.test"), outside, 8443));
        assert!(list.covers(None, inside, 8443));
        assert!(!list.covers(Some("a.mcp.test"), inside, 443));
        assert!(!list.covers(Some("mcp.test"), outside, 8443));
        assert!(list.may_cover(8443) && !list.may_cover(443));
    }

    #[test]
    fn a_bypass_by_name_or_address_goes_before_the_list() {
        let text =
            format!("{HEAD}[bypass]\nnames = [\"*.Pinned.test\"]\ncidrs = [\"10.9.0.0/16\", \"::1/128\"]\n");
        let list = parse(&text).unwrap().intercept;
        assert!(list.bypasses_name("a.pinned.TEST") && !list.bypasses_name("pinned.test"));
        assert!(list.bypasses_address("10.9.1.2".parse().unwrap()));
        assert!(!list.bypasses_address("10.8.1.2".parse().unwrap()));
        let none = parse(HEAD).unwrap().intercept;
        assert!(!none.bypasses_name("") && !none.bypasses_address("::1".parse().unwrap()));
    }

    #[test]
    fn servers_are_met_as_the_operator_says() {
        let usual = parse(HEAD).unwrap().upstream;
        assert!(usual.resumption && usual.client_auth == ClientAuth::Relay && usual.crls.is_empty());
        let text = format!(
            "{HEAD}[upstream]\nresumption = false\nclient_auth = \"refuse\"\n[[upstream.client_certificate]]\n\
             names = [\"*.corp.test\"]\ncertificate = \"/c\"\nkey = \"/k\"\n"
        );
        let upstream = parse(&text).unwrap().upstream;
        assert!(!upstream.resumption && upstream.client_auth == ClientAuth::Refuse);
        let [own] = upstream.client_certificates().collect::<Vec<_>>()[..] else { panic!() };
        assert!(own.is_for("a.CORP.test") && !own.is_for("corp.test"));
    }

    #[test]
    fn without_an_agent_what_weir_reads_is_refused_unless_the_operator_says_otherwise() {
        let closed = parse(HEAD).unwrap().failure;
        assert_eq!((closed.intercepted, closed.relayed), (Mode::Closed, Mode::Open));
        assert_eq!(closed.errno.number(), 111);
        let text = format!("{HEAD}[failure]\nintercepted = \"open\"\nerrno = \"EHOSTUNREACH\"\n");
        let open = parse(&text).unwrap().failure;
        assert_eq!((open.intercepted, open.errno.number()), (Mode::Open, 113));
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        for (text, expected) in [
            ("tenant = ", "weir.toml:1:10"),
            ("state_dir = \"/x\"\n", "missing field `tenant`"),
            (&format!("{HEAD}colector = 1\n"), "weir.toml:3:1: unknown field `colector`"),
            (
                &format!("{HEAD}[approval]\ndeadline = \"soon\"\n"),
                "weir.toml:4:12: \"soon\" is not a duration",
            ),
            (
                &format!("{HEAD}[spool]\nseal_after = \"200h\"\n"),
                "weir.toml:4:14: \"200h\" is not a duration",
            ),
            (&format!("{HEAD}[spool]\nheartbeat = \"999ms\"\n"), "weir.toml:3:1: heartbeat must be at least"),
            (
                &format!("{HEAD}[spool]\nidle_seal_after = \"1s\"\nseal_after = \"2s\"\n"),
                "weir.toml:3:1: idle_seal_after must not",
            ),
            (&format!("{HEAD}[failure]\nerrno = \"EFAULT\"\n"), "weir.toml:4:9: unknown variant `EFAULT`"),
            (
                &format!("{HEAD}[[egress.rule]]\ncidrs = []\naction = \"pass\"\n"),
                "weir.toml:3:1: an egress rule needs",
            ),
            (
                &format!("{HEAD}[[egress.rule]]\ncidrs = [\"::/0\"]\naction = \"intercept\"\n"),
                "weir.toml:5:10: unknown variant `intercept`",
            ),
            (
                &format!(
                    "{HEAD}[[upstream.client_certificate]]\nnames = []\ncertificate = \"/c\"\nkey = \"/k\"\n"
                ),
                "weir.toml:3:1: a client certificate needs names",
            ),
            (
                &format!("{HEAD}[upstream]\nclient_auth = \"pass\"\n"),
                "weir.toml:4:15: unknown variant `pass`",
            ),
            (
                &format!("{HEAD}[collector]\nurl = \"http://c\"\n"),
                "weir.toml:3:1: \"http://c\" is no address",
            ),
            (&format!("{HEAD}[collector]\n"), "weir.toml:3:1: a collector is named"),
            (&format!("{HEAD}[limits]\nflows = 0\n"), "weir.toml:3:1: a limit of 0"),
            (&format!("{HEAD}[limits]\nflows = 65537\n"), "weir.toml:3:1: flows and holds"),
            (
                &format!("{HEAD}[limits]\nrequest_body = 4096\nbuffered = 8191\n"),
                "weir.toml:3:1: buffered must",
            ),
            (&format!("{HEAD}[listen]\nv4 = \"0.0.0.0:0\"\n"), "listen.v4 must be a loopback address"),
            (&format!("{HEAD}[[intercept]]\nports = [1]\n"), "weir.toml:3:1: an intercept entry needs"),
            (&format!("{HEAD}[[intercept]]\ncidrs = [\"10.0.0.0/99\"]\n"), "weir.toml:4:"),
            (&format!("{HEAD}[[rule]]\nid = \"a\"\naction = \"hold\"\n"), "weir.toml:3:1: rule \"a\" holds"),
            (
                &format!("{HEAD}[[rule]]\nid = \"a\"\naction = \"permit\"\n"),
                "weir.toml:5:10: unknown variant",
            ),
            (
                &format!("{HEAD}[approval]\nallowed_signers = \"/nonexistent\"\n"),
                "allowed signers /nonexistent",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{text}\n{error}");
        }
    }
}
