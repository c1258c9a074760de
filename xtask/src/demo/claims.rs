//! The demo's claims, each checked against what the clients, the server, the kernel and the store say.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use weir_tests::{Call, ClientKind, Conversation, World};

use super::job::{JUSTIFICATION, Run, TICKET};

/// Secrets of the kinds that the job's calls carry, as ClickHouse's and our own search take them.
const SECRETS: [(&str, &str); 2] =
    [("an AWS key id", "AKIA[A-Z2-7]{16}"), ("a GitHub token", "ghp_[A-Za-z0-9]{36}")];

/// Checks each claim and prints it with what came of it. Gives how many did not hold.
pub fn check(world: &World, before: &Run, after: &Run) -> Result<usize> {
    let claims: [(&str, Result<String>); 11] = [
        (
            "the clients saw Weir's certificate, and without Weir the server's own",
            issuers(world, before, after),
        ),
        ("each call gave what it gives without Weir, but for the one refused", same_results(before, after)),
        ("the server executed the same calls, but for the one refused", executed(before, after)),
        ("each connect of the clients was redirected by the kernel, and no other", connects(before, after)),
        ("a refused call is a JSON-RPC error, and its session lives on", refusal(after)),
        ("a streamed response stays a stream", stream(before, after)),
        ("a held call waits with its client kept alive, until a human signs", hold(after)),
        ("the record says who approved, when and why", approval(world)),
        ("the record ties each call to its process, cgroup and job", attribution(world, after)),
        ("no secret is in the record, on disk or in the store", masking(world, after)),
        ("the record is proven by its own bytes, and one that is changed shows", proof(world)),
    ];
    let mut broken = 0;
    for (claim, outcome) in claims {
        match outcome {
            Ok(seen) => println!("   ok      {claim}\n           {seen}"),
            Err(why) => {
                broken += 1;
                println!("   FAILED  {claim}\n           {why:#}");
            }
        }
    }
    Ok(broken)
}

fn issuers(world: &World, before: &Run, after: &Run) -> Result<String> {
    let ours = world.agent.status()?.ca.common_name().to_owned();
    let seen = |run: &Run| run.told.iter().filter_map(|told| told.issuer.clone()).collect::<BTreeSet<_>>();
    let (was, is) = (seen(before), seen(after));
    ensure!(is == BTreeSet::from([ours.clone()]), "they saw {is:?}, and Weir's issuer is {ours:?}");
    ensure!(!was.contains(&ours) && was.len() == 1, "without Weir they saw {was:?}");
    Ok(format!("{ours}; without Weir: {}", Vec::from_iter(was).join(", ")))
}

fn same_results(before: &Run, after: &Run) -> Result<String> {
    let results = |told: &Conversation| -> Vec<(String, bool, Option<String>)> {
        let kept = told.calls.iter().filter(|call| call.tool != "delete_repo");
        kept.map(|call| (call.tool.clone(), call.ok, call.text.clone())).collect()
    };
    for (was, is) in before.told.iter().zip(&after.told) {
        ensure!(results(was) == results(is), "without Weir {:?}, with it {:?}", was.calls, is.calls);
        ensure!(was.calls.iter().all(|call| call.ok), "without Weir a call failed: {:?}", was.calls);
    }
    Ok(format!("{} calls compared", after.told.iter().map(|told| results(told).len()).sum::<usize>()))
}

fn nonces(run: &Run, which: impl Fn(&Call) -> bool) -> BTreeSet<String> {
    let calls = run.told.iter().flat_map(|told| &told.calls);
    calls.filter(|call| which(call)).map(|call| call.nonce.clone()).collect()
}

fn executed(before: &Run, after: &Run) -> Result<String> {
    let (all, allowed) = (nonces(before, |_| true), nonces(after, |call| call.tool != "delete_repo"));
    ensure!(before.executed == all, "without Weir it executed {:?} of {all:?}", before.executed);
    ensure!(after.executed == allowed, "it executed {:?}, and {allowed:?} were to pass", after.executed);
    Ok(format!("{} without Weir, {} with it, by the server's own log", all.len(), allowed.len()))
}

