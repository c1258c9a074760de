//! The fields of a multipart form, as the `clickhouse` crate sends query parameters (RFC 7578).
//!
//! In: a body and its Content-Type. Out: names and values. Files (ClickHouse's external tables) are refused by name.

use crate::fault::{Fault, code};

/// More fields than any query has parameters.
const MAX_FIELDS: usize = 1000;
/// RFC 2046, section 5.1.1.
const LONGEST_BOUNDARY: usize = 70;

/// The boundary, if `content_type` is a multipart form's.
pub fn boundary(content_type: &str) -> Option<&str> {
    let mut parts = content_type.split(';');
    parts.next()?.trim().eq_ignore_ascii_case("multipart/form-data").then_some(())?;
    let value = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then_some(value.trim())
    })?;
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    (1..=LONGEST_BOUNDARY).contains(&value.len()).then_some(value)
}

/// The fields of `body`, in their order.
pub fn fields(body: &[u8], boundary: &str) -> Result<Vec<(String, String)>, Fault> {
    let malformed =
        || Fault::new(code::CANNOT_PARSE_TEXT, "CANNOT_PARSE_TEXT", "the multipart form is malformed");
    let delimiter = format!("\r\n--{boundary}");
    let opening = delimiter.trim_start().as_bytes();
    let mut rest = body.strip_prefix(opening).ok_or_else(malformed)?;
    let mut fields = Vec::new();
    while !rest.starts_with(b"--") {
        rest = rest.strip_prefix(b"\r\n").ok_or_else(malformed)?;
        let (head, behind) = cut(rest, b"\r\n\r\n").ok_or_else(malformed)?;
        let (value, behind) = cut(behind, delimiter.as_bytes()).ok_or_else(malformed)?;
        rest = behind;
        let name = name_in(std::str::from_utf8(head).map_err(|_| malformed())?)?.ok_or_else(malformed)?;
        let value = std::str::from_utf8(value).map_err(|_| malformed())?;
        if fields.len() == MAX_FIELDS {
            return Err(Fault::new(
                code::BAD_ARGUMENTS,
                "BAD_ARGUMENTS",
                format!("the form has more than {MAX_FIELDS} fields"),
            ));
        }
        fields.push((name, value.to_owned()));
    }
    Ok(fields)
}

fn cut<'b>(bytes: &'b [u8], at: &[u8]) -> Option<(&'b [u8], &'b [u8])> {
    let found = bytes.windows(at.len()).position(|window| window == at)?;
    Some((bytes.get(..found)?, bytes.get(found + at.len()..)?))
}

fn name_in(head: &str) -> Result<Option<String>, Fault> {
    let Some(disposition) = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    }) else {
        return Ok(None);
    };
    let mut name = None;
    for part in disposition.split(';') {
        let Some((key, value)) = part.split_once('=') else { continue };
        match key.trim() {
            "name" => {
                name = value
                    .trim()
                    .strip_prefix('"')
                    .and_then(|value| value.strip_suffix('"'))
                    .map(str::to_owned)
            }
            "filename" => {
                return Err(Fault::new(
                    code::NOT_IMPLEMENTED,
                    "NOT_IMPLEMENTED",
                    "the embedded store takes no external tables (files in a form)",
                ));
            }
            _ => {}
        }
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "--b1\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT {a:String}\r\n\
        --b1\r\ncontent-disposition: form-data; name=\"param_a\"\r\n\r\nx\r\ny\r\n--b1--\r\n";

    #[test]
    fn fields_come_with_their_line_breaks() {
        assert_eq!(boundary("multipart/form-data; boundary=b1"), Some("b1"));
        assert_eq!(boundary("Multipart/Form-Data; charset=x; Boundary=\"b1\""), Some("b1"));
        let found = fields(FORM.as_bytes(), "b1").expect("fields");
        assert_eq!(
            found,
            [
                ("query".to_owned(), "SELECT {a:String}".to_owned()),
                ("param_a".to_owned(), "x\r\ny".to_owned())
            ]
        );
    }

    #[test]
    fn other_content_and_cut_off_forms_are_no_forms() {
        assert_eq!(boundary("text/plain; boundary=b1"), None);
        assert_eq!(boundary("multipart/form-data"), None);
        assert_eq!(boundary(&format!("multipart/form-data; boundary={}", "b".repeat(71))), None);
        for end in 0..FORM.len() - 4 {
            assert!(fields(&FORM.as_bytes()[..end], "b1").is_err(), "cut at {end}");
        }
    }

    #[test]
    fn the_form_at_the_limit_passes_and_one_field_more_does_not() {
        let field = "--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n1\r\n";
        let form = |count: usize| format!("{}--b--\r\n", field.repeat(count));
        assert_eq!(fields(form(MAX_FIELDS).as_bytes(), "b").expect("fields").len(), MAX_FIELDS);
        assert_eq!(
            fields(form(MAX_FIELDS + 1).as_bytes(), "b").expect_err("a refusal").code(),
            code::BAD_ARGUMENTS
        );
    }

    #[test]
    fn a_file_in_the_form_is_refused_by_name() {
        let form =
            "--b\r\nContent-Disposition: form-data; name=\"t\"; filename=\"t.tsv\"\r\n\r\n1\r\n--b--\r\n";
        assert_eq!(fields(form.as_bytes(), "b").expect_err("a refusal").code(), code::NOT_IMPLEMENTED);
    }
}
