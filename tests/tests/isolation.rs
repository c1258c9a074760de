//! A job, unprivileged and watched, cannot reach what Weir keeps: not the store, not the collector, not the agent, not their
//! files. What was recorded before stays as it was.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{ClientKind, World, WorldPlan};

/// Each attempt by its name: what came of it, an errno's name where the kernel refused.
const INTRUDER: &str = r#"
import errno, json, os, socket, sys
plan = json.loads(sys.argv[1])

def attempt(name, action):
    try:
        told = action()
    except OSError as error:
        told = errno.errorcode.get(error.errno, str(error))
    print(json.dumps([name, told]), flush=True)

def tcp(host, port):
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, proto) as connection:
        connection.settimeout(30)
        connection.connect(address)
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return connection.recv(4096).decode("latin-1") or "closed"

def unix(path, request=b""):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        connection.sendall(request)
        return connection.recv(4096).decode("latin-1")

def post(path, target):
    body = b'{"forged": true}'
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nWeir-Wire-Version: 1\r\nContent-Length: {len(body)}\r\n\r\n"
    return unix(path, head.encode() + body)

def write(path, text):
    with open(path, "w") as file:
        file.write(text)
    return "written"

for name, host, port in plan.get("tcp", []):
    attempt(name, lambda: tcp(host, port))
for path in plan.get("read", []):
    attempt(path, lambda: open(path, "rb").read().decode("latin-1")[:80])
for path in plan.get("list", []):
    attempt(path, lambda: ",".join(os.listdir(path)))
for path in plan.get("unix", []):
    attempt(path, lambda: unix(path))
for path, target in plan.get("post", []):
    attempt(target, lambda: post(path, target))
for path, text in plan.get("write", []):
    attempt(path, lambda: write(path, text))
for name, pid in plan.get("kill", []):
    attempt(name, lambda: os.kill(pid, 9) or "killed")
"#;

fn intrude(world: &World, plan: &Value) -> Result<BTreeMap<String, String>> {
    let command: [OsString; 4] =
        [world.setup.python().into(), "-c".into(), INTRUDER.into(), plan.to_string().into()];
    let mut job = world.job().command(&command)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    job.stdout()?.lines().map(|line| Ok(serde_json::from_str::<(String, String)>(line)?)).collect()
}

/// A world with some calls recorded, and all that stands in the store.
fn world_with_records() -> Result<(World, Vec<Value>)> {
    let world = World::start(&WorldPlan::default())?;
    let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo,delete_repo"])?;
    ensure!(told.first("echo")?.ok, "{told:?}");
    world.sql_until(2, "SELECT * FROM calls WHERE gen_ai_tool_name != '' AND result != 'open'")?;
    world.until_shipped()?;
    let records = records(&world)?;
    Ok((world, records))
}

fn records(world: &World) -> Result<Vec<Value>> {
    world.sql("SELECT * FROM events ORDER BY origin, seq")
}

/// What was there is there, unchanged; whatever came since is behind it.
fn unchanged(world: &World, before: &[Value]) -> Result<()> {
    world.until_shipped()?;
    let now = records(world)?;
    ensure!(now.get(..before.len()) == Some(before), "the records were changed");
    Ok(())
}

