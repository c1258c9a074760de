//! Where a job may go besides the servers that Weir reads: relayed, passed on, denied; and MCP where nobody expected it.

use std::net::TcpListener;

use anyhow::{Result, ensure};
use weir_tests::client::ClientKind;
use weir_tests::server::Scheme;
use weir_tests::wait::until;
use weir_tests::world::{CLIENT_DEADLINE, World, WorldPlan};

/// Connects to each port in turn, and says what came of it.
const CONNECTS: &str = r#"
import errno, socket, sys
for port in map(int, sys.argv[1:]):
    try:
        made = socket.create_connection(("127.0.0.1", port), 20)
        print(port, made.getpeername()[1] == port, flush=True)
    except OSError as e:
        print(port, errno.errorcode[e.errno], flush=True)
"#;

fn connects(world: &World, ports: &[u16]) -> Result<Vec<String>> {
    let mut command = vec![world.setup.python().into(), "-c".into(), CONNECTS.into()];
    command.extend(ports.iter().map(|port| port.to_string().into()));
    let mut job = world.job().command(&command)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    Ok(job.stdout()?.lines().map(str::to_owned).collect())
}

#[test]
fn mcp_on_a_port_that_nobody_listed_is_read_from_its_first_request_and_learned() -> Result<()> {
    let plan =
        WorldPlan { scheme: Scheme::Http, lists_port: false, rules: String::new(), ..WorldPlan::default() };
    let world = World::start(&plan)?;
    for kind in [ClientKind::TypeScript, ClientKind::Python] {
        world.converse(kind, "localhost", &[])?;
    }
    world.until_shipped()?;
    let executed = world.server.executed()?.len() as u64;
    let recorded =
        "SELECT count() FROM calls WHERE mcp_method_name = 'tools/call' AND result IN ('ok', 'tool_error')";
    ensure!(executed > 0 && world.number(recorded)? == executed, "{executed} were executed");
    // A client may open a connection and say nothing on it.
    let unread =
        world.sql("SELECT bytes_up, flow_end FROM flows WHERE flow_treatment = 'opaque' AND bytes_up > 0")?;
    ensure!(unread.is_empty(), "{unread:?}");
    let learned = world.sql("SELECT event_detail FROM events WHERE event_name = 'destination.learned'")?;
    // By each address of the name that a client took.
    ensure!((1..=2).contains(&learned.len()), "{learned:?}");
    Ok(())
}

#[test]
fn destinations_are_relayed_passed_or_denied_as_the_rules_say_and_each_connect_is_recorded() -> Result<()> {
    let servers: Vec<TcpListener> =
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let ports: Vec<u16> =
        servers.iter().map(|server| Ok(server.local_addr()?.port())).collect::<Result<_>>()?;
    for server in servers {
        std::thread::spawn(move || server.incoming().for_each(drop));
    }
    let &[relayed, passed, denied] = ports.as_slice() else { unreachable!() };
    let rules = format!(
        "[[egress.rule]]\ncidrs = [\"127.0.0.0/8\"]\nports = [{passed}]\naction = \"pass\"\n\n\
         [[egress.rule]]\ncidrs = [\"127.0.0.1/32\"]\nports = [{denied}]\naction = \"deny\"\n"
    );
    let world = World::start(&WorldPlan { rules, ..WorldPlan::default() })?;
    let told = connects(&world, &[relayed, passed, denied])?;
    ensure!(
        told == [format!("{relayed} True"), format!("{passed} True"), format!("{denied} EPERM")],
        "{told:?}"
    );
    until("each connect to be recorded", CLIENT_DEADLINE, || {
        Ok((world.number("SELECT count() FROM flows")? == 3).then_some(()))
    })?;
    for (port, expected) in [
        (relayed, ["redirected", "", "opaque"]),
        (passed, ["passed", "pass", "passed"]),
        (denied, ["refused", "denied", "refused"]),
    ] {
        let rows = world.sql(&format!(
            "SELECT connect_verdict, connect_reason, flow_treatment FROM flows WHERE server_port = {port}"
        ))?;
        let row = rows.first().map(|row| {
            ["connect_verdict", "connect_reason", "flow_treatment"]
                .map(|column| row[column].as_str().unwrap_or_default())
        });
        ensure!(rows.len() == 1 && row == Some(expected), "{rows:?}");
    }
    Ok(())
}
