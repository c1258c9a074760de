//! Bad input: each fault is named in one sentence that says the mend, with exit code 2 for wrong usage and 1 for failure.
//! Nothing stays behind.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use weir_tests::agent::AgentConfig;
use weir_tests::cgroup::Cgroup;
use weir_tests::machine::{JOB_UID, cgroup2_mount, require_kernel};
use weir_tests::places::{binary, fresh_folder};
use weir_tests::{PinFolder, Setup, Store, World, WorldPlan};

const USAGE: i32 = 2;
const FAILURE: i32 = 1;

/// Runs a command to its end, for a minute at most (then its exit code is 124).
fn run<S: AsRef<OsStr>>(command: &[S]) -> Result<Output> {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after", "5", "60"]).args(command).env_remove("RUST_LOG");
    limited.stdin(std::process::Stdio::null()).output().context("running a command")
}

/// The command fails with this code, and what it says on stderr is one sentence that has all these parts.
fn says<S: AsRef<OsStr>>(command: &[S], code: i32, parts: &[&str]) -> Result<()> {
    let output = run(command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let shown: Vec<_> = command.iter().map(|part| part.as_ref().to_string_lossy()).collect();
    ensure!(output.status.code() == Some(code), "{shown:?} ended with {}: {said}", output.status);
    ensure!(said.lines().count() == 1, "{shown:?} said more than a sentence:\n{said}");
    ensure!(said.starts_with("weir"), "{shown:?} does not say who speaks: {said}");
    for part in parts {
        ensure!(said.contains(part), "{shown:?} does not say {part:?}: {said}");
    }
    Ok(())
}

/// clap's own messages have several lines.
fn is_wrong_usage<S: AsRef<OsStr>>(command: &[S], part: &str) -> Result<()> {
    let output = run(command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(USAGE) && said.contains(part), "{}: {said}", output.status);
    Ok(())
}

/// A folder, a cgroup and a configuration that would do.
struct Bench {
    folder: tempfile::TempDir,
    cgroup: Cgroup,
    pins: PinFolder,
    weir: PathBuf,
}

impl Bench {
    fn new() -> Result<Self> {
        require_kernel()?;
        let (folder, cgroup, pins) =
            (fresh_folder("faults")?, Cgroup::fresh("faults")?, PinFolder::fresh("faults"));
        Ok(Self { folder, cgroup, pins, weir: binary("weir")? })
    }

    fn config(&self) -> AgentConfig {
        AgentConfig {
            tenant: "t".into(),
            default_action: "allow".into(),
            cgroups: vec![self.cgroup.path().to_path_buf()],
            failure: String::new(),
            service: None,
            pin_dir: self.pins.path().to_path_buf(),
            collector: None,
            protect: vec![],
            names: vec!["mcp.test".into()],
            cidrs: vec![],
            ports: vec![8443],
            roots: vec![],
            upstream: String::new(),
            allowed_signers: Some("/dev/null".into()),
            deadline: "1m".into(),
            keepalive: "1s".into(),
            approval: String::new(),
            rules: "[spool]\nmax_bytes = 134217728\n".into(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// `weir agent` with this configuration.
    fn agent(&self, config: &AgentConfig) -> Result<Vec<PathBuf>> {
        let file = self.write("weir.toml", &config.toml(&self.path("state")))?;
        Ok(vec![self.weir.clone(), "agent".into(), "--config".into(), file])
    }
}

#[test]
fn wrong_usage_and_a_wrong_configuration_end_with_2_and_name_the_place() -> Result<()> {
    let bench = Bench::new()?;
    let weir = bench.weir.to_string_lossy().into_owned();
    let collector = binary("weir-collector")?.to_string_lossy().into_owned();
    is_wrong_usage(&[&weir, "run"], "COMMAND")?;
    is_wrong_usage(&[&weir, "agnet"], "unrecognized subcommand")?;
    is_wrong_usage(&[&weir, "status", "--jsn"], "unexpected argument")?;
    is_wrong_usage(&[&collector, "query"], "required")?;
    is_wrong_usage(&[&binary("weir-store")?.to_string_lossy().into_owned()], "--data")?;

    let good = bench.config().toml(&bench.path("state"));
    let line_of = |text: &str, what: &str| text.lines().position(|line| line.contains(what)).unwrap_or(0) + 1;
    for (from, to, fault) in [
        ("tenant =", "tenannt =", "unknown field `tenannt`"),
        ("default_action = \"allow\"", "default_action = \"permit\"", "unknown variant `permit`"),
        ("ports = [8443]", "ports = [84430]", "84430"),
        ("keepalive = \"1s\"", "keepalive = \"soon\"", "not a duration"),
        ("max_bytes = 134217728", "max_bytes = \"1G\"", "invalid type"),
    ] {
        let text = good.replace(from, to);
        let file = bench.write("wrong.toml", &text)?;
        let at = format!("wrong.toml:{}:", line_of(&text, to));
        for command in [&["agent", "--config"][..], &["config", "check"], &["status", "--config"]] {
            let command: Vec<&OsStr> = [OsStr::new(&weir)]
                .into_iter()
                .chain(command.iter().map(OsStr::new))
                .chain([file.as_os_str()])
                .collect();
            says(&command, USAGE, &[&at, fault])?;
        }
        let run = [
            OsStr::new(&weir),
            "run".as_ref(),
            "--config".as_ref(),
            file.as_os_str(),
            "--".as_ref(),
            "true".as_ref(),
        ];
        says(&run, USAGE, &["wrong.toml:", fault])?;
    }
    let absent = bench.path("absent.toml").to_string_lossy().into_owned();
    says(&[&weir, "agent", "--config", &absent], USAGE, &["cannot read the configuration", "absent.toml"])?;

    let file = bench.write(
        "wrong.toml",
        "[store]\nurl = \"127.0.0.1:8123\"\n[listen]\nsocket = \"s\"\nagent_uids = [0]\n",
    )?;
    let file = file.to_string_lossy().into_owned();
    says(&[&collector, "--config", &file, "serve"], USAGE, &["wrong.toml:2:7", "http://"])?;
    says(&[&collector, "--config", &absent, "migrate"], USAGE, &["absent.toml"])
}

#[test]
fn an_agent_that_is_told_of_files_and_cgroups_that_are_not_there_says_so() -> Result<()> {
    let bench = Bench::new()?;
    let absent = bench.path("absent");
    let agent = |config| bench.agent(&config);
    let named = absent.to_string_lossy().into_owned();

    let config = AgentConfig { roots: vec![absent.clone()], ..bench.config() };
    says(&agent(config)?, FAILURE, &[&named, "No such file"])?;
    let nothing = bench.write("nothing.pem", "no certificate\n")?;
    let config = AgentConfig { roots: vec![nothing], ..bench.config() };
    says(&agent(config)?, FAILURE, &["nothing.pem", "PEM"])?;

    let config = AgentConfig { allowed_signers: Some(absent), ..bench.config() };
    says(&agent(config)?, USAGE, &["weir.toml", "allowed signers", &named])?;
    let nonsense = bench.write("signers", "# people\nalice@example.test ssh-ed25519 nonsense\n")?;
    let config = AgentConfig { allowed_signers: Some(nonsense), ..bench.config() };
    says(&agent(config)?, USAGE, &["signers", "line 2"])?;

    let unknown = bench.cgroup.path().join("absent");
    let config = AgentConfig { cgroups: vec![unknown.clone()], ..bench.config() };
    says(&agent(config)?, FAILURE, &[&unknown.to_string_lossy(), "does not exist"])?;
    let config = AgentConfig { cgroups: vec![bench.folder.path().to_path_buf()], ..bench.config() };
    says(&agent(config)?, FAILURE, &["is not a cgroup"])?;
    let child = bench.cgroup.child("child")?;
    let both = vec![bench.cgroup.path().to_path_buf(), child.path().to_path_buf()];
    says(&agent(AgentConfig { cgroups: both, ..bench.config() })?, FAILURE, &["one inside the other"])?;
    says(
        &agent(AgentConfig { cgroups: vec![], ..bench.config() })?,
        FAILURE,
        &["no cgroup is selected", "[select]"],
    )?;
    says(
        &[bench.weir.clone(), "status".into(), "--state-dir".into(), bench.path("state")],
        FAILURE,
        &["no agent answers", "weir agent"],
    )
}

#[test]
fn an_agent_whose_port_is_taken_says_so() -> Result<()> {
    let bench = Bench::new()?;
    for (family, host) in [("v4", "127.0.0.1:0"), ("v6", "[::1]:0")] {
        let taken = TcpListener::bind(host)?;
        let address = taken.local_addr()?.to_string();
        let listen = format!("[listen]\n{family} = \"{address}\"\n");
        let config = AgentConfig { rules: listen, ..bench.config() };
        says(&bench.agent(&config)?, FAILURE, &[&address, "in use", "[listen]"])?;
    }
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_state_is_refused_and_the_first_goes_on() -> Result<()> {
    let world = World::start(&WorldPlan::default())?;
    let first = world.agent.status()?;
    let command = [binary("weir")?, "agent".into(), "--config".into(), world.agent.config().to_path_buf()];
    says(&command, FAILURE, &["runs already", "--replace", &first.pid.to_string()])?;
    let told = world.converse(weir_tests::ClientKind::Python, "localhost", &["--calls", "echo"])?;
    ensure!(told.first("echo")?.ok, "{told:?}");
    ensure!(world.agent.status()?.pid == first.pid);
    // The same for the other two.
    let collector = binary("weir-collector")?;
    let command = [collector, "--config".into(), world.collector.config().to_path_buf(), "serve".into()];
    says(&command, FAILURE, &["collector.sock", "another program listens"])?;
    world.until_shipped()
}

#[test]
fn without_privilege_weir_says_what_it_lacks() -> Result<()> {
    let bench = Bench::new()?;
    // Where an unprivileged process can reach it, wherever the checkout is.
    let weir = bench.path("weir");
    std::fs::copy(&bench.weir, &weir)?;
    std::fs::set_permissions(&weir, std::fs::Permissions::from_mode(0o755))?;
    let agent = bench.agent(&bench.config())?;
    let id = JOB_UID.to_string();
    let unprivileged: Vec<PathBuf> =
        ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"].map(PathBuf::from).into();
    let as_nobody = |command: &[PathBuf]| [&unprivileged[..], std::slice::from_ref(&weir), command].concat();
    let state = bench.path("own-state");
    std::fs::create_dir(&state)?;
    chown(&state, Some(JOB_UID), Some(JOB_UID))?;
    let lacks = ["CAP_BPF (to load programs)", "run weir as root"];
    says(&as_nobody(&agent[1..]), FAILURE, &lacks)?;
    let run = ["run", "--state-dir"].map(PathBuf::from);
    let run = [&run[..], &[state], &["--", "true"].map(PathBuf::from)].concat();
    says(&as_nobody(&run), FAILURE, &lacks)?;
    // What needs no privilege works without.
    let output = run_ok(&as_nobody(&["config".into(), "check".into(), agent[3].clone()]))?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("no mistakes"), "{output:?}");
    Ok(())
}

fn run_ok<S: AsRef<OsStr>>(command: &[S]) -> Result<Output> {
    let output = run(command)?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// Unmounts every cgroup2 hierarchy there is.
const UNMOUNT: &str = r"for at in $(sed -n 's/^\([^ ]* \)\{4\}\([^ ]*\) .* - cgroup2 .*/\2/p' /proc/self/mountinfo); do umount -l $at; done";

/// Runs a script, and then `weir run -- true`, in a mount namespace of their own.
fn elsewhere(bench: &Bench, script: &str) -> Vec<PathBuf> {
    let script =
        format!("set -e; {script}; echo $$ > \"$1.pid\"; exec \"$0\" run --state-dir \"$1\" -- true");
    let mut command: Vec<PathBuf> = ["unshare", "--mount", "sh", "-c", &script].map(PathBuf::from).into();
    command.extend([bench.weir.clone(), bench.path("state")]);
    command
}

/// The `weir run` of the latest script has left no cgroup; those of other tests are none of ours.
fn nothing_is_left(bench: &Bench) -> Result<()> {
    let pid = std::fs::read_to_string(bench.path("state.pid"))?;
    let own = format!("weir-run-{}-", pid.trim());
    let entries = std::fs::read_dir(cgroup2_mount()?)?.collect::<std::io::Result<Vec<_>>>()?;
    let left: Vec<_> =
        entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with(&own)).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn cgroup2_is_found_wherever_it_is_mounted_and_its_absence_is_named() -> Result<()> {
    let bench = Bench::new()?;
    std::fs::create_dir(bench.path("hierarchy"))?;
    let moved = format!("{UNMOUNT}; mount -t cgroup2 none {}", bench.path("hierarchy").display());
    run_ok(&elsewhere(&bench, &moved))?;
    nothing_is_left(&bench)?;
    says(&elsewhere(&bench, UNMOUNT), FAILURE, &["no cgroup2 hierarchy is mounted", "mount -t cgroup2"])?;
    nothing_is_left(&bench)
}

#[test]
fn a_kernel_without_type_information_is_named() -> Result<()> {
    let bench = Bench::new()?;
    let hidden = elsewhere(&bench, "mount -t tmpfs none /sys/kernel/btf");
    says(&hidden, FAILURE, &["no type information", "/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"])?;
    nothing_is_left(&bench)
}

#[test]
fn a_collector_whose_store_is_away_closed_or_empty_says_so() -> Result<()> {
    let bench = Bench::new()?;
    let store = Store::start(&Setup::complete()?, bench.folder.path(), false)?;
    let collector = binary("weir-collector")?;
    let socket = bench.path("collector.sock");
    let config = |name: &str, url: &str, secret: &Path| {
        let text = format!(
            "[store]\nurl = {url:?}\npassword_file = {secret:?}\n\n[listen]\nsocket = {socket:?}\nagent_uids = [0]\n"
        );
        bench.write(name, &text)
    };
    let commands = |file: &Path| {
        [&["serve"][..], &["query", "--named", "calls"], &["approvals", "list"]].map(|rest| {
            let head = [collector.clone(), "--config".into(), file.to_path_buf()];
            head.into_iter().chain(rest.iter().map(PathBuf::from)).collect::<Vec<_>>()
        })
    };
    let migrate = |file: &Path| [collector.clone(), "--config".into(), file.to_path_buf(), "migrate".into()];

    let right = config("right.toml", &store.url(), store.secret())?;
    for command in commands(&right) {
        says(&command, FAILURE, &["weir", "run `weir-collector migrate`"])?;
    }
    let nowhere = config("nowhere.toml", "http://127.0.0.1:1", store.secret())?;
    for command in commands(&nowhere).into_iter().chain([migrate(&nowhere).into()]) {
        says(&command, FAILURE, &["no ClickHouse answers at http://127.0.0.1:1", "refused", "[store] url"])?;
    }
    let secret = bench.write("other.secret", "nobody's\n")?;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
    let wrong = config("wrong.toml", &store.url(), &secret)?;
    for command in commands(&wrong).into_iter().chain([migrate(&wrong).into()]) {
        says(&command, FAILURE, &["refuses the user default", "password_file"])?;
    }
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644))?;
    says(&migrate(&wrong), USAGE, &["wrong.toml:3:17", "open to others", "chmod 600"])?;

    run_ok(&migrate(&right))?;
    run_ok(&migrate(&right))?;
    let question = [collector, "--config".into(), right, "query".into(), "SELECT nothing FROM events".into()];
    says(&question, FAILURE, &["ClickHouse refused", "nothing"])
}

#[test]
fn a_store_that_cannot_start_says_why() -> Result<()> {
    let bench = Bench::new()?;
    let setup = Setup::complete()?;
    let store = Store::start(&setup, bench.folder.path(), false)?;
    let binary = binary("weir-store")?;
    let engine = setup.engine();
    let command = |data: &Path, listen: &str, engine: &Path| -> Vec<PathBuf> {
        let parts: [&Path; 7] = [
            &binary,
            "--data".as_ref(),
            data,
            "--listen".as_ref(),
            listen.as_ref(),
            "--engine".as_ref(),
            engine,
        ];
        parts.map(Path::to_path_buf).into()
    };
    let address = store.address().to_string();
    says(&command(&bench.path("new"), &address, &engine), FAILURE, &[&address, "--listen", "in use"])?;
    says(&command(&bench.path("store"), "127.0.0.1:0", &engine), FAILURE, &["store", "another"])?;
    says(&command(&bench.path("new"), "127.0.0.1:0", &bench.path("absent.so")), FAILURE, &["absent.so"])
}
