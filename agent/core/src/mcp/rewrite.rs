//! Rewriting of what a server answers, sans I/O: the body's bytes come in as they arrive, and go out as the client is to
//! have them. What need not change goes on to the letter: of an event stream each line (ids, retry times, comments, line
//! endings), of a JSON text each number, each space and the order of members. An event that changes is written anew in its
//! data lines alone.
//!
//! What must be masked and is over the limit, or no text at all, never goes on: a JSON-RPC error stands for it.

mod editor;
mod events;
mod request;
mod text;

pub use editor::{Editor, Lists, Progress, Told};
use events::Events;
pub use request::{Arguments, mask_arguments, with_id};

/// Rewrites one body.
pub struct Rewriter {
    editor: Editor,
    body: Body,
}

enum Body {
    Events(Events),
    Whole(Whole),
}

/// A body that is one JSON text.
struct Whole {
    limit: usize,
    bytes: Vec<u8>,
    /// Past the limit; if nothing must be masked, the rest goes on as it comes.
    over: bool,
}

impl Rewriter {
    /// Of an event stream. `limit` bounds the bytes of one event.
    pub fn of_events(editor: Editor, limit: usize) -> Self {
        Self { editor, body: Body::Events(Events::new(limit)) }
    }

    /// Of one JSON text of at most `limit` bytes.
    pub fn of_whole(editor: Editor, limit: usize) -> Self {
        Self { editor, body: Body::Whole(Whole { limit, bytes: Vec::new(), over: false }) }
    }

    /// A server's progress is to rise above this, besides what else is changed.
    pub fn renumber(&mut self, progress: Progress) {
        self.editor.renumber(progress);
    }

    /// Takes the next bytes; gives what can go on.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match &mut self.body {
            Body::Events(events) => events.feed(bytes, &mut self.editor, &mut out),
            Body::Whole(whole) => whole.feed(bytes, &self.editor, &mut out),
        }
        out
    }

    /// The body is over: gives what is left of it.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        match &mut self.body {
            Body::Events(events) => events.finish(&mut self.editor, &mut out),
            Body::Whole(whole) => whole.finish(&mut self.editor, &mut out),
        }
        out
    }

    /// Keeps no more of what is being read: there is no room for it. It is treated as one that is over the limit.
    pub fn give_up(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        match &mut self.body {
            Body::Events(events) => events.give_up(&self.editor, &mut out),
            Body::Whole(whole) => whole.give_up(&self.editor, &mut out),
        }
        out
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> usize {
        match &self.body {
            Body::Events(events) => events.kept(),
            Body::Whole(whole) => whole.bytes.len(),
        }
    }

    /// What was done.
    pub fn told(&self) -> &Told {
        self.editor.told()
    }
}

impl Whole {
    fn feed(&mut self, bytes: &[u8], editor: &Editor, out: &mut Vec<u8>) {
        if !self.over && bytes.len() > self.limit - self.bytes.len() {
            self.give_up(editor, out);
        }
        match self.over {
            true if editor.must_mask() => {}
            true => out.extend_from_slice(bytes),
            false => self.bytes.extend_from_slice(bytes),
        }
    }

    fn give_up(&mut self, editor: &Editor, out: &mut Vec<u8>) {
        self.over = true;
        let bytes = std::mem::take(&mut self.bytes);
        if !editor.must_mask() {
            out.extend(bytes);
        }
    }

    fn finish(&mut self, editor: &mut Editor, out: &mut Vec<u8>) {
        let bytes = std::mem::take(&mut self.bytes);
        if self.over {
            if editor.must_mask() {
                out.extend(editor.replaced().into_bytes());
            }
            return;
        }
        match editor.edit(&bytes) {
            None => out.extend(bytes),
            Some(text) => out.extend(text.into_bytes()),
        }
    }
}

#[cfg(test)]
mod tests;
