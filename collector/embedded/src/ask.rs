//! What one HTTP request asks for, apart from its body.
//!
//! In: method, URL, headers, later the fields of a form. Out: an `Ask`. Whatever the URL holds that ClickHouse does not
//! reserve is a setting of the query; the engine judges its name and value.

use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};

use crate::fault::{Fault, code};

/// The format of an answer when nobody names one.
const DEFAULT_FORMAT: &str = "TabSeparated";

/// Names of the URL that are not settings and that this store has no use for: it keeps no sessions, and credentials are
/// read before.
const UNUSED: [&str; 13] = [
    "user",
    "password",
    "quota_key",
    "session_id",
    "session_timeout",
    "session_check",
    "close_session",
    "stacktrace",
    "buffer_size",
    "wait_end_of_query",
    "client_protocol_version",
    "enable_http_compression",
    "http_zlib_compression_level",
];

/// One request. Everything in it comes from an authenticated peer.
#[derive(Debug, Default)]
pub struct Ask {
    /// The query's text from the URL or the form; the body may hold more of it, or the rows of an INSERT.
    pub query: String,
    pub database: Option<String>,
    pub format: Option<String>,
    pub settings: Vec<(String, String)>,
    /// Values of `{name:Type}` in the query, without the prefix `param_`.
    pub params: Vec<(String, String)>,
    pub query_id: Option<String>,
    /// The answer goes back in ClickHouse's compressed frames.
    pub compress: bool,
    /// The body comes in such frames.
    pub decompress: bool,
    /// A GET changes nothing, and neither does what says `readonly` in its URL.
    pub read_only: bool,
    /// The boundary of a form, if the body is one.
    pub form: Option<String>,
}

impl Ask {
    /// From the request's head; `url` is its query string, decoded.
    pub fn of(head: &Parts, url: Vec<(String, String)>) -> Result<Self, Fault> {
        let mut ask = Self { read_only: head.method == Method::GET, ..Self::default() };
        ask.database = header(&head.headers, "x-clickhouse-database");
        ask.format = header(&head.headers, "x-clickhouse-format");
        if let Some(coding) =
            header(&head.headers, CONTENT_ENCODING.as_str()).filter(|coding| coding != "identity")
        {
            return Err(Fault::new(
                code::UNKNOWN_COMPRESSION_METHOD,
                "UNKNOWN_COMPRESSION_METHOD",
                format!(
                    "the embedded store takes no Content-Encoding {coding}: send the body plain, or in ClickHouse's frames with decompress=1"
                ),
            ));
        }
        ask.form = header(&head.headers, CONTENT_TYPE.as_str())
            .and_then(|content_type| crate::multipart::boundary(&content_type).map(str::to_owned));
        for (name, value) in url {
            ask.take(name, value)?;
        }
        Ok(ask)
    }

    /// Adds one name and its value from the URL or a form.
    pub fn take(&mut self, name: String, value: String) -> Result<(), Fault> {
        match name.as_str() {
            "query" => self.query.push_str(&value),
            "database" => self.database = Some(value),
            "default_format" => self.format = Some(value),
            "query_id" => self.query_id = Some(value),
            "compress" => self.compress = is_true(&value),
            "decompress" => self.decompress = is_true(&value),
            "role" => {
                return Err(Fault::new(
                    code::UNKNOWN_ROLE,
                    "UNKNOWN_ROLE",
                    format!("there is no role `{value}`: the embedded store has one user and no roles"),
                ));
            }
            // Embedded, the engine lets a statement lift its own `readonly`; so the statement is judged here as well.
            "readonly" if value != "0" => self.read_only = true,
            unused if UNUSED.contains(&unused) => {}
            _ => match name.strip_prefix("param_") {
                Some(param) => self.params.push((param.to_owned(), value)),
                None => self.settings.push((name, value)),
            },
        }
        Ok(())
    }

    /// The format of an answer whose query names none.
    pub fn default_format(&self) -> &str {
        self.format.as_deref().filter(|format| !format.is_empty()).unwrap_or(DEFAULT_FORMAT)
    }

