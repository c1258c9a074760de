//! What is not on the intercept list passes untouched and is recorded as opaque, with its name and bytes; what is on it and
//! cannot be read is refused. Nothing passes unseen.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::world::{CLIENT_DEADLINE, RULES};
use weir_tests::{ClientKind, World, WorldPlan, until};

/// What a server says that speaks first.
const GREETING: &[u8] = b"220 mail.test ready when you are\r\n";

/// Connects, writes what it is told to, reads to the end, and tells what came, when its first byte came, and how it ended.
const TALKER: &str = r#"
import json, socket, sys, time
address, words = (sys.argv[1], int(sys.argv[2])), bytes.fromhex(sys.argv[3])
began, first, heard, end = time.monotonic(), None, b"", "closed"
try:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(words)
        while chunk := connection.recv(4096):
            first = first or round((time.monotonic() - began) * 1000)
            heard += chunk
except OSError as error:
    end = type(error).__name__
took = round((time.monotonic() - began) * 1000)
print(json.dumps({"heard": heard.decode("latin-1"), "first_ms": first, "took_ms": took, "end": end}))
"#;

/// Runs the talker as a job in the watched cgroup, or beside it.
fn talk(world: &World, selected: bool, to: SocketAddr, words: &[u8]) -> Result<Value> {
    let hex: String = words.iter().map(|byte| format!("{byte:02x}")).collect();
    let command = [
        world.setup.python().into(),
        "-c".into(),
        TALKER.into(),
        to.ip().to_string().into(),
        to.port().to_string().into(),
        hex.into(),
    ];
    let plan = if selected { world.job() } else { world.job_outside() };
    let mut job = plan.command(&command)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    Ok(serde_json::from_str(&job.stdout()?)?)
}

/// A server that greets whoever comes, and then reads `expects` bytes from them. It runs in the test, outside of any watched
/// cgroup. Gives what it has read of each connection.
struct Greeter {
    address: SocketAddr,
    listener: TcpListener,
}