fn connects(before: &Run, after: &Run) -> Result<String> {
    let made = after.told.iter().filter_map(|told| told.tcp_connects).sum::<u64>();
    ensure!(
        before.redirected == 0,
        "{} connects outside the watched cgroup were redirected",
        before.redirected
    );
    ensure!(
        made > 0 && after.redirected == made,
        "{} redirected, and the clients made {made}",
        after.redirected
    );
    Ok(format!("{} redirected, {made} made", after.redirected))
}

fn refusal(after: &Run) -> Result<String> {
    for told in &after.told {
        let at = told
            .calls
            .iter()
            .position(|call| call.tool == "delete_repo")
            .context("no call of delete_repo")?;
        let (refused, next) =
            (&told.calls[at], told.calls.get(at + 1).context("nothing was called afterwards")?);
        ensure!(!refused.ok && refused.code.is_some(), "not a JSON-RPC error: {refused:?}");
        ensure!(next.ok, "the call after it failed: {next:?}");
    }
    let refused = after.told[0].first("delete_repo")?;
    Ok(format!("{}: {}", refused.code.unwrap_or_default(), refused.message.clone().unwrap_or_default()))
}

fn stream(before: &Run, after: &Run) -> Result<String> {
    for (was, is) in before.told.iter().zip(&after.told) {
        let (was, is) = (was.first("count")?, is.first("count")?);
        ensure!(
            is.ok && is.progress > 0 && is.progress == was.progress,
            "without Weir {was:?}, with it {is:?}"
        );
        ensure!(is.waited_with_headers().as_millis() > 100, "its events came all at once: {is:?}");
    }
    Ok(format!("{} progress events to each client, one by one", after.told[0].first("count")?.progress))
}

fn hold(after: &Run) -> Result<String> {
    ensure!(after.held.len() == ClientKind::BOTH.len(), "{} calls were held", after.held.len());
    for told in &after.told {
        let call = told.first("deploy")?;
        ensure!(call.ok && call.waited_with_headers().as_secs() >= 2, "its headers came late: {call:?}");
    }
    let kept_alive = after.told[0].first("deploy")?;
    ensure!(kept_alive.arrivals >= 2, "no keep-alives were seen: {kept_alive:?}");
    Ok(format!(
        "answered after {:.1} s, headers after {:.1} s; bytes came in {} times meanwhile",
        kept_alive.took().as_secs_f64(),
        (kept_alive.took() - kept_alive.waited_with_headers()).as_secs_f64(),
        kept_alive.arrivals
    ))
}

fn approval(world: &World) -> Result<String> {
    let question = format!(
        "SELECT count() FROM calls WHERE gen_ai_tool_name = 'deploy' AND decision = 'approved' AND approver = '{}' \
         AND justification = '{JUSTIFICATION}' AND ticket = '{TICKET}' AND signed_at IS NOT NULL AND approver_key != ''",
        world.approver.principal
    );
    let approved = world.number(&question)?;
    ensure!(approved == 2, "{approved} calls are recorded as approved");
    let row = world.sql(
        "SELECT toString(signed_at) AS at, approver_key FROM calls WHERE decision = 'approved' LIMIT 1",
    )?;
    let (at, key) =
        (row[0]["at"].as_str().unwrap_or_default(), row[0]["approver_key"].as_str().unwrap_or_default());
    Ok(format!("{} at {at}, {JUSTIFICATION:?} ({TICKET}), key {key}", world.approver.principal))
}

