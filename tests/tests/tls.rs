//! What servers prove, and what becomes of clients of those that do not: with real TLS servers of many kinds, through the hooks.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::daemon::{Daemon, Program};
use weir_tests::places::{Setup, fresh_folder, workspace};
use weir_tests::world::{CLIENT_DEADLINE, RULES};
use weir_tests::{World, WorldPlan};

const START: Duration = Duration::from_secs(60);
const WEIR: &str = "Weir";

/// The servers of `tests/server/tls.py`.
struct Servers {
    _daemon: Daemon,
    folder: tempfile::TempDir,
    ports: Value,
}

impl Servers {
    fn start() -> Result<Self> {
        let (setup, folder) = (Setup::complete()?, fresh_folder("tls")?);
        let output = folder.path().join("servers.log");
        let program = Program::new("the TLS servers", setup.python(), output.clone());
        let program = program.arg(workspace().join("tests/server/tls.py")).arg(folder.path());
        let mut daemon = program.start()?;
        let ready: Value = daemon.until_ready(START, || {
            let text = std::fs::read_to_string(&output)?;
            let line = text
                .split_inclusive('\n')
                .find(|line| line.starts_with("{\"ready\"") && line.ends_with('\n'));
            line.map(|line| serde_json::from_str(line).context("the servers' ready line")).transpose()
        })?;
        Ok(Self { _daemon: daemon, ports: ready["ports"].clone(), folder })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn port(&self, server: &str) -> Result<u64> {
        self.ports[server].as_u64().with_context(|| format!("no port of {server}"))
    }

    /// How often a server saw something: a `connection`, or a `request`.
    fn saw(&self, server: &str, event: &str) -> Result<usize> {
        let log = std::fs::read_to_string(self.file("log.jsonl"))?;
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter(|line| line["server"] == server && line["event"] == event).count())
    }

    /// A world that reads all of them but `relayed`.
    fn world(&self, upstream: &str, more: &str, relayed: &[&str]) -> Result<World> {
        let ports = self.ports.as_object().context("no ports")?.iter();
        let ports: Vec<_> =
            ports.filter(|(name, _)| !relayed.contains(&name.as_str())).map(|(_, port)| port).collect();
        let entry = format!("[[intercept]]\ncidrs = [\"127.0.0.0/8\"]\nports = {}", json!(ports));
        let plan = WorldPlan {
            rules: format!("{RULES}\n{entry}\n{more}\n"),
            roots: vec![self.file("company.pem")],
            upstream: upstream.to_owned(),
            ..WorldPlan::default()
        };
        World::start(&plan)
    }
}

/// Runs the strict client as a job, by one plan.
fn ask(world: &World, plan: &Value) -> Result<Value> {
    ask_each(world, &json!([plan]))?.pop().context("no answer")
}

