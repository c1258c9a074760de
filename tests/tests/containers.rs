//! Jobs in network namespaces of their own, and in containers of real OCI runtimes: their calls go through Weir, to servers
//! that only they can reach; until Weir listens in there they are refused, and recorded.

#[path = "containers/readiness.rs"]
mod readiness;

use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weir_tests::oci::{Container, ContainerPlan, RUNTIMES};
use weir_tests::places::binary;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, Job, Net, Scheme, World, WorldPlan, until};

const DEADLINE: Duration = Duration::from_secs(30);
/// The job's own addresses in its private network, and the server's.
const OWN: [&str; 2] = ["10.77.0.1/24", "fd77::1/64"];
const SERVERS: [&str; 2] = ["10.77.0.2", "fd77::2"];

/// A job's network namespace, and a world around a server in another one: a private network joins the two.
fn private_network(scheme: Scheme) -> Result<(Net, Net, World)> {
    let (jobs, servers) = (Net::new()?, Net::new()?);
    jobs.connect(OWN, &servers, ["10.77.0.2/24", "fd77::2/64"])?;
    let plan = WorldPlan {
        kind: "netns",
        scheme,
        intercept_cidrs: vec!["10.77.0.0/24", "fd77::/64"],
        ..WorldPlan::default()
    };
    let world = World::around_server_in(&plan, &servers, &SERVERS)?;
    Ok((jobs, servers, world))
}

/// `weir oci-hook`, as a runtime runs it for a container with this process.
fn oci_hook(world: &World, pid: u32, options: &[&str]) -> Result<Output> {
    let mut hook = Command::new(binary("weir")?)
        .args(["oci-hook", "--config"])
        .arg(world.agent.config())
        .args(options)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let state = json!({ "ociVersion": "1.0.2", "id": "a", "status": "creating", "pid": pid, "bundle": "/b" });
    hook.stdin.take().context("no stdin")?.write_all(state.to_string().as_bytes())?;
    Ok(hook.wait_with_output()?)
}

/// The `hooks` of a container's config.json, as `weir oci-hook` itself prints them.
fn hooks(world: &World) -> Result<Value> {
    let printed = Command::new(binary("weir")?)
        .args(["oci-hook", "--require", "--print-config", "runtime", "--config"])
        .arg(world.agent.config())
        .output()?;
    ensure!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    Ok(serde_json::from_slice::<Value>(&printed.stdout)?["hooks"].take())
}

/// Connects again and again until one connect passes; tells what became of each.
const INSIST: &str = "
import errno, socket, sys, time
address, port, end = sys.argv[1], int(sys.argv[2]), time.monotonic() + 25
while time.monotonic() < end:
    with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET) as made:
        made.settimeout(20)
        try:
            made.connect((address, port))
            print('ok', flush=True)
            made.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')
            made.recv(1)
            break
        except OSError as error:
            print(errno.errorcode.get(error.errno, error), flush=True)
            time.sleep(0.001)
";

fn script(world: &World, script: &str, arguments: &[&str]) -> Vec<OsString> {
    let mut command: Vec<OsString> = vec![world.setup.python().into(), "-c".into(), script.into()];
    command.extend(arguments.iter().map(Into::into));
    command
}

fn events(world: &World, name: &str, count: usize) -> Result<Vec<Value>> {
    let question = format!("SELECT event_detail FROM events WHERE event_name = '{name}' ORDER BY seq");
    world.sql_until(count, &question)
}

