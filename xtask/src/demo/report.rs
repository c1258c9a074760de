//! What the demo prints of its parts, of the job's two runs, and of the record.

use anyhow::Result;
use serde_json::Value;
use weir_tests::{Call, ClientKind, World};

use super::job::Run;

/// What is asked of ClickHouse.
const QUESTION: &str = "SELECT
    formatDateTime(time, '%H:%i:%S') AS at,
    concat(vcs_repository_name, ' / ', cicd_pipeline_name, ' / ', cicd_pipeline_task_name, ' run ', cicd_pipeline_run_id) AS job,
    concat(process_comm, ' pid ', toString(process_pid)) AS process,
    process_executable_path AS executable,
    process_linux_cgroup AS cgroup,
    concat(server_name, ':', toString(server_port)) AS server,
    mcp_method_name AS method,
    gen_ai_tool_name AS tool,
    multiIf(decision != '', concat(decision, ' by ', approver), policy_rule != '', concat(policy_action, ' by ', policy_rule), policy_action) AS decision,
    if(mcp_method_name = 'tools/call', JSONExtractRaw(arguments, 'arguments'), '') AS masked_arguments,
    round(duration_us / 1000, 1) AS ms
FROM calls ORDER BY time, seq";

/// What came back with a secret in it.
const SECRET_RESULT: &str = "SELECT JSONExtractString(result_payload, 'content', 1, 'text') AS text FROM calls WHERE gen_ai_tool_name = 'read_config' LIMIT 1";

/// The processes, and where they listen.
pub fn parts(world: &mut World) -> Result<()> {
    for daemon in world.daemons() {
        println!("   {:<15} pid {:<8} log {}", daemon.name(), daemon.pid(), daemon.log_path().display());
    }
    println!("   watched cgroup  {}", world.selected.path().display());
    println!("   MCP server      {}", world.server.url("localhost"));
    Ok(())
}

/// What the two runs differ in.
pub fn environment(world: &World) {
    let (was, is) = (world.server.trust(), world.agent.trust());
    println!("\n   The same files, the same URL. What differs in the job's environment:");
    for (n, (name, file)) in is.variables().iter().enumerate() {
        let before = was.as_ref().map_or_else(String::new, |was| was.variables()[n].1.display().to_string());
        println!("      {name:<19} {before} -> {}", file.display());
    }
}

/// Each call, as its client saw it.
pub fn calls(before: &Run, after: &Run) {
    println!("\n   {:<12} {:<12} {:<26} through Weir", "client", "tool", "as ever");
    for (n, kind) in ClientKind::BOTH.iter().enumerate() {
        for (was, is) in before.told[n].calls.iter().zip(&after.told[n].calls) {
            println!("   {:<12} {:<12} {:<26} {}", kind.name(), is.tool, outcome(was), outcome(is));
        }
    }
}

fn outcome(call: &Call) -> String {
    let streamed =
        if call.progress > 0 { format!(", {} progress events", call.progress) } else { String::new() };
    match (call.ok, call.code) {
        (true, _) => format!("ok in {} ms{streamed}", call.ms),
        (false, Some(code)) => format!("error {code}: {}", call.message.as_deref().unwrap_or_default()),
        (false, None) => format!("failed: {}", call.message.as_deref().unwrap_or_default()),
    }
}

/// The record, process by process.
pub fn record(world: &World) -> Result<()> {
    for line in QUESTION.lines() {
        println!("   {line}");
    }
    let mut of = String::new();
    for row in world.sql(QUESTION)? {
        let text = |column: &str| match &row[column] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let who = format!(
            "   job         {}\n   process     {}\n   executable  {}\n   cgroup      {}\n   server      {}",
            text("job"),
            text("process"),
            text("executable"),
            text("cgroup"),
            text("server")
        );
        if who != of {
            println!("\n{who}\n");
            println!(
                "   {:<8} {:>9}  {:<26} {:<12} {:<31} masked arguments",
                "time", "ms", "method", "tool", "decision"
            );
            of = who;
        }
        println!(
            "   {:<8} {:>8}  {:<25} {:<11} {:<30} {}",
            text("at"),
            text("ms"),
            text("method"),
            text("tool"),
            text("decision"),
            text("masked_arguments"),
        );
    }
    println!("\n   The result that carried secrets to the client, as it is recorded:\n");
    for row in world.sql(SECRET_RESULT)? {
        for line in row["text"].as_str().unwrap_or_default().lines() {
            println!("      {line}");
        }
    }
    Ok(())
}

/// How to look further.
pub fn further() {
    println!(
        "\nLook further: `cargo xtask demo --keep` leaves all of it running and says how to talk to it."
    );
}
