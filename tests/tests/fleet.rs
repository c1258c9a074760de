//! An agent that ships as one of another host does: over TLS, known by the certificate that it enrolled for. The collector, its
//! store and the agent are the real ones, and so are the calls.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use weir_tests::approver::next_hold;
use weir_tests::fleet::{enrol, enrol_by, hostname, token};
use weir_tests::places::{Setup, binary, fresh_folder};
use weir_tests::wait::until;
use weir_tests::world::{CLIENT_DEADLINE, RULES, SHIP_DEADLINE};
use weir_tests::{ClientKind, Collector, Store, World, WorldPlan};

/// What the world's own cgroup may not reach: were the agent's connection to its collector one of the job's, it would fail.
const NOTHING_ELSE: &str = "[[egress.rule]]\ncidrs = [\"127.0.0.1/32\"]\naction = \"deny\"\n";

fn echo(world: &World) -> Result<()> {
    let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo"])?;
    ensure!(told.first("echo")?.ok, "{told:?}");
    Ok(())
}

fn until_agent_says(world: &mut World, what: &str) -> Result<()> {
    until(what, SHIP_DEADLINE, || Ok(world.agent.daemon().log().contains(what).then_some(())))
}

#[test]
fn an_agent_ships_holds_and_is_answered_under_the_name_that_it_enrolled_for() -> Result<()> {
    let rules = format!("{RULES}\n{NOTHING_ELSE}");
    let mut world = World::start(&WorldPlan { from_afar: true, rules, ..WorldPlan::default() })?;
    // As on a host whose operator selects too much.
    let pid = world.agent.daemon().pid().to_string();
    std::fs::write(world.selected.path().join("cgroup.procs"), pid)?;
    echo(&world)?;
    until_agent_says(&mut world, "not enrolled")?;
    ensure!(world.number("SELECT count() FROM events")? == 0, "nobody has let it in");

    world.enrol()?;
    world.until_shipped()?;
    let whose = world.sql("SELECT DISTINCT tenant, host_name, agent_identity FROM events")?;
    let [who] = &whose[..] else { anyhow::bail!("{whose:?}") };
    let identity = who["agent_identity"].as_str().context("no identity")?.to_owned();
    ensure!(identity.starts_with("agent:") && who["host_name"] == hostname()?.as_str(), "{who}");

    // What makes it this host is closed to its jobs.
    let key = world.agent.state().join("collector/identity.pem");
    let mut reading = world.job().command(&["cat".into(), key.clone().into()])?;
    ensure!(key.exists() && !reading.wait(CLIENT_DEADLINE)?.success(), "a job read {}", key.display());

    // A hold goes out and its answer comes back on the same way.
    let mut client = world.start_client(ClientKind::Python, "localhost", &["--calls", "deploy"])?;
    let (id, _) = next_hold(&world.collector, SHIP_DEADLINE)?;
    let approved = world.approver.approve(&world.collector, &id, "as planned in the change CHG-7")?;
    ensure!(approved.status.success(), "{}", String::from_utf8_lossy(&approved.stderr));
    let told = client.finish(CLIENT_DEADLINE)?;
    ensure!(told.first("deploy")?.ok, "{told:?}");

    // The collector goes away in the middle, and comes back.
    world.collector.daemon().kill()?;
    echo(&world)?;
    world.collector.start_again()?;
    world.until_shipped()?;

    // A new certificate, of the same enrolment, is taken up by the running agent.
    let renew = Command::new(binary("weir")?)
        .args(["enrol", "--renew", "--config"])
        .arg(world.agent.config())
        .output()?;
    ensure!(renew.status.success(), "{}", String::from_utf8_lossy(&renew.stderr));
    echo(&world)?;
    world.until_shipped()?;
    ensure!(world.sql("SELECT DISTINCT agent_identity FROM events")?.len() == 1);
    ensure!(world.number("SELECT count() FROM agent_certificates")? == 2);

    let host = hostname()?;
    world.collector.run(&["agents", "revoke", "--tenant", "demo", "--host", &host, "--reason", "a test"])?;
    until("a refusal", SHIP_DEADLINE, || {
        echo(&world)?;
        Ok(world.agent.daemon().log().contains("enrolment was revoked").then_some(()))
    })?;
    ensure!(world.agent.status()?.spool.unshipped_events > 0, "what is recorded waits");
    world.enrol()?;
    world.until_shipped()?;
    let identities = world.number("SELECT uniqExact(agent_identity) FROM events")?;
    ensure!(identities == 2, "{identities}");
    let once =
        world.number("SELECT count() = uniqExact(seq) AND uniqExact(seq) = max(seq) + 1 FROM events")?;
    ensure!(once == 1, "each event is there, once");
    Ok(())
}

