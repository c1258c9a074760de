//! What the agent makes of what the kernel tells: callers that are gone, what was there before, servers over pipes.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use weir::{
    account::Accounts,
    cgroup::Cgroup,
    config::{Reach, Select, SelectEntry, Stdio, UserName},
    identity,
    kernel::{Hooks, Origin, Plan, since_boot},
    ledger::{Ledger, LedgerConfig},
    lineage::Lineage,
    netns::Namespaces,
    process::Processes,
    spool::{Limits, faulty::Faulty},
};
use weir_core::{
    ids::Boot,
    mask::{MaskKey, Masker},
    record::{AgentEvent, Body, Written},
};

use crate::basics::lead_to;
use crate::stage::{PATIENCE, Process, cgroup, select, until};

/// Lineage as an agent has it, on a cgroup of its own, and listeners to which connects are led.
struct Agent {
    hooks: Arc<Hooks>,
    processes: Arc<Processes>,
    ledger: Ledger,
    records: Arc<Mutex<Vec<Written>>>,
    ending: CancellationToken,
    /// A test that fails must not wait for who follows.
    _failed: DropGuard,
    following: JoinHandle<()>,
    listener: TcpListener,
    _v6: TcpListener,
}

impl Agent {
    async fn start(select: Select) -> Self {
        Self::start_after(|_| {}, select).await
    }

    /// The same when something has happened between the load of the programs and the first look at what they tell.
    async fn start_after(before: impl FnOnce(&Hooks), select: Select) -> Self {
        Self::start_by(Plan::default(), before, select).await
    }

