//! Released clients of every kind get through the hooks, unchanged: each SDK in each revision that it speaks, curl in each version of
//! HTTP, over TLS and in plain text. What the client says, what the server says and what is recorded are one and the same.

use std::ffi::OsString;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::conformance::Sdk;
use weir_tests::places::free_ports;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{Conversation, Scheme, SdkServer, World, WorldPlan};

/// The second is denied, and the session lives on.
const CALLS: &str = "echo,delete_repo,count,echo";
const DENIED: &str = "delete_repo";
/// The usual rule against it names a server, which nobody proves in plain text.
const ANYWHERE: &str = r#"
[[rule]]
id = "no-deletes-anywhere"
when = { method = "tools/call", tool = "delete_*" }
action = "deny"
"#;

/// A client of an SDK.
struct Client {
    name: &'static str,
    /// Up to the URL.
    command: Vec<OsString>,
    options: Vec<&'static str>,
    /// What it speaks with the test server.
    revision: &'static str,
}

impl Client {
    fn new(
        name: &'static str,
        command: &[OsString],
        options: &[&'static str],
        revision: &'static str,
    ) -> Self {
        Self { name, command: command.to_vec(), options: options.to_vec(), revision }
    }

    /// Of each SDK one, in the revision that it speaks by itself, and the others by those that let themselves be told.
    fn all(world: &World) -> Result<Vec<Self>> {
        let setup = &world.setup;
        let typescript: [OsString; 2] = [setup.node().into(), setup.sdk_file("client-typescript.mjs").into()];
        let python: [OsString; 2] = [setup.python_1().into(), setup.sdk_file("client_python_1.py").into()];
        let newer: [OsString; 2] = [setup.python().into(), setup.client_file("client.py").into()];
        let rust: [OsString; 1] = [setup.shared_binary("weir-tests-rmcp-client")?.into()];
        Ok(vec![
            Self::new("typescript-1", &typescript, &["--line", "1"], "2025-11-25"),
            Self::new("typescript-2-2025-11", &typescript, &["--revision", "2025-11-25"], "2025-11-25"),
            Self::new("typescript-2-2025-06", &typescript, &["--revision", "2025-06-18"], "2025-06-18"),
            Self::new("typescript-2-2026-07", &typescript, &["--revision", "2026-07-28"], "2026-07-28"),
            Self::new("python-1", &python, &[], "2025-11-25"),
            Self::new("python-2", &newer, &[], "2026-07-28"),
            Self::new("rmcp-2025-03", &rust, &["--revision", "2025-03-26"], "2025-03-26"),
            Self::new("rmcp-2025-11", &rust, &["--revision", "2025-11-25"], "2025-11-25"),
            Self::new("rmcp-2026-07", &rust, &["--revision", "2026-07-28"], "2026-07-28"),
        ])
    }

    /// Of HTTP/2 alone, by Node's own: the servers here speak HTTP/1.1.
    fn of_http2(world: &World) -> Vec<Self> {
        let setup = &world.setup;
        let typescript: [OsString; 2] = [setup.node().into(), setup.sdk_file("client-typescript.mjs").into()];
        vec![
            Self::new("http2-1", &typescript, &["--line", "1", "--http2"], "2025-11-25"),
            Self::new("http2-2", &typescript, &["--revision", "2026-07-28", "--http2"], "2026-07-28"),
        ]
    }

    /// Those of the oldest transport, HTTP+SSE.
    fn legacy(world: &World) -> Vec<Self> {
        let setup = &world.setup;
        let typescript: [OsString; 2] = [setup.node().into(), setup.sdk_file("client-typescript.mjs").into()];
        let python: [OsString; 2] = [setup.python_1().into(), setup.sdk_file("client_python_1.py").into()];
        vec![
            Self::new("typescript-1-sse", &typescript, &["--line", "1", "--sse"], "2025-11-25"),
            Self::new("typescript-2-sse", &typescript, &["--revision", "2024-11-05", "--sse"], "2024-11-05"),
            Self::new("python-1-sse", &python, &["--sse"], "2025-11-25"),
        ]
    }

    fn run(&self, world: &World, host: &str) -> Result<Conversation> {
        let mut command = self.command.clone();
        command.push(world.server.url(host).into());
        command.extend(["--nonce", self.name, "--calls", CALLS].map(OsString::from));
        command.extend(self.options.iter().map(OsString::from));
        world.job().command(&command)?.finish(CLIENT_DEADLINE).with_context(|| self.name.to_owned())
    }
}

/// One client's calls: what the client, the server and the record say of them.
fn all_agree(world: &World, client: &Client, host: &str, proof: &str) -> Result<()> {
    let executed = world.server.executed()?.len();
    let told = client.run(world, host)?;
    ensure!(told.calls.len() == 4, "{}: {told:?}", client.name);
    for call in &told.calls {
        let refused = call.message.as_deref().is_some_and(|message| message.contains("no-deletes"));
        ensure!(
            (call.ok, refused) == (call.tool != DENIED, call.tool == DENIED),
            "{}: {call:?}",
            client.name
        );
    }
    let ran = world.server.executed()?.split_off(executed);
    let of = |call: &weir_tests::Call| (call.tool.clone(), call.nonce.clone());
    let sent: Vec<_> = told.calls.iter().map(of).collect();
    let ran: Vec<_> = ran.into_iter().map(|call| (call.tool, call.nonce)).collect();
    let allowed: Vec<_> = sent.iter().filter(|(tool, _)| tool != DENIED).cloned().collect();
    ensure!(ran == allowed, "{}: the server executed {ran:?}, and the client called {sent:?}", client.name);

    let question = format!(
        "SELECT * FROM calls WHERE mcp_method_name = 'tools/call' AND position(arguments, '\"{}-') > 0 \
         AND result != 'open' ORDER BY seq",
        client.name
    );
    let rows = world.sql_until(sent.len(), &question)?;
    ensure!(rows.len() == sent.len(), "{}: {rows:?}", client.name);
    let mut ids = Vec::new();
    for (row, call) in rows.iter().zip(&told.calls) {
        let text = |column: &str| row[column].as_str().unwrap_or_default();
        let arguments: Value = serde_json::from_str(text("arguments"))?;
        ensure!(arguments["arguments"]["nonce"] == call.nonce.as_str(), "{row}");
        let (action, end) = if call.tool == DENIED { ("deny", "refused") } else { ("allow", "ok") };
        ensure!(text("gen_ai_tool_name") == call.tool && text("result") == end, "{row}");
        ensure!(text("policy_action") == action && text("server_proof") == proof, "{row}");
        ensure!(text("mcp_protocol_version") == client.revision, "{}: {row}", client.name);
        ids.push(text("jsonrpc_request_id").to_owned());
        if call.tool == DENIED {
            continue;
        }
        let result: Value = serde_json::from_str(text("result_payload"))?;
        ensure!(result["content"][0]["text"].as_str() == call.text.as_deref(), "{row}");
        // Nothing in them is a secret, so what is kept is all there was, to the byte.
        for part in ["arguments", "result"] {
            let kept = if part == "result" { text("result_payload") } else { text(part) };
            let bytes = number(row, &format!("{part}_bytes"));
            ensure!(bytes == Some(kept.len() as u64), "{part} of {row}");
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == sent.len() && !ids.contains(&String::new()), "{}: ids {ids:?}", client.name);
    Ok(())
}

/// The versions of HTTP that a client's calls were recorded with.
fn versions(world: &World, client: &Client) -> Result<Vec<Value>> {
    let question = format!(
        "SELECT DISTINCT network_protocol_version AS version FROM events WHERE kind = 'intent' AND \
         position(payload, '\"{}-') > 0",
        client.name
    );
    Ok(world.sql(&question)?.into_iter().map(|mut row| row["version"].take()).collect())
}

fn each_gets_through(scheme: Scheme, host: &str, proof: &str) -> Result<()> {
    let world = World::start(&WorldPlan { scheme, rules: ANYWHERE.into(), ..WorldPlan::default() })?;
    for client in Client::all(&world)? {
        all_agree(&world, &client, host, proof)?;
    }
    if scheme == Scheme::Https {
        for client in Client::of_http2(&world) {
            all_agree(&world, &client, host, proof)?;
            let versions = versions(&world, &client)?;
            ensure!(versions == [json!("2")], "{}: {versions:?}", client.name);
        }
    }
    Ok(())
}

#[test]
fn each_sdk_gets_through_over_tls_in_each_revision() -> Result<()> {
    each_gets_through(Scheme::Https, "localhost", "certificate")
}

#[test]
fn each_sdk_gets_through_in_plain_text_in_each_revision() -> Result<()> {
    each_gets_through(Scheme::Http, "127.0.0.1", "unproven")
}

#[test]
fn each_sdk_gets_through_with_the_oldest_transport() -> Result<()> {
    for (scheme, proof) in [(Scheme::Https, "certificate"), (Scheme::Http, "unproven")] {
        let world = World::start(&WorldPlan {
            scheme,
            legacy_sse: true,
            rules: ANYWHERE.into(),
            ..WorldPlan::default()
        })?;
        for client in Client::legacy(&world) {
            all_agree(
                &world,
                &client,
                if scheme == Scheme::Https { "localhost" } else { "127.0.0.1" },
                proof,
            )?;
        }
    }
    Ok(())
}

/// How curl is told to speak, to a server of which SDK, and the version of HTTP that it says it spoke.
const CURLS: [(Scheme, Sdk, &[&str], &str); 7] = [
    (Scheme::Https, Sdk::Python2, &["--http1.1"], "1.1"),
    // The server speaks no other, and so Weir offers no other.
    (Scheme::Https, Sdk::Python2, &["--http2"], "1.1"),
    (Scheme::Https, Sdk::Rust, &["--http1.1"], "1.1"),
    (Scheme::Https, Sdk::Rust, &["--http2"], "2"),
    (Scheme::Http, Sdk::Rust, &["--http1.1"], "1.1"),
    (Scheme::Http, Sdk::Rust, &["--http2-prior-knowledge"], "2"),
    // With an offer to go on in HTTP/2, which nobody has to take.
    (Scheme::Http, Sdk::Rust, &["--http2"], "1.1"),
];

#[test]
fn curl_gets_through_in_each_version_of_http() -> Result<()> {
    let ports = free_ports(u16::try_from(CURLS.len())?)?;
    let world = World::start(&WorldPlan { more_ports: ports.clone().collect(), ..WorldPlan::default() })?;
    for ((scheme, sdk, options, version), port) in CURLS.into_iter().zip(ports) {
        let server = SdkServer::start(&world, sdk, scheme, port)?;
        curl(&world, &server.url("localhost"), port, options, version)
            .with_context(|| format!("curl {options:?}, {scheme:?}, {}", sdk.name()))?;
    }
    Ok(())
}

/// One call of the stateless revision, which needs no session.
fn curl(world: &World, url: &str, port: u16, options: &[&str], version: &str) -> Result<()> {
    let params = json!({"name": "test_simple_text", "arguments": {}, "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "cürl", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {}}});
    let id = format!("curl-{port}");
    let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).to_string();
    let mut command: Vec<OsString> =
        ["curl", "--silent", "--show-error", "--max-time", "30"].map(Into::into).into();
    command.extend(options.iter().map(OsString::from));
    for header in [
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        "MCP-Protocol-Version: 2026-07-28",
        "Mcp-Method: tools/call",
        "Mcp-Name: test_simple_text",
    ] {
        command.extend(["--header", header].map(OsString::from));
    }
    let told = "\n%{http_version} %{response_code} %{size_upload} %{size_download}";
    command.extend(["--data-binary", &call, "--write-out", told, url].map(OsString::from));
    let mut job = world.job().command(&command)?;
    let exit = job.wait(CLIENT_DEADLINE)?;
    let said = job.stdout()?;
    ensure!(exit.success(), "{said}{}", job.stderr()?);
    let (body, told) = said.rsplit_once('\n').context("nothing said")?;
    ensure!(told == format!("{version} 200 {} {}", call.len(), body.len()), "{said}");
    let data = body.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap_or(body);
    let answer: Value = serde_json::from_str(data)?;
    let text = "This is a simple text response for testing.";
    ensure!(answer["id"] == id.as_str() && answer["result"]["content"][0]["text"] == text, "{said}");

    let question =
        format!("SELECT * FROM calls WHERE jsonrpc_request_id = '{}' AND result = 'ok'", json!(id));
    let row = world.sql_until(1, &question)?.remove(0);
    let recorded: Value = serde_json::from_str(row["arguments"].as_str().context("no arguments")?)?;
    ensure!(recorded == params && row["gen_ai_tool_name"] == "test_simple_text", "{row}");
    ensure!(row["mcp_protocol_version"] == "2026-07-28" && row["server_port"] == port, "{row}");
    ensure!(number(&row, "arguments_bytes") == Some(params.to_string().len() as u64), "{row}");
    let result: Value = serde_json::from_str(row["result_payload"].as_str().context("no result")?)?;
    ensure!(result == answer["result"], "{row}");
    let flow_id = row["flow_id"].as_str().context("no flow")?;
    let flow = world.sql_until(1, &format!("SELECT * FROM flows WHERE flow_id = '{flow_id}'"))?.remove(0);
    let intents = format!(
        "SELECT network_protocol_version FROM events WHERE kind = 'intent' AND flow_id = '{flow_id}'"
    );
    ensure!(world.sql(&intents)?[0]["network_protocol_version"] == version, "{row}");
    // Heads and frames come on top.
    ensure!(number(&flow, "bytes_up") > Some(call.len() as u64), "{flow}");
    ensure!(number(&flow, "bytes_down") > Some(body.len() as u64), "{flow}");
    ensure!(flow["flow_treatment"] == "terminated" && flow["flow_end"] == "closed", "{flow}");
    Ok(())
}

/// ClickHouse may quote 64-bit integers in JSON.
fn number(row: &Value, column: &str) -> Option<u64> {
    row[column].as_u64().or_else(|| row[column].as_str()?.parse().ok())
}
