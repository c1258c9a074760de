//! Requests to the letter, sent from a job: for what the official clients would never send.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::server::Scheme;
use crate::world::World;

const CLIENT: &str = include_str!("../clients/raw.py");
const DEADLINE: Duration = Duration::from_secs(60);
/// The last revision that has batches, and one that has sessions.
const REVISION: &str = "2025-03-26";

/// One request: its head's lines and its body, bytes as latin-1.
#[derive(Debug, Clone, Serialize)]
pub struct Request {
    head: Vec<String>,
    body: String,
}

impl Request {
    /// Of the server that it is sent to.
    pub fn new(line: &str) -> Self {
        Self { head: vec![line.into(), "Host: {host}".into()], body: String::new() }
    }

    /// A POST of JSON to the MCP server, in the session that an earlier answer has named.
    pub fn mcp(body: impl Into<String>) -> Self {
        let post = Self::new("POST /mcp HTTP/1.1")
            .header("Content-Type: application/json")
            .header("Accept: application/json, text/event-stream")
            .header("Mcp-Session-Id: {session}");
        post.body(body)
    }

    /// What opens an MCP session: the first two requests.
    pub fn session() -> [Self; 2] {
        let initialize = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}});
        let mut opening = Self::mcp(initialize.to_string());
        opening.head.retain(|line| !line.starts_with("Mcp-Session-Id"));
        [opening, Self::mcp(json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string())]
    }

    pub fn header(mut self, line: impl Into<String>) -> Self {
        self.head.push(line.into());
        self
    }

    /// Puts another line in the place of a header's.
    pub fn replace(self, name: &str, line: impl Into<String>) -> Self {
        self.without(name).header(line)
    }

    pub fn without(mut self, name: &str) -> Self {
        let begins = format!("{}:", name.to_ascii_lowercase());
        self.head.retain(|own| !own.to_ascii_lowercase().starts_with(&begins));
        self
    }

    /// The body and its length.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        let length = format!("Content-Length: {}", self.body.chars().count());
        self.replace("Content-Length", length)
    }
}

/// A call of a tool, as a JSON-RPC request.
pub fn call(id: u32, tool: &str, arguments: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

/// What came back.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    Response(Response),
    Error { error: String },
}

#[derive(Debug, Clone, Deserialize)]
pub struct Response {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
    /// When each line of the body came, milliseconds since the request.
    pub arrivals: Vec<u64>,
}

impl Answer {
    pub fn response(&self) -> Result<&Response> {
        match self {
            Self::Response(response) => Ok(response),
            Self::Error { error } => anyhow::bail!("no response came: {error}"),
        }
    }
}

impl Response {
    /// The body as JSON: itself, or the data of its last event.
    pub fn json(&self) -> Result<Value> {
        let data = self.body.lines().rev().find_map(|line| line.strip_prefix("data: "));
        serde_json::from_str(data.unwrap_or(&self.body)).with_context(|| format!("{self:?}"))
    }
}

impl World {
    /// Sends requests from a job in the watched cgroup, one after the other, to the MCP server.
    pub fn raw(&self, host: &str, requests: &[Request]) -> Result<Vec<Answer>> {
        self.raw_to(host, self.server.port(), self.server.scheme(), requests)
    }

    /// The same to any server.
    pub fn raw_to(&self, host: &str, port: u16, scheme: Scheme, requests: &[Request]) -> Result<Vec<Answer>> {
        let tls = scheme == Scheme::Https;
        let host = host.trim_matches(['[', ']']);
        let plan = json!({"host": host, "port": port, "tls": tls, "requests": requests});
        let command: [OsString; 4] =
            [self.setup.python().into(), "-c".into(), CLIENT.into(), plan.to_string().into()];
        let mut job = self.job().command(&command)?;
        let exit = job.wait(DEADLINE)?;
        ensure!(exit.success(), "the raw client failed: {}", job.stderr()?);
        let lines = job.stdout()?;
        let answers: Vec<Answer> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(answers.len() == requests.len(), "{} answers to {} requests", answers.len(), requests.len());
        Ok(answers)
    }

    /// The same in an MCP session of its own; the answers to what opened it are left out.
    pub fn raw_session(&self, host: &str, requests: &[Request]) -> Result<Vec<Answer>> {
        let all: Vec<_> = Request::session().into_iter().chain(requests.iter().cloned()).collect();
        let mut answers = self.raw(host, &all)?;
        let opening: Vec<_> = answers.drain(..2).collect();
        let statuses: Vec<_> =
            opening.iter().filter_map(|answer| Some(answer.response().ok()?.status)).collect();
        ensure!(statuses == [200, 202], "no session: {opening:?}");
        Ok(answers)
    }
}