#[test]
fn what_is_wrong_with_an_enrolment_is_said_with_its_mend() -> Result<()> {
    let (setup, folder) = (Setup::complete()?, fresh_folder("enrol")?);
    let store = Store::start(&setup, folder.path(), false)?;
    let collector = Collector::start_for_others(&store, folder.path(), "info", false)?;
    let others = collector.for_others().context("no door")?.clone();
    let (url, ca) = (others.url(), others.ca.join("ca.pem"));
    let config = |tenant: &str, name: &str| -> Result<_> {
        let file = folder.path().join(format!("{name}.toml"));
        let state = folder.path().join(name);
        std::fs::write(
            &file,
            format!("tenant = {tenant:?}\nstate_dir = {state:?}\n[collector]\nurl = {url:?}\n"),
        )?;
        Ok(file)
    };
    let (good, other) = (config("demo", "good")?, config("demo", "other")?);
    let shown: serde_json::Value = serde_json::from_str(&collector.run(&[
        "ca",
        "show",
        "--dir",
        &others.ca.display().to_string(),
        "--json",
    ])?)?;
    let fingerprint = shown["fingerprint"].as_str().context("no fingerprint")?;

    // By the fingerprint alone; and once more, as after an answer that was lost.
    let whole = token(&collector)?;
    let by_fingerprint = ["--ca-fingerprint", fingerprint];
    let enrolled = enrol_by(&whole, &by_fingerprint, &url, &good)?;
    ensure!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));

    let foreign = folder.path().join("foreign");
    collector.run(&["ca", "init", "--dir", &foreign.display().to_string(), "--name", "other.test"])?;
    let foreign = foreign.join("ca.pem").display().to_string();
    let ca = ca.display().to_string();
    let ours = ["--ca", &ca];
    let late =
        collector.run(&["enrol-token", "--tenant", "demo", "--host", &hostname()?, "--valid", "1ms"])?;
    let elsewhere = collector.run(&["enrol-token", "--tenant", "demo", "--host", "another-host"])?;
    let fresh = token(&collector)?;
    let zeros = "0".repeat(64);
    let (plain, nobody) = (store.address().to_string(), "https://127.0.0.1:9");
    let plain = format!("https://{plain}");
    let cases: [(&str, &[&str], &str, &str); 9] = [
        (&whole, &ours, &url, "used already"),
        (&late, &ours, &url, "expired at"),
        (&elsewhere, &ours, &url, "for the host demo/another-host"),
        (&fresh, &["--ca", &foreign], &url, "the right --ca?"),
        (&fresh, &["--ca-fingerprint", &zeros], &url, "no certificate with the fingerprint"),
        (&fresh, &["--ca-fingerprint", "abc"], &url, "64 hex digits"),
        (&fresh, &ours, &plain, "does not speak TLS"),
        (&fresh, &ours, nobody, "refused"),
        ("weir-enrol-nothing", &ours, &url, "holds no enrolment token"),
    ];
    for (token, trust, url, expected) in cases {
        let told = enrol_by(token, trust, url, &other)?;
        let said = String::from_utf8_lossy(&told.stderr).into_owned();
        ensure!(told.status.code() == Some(1) && said.contains(expected), "{expected}: {said}");
    }
    // None of them has spent the token.
    let enrolled = enrol_by(&fresh, &ours, &url, &other)?;
    ensure!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let wrong_tenant = enrol(&collector, ca.as_ref(), &url, &config("another", "third")?)?;
    let said = String::from_utf8_lossy(&wrong_tenant.stderr).into_owned();
    ensure!(said.contains("this one is another/"), "{said}");
    let usage = enrol_by(&fresh, &[], &url, &other)?;
    ensure!(usage.status.code() == Some(2), "{usage:?}");
    Ok(())
}
