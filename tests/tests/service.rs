//! The agent as an ordinary user with exactly the capabilities of its unit file: all of it works, and without any of them
//! it says which one it lacks.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use weir_tests::places::{binary, workspace};
use weir_tests::service::AGENT_UID;
use weir_tests::world::CLIENT_DEADLINE;
use weir_tests::{AgentConfig, Cgroup, ClientKind, Net, Scheme, Service, World, WorldPlan};

/// Their bits, as capability.h numbers them.
const BITS: [(&str, u32); 6] = [
    ("dac_read_search", 2),
    ("net_admin", 12),
    ("sys_ptrace", 19),
    ("sys_admin", 21),
    ("perfmon", 38),
    ("bpf", 39),
];

#[test]
fn with_the_unit_files_capabilities_and_no_others_a_whole_call_is_read_attributed_and_recorded() -> Result<()>
{
    works_with(&Service::of_unit_file()?)
}

#[test]
fn without_containers_less_will_do_and_the_status_says_what_is_lost() -> Result<()> {
    works_with(&Service::of_unit_file_without_containers()?)
}

fn works_with(service: &Service) -> Result<()> {
    let plan = WorldPlan { kind: "service", service: Some(service.clone()), ..WorldPlan::default() };
    let mut world = World::start(&plan)?;
    runs_with_exactly(world.agent.daemon().pid(), service)?;
    let sees_containers = service.capabilities.iter().any(|name| name == "sys_admin");
    let missing = world.agent.status()?.missing;
    ensure!(missing.iter().any(|what| what.contains("CAP_SYS_ADMIN")) != sees_containers, "{missing:?}");
    called(&world, "first")?;

    // It keeps its pins, and takes them up again.
    world.agent.daemon().kill()?;
    let refused = world.start_client(ClientKind::Python, "localhost", &[])?.finish(CLIENT_DEADLINE);
    ensure!(refused.is_err(), "{refused:?}");
    world.agent.start_again()?;
    called(&world, "second")
}

/// A call goes through Weir, and its record is whole.
fn called(world: &World, nonce: &str) -> Result<()> {
    let told = world.converse(ClientKind::Python, "localhost", &["--calls", "echo", "--nonce", nonce])?;
    ensure!(told.first("echo")?.ok, "{told:?}");
    ensure!(told.issuer.as_deref() == Some(world.agent.status()?.ca.common_name()), "{told:?}");
    let question = format!(
        "SELECT * FROM calls WHERE gen_ai_tool_name = 'echo' AND position(arguments, '{nonce}-') > 0 \
         AND result = 'ok'"
    );
    let row = world.sql_until(1, &question)?.remove(0);
    // Read of a process of another user: its program, and its environment.
    ensure!(row["process_seen_alive"] == true && row["server_proof"] == "certificate", "{row}");
    ensure!(row["process_executable_path"].as_str().is_some_and(|path| path.contains("python")), "{row}");
    ensure!(row["vcs_repository_name"] == "example/payments", "{row}");
    let from = world.sql("SELECT DISTINCT agent_uid FROM events")?;
    ensure!(from.len() == 1 && from[0]["agent_uid"] == AGENT_UID, "{from:?}");
    Ok(())
}

#[test]
fn with_the_unit_files_capabilities_the_agent_listens_in_a_jobs_own_network_namespace() -> Result<()> {
    let (jobs, servers) = (Net::new()?, Net::new()?);
    jobs.connect(["10.78.0.1/24", "fd78::1/64"], &servers, ["10.78.0.2/24", "fd78::2/64"])?;
    let plan = WorldPlan {
        kind: "service",
        scheme: Scheme::Https,
        intercept_cidrs: vec!["10.78.0.0/24", "fd78::/64"],
        service: Some(Service::of_unit_file()?),
        ..WorldPlan::default()
    };
    let world = World::around_server_in(&plan, &servers, &["10.78.0.2"])?;
    let mut hook = Command::new(binary("weir")?)
        .args(["oci-hook", "--require", "--config"])
        .arg(world.agent.config())
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let state = format!(
        "{{\"ociVersion\":\"1.0.2\",\"id\":\"a\",\"status\":\"creating\",\"pid\":{},\"bundle\":\"/b\"}}",
        jobs.pid()
    );
    std::io::Write::write_all(&mut hook.stdin.take().context("no stdin")?, state.as_bytes())?;
    ensure!(hook.wait()?.success(), "the agent did not listen in there");
    let url = world.server.url("10.78.0.2");
    let mut job = world.job().client_in(&jobs, ClientKind::Python, &url, &["--calls", "echo"])?;
    let told = job.finish(CLIENT_DEADLINE)?;
    ensure!(told.first("echo")?.ok, "{told:?}");
    ensure!(told.issuer.as_deref() == Some(world.agent.status()?.ca.common_name()), "{told:?}");
    Ok(())
}

