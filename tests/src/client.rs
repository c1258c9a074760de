//! What a client told: the JSON lines of `tests/clients`, read back.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The official SDK that the client is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientKind {
    TypeScript,
    Python,
}

impl ClientKind {
    pub const BOTH: [Self; 2] = [Self::TypeScript, Self::Python];

    pub fn name(self) -> &'static str {
        match self {
            Self::TypeScript => "typescript",
            Self::Python => "python",
        }
    }
}

/// How a client's last line begins.
const END: &str = "{\"event\":\"end\"";

/// One line of a client's output.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line {
    Session { client: String, pid: u32 },
    SessionLost { message: String },
    Call(Call),
    Failed { message: String },
    End { issuer: Option<String>, tcp_connects: u64 },
}

/// One call as its client saw it.
#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    pub tool: String,
    pub nonce: String,
    pub ok: bool,
    /// The code of the JSON-RPC error; none when the call failed in another way.
    #[serde(default)]
    pub code: Option<i64>,
    #[serde(default)]
    pub message: Option<String>,
    /// The text of the result, in clear.
    #[serde(default)]
    pub text: Option<String>,
    pub ms: u64,
    /// When the response's headers came, since the call began.
    #[serde(default)]
    pub headers_ms: Option<u64>,
    /// Progress notifications.
    #[serde(default)]
    pub progress: u32,
    /// How often bytes had come in while the call waited, looked at every 100 ms (TypeScript alone).
    #[serde(default)]
    pub arrivals: u32,
}

impl Call {
    pub fn took(&self) -> Duration {
        Duration::from_millis(self.ms)
    }

    /// How long the call went on after the headers of its response had come.
    pub fn waited_with_headers(&self) -> Duration {
        Duration::from_millis(self.headers_ms.map_or(0, |headers| self.ms.saturating_sub(headers)))
    }
}

/// All that one client process told.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    pub pid: Option<u32>,
    pub calls: Vec<Call>,
    /// Why the client gave up, if it did.
    pub failed: Option<String>,
    /// The common name of the issuer of the certificate it was shown.
    pub issuer: Option<String>,
    /// The TCP connects its process made; none while it runs.
    pub tcp_connects: Option<u64>,
    pub sessions_lost: u32,
}

impl Conversation {
    /// Reads the lines there are; a last line that is not whole yet is left out.
    pub fn read(output: &str) -> Result<Self> {
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        let mut told = Self::default();
        for line in whole.lines().filter(|line| line.starts_with('{')) {
            match serde_json::from_str(line).with_context(|| format!("a client's line: {line}"))? {
                Line::Session { pid, .. } => told.pid = Some(pid),
                Line::SessionLost { .. } => told.sessions_lost += 1,
                Line::Call(call) => told.calls.push(call),
                Line::Failed { message } => told.failed = Some(message),
                Line::End { issuer, tcp_connects } => {
                    (told.issuer, told.tcp_connects) = (issuer, Some(tcp_connects));
                }
            }
        }
        Ok(told)
    }

    /// The conversations of clients that ran one after the other with one output; each ends with its `end` line.
    pub fn read_each(output: &str) -> Result<Vec<Self>> {
        let mut each = Vec::new();
        let mut rest = output;
        while let Some(at) = rest.find(END) {
            let after = rest[at..].find('\n').map_or(rest.len(), |end| at + end + 1);
            each.push(Self::read(&rest[..after])?);
            rest = &rest[after..];
        }
        Ok(each)
    }

    /// The calls of one tool, in order.
    pub fn of(&self, tool: &str) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| call.tool == tool)
    }

    /// The first call of a tool.
    pub fn first(&self, tool: &str) -> Result<&Call> {
        let mut calls = self.of(tool);
        calls.next().with_context(|| format!("the client made no call of {tool}: {self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_share_an_output_are_told_apart() {
        let one = "{\"event\":\"end\",\"issuer\":\"a\",\"tcp_connects\":3}\n";
        let each = Conversation::read_each(&[one, &one.replace('3', "4")].concat()).unwrap();
        assert_eq!(each.iter().map(|told| told.tcp_connects).collect::<Vec<_>>(), [Some(3), Some(4)]);
    }

    #[test]
    fn a_line_that_is_not_whole_yet_is_left_out() {
        let told = Conversation::read(
            "{\"event\":\"session\",\"client\":\"python\",\"pid\":7}\n\
             {\"event\":\"call\",\"tool\":\"echo\",\"nonce\":\"n-0\",\"ok\":false,\"code\":-31403,\"message\":\"no\",\"ms\":3}\n\
             {\"event\":\"end\",\"iss",
        )
        .unwrap();
        assert_eq!((told.pid, told.calls.len(), told.tcp_connects), (Some(7), 1, None));
        assert_eq!(told.first("echo").unwrap().code, Some(-31403));
    }
}