#[test]
fn a_job_cannot_connect_to_the_store_even_with_its_secret() -> Result<()> {
    let (world, before) = world_with_records()?;
    let port = world.store.address().port();
    let hosts =
        ["127.0.0.1", "0.0.0.0", "127.8.8.8", "localhost", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::", "::1"];
    let refused = world.agent.status()?.connects.refused;
    let attempts: Vec<_> = hosts.iter().map(|host| json!([host, host, port])).collect();
    let told = intrude(&world, &json!({"tcp": attempts}))?;
    for host in hosts {
        ensure!(told.get(host).map(String::as_str) == Some("EPERM"), "{host}: {told:?}");
    }
    ensure!(world.agent.status()?.connects.refused - refused == hosts.len() as u64);

    // curl, and the secret itself: the job might have got it from elsewhere.
    let secret = std::fs::read_to_string(world.store.secret())?;
    for statement in
        ["ALTER TABLE weir.events DELETE WHERE 1", "TRUNCATE TABLE weir.events", "DROP DATABASE weir"]
    {
        let command: Vec<OsString> = vec![
            "curl".into(),
            "-sS".into(),
            "--max-time".into(),
            "20".into(),
            "-H".into(),
            "X-ClickHouse-User: default".into(),
            "-H".into(),
            format!("X-ClickHouse-Key: {}", secret.trim()).into(),
            "--data-binary".into(),
            statement.into(),
            format!("{}/", world.store.url()).into(),
        ];
        let mut job = world.job().command(&command)?;
        // CURLE_COULDNT_CONNECT.
        ensure!(job.wait(CLIENT_DEADLINE)?.code() == Some(7), "{} {}", job.stdout()?, job.stderr()?);
    }
    unchanged(&world, &before)?;
    // Each of them is recorded, and nothing else came of it.
    let own = format!("server_port = {port} AND connect_verdict = 'refused' AND connect_reason = 'own_port'");
    let refused = hosts.len() + 3;
    world.sql_until(refused, &format!("SELECT seq FROM flows WHERE {own}"))?;
    ensure!(
        world.number(&format!("SELECT count() FROM flows WHERE server_port = {port}"))? == refused as u64
    );
    ensure!(
        world.number("SELECT count() FROM events WHERE kind NOT IN ('flow', 'completeness')")?
            == before.iter().filter(|row| row["kind"] != "flow" && row["kind"] != "completeness").count()
                as u64
    );
    Ok(())
}

/// The hooks guard the loopback; to the host's other addresses connections are led to the agent, which must not take them to
/// a store that listens there.
#[test]
fn the_agents_relay_is_no_way_around_to_the_store() -> Result<()> {
    let (world, before) = world_with_records()?;
    // The address that this host would use to go elsewhere; nothing is sent to find out.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9").context("this host has no address besides loopback")?;
    let own = socket.local_addr()?.ip();
    let port = world.store.address().port();
    // In the place of a store that listens on all addresses.
    let store = TcpListener::bind((own, port))?;
    store.set_nonblocking(true)?;
    let told =
        intrude(&world, &json!({"tcp": [["own", own, port], ["mapped", format!("::ffff:{own}"), port]]}))?;
    ensure!(told.values().all(|told| told == "ECONNRESET") && told.len() == 2, "{told:?}");
    let reached = store.accept();
    ensure!(reached.is_err(), "the agent has led a job to {own}:{port}");
    let flows = format!("SELECT * FROM flows WHERE server_port = {port} AND flow_treatment = 'refused'");
    world.sql_until(2, &flows)?;
    unchanged(&world, &before)
}

#[test]
fn a_job_cannot_read_write_or_end_anything_of_weirs() -> Result<()> {
    let (mut world, before) = world_with_records()?;
    let state = world.agent.state().to_path_buf();
    let store = world.folder().join("store");
    let closed = ["ca/ca.key", "keys/mask.key", "spool/origin", "spool/lock"].map(|name| state.join(name));
    for file in &closed {
        ensure!(file.exists(), "{} is to be kept from jobs, and is not there", file.display());
    }
    let pids: Vec<(String, u32)> =
        world.daemons().iter().take(3).map(|daemon| (daemon.name().to_owned(), daemon.pid())).collect();
    let memory = pids.iter().map(|(_, pid)| format!("/proc/{pid}/mem").into());
    let environment = pids.iter().map(|(_, pid)| format!("/proc/{pid}/environ").into());
    let read: Vec<_> = closed
        .into_iter()
        .chain([world.store.secret().to_path_buf(), world.approver.key.clone()])
        .chain(memory)
        .chain(environment)
        .collect();
    let list = [state.clone(), state.join("spool"), state.join("keys"), store.clone(), store.join("db")];
    let unix = [state.join("agent.sock"), world.collector.socket().to_path_buf()];
    let write = [
        (state.join("ca/bundle.pem"), ""),
        (state.join("ca/ca.pem"), ""),
        (state.join("new"), ""),
        (world.agent.config().to_path_buf(), ""),
        (world.folder().join("allowed_signers"), ""),
        // Out of the watched cgroup.
        (world.outside.path().join("cgroup.procs"), "0"),
        (world.selected.path().join("cgroup.procs"), "0"),
    ];
    let told =
        intrude(&world, &json!({"read": read, "list": list, "unix": unix, "write": write, "kill": pids}))?;
    let attempts = read.len() + list.len() + unix.len() + write.len();
    let denied = told.values().filter(|told| *told == "EACCES").count();
    let killed = pids.iter().filter(|(name, _)| told[name] == "EPERM").count();
    ensure!((denied, killed) == (attempts, pids.len()), "{told:#?}");
    for daemon in world.daemons() {
        ensure!(daemon.ended()?.is_none(), "{} has ended", daemon.name());
    }
    unchanged(&world, &before)
}

#[test]
fn a_job_that_can_open_the_collectors_socket_is_still_no_agent() -> Result<()> {
    let (world, before) = world_with_records()?;
    let socket = world.collector.socket();
    let holds = world.number("SELECT count() FROM holds")?;
    widen(socket)?;
    let paths = ["/v1/segments", "/v1/holds", "/v1/poll"];
    let told = intrude(&world, &json!({"post": paths.map(|path| (socket, path))}))?;
    for path in paths {
        ensure!(
            told[path].starts_with("HTTP/1.1 403") && told[path].contains("no agent"),
            "{path}: {told:?}"
        );
    }
    unchanged(&world, &before)?;
    ensure!(records(&world)?.len() == before.len() && world.number("SELECT count() FROM holds")? == holds);
    Ok(())
}

/// As a careless operator might.
fn widen(socket: &Path) -> Result<()> {
    Ok(std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?)
}