/// Of either set, each one taken away.
#[test]
fn each_capability_that_is_missing_is_named() -> Result<()> {
    let (whole, narrow) = (Service::of_unit_file()?, Service::of_unit_file_without_containers()?);
    let cgroup = Cgroup::fresh("lacking")?;
    for (service, lacking, named) in [
        (&whole, "sys_admin", "CAP_BPF (to load programs), CAP_NET_ADMIN (to"),
        (&whole, "sys_ptrace", "CAP_SYS_PTRACE (to"),
        (&whole, "dac_read_search", "CAP_DAC_READ_SEARCH (to"),
        (&narrow, "bpf", "missing CAP_BPF (to"),
        (&narrow, "net_admin", "missing CAP_NET_ADMIN (to"),
        (&narrow, "perfmon", "missing CAP_PERFMON (to"),
        (&narrow, "sys_ptrace", "CAP_SYS_PTRACE (to"),
        (&narrow, "dac_read_search", "CAP_DAC_READ_SEARCH (to"),
    ] {
        let folder = weir_tests::places::fresh_folder("lacking")?;
        let config = AgentConfig {
            tenant: "t".into(),
            default_action: "allow".into(),
            cgroups: vec![cgroup.path().to_path_buf()],
            pin_dir: folder.path().join("never-reached"),
            failure: String::new(),
            service: None,
            collector: None,
            protect: vec![],
            names: vec![],
            cidrs: vec!["127.0.0.0/8".into()],
            ports: vec![8443],
            roots: vec![],
            upstream: String::new(),
            allowed_signers: None,
            deadline: "1m".into(),
            keepalive: "1s".into(),
            approval: String::new(),
            rules: String::new(),
        };
        let (file, state) = (folder.path().join("weir.toml"), folder.path().join("state"));
        std::fs::write(&file, config.toml(&state))?;
        let command = service.without(lacking).command(folder.path(), &state)?;
        let output =
            Command::new(&command[0]).args(&command[1..]).args(["agent", "--config"]).arg(&file).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains(named), "{lacking:?}: {said}");
    }
    Ok(())
}

#[test]
fn the_unit_file_is_one_that_systemd_understands() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let unit = folder.path().join("weir-agent.service");
    let text = std::fs::read_to_string(workspace().join("agent/weir-agent.service"))?;
    let here = text.replace("/usr/bin/weir", &binary("weir")?.to_string_lossy());
    ensure!(here != text, "the unit file starts something else");
    std::fs::write(&unit, here)?;
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output()?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && !said.contains("weir-agent.service"), "{said}");
    Ok(())
}

/// By the kernel's word: effective, permitted, inheritable, ambient and bounding sets alike, and no new privileges.
fn runs_with_exactly(pid: u32, service: &Service) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        anyhow::Ok(line.with_context(|| format!("no {name}"))?.trim().to_owned())
    };
    let mut expected = 0_u64;
    for name in &service.capabilities {
        let (_, bit) =
            BITS.iter().find(|(known, _)| known == name).with_context(|| format!("{name} is new"))?;
        expected |= 1 << bit;
    }
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
        ensure!(u64::from_str_radix(&field(set)?, 16)? == expected, "{set}: {}", field(set)?);
    }
    ensure!(field("Uid")?.split_whitespace().all(|uid| uid == AGENT_UID.to_string()), "{}", field("Uid")?);
    ensure!(field("NoNewPrivs")? == "1");
    Ok(())
}
