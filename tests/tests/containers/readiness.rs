//! A readiness probe of a private destination: it connects where somebody listens, and nowhere else.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::{Net, World, until};

use super::{DEADLINE, SERVERS, Scheme, oci_hook, private_network, script};

/// One connect to each address, with a time limit of so many seconds (0: none) and so what the other end says first.
const PROBE: &str = "
import errno, socket, sys
timeout, port = float(sys.argv[1]), int(sys.argv[2])
for address in sys.argv[3:]:
    with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET) as made:
        made.settimeout(timeout or None)
        try:
            made.connect((address, port))
            print(made.recv(6).decode(), flush=True)
        except TimeoutError:
            print('gave up', flush=True)
        except OSError as error:
            print(errno.errorcode.get(error.errno, error), flush=True)
";

/// Listens at both families' addresses, says its port, and a line for each connection that it accepts. With an argument it
/// answers no SYN.
const SERVER: &str = "
import ctypes, socket, struct, sys
made = socket.socket(socket.AF_INET6)
made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
made.bind(('::', int(sys.argv[1])))
if len(sys.argv) > 2:
    nothing = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0))
    made.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HxxxxxxQ', 1, ctypes.addressof(nothing)))
made.listen()
print(made.getsockname()[1], flush=True)
while True:
    with made.accept()[0] as accepted:
        accepted.sendall(b'served')
        print('accepted', flush=True)
";

/// A server in a namespace, and what it says from then on.
struct Server {
    child: Child,
    says: BufReader<std::process::ChildStdout>,
    port: u16,
}

impl Server {
    fn start(world: &World, net: &Net, arguments: &[&str]) -> Result<Self> {
        let command = [net.enter(), script(world, SERVER, arguments)].concat();
        let (program, rest) = command.split_first().context("a command")?;
        let mut child = Command::new(program).args(rest).stdout(Stdio::piped()).spawn()?;
        let mut says = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        says.read_line(&mut line)?;
        Ok(Self { child, says, port: line.trim().parse()? })
    }

    /// How many connections it accepted.
    fn accepted(mut self) -> Result<usize> {
        self.child.kill()?;
        self.child.wait()?;
        let lines: std::io::Result<Vec<String>> = self.says.lines().collect();
        Ok(lines?.len())
    }
}

fn probe(world: &World, net: &Net, timeout: &str, port: u16, addresses: &[&str]) -> Result<Vec<String>> {
    let port = port.to_string();
    let arguments = [&[timeout, port.as_str()], addresses].concat();
    let mut job = world.job().command_in(net, &script(world, PROBE, &arguments))?;
    ensure!(job.wait(DEADLINE)?.success(), "{}", job.stderr()?);
    Ok(job.stdout()?.lines().map(str::to_owned).collect())
}

/// A port at which nobody listens in any of these tests.
const NOBODYS: u16 = 9;
/// The agent's listeners in a namespace: in each family the usual one, and those in which connects wait.
const LISTENERS: usize = 2 * (1 + weir_ebpf::HELD_SLOTS as usize);

/// Waits until connects in there wait: the agent makes the listeners for that when the namespace is registered already. Gives how
/// many connects it took to see it.
fn until_held(world: &World, net: &Net) -> Result<u64> {
    until("the listeners in there", DEADLINE, || {
        Ok((net.run(&["ss", "-Hltn"])?.lines().count() == LISTENERS).then_some(()))
    })?;
    let mut made = 0;
    until("connects to wait", DEADLINE, || {
        made += 2;
        let said = probe(world, net, "0", NOBODYS, &SERVERS)?;
        Ok((said == ["ECONNREFUSED", "ECONNREFUSED"]).then_some(()))
    })?;
    Ok(made)
}

/// The job's sums, once they are closed with so many redirected connects; and that they hold.
fn closes(world: &World, redirected: u64) -> Result<()> {
    let question = format!(
        "SELECT job_key FROM jobs WHERE job_closed AND job_name = '{}' AND kernel_connects['redirected'] = {redirected}",
        world.selected.path().display(),
    );
    let closed =
        until("the job's last sums", DEADLINE, || Ok((!world.sql(&question)?.is_empty()).then_some(())));
    closed.with_context(|| format!("{:?}", world.sql("SELECT * FROM jobs")))?;
    let checked = world.collector.attempt(&["completeness", "--json"])?;
    ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    Ok(())
}

