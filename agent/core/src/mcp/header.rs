//! Headers that repeat something of a request's body (MCP 2026-07-28). The bytes of a header's value come in, what it stands for
//! goes out, and the other way round. What no header can carry as it is stands there in base64, between `=?base64?` and `?=`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What the names of those headers begin with that repeat arguments.
pub const PARAM: &str = "mcp-param-";

const CODED: &str = "=?base64?";
const CODED_END: &str = "?=";

/// What a value stands for, without the white space around it; `None` for what cannot be read.
pub fn decoded(value: &[u8]) -> Option<String> {
    let is_plain = |byte: &u8| *byte == b'\t' || (0x20..0x7f).contains(byte);
    let text = std::str::from_utf8(value).ok().filter(|text| text.as_bytes().iter().all(is_plain))?;
    let text = text.trim_matches([' ', '\t']);
    match text.strip_prefix(CODED).and_then(|rest| rest.strip_suffix(CODED_END)) {
        Some(coded) => String::from_utf8(STANDARD.decode(coded).ok()?).ok(),
        None => Some(text.to_owned()),
    }
}

/// The value that stands for a text: [`decoded`] gives the text again. It is visible ASCII and spaces.
pub fn encoded(text: &str) -> String {
    let plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        && text.trim_matches(' ') == text
        && !text.starts_with(CODED);
    if plain { text.to_owned() } else { format!("{CODED}{}{CODED_END}", STANDARD.encode(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_headers_text_is_read_back() {
        for text in ["eu-west", "ü", " x", "=?base64?QQ==?=", "", "a b", "a\tb", "a\nb"] {
            assert_eq!(decoded(encoded(text).as_bytes()).as_deref(), Some(text));
        }
        for broken in ["=?base64?SGVs!!!bG8=?=", "=?base64?SGVsbG8?=", "=?base64?/w==?=", "ü", "a\nb"] {
            assert_eq!(decoded(broken.as_bytes()), None, "{broken}");
        }
        assert_eq!(decoded(b"\t deploy ").as_deref(), Some("deploy"));
    }
}
