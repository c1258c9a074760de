//! A container, run by a real OCI runtime (runc, crun) from a bundle that is made here: the machine's own /usr, read-only,
//! and what the caller names. Its network namespace is one that exists, as podman, CNI and Kubernetes make them.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::job::Job;
use crate::machine::{JOB_UID, cgroup2_mount};
use crate::net::Net;

/// The runtimes of Debian.
pub const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// Gives the runtime the cgroup2 hierarchy alone, in a mount namespace of its own: on a machine with both hierarchies it
/// would use the old one.
const UNIFIED: &str = "mount --make-rprivate / && umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";

/// A container to run.
#[derive(Debug)]
pub struct ContainerPlan<'a> {
    pub runtime: &'a str,
    pub net: &'a Net,
    /// Its cgroup is made below this one.
    pub cgroup: &'a Cgroup,
    /// Gets the bundle.
    pub folder: &'a Path,
    /// Names it, on the whole machine.
    pub name: String,
    /// Folders that it sees where they are here, read-only.
    pub folders: Vec<PathBuf>,
    pub environment: Vec<String>,
    /// The `hooks` of its config.json.
    pub hooks: Value,
}

/// A container that runs, or has run. Dropping it ends it, and removes what the runtime left.
#[derive(Debug)]
pub struct Container {
    /// The runtime in the foreground; its output is the container's.
    pub job: Job,
    plan: Leftovers,
}

#[derive(Debug)]
struct Leftovers {
    runtime: OsString,
    root: PathBuf,
    name: String,
    /// The cgroups above it, with the controllers that their children had before.
    above: Vec<(PathBuf, String)>,
}

impl ContainerPlan<'_> {
    /// Starts it; `command` is its first process.
    pub fn start(&self, command: &[OsString]) -> Result<Container> {
        let bundle = self.folder.join(&self.name);
        let (root, files) = (bundle.join("state"), bundle.join("rootfs"));
        for folder in [&root, &files] {
            std::fs::create_dir_all(folder)?;
        }
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }),
            json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777"] }),
        ];
        let mut folders = vec![PathBuf::from("/usr")];
        for name in ["bin", "sbin", "lib", "lib64"] {
            let host = Path::new("/").join(name);
            match std::fs::read_link(&host) {
                Ok(target) => symlink(target, files.join(name))?,
                Err(_) if host.exists() => folders.push(host),
                Err(_) => {}
            }
        }
        for folder in folders.iter().chain(&self.folders) {
            std::fs::create_dir_all(files.join(folder.strip_prefix("/")?))?;
            mounts.push(json!({
                "destination": folder, "source": folder, "type": "bind", "options": ["rbind", "ro"],
            }));
        }
        let place = self.cgroup.path().join(&self.name);
        let config = json!({
            "ociVersion": "1.0.2",
            "root": { "path": files, "readonly": false },
            "mounts": mounts,
            "hostname": "container",
            "process": {
                "terminal": false,
                "cwd": "/tmp",
                "user": { "uid": JOB_UID, "gid": JOB_UID },
                "env": self.environment,
                "args": command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>(),
                "noNewPrivileges": true,
            },
            "linux": {
                "cgroupsPath": Path::new("/").join(place.strip_prefix(cgroup2_mount()?)?),
                "resources": {},
                "namespaces": [
                    { "type": "pid" },
                    { "type": "ipc" },
                    { "type": "uts" },
                    { "type": "mount" },
                    { "type": "network", "path": self.net.path() },
                ],
            },
            "hooks": self.hooks,
        });
        std::fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        let above = place.ancestors().skip(1).filter_map(|cgroup| {
            Some((cgroup.to_path_buf(), std::fs::read_to_string(cgroup.join("cgroup.subtree_control")).ok()?))
        });
        let plan =
            Leftovers { runtime: self.runtime.into(), root, name: self.name.clone(), above: above.collect() };
        let [output, errors] = ["out", "err"].map(|end| bundle.join(end));
        let mut run = Command::new("setpriv");
        run.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "sh", "-c", UNIFIED, "sh"]);
        run.arg(self.runtime)
            .arg("--root")
            .arg(&plan.root)
            .arg("run")
            .arg("--bundle")
            .arg(&bundle)
            .arg(&self.name);
        run.stdin(Stdio::null()).stdout(File::create(&output)?).stderr(File::create(&errors)?);
        let child = run.spawn().with_context(|| format!("starting {}", self.runtime))?;
        Ok(Container { job: Job::of(child, output, errors), plan })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.job.kill().and_then(|()| self.plan.remove()) {
            eprintln!("a container stays behind: {error:#}");
        }
    }
}

impl Leftovers {
    fn remove(&self) -> Result<()> {
        let mut delete = Command::new("unshare");
        delete.args(["--mount", "sh", "-c", UNIFIED, "sh"]).arg(&self.runtime);
        let output = delete.arg("--root").arg(&self.root).args(["delete", "--force", &self.name]).output()?;
        // It is no error that it is gone already: `run` deletes what ended by itself.
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() || said.contains("not exist"), "the container stays behind: {said}");
        let mount = cgroup2_mount()?;
        for (cgroup, before) in &self.above {
            // Controllers that the runtime switched on there keep processes from being put into the cgroup itself.
            let control = cgroup.join("cgroup.subtree_control");
            let now = std::fs::read_to_string(&control)?;
            for added in
                now.split_whitespace().filter(|name| !before.split_whitespace().any(|had| had == *name))
            {
                match std::fs::write(&control, format!("-{added}")) {
                    // Another container may need it by now.
                    Err(_) if *cgroup == mount => {}
                    taken => {
                        taken.with_context(|| format!("taking {added} back from {}", cgroup.display()))?
                    }
                }
            }
        }
        Ok(())
    }
}