/// The same by several, one after the other.
fn ask_each(world: &World, plan: &Value) -> Result<Vec<Value>> {
    let script = workspace().join("tests/clients/tls.py");
    let command = [world.setup.python().into(), script.into(), plan.to_string().into()];
    let mut job = world.job().command(&command)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    job.stdout()?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// One request to a server by a name, with the roots that Weir gives.
fn get(world: &World, servers: &Servers, server: &str, name: &str) -> Result<Value> {
    ask(world, &json!({"port": servers.port(server)?, "name": name, "hosts": [name]}))
}

/// The newest flow to a server, once there are `count`.
fn flow(world: &World, servers: &Servers, server: &str, count: usize) -> Result<Value> {
    let port = servers.port(server)?;
    let rows =
        world.sql_until(count, &format!("SELECT * FROM flows WHERE server_port = {port} ORDER BY seq"))?;
    ensure!(rows.len() == count, "{rows:?}");
    rows.into_iter().next_back().context("no flow")
}

fn is(row: &Value, treatment: &str, end: &str, reason: &str) -> bool {
    row["flow_treatment"] == treatment && row["flow_end"] == end && row["flow_reason"] == reason
}

fn issued_by_weir(told: &Value) -> bool {
    told["issuer"].as_str().is_some_and(|name| name.contains(WEIR))
}

#[test]
fn a_server_that_is_not_trusted_gets_no_request_and_its_client_is_told_why() -> Result<()> {
    let servers = Servers::start()?;
    let world = servers.world(&format!("crls = [{:?}]", servers.file("revoked.crl")), "", &[])?;
    let bad = [
        ("expired", "certificate_expired", "expired"),
        ("early", "certificate_not_yet_valid", "not valid yet"),
        ("misnamed", "certificate_wrong_name", "elsewhere.test"),
        ("unknown", "certificate_unknown_issuer", "no root that this host trusts"),
        ("own", "certificate_unknown_issuer", "no root that this host trusts"),
        ("purpose", "certificate_wrong_purpose", "not for servers"),
        ("listed", "certificate_revoked", "revoked"),
        ("withdrawn", "certificate_revoked", "revoked"),
        ("unstapled", "certificate_revocation_unknown", "OCSP"),
    ];
    let plan = |(server, _, _): &(&str, &str, &str)| -> Result<Value> {
        Ok(json!({"port": servers.port(server)?, "name": "bad.test", "hosts": ["bad.test"]}))
    };
    let plans = bad.iter().map(plan).collect::<Result<Value>>()?;
    for ((server, label, word), told) in bad.into_iter().zip(ask_each(&world, &plans)?) {
        let answer = &told["answers"][0];
        ensure!(issued_by_weir(&told) && answer["status"] == 502, "{server}: {told}");
        ensure!(answer["reason"] == label && answer["headers"]["weir-error"] == label, "{server}: {told}");
        ensure!(answer["headers"]["content-type"] == "application/json", "{told}");
        let body: Value = serde_json::from_str(answer["body"].as_str().unwrap_or_default())?;
        let message = body["error"]["message"].as_str().unwrap_or_default();
        ensure!(
            message.starts_with("Weir: the certificate of bad.test is not trusted"),
            "{server}: {message}"
        );
        ensure!(message.to_lowercase().contains(&word.to_lowercase()), "{server}: {message}");
        ensure!(body["error"]["data"]["untrusted"] == label && body["error"]["code"] == -31403, "{body}");

        let row = flow(&world, &servers, server, 1)?;
        ensure!(is(&row, "refused", "upstream_untrusted", label), "{server}: {row}");
        ensure!(row["tls_client_server_name"] == "bad.test" && row["server_proof"] == "unproven", "{row}");
        ensure!(servers.saw(server, "request")? == 0, "{server} got a request");
        let id = row["flow_id"].as_str().context("no id")?;
        let question =
            format!("SELECT payload FROM events WHERE message_label = 'untrusted' AND flow_id = '{id}'");
        let messages = world.sql_until(1, &question)?;
        let text = messages[0]["payload"].as_str().unwrap_or_default();
        ensure!(text.starts_with("GET /secret") && text.contains(label), "{messages:?}");
    }
    // The same ways of asking reach those that are good.
    for (server, name) in [("good", "good.test"), ("good", "127.0.0.1"), ("stapled", "good.test")] {
        let told = get(&world, &servers, server, name)?;
        ensure!(issued_by_weir(&told) && told["answers"][0]["status"] == 200, "{told}");
    }
    Ok(())
}

#[test]
fn a_request_for_another_name_than_the_proven_one_is_refused_whatever_the_certificate_says() -> Result<()> {
    let servers = Servers::start()?;
    let world = servers.world("", "", &[])?;
    let port = servers.port("good")?;
    let with_port = |name: &str| format!("{name}:{port}");
    for (name, right, wrong) in [
        ("good.test", vec!["good.test".to_owned(), with_port("GOOD.test")], vec!["also.test", "a.wild.test"]),
        ("also.test", vec![with_port("also.test")], vec!["good.test"]),
        // The certificate says *.wild.test: the leaf is for the name that was asked for, and so is the proof.
        ("a.wild.test", vec!["a.wild.test".to_owned()], vec!["b.wild.test", "*.wild.test", "wild.test"]),
        ("127.0.0.1", vec![with_port("127.0.0.1")], vec!["good.test", "127.0.0.2"]),
    ] {
        let already = servers.saw("good", "request")?;
        let hosts: Vec<_> = right.iter().map(String::as_str).chain(wrong.iter().copied()).collect();
        let told = ask(&world, &json!({"port": port, "name": name, "hosts": hosts}))?;
        ensure!(issued_by_weir(&told), "{told}");
        let statuses: Vec<_> =
            told["answers"].as_array().into_iter().flatten().map(|a| a["status"].clone()).collect();
        let expected: Vec<_> =
            right.iter().map(|_| json!(200)).chain(wrong.iter().map(|_| json!(421))).collect();
        ensure!(statuses == expected, "{name}: {told}");
        ensure!(servers.saw("good", "request")? - already == right.len(), "{name}");
        for host in wrong {
            let question = format!(
                "SELECT payload FROM events WHERE message_label = 'misdirected' AND position(payload, '{host:?}') > 0 \
                 AND position(payload, 'the server is \"{name}\"') > 0"
            );
            world.sql_until(1, &question)?;
        }
    }
    // A name that is covered by no wildcard of the certificate is not proven at all.
    let told = get(&world, &servers, "good", "deep.a.wild.test")?;
    ensure!(told["answers"][0]["status"] == 502, "{told}");
    Ok(())
}

#[test]
fn a_server_that_needs_its_clients_own_certificate_is_relayed_and_recorded() -> Result<()> {
    let servers = Servers::start()?;
    let world = servers.world("", "", &[])?;
    let identity = [servers.file("job.pem"), servers.file("job.key")];
    for server in ["needs12", "needs13"] {
        for count in 1..=2 {
            let plan = json!({
                "port": servers.port(server)?, "name": "good.test", "hosts": ["good.test"],
                "roots": servers.file("company.pem"), "identity": identity,
            });
            let told = ask(&world, &plan)?;
            ensure!(told["issuer"] == "company" && told["answers"][0]["status"] == 200, "{server}: {told}");
            ensure!(
                told["answers"][0]["body"].as_str().is_some_and(|body| body.contains("\"job\"")),
                "{told}"
            );
            let row = flow(&world, &servers, server, count)?;
            ensure!(is(&row, "opaque", "closed", "client_certificate"), "{server}: {row}");
            ensure!(row["tls_client_server_name"] == "good.test", "{row}");
            // Weir tried once, and then knew.
            ensure!(servers.saw(server, "connection")? == count + 1, "{server}: {count}");
        }
    }
    // One that asks and goes on without is read.
    let told = get(&world, &servers, "asks", "good.test")?;
    ensure!(issued_by_weir(&told) && told["answers"][0]["status"] == 200, "{told}");
    ensure!(is(&flow(&world, &servers, "asks", 1)?, "terminated", "closed", ""));
    Ok(())
}

#[test]
fn weir_shows_its_own_certificate_where_it_is_told_to_and_relays_what_it_is_told_to() -> Result<()> {
    let servers = Servers::start()?;
    let upstream = format!(
        "client_auth = \"refuse\"\n[[upstream.client_certificate]]\nnames = [\"*.wild.test\"]\ncertificate = {:?}\nkey = {:?}",
        servers.file("weir.pem"),
        servers.file("weir.key")
    );
    let bypass = "[bypass]\nnames = [\"also.test\"]\ncidrs = [\"127.0.0.9/32\"]";
    let world = servers.world(&upstream, bypass, &["asks"])?;
    for server in ["needs12", "needs13"] {
        let told = get(&world, &servers, server, "a.wild.test")?;
        ensure!(issued_by_weir(&told), "{told}");
        ensure!(told["answers"][0]["body"].as_str().is_some_and(|body| body.contains("\"weir\"")), "{told}");
        ensure!(is(&flow(&world, &servers, server, 1)?, "terminated", "closed", ""));
        let told = get(&world, &servers, server, "good.test")?;
        let label = &told["answers"][0]["headers"]["weir-error"];
        ensure!(told["answers"][0]["status"] == 502 && label == "client_certificate", "{told}");
        let row = flow(&world, &servers, server, 2)?;
        ensure!(is(&row, "refused", "upstream_unreachable", "client_certificate"), "{row}");
    }
    // A name that is bypassed, on a port that is listed.
    let relayed = |server: &str, name: &str| -> Result<Value> {
        let (port, roots) = (servers.port(server)?, servers.file("company.pem"));
        ask(&world, &json!({"port": port, "name": name, "hosts": [name], "roots": roots}))
    };
    let told = relayed("good", "also.test")?;
    ensure!(told["issuer"] == "company" && told["answers"][0]["status"] == 200, "{told}");
    let row = flow(&world, &servers, "good", 1)?;
    ensure!(is(&row, "opaque", "closed", "bypass") && row["tls_client_server_name"] == "also.test", "{row}");
    // One that is not listed at all.
    let told = relayed("asks", "good.test")?;
    ensure!(told["issuer"] == "company", "{told}");
    ensure!(is(&flow(&world, &servers, "asks", 1)?, "opaque", "closed", ""));
    // What a client speaks that Weir does not is not relayed: the server might speak something else all the same.
    let plan =
        json!({"port": servers.port("good")?, "name": "good.test", "hosts": ["good.test"], "alpn": ["foo"]});
    let told = ask(&world, &plan)?;
    ensure!(told["error"].as_str().is_some_and(|e| e.to_lowercase().contains("protocol")), "{told}");
    let row = flow(&world, &servers, "good", 2)?;
    ensure!(is(&row, "refused", "client_handshake", "no_protocol"), "{row}");
    Ok(())
}

/// How many of the flows to a server, once there are `count`, went over a connection that another one had dialled.
fn borrowed(world: &World, servers: &Servers, server: &str, count: usize) -> Result<usize> {
    let port = servers.port(server)?;
    let question =
        format!("SELECT canonical FROM events WHERE kind = 'flow' AND server_port = {port} ORDER BY seq");
    let mut borrowed = 0;
    for row in world.sql_until(count, &question)? {
        let event: Value = serde_json::from_str(row["canonical"].as_str().context("no event")?)?;
        borrowed += usize::from(event["body"]["borrowed"] == true);
    }
    Ok(borrowed)
}

#[test]
fn a_jobs_later_flows_may_go_over_a_connection_that_an_earlier_one_left_and_the_record_says_so() -> Result<()>
{
    const FLOWS: usize = 8;
    let servers = Servers::start()?;
    let world = servers.world("", "", &[])?;
    let plan = json!({"port": servers.port("good")?, "name": "good.test", "hosts": ["good.test"]});
    for told in ask_each(&world, &json!(vec![plan.clone(); FLOWS]))? {
        ensure!(issued_by_weir(&told) && told["answers"][0]["status"] == 200, "{told}");
    }
    let lent = borrowed(&world, &servers, "good", FLOWS)?;
    // How many it is, is a matter of time; each of the others dialled.
    let dialled = servers.saw("good", "connection")?;
    ensure!(lent > 0 && lent + dialled == FLOWS, "{lent} borrowed, {dialled} dialled");
    ensure!(servers.saw("good", "request")? == FLOWS);

    // Another job's does not, however soon it comes.
    let other = world.selected.child("other")?;
    let script = workspace().join("tests/clients/tls.py");
    let command = [world.setup.python().into(), script.into(), json!([plan]).to_string().into()];
    let mut job = world.job_in(&other, Some(world.agent.trust())).command(&command)?;
    ensure!(job.wait(CLIENT_DEADLINE)?.success(), "{}", job.stderr()?);
    ensure!(servers.saw("good", "connection")? == dialled + 1);
    ensure!(borrowed(&world, &servers, "good", FLOWS + 1)? == lent);
    Ok(())
}
