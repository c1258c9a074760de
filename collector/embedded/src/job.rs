//! One request against the engine, from a fresh connection to its answer.
//!
//! In: an `Ask` and its body. Out: rows in the engine's memory, or counts, or a fault. All of it blocks: the caller gives a
//! thread. Settings and the current database live in the connection of this one job and go with it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ask::Ask;
use crate::engine::{Counts, Engine, Output, Session};
use crate::fault::{Fault, code};
use crate::frames;
use crate::multipart;
use crate::statement::{self, Statement, VALUES};

/// A body, as it came and as it is when decompressed, is at most this long. A sealed segment is 16 MiB.
pub const MAX_BODY_BYTES: usize = 64 << 20;

/// What a job gives back.
pub struct Done {
    /// The answer, plain or in frames; empty for what gives no rows.
    pub answer: Bytes,
    pub format: String,
    pub counts: Counts,
}

/// Runs one job. Blocks for as long as the engine takes.
pub fn run(engine: &Engine, mut ask: Ask, body: Bytes, answers: &Answers) -> Result<Done, Fault> {
    let body = if ask.decompress { frames::decode(&body, MAX_BODY_BYTES)?.into() } else { body };
    let body = match ask.form.take() {
        Some(boundary) => {
            for (name, value) in multipart::fields(&body, &boundary)? {
                ask.take(name, value)?;
            }
            Bytes::new()
        }
        None => body,
    };
    let mut session = engine.session().map_err(|error| Fault::from_engine(error.to_string()))?;
    for preparation in ask.preparation()? {
        session.query(preparation.as_bytes(), "Null", &[]).map_err(Fault::from_engine)?;
    }
    match Text::of(&ask.query, &body) {
        Text::Rows { head, format, rows } => insert(&mut session, &ask, head, format, &rows),
        Text::Whole(text) => plain(&mut session, &ask, &text, answers),
    }
}

/// A statement and its rows, wherever the URL and the body put them.
#[derive(Debug, PartialEq, Eq)]
enum Text<'t> {
    Rows { head: &'t [u8], format: &'t str, rows: Cow<'t, [u8]> },
    Whole(Cow<'t, [u8]>),
}

impl<'t> Text<'t> {
    fn of(query: &'t str, body: &'t [u8]) -> Self {
        let (first, second) = if query.is_empty() { (body, &[][..]) } else { (query.as_bytes(), body) };
        match statement::split(first) {
            Statement::Insert { head, format, data } if format.eq_ignore_ascii_case(VALUES) => {
                Self::Whole([head, b" VALUES\n", &joined(data, second)].concat().into())
            }
            Statement::Insert { head, format, data } => {
                Self::Rows { head, format, rows: joined(data, second) }
            }
            Statement::Plain { .. } => Self::Whole(joined(first, second)),
        }
    }
}

fn joined<'t>(first: &'t [u8], second: &'t [u8]) -> Cow<'t, [u8]> {
    match (first, second) {
        (only, []) | ([], only) => Cow::Borrowed(only),
        _ => [first, b"\n", second].concat().into(),
    }
}

fn insert(
    session: &mut Session<'_>,
    ask: &Ask,
    head: &[u8],
    format: &str,
    rows: &[u8],
) -> Result<Done, Fault> {
    if ask.read_only {
        return Err(read_only());
    }
    let counts = session.insert(head, format, &ask.params, rows).map_err(Fault::from_engine)?;
    Ok(Done { answer: Bytes::new(), format: ask.default_format().to_owned(), counts })
}

fn plain(session: &mut Session<'_>, ask: &Ask, text: &[u8], answers: &Answers) -> Result<Done, Fault> {
    let Statement::Plain { format, touches_client_files } = statement::split(text) else {
        return Err(syntax("the statement stands partly in the URL and partly in the body"));
    };
    if touches_client_files {
        return Err(Fault::new(
            code::INTO_OUTFILE_NOT_ALLOWED,
            "INTO_OUTFILE_NOT_ALLOWED",
            "INTO OUTFILE and FROM INFILE name files of a client, and this is a server: send and read the bytes by HTTP",
        ));
    }
    let reading =
        session.read(text).ok_or_else(|| Fault::from_engine("the engine reads no statement".into()))?;
    match reading.statements {
        2.. => return Err(syntax("multi-statements are not allowed: send one statement at a time")),
        1 if ask.read_only && !reading.read_only => return Err(read_only()),
        _ => {}
    }
    let format = format.unwrap_or_else(|| ask.default_format()).to_owned();
    let output = session.query(text, ask.default_format(), &ask.params).map_err(Fault::from_engine)?;
    if reading.statements == 0 && output.as_ref().is_empty() {
        // The engine's own shell has words, such as `exit`, that are no statements; a server has none.
        return Err(syntax("Syntax error: this is no statement"));
    }
    let counts = output.counts();
    Ok(Done { answer: answers.hold(output, ask.compress)?, format, counts })
}

/// Answers on their way out share this much memory; a slow reader must not take all of it unnoticed.
const MAX_ANSWER_MIB: usize = 512;

/// The room for answers that their readers have not taken yet.
pub struct Answers(Arc<Semaphore>);

impl Answers {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_ANSWER_MIB)))
    }

    /// The bytes of `output`, in frames if `compress`; they give their room back when they are dropped.
    fn hold(&self, output: Output, compress: bool) -> Result<Bytes, Fault> {
        if output.as_ref().is_empty() {
            return Ok(Bytes::new());
        }
        let size = output.as_ref().len();
        let room = u32::try_from(size.div_ceil(1 << 20))
            .ok()
            .and_then(|mib| self.0.clone().try_acquire_many_owned(mib).ok());
        let Some(room) = room else {
            return Err(Fault::new(
                code::MEMORY_LIMIT_EXCEEDED,
                "MEMORY_LIMIT_EXCEEDED",
                format!(
                    "no room for an answer of {size} bytes while others wait for their readers: ask for less, or later"
                ),
            ));
        };
        Ok(if compress {
            Bytes::from_owner(Held { bytes: frames::encode(output.as_ref()), _room: room })
        } else {
            Bytes::from_owner(Held { bytes: output, _room: room })
        })
    }
}

