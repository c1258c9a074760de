//! An event stream, line by line. What stands before an event's first data line goes on at once, so that a server's signs
//! of life are not held up; from there to its blank line an event is kept until it is known whether it changes.

use super::editor::Editor;

const MARK: &[u8] = b"\xef\xbb\xbf";
/// Stands where an event was that nobody waits for by an id.
const LEFT_OUT: &[u8] = b": weir: an event that could not be masked was left out";

/// See the module.
pub struct Events {
    limit: usize,
    /// The lines from the first data line on, and the line being read.
    kept: Vec<u8>,
    /// Where in it the line being read begins.
    line: usize,
    has_data: bool,
    /// The event's type, if it has named one.
    name: Vec<u8>,
    /// The event is past the limit: nothing more of it is kept.
    over: bool,
    /// Whether the line being read of such an event has any bytes.
    in_line: bool,
    after_cr: bool,
    at_start: bool,
}

impl Events {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: Vec::new(),
            line: 0,
            has_data: false,
            name: Vec::new(),
            over: false,
            in_line: false,
            after_cr: false,
            at_start: true,
        }
    }

    pub fn kept(&self) -> usize {
        self.kept.len() + self.name.len()
    }

    pub fn feed(&mut self, bytes: &[u8], editor: &mut Editor, out: &mut Vec<u8>) {
        for &byte in bytes {
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                self.end_of_crlf(editor, out);
                continue;
            }
            match byte {
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    self.end_of_line(byte, editor, out);
                }
                _ => self.push(byte, editor, out),
            }
        }
    }

    /// The stream is over. What it cut off a client drops; it is masked all the same.
    pub fn finish(&mut self, editor: &mut Editor, out: &mut Vec<u8>) {
        if self.over && !editor.must_mask() {
            return;
        }
        if self.over || self.has_data || field(self.last_line(), self.at_start).0 == b"data" {
            self.event(editor, out);
        }
        out.append(&mut self.kept);
    }

    pub fn give_up(&mut self, editor: &Editor, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        self.over = true;
        self.in_line = self.line < self.kept.len();
        let kept = std::mem::take(&mut self.kept);
        self.line = 0;
        if !editor.must_mask() {
            out.extend(kept);
        }
    }

    fn push(&mut self, byte: u8, editor: &Editor, out: &mut Vec<u8>) {
        if !self.over && self.kept.len() >= self.limit {
            self.give_up(editor, out);
        }
        if self.over {
            self.in_line = true;
            if !editor.must_mask() {
                out.push(byte);
            }
            return;
        }
        self.kept.push(byte);
    }

    /// The second byte of a line's end. What it ends may have gone on already.
    fn end_of_crlf(&mut self, editor: &Editor, out: &mut Vec<u8>) {
        match (self.kept.is_empty(), self.over && editor.must_mask()) {
            (_, true) => {}
            (true, false) => out.push(b'\n'),
            (false, false) => {
                self.kept.push(b'\n');
                self.line = self.kept.len();
            }
        }
    }

    fn end_of_line(&mut self, ending: u8, editor: &mut Editor, out: &mut Vec<u8>) {
        if self.over {
            return self.end_of_lost_line(ending, editor, out);
        }
        let (name, value) = field(self.last_line(), self.at_start);
        let (blank, data) = (self.line == self.kept.len(), name == b"data");
        if name == b"event" {
            self.name = value.get(..value.len().min(64)).unwrap_or_default().to_vec();
        }
        let blank = blank || (self.at_start && self.last_line() == MARK);
        self.has_data |= data;
        self.kept.push(ending);
        self.line = self.kept.len();
        if blank {
            self.event(editor, out);
        } else if !self.has_data {
            out.append(&mut self.kept);
            self.line = 0;
        }
        self.at_start = false;
    }

    fn end_of_lost_line(&mut self, ending: u8, editor: &mut Editor, out: &mut Vec<u8>) {
        let blank = !std::mem::take(&mut self.in_line);
        if editor.must_mask() {
            if blank {
                self.event(editor, out);
            }
            return;
        }
        out.push(ending);
        self.over = !blank;
        if blank {
            self.reset();
        }
    }

    fn last_line(&self) -> &[u8] {
        self.kept.get(self.line..).unwrap_or_default()
    }

    fn reset(&mut self) {
        self.has_data = false;
        self.over = false;
        self.name.clear();
        self.line = 0;
    }

    /// The event is here, and goes on.
    fn event(&mut self, editor: &mut Editor, out: &mut Vec<u8>) {
        let kept = std::mem::take(&mut self.kept);
        let name = std::mem::take(&mut self.name);
        let message = matches!(name.as_slice(), b"" | b"message");
        let lost = self.over;
        self.reset();
        if lost {
            let text = editor.replaced();
            write_lost(&text, out);
            return;
        }
        let data = data(&kept);
        let edited = match message {
            true => editor.edit(&data),
            // Where a client is to post to, of the older transport, is no message.
            false if name == b"endpoint" => None,
            false => editor.edit_other(&String::from_utf8_lossy(&data)),
        };
        match edited {
            None => out.extend(kept),
            Some(text) => write(&kept, &text, out),
        }
    }
}

/// An event that was not kept. Its lines before its data have gone on, if they came first.
fn write_lost(text: &str, out: &mut Vec<u8>) {
    if text.is_empty() {
        out.extend_from_slice(LEFT_OUT);
    } else {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(b"\n\n");
}

/// A line's field and value.
fn field(line: &[u8], at_start: bool) -> (&[u8], &[u8]) {
    let line = if at_start { line.strip_prefix(MARK).unwrap_or(line) } else { line };
    match line.iter().position(|byte| *byte == b':') {
        None => (line, b""),
        Some(at) => {
            let (name, rest) = line.split_at(at);
            let value = rest.get(1..).unwrap_or_default();
            (name, value.strip_prefix(b" ").unwrap_or(value))
        }
    }
}

/// The lines of an event with their endings.
fn lines(event: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = event;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
        let (line, behind) = rest.split_at(end);
        let ending = match behind {
            [b'\r', b'\n', ..] => 2,
            [] => 0,
            _ => 1,
        };
        let (ending, next) = behind.split_at(ending);
        rest = next;
        Some((line, ending))
    })
}

fn data(event: &[u8]) -> Vec<u8> {
    let values = lines(event).map(|(line, _)| field(line, true)).filter(|(name, _)| *name == b"data");
    values.map(|(_, value)| value).collect::<Vec<_>>().join(&b'\n')
}

/// The event with another text as its data; each of its other lines stays.
fn write(event: &[u8], text: &str, out: &mut Vec<u8>) {
    let mut written = false;
    for (line, ending) in lines(event) {
        if field(line, true).0 != b"data" {
            out.extend_from_slice(line);
            out.extend_from_slice(ending);
            continue;
        }
        if std::mem::replace(&mut written, true) {
            continue;
        }
        if text.is_empty() {
            out.extend_from_slice(LEFT_OUT);
            out.extend_from_slice(ending);
            continue;
        }
        let begins = line.iter().position(|byte| *byte == b':').map_or(line.len(), |at| at + 1);
        let begins = if line.get(begins) == Some(&b' ') { begins + 1 } else { begins };
        for part in text.split('\n') {
            out.extend_from_slice(line.get(..begins).unwrap_or_default());
            out.extend_from_slice(part.as_bytes());
            out.extend_from_slice(if ending.is_empty() { b"\n" } else { ending });
        }
    }
}
