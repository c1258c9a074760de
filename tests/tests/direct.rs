//! The clients and the server as they are without Weir: what every other test compares with.

use std::time::Duration;

use anyhow::{Context, Result};
use weir_tests::cgroup::Cgroup;
use weir_tests::job::JobPlan;
use weir_tests::machine::require_kernel;
use weir_tests::places::fresh_folder;
use weir_tests::{ClientKind, Conversation, McpServer, Scheme, Setup};

const DEADLINE: Duration = Duration::from_secs(60);
const TOUR: [&str; 6] = ["echo", "read_config", "delete_repo", "echo", "count", "deploy"];

fn tour(kind: ClientKind, scheme: Scheme, host: &str) -> Result<(Conversation, Vec<String>)> {
    require_kernel()?;
    let (setup, folder, cgroup) = (Setup::complete()?, fresh_folder("direct")?, Cgroup::fresh("world")?);
    let server = McpServer::start(&setup, &folder.path().join("server"), scheme, &["localhost"], false)?;
    let plan = JobPlan {
        setup: &setup,
        cgroup: &cgroup,
        folder: folder.path(),
        name: "tour".into(),
        trust: server.trust(),
    };
    let told = plan.client(kind, &server.url(host), &[])?.finish(DEADLINE)?;
    let executed = server.executed()?;
    let nonces = told.calls.iter().map(|call| &call.nonce).collect::<Vec<_>>();
    assert_eq!(executed.iter().map(|call| &call.nonce).collect::<Vec<_>>(), nonces);
    Ok((told, executed.into_iter().map(|call| call.tool).collect()))
}

#[test]
fn each_client_makes_its_calls_over_tls() -> Result<()> {
    for kind in ClientKind::BOTH {
        for host in ["localhost", "127.0.0.1", "[::1]"] {
            let (told, executed) = tour(kind, Scheme::Https, host)?;
            assert_eq!(executed, TOUR, "{kind:?} by {host}");
            assert!(told.calls.iter().all(|call| call.ok), "{told:?}");
            assert_eq!(told.issuer.as_deref(), Some("MCP server's own test CA"));
            assert_eq!(told.first("count")?.progress, 5, "{told:?}");
            let config = told.first("read_config")?.text.clone().context("no text")?;
            assert!(config.contains("aws_access_key_id="), "the result carries a secret in clear: {config}");
        }
    }
    Ok(())
}

#[test]
fn each_client_makes_its_calls_in_plain_text() -> Result<()> {
    for kind in ClientKind::BOTH {
        let (told, executed) = tour(kind, Scheme::Http, "localhost")?;
        assert_eq!(executed, TOUR, "{kind:?}");
        assert_eq!((told.issuer, told.failed), (None, None));
    }
    Ok(())
}

#[test]
fn a_client_refuses_a_server_whose_ca_it_does_not_know() -> Result<()> {
    require_kernel()?;
    let (setup, folder, cgroup) = (Setup::complete()?, fresh_folder("direct")?, Cgroup::fresh("world")?);
    let server =
        McpServer::start(&setup, &folder.path().join("server"), Scheme::Https, &["localhost"], false)?;
    for kind in ClientKind::BOTH {
        let plan = JobPlan {
            setup: &setup,
            cgroup: &cgroup,
            folder: folder.path(),
            name: kind.name().into(),
            trust: None,
        };
        let mut job = plan.client(kind, &server.url("localhost"), &[])?;
        assert_eq!(job.wait(DEADLINE)?.code(), Some(1));
        let failed = job.told()?.failed.context("it did not say why")?.to_lowercase();
        assert!(failed.contains("certif"), "{kind:?}: {failed}");
    }
    assert!(server.executed()?.is_empty());
    Ok(())
}

#[test]
fn a_job_runs_unprivileged_in_its_cgroup_under_a_runner_worker() -> Result<()> {
    require_kernel()?;
    let (setup, folder, cgroup) = (Setup::complete()?, fresh_folder("direct")?, Cgroup::fresh("world")?);
    let plan =
        JobPlan { setup: &setup, cgroup: &cgroup, folder: folder.path(), name: "who".into(), trust: None };
    let look = "id -u; cat /proc/$PPID/comm; grep ^0:: /proc/self/cgroup; env | grep -c CERT; echo $GITHUB_REPOSITORY";
    let mut job = plan.command(&["/bin/sh".into(), "-c".into(), look.into()])?;
    job.wait(DEADLINE)?;
    let path = format!("0::/{}", cgroup.path().file_name().context("no name")?.to_string_lossy());
    assert_eq!(
        job.stdout()?.lines().collect::<Vec<_>>(),
        ["65534", "Runner.Worker", &path, "0", "example/payments"]
    );
    Ok(())
}