impl Greeter {
    fn bind(host: &str) -> Result<Self> {
        let listener = TcpListener::bind((host, 0))?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    fn serve_one(&self, expects: usize) -> Result<JoinHandle<Result<Vec<u8>>>> {
        self.greet_with(GREETING, expects)
    }

    fn greet_with(&self, greeting: &'static [u8], expects: usize) -> Result<JoinHandle<Result<Vec<u8>>>> {
        let listener = self.listener.try_clone()?;
        Ok(std::thread::spawn(move || {
            let (mut connection, _) = listener.accept()?;
            connection.set_read_timeout(Some(CLIENT_DEADLINE))?;
            connection.write_all(greeting)?;
            let mut read = vec![0; expects];
            connection.read_exact(&mut read)?;
            Ok(read)
        }))
    }

    /// Fails if anybody has connected.
    fn saw_nobody(&self) -> Result<()> {
        self.listener.set_nonblocking(true)?;
        let accepted = self.listener.accept();
        ensure!(accepted.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{accepted:?}");
        Ok(())
    }
}

/// A world that terminates `entry` besides its server's port, and lets a client be silent for a second.
fn world_with(entry: &str) -> Result<World> {
    let rules = format!("{RULES}\n{entry}\n[limits]\nclient_timeout = \"1s\"\n");
    World::start(&WorldPlan { rules, ..WorldPlan::default() })
}

/// The flow of the `number`th connection to a server.
fn flow_to(world: &World, address: SocketAddr, number: usize) -> Result<Value> {
    let question = format!("SELECT * FROM flows WHERE server_port = {} ORDER BY seq", address.port());
    world.sql_until(number, &question)?.into_iter().nth(number - 1).context("no flow")
}

fn number(row: &Value, column: &str) -> u64 {
    row[column].as_u64().or_else(|| row[column].as_str()?.parse().ok()).unwrap_or_default()
}

#[test]
fn a_server_that_is_not_on_the_list_is_reached_untouched_and_recorded_as_opaque() -> Result<()> {
    // Its port is listed, its name and its addresses are not: only the ClientHello tells.
    let plan =
        WorldPlan { intercept_names: vec!["other.test"], intercept_cidrs: vec![], ..WorldPlan::default() };
    let world = World::start(&plan)?;
    for kind in ClientKind::BOTH {
        let (redirected, already) =
            (world.agent.status()?.connects.redirected, world.server.executed()?.len());
        let plan = world.job_in(&world.selected, world.server.trust());
        let url = world.server.url("localhost");
        let told =
            plan.client(kind, &url, &["--calls", "echo,delete_repo,count"])?.finish(CLIENT_DEADLINE)?;
        ensure!(told.calls.iter().all(|call| call.ok), "{told:?}");
        ensure!(told.issuer.as_deref() == Some("MCP server's own test CA"), "{told:?}");
        ensure!(world.server.executed()?.len() - already == 3);
        let made = told.tcp_connects.context("it did not tell its connects")?;
        ensure!(world.agent.status()?.connects.redirected - redirected == made);

        let pid = told.pid.context("it did not tell its pid")?;
        let question = format!("SELECT * FROM flows WHERE process_pid = {pid}");
        for row in world.sql_until(made.try_into()?, &question)? {
            ensure!(row["flow_treatment"] == "opaque" && row["server_proof"] == "unproven", "{row}");
            ensure!(row["cicd_pipeline_task_name"] == "deploy" && row["process_seen_alive"] == true, "{row}");
            // A connect that the client gave up (Node tries both kinds of address) says no name.
            if number(&row, "bytes_up") > 0 {
                ensure!(row["tls_client_server_name"] == "localhost", "{row}");
                ensure!(number(&row, "bytes_up") > 200 && number(&row, "bytes_down") > 200, "{row}");
            }
        }
    }
    ensure!(world.number("SELECT count() FROM calls")? == 0);
    let named = world.number("SELECT count() FROM flows WHERE tls_client_server_name = 'localhost'")?;
    ensure!(named >= 4, "{named} flows have a name");
    Ok(())
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once_on_a_port_that_is_not_listed() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    for host in ["127.0.0.1", "::1"] {
        let greeter = Greeter::bind(host)?;
        let serving = greeter.serve_one(6)?;
        let told = talk(&world, true, greeter.address, b"QUIT\r\n")?;
        let read = serving.join().map_err(|_| anyhow::anyhow!("the server broke"))??;
        ensure!(read == b"QUIT\r\n" && told["heard"] == json!(String::from_utf8_lossy(GREETING)), "{told}");
        // Well below the time that a client on a listed port has to speak.
        ensure!(told["first_ms"].as_u64() < Some(5000) && told["end"] == "closed", "{told}");
        let row = flow_to(&world, greeter.address, 1)?;
        ensure!(row["flow_treatment"] == "opaque" && row["flow_end"] == "closed", "{row}");
        ensure!(row["server_address"] == host && row["tls_client_server_name"] == "", "{row}");
        ensure!(
            number(&row, "bytes_up") == 6 && number(&row, "bytes_down") == GREETING.len() as u64,
            "{row}"
        );
    }
    Ok(())
}

/// Says all that it has to say, ends its half, and reads to the end.
const HALF: &str = r#"
import json, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection:
    connection.sendall(bytes.fromhex(sys.argv[3]))
    connection.shutdown(socket.SHUT_WR)
    heard = b""
    while chunk := connection.recv(4096):
        heard += chunk
print(json.dumps(heard.decode("latin-1")))
"#;

#[test]
fn a_client_that_ends_its_half_of_what_is_relayed_is_still_answered() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?;
    let serving = std::thread::spawn(move || -> Result<Vec<u8>> {
        let (mut connection, _) = server.accept()?;
        connection.set_read_timeout(Some(CLIENT_DEADLINE))?;
        let mut read = Vec::new();
        connection.read_to_end(&mut read)?;
        // Only now that the client has ended its half.
        connection.write_all(b"that was all")?;
        Ok(read)
    });
    let command = [
        world.setup.python().into(),
        "-c".into(),
        HALF.into(),
        "127.0.0.1".into(),
        address.port().to_string().into(),
        "0001feff".into(),
    ];
    let mut job = world.job().command(&command)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    ensure!(serving.join().map_err(|_| anyhow::anyhow!("the server broke"))?? == [0, 1, 0xfe, 0xff]);
    ensure!(job.stdout()?.trim() == "\"that was all\"", "{}", job.stdout()?);
    let row = flow_to(&world, address, 1)?;
    ensure!(row["flow_treatment"] == "opaque" && row["flow_end"] == "closed", "{row}");
    ensure!((number(&row, "bytes_up"), number(&row, "bytes_down")) == (4, 12), "{row}");
    Ok(())
}

#[test]
fn a_web_socket_is_relayed_and_its_flow_recorded_as_opaque() -> Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?;
    let world =
        world_with(&format!("[[intercept]]\ncidrs = [\"127.0.0.0/8\"]\nports = [{}]", address.port()))?;
    let serving = std::thread::spawn(move || -> Result<String> {
        let (mut connection, _) = server.accept()?;
        connection.set_read_timeout(Some(CLIENT_DEADLINE))?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        connection.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x82\x03abc",
        )?;
        let mut frame = [0; 9];
        connection.read_exact(&mut frame)?;
        ensure!(frame == *b"\x82\x83\0\0\0\0\xff\0\n", "{frame:?}");
        Ok(String::from_utf8(head)?)
    });
    let client = r#"