    async fn start_by(plan: Plan<'_>, before: impl FnOnce(&Hooks), select: Select) -> Self {
        let masker = Masker::new(MaskKey::new([1; 32]));
        let records: Arc<Mutex<Vec<Written>>> = Arc::default();
        let own = records.clone();
        let config = LedgerConfig {
            // The disk is in memory, and its reserve is, too.
            limits: Limits { max_bytes: 16 << 20, reserve_bytes: 1 << 16, ..Default::default() },
            tap: Some(Arc::new(move |event: &Written| own.lock().unwrap().push(event.clone()))),
            ..LedgerConfig::new(
                Arc::new(Faulty::new()),
                "t".into(),
                "h".into(),
                Boot::from_random([1; 16]),
                masker.clone(),
            )
        };
        let (ledger, _) = tokio::task::spawn_blocking(move || Ledger::open(config)).await.unwrap().unwrap();
        let hooks = Arc::new(Hooks::load(plan).expect("these tests need root"));
        let (listener, v6) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap());
        lead_to(&hooks, &listener, &v6);
        before(&hooks);
        let processes = Arc::new(Processes::new(masker.clone(), hooks.epoch()));
        let every = Duration::from_secs(3600);
        let accounts = Accounts::new(hooks.clone(), ledger.clone(), processes.clone(), every, None);
        let (namespaces, ..) = Namespaces::new(hooks.clone(), ledger.clone(), masker).unwrap();
        let ending = CancellationToken::new();
        let lineage =
            Lineage::start(hooks.clone(), accounts, &select, &Stdio::default(), namespaces).unwrap();
        let following = tokio::spawn(lineage.run(ledger.clone(), ending.clone()));
        let _failed = ending.clone().drop_guard();
        Self { hooks, processes, ledger, records, ending, _failed, following, listener, _v6: v6 }
    }

    /// The first event of this name for which it holds, waiting for it.
    async fn event(&self, name: &str, holds: impl Fn(&AgentEvent<String>) -> bool) -> AgentEvent<String> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.events(name).into_iter().find(|event| holds(event)) {
                return found;
            }
            let others: Vec<_> = self.events("");
            assert!(tokio::time::Instant::now() < end, "no {name} among {others:?}");
            tokio::task::yield_now().await;
        }
    }

    /// All of this name; with none, all.
    fn events(&self, name: &str) -> Vec<AgentEvent<String>> {
        let records = self.records.lock().unwrap();
        let agents = records.iter().filter_map(|written| match &written.body {
            Body::Agent(event) => Some(event),
            _ => None,
        });
        agents
            .filter(|event| name.is_empty() || event.name == name)
            .map(|event| AgentEvent {
                name: event.name.clone(),
                detail: event.detail.iter().map(|(k, v)| (k.clone(), v.as_str().to_owned())).collect(),
            })
            .collect()
    }

    /// Accepts one connection as the interceptor would; gives its origin.
    fn origin(&self) -> Origin {
        self.listener.set_nonblocking(true).unwrap();
        let mut accepted = None;
        until("a connection is led to the agent", || {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        let (_stream, peer) = accepted.unwrap();
        self.hooks.take_origin(self.hooks.netns_cookie(), peer).unwrap().expect("a led connection")
    }

    fn job(&self, pid: u32) -> Option<u64> {
        self.hooks.tag_of(pid).unwrap().map(|tag| tag.job)
    }

    async fn stop(self) {
        self.ending.cancel();
        self.following.await.unwrap();
        self.ledger.shutdown().await.unwrap();
    }
}

/// A folder that holds the cgroups of one test, at which the hooks are.
fn selecting(above: &Cgroup, entry: SelectEntry) -> Select {
    Select { entries: vec![SelectEntry { attach: vec![above.path().to_owned()], ..entry }] }
}

fn by_cgroup(cgroup: &Cgroup) -> Select {
    selecting(
        cgroup,
        SelectEntry { cgroups: vec![cgroup.path().display().to_string()], ..Default::default() },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_gone_is_described_in_full() {
    let job = cgroup();
    let agent = Agent::start(by_cgroup(&job)).await;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    // Two connects: one of a process that ends at once, one of a child of it that has no environment of its own.
    let script = format!(
        "env = dict(os.environ, GITHUB_ACTIONS='true', GITHUB_REPOSITORY='acme/shop')\n\
         code = 'import socket, os; s = socket.create_connection((\"127.0.0.1\", {port})); os._exit(0)'\n\
         os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', 'env -i python3 -c \"$CODE\" --token hunter2secret; true'], dict(env, CODE=code)), 0)\n\
         say('gone')\n"
    );
    let mut process = Process::within(&job, &script);
    assert_eq!(process.line(), "gone");
    let parent = process.id();
    let origin = agent.origin();
    assert_eq!(
        fs::metadata(format!("/proc/{}", origin.tgid)).err().map(|e| e.kind()),
        Some(std::io::ErrorKind::NotFound)
    );
    // Who asks waits half a second for the kernel's word, and an emulated processor may need longer to read it.
    let at = u64::try_from(origin.connected_at.as_nanos()).unwrap();
    until("the kernel's word of it is read", || agent.processes.at(origin.tgid, at).is_some());
    let caller = identity::look_up(origin.clone(), &agent.processes).await;
    assert!(caller.seen_alive);
    assert!(caller.executable.as_str().contains("python3"), "{caller:?}");
    let command_line = caller.command_line.as_str();
    assert!(
        command_line.starts_with("python3 -c ") && command_line.contains("--token [masked:"),
        "{command_line}"
    );
    let path = job.path().strip_prefix(weir::cgroup::mount_point().unwrap()).unwrap();
    assert_eq!(caller.cgroup.as_str(), format!("/{}", path.display()));
    let parents: Vec<u32> = caller.parents.iter().map(|parent| parent.pid).collect();
    assert_eq!((parents.get(1), parents.get(2)), (Some(&parent), Some(&std::process::id())), "{caller:?}");
    assert!(caller.parents[0].executable.as_str().ends_with("sh"), "{caller:?}");
    assert_eq!(caller.job_key, agent.processes.job_key(job.id().unwrap()));
    assert_eq!(
        u64::from(caller.netns),
        std::os::unix::fs::MetadataExt::ino(&fs::metadata("/proc/self/ns/net").unwrap())
    );
    let start = origin.process_start.unwrap().as_nanos() / 10_000_000;
    assert_eq!(caller.start_time.map(u128::from), Some(start));
    process.finish();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_without_an_environment_is_of_its_parents_ci_job() {
    let job = cgroup();
    let agent = Agent::start(by_cgroup(&job)).await;
    let script = "env = dict(os.environ, GITHUB_ACTIONS='true', GITHUB_REPOSITORY='acme/shop')\n\
        child = subprocess.Popen(['sh', '-c', 'echo $$; read x; env -i sh -c \"echo \\$\\$; read x\"; true'], env=env)\n\
        child.wait()\n";
    let mut process = Process::within(&job, script);
    let pid = process.number();
    let repository = |pid: u32, at: u64| {
        let process = agent.processes.at(pid, at)?;
        Some(process.ci.repository.as_str().to_owned())
    };
    let acme = Some("acme/shop".to_owned());
    until("the job's variables are read", || repository(pid, u64::MAX) == acme);
    process.go_on();
    let child = process.number();
    let alive = u64::try_from(since_boot().as_nanos()).unwrap();
    process.go_on();
    process.finish();
    until("its end is known", || agent.hooks.tags().unwrap().is_empty());
    // An entry that is not there yet says as little as one whose process has ended.
    until("its entry to be there", || repository(child, alive) == acme);
    until("its entry to say so", || agent.processes.at(child, u64::MAX).is_none());
    let image = agent.processes.at(child, alive).unwrap().image(alive).unwrap().clone();
    assert_eq!(image.command_line.as_str(), "sh -c echo $$; read x");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_already_is_tagged_and_its_connections_are_listed() {
    let job = cgroup();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut process = Process::within(
        &job,
        &format!("s = socket.create_connection(('127.0.0.1', {port}))\nsay(s.getsockname()[1]); wait()\n"),
    );
    let local = process.number();
    let (_connected, _) = server.accept().unwrap();
    let agent = Agent::start(by_cgroup(&job)).await;
    assert_eq!(agent.job(process.id()), Some(job.id().unwrap()));
    let event = agent.event("connection.predates", |_| true).await;
    assert_eq!(event.detail["local"], SocketAddr::from(([127, 0, 0, 1], local as u16)).to_string());
    assert_eq!(event.detail["remote"], format!("127.0.0.1:{port}"));
    assert_eq!(event.detail["pid"], process.id().to_string());
    assert!(event.detail["executable"].contains("python3"), "{event:?}");
    process.go_on();
    process.finish();
    until("its end is known", || agent.hooks.tags().unwrap().is_empty());
    assert_eq!(agent.events("connection.predates").len(), 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cgroup_that_a_pattern_names_is_selected() {
    let above = cgroup();
    let name = above.path().file_name().unwrap().to_string_lossy().into_owned();
    let entry = SelectEntry {
        cgroups: vec![format!("{name}/*/actions.runner.*.service")],
        egress: Reach::Strict,
        ..Default::default()
    };
    let agent = Agent::start(selecting(&above, entry)).await;
    let new = Cgroup::create(format!("{name}/system.slice/actions.runner.acme.service")).unwrap();
    let other = Cgroup::create(format!("{name}/system.slice/sshd.service")).unwrap();
    let mut inside = Process::beside(&format!("wait(); join({:?}); say('in'); wait()", new.path()));
    let mut beside = Process::within(&other, "say('in'); wait()");
    assert_eq!(beside.line(), "in");
    inside.go_on();
    assert_eq!(inside.line(), "in");
    let id = new.id().unwrap();
    until("it is tagged", || agent.job(inside.id()) == Some(id));
    assert_eq!(agent.hooks.tag_of(inside.id()).unwrap().unwrap().flags, weir_ebpf::flag::STRICT);
    assert_eq!(agent.job(beside.id()), None);
    for process in [&mut inside, &mut beside] {
        process.go_on();
    }
    inside.finish();
    beside.finish();
    for gone in [new, other] {
        gone.remove().unwrap();
    }
    agent.stop().await;
    let _ = fs::remove_dir(above.path().join("system.slice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cgroups_that_find_no_room_are_selected_with_all_that_lies_beside_them_and_it_is_told() {
    let above = cgroup();
    let name = above.path().file_name().unwrap().to_string_lossy().into_owned();
    // By name alone, as a job can name its own.
    let entry = SelectEntry { cgroups: vec![format!("{name}-*")], ..Default::default() };
    let plan = Plan { cgroups_room: 8, ..Plan::default() };
    let agent = Agent::start_by(plan, |_| {}, selecting(&above, entry)).await;
    let make = |path: String| Cgroup::create(format!("{name}/{path}")).unwrap();
    let holder = make("crowd".to_owned());
    let crowd: Vec<Cgroup> = (0..12).map(|n| make(format!("crowd/{name}-{n}"))).collect();
    let event = agent.event("selection.widened", |_| true).await;
    assert!(event.detail["cgroup"].ends_with("/crowd"), "{event:?}");
    assert_eq!(event.detail["because"], "no_room");
    let mut last = Process::within(&crowd[11], "say('in'); wait()");
    assert_eq!(last.line(), "in");
    until("the last of them is intercepted", || agent.job(last.id()) == Some(holder.id().unwrap()));
    // And another finds room again.
    let own = make(format!("{name}-own"));
    let mut process = Process::within(&own, "say('in'); wait()");
    assert_eq!(process.line(), "in");
    until("it is selected by itself", || agent.job(process.id()) == Some(own.id().unwrap()));
    assert!(agent.hooks.selected_cgroups().unwrap().len() < 8);
    assert_eq!(agent.events("selection.failed").len(), 0);
    for process in [&mut last, &mut process] {
        process.go_on();
    }
    last.finish();
    process.finish();
    for gone in crowd.into_iter().chain([holder, own]) {
        gone.remove().unwrap();
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn executables_and_users_that_run_already_are_selected_with_what_they_made() {
    const UID: u32 = 61_235;
    let (above, folder) = (cgroup(), tempfile::tempdir().unwrap());
    let runner = folder.path().join("runner-1");
    fs::copy("/bin/sh", &runner).unwrap();
    let start = |script: &str| Process::beside(script);
    let mut by_file = start(&format!(
        "p = subprocess.Popen([{runner:?}, '-c', 'sleep 50 & echo $!; echo $$; read x; kill $!'])\np.wait()\n"
    ));
    let (below, shell) = (by_file.number(), by_file.number());
    let mut by_user = start(&format!("os.setgid({UID}); os.setuid({UID}); say('ready'); wait()"));
    by_user.line();
    let entry = SelectEntry {
        executables: vec![format!("{}/runner-*", folder.path().display())],
        uids: vec![UserName::Number(UID)],
        ..Default::default()
    };
    let agent = Agent::start(selecting(&above, entry)).await;
    let job = agent.job(shell).unwrap();
    assert_eq!(job >> 63, 1);
    assert_eq!(agent.job(below), Some(job));
    assert_eq!(agent.job(by_file.id()), None, "what started it is not of it");
    assert_eq!(agent.job(by_user.id()), Some(u64::from(UID) | 1 << 62));
    assert!(agent.hooks.jobs().unwrap().contains_key(&job));
    by_file.go_on();
    by_user.go_on();
    by_file.finish();
    by_user.finish();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_mcp_server_over_pipes_is_recorded_once_with_its_lineage_and_without_its_secrets() {
    let (job, folder) = (cgroup(), tempfile::tempdir().unwrap());
    let server = folder.path().join("mcp-server-notes");
    fs::copy("/bin/sh", &server).unwrap();
    let agent = Agent::start(by_cgroup(&job)).await;
    // The server starts another that would match by itself. Its parent is there until it is recorded.
    let script = format!(
        "subprocess.run([{server:?}, '-c', {:?}, '--password', 'correct-horse'])\nwait()\n",
        format!("{} -c true", server.display())
    );
    let mut process = Process::within(&job, &script);
    let parent = process.id();
    let event = agent.event("stdio_server_started", |_| true).await;
    process.go_on();
    process.finish();
    let detail = &event.detail;
    assert_eq!(detail["pattern"], "mcp-server-*");
    assert!(detail["command_line"].contains("--password [masked:"), "{detail:?}");
    assert!(!detail["command_line"].contains("correct-horse"));
    assert!(detail["parents"].starts_with(&format!("{parent} /")), "{detail:?}");
    assert_eq!(detail["job_key"], agent.processes.job_key(job.id().unwrap()));
    until("all of it has ended", || agent.hooks.tags().unwrap().is_empty());
    let records = agent.records.clone();
    agent.stop().await;
    let servers = records
        .lock()
        .unwrap()
        .iter()
        .filter(|written| match &written.body {
            Body::Agent(event) => event.name == "stdio_server_started",
            _ => false,
        })
        .count();
    assert_eq!(servers, 1, "one for the server and all that it starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_socket_is_recorded_with_its_maker() {
    let job = cgroup();
    let agent = Agent::start(by_cgroup(&job)).await;
    let mut process = Process::within(
        &job,
        "kept = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); plain = socket.socket(); say('made'); wait()",
    );
    process.line();
    let event = agent.event("socket.unseen", |_| true).await;
    assert_eq!(
        (event.detail["family"].as_str(), event.detail["pid"].clone()),
        ("PACKET", process.id().to_string())
    );
    process.go_on();
    process.finish();
    let records = agent.records.clone();
    agent.stop().await;
    let of =
        |written: &&Written| matches!(&written.body, Body::Agent(event) if event.name == "socket.unseen");
    assert_eq!(records.lock().unwrap().iter().filter(of).count(), 1, "it is one socket, and TCP is seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_found_no_room_are_recorded_as_lost() {
    let job = cgroup();
    // Nobody reads yet: more is told than there is room for.
    let before = |hooks: &Hooks| {
        select(hooks, &job);
        let script = "for _ in range(2200):\n  os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)\n";
        Process::within(&job, script).finish();
    };
    let agent = Agent::start_after(before, by_cgroup(&job)).await;
    let lost = agent.hooks.count(weir_ebpf::counter::TASK_EVENTS_LOST).unwrap();
    assert!(lost > 0);
    let event = agent.event("lineage.lost", |_| true).await;
    assert_eq!(event.detail["events"], lost.to_string());
    // Its end was not told, and it is not taken for living all the same.
    assert!(agent.hooks.tags().unwrap().is_empty());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selection_that_cannot_be_is_named() {
    for (select, expected) in [
        (SelectEntry { cgroups: vec!["/nonexistent/cgroup".into()], ..Default::default() }, "does not exist"),
        (
            SelectEntry { cgroups: vec!["/tmp/*".into()], ..Default::default() },
            "outside of the cgroup2 mount",
        ),
        (SelectEntry { uids: vec![UserName::Name("no-such-user".into())], ..Default::default() }, "no user"),
    ] {
        let error = weir::select::Selection::new(&Select { entries: vec![select] }).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
