//! Who connected: an [`Origin`] from the kernel comes in, a [`Caller`] goes out, masked. What lineage knows of the process goes
//! first, since that is there when the process is gone; /proc is asked for the rest. What the process says of itself (its
//! environment, its command line) is recorded as it says it; nothing is decided by it yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use weir_core::mask::{Masked, Masker};
use weir_core::record::{Ancestor, Caller, Job};

use crate::kernel::Origin;
use crate::process::{self, Described, MAX_COMMAND_LINE, Processes, Readers, proc};

/// How long a process may take to be described.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one waits until others have been described.
const TURN: Duration = Duration::from_millis(500);
/// The most bytes of any other text that a process chose.
const MAX_TEXT: usize = 512;

/// Describes the process behind a connection, for no longer than [`PATIENCE`]: some of /proc is read from the process's
/// own memory, which may make its reader wait.
///
/// One that nothing was told of and that is gone, or whose number another process has by now, is described by what the
/// hook saw alone, and `seen_alive` says so.
///
/// One that connected a moment ago, and has become nothing else since, is not looked at again.
pub async fn look_up(origin: Origin, processes: &Arc<Processes>) -> Described {
    let known = processes.find(origin.tgid, origin.connected_at).await;
    if let Some(described) = known.as_ref().and_then(|known| processes.callers().of(&origin, known)) {
        return described;
    }
    // A process that has told its CI job has told all.
    let living = match &known {
        Some(known) if !known.ci.provider.is_empty() || known.exited.is_some() => None,
        _ => read(&origin, processes.readers()).await,
    };
    let lives = known
        .clone()
        .filter(|known| known.exited.is_none() && (living.is_some() || !known.ci.provider.is_empty()));
    let described = Arc::new(describe(&origin, processes, known, living));
    if let Some(known) = lives {
        processes.callers().keep(&origin, &known, &described);
    }
    described
}

/// What /proc says, if it says it in time. A process that makes its readers wait keeps their threads for as long as it likes: its job is
/// not asked again until they are back.
async fn read(origin: &Origin, readers: &Readers) -> Option<Living> {
    let (pid, at, job) = (origin.tgid, origin.connected_at, origin.job);
    let turn = readers.turn(job, TURN).await?;
    let late = turn.late();
    let reading = tokio::task::spawn_blocking(move || {
        let living = Living::read(pid, at);
        drop(turn);
        living
    });
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(read) => read.ok()?,
        Err(_) => {
            readers.is_late(job, &late);
            None
        }
    }
}

fn describe(
    origin: &Origin,
    processes: &Processes,
    known: Option<process::Process>,
    living: Option<Living>,
) -> Caller<Masked<String>> {
    let masker = processes.masker();
    let text = |value: &str| masker.text(value).truncate(MAX_TEXT);
    let caller = Caller {
        seen_alive: known.is_some() || living.is_some(),
        job_key: processes.job_key(origin.job),
        ..Caller::unseen(origin.tgid, (origin.uid, origin.gid), text(&origin.comm))
    };
    let caller = match living {
        Some(living) => Caller {
            start_time: Some(living.start_ticks),
            executable: text(&living.executable),
            command_line: masker.text(&living.command_line).truncate(MAX_COMMAND_LINE),
            container_id: process::container::id(&living.cgroup).to_owned(),
            cgroup: text(&living.cgroup),
            netns: living.netns,
            job: ci_job(&living.environment, masker),
            ..caller
        },
        None => caller,
    };
    let Some(known) = known else { return caller };
    let at = u64::try_from(origin.connected_at.as_nanos()).unwrap_or(u64::MAX);
    let image = known.image(at).cloned();
    let (executable, command_line) =
        image.map(|image| (image.executable, image.command_line)).unwrap_or_default();
    let or = |told: Masked<String>, read: Masked<String>| if told.as_str().is_empty() { read } else { told };
    Caller {
        start_time: Some(process::ticks(known.key.start)),
        executable: or(executable, caller.executable),
        command_line: or(command_line, caller.command_line),
        cgroup: processes.cgroup_path(origin.cgroup_id).map_or(known.cgroup.1, |path| text(&path)),
        job: if caller.job.provider.is_empty() { Job::clone(&known.ci) } else { caller.job },
        parents: known.parents.iter().map(|parent| Ancestor::clone(parent)).collect(),
        container_id: known.container_id,
        netns: known.netns,
        ..caller
    }
}

