//! Who connected: an [`Origin`] from the kernel comes in, a [`Caller`] goes out, masked. What the process says
//! of itself (its environment, its command line) is recorded as it says it; nothing is decided by it yet.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use weir_core::mask::{Masked, Masker};
use weir_core::record::{Caller, Job};

use crate::kernel::Origin;

/// The most bytes that are read of one /proc file of a job's process.
const MAX_PROC_FILE: u64 = 256 << 10;
/// How long a process may take to be described.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes of a command line that are recorded.
const MAX_COMMAND_LINE: usize = 4096;
/// The most bytes of any other text that a process chose.
const MAX_TEXT: usize = 512;

/// Describes the process behind a connection, for no longer than [`PATIENCE`]: /proc is read from the process's
/// own memory, which may make its reader wait.
pub async fn look_up(origin: Origin, masker: Masker) -> Caller<Masked<String>> {
    let (at_most, own_masker) = (origin.clone(), masker.clone());
    let reading = tokio::task::spawn_blocking(move || caller(&origin, &masker));
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(Ok(caller)) => caller,
        _ => describe(&at_most, &own_masker, None),
    }
}

/// Describes the process behind a connection. One that is gone, or whose pid another process has by now, is
/// described by what the kernel saw alone, and `seen_alive` says so.
pub fn caller(origin: &Origin, masker: &Masker) -> Caller<Masked<String>> {
    describe(origin, masker, Process::read(origin.tgid, origin.connected_at))
}

fn describe(origin: &Origin, masker: &Masker, process: Option<Process>) -> Caller<Masked<String>> {
    let text = |value: &str| masker.text(value).truncate(MAX_TEXT);
    let seen_alive = process.is_some();
    let process = process.unwrap_or_default();
    Caller {
        pid: origin.tgid,
        start_time: process.start_time,
        uid: origin.uid,
        gid: origin.gid,
        comm: text(&origin.comm),
        executable: text(&process.executable),
        command_line: masker.text(&process.command_line).truncate(MAX_COMMAND_LINE),
        cgroup: text(&process.cgroup),
        job: job(&process.environment, text),
        seen_alive,
        parents: Vec::new(),
        container_id: String::new(),
        netns: 0,
        job_key: String::new(),
    }
}

#[derive(Debug, Default)]
struct Process {
    start_time: Option<u64>,
    executable: String,
    command_line: String,
    cgroup: String,
    environment: HashMap<String, String>,
}

impl Process {
    fn read(pid: u32, connected_at: Duration) -> Option<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let started = start_time(&read(&folder.join("stat"))?)?;
        // A process that began after the connection is another one with the same pid. /proc counts in
        // hundredths of a second, rounded down.
        if Duration::from_millis(started.saturating_mul(10)) > connected_at {
            return None;
        }
        let executable = std::fs::read_link(folder.join("exe")).ok()?;
        let command_line = read(&folder.join("cmdline"))?;
        let environment = read(&folder.join("environ")).unwrap_or_default();
        let process = Self {
            start_time: Some(started),
            executable: executable.to_string_lossy().into_owned(),
            command_line: command_line.trim_end_matches('\0').replace('\0', " "),
            cgroup: cgroup2_path(&read(&folder.join("cgroup"))?).unwrap_or_default(),
            environment: variables(&environment),
        };
        // Still the same process: what was read is of one.
        (start_time(&read(&folder.join("stat"))?)? == started).then_some(process)
    }
}

