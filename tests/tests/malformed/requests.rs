//! Requests whose framing two readers could take in two ways, or whose body they could.

use anyhow::{Result, ensure};
use weir_tests::bytes::Recorder;

use crate::{address, call, recorded, talk, world};

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// It reaches the server once, and is answered.
    Passes,
    /// Refused with 400, and recorded as ambiguous under this label. Nothing of it reaches the server.
    Ambiguous(&'static str),
    /// A whole request before it passes; it itself is ambiguous.
    SecondAmbiguous(&'static str),
    /// Refused with this status, and recorded as unreadable.
    Unreadable(u16),
}
use Expected::{Ambiguous, Passes, SecondAmbiguous, Unreadable};

const POST: &str = "POST /mcp HTTP/1.1\r\nHost: a.test\r\nContent-Type: application/json\r\n";
/// What a smuggled request would be known by.
const SMUGGLED: &str = "POST /smuggled HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";

fn with_length(fields: &str, body: &str) -> String {
    // Each character is a byte on the wire.
    format!("{POST}{fields}Content-Length: {}\r\n\r\n{body}", body.chars().count())
}

fn rows() -> Vec<(&'static str, String, Expected)> {
    let body = call("echo");
    let (length, size) = (body.len(), format!("{:x}", body.len()));
    let whole = with_length("", &body);
    let chunked = |fields: &str, chunks: &str| format!("{POST}{fields}\r\n{chunks}");
    let coded = "Transfer-Encoding: chunked\r\n";
    let last = "0\r\n\r\n";
    let folded = with_length("X-Folded: a\r\n b\r\n", &body);
    let get_with_body =
        format!("GET /mcp HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
    vec![
        ("plain", with_length("Connection: close\r\n", &body), Passes),
        (
            "in chunks",
            chunked(&format!("Connection: close\r\n{coded}"), &format!("{size}\r\n{body}\r\n{last}")),
            Passes,
        ),
        // The length stops where the chunks go on, and the other way round.
        (
            "CL.TE",
            chunked(&format!("Content-Length: 6\r\n{coded}"), &format!("{last}{SMUGGLED}")),
            Ambiguous("length_and_chunked"),
        ),
        (
            "TE.CL",
            chunked(
                &format!("{coded}Content-Length: 4\r\n"),
                &format!("{size}\r\n{body}\r\n{last}{SMUGGLED}"),
            ),
            Ambiguous("length_and_chunked"),
        ),
        (
            "TE.TE",
            chunked(&format!("{coded}Transfer-Encoding: identity\r\n"), last),
            Ambiguous("transfer_encoding_other_than_chunked"),
        ),
        (
            "TE twice",
            chunked(&format!("{coded}{coded}"), last),
            Ambiguous("transfer_encoding_other_than_chunked"),
        ),
        (
            "TE in a list",
            chunked("Transfer-Encoding: identity, chunked\r\n", last),
            Ambiguous("transfer_encoding_other_than_chunked"),
        ),
        (
            "TE misspelt",
            chunked("Transfer-Encoding: xchunked\r\n", last),
            Ambiguous("transfer_encoding_other_than_chunked"),
        ),
        (
            "TE behind a control character",
            chunked("Transfer-Encoding: \x0bchunked\r\n", last),
            Ambiguous("nul_or_control"),
        ),
        (
            "TE with a space before its colon",
            chunked("Transfer-Encoding : chunked\r\n", last),
            Ambiguous("space_before_colon"),
        ),
        (
            "TE with an underscore",
            chunked("Transfer_Encoding: chunked\r\n", last),
            Ambiguous("bad_header_name"),
        ),
        (
            "TE in HTTP/1.0",
            format!("POST /mcp HTTP/1.0\r\nHost: a.test\r\n{coded}\r\n{last}"),
            Ambiguous("chunked_in_http10"),
        ),
        ("two lengths", with_length("Content-Length: 3\r\n", &body), Ambiguous("length_repeated")),
        (
            "one length twice",
            with_length(&format!("Content-Length: {length}\r\n"), &body),
            Ambiguous("length_repeated"),
        ),
        (
            "lengths in a list",
            chunked(&format!("Content-Length: {length}, {length}\r\n"), &body),
            Ambiguous("length_malformed"),
        ),
        (
            "a signed length",
            chunked(&format!("Content-Length: +{length}\r\n"), &body),
            Ambiguous("length_malformed"),
        ),
        (
            "a length with zeros",
            chunked(&format!("Content-Length: 0{length}\r\n"), &body),
            Ambiguous("length_malformed"),
        ),
        (
            "a hexadecimal length",
            chunked(&format!("Content-Length: 0x{size}\r\n"), &body),
            Ambiguous("length_malformed"),
        ),
        (
            "a length past all numbers",
            chunked("Content-Length: 18446744073709551617\r\n", &body),
            Ambiguous("length_malformed"),
        ),
        ("obs-fold", folded, Ambiguous("obs_fold")),
        ("bare LF in the head", whole.replace("\r\nContent-Type", "\nContent-Type"), Ambiguous("bare_lf")),
        ("bare LF at its end", whole.replace("\r\n\r\n", "\n\n"), Ambiguous("bare_lf")),
        ("bare CR", with_length("X-A: b\rX-B: c\r\n", &body), Ambiguous("bare_cr")),
        ("NUL in a value", with_length("X-A: \0\r\n", &body), Ambiguous("nul_or_control")),
        ("NUL in a name", with_length("X\0A: b\r\n", &body), Ambiguous("nul_or_control")),
        ("two hosts", with_length("Host: b.test\r\n", &body), Ambiguous("two_hosts")),
        (
            "two spaces in the request line",
            whole.replace("POST /mcp", "POST  /mcp"),
            Ambiguous("bad_request_line"),
        ),
        ("a space in the target", whole.replace("/mcp HTTP", "/mcp HTTP/1.1 HTTP"), Ambiguous("bad_version")),
        ("HTTP/1.2", whole.replace("HTTP/1.1", "HTTP/1.2"), Ambiguous("bad_version")),
        ("a GET with a body", get_with_body, Ambiguous("body_where_none")),
        (
            "a chunk's size in 0x",
            chunked(coded, &format!("0x{size}\r\n{body}\r\n{last}")),
            Ambiguous("bad_chunk_size"),
        ),
        (
            "a chunk's size past all numbers",
            chunked(coded, &format!("1{:0>16}\r\n{body}\r\n{last}", size)),
            Ambiguous("bad_chunk_size"),
        ),
        (
            "a space behind a chunk's size",
            chunked(coded, &format!("{size} \r\n{body}\r\n{last}")),
            Ambiguous("bad_chunk_size"),
        ),
        (
            "a chunk with an extension",
            chunked(coded, &format!("{size};a=b\r\n{body}\r\n{last}")),
            Ambiguous("chunk_extension"),
        ),
        (
            "bare LF behind a chunk's size",
            chunked(coded, &format!("{size}\n{body}\r\n{last}")),
            Ambiguous("bare_lf"),
        ),
        (
            "a chunk longer than its size",
            chunked(coded, &format!("{size}\r\n{body}GET\r\n{last}")),
            Ambiguous("bad_chunk_end"),
        ),
        (
            "a length in the trailers",
            chunked(coded, &format!("{size}\r\n{body}\r\n0\r\nContent-Length: 3\r\n\r\n")),
            Ambiguous("bad_trailer"),
        ),
        (
            "a request behind another",
            format!("{whole}{}", whole.replace("Host: a", "Host : a")),
            SecondAmbiguous("space_before_colon"),
        ),
        (
            "a prefix behind a whole request",
            format!("{whole}GET /smuggled HTTP/1.1\r\nX: {whole}"),
            SecondAmbiguous("body_where_none"),
        ),
        (
            "a request behind the last",
            format!("{}{SMUGGLED}", with_length("Connection: close\r\n", &body)),
            SecondAmbiguous("bytes_after_close"),
        ),
        (
            "CONNECT with a body",
            "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello".into(),
            Ambiguous("body_where_none"),
        ),
        (
            "a batch with other things",
            with_length("Connection: close\r\n", &format!("[7,{body}]")),
            Unreadable(400),
        ),
        (
            "JSON behind a byte-order mark",
            with_length("Connection: close\r\n", &format!("\u{ef}\u{bb}\u{bf}{body}")),
            Unreadable(400),
        ),
        (
            "JSON in UTF-16",
            with_length("Connection: close\r\n", &body.chars().flat_map(|c| [c, '\0']).collect::<String>()),
            Unreadable(400),
        ),
        (
            "a member twice",
            with_length("Connection: close\r\n", &body.replace("\"id\"", "\"method\":\"ping\",\"id\"")),
            Unreadable(400),
        ),
    ]
}

#[test]
fn ambiguous_requests_are_refused_by_name_and_nothing_of_them_reaches_the_server() -> Result<()> {
    let recorder = Recorder::start()?;
    let world = world(&recorder)?;
    let rows = rows();
    let talks: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(row, (_, bytes, _))| talk(row, &recorder, vec![bytes.clone()]))
        .collect();
    let heard = world.talk(&talks)?;
    world.until_shipped()?;
    let mut faults = Vec::new();
    for (row, ((name, _, expected), heard)) in rows.iter().zip(&heard).enumerate() {
        let said = recorder.said(address(row)).concat();
        let requests = said.windows(9).filter(|part| part == b" HTTP/1.1").count();
        let smuggled = said.windows(8).any(|part| part == b"smuggled");
        let (flow, messages) = recorded(&world, heard.port)?;
        let labelled = |label: &str| {
            let begins = format!("client_to_server ambiguous {label}:");
            messages.iter().filter(|message| message.starts_with(&begins)).count() == 1
        };
        let holds = !smuggled
            && match expected {
                Passes => heard.status() == 200 && requests == 1,
                Ambiguous(label) => heard.status() == 400 && said.is_empty() && labelled(label),
                SecondAmbiguous(label) => requests == 1 && labelled(label),
                Unreadable(status) => {
                    let told = |message: &String| message.starts_with("client_to_server unreadable ");
                    heard.status() == *status && said.is_empty() && messages.iter().any(told)
                }
            };
        if !holds {
            let said = String::from_utf8_lossy(&said).into_owned();
            faults.push(format!(
                "{name} ({expected:?}): {heard:?}\n  {messages:?} {}\n  {said:?}",
                flow["flow_end"]
            ));
        }
    }
    ensure!(faults.is_empty(), "{} of {} rows:\n{}", faults.len(), rows.len(), faults.join("\n"));
    Ok(())
}