    /// Statements that prepare a connection for this ask, in their order.
    pub fn preparation(&self) -> Result<Vec<String>, Fault> {
        let mut statements = Vec::new();
        if let Some(database) = self.database.as_deref().filter(|database| !database.is_empty()) {
            statements.push(format!("USE {}", quoted(database, '`')));
        }
        let mut settings = Vec::with_capacity(self.settings.len() + 1);
        for (name, value) in &self.settings {
            if name == "readonly" && self.read_only {
                return Err(Fault::new(
                    code::READONLY,
                    "READONLY",
                    "a GET is read-only: send what changes something as POST",
                ));
            }
            if !is_setting_name(name) {
                return Err(Fault::new(
                    code::UNKNOWN_SETTING,
                    "UNKNOWN_SETTING",
                    format!("Unknown setting '{}'", name.escape_default()),
                ));
            }
            settings.push(format!("{name} = {}", quoted(value, '\'')));
        }
        if self.read_only {
            settings.push("readonly = 2".to_owned());
        }
        if !settings.is_empty() {
            statements.push(format!("SET {}", settings.join(", ")));
        }
        Ok(statements)
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(|value| value.trim().to_owned())
}

fn is_true(value: &str) -> bool {
    matches!(value, "1" | "true")
}

/// A name that cannot be anything else in a SET.
fn is_setting_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// `text` between `quote`s, as ClickHouse's lexer reads it back.
fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        if c == quote || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, url: &[(&str, &str)]) -> Result<Ask, Fault> {
        let (head, ()) = hyper::Request::builder().method(method).body(()).expect("a request").into_parts();
        Ask::of(&head, url.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_not_reserved_is_a_setting() {
        let ask = ask(
            Method::POST,
            &[
                ("query", "SELECT 1"),
                ("database", "we`ir"),
                ("max_threads", "2"),
                ("param_a", "x"),
                ("password", "p"),
                ("x", "it's \\"),
            ],
        )
        .expect("an ask");
        assert_eq!(ask.params, [("a".to_owned(), "x".to_owned())]);
        assert_eq!(
            ask.preparation().expect("statements"),
            ["USE `we\\`ir`", "SET max_threads = '2', x = 'it\\'s \\\\'"]
        );
    }

    #[test]
    fn a_get_is_read_only_whatever_it_says() {
        assert_eq!(
            ask(Method::GET, &[]).expect("an ask").preparation().expect("statements"),
            ["SET readonly = 2"]
        );
        assert_eq!(
            ask(Method::GET, &[("readonly", "1")]).expect("an ask").preparation().expect("statements"),
            ["SET readonly = 2"]
        );
        let refused = ask(Method::GET, &[("readonly", "0")]).expect("an ask").preparation();
        assert_eq!(refused.expect_err("a refusal").code(), code::READONLY);
        assert!(ask(Method::POST, &[]).expect("an ask").preparation().expect("statements").is_empty());
    }

    #[test]
    fn a_post_that_says_readonly_is_read_only_too() {
        let ask = ask(Method::POST, &[("readonly", "1"), ("max_threads", "1")]).expect("an ask");
        assert!(ask.read_only);
        assert_eq!(ask.preparation().expect("statements"), ["SET max_threads = '1', readonly = 2"]);
    }

    #[test]
    fn a_setting_name_can_carry_nothing_else() {
        for name in ["a = 1, b", "a;", "", "1a", "a.b"] {
            let refused = ask(Method::POST, &[(name, "1")]).expect("an ask").preparation();
            assert_eq!(refused.expect_err("a refusal").code(), code::UNKNOWN_SETTING, "{name}");
        }
    }

    #[test]
    fn roles_and_content_codings_are_refused_by_name() {
        assert_eq!(ask(Method::POST, &[("role", "r")]).expect_err("a refusal").code(), code::UNKNOWN_ROLE);
        let (head, ()) = hyper::Request::builder()
            .header(CONTENT_ENCODING, "gzip")
            .body(())
            .expect("a request")
            .into_parts();
        let refused = Ask::of(&head, Vec::new()).expect_err("a refusal");
        assert_eq!(refused.code(), code::UNKNOWN_COMPRESSION_METHOD);
        assert!(refused.to_string().contains("gzip"));
    }
}