fn read(path: &std::path::Path) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_PROC_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// When a process began, clock ticks since boot: field 22 of its /proc/PID/stat. Field 2 may hold spaces and parentheses.
pub fn start_time(stat: &str) -> Option<u64> {
    stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The path in the cgroup2 hierarchy: the line `0::/path`.
fn cgroup2_path(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn variables(environment: &str) -> HashMap<String, String> {
    let pairs = environment.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The CI job by the variables that each system sets for its jobs.
fn job(environment: &HashMap<String, String>, text: impl Fn(&str) -> Masked<String>) -> Job<Masked<String>> {
    let is_set = |name: &str| environment.get(name).is_some_and(|value| !value.is_empty());
    let (provider, [repository, workflow, run_id, job, actor, reference, commit, runner]) =
        if is_set("GITHUB_ACTIONS") {
            let names = [
                "GITHUB_REPOSITORY",
                "GITHUB_WORKFLOW",
                "GITHUB_RUN_ID",
                "GITHUB_JOB",
                "GITHUB_ACTOR",
                "GITHUB_REF",
                "GITHUB_SHA",
                "RUNNER_NAME",
            ];
            ("github", names)
        } else if is_set("GITLAB_CI") {
            let names = [
                "CI_PROJECT_PATH",
                "CI_PIPELINE_NAME",
                "CI_PIPELINE_ID",
                "CI_JOB_NAME",
                "GITLAB_USER_LOGIN",
                "CI_COMMIT_REF_NAME",
                "CI_COMMIT_SHA",
                "CI_RUNNER_DESCRIPTION",
            ];
            ("gitlab", names)
        } else if is_set("JENKINS_URL") {
            let names = [
                "GIT_URL",
                "JOB_NAME",
                "BUILD_ID",
                "STAGE_NAME",
                "BUILD_USER_ID",
                "GIT_BRANCH",
                "GIT_COMMIT",
                "NODE_NAME",
            ];
            ("jenkins", names)
        } else {
            return Job::default();
        };
    let of = |name: &str| text(environment.get(name).map_or("", String::as_str));
    Job {
        provider: provider.to_owned(),
        repository: of(repository),
        workflow: of(workflow),
        run_id: of(run_id),
        job: of(job),
        actor: of(actor),
        reference: of(reference),
        commit: of(commit),
        runner: of(runner),
    }
}

#[cfg(test)]
mod tests {
    use weir_core::mask::MaskKey;

    use super::*;

    fn origin(tgid: u32, connected_at: Duration) -> Origin {
        Origin {
            destination: "127.0.0.1:1".parse().unwrap(),
            source: "127.0.0.1:2".parse().unwrap(),
            tgid,
            tid: tgid,
            uid: 1,
            gid: 2,
            cgroup_id: 3,
            netns_cookie: 4,
            connected_at,
            process_start: None,
            job: 3,
            verdict: 0,
            reason: 0,
            protocol: 6,
            comm: "curl".into(),
        }
    }

    fn masker() -> Masker {
        Masker::new(MaskKey::new([1; 32]))
    }

    #[test]
    fn a_living_process_is_described_and_its_secrets_are_masked() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", "sh", "--password", "correct-horse"])
            .env("GITHUB_ACTIONS", "true")
            .env("GITHUB_REPOSITORY", "acme/shop")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The kernel lets its parent go on a little before a new program's environment is in its place.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let environment = format!("/proc/{}/environ", child.id());
        while std::fs::read(&environment).unwrap().is_empty() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let caller = caller(&origin(child.id(), Duration::MAX), &masker());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(caller.seen_alive && caller.start_time.is_some());
        assert_eq!((caller.job.provider.as_str(), caller.job.repository.as_str()), ("github", "acme/shop"));
        let command_line = caller.command_line.as_str();
        assert!(command_line.starts_with("sh -c read line sh --password [masked:"), "{command_line}");
    }

    #[tokio::test]
    async fn a_process_that_is_gone_is_described_by_what_the_kernel_saw() {
        let caller = look_up(origin(u32::MAX, Duration::MAX), masker()).await;
        assert!(!caller.seen_alive && caller.comm.as_str() == "curl" && caller.uid == 1);
    }

    #[test]
    fn a_process_that_began_after_the_connection_is_not_its_caller() {
        let caller = caller(&origin(std::process::id(), Duration::ZERO), &masker());
        assert!(!caller.seen_alive && caller.executable.is_empty());
        assert_eq!((caller.pid, caller.comm.as_str()), (std::process::id(), "curl"));
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_start_time() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        assert_eq!(start_time(&format!("7 (a) b) {}", fields.join(" "))), Some(22));
        assert_eq!(start_time("7 (a"), None);
    }
}
