//! Server-Sent Events, sans I/O. Bytes come in as they arrive, whole events go out. Lines end in LF, CR or
//! CRLF; a byte order mark at the start is skipped (WHATWG HTML, 9.2.6).

use crate::mask::Digesting;

/// One event. An event without data is never dispatched by a client; it is kept here when it has an id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// The `event:` field, empty for the default `message`.
    pub name: String,
    /// The `data:` lines, joined by LF.
    pub data: String,
    /// The last `id:` field of the event.
    pub id: Option<String>,
}

/// An event past the limit, or one that was given up. The rest of it was skipped, and reading goes on behind it.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
#[error("an event that is too large to be read")]
pub struct TooLarge {
    /// What was kept of it: its beginning, unless it was given up.
    pub event: Event,
    /// How many bytes its data has.
    pub bytes: usize,
    /// The digest of its data, where the parser has what to digest with.
    pub digest: Option<String>,
    pub given_up: bool,
}

/// Reads events out of a byte stream that arrives in pieces. A line that is whole in its piece is read where it lies.
#[derive(Debug)]
pub struct Parser {
    limit: usize,
    /// The beginning of a line whose end has not come; of a line that is skipped, as much as tells what it is.
    line: Vec<u8>,
    event: Event,
    /// Whether the event has a line of data, which may be empty.
    has_data: bool,
    size: usize,
    /// The event is too large, and its rest is skipped.
    skipped: Option<Skipped>,
    digesting: Option<Digesting>,
    after_cr: bool,
    at_start: bool,
    /// Whether nothing came behind the last blank line.
    fresh: bool,
}

/// What is counted of an event that is not kept.
#[derive(Debug)]
struct Skipped {
    /// What of its data still fits within the limit, and how much more does.
    head: Vec<u8>,
    room: usize,
    bytes: usize,
    digest: Option<Digesting>,
    given_up: bool,
    line: Line,
}

/// What a line is of which only the beginning is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Unknown,
    Data,
    Other,
}

impl Skipped {
    fn data(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len());
        let fits = bytes.get(..self.room).unwrap_or(bytes);
        self.room -= fits.len();
        self.head.extend_from_slice(fits);
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
    }
}

impl Parser {
    /// `limit` bounds the bytes of one event's lines.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            event: Event::default(),
            has_data: false,
            size: 0,
            skipped: None,
            digesting: None,
            after_cr: false,
            at_start: true,
            fresh: true,
        }
    }

    /// Digests what is too large to be kept.
    #[must_use]
    pub fn digesting(self, digesting: Digesting) -> Self {
        Self { digesting: Some(digesting), ..self }
    }

    /// Takes the next bytes; hands each event that they complete to `on_event`.
    pub fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Result<Event, TooLarge>)) {
        let mut rest = bytes;
        if std::mem::take(&mut self.after_cr) && !rest.is_empty() {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            let (line, tail) = rest.split_at(end);
            self.take(line);
            if self.line.is_empty() && self.skipped.is_none() {
                self.end_of_line(line, &mut on_event);
            } else {
                self.keep(line);
                let line = std::mem::take(&mut self.line);
                self.end_of_line(&line, &mut on_event);
            }
            rest = match tail {
                [b'\r', b'\n', rest @ ..] | [_, rest @ ..] => rest,
                [] => tail,
            };
            self.after_cr = tail == b"\r";
        }
        self.take(rest);
        self.keep(rest);
    }

    /// The stream ended: hands over an event that only its blank line was missing from. A client would drop
    /// it; a record must not.
    pub fn finish(mut self, mut on_event: impl FnMut(Result<Event, TooLarge>)) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.end_of_line(&line, &mut on_event);
        }
        self.end_of_line(&[], &mut on_event);
    }

    /// Whether an event that somebody else puts here is one by itself: what came before is over.
    pub fn between_events(&self) -> bool {
        self.fresh && !self.after_cr
    }

    /// About how many bytes are kept of the event that is being read.
    pub fn kept(&self) -> usize {
        self.line.len()
            + self.event.name.len()
            + self.event.data.len()
            + self.event.id.as_ref().map_or(0, String::len)
            + self.skipped.as_ref().map_or(0, |skipped| skipped.head.len())
    }

    /// Keeps no more of the event that is being read: it will be [`TooLarge`].
    pub fn give_up(&mut self) {
        self.skip();
        self.event = Event::default();
        if let Some(skipped) = &mut self.skipped {
            (skipped.head, skipped.room, skipped.given_up) = (Vec::new(), 0, true);
        }
    }

    /// Keeps no more than the limit of the event that is being read.
    fn skip(&mut self) {
        if self.skipped.is_some() {
            return;
        }
        let line = std::mem::take(&mut self.line);
        let mut skipped = Skipped {
            head: Vec::new(),
            room: 0,
            bytes: 0,
            digest: self.digesting.clone(),
            given_up: false,
            line: Line::Unknown,
        };
        skipped.data(self.event.data.as_bytes());
        skipped.room = self.limit.saturating_sub(self.kept());
        self.skipped = Some(skipped);
        self.keep(&line);
    }

    /// Counts a part of a line.
    fn take(&mut self, part: &[u8]) {
        self.fresh &= part.is_empty();
        self.size = self.size.saturating_add(part.len());
        if self.size > self.limit {
            self.skip();
        }
    }

    fn keep(&mut self, part: &[u8]) {
        let Some(skipped) = &mut self.skipped else { return self.line.extend_from_slice(part) };
        let mut part = part;
        while let (Line::Unknown, [byte, rest @ ..]) = (skipped.line, part) {
            self.line.push(*byte);
            part = rest;
            let line = unmarked(&self.line, self.at_start);
            skipped.line = match line.strip_prefix(b"data:") {
                // The first space is none of the data.
                Some([]) => Line::Unknown,
                Some(_) => Line::Data,
                None if b"data:".starts_with(line) || MARK.starts_with(line) && self.at_start => {
                    Line::Unknown
                }
                None => Line::Other,
            };
            if skipped.line == Line::Data {
                if std::mem::replace(&mut self.has_data, true) {
                    skipped.data(b"\n");
                }
                skipped.data(if *byte == b' ' { b"" } else { std::slice::from_ref(byte) });
            }
        }
        if skipped.line == Line::Data {
            skipped.data(part);
        }
    }

    fn end_of_line(&mut self, line: &[u8], on_event: &mut impl FnMut(Result<Event, TooLarge>)) {
        let line = unmarked(line, std::mem::take(&mut self.at_start));
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            self.has_data = false;
            self.size = 0;
            self.fresh = true;
            if let Some(Skipped { head, bytes, digest, given_up, .. }) = self.skipped.take() {
                let mut event = event;
                event.data.push_str(&String::from_utf8_lossy(&head));
                on_event(Err(TooLarge { event, bytes, digest: digest.map(Digesting::finish), given_up }));
            } else if event != Event::default() {
                on_event(Ok(event));
            }
            return;
        }
        if let Some(skipped) = &mut self.skipped {
            let is_empty = std::mem::replace(&mut skipped.line, Line::Unknown) == Line::Unknown;
            if is_empty && matches!(line, b"data" | b"data:") && std::mem::replace(&mut self.has_data, true) {
                skipped.data(b"\n");
            }
            return;
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
    }
}