struct Held<T> {
    bytes: T,
    _room: OwnedSemaphorePermit,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

fn read_only() -> Fault {
    Fault::new(
        code::READONLY,
        "READONLY",
        "Cannot execute query in readonly mode: a GET changes nothing, and neither does a request that says readonly",
    )
}

fn syntax(what: &str) -> Fault {
    Fault::new(code::SYNTAX_ERROR, "SYNTAX_ERROR", what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<'t>(head: &'t str, format: &'t str, rows: &'t [u8]) -> Text<'t> {
        Text::Rows { head: head.as_bytes(), format, rows: Cow::Borrowed(rows) }
    }

    fn whole(text: &str) -> Text<'_> {
        Text::Whole(Cow::Borrowed(text.as_bytes()))
    }

    #[test]
    fn rows_come_from_the_body_wherever_the_statement_stands() {
        let expected = rows("INSERT INTO t", "TSV", b"1\n\n2");
        assert_eq!(Text::of("INSERT INTO t FORMAT TSV", b"1\n\n2"), expected);
        assert_eq!(Text::of("", b"INSERT INTO t FORMAT TSV\n1\n\n2"), expected);
        assert_eq!(Text::of("INSERT INTO t FORMAT TSV 1\n", b"2"), expected);
    }

    #[test]
    fn values_and_queries_stay_one_text() {
        assert_eq!(Text::of("INSERT INTO t", b"(1), (2)"), whole("INSERT INTO t VALUES\n(1), (2)"));
        assert_eq!(Text::of("INSERT INTO t FORMAT Values", b"(1)"), whole("INSERT INTO t VALUES\n(1)"));
        assert_eq!(Text::of("INSERT INTO t VALUES", b"(1)"), whole("INSERT INTO t VALUES\n(1)"));
        assert_eq!(Text::of("SELECT", b"1"), whole("SELECT\n1"));
        assert_eq!(Text::of("", b"SELECT 1"), whole("SELECT 1"));
    }
}
