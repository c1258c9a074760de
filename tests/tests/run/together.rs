//! Runs beside other runs, inside another, without a configuration, and with a collector.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::places::{binary, fresh_folder};
use weir_tests::{AgentConfig, ClientKind, Conversation, McpServer, Scheme, Setup, World, WorldPlan, until};

use super::{Place, Ran, configuration, finish, report, told, weir_run};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn two_runs_at_a_time_have_each_their_own_log() -> Result<()> {
    let place = Place::new()?;
    let reports = ["one.jsonl", "two.jsonl"].map(|name| place.path(name));
    let mut children = Vec::new();
    for (report, calls) in reports.iter().zip(["echo,echo", "count,count,count"]) {
        // Both are there at the same time: each waits until the other one is.
        let mut command = vec!["sh".into(), "-c".into(), "read line; exec \"$@\"".into(), "sh".into()];
        command.extend(place.client(ClientKind::Python, calls));
        let options = ["--report", report.to_str().context("not UTF-8")?];
        children.push(place.weir_run(&options, &command)?.stdin(Stdio::piped()).spawn()?);
    }
    let slots = place.path("state/run");
    let origins =
        || ["0", "1"].map(|slot| std::fs::read_to_string(slots.join(slot).join("spool/origin")).ok());
    until("both to have a log", SOON, || Ok(origins().iter().all(Option::is_some).then_some(())))?;
    children.iter_mut().for_each(|child| drop(child.stdin.take()));
    for child in children {
        let ran = Ran::of(child.wait_with_output()?);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    let [one, two] = [report(&reports[0])?, report(&reports[1])?];
    assert_eq!(told(&one).iter().map(|call| call.0).collect::<Vec<_>>(), ["echo"; 2]);
    assert_eq!(told(&two).iter().map(|call| call.0).collect::<Vec<_>>(), ["count"; 3]);
    let [one, two] = origins();
    assert!(one.is_some() && one != two, "{one:?} {two:?}");
    Ok(())
}

#[test]
fn a_run_leaves_the_bundle_alone_that_another_runs_command_trusts() -> Result<()> {
    let place = Place::new()?;
    let mut first = place.weir_run(&[], &["sh", "-c", "echo ready; read line"])?;
    let mut first = first.stdin(Stdio::piped()).spawn()?;
    let bundle = place.path("state/run/0/ca/bundle.pem");
    let trusted = until("the first to run", SOON, || {
        ensure!(first.try_wait()?.is_none(), "it ended");
        Ok(std::fs::read(&bundle).ok().filter(|_| place.path("state/run/0/agent.sock").exists()))
    })?;
    // Another configuration over the same folder, with other roots.
    let other = place.path("other.toml");
    let config = AgentConfig { roots: Vec::new(), ..configuration(&place.server, None) };
    std::fs::write(&other, config.toml(&place.path("state")))?;
    ensure!(finish(weir_run()?.arg("--config").arg(&other).args(["--", "true"]))?.code == Some(0));
    assert!(std::fs::read(&bundle)? == trusted, "the bundle is another one");
    drop(first.stdin.take());
    ensure!(first.wait_with_output()?.status.code() == Some(1), "`read` tells the end of its input");
    Ok(())
}

#[test]
fn a_run_inside_a_run_intercepts_its_own_command() -> Result<()> {
    let place = Place::new()?;
    let (outer, inner) = (place.path("outer.jsonl"), place.path("inner.jsonl"));
    let mut command: Vec<std::ffi::OsString> = vec![binary("weir")?.into(), "run".into(), "--config".into()];
    command.extend([place.config.clone().into(), "--report".into(), inner.clone().into(), "--".into()]);
    command.extend(place.client(ClientKind::Python, "echo,delete_repo"));
    let ran = place.run(&["--report", outer.to_str().context("not UTF-8")?], &command)?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let conversation = Conversation::read(&ran.stdout)?;
    assert!(conversation.calls[0].ok && conversation.calls[1].code == Some(-31403), "{ran:?}");
    let calls = report(&inner)?;
    assert_eq!(told(&calls), [("echo", "allow", "ok"), ("delete_repo", "deny", "refused")]);
    // The outer one sees the inner one's connections: what that let through.
    assert_eq!(told(&report(&outer)?), [("echo", "allow", "ok")]);
    Ok(())
}

#[test]
fn without_a_configuration_the_webs_ports_are_intercepted_and_nothing_else() -> Result<()> {
    let (setup, folder) = (Setup::complete()?, fresh_folder("run")?);
    // An address of its own, so that port 443 is free on it.
    let address = format!("127.{}.{}.1", std::process::id() / 200 % 200 + 20, std::process::id() % 200 + 20);
    let options = ["--address", &address, "--port", "443"];
    let web = folder.path().join("web");
    let web = McpServer::start_with(&setup, &web, Scheme::Https, &["localhost"], false, &options)?;
    let other = folder.path().join("other");
    let other = McpServer::start(&setup, &other, Scheme::Https, &["localhost"], false)?;
    let state = folder.path().join("state of its own");
    let run = |server: &McpServer, host: &str| -> Result<(Ran, Vec<serde_json::Value>)> {
        let file = folder.path().join("report.jsonl");
        let mut weir = weir_run()?;
        weir.arg("--state-dir").arg(&state).arg("--report").arg(&file).arg("--");
        weir.args(weir_tests::job::client_command(&setup, ClientKind::Python)).arg(server.url(host));
        // What this host trusts, for Weir as for the client.
        let ran = finish(weir.args(["--calls", "echo"]).env("SSL_CERT_FILE", server.ca()))?;
        Ok((ran, report(&file)?))
    };
    let (ran, calls) = run(&web, &address)?;
    assert_eq!((ran.code, told(&calls)), (Some(0), vec![("echo", "allow", "ok")]), "{ran:?}");
    let issuer = Conversation::read(&ran.stdout)?.issuer;
    assert!(issuer.as_deref().is_some_and(|issuer| issuer.starts_with("Weir ")), "{issuer:?}");

    let (ran, calls) = run(&other, "127.0.0.1")?;
    assert_eq!((ran.code, calls.len()), (Some(0), 0), "{ran:?}");
    assert_eq!(Conversation::read(&ran.stdout)?.issuer.as_deref(), Some("MCP server's own test CA"));
    assert!(ran.stderr.starts_with("weir: 0 MCP calls, "), "{ran:?}");
    assert!(ran.stderr.contains("connections relayed unread"), "{ran:?}");
    Ok(())
}

#[test]
fn the_records_of_a_run_arrive_in_the_store() -> Result<()> {
    let mut world = World::start(&WorldPlan::default())?;
    let state = world.folder().join("run-state");
    let config = world.folder().join("run.toml");
    std::fs::write(&config, configuration(&world.server, Some(world.collector.socket())).toml(&state))?;
    let run = |world: &World, calls: &str| -> Result<Ran> {
        let mut weir = weir_run()?;
        weir.arg("--config").arg(&config).arg("--");
        weir.args(weir_tests::job::client_command(&world.setup, ClientKind::Python));
        finish(weir.args([&world.server.url("localhost"), "--calls", calls]).env("GITHUB_ACTIONS", "true"))
    };
    let ran = run(&world, "echo,delete_repo")?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // All of it is there when the run has ended.
    let question = "SELECT gen_ai_tool_name, result, process_linux_cgroup FROM calls WHERE tenant = 'run' \
                    AND mcp_method_name = 'tools/call' ORDER BY time";
    let rows = world.sql(question)?;
    let results: Vec<_> = rows.iter().map(|row| [&row["gen_ai_tool_name"], &row["result"]]).collect();
    assert_eq!(results, [["echo", "ok"], ["delete_repo", "refused"]]);
    ensure!(
        rows.iter().all(|row| row["process_linux_cgroup"].to_string().contains("/weir-run-")),
        "{rows:?}"
    );

    // With the collector away the run is none the worse, and the next one brings what was left.
    world.collector.daemon().kill()?;
    let ran = run(&world, "echo")?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("the last records wait in the spool"), "{ran:?}");
    world.collector.start_again()?;
    ensure!(finish(weir_run()?.arg("--config").arg(&config).args(["--", "true"]))?.code == Some(0));
    assert_eq!(world.sql(question)?.len(), 3);
    assert!(world.sql("SELECT * FROM gaps")?.is_empty());
    Ok(())
}