import json, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection:
    connection.sendall(bytes.fromhex(sys.argv[3]))
    heard = b""
    while not heard.endswith(b"abc"):
        heard += connection.recv(4096)
    connection.sendall(b"\x82\x83\0\0\0\0\xff\0\n")
    while chunk := connection.recv(4096):
        heard += chunk
print(json.dumps(heard.decode("latin-1")))
"#;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    let hex: String = request.bytes().map(|byte| format!("{byte:02x}")).collect();
    let command = [
        world.setup.python().into(),
        "-c".into(),
        client.into(),
        "127.0.0.1".into(),
        address.port().to_string().into(),
        hex.into(),
    ];
    let mut job = world.job().command(&command)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    let head = serving.join().map_err(|_| anyhow::anyhow!("the server broke"))??;
    ensure!(head.to_ascii_lowercase().contains("upgrade: websocket\r\n"), "{head}");
    ensure!(job.stdout()?.contains("abc"), "{}", job.stdout()?);
    let row = flow_to(&world, address, 1)?;
    ensure!(row["flow_treatment"] == "opaque" && row["flow_end"] == "closed", "{row}");
    let upgraded = "SELECT payload FROM events WHERE kind = 'message' AND message_label = 'upgraded'";
    let noted = world.sql_until(1, upgraded)?;
    ensure!(noted[0]["payload"] == "GET /ws -> 101", "{noted:?}");
    Ok(())
}

