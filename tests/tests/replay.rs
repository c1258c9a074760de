//! A run of real clients, with sessions and without, is bundled as the agent recorded it, and played against a sandbox of
//! which one tool has changed. (`collector/tests/store/bundle.rs` has what is refused.)

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::places::binary;
use weir_tests::{ClientKind, McpServer, Scheme, World, WorldPlan};

/// A GitHub token that nobody has.
fn secret() -> String {
    "gh".to_owned() + "p_" + "w2Xq8RkV5nTz1YbM7cLs4HdJf9GaPe0UoKi3"
}

/// The run of each job of these tests.
const RUN: &str = "7312905518";

/// `weir-collector ARGUMENTS...` without a configuration: neither a check nor a replay needs a store.
fn collector(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("weir-collector")?);
    command.args(["--config", "/nonexistent"]).args(arguments);
    command.output().context("weir-collector")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn lines(output: &Output) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(&output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The columns of each call of a tool.
fn of_tools(played: &[Value], names: &[&str]) -> Vec<Value> {
    let calls = played.iter().filter(|one| !one["tool"].is_null());
    calls.map(|one| names.iter().map(|name| one[*name].clone()).collect()).collect()
}

/// The rules of the agent's own file, under the digest by which it decided; the store's SHA-256 says that they have it.
fn the_policy_that_decided_is_in_it(world: &World, story: &Value) -> Result<()> {
    let calls = story["calls"].as_array().context("calls")?;
    let digest = calls.first().and_then(|call| call["policy"].as_str()).context("a policy")?;
    ensure!(calls.iter().all(|call| call["policy"] == digest), "{calls:?}");
    let policies = story["policies"].as_object().context("policies")?;
    let policy = &story["policies"][digest];
    ensure!(
        policies.len() == 1 && policy["rules_are"] == "whole" && policy["digest"] == digest,
        "{policies:?}"
    );
    let rules: Value = serde_json::from_str(policy["rules"].as_str().context("rules")?)?;
    let ids: Vec<_> = rules["rules"].as_array().into_iter().flatten().map(|rule| &rule["id"]).collect();
    ensure!(ids == ["no-deletes", "deploys-need-a-human"] && rules["default_action"] == "allow", "{rules}");
    ensure!(
        rules["rules"][0]["when"]["tool"] == "delete_*" && rules["rules"][0]["action"] == "deny",
        "{rules}"
    );
    let stored = world.sql(
        "SELECT policy_digest, lower(hex(SHA256(event_detail['rules']))) AS computed, event_detail['rules'] AS rules FROM policies",
    )?;
    let [stored] = &stored[..] else { anyhow::bail!("not one policy: {stored:?}") };
    ensure!(stored["policy_digest"] == digest && stored["computed"] == digest, "{stored}");
    ensure!(stored["rules"] == policy["rules"], "{stored}");
    Ok(())
}

#[test]
fn a_run_is_played_again_and_what_has_changed_shows() -> Result<()> {
    let world = World::start(&WorldPlan { kind: "replay", ..WorldPlan::default() })?;
    // One client with a session, one of the revision without.
    for kind in ClientKind::BOTH {
        let told = world.converse(kind, "localhost", &["--calls", "echo,delete_repo,read_config"])?;
        ensure!(told.calls.len() == 3, "{told:?}");
    }
    let masked = json!({ "text": secret() }).to_string();
    let told =
        world.converse(ClientKind::TypeScript, "localhost", &["--calls", "echo", "--arguments", &masked])?;
    ensure!(told.calls.iter().all(|call| call.ok), "{told:?}");
    world.until_shipped()?;

    let file = world.folder().join("run.tar.zst");
    let bundle = file.to_str().context("a path")?;
    let written = world.collector.run(&["bundle", "--run", RUN, "-o", bundle, "--json"])?;
    let written: Value = serde_json::from_str(&written)?;
    ensure!(written["check"]["whole"] == true && written["check"]["unsigned"] == 0, "{written}");
    ensure!(
        world.collector.attempt(&["bundle", "--run", RUN, "-o", bundle])?.status.code() == Some(1),
        "not over it"
    );
    let checked = collector(&["bundle", "--check", bundle, "--json"])?;
    ensure!(code(&checked) == Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    let checked = lines(&checked)?.remove(0);
    let story = &checked["story"];
    let names: Vec<&str> =
        story["tools"].as_array().context("tools")?.iter().filter_map(|tool| tool["name"].as_str()).collect();
    ensure!(names.contains(&"echo") && story["tools"][0]["definition"].is_object(), "{names:?}");
    let called = |tool: &str| {
        story["calls"].as_array().into_iter().flatten().filter(|call| call["tool"] == tool).count()
    };
    ensure!((called("echo"), called("delete_repo"), called("read_config")) == (3, 2, 2), "{story}");
    ensure!(story["callers"][0]["job"] == "deploy" && story["servers"][0]["name"] == "localhost", "{story}");
    the_policy_that_decided_is_in_it(&world, story)?;
    ensure!(!checked.to_string().contains(&secret()), "a secret is in the bundle");
    ensure!(
        checked["checkpoints"][0].as_str().is_some_and(|note| note.contains("\n\n\u{2014} ")),
        "{checked}"
    );

    // The server of the record, by any name.
    let before = world.server.executed()?.len();
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let output = collector(&["replay", bundle, "--against", &world.server.url(host)])?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(code(&output) == Some(1) && told.contains("a replay goes to a sandbox"), "{told}");
    }
    ensure!(world.server.executed()?.len() == before, "nothing was sent there");

    // A sandbox in which one tool answers something else.
    let place = world.folder().join("sandbox");
    let sandbox =
        McpServer::start_with(&world.setup, &place, Scheme::Http, &["localhost"], false, &["--changed"])?;
    let url = sandbox.url("127.0.0.1");
    let dry = collector(&["replay", bundle, "--against", &url, "--dry-run", "--json"])?;
    ensure!(code(&dry) == Some(0) && sandbox.executed()?.is_empty(), "nothing is sent in a dry run");
    let output = collector(&["replay", bundle, "--against", &url, "--json"])?;
    let played = lines(&output)?;
    ensure!(code(&output) == Some(1), "some are different: {played:?}");
    let outcome = of_tools(&played, &["tool", "outcome", "inexact"]);
    let both = [
        json!(["echo", "same", []]),
        json!(["delete_repo", "refused", []]),
        json!(["read_config", "different", ["masked answer"]]),
    ];
    ensure!(outcome[..6] == [both.clone(), both].concat(), "{played:?}");
    ensure!(outcome[6..] == [json!(["echo", "same", ["masked arguments"]])], "{:?}", &outcome[6..]);
    let read = played.iter().find(|one| one["tool"] == "read_config").context("a call")?;
    let told = read["differences"].to_string();
    ensure!(told.contains("/content/0/text") && told.contains("moved"), "{told}");
    ensure!(played.iter().any(|one| one["method"] == "tools/list" && one["outcome"] == "same"), "{played:?}");
    ensure!(
        sandbox.executed()?.iter().all(|call| call.tool != "delete_repo"),
        "what was refused is not played"
    );

    // With the value bound, the sandbox gets it, and nobody sees it.
    let story_calls = played.len();
    let value = world.folder().join("value");
    std::fs::write(&value, secret() + "\n")?;
    let arguments = world.sql(
        "SELECT masked_pseudonyms[1] AS p FROM events WHERE kind = 'intent' AND gen_ai_tool_name = 'echo' AND notEmpty(payload_pseudonyms)"
    )?;
    let pseudonym = arguments.first().and_then(|row| row["p"].as_str()).context("a pseudonym")?.to_owned();
    let binding = format!("{pseudonym}=@{}", value.display());
    let output = collector(&["replay", bundle, "--against", &url, "--json", "--bind", &binding])?;
    let played = lines(&output)?;
    let last = of_tools(&played, &["tool", "outcome", "inexact"]).pop();
    ensure!(played.len() == story_calls && last == Some(json!(["echo", "same", []])), "{played:?}");
    let told = [output.stdout, output.stderr].concat();
    ensure!(!String::from_utf8_lossy(&told).contains(&secret()), "a bound value was shown");
    ensure!(
        sandbox.executed()?.last().is_some_and(|call| call.arguments["text"] == secret()),
        "it got the value"
    );

    Ok(())
}