#[test]
fn a_job_in_its_own_namespace_calls_a_server_that_only_it_can_reach() -> Result<()> {
    let (jobs, _servers, world) = private_network(Scheme::Https)?;
    let registered = oci_hook(&world, jobs.pid(), &["--require"])?;
    ensure!(registered.status.success(), "{}", String::from_utf8_lossy(&registered.stderr));
    for kind in ClientKind::BOTH {
        for (host, address) in [("10.77.0.2", "10.77.0.2"), ("[fd77::2]", "fd77::2")] {
            let nonce = format!("{}-{}", kind.name(), address.replace([':', '.'], "-"));
            let url = world.server.url(host);
            let mut job =
                world.job().client_in(&jobs, kind, &url, &["--calls", "echo", "--nonce", &nonce])?;
            let told = job.finish(CLIENT_DEADLINE)?;
            ensure!(told.first("echo")?.ok, "{kind:?} at {host}: {told:?}");
            ensure!(told.issuer.as_deref() == Some(world.agent.status()?.ca.common_name()), "{told:?}");
            let question = format!(
                "SELECT * FROM calls WHERE gen_ai_tool_name = 'echo' AND position(arguments, '{nonce}-') > 0 \
                 AND result = 'ok'"
            );
            let row = world.sql_until(1, &question)?.remove(0);
            ensure!(row["server_address"] == address && row["server_proof"] == "certificate", "{row}");
            ensure!(told.pid.map(u64::from) == row["process_pid"].as_u64(), "{row}");
        }
    }
    let executed = world.server.executed()?;
    ensure!(executed.len() == 4, "{executed:?}");
    ensure!(world.agent.status()?.connects.refused == 0, "nothing was refused");
    // The readiness probe in there has its own answer, whatever listens on this host's loopback.
    let port = world.agent.status()?.listen.v4.port();
    for address in ["127.0.0.1", "::1"] {
        ensure!(attempt(&world, &jobs, address, port)? == "ECONNREFUSED", "{address}");
    }
    let registered = events(&world, "netns.registered", 1)?;
    ensure!(registered[0]["event_detail"]["for"] == "runtime", "{registered:?}");
    Ok(())
}

#[test]
fn a_namespace_that_nobody_announced_is_refused_and_recorded_until_the_agent_listens_in_there() -> Result<()>
{
    let (jobs, _servers, mut world) = private_network(Scheme::Http)?;
    let port = world.server.port().to_string();
    // On an idle machine the agent listens in there before Python has started.
    world.agent.daemon().signal(Signal::SIGSTOP)?;
    let mut job = world.job().command_in(&jobs, &script(&world, INSIST, &[SERVERS[0], &port]))?;
    let first = || Ok(job.stdout()?.contains('\n').then_some(()));
    until("a connect to be refused", DEADLINE, first)?;
    world.agent.daemon().signal(Signal::SIGCONT)?;
    job.wait(DEADLINE)?;
    let said = job.stdout()?;
    let became: Vec<&str> = said.lines().collect();
    let (last, refused) = became.split_last().context("it made no connect")?;
    ensure!(*last == "ok" && !refused.is_empty(), "{became:?}");
    ensure!(refused.iter().all(|errno| *errno == "ECONNREFUSED"), "{became:?}");
    let rows = world.sql_until(refused.len(), "SELECT * FROM flows WHERE connect_reason = 'no_listener'")?;
    ensure!(rows.len() == refused.len(), "{} of {} are recorded", rows.len(), refused.len());
    for row in &rows {
        ensure!(row["connect_verdict"] == "refused" && row["flow_treatment"] == "refused", "{row}");
        ensure!(row["flow_end"] == "never_made" && row["server_address"] == SERVERS[0], "{row}");
    }
    let led = world.sql_until(1, "SELECT * FROM flows WHERE connect_verdict = 'redirected'")?;
    ensure!(led.len() == 1 && led[0]["server_address"] == SERVERS[0], "{led:?}");
    // From here on nothing is refused.
    let mut again = world.job().command_in(&jobs, &script(&world, INSIST, &[SERVERS[1], &port]))?;
    again.wait(DEADLINE)?;
    ensure!(again.stdout()? == "ok\n", "{}", again.stdout()?);
    let registered = events(&world, "netns.registered", 1)?;
    ensure!(registered.len() == 1 && registered[0]["event_detail"]["for"] == "job", "{registered:?}");
    Ok(())
}

