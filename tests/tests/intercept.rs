//! Unmodified clients are intercepted, by name and by address, over TLS and in plain text: each call goes through and is
//! tied to the process, cgroup and job that made it. Where interception must not happen, it fails in the open.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use weir_tests::job::GITHUB;
use weir_tests::machine::JOB_UID;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, Scheme, World, WorldPlan};

const CALLS: &str = "echo,count,echo";

/// One client's calls by one host name: what the client, the kernel, the server and the record say of them.
fn all_agree(world: &World, kind: ClientKind, host: &str, addresses: &[&str], name: &str) -> Result<()> {
    let nonce = format!("{}-{}", kind.name(), host.trim_matches(['[', ']']).replace([':', '.'], "-"));
    let (redirected, executed) = (world.agent.status()?.connects.redirected, world.server.executed()?.len());
    let told = world.converse(kind, host, &["--calls", CALLS, "--nonce", &nonce])?;
    ensure!(told.calls.len() == 3 && told.calls.iter().all(|call| call.ok), "{kind:?} by {host}: {told:?}");
    ensure!(told.first("count")?.progress == 5, "{told:?}");

    let made = told.tcp_connects.context("it did not tell its connects")?;
    let counted = world.agent.status()?.connects.redirected - redirected;
    ensure!(made > 0 && counted == made, "{kind:?} by {host}: {counted} redirected, {made} made");
    let ran: Vec<_> = world.server.executed()?.drain(executed..).map(|call| call.nonce).collect();
    let sent: Vec<_> = told.calls.iter().map(|call| call.nonce.clone()).collect();
    ensure!(ran == sent, "the server executed {ran:?}, and the client called {sent:?}");

    let question = format!(
        "SELECT * FROM calls WHERE gen_ai_tool_name != '' AND position(arguments, '{nonce}-') > 0 \
         AND result != 'open' ORDER BY seq"
    );
    let rows = world.sql_until(3, &question)?;
    ensure!(rows.len() == 3, "{rows:?}");
    for (row, call) in rows.iter().zip(&told.calls) {
        let text = |column: &str| row[column].as_str().unwrap_or_default().to_owned();
        ensure!(text("arguments").contains(&call.nonce) && text("gen_ai_tool_name") == call.tool, "{row}");
        ensure!(
            text("mcp_method_name") == "tools/call"
                && text("policy_action") == "allow"
                && text("result") == "ok",
            "{row}"
        );
        ensure!(row["duration_us"].as_u64().or(text("duration_us").parse().ok()) > Some(0), "{row}");
        ensure!(addresses.contains(&text("server_address").as_str()) && text("server_name") == name, "{row}");
        ensure!(row["server_port"].as_u64() == Some(world.server.port().into()), "{row}");
        caller_is(world, kind, row)?;
        ensure!(told.pid.map(u64::from) == row["process_pid"].as_u64(), "{row}");
    }
    Ok(())
}

/// The record's process, cgroup and job are the client's.
fn caller_is(world: &World, kind: ClientKind, row: &Value) -> Result<()> {
    let text = |column: &str| row[column].as_str().unwrap_or_default();
    let executable = match kind {
        ClientKind::TypeScript => world.setup.node(),
        ClientKind::Python => world.setup.python(),
    };
    let cgroup = world.selected.path().strip_prefix(weir_tests::machine::cgroup2_mount()?)?;
    let variable = |name| GITHUB.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| *value);
    for (column, expected) in [
        ("process_executable_path", executable.canonicalize()?.to_string_lossy().as_ref()),
        ("process_linux_cgroup", &format!("/{}", cgroup.display())),
        ("cicd_provider", "github"),
        ("vcs_repository_name", variable("GITHUB_REPOSITORY")),
        ("cicd_pipeline_name", variable("GITHUB_WORKFLOW")),
        ("cicd_pipeline_run_id", variable("GITHUB_RUN_ID")),
        ("cicd_pipeline_task_name", variable("GITHUB_JOB")),
        ("cicd_actor", variable("GITHUB_ACTOR")),
    ] {
        ensure!(text(column) == expected, "{column} is {:?}, not {expected:?}", text(column));
    }
    ensure!(text("process_command_line").contains("/mcp"), "{row}");
    ensure!(row["process_user_id"] == JOB_UID && row["process_seen_alive"] == true, "{row}");
    ensure!(!row["process_start_ticks"].is_null(), "{row}");
    Ok(())
}

/// The flows that ended in one way, once there are `count` of them.
fn flows(world: &World, end: &str, count: usize) -> Result<Vec<Value>> {
    world.sql_until(count, &format!("SELECT * FROM flows WHERE flow_end = '{end}' ORDER BY seq"))
}

#[test]
fn each_client_is_intercepted_over_tls_by_name_and_by_both_kinds_of_address() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let ours = world.agent.status()?.ca.common_name().to_owned();
    for kind in ClientKind::BOTH {
        for (host, addresses, name) in [
            ("localhost", &["127.0.0.1", "::1"][..], "localhost"),
            ("127.0.0.1", &["127.0.0.1"], "127.0.0.1"),
            ("[::1]", &["::1"], "::1"),
        ] {
            all_agree(&world, kind, host, addresses, name)?;
        }
        let told = world.converse(kind, "localhost", &["--calls", "echo"])?;
        ensure!(
            told.issuer.as_deref() == Some(&ours),
            "{kind:?} was shown a certificate of {:?}",
            told.issuer
        );
    }
    let proofs = world.sql("SELECT DISTINCT server_proof FROM calls")?;
    ensure!(proofs.len() == 1 && proofs[0]["server_proof"] == "certificate", "{proofs:?}");
    let treatments = world.sql("SELECT DISTINCT flow_treatment FROM flows")?;
    ensure!(treatments.len() == 1 && treatments[0]["flow_treatment"] == "terminated", "{treatments:?}");
    Ok(())
}

