//! Questions: SQL or a question's name comes in, ClickHouse's answer goes out as a table, as lines of JSON, as
//! CSV, or in any format of ClickHouse's. ClickHouse is told that this may only read.

pub mod named;
pub mod table;

use std::io::{self, Write};

use clickhouse::query::{BytesCursor, Query};

use crate::store::{Store, StoreError};
use crate::visible;

/// The most rows of a table on the screen.
pub const MAX_TABLE_ROWS: usize = 10_000;

/// How an answer is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// For people; cells are cut to a width on a terminal.
    Table { cell_width: Option<usize> },
    /// One JSON object a row.
    Json,
    /// RFC 4180, with the columns' names first. Control characters come as escapes.
    Csv,
    /// One of ClickHouse's formats, to the byte.
    Format(String),
}

impl Shape {
    fn format(&self) -> &str {
        match self {
            Shape::Table { .. } | Shape::Csv => "JSONCompactStringsEachRowWithNames",
            Shape::Json => "JSONEachRow",
            Shape::Format(name) => name,
        }
    }
}

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

/// Asks, and writes the answer to `out`.
pub async fn ask(
    store: &Store,
    sql: &str,
    params: &[(&str, String)],
    shape: &Shape,
    out: &mut impl Write,
) -> Result<(), QueryError> {
    let mut question = store.query_raw(sql);
    for (name, value) in params {
        question = question.param(name, value);
    }
    let mut told = question.clone().with_setting("readonly", "1");
    if *shape == Shape::Json {
        told = told.with_setting("output_format_json_quote_64bit_integers", "0");
    }
    let first = begin(store, told, shape).await;
    let (mut cursor, first) = match first {
        // This user may only read anyway, and may not be told so.
        Err(error) if error.is_read_only_already() => begin(store, question, shape).await?,
        other => other?,
    };
    let mut lines = Lines::new(shape);
    let mut next = first;
    while let Some(chunk) = next {
        lines.take(&chunk, out)?;
        next = cursor.next().await.map_err(|e| store.fault(e))?;
    }
    lines.end(out)?;
    Ok(out.flush()?)
}

async fn begin(
    store: &Store,
    query: Query,
    shape: &Shape,
) -> Result<(BytesCursor, Option<bytes::Bytes>), StoreError> {
    let mut cursor = query.fetch_bytes(shape.format()).map_err(|e| store.fault(e))?;
    let first = cursor.next().await.map_err(|e| store.fault(e))?;
    Ok((cursor, first))
}

/// Takes an answer's bytes as they come, line by line where a shape needs lines.
struct Lines<'s> {
    shape: &'s Shape,
    rest: Vec<u8>,
    columns: Option<Vec<String>>,
    rows: Vec<Vec<String>>,
    left_out: usize,
}

impl<'s> Lines<'s> {
    fn new(shape: &'s Shape) -> Self {
        Self { shape, rest: Vec::new(), columns: None, rows: Vec::new(), left_out: 0 }
    }

    fn take(&mut self, chunk: &[u8], out: &mut impl Write) -> io::Result<()> {
        if matches!(self.shape, Shape::Format(_)) {
            return out.write_all(chunk);
        }
        self.rest.extend_from_slice(chunk);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        whole.split_inclusive(|byte| *byte == b'\n').try_for_each(|line| self.line(line, out))
    }

    fn line(&mut self, line: &[u8], out: &mut impl Write) -> io::Result<()> {
        let text = String::from_utf8_lossy(line);
        if *self.shape == Shape::Json {
            return out.write_all(visible::json(&text).as_bytes());
        }
        let row: Option<Vec<String>> = serde_json::from_str(&text).ok();
        if let (Shape::Csv, Some(row)) = (self.shape, &row) {
            return out.write_all(table::csv_line(row).as_bytes());
        }
        match (row, &self.columns) {
            (Some(names), None) => self.columns = Some(names),
            (Some(row), Some(_)) if self.rows.len() < MAX_TABLE_ROWS => self.rows.push(row),
            (Some(_), Some(_)) => self.left_out += 1,
            // The question names a format of its own.
            (None, _) => writeln!(out, "{}", visible::line(text.trim_end_matches('\n')))?,
        }
        Ok(())
    }

    fn end(mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.line(&rest, out)?;
        }
        if let (Shape::Table { cell_width }, Some(columns)) = (self.shape, &self.columns) {
            out.write_all(table::render(columns, &self.rows, *cell_width).as_bytes())?;
        }
        if self.left_out > 0 {
            writeln!(out, "... and {} more rows: add a LIMIT, or take --json", self.left_out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(shape: &Shape, chunks: &[&str]) -> String {
        let (mut lines, mut out) = (Lines::new(shape), Vec::new());
        for chunk in chunks {
            lines.take(chunk.as_bytes(), &mut out).unwrap();
        }
        lines.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_is_put_together_from_chunks_cut_anywhere() {
        let shape = Shape::Table { cell_width: None };
        let shown = written(&shape, &["[\"a\",\"b\"]\n[\"1\",\"x\\u001b[2J", "\"]\n[\"\",\"y\"]\n"]);
        assert_eq!(shown, "a  b\n-  ----------\n1  x\\u{1b}[2J\n   y\n");
    }

    #[test]
    fn an_answer_in_another_format_is_shown_line_by_line() {
        assert_eq!(written(&Shape::Table { cell_width: None }, &["a\u{1b}\tb\n"]), "a\\u{1b}\\u{9}b\n");
        assert_eq!(written(&Shape::Format("TSV".into()), &["a\tb\n"]), "a\tb\n");
        let csv = written(&Shape::Csv, &["[\"a\",\"b\"]\n[\"1,\\\"x\\\"\",\"\\u001b\\n\"]\n"]);
        assert_eq!(csv, "a,b\r\n\"1,\"\"x\"\"\",\\u{1b}\\u{a}\r\n");
        assert_eq!(written(&Shape::Json, &["{\"a\":\"\u{9b}\"}\n"]), "{\"a\":\"\\u009b\"}\n");
    }
}