fn flows(world: &World, reason: &str, count: usize) -> Result<Vec<Value>> {
    let question =
        format!("SELECT * FROM flows WHERE connect_reason = '{reason}' AND server_port != {NOBODYS}");
    let rows = world.sql_until(count, &question)?;
    ensure!(rows.len() == count, "{rows:?}");
    Ok(rows)
}

#[test]
fn a_probe_of_a_private_port_is_refused_until_a_server_listens_and_costs_that_one_connection() -> Result<()> {
    let (jobs, servers, world) = private_network(Scheme::Http)?;
    ensure!(oci_hook(&world, jobs.pid(), &["--require"])?.status.success());
    let before = until_held(&world, &jobs)?;
    // One that was there and is no more: nobody else takes its port in there.
    let server = Server::start(&world, &servers, &["0"])?;
    let port = server.port;
    ensure!(server.accepted()? == 0);
    for timeout in ["0", "20"] {
        let said = probe(&world, &jobs, timeout, port, &SERVERS)?;
        ensure!(said == ["ECONNREFUSED", "ECONNREFUSED"], "{said:?}");
    }
    for row in flows(&world, "nobody_listens", 4)? {
        ensure!(row["connect_verdict"] == "redirected" && row["flow_treatment"] == "refused", "{row}");
        ensure!(row["flow_end"] == "upstream_unreachable", "{row}");
    }
    let server = Server::start(&world, &servers, &[&port.to_string()])?;
    // The second time it is known to listen.
    let twice = [SERVERS[0], SERVERS[0], SERVERS[1]];
    let said = probe(&world, &jobs, "0", port, &twice)?;
    ensure!(said == ["served"; 3], "{said:?}");
    let held = world.sql_until(2, "SELECT * FROM flows WHERE connect_reason = 'held'")?;
    // A machine that is slow enough forgets it between two connects.
    ensure!((2..=3).contains(&held.len()), "{held:?}");
    ensure!(held.iter().all(|row| row["flow_end"] == "closed"), "{held:?}");
    closes(&world, before + 7)?;
    ensure!(server.accepted()? == 3, "one for each connect");
    Ok(())
}

#[test]
fn a_client_that_gives_up_or_loses_the_agent_while_it_waits_is_let_go_and_told_of_once() -> Result<()> {
    let (jobs, servers, mut world) = private_network(Scheme::Http)?;
    ensure!(oci_hook(&world, jobs.pid(), &["--require"])?.status.success());
    let before = until_held(&world, &jobs)?;
    let silent = Server::start(&world, &servers, &["0", "silent"])?;
    let said = probe(&world, &jobs, "0.2", silent.port, &SERVERS)?;
    ensure!(said == ["gave up", "gave up"], "{said:?}");
    flows(&world, "withdrawn", 2)?;

    let port = silent.port.to_string();
    let arguments = ["0", &port, SERVERS[0]];
    let mut waits = world.job().command_in(&jobs, &script(&world, PROBE, &arguments))?;
    until("a connect to wait", DEADLINE, || {
        Ok((world.agent.status()?.connects.redirected == before + 3).then_some(()))
    })?;
    world.agent.daemon().kill()?;
    ensure!(waits.wait(DEADLINE)?.success());
    ensure!(waits.stdout()? == "ECONNREFUSED\n", "{}", waits.stdout()?);
    world.agent.start_again()?;
    flows(&world, "withdrawn", 3)?;
    let server = Server::start(&world, &servers, &["0"])?;
    let said = probe(&world, &jobs, "0", server.port, &[SERVERS[0]])?;
    ensure!(said == ["served"], "{said:?}");
    closes(&world, before + 4)?;
    ensure!(silent.accepted()? == 0 && server.accepted()? == 1);
    Ok(())
}