#[test]
fn each_client_is_intercepted_in_plain_text_and_its_server_counts_as_unproven() -> Result<()> {
    let world = World::start(&WorldPlan { scheme: Scheme::Http, ..WorldPlan::default() })?;
    for kind in ClientKind::BOTH {
        for (host, address) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
            all_agree(&world, kind, host, &[address], address)?;
        }
    }
    // A name that a client writes into its Host header proves nothing, and is not what policy goes by.
    let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo"])?;
    ensure!(told.first("echo")?.ok, "{told:?}");
    let names: BTreeSet<_> = world
        .sql("SELECT DISTINCT server_name, server_proof FROM calls")?
        .iter()
        .map(|row| (row["server_name"].to_string(), row["server_proof"].to_string()))
        .collect();
    let unproven = |name: &str| (format!("{name:?}"), "\"unproven\"".to_owned());
    ensure!(names == BTreeSet::from([unproven("127.0.0.1"), unproven("::1")]), "{names:?}");
    Ok(())
}

#[test]
fn a_client_that_does_not_trust_weir_fails_clearly_and_is_recorded() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    for (kind, failures) in ClientKind::BOTH.into_iter().zip(1..) {
        let plan = world.job_in(&world.selected, world.server.trust());
        let mut job = plan.client(kind, &world.server.url("localhost"), &[])?;
        ensure!(job.wait(CLIENT_DEADLINE)?.code() == Some(1));
        let why = job.told()?.failed.context("it did not say why")?.to_lowercase();
        ensure!(why.contains("certificate"), "{kind:?}: {why}");
        let flows = flows(&world, "client_handshake", failures)?;
        let row = flows.last().context("no flow")?;
        ensure!(
            row["flow_treatment"] == "terminated" && row["tls_client_server_name"] == "localhost",
            "{row}"
        );
        caller_is(&world, kind, row)?;
    }
    ensure!(world.server.executed()?.is_empty());
    ensure!(world.number("SELECT count() FROM calls")? == 0);
    let log = world.agent.daemon().log();
    ensure!(log.contains("do not trust Weir's CA") && log.contains("bundle.pem"), "{log}");
    Ok(())
}

#[test]
fn a_server_that_the_agent_cannot_verify_is_never_called() -> Result<()> {
    let mut world = World::start(&WorldPlan { trusts_server: false, ..WorldPlan::default() })?;
    for (kind, failures) in ClientKind::BOTH.into_iter().zip(1..) {
        let mut job = world.start_client(kind, "localhost", &[])?;
        ensure!(job.wait(CLIENT_DEADLINE)?.code() == Some(1));
        // The one shows the body of an answer, the other its status line.
        let why = job.told()?.failed.context("it did not say why")?;
        let told = if kind == ClientKind::TypeScript { "not trusted" } else { "certificate_unknown_issuer" };
        ensure!(why.contains(told), "{kind:?}: {why}");
        let flows = flows(&world, "upstream_untrusted", failures)?;
        let row = flows.last().context("no flow")?;
        ensure!(row["flow_treatment"] == "refused" && row["server_proof"] == "unproven", "{row}");
        ensure!(row["tls_client_server_name"] == "localhost", "{row}");
        caller_is(&world, kind, row)?;
    }
    ensure!(world.server.executed()?.is_empty());
    ensure!(world.number("SELECT count() FROM calls")? == 0);
    let log = world.agent.daemon().log();
    ensure!(
        log.contains("certificate of localhost is not trusted") && log.contains("upstream.roots"),
        "{log}"
    );
    Ok(())
}

/// Connects, tells its pid, writes a request, and is gone before anybody can have answered.
const HASTY: &str = "
import os, socket, sys
address = sys.argv[1], int(sys.argv[2])
with socket.create_connection(address) as connection:
    print(os.getpid(), flush=True)
    connection.sendall(b'GET /gone HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n')
";

#[test]
fn a_process_that_is_gone_is_recorded_by_what_the_kernel_told_of_it() -> Result<()> {
    let mut world = World::start(&WorldPlan { scheme: Scheme::Http, ..WorldPlan::default() })?;
    // Stopped, the agent accepts nothing; the kernel completes the connection, and the process ends.
    world.agent.daemon().signal(Signal::SIGSTOP)?;
    let command = [
        world.setup.python().into(),
        "-c".into(),
        HASTY.into(),
        "127.0.0.1".into(),
        world.server.port().to_string().into(),
    ];
    let mut job = world.job().command(&command)?;
    let exit = job.wait(CLIENT_DEADLINE)?;
    world.agent.daemon().signal(Signal::SIGCONT)?;
    ensure!(exit.success(), "{}", job.stderr()?);
    let pid: u64 = job.stdout()?.trim().parse()?;
    let rows = world.sql_until(1, "SELECT * FROM flows")?;
    let row = &rows[0];
    ensure!(row["process_seen_alive"] == true && row["process_pid"] == pid, "{row}");
    ensure!(row["process_user_id"] == JOB_UID && row["process_comm"] == "python", "{row}");
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    ensure!(
        !row["process_start_ticks"].is_null() && text("process_executable_path").contains("python"),
        "{row}"
    );
    ensure!(text("process_command_line").ends_with(&format!(" 127.0.0.1 {}", world.server.port())), "{row}");
    ensure!(row["process_ancestor_pids"].as_array().is_some_and(|pids| !pids.is_empty()), "{row}");
    ensure!(row["server_port"] == world.server.port() && row["server_address"] == "127.0.0.1", "{row}");
    Ok(())
}
