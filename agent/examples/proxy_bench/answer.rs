//! As much of HTTP/1.1 as the load needs: bytes of one answer come in, and whether it is whole comes out. The server's answers
//! are known, so that it trusts them more than a client may.

use anyhow::{Context, Result, ensure};

/// What a call that was refused is told, which is no answer of the server's, and costs less than one.
const REFUSED: &[u8] = b"\"error\":";
/// Its place is before this.
const FIRST: usize = 64;

/// The end of a chunked answer; nothing in the server's answers looks like it.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// One answer being read.
#[derive(Debug, Default)]
pub struct Answer {
    /// What came so far, of a head that is not whole; then the last bytes of a chunked body.
    held: Vec<u8>,
    body: Option<Length>,
    /// Something of the body was looked at.
    begun: bool,
}

#[derive(Debug, Clone, Copy)]
enum Length {
    Left(usize),
    Chunked,
}

impl Answer {
    /// Takes what has come. True when this was the end of the answer.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<bool> {
        if self.body.is_none() {
            let before = self.held.len();
            self.held.extend_from_slice(bytes);
            let Some(end) = find(&self.held, b"\r\n\r\n") else { return Ok(false) };
            let head = std::str::from_utf8(self.held.get(..end).unwrap_or_default())?.to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 200"), "an answer that is no success: {head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            self.body = Some(match length {
                Some(length) => Length::Left(length.trim().parse()?),
                None => {
                    ensure!(head.contains("transfer-encoding: chunked"), "an answer without length: {head}");
                    Length::Chunked
                }
            });
            bytes = bytes.get(end + 4 - before..).context("a head that ends before it began")?;
            self.held.clear();
        }
        if !bytes.is_empty() && !std::mem::replace(&mut self.begun, true) {
            let first = bytes.get(..bytes.len().min(FIRST)).unwrap_or_default();
            ensure!(find(first, REFUSED).is_none(), "a call was refused, not answered");
        }
        match &mut self.body {
            Some(Length::Left(left)) => {
                *left = left.checked_sub(bytes.len()).context("more bytes than were announced")?;
                Ok(*left == 0)
            }
            _ => {
                self.held.extend_from_slice(
                    bytes.get(bytes.len().saturating_sub(LAST_CHUNK.len())..).unwrap_or_default(),
                );
                let surplus = self.held.len().saturating_sub(LAST_CHUNK.len());
                self.held.drain(..surplus);
                Ok(self.held == LAST_CHUNK)
            }
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}
