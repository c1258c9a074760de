//! What ClickHouse's refusals mean for whoever asked: its error code decides, and each message names the mend.

use std::error::Error as _;

use clickhouse::error::Error;

/// The most characters of a server's own words; whatever answers may be no ClickHouse.
const MAX_MESSAGE: usize = 1000;

/// ClickHouse's own numbers.
mod code {
    pub const UNKNOWN_TABLE: u16 = 60;
    pub const UNKNOWN_DATABASE: u16 = 81;
    pub const READONLY: u16 = 164;
    pub const UNKNOWN_USER: u16 = 192;
    pub const WRONG_PASSWORD: u16 = 193;
    pub const REQUIRED_PASSWORD: u16 = 194;
    pub const AUTHENTICATION_FAILED: u16 = 516;
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no ClickHouse answers at {url} ({reason}); start it, or mend [store] url")]
    Unreachable { url: String, reason: String },
    #[error("ClickHouse at {url} refuses the user {user}: mend [store] user and password_file")]
    Denied { url: String, user: String },
    #[error("the database {database} at {url} lacks Weir's tables; run `weir-collector migrate`")]
    Unmigrated { url: String, database: String },
    /// The server's answer to this very request; asking again gives the same.
    #[error("ClickHouse refused: {message}")]
    Refused { code: Option<u16>, message: String },
}

impl StoreError {
    pub(super) fn of(error: Error, url: &str, user: &str, database: &str) -> Self {
        let url = url.to_owned();
        match error {
            Error::Network(_) => {
                let source = error.source().map(innermost).unwrap_or_default();
                Self::Unreachable { url, reason: source }
            }
            Error::TimedOut => Self::Unreachable { url, reason: "it did not answer in time".into() },
            Error::BadResponse(text) => match code_of(&text) {
                Some(
                    code::UNKNOWN_USER
                    | code::WRONG_PASSWORD
                    | code::REQUIRED_PASSWORD
                    | code::AUTHENTICATION_FAILED,
                ) => Self::Denied { url, user: user.to_owned() },
                Some(code::UNKNOWN_DATABASE) => Self::Unmigrated { url, database: database.to_owned() },
                code => Self::Refused { code, message: one_line(&text) },
            },
            other => Self::Refused { code: None, message: one_line(&other.to_string()) },
        }
    }

    /// The same error for a question about Weir's own tables: one that is absent means a missing migration.
    pub fn of_our_tables(self, url: &str, database: &str) -> Self {
        match self {
            Self::Refused { code: Some(code::UNKNOWN_TABLE), .. } => {
                Self::Unmigrated { url: url.to_owned(), database: database.to_owned() }
            }
            other => other,
        }
    }

    /// Whether the server already lets this user read alone, and so refuses to be told.
    pub fn is_read_only_already(&self) -> bool {
        matches!(self, Self::Refused { code: Some(code::READONLY), message } if message.contains("'readonly'"))
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The number in `Code: 60. DB::Exception: ...`.
fn code_of(text: &str) -> Option<u16> {
    let digits = text.split_once("Code: ")?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    crate::visible::line(&words.join(" ").chars().take(MAX_MESSAGE).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> StoreError {
        StoreError::of(Error::BadResponse(text.into()), "http://x", "default", "weir")
    }

    #[test]
    fn the_code_decides_what_an_error_means() {
        let denied = of("Code: 516. DB::Exception: default: Authentication failed. (AUTHENTICATION_FAILED)");
        assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");
        let absent = of("Code: 81. DB::Exception: Database weir does not exist. (UNKNOWN_DATABASE)");
        assert!(absent.to_string().contains("weir-collector migrate"), "{absent}");
        let table = of("Code: 60. DB::Exception: Unknown table\n`x`. (UNKNOWN_TABLE)");
        assert!(matches!(&table, StoreError::Refused { code: Some(60), message } if !message.contains('\n')));
        assert!(matches!(table.of_our_tables("http://x", "weir"), StoreError::Unmigrated { .. }));
    }

    #[test]
    fn a_server_that_is_read_only_already_is_known() {
        let already =
            of("Code: 164. DB::Exception: Cannot modify 'readonly' setting in readonly mode. (READONLY)");
        assert!(already.is_read_only_already());
        assert!(
            !of("Code: 164. DB::Exception: Cannot execute query in readonly mode.").is_read_only_already()
        );
    }
}
