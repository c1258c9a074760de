//! Weir as it is measured: an agent with its hooks, rules, masking, a log on disk, and a collector that acknowledges what it
//! ships. Its clients ask from a selected cgroup, and are led to it by the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use weir_tests::daemon::{Daemon, Program};
use weir_tests::{AgentConfig, Approver, Cgroup};

use super::Programs;
use super::peers::Helper;

const START: Duration = Duration::from_secs(30);

/// The rules that each call is held against. `read_*` need not wait for the disk.
const RULES: &str = r#"
[[rule]]
id = "no-deletes"
when = { method = "tools/call", tool = "delete_*" }
action = "deny"

[[rule]]
id = "no-admin"
when = { server = "*.admin.example.com" }
action = "deny"

[[rule]]
id = "deploys-need-a-human"
when = { method = "tools/call", tool = "deploy" }
action = "hold"

[[rule]]
id = "reads"
when = { method = "tools/call", tool = "read_*" }
action = "allow"
durability = "best_effort"
"#;

/// The agent and what is around it; the first ends first.
pub struct Weir {
    daemon: Option<Daemon>,
    /// Acknowledges what is shipped.
    #[expect(dead_code, reason = "ends with this")]
    collector: Helper,
    selected: Cgroup,
    #[expect(dead_code, reason = "removed with this")]
    parent: Cgroup,
    program: PathBuf,
    config: PathBuf,
    state: PathBuf,
    pid: u32,
}

impl Weir {
    pub fn start(programs: &Programs, folder: &Path, roots: &Path, server: u16) -> Result<Self> {
        let parent = Cgroup::fresh("bench")?;
        let selected = parent.child("job")?;
        let socket = folder.join("collector.sock");
        let (collector, _) = Helper::start(&programs.bench, &[Path::new("collector"), &socket])?;
        let (config, state) = (folder.join("weir.toml"), folder.join("state"));
        let told = AgentConfig {
            tenant: "bench".into(),
            default_action: "allow".into(),
            cgroups: vec![selected.path().to_path_buf()],
            pin_dir: format!("/sys/fs/bpf/weir-bench-{}", std::process::id()).into(),
            failure: String::new(),
            service: None,
            collector: Some(socket),
            protect: Vec::new(),
            names: vec!["localhost".into()],
            cidrs: vec!["127.0.0.0/8".into()],
            ports: vec![server],
            roots: vec![roots.to_path_buf()],
            upstream: String::new(),
            allowed_signers: Some(folder.join("allowed_signers")),
            deadline: "2m".into(),
            keepalive: "1s".into(),
            approval: String::new(),
            rules: RULES.into(),
        };
        // Nobody is asked for an approval; a rule that holds wants to know who could give one.
        let approver = Approver::with_new_key(folder, "nobody@example.test")?;
        std::fs::write(folder.join("allowed_signers"), approver.allowed_signers_line()?)?;
        std::fs::write(&config, told.toml(&state))?;
        let agent =
            Program::new("weir", &programs.weir, folder.join("weir.log")).arg("agent").arg("--config");
        let mut daemon = agent.arg(&config).env("RUST_LOG", "warn").start()?;
        let status = |key: &str| -> Option<Value> {
            let status =
                Command::new(&programs.weir).args(["status", "--json", "--config"]).arg(&config).output();
            serde_json::from_slice::<Value>(&status.ok()?.stdout).ok()?.get(key).cloned()
        };
        daemon.until_ready(START, || Ok((status("ready") == Some(Value::Bool(true))).then_some(())))?;
        let pid = daemon.pid();
        Ok(Self {
            daemon: Some(daemon),
            collector,
            selected,
            parent,
            program: programs.weir.clone(),
            config,
            state,
            pid,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What its clients trust.
    pub fn roots(&self) -> PathBuf {
        self.state.join("ca/ca.pem")
    }

    /// Where they ask from.
    pub fn selected(&self) -> &Path {
        self.selected.path()
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        drop(self.daemon.take());
        let detached =
            Command::new(&self.program).args(["agent", "--detach", "--config"]).arg(&self.config).output();
        if let Err(error) = detached.context("taking the hooks away") {
            eprintln!("{error:#}");
        }
    }
}