const MARK: &[u8] = b"\xef\xbb\xbf";

/// A line without the byte order mark that a stream may begin with.
fn unmarked(line: &[u8], at_start: bool) -> &[u8] {
    line.strip_prefix(MARK).filter(|_| at_start).unwrap_or(line)
}

/// The bytes of one `message` event that carries a JSON-RPC message.
pub fn message(json: &str) -> String {
    let mut out = String::from("event: message\n");
    for line in json.split(['\n', '\r']) {
        out.push_str("data: ");
        out.push_str(line);
        out.push('\n');
    }
    out.push('\n');
    out
}

/// A comment: keeps a client's connection alive, and means nothing to it.
pub fn comment(text: &'static str) -> String {
    format!(": {text}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{MaskKey, Masker};

    fn read(pieces: &[&[u8]], limit: usize) -> Vec<Result<Event, TooLarge>> {
        let (mut parser, mut out) = (Parser::new(limit), Vec::new());
        for piece in pieces {
            parser.feed(piece, |event| out.push(event));
        }
        parser.finish(|event| out.push(event));
        out
    }

    fn data(text: &str) -> Result<Event, TooLarge> {
        Ok(Event { data: text.into(), ..Event::default() })
    }

    #[test]
    fn every_line_ending_and_every_split_reads_the_same() {
        for ending in ["\n", "\r", "\r\n"] {
            let text =
                ["\u{feff}: hi", "event: message", "id: 5", "data: a", "data:b", "", "data: c", "", ""]
                    .join(ending);
            let expected =
                [Ok(Event { name: "message".into(), data: "a\nb".into(), id: Some("5".into()) }), data("c")];
            assert_eq!(read(&[text.as_bytes()], 1000), expected);
            for cut in 0..text.len() {
                let (head, tail) = text.as_bytes().split_at(cut);
                assert_eq!(read(&[head, tail], 1000), expected, "{ending:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn an_empty_line_of_data_counts() {
        assert_eq!(read(&[b"data\ndata: a\ndata:\n\n"], 50), [data("\na\n")]);
        assert_eq!(read(&[b"data\n\ndata: a\n\n"], 50), [data("a")]);
    }

    #[test]
    fn an_event_over_the_limit_is_named_and_the_next_one_read() {
        for head in ["", "id: 7\n", ": a comment\n", "data: 1\n"] {
            let text = format!("{head}data: {}\ndata: y\n\ndata: ok\n\n", "x".repeat(100));
            let read = read(&[text.as_bytes()], 50);
            assert!(matches!(&read[..], [Err(_), Ok(ok)] if ok.data == "ok"), "{head:?}: {read:?}");
        }
        let line = "x".repeat(44);
        assert_eq!(read(&[format!("data: {line}").as_bytes()], 50), [data(&line)]);
        let event = Event { data: format!("{line}x"), ..Event::default() };
        let too_large = TooLarge { event, bytes: 45, ..TooLarge::default() };
        assert_eq!(read(&[format!("data: {line}x").as_bytes()], 50), [Err(too_large)]);
    }

    #[test]
    fn of_an_event_over_the_limit_the_beginning_the_length_and_the_digest_are_told_however_it_comes() {
        let masker = Masker::new(MaskKey::new([7; 32]));
        let long = "y".repeat(90);
        for ending in ["\n", "\r", "\r\n"] {
            for (lines, whole) in [
                (vec![format!("data: {long}")], long.clone()),
                (vec![format!("data:{long}"), "data".into(), "data:".into()], format!("{long}\n\n")),
                (vec!["data: a".into(), format!(": {long}"), "data:  b".into()], "a\n b".into()),
                (vec![format!("other: {long}"), "date: x".into(), "dat".into()], String::new()),
                (vec![format!("\u{feff}data: {long}")], long.clone()),
                (vec!["id: 5".into(), "data: 1".into(), format!("data: {long}")], format!("1\n{long}")),
            ] {
                let text = [lines.join(ending), "data: ok".into(), String::new()].join(&ending.repeat(2));
                let kept = whole.get(..50).unwrap_or(&whole);
                for cut in 0..text.len() {
                    let mut parser = Parser::new(50).digesting(masker.digesting());
                    let (mut out, (head, tail)) = (Vec::new(), text.as_bytes().split_at(cut));
                    for piece in [head, tail] {
                        parser.feed(piece, |event| out.push(event));
                        assert!(parser.kept() <= 60, "{} bytes are kept", parser.kept());
                    }
                    let [Err(too_large), Ok(ok)] = &out[..] else {
                        panic!("{lines:?} cut at {cut}: {out:?}")
                    };
                    assert_eq!(ok.data, "ok");
                    assert!(kept.starts_with(&too_large.event.data), "{:?}", too_large.event);
                    assert!(too_large.event.data.len() + 10 > kept.len(), "{:?}", too_large.event);
                    let digest = Some(masker.digest(whole.as_bytes()));
                    assert_eq!(
                        (too_large.bytes, &too_large.digest),
                        (whole.len(), &digest),
                        "{lines:?} cut at {cut}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_is_kept_of_an_event_that_is_given_up() {
        let (mut parser, mut out) = (Parser::new(1000), Vec::new());
        parser.feed(b"id: 1\ndata: abc\ndata: de", |event| out.push(event));
        assert_eq!(parser.kept(), 12);
        parser.give_up();
        parser.feed("f".repeat(5000).as_bytes(), |event| out.push(event));
        assert_eq!(parser.kept(), 6);
        parser.feed(b"\n\ndata: ok\n\n", |event| out.push(event));
        let given_up = TooLarge { bytes: 5006, given_up: true, ..TooLarge::default() };
        assert_eq!((out, parser.kept()), (vec![Err(given_up), data("ok")], 0));
    }

    #[test]
    fn one_is_between_events_behind_a_blank_line_alone() {
        let mut parser = Parser::new(1000);
        let mut after = |text: &str| {
            parser.feed(text.as_bytes(), |_| {});
            parser.between_events()
        };
        assert!(after(""));
        for (text, between) in [
            ("d", false),
            ("ata: 1\n", false),
            ("\n", true),
            (": a comment\n", false),
            ("\n", true),
            ("data: 2\r\n\r", false),
            ("\n", true),
            ("data: 3\r\r", false),
            ("data: 4", false),
            ("\n\n", true),
        ] {
            assert_eq!(after(text), between, "{text:?}");
        }
    }

    #[test]
    fn an_event_that_the_stream_cut_off_is_still_seen() {
        assert_eq!(read(&[b"data: {\"a\":1}"], 50), [data("{\"a\":1}")]);
    }

    #[test]
    fn a_comment_is_no_event_and_a_message_reads_back() {
        let text = comment("weir: waiting") + &message("{\n}");
        let expected = Event { name: "message".into(), data: "{\n}".into(), id: None };
        assert_eq!(read(&[text.as_bytes()], 500), [Ok(expected)]);
    }
}
