//! An export's lines, taken apart and put together again.

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;
use weir_core::evidence::{Hash, leaf_hash};

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// `L`, `K`, `T`, `C` or `B`.
    Json(char, Value),
    Event {
        epoch: u64,
        seq: u64,
        leaf: Vec<u8>,
        canonical: Vec<u8>,
    },
}

impl Line {
    pub fn is(&self, letter: char) -> bool {
        matches!(self, Line::Json(own, _) if *own == letter)
    }

    pub fn is_event(&self) -> bool {
        matches!(self, Line::Event { .. })
    }

    /// A member that is a number.
    pub fn number(&self, name: &str) -> u64 {
        match self {
            Line::Json(_, value) => value.get(name).and_then(Value::as_u64).unwrap_or(0),
            Line::Event { epoch, .. } if name == "epoch" => *epoch,
            Line::Event { seq, .. } => *seq,
        }
    }

    /// A member that is a text.
    pub fn text(&self, name: &str) -> String {
        match self {
            Line::Json(_, value) => value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned(),
            Line::Event { .. } => String::new(),
        }
    }

    pub fn set(&mut self, name: &str, to: Value) {
        if let Line::Json(_, Value::Object(members)) = self {
            members.insert(name.to_owned(), to);
        }
    }

    /// A member that is hashes.
    pub fn hashes(&self, name: &str) -> Vec<Hash> {
        let bytes = BASE64_STANDARD.decode(self.text(name)).unwrap_or_default();
        bytes.as_chunks::<32>().0.to_vec()
    }

    pub fn set_hashes(&mut self, name: &str, hashes: &[Hash]) {
        self.set(name, BASE64_STANDARD.encode(hashes.concat()).into());
    }

    /// The number behind the last leaf that a batch or a checkpoint tells of.
    pub fn next_seq(&self) -> u64 {
        match self {
            Line::Json('B', _) => self.number("last_seq") + 1,
            Line::Json('C', _) => self.number("first_seq") + self.number("size"),
            _ => self.number("seq") + 1,
        }
    }

    /// Gives an event other bytes, and the leaf that goes with them.
    pub fn rewrite(&mut self, to: Vec<u8>) {
        if let Line::Event { leaf, canonical, .. } = self {
            *leaf = leaf_hash(&to).to_vec();
            *canonical = to;
        }
    }
}

/// Takes an export apart.
pub fn read(mut bytes: &[u8]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').context("a line without an end")?;
        let line = std::str::from_utf8(&bytes[..end])?;
        bytes = &bytes[end + 1..];
        let (letter, rest) = line.split_once(' ').context("a line without a letter")?;
        if letter != "E" {
            lines.push(Line::Json(letter.chars().next().context("no letter")?, serde_json::from_str(rest)?));
            continue;
        }
        let parts: Vec<&str> = rest.split(' ').collect();
        let [epoch, seq, leaf, length] = parts[..] else { anyhow::bail!("an event's head") };
        let length: usize = length.parse()?;
        ensure!(bytes.get(length) == Some(&b'\n'), "an event that does not end");
        let leaf = (0..leaf.len()).step_by(2).map(|at| u8::from_str_radix(&leaf[at..at + 2], 16));
        lines.push(Line::Event {
            epoch: epoch.parse()?,
            seq: seq.parse()?,
            leaf: leaf.collect::<Result<_, _>>()?,
            canonical: bytes[..length].to_vec(),
        });
        bytes = &bytes[length + 1..];
    }
    Ok(lines)
}

/// Puts lines together.
pub fn write(lines: &[Line]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines {
        match line {
            Line::Json(letter, value) => out.extend_from_slice(format!("{letter} {value}\n").as_bytes()),
            Line::Event { epoch, seq, leaf, canonical } => {
                let leaf = weir_core::ids::hex(leaf);
                out.extend_from_slice(format!("E {epoch} {seq} {leaf} {}\n", canonical.len()).as_bytes());
                out.extend_from_slice(canonical);
                out.push(b'\n');
            }
        }
    }
    out
}