/// What servers say first, and what their clients answer: SSH, SMTP and MySQL.
const SPEAK_FIRST: [(&[u8], &[u8]); 3] = [
    (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", b"SSH-2.0-libssh2_1.11.0\r\n"),
    (GREETING, b"EHLO runner.test\r\nSTARTTLS\r\n"),
    (b"\x4a\0\0\0\x0a8.0.36\0\x08\0\0\0\x3a\x5b\x1c\x11", b"\x20\0\0\x01\x85\xae\xff\x19\0\0\0\x01\xff"),
];

#[test]
fn bytes_that_only_a_name_could_have_listed_and_addresses_that_are_bypassed_are_relayed_untouched()
-> Result<()> {
    let (greeter, bypassed) = (Greeter::bind("127.0.0.1")?, Greeter::bind("127.0.0.9")?);
    let (port, all) = (greeter.address.port(), bypassed.address.port());
    let world = world_with(&format!(
        "[[intercept]]\nnames = [\"mcp.test\"]\nports = [{port}]\n\
         [[intercept]]\ncidrs = [\"127.0.0.0/8\"]\nports = [{all}]\n[bypass]\ncidrs = [\"127.0.0.9/32\"]"
    ))?;
    let mut counts = [0, 0];
    let garbage = (GREETING, &b"\x00\x01\x02 no protocol that anybody knows \xff"[..]);
    for (greeting, words) in SPEAK_FIRST.into_iter().chain([garbage]) {
        for (server, reason, count) in [(&greeter, "", 0), (&bypassed, "bypass", 1)] {
            let serving = server.greet_with(greeting, words.len())?;
            let told = talk(&world, true, server.address, words)?;
            let heard: String = greeting.iter().map(|byte| char::from(*byte)).collect();
            ensure!(told["heard"] == json!(heard) && told["end"] == "closed", "{told}");
            ensure!(serving.join().map_err(|_| anyhow::anyhow!("the server broke"))?? == words);
            counts[count] += 1;
            let row = flow_to(&world, server.address, counts[count])?;
            ensure!(row["flow_treatment"] == "opaque" && row["flow_reason"] == reason, "{row}");
            ensure!(number(&row, "bytes_up") == words.len() as u64, "{row}");
            ensure!(number(&row, "bytes_down") == greeting.len() as u64, "{row}");
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_read_on_the_way_to_a_listed_address_is_refused() -> Result<()> {
    let greeter = Greeter::bind("127.0.0.1")?;
    let entry = format!("[[intercept]]\ncidrs = [\"127.0.0.0/8\"]\nports = [{}]", greeter.address.port());
    let world = world_with(&entry)?;
    let cases = [
        (&b""[..], "silent"),
        (b"\x16\x03\x01", "silent"),
        (b"\x00\x01\x02\x03 garbage", "unreadable"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff", "unreadable"),
    ];
    for ((words, end), number_of_flow) in cases.into_iter().zip(1..) {
        let told = talk(&world, true, greeter.address, words)?;
        ensure!(told["end"] == "ConnectionResetError" && told["heard"] == "", "{words:?}: {told}");
        let row = flow_to(&world, greeter.address, number_of_flow)?;
        ensure!(row["flow_treatment"] == "refused" && row["flow_end"] == end, "{words:?}: {row}");
        ensure!(row["process_comm"] == "python" && number(&row, "bytes_down") == 0, "{row}");
        let waited = number(&row, "duration_us") >= 1_000_000;
        ensure!(waited == (end == "silent"), "{words:?}: {row}");
    }
    greeter.saw_nobody()
}

#[test]
fn nobody_reaches_the_agents_own_port_without_an_origin() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let listen = world.agent.status()?.listen;
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (count, own) in [listen.v4, listen.v6].into_iter().enumerate() {
        let told = talk(&world, false, own, request)?;
        ensure!(told["end"] == "ConnectionResetError" && told["heard"] == "", "{told}");
        let told_of = || {
            let rows = world.sql("SELECT event_detail FROM events WHERE event_name = 'flow.unattributed'")?;
            Ok((rows.len() > count).then_some(()))
        };
        until("the agent to tell of it", CLIENT_DEADLINE, told_of)?;
        // A job that is watched is kept away by the hooks.
        let told = talk(&world, true, own, request)?;
        ensure!(told["end"] == "PermissionError", "{told}");
    }
    ensure!(world.agent.status()?.connects.refused == 2);
    world.sql_until(
        2,
        "SELECT seq FROM flows WHERE connect_verdict = 'refused' AND connect_reason = 'own_port'",
    )?;
    ensure!(world.number("SELECT count() FROM flows")? == 2);
    Ok(())
}