#[test]
fn a_namespace_dies_with_its_last_process_although_calls_were_made_in_it() -> Result<()> {
    let (jobs, servers, world) = private_network(Scheme::Http)?;
    ensure!(oci_hook(&world, jobs.pid(), &["--require"])?.status.success());
    let url = world.server.url(SERVERS[0]);
    let mut job = world.job().client_in(&jobs, ClientKind::Python, &url, &["--calls", "echo"])?;
    ensure!(job.finish(CLIENT_DEADLINE)?.first("echo")?.ok);
    ensure!(servers.has_cable()?);
    jobs.end()?;
    until("the namespace, and the cable that ends in it, to be gone", DEADLINE, || {
        Ok((!servers.has_cable()?).then_some(()))
    })?;
    ensure!(events(&world, "netns.let_go", 1)?.len() == 1);
    Ok(())
}

/// What becomes of one connect in there.
const ATTEMPT: &str = "
import errno, socket, sys
with socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET) as made:
    print(errno.errorcode.get(made.connect_ex((sys.argv[1], int(sys.argv[2]))), 'ok'))
";

fn attempt(world: &World, net: &Net, address: &str, port: u16) -> Result<String> {
    let command = script(world, ATTEMPT, &[address, &port.to_string()]);
    let mut job = world.job().command_in(net, &command)?;
    ensure!(job.wait(DEADLINE)?.success(), "{}", job.stderr()?);
    Ok(job.stdout()?.trim().to_owned())
}

#[test]
fn an_agent_that_comes_back_after_kill_9_listens_again_in_the_namespaces_that_live() -> Result<()> {
    let (jobs, _servers, mut world) = private_network(Scheme::Http)?;
    ensure!(oci_hook(&world, jobs.pid(), &["--require"])?.status.success());
    let port = world.server.port();
    ensure!(attempt(&world, &jobs, SERVERS[0], port)? == "ok");
    events(&world, "netns.registered", 1)?;
    world.agent.daemon().kill()?;
    ensure!(attempt(&world, &jobs, SERVERS[0], port)? == "ECONNREFUSED", "the failure mode holds in there");
    world.agent.start_again()?;
    ensure!(attempt(&world, &jobs, SERVERS[1], port)? == "ok");
    let registered = events(&world, "netns.registered", 2)?;
    ensure!(registered[1]["event_detail"]["for"] == "restart", "{registered:?}");
    let refused = world.sql_until(1, "SELECT connect_reason FROM flows WHERE connect_verdict = 'refused'")?;
    ensure!(refused.len() == 1 && refused[0]["connect_reason"] == "no_agent", "{refused:?}");
    Ok(())
}

/// Asks again and again, each time over a connection of its own; tells of each whether it was answered.
const ASK: &str = "
import socket, sys
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as made:
            made.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')
            print('ok' if made.recv(5) == b'HTTP/' else 'not answered', flush=True)
    except OSError as error:
        print(error, flush=True)
";

#[test]
fn no_connection_of_a_namespace_fails_while_one_agent_takes_anothers_place() -> Result<()> {
    let (jobs, _servers, mut world) = private_network(Scheme::Http)?;
    ensure!(oci_hook(&world, jobs.pid(), &["--require"])?.status.success());
    let command = script(&world, ASK, &[SERVERS[0], &world.server.port().to_string()]);
    let mut job = world.job().command_in(&jobs, &command)?;
    let answered = |job: &Job| -> Result<usize> { Ok(job.stdout()?.lines().count()) };
    until("some answers", DEADLINE, || Ok((answered(&job)? > 20).then_some(())))?;
    let mut old = world.agent.replace()?;
    ensure!(old.wait(CLIENT_DEADLINE)?.success(), "{}", old.log());
    let by_then = answered(&job)?;
    until("answers by the new agent", DEADLINE, || Ok((answered(&job)? > by_then + 20).then_some(())))?;
    job.kill()?;
    let said = job.stdout()?;
    ensure!(said.lines().all(|line| line == "ok"), "{said}");
    let registered = events(&world, "netns.registered", 2)?;
    ensure!(registered[1]["event_detail"]["for"] == "restart", "{registered:?}");
    Ok(())
}

