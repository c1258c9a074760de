//! An enrolled agent's name, and the token that it gets its name by: texts in, checked values out, and back. Each is written
//! in one way alone: what reads in two ways is refused.

use crate::ids::hex;

/// An agent as its certificate says it, in one URI: `weir:agent/TENANT/HOST/ENROLMENT`, each part percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AgentName {
    pub tenant: String,
    pub host: String,
    /// 32 hex digits; renewed certificates keep it.
    pub enrolment: String,
}

const SCHEME: &str = "weir:agent/";

impl AgentName {
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}/{}", encoded(&self.tenant), encoded(&self.host), encoded(&self.enrolment))
    }

    /// Reads what [`AgentName::uri`] wrote.
    pub fn read(uri: &str) -> Option<Self> {
        let parts: Vec<&str> = uri.strip_prefix(SCHEME)?.split('/').collect();
        let [tenant, host, enrolment] = parts.as_slice() else { return None };
        let name = Self { tenant: decoded(tenant)?, host: decoded(host)?, enrolment: decoded(enrolment)? };
        (name.uri() == uri && !name.tenant.is_empty() && !name.host.is_empty()).then_some(name)
    }
}

/// A one-time token: a secret, and for whom it is, so that a host sees before it spends the token that it is another's.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolToken {
    secret: String,
    pub tenant: String,
    pub host: String,
}

/// How a token begins, so that people and scanners of secrets know one when they see it.
const TOKEN: &str = "weir-enrol-";

impl EnrolToken {
    pub fn from_random(bytes: [u8; 32], tenant: &str, host: &str) -> Self {
        Self { secret: hex(&bytes), tenant: tenant.to_owned(), host: host.to_owned() }
    }

    /// As it is handed over.
    pub fn text(&self) -> String {
        format!("{TOKEN}{}.{}.{}", self.secret, encoded(&self.tenant), encoded(&self.host))
    }

    /// Reads a token, with white space around it.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        // A host's name may hold dots, and a tenant's is written without.
        let (secret, names) = text.strip_prefix(TOKEN)?.split_once('.')?;
        let (tenant, host) = names.split_once('.')?;
        let token = Self { secret: secret.to_owned(), tenant: decoded(tenant)?, host: decoded(host)? };
        (token.text() == text && secret.len() == 64).then_some(token)
    }
}

impl std::fmt::Debug for EnrolToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnrolToken({}/{})", self.tenant, self.host)
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// Everything but letters, digits, `_` and `-` as `%XX`.
fn encoded(part: &str) -> String {
    let one = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    part.bytes().map(one).collect()
}

fn decoded(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
                16 * digit(rest.next()?)? + digit(rest.next()?)?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [(&str, &str); 6] = [
        ("t", "h"),
        ("a/b", "c%2Fd"),
        ("größe", "host name"),
        ("..", "%"),
        ("a", "b/c"),
        ("a.b", "ci-7.example.org"),
    ];

    #[test]
    fn any_name_reads_back_and_none_reads_as_another() {
        for (tenant, host) in NAMES {
            let name = AgentName { tenant: tenant.into(), host: host.into(), enrolment: "0".repeat(32) };
            let uri = name.uri();
            assert!(uri.is_ascii() && uri.matches('/').count() == 3, "{uri}");
            assert_eq!(AgentName::read(&uri), Some(name));
        }
        for bad in [
            "",
            "weir:agent/t/h",
            "weir:agent/t/h/e/x",
            "weir:agent//h/e",
            "weir:agent/t//e",
            "weir:agent/t/%68/e",
            "weir:agent/t/%2f/e",
            "weir:agent/t/%/e",
            "weir:agent/t/%FF/e",
            "https://t/h/e",
        ] {
            assert_eq!(AgentName::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_token_reads_back_says_whose_it_is_and_is_never_shown() {
        for (tenant, host) in NAMES {
            let token = EnrolToken::from_random([7; 32], tenant, host);
            assert_eq!(EnrolToken::read(&format!(" {}\n", token.text())), Some(token.clone()));
            assert!(!format!("{token:?}").contains("0707"));
        }
        let whole = EnrolToken::from_random([7; 32], "t", "h").text();
        for bad in ["", "weir-enrol-", &whole[1..], &whole.replace(".t", ""), &whole.replace('7', "")] {
            assert_eq!(EnrolToken::read(bad), None, "{bad}");
        }
    }
}
