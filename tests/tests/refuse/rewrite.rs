//! What a rule masks on its way neither server nor client reads, and the SDKs take what they get for what the tool promised.
//! Denied tools are not listed, where the operator wants that.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::raw::Request;
use weir_tests::world::RULES;
use weir_tests::{ClientKind, World, WorldPlan};

const MASKED: &str = r#"
[[rule]]
id = "configurations"
when = { tool = "read_config" }
action = "allow"
mask = "results"

[[rule]]
id = "echoes"
when = { tool = "echo" }
action = "allow"
mask = "arguments"

[policy]
hide_denied_tools = true
"#;

/// A token that nobody has, put together here so that no scanner takes it for a real one.
fn token() -> String {
    ["gh", "p_", "w2Xq8RkV5nTz1YbM7cLs4HdJf9GaPe0UoKi3"].concat()
}

fn world() -> Result<World> {
    World::start(&WorldPlan { rules: format!("{RULES}{MASKED}"), ..WorldPlan::default() })
}

#[test]
fn what_is_masked_on_its_way_the_other_side_never_reads() -> Result<()> {
    let world = world()?;
    let arguments = json!({"text": format!("use {} now", token())}).to_string();
    let mut stand_ins = Vec::new();
    for kind in ClientKind::BOTH {
        let options =
            ["--calls", "read_config,echo,count", "--arguments", &arguments, "--nonce", kind.name()];
        let told = world.converse(kind, "localhost", &options)?;
        let text = told.first("read_config")?.text.clone().context("no text")?;
        ensure!(told.first("read_config")?.ok && text.contains("region=eu-central-1"), "{told:?}");
        ensure!(
            text.contains("[masked:aws-access-key:p0:") && text.contains("[masked:github-token:p0:"),
            "{text}"
        );
        ensure!(!text.contains("AKIA"), "{text}");
        // What the server was given is what it gives back.
        let echoed = told.first("echo")?.text.clone().context("no text")?;
        ensure!(echoed.starts_with("use [masked:github-token:p0:") && echoed.ends_with("] now"), "{echoed}");
        ensure!(told.first("count")?.progress == 5, "what no rule masks is as it was: {told:?}");
        stand_ins.push((text, echoed));
    }
    ensure!(stand_ins[0] == stand_ins[1], "the same secrets have the same stand-ins: {stand_ins:?}");
    let executed = world.server.executed()?;
    ensure!(!executed.iter().any(|call| call.arguments.to_string().contains(&token())), "{executed:?}");
    let told = world.sql_until(
        4,
        "SELECT message_direction AS way FROM events WHERE message_label = 'rewritten' AND call_id != '' \
         AND position(payload, '\"masked\":[]') = 0",
    )?;
    for way in ["client_to_server", "server_to_client"] {
        ensure!(told.iter().filter(|row| row["way"] == way).count() == 2, "{told:?}");
    }
    Ok(())
}

#[test]
fn denied_tools_are_not_listed_and_the_rest_of_the_list_is_as_the_server_gives_it() -> Result<()> {
    let world = world()?;
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    let answers = world.raw_session("localhost", &[Request::mcp(list)])?;
    let tools = answers[0].response()?.json()?["result"]["tools"].clone();
    let names: Vec<&str> =
        tools.as_array().context("no tools")?.iter().filter_map(|tool| tool["name"].as_str()).collect();
    ensure!(names == ["echo", "read_config", "count", "announce", "deploy"], "{names:?}");
    ensure!(tools[0]["inputSchema"]["properties"]["text"]["type"] == "string", "{tools}");
    let told = world.sql_until(1, "SELECT payload FROM events WHERE message_label = 'rewritten'")?;
    let payload: Value = serde_json::from_str(told[0]["payload"].as_str().context("no payload")?)?;
    ensure!(payload["hidden_tools"] == json!(["delete_repo"]), "{payload}");
    Ok(())
}
