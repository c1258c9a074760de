//! What went wrong with one request, in ClickHouse's words: a code, its name and a text.
//!
//! In: the engine's error texts, and the faults that this process finds itself. Out: the HTTP status and the headers
//! that ClickHouse's own server would give, so that its clients read them the same way.

use hyper::StatusCode;

/// ClickHouse's error codes that this process gives itself, or that decide an HTTP status.
pub mod code {
    pub const CANNOT_PARSE_TEXT: u16 = 6;
    pub const BAD_ARGUMENTS: u16 = 36;
    pub const CHECKSUM_DOESNT_MATCH: u16 = 40;
    pub const NOT_IMPLEMENTED: u16 = 48;
    pub const SYNTAX_ERROR: u16 = 62;
    pub const UNKNOWN_COMPRESSION_METHOD: u16 = 89;
    pub const UNKNOWN_SETTING: u16 = 115;
    pub const READONLY: u16 = 164;
    pub const TOO_MANY_SIMULTANEOUS_QUERIES: u16 = 202;
    pub const SOCKET_TIMEOUT: u16 = 209;
    pub const NETWORK_ERROR: u16 = 210;
    pub const QUERY_IS_TOO_LARGE: u16 = 229;
    pub const MEMORY_LIMIT_EXCEEDED: u16 = 241;
    pub const CANNOT_DECOMPRESS: u16 = 271;
    pub const INTO_OUTFILE_NOT_ALLOWED: u16 = 358;
    pub const UNKNOWN_ROLE: u16 = 511;
    pub const AUTHENTICATION_FAILED: u16 = 516;
    pub const UNKNOWN_EXCEPTION: u16 = 1002;
}

/// A request's fault. Its text never holds the secret or the data of an insert beyond what the engine quotes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Fault {
    code: u16,
    text: String,
}

impl Fault {
    /// A fault found here; `name` is ClickHouse's name of `code`.
    pub fn new(code: u16, name: &str, what: impl AsRef<str>) -> Self {
        Self { code, text: format!("Code: {code}. DB::Exception: {}. ({name})", what.as_ref()) }
    }

    /// A fault that the engine reported, with its own text.
    pub fn from_engine(text: String) -> Self {
        match code_in(&text) {
            Some(code) => Self { code, text },
            None => Self::new(code::UNKNOWN_EXCEPTION, "UNKNOWN_EXCEPTION", text),
        }
    }

    pub fn code(&self) -> u16 {
        self.code
    }

    /// The HTTP status that ClickHouse's server gives with this code.
    pub fn status(&self) -> StatusCode {
        match self.code {
            194 => StatusCode::UNAUTHORIZED,
            192 | 193 | code::AUTHENTICATION_FAILED | 497 | 512 => StatusCode::FORBIDDEN,
            code::CANNOT_PARSE_TEXT
            | 8
            | 15
            | 25..=27
            | code::BAD_ARGUMENTS
            | 37
            | 38
            | 41
            | 44
            | 53
            | code::SYNTAX_ERROR
            | 72
            | 117
            | 123
            | 167
            | 168
            | 223
            | 321
            | 376
            | 427
            | 441
            | 675
            | 676 => StatusCode::BAD_REQUEST,
            46
            | 47
            | 50
            | 56
            | 60
            | 63
            | 73
            | 78
            | 81
            | code::UNKNOWN_SETTING
            | 152
            | 336
            | code::UNKNOWN_ROLE => StatusCode::NOT_FOUND,
            code::QUERY_IS_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
            code::NOT_IMPLEMENTED => StatusCode::NOT_IMPLEMENTED,
            76 | code::SOCKET_TIMEOUT | 439 => StatusCode::SERVICE_UNAVAILABLE,
            159 => StatusCode::REQUEST_TIMEOUT,
            381 => StatusCode::LENGTH_REQUIRED,
            779 => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The number after the first `Code: `.
fn code_in(text: &str) -> Option<u16> {
    let digits = text.split_once("Code: ")?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_an_engine_error_comes_from_its_text() {
        let fault = Fault::from_engine(
            "Code: 60. DB::Exception: Table weir.u does not exist. (UNKNOWN_TABLE)".into(),
        );
        assert_eq!((fault.code(), fault.status()), (60, StatusCode::NOT_FOUND));
        let fault = Fault::from_engine("std::exception. Code: 1001, type: filesystem_error".into());
        assert_eq!((fault.code(), fault.status()), (1001, StatusCode::INTERNAL_SERVER_ERROR));
    }

    #[test]
    fn an_engine_error_without_a_code_gets_the_one_for_unknown() {
        let fault = Fault::from_engine("the engine fell silent".into());
        assert_eq!(fault.code(), code::UNKNOWN_EXCEPTION);
        assert_eq!(
            fault.to_string(),
            "Code: 1002. DB::Exception: the engine fell silent. (UNKNOWN_EXCEPTION)"
        );
    }
}