/// What /proc says of a process that is there.
#[derive(Debug, Default)]
struct Living {
    start_ticks: u64,
    executable: String,
    command_line: String,
    cgroup: String,
    netns: u32,
    environment: HashMap<String, String>,
}

impl Living {
    /// A process that began after the connection is another one with the same number. /proc counts in hundredths of a
    /// second, rounded down.
    fn read(pid: u32, connected_at: Duration) -> Option<Self> {
        let facts = proc::Facts::read(pid)?;
        let began = Duration::from_nanos(facts.start_ticks.saturating_mul(proc::NANOS_A_TICK));
        if began > connected_at {
            return None;
        }
        let living = Self {
            start_ticks: facts.start_ticks,
            executable: facts.executable,
            command_line: process::spaced(&proc::command_line(pid)?),
            cgroup: facts.cgroup,
            netns: facts.netns,
            environment: proc::environment(pid).unwrap_or_default(),
        };
        // Still the same process: what was read is of one.
        (proc::start_ticks_of(pid)? == living.start_ticks).then_some(living)
    }
}

/// When a process began, clock ticks since boot.
pub fn start_time(stat: &str) -> Option<u64> {
    proc::start_ticks(stat)
}

/// The CI job by the variables that each system sets for its jobs.
pub fn ci_job(environment: &HashMap<String, String>, masker: &Masker) -> Job<Masked<String>> {
    let text = |value: &str| masker.text(value).truncate(MAX_TEXT);
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

    fn nothing_told() -> Arc<Processes> {
        Arc::new(Processes::new(Masker::new(MaskKey::new([1; 32])), 5))
    }

    #[tokio::test]
    async fn a_living_process_is_described_and_its_secrets_are_masked() {
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
        let caller = look_up(origin(child.id(), Duration::MAX), &nothing_told()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(caller.seen_alive && caller.start_time.is_some());
        assert_eq!((caller.job.provider.as_str(), caller.job.repository.as_str()), ("github", "acme/shop"));
        let command_line = caller.command_line.as_str();
        assert!(command_line.starts_with("sh -c read line sh --password [masked:"), "{command_line}");
    }

    #[tokio::test(start_paused = true)]
    async fn readers_that_hang_take_no_more_threads_than_they_may() {
        let processes = nothing_told();
        let readers = processes.readers();
        // Of other jobs, each as many as a job may have.
        let hanging: Vec<_> = (1..).map_while(|n: u64| readers.turn_now(1000 + n / 4)).collect();
        assert!(!hanging.is_empty());
        let own = origin(std::process::id(), Duration::MAX);
        let caller = look_up(own.clone(), &processes).await;
        assert!(!caller.seen_alive && caller.comm.as_str() == "curl");
        drop(hanging);
        assert!(look_up(own, &processes).await.seen_alive);
    }

    #[tokio::test]
    async fn a_process_that_is_gone_is_described_by_what_the_kernel_saw() {
        let caller = look_up(origin(u32::MAX, Duration::MAX), &nothing_told()).await;
        assert!(!caller.seen_alive && caller.comm.as_str() == "curl" && caller.uid == 1);
    }

    #[tokio::test]
    async fn a_process_that_began_after_the_connection_is_not_its_caller() {
        let caller = look_up(origin(std::process::id(), Duration::ZERO), &nothing_told()).await;
        assert!(!caller.seen_alive && caller.executable.is_empty());
        assert_eq!((caller.pid, caller.comm.as_str()), (std::process::id(), "curl"));
    }
}
