//! Server-Sent Events: the same in any pieces, as a reader reads them that has the whole text, and within the limit.

use http::Uri;
use weir_core::mcp::endpoint;
use weir_core::mcp::sse::{Event, Parser, TooLarge, message};

use crate::pieces::{cut_by_first, pieces};

const LIMIT: usize = 256;
/// What is kept of an event beside its lines: as much of an overlong line as tells what it is.
const KEPT: usize = LIMIT + 3;

pub fn run(bytes: &[u8]) {
    let (cut, bytes) = cut_by_first(bytes);
    let whole = parsed(std::iter::once(bytes), LIMIT);
    assert_eq!(parsed(pieces(bytes, cut), LIMIT), whole, "in pieces and as a whole");
    let all: Option<Vec<Event>> =
        parsed(std::iter::once(bytes), usize::MAX).into_iter().map(Result::ok).collect();
    assert_eq!(
        all.expect("an event that is too large for no limit"),
        read(bytes),
        "as another reader reads it"
    );
    let text = String::from_utf8_lossy(bytes);
    let expected = text.split(['\n', '\r']).collect::<Vec<_>>().join("\n");
    let events = read(message(&text).as_bytes());
    let written = events.first().map(|event| (event.name.as_str(), event.data.as_str()));
    assert_eq!(written, Some(("message", expected.as_str())), "a message that is written reads back");
}

/// The events of a stream of 2024-11-05.
pub fn legacy(bytes: &[u8]) {
    let (cut, bytes) = cut_by_first(bytes);
    let named = |events: Vec<Result<Event, TooLarge>>| -> Vec<String> {
        let events = events.into_iter().flatten();
        events.filter(|event| event.name == "endpoint").map(|event| event.data).collect()
    };
    let whole = named(parsed(std::iter::once(bytes), LIMIT));
    assert_eq!(named(parsed(pieces(bytes, cut), LIMIT)), whole);
    for announced in whole {
        let Some(target) = endpoint::resolve("/mcp/sse?of=this", &announced) else { continue };
        assert!(target.starts_with('/') && !target.contains(['#', ' ', '\n']), "{announced:?} is {target:?}");
        let uri: Uri = target.parse().expect("what a request can name");
        assert_eq!(
            uri.path_and_query().map(|target| target.as_str()),
            Some(&*target),
            "as a request names it"
        );
        // What needs no resolving stays.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/?=&-_".contains(&byte);
        if announced.starts_with('/') && !announced.starts_with("//") && announced.bytes().all(is_plain) {
            assert_eq!(target, announced);
        }
    }
}

fn parsed<'a>(pieces: impl Iterator<Item = &'a [u8]>, limit: usize) -> Vec<Result<Event, TooLarge>> {
    let (mut parser, mut events) = (Parser::new(limit), Vec::new());
    for piece in pieces {
        parser.feed(piece, |event| events.push(event));
        // A byte that is no UTF-8 is kept as three.
        assert!(limit == usize::MAX || parser.kept() <= 3 * KEPT, "{} bytes are kept", parser.kept());
    }
    parser.finish(|event| events.push(event));
    events
}

/// WHATWG HTML, 9.2.6, over a text that is there as a whole; with what Weir adds: an event that only its end is missing of,
/// and one that has an id or a name alone.
fn read(bytes: &[u8]) -> Vec<Event> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut lines: Vec<&[u8]> = Vec::new();
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| b"\r\n".contains(byte)) {
        let (line, after) = rest.split_at(end);
        lines.push(line);
        rest = after.strip_prefix(b"\r\n").unwrap_or_else(|| after.get(1..).unwrap_or_default());
    }
    lines.extend([rest, b""]);
    let (mut events, mut event) = (Vec::new(), Event::default());
    let mut data: Option<String> = None;
    for line in lines {
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            _ if line.is_empty() => {
                event.data = data.take().unwrap_or_default();
                let whole = std::mem::take(&mut event);
                if whole != Event::default() {
                    events.push(whole);
                }
            }
            "data" => {
                data = Some(data.map_or_else(|| value.to_owned(), |before| format!("{before}\n{value}")));
            }
            "event" => value.clone_into(&mut event.name),
            "id" if !value.contains('\0') => event.id = Some(value.to_owned()),
            _ => {}
        }
    }
    events
}