fn attribution(world: &World, after: &Run) -> Result<String> {
    for (kind, told) in ClientKind::BOTH.iter().zip(&after.told) {
        let pid = told.pid.context("the client did not tell its pid")?;
        let executable = match kind {
            ClientKind::TypeScript => world.setup.node().canonicalize()?,
            ClientKind::Python => world.setup.python().canonicalize()?,
        };
        for call in &told.calls {
            let question = format!(
                "SELECT count() FROM calls WHERE mcp_method_name = 'tools/call' AND gen_ai_tool_name = '{}' \
                 AND position(arguments, '{}') > 0 AND process_pid = {pid} AND process_executable_path = '{}' \
                 AND endsWith(process_linux_cgroup, '/job') AND vcs_repository_name = 'example/payments' \
                 AND cicd_pipeline_run_id = '7312905518' AND cicd_pipeline_task_name = 'deploy' AND duration_us IS NOT NULL \
                 AND result = '{}'",
                call.tool,
                call.nonce,
                executable.display(),
                if call.tool == "delete_repo" { "refused" } else { "ok" },
            );
            let rows = world.number(&question)?;
            ensure!(rows == 1, "{rows} records match the call {call:?}");
        }
    }
    let outside = world.number("SELECT count() FROM events WHERE position(payload, 'plain-') > 0")?;
    ensure!(outside == 0, "{outside} events of the job outside are in the record");
    let gaps = world.number("SELECT count() FROM gaps")?;
    ensure!(gaps == 0, "the record has {gaps} gaps");
    Ok("one record for each call, none for the run without Weir, no gap in the sequence".into())
}

fn masking(world: &World, after: &Run) -> Result<String> {
    let config = after.told[0].first("read_config")?.text.clone().context("read_config gave no text")?;
    ensure!(
        config.contains("aws_access_key_id=AKIA"),
        "the client got no secret, so there was nothing to mask"
    );
    for (what, pattern) in SECRETS {
        for (table, column) in [("events", "canonical"), ("holds", "hold"), ("decisions", "statement")] {
            let found =
                world.number(&format!("SELECT count() FROM {table} WHERE match({column}, '{pattern}')"))?;
            ensure!(found == 0, "{what} is in {found} rows of {table}");
        }
        let prefix = pattern.split_once('[').map_or(pattern, |(prefix, _)| prefix);
        let on_disk = files_with(&world.agent.state().join("spool"), prefix.as_bytes())?;
        ensure!(on_disk.is_empty(), "{what} is in the spool: {on_disk:?}");
    }
    let masked = world.number("SELECT count() FROM calls WHERE gen_ai_tool_name = 'read_config' AND notEmpty(result_masked_detectors)")?;
    ensure!(masked == 2, "{masked} results are recorded with something masked");
    let arguments = world.number("SELECT count() FROM calls WHERE gen_ai_tool_name = 'deploy' AND notEmpty(arguments_masked_detectors)")?;
    ensure!(arguments == 2, "{arguments} calls are recorded with something masked in their arguments");
    Ok(format!("{masked} results and {arguments} calls with masked spans; the clients got them in clear"))
}

/// Verifies the store and an export of it; then the export with one call's nonce changed.
fn proof(world: &World) -> Result<String> {
    let folder = world.folder();
    let [trust, export] =
        ["trust.json", "records.tar"].map(|name| folder.join(name).to_string_lossy().into_owned());
    std::fs::write(&trust, world.collector.run(&["trust"])?)?;
    world.collector.run(&["verify", "--trust", &trust])?;
    world.collector.run(&["export", "--output", &export])?;
    let verified = world.collector.run(&["verify", "--trust", &trust, "--export", &export])?;
    let mut bytes = std::fs::read(&export)?;
    let nonce = b"weir-typescript-0";
    let at = bytes
        .windows(nonce.len())
        .position(|window| window == nonce)
        .context("the export lacks the first call")?;
    bytes[at] ^= 0x20;
    std::fs::write(&export, bytes)?;
    let output = world.collector.attempt(&["verify", "--trust", &trust, "--export", &export])?;
    let told = String::from_utf8_lossy(&output.stdout);
    let found =
        told.lines().find(|line| line.contains("altered")).context("a changed letter was not found")?;
    ensure!(output.status.code() == Some(1), "{told}");
    Ok(format!(
        "{}\n           one letter changed: {}",
        verified.trim().lines().last().unwrap_or_default(),
        found.trim()
    ))
}

/// The files below a folder that hold the bytes.
fn files_with(folder: &Path, wanted: &[u8]) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_with(&path, wanted)?);
        } else if path.is_file() && std::fs::read(&path)?.windows(wanted.len()).any(|window| window == wanted)
        {
            found.push(path);
        }
    }
    Ok(found)
}
