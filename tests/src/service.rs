//! The agent as a service: an ordinary user with the capabilities that its unit file lists, and nothing else.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::places::{binary, workspace};

/// The uid and gid that the agent runs under here. No account is needed for it, and none is used.
pub const AGENT_UID: u32 = 64_991;

/// What the agent may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// As setpriv names them: `bpf`, `net_admin` ...
    pub capabilities: Vec<String>,
}

impl Service {
    /// As the unit file has it.
    pub fn of_unit_file() -> Result<Self> {
        Self::of_lines("")
    }

    /// As it has it for hosts without containers, in comments.
    pub fn of_unit_file_without_containers() -> Result<Self> {
        Self::of_lines("#without-containers ")
    }

    fn of_lines(before: &str) -> Result<Self> {
        let unit = std::fs::read_to_string(workspace().join("agent/weir-agent.service"))?;
        let list = |name: &str| {
            let of = |line: &'_ str| -> Option<String> {
                Some(line.strip_prefix(before)?.strip_prefix(name)?.strip_prefix('=')?.to_owned())
            };
            let line = unit.lines().find_map(of);
            line.with_context(|| format!("the unit file has no {name}"))
        };
        let (ambient, bounding) = (list("AmbientCapabilities")?, list("CapabilityBoundingSet")?);
        ensure!(ambient == bounding, "the agent could gain {bounding} beyond {ambient}");
        let name = |name: &str| name.strip_prefix("CAP_").map(str::to_lowercase).context("not a capability");
        Ok(Self { capabilities: ambient.split_whitespace().map(name).collect::<Result<_>>()? })
    }

    /// The same without one.
    pub fn without(&self, name: &str) -> Self {
        let left = self.capabilities.iter().filter(|own| *own != name);
        Self { capabilities: left.cloned().collect() }
    }

    /// What goes before the agent's own arguments, `weir` itself included. The program and a state folder are put where
    /// that user can reach them.
    pub fn command(&self, folder: &Path, state: &Path) -> Result<Vec<OsString>> {
        let weir = folder.join("weir");
        std::fs::copy(binary("weir")?, &weir)?;
        std::fs::set_permissions(&weir, PermissionsExt::from_mode(0o755))?;
        std::fs::create_dir_all(state)?;
        chown(state, Some(AGENT_UID), Some(AGENT_UID))?;
        let id = AGENT_UID.to_string();
        let mut set = "-all".to_owned();
        self.capabilities.iter().for_each(|name| set += &format!(",+{name}"));
        let mut command: Vec<OsString> =
            ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"]
                .map(Into::into)
                .into();
        for option in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
            command.push(format!("{option}={set}").into());
        }
        command.extend(["--pdeathsig".into(), "KILL".into(), "--".into(), weir.into()]);
        Ok(command)
    }

    /// A folder of pins that is this user's, on a bpffs that is root's: as systemd and the unit file prepare it.
    pub fn prepare_pins(folder: &Path) -> Result<()> {
        let mount =
            "mountpoint -q /sys/fs/bpf || mount -t bpf -o nosuid,nodev,noexec,mode=0700 bpf /sys/fs/bpf";
        let id = AGENT_UID.to_string();
        let own = ["install", "-d", "-o", &id, "-g", &id, "-m", "0700"];
        for command in [
            // Under the lock under which an agent mounts one.
            &mut Command::new("flock").args(["/sys/fs/bpf", "sh", "-c", mount]),
            &mut Command::new(own[0]).args(&own[1..]).arg(folder),
        ] {
            let output = command.output()?;
            ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}
