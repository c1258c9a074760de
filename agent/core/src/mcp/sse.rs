//! Server-Sent Events, sans I/O. Bytes come in as they arrive, whole events go out. Lines end in LF, CR or
//! CRLF; a byte order mark at the start is skipped (WHATWG HTML, 9.2.6).

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

/// An event past the limit, or one that was given up. The rest of it is skipped, and reading goes on behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event that is too large to be read")]
pub struct TooLarge;

/// Reads events out of a byte stream that arrives in pieces. A line that is whole in its piece is read where it lies.
#[derive(Debug)]
pub struct Parser {
    limit: usize,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    event: Event,
    /// Whether the event has a line of data, which may be empty.
    has_data: bool,
    size: usize,
    overflown: bool,
    after_cr: bool,
    at_start: bool,
    /// Whether nothing came behind the last blank line.
    fresh: bool,
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
            overflown: false,
            after_cr: false,
            at_start: true,
            fresh: true,
        }
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
            if self.line.is_empty() {
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
    }

    /// Keeps no more of the event that is being read: it will be [`TooLarge`].
    pub fn give_up(&mut self) {
        self.overflown = true;
        self.event = Event::default();
        // Whether the line is empty is still to be known.
        self.line.truncate(1);
        self.line.shrink_to_fit();
    }

    /// Counts a part of a line.
    fn take(&mut self, part: &[u8]) {
        self.fresh &= part.is_empty();
        self.size = self.size.saturating_add(part.len());
        if self.size > self.limit && !self.overflown {
            self.give_up();
        }
    }

    fn keep(&mut self, part: &[u8]) {
        match self.overflown {
            true if self.line.is_empty() => self.line.extend(part.first()),
            true => {}
            false => self.line.extend_from_slice(part),
        }
    }

    fn end_of_line(&mut self, line: &[u8], on_event: &mut impl FnMut(Result<Event, TooLarge>)) {
        let marked = std::mem::take(&mut self.at_start);
        let line = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| marked).unwrap_or(line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            self.has_data = false;
            self.size = 0;
            self.fresh = true;
            if std::mem::take(&mut self.overflown) {
                on_event(Err(TooLarge));
            } else if event != Event::default() {
                on_event(Ok(event));
            }
            return;
        }
        if self.overflown {
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
            assert_eq!(read(&[text.as_bytes()], 50), [Err(TooLarge), data("ok")], "{head:?}");
        }
        let line = "x".repeat(44);
        assert_eq!(read(&[format!("data: {line}").as_bytes()], 50), [data(&line)]);
        assert_eq!(read(&[format!("data: {line}x").as_bytes()], 50), [Err(TooLarge)]);
    }

    #[test]
    fn nothing_is_kept_of_an_event_that_is_given_up() {
        let (mut parser, mut out) = (Parser::new(1000), Vec::new());
        parser.feed(b"id: 1\ndata: abc\ndata: de", |event| out.push(event));
        assert_eq!(parser.kept(), 12);
        parser.give_up();
        parser.feed("f".repeat(5000).as_bytes(), |event| out.push(event));
        assert_eq!(parser.kept(), 1);
        parser.feed(b"\n\ndata: ok\n\n", |event| out.push(event));
        assert_eq!((out, parser.kept()), (vec![Err(TooLarge), data("ok")], 0));
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