#[test]
fn a_hook_without_an_agent_fails_only_if_it_is_required() -> Result<()> {
    let (jobs, _servers, mut world) = private_network(Scheme::Http)?;
    world.agent.daemon().terminate()?;
    let let_through = oci_hook(&world, jobs.pid(), &[])?;
    let said = String::from_utf8_lossy(&let_through.stderr).into_owned();
    ensure!(let_through.status.success() && said.contains("is `weir agent` running?"), "{said}");
    ensure!(oci_hook(&world, jobs.pid(), &["--require"])?.status.code() == Some(1));
    Ok(())
}

/// A container in that namespace whose first process is this command.
fn container(
    world: &World,
    net: &Net,
    runtime: &str,
    hooks: Value,
    command: &[OsString],
) -> Result<Container> {
    let trust = world.agent.trust();
    let variables = trust.variables().map(|(name, path)| format!("{name}={}", path.display()));
    let plan = ContainerPlan {
        runtime,
        net,
        cgroup: &world.selected,
        folder: world.folder(),
        name: format!("weir-{runtime}-{}", std::process::id()),
        folders: vec![world.setup.folder().to_path_buf(), world.agent.state().join("ca")],
        environment: variables.into_iter().chain(["PATH=/usr/bin:/bin".to_owned()]).collect(),
        hooks,
    };
    plan.start(command)
}

#[test]
fn nothing_of_a_container_is_refused_when_its_runtime_runs_the_hook() -> Result<()> {
    for runtime in RUNTIMES {
        let (jobs, _servers, world) = private_network(Scheme::Https)?;
        let mut command = weir_tests::job::client_command(&world.setup, ClientKind::Python);
        let url = world.server.url(SERVERS[0]);
        command.extend([&url, "--calls", "echo,count"].map(OsString::from));
        let mut container = container(&world, &jobs, runtime, hooks(&world)?, &command)?;
        let told = container.job.finish(CLIENT_DEADLINE).with_context(|| runtime.to_owned())?;
        ensure!(told.calls.len() == 2 && told.calls.iter().all(|call| call.ok), "{runtime}: {told:?}");
        let connects = world.agent.status()?.connects;
        ensure!(connects.refused == 0 && connects.redirected > 0, "{runtime}: {connects:?}");
        let rows =
            world.sql_until(2, "SELECT * FROM calls WHERE result = 'ok' AND gen_ai_tool_name != ''")?;
        for row in &rows {
            // By its pid on the host, not the one that it has in its own pid namespace.
            ensure!(row["process_pid"].as_u64() > Some(9) && row["process_seen_alive"] == true, "{row}");
            let cgroup = row["process_linux_cgroup"].as_str().unwrap_or_default();
            ensure!(cgroup.contains(&format!("weir-{runtime}-")), "{row}");
        }
        // Whichever was first: the hook, or the agent that saw the runtime itself in there.
        let registered = events(&world, "netns.registered", 1)?;
        let asked = registered[0]["event_detail"]["for"].as_str().unwrap_or_default();
        ensure!(registered.len() == 1 && ["runtime", "job"].contains(&asked), "{runtime}: {registered:?}");
    }
    Ok(())
}

#[test]
fn a_container_whose_runtime_runs_no_hook_is_refused_until_the_agent_listens_in_there() -> Result<()> {
    for runtime in RUNTIMES {
        let (jobs, _servers, mut world) = private_network(Scheme::Http)?;
        let port = world.server.port().to_string();
        let command = script(&world, INSIST, &[SERVERS[0], &port]);
        world.agent.daemon().signal(Signal::SIGSTOP)?;
        let mut container = container(&world, &jobs, runtime, json!({}), &command)?;
        let first = || Ok(container.job.stdout()?.contains('\n').then_some(()));
        until("a connect to be refused", DEADLINE, first)?;
        world.agent.daemon().signal(Signal::SIGCONT)?;
        container.job.wait(DEADLINE)?;
        let said = container.job.stdout()?;
        ensure!(said.ends_with("ok\n"), "{runtime}: {said} {}", container.job.stderr()?);
        let refused = said.lines().filter(|line| *line == "ECONNREFUSED").count();
        ensure!(refused > 0 && refused + 1 == said.lines().count(), "{runtime}: {said}");
        ensure!(world.agent.status()?.connects.refused == refused as u64, "{runtime}: {said}");
    }
    Ok(())
}
