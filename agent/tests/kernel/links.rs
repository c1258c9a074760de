//! What the hooks hang on: which cgroups they can be hung on, which processes that reaches, and what is left of the links
//! once they are taken off, dropped, or their process is killed.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use weir::{
    cgroup::{Cgroup, CgroupError},
    kernel::{Hooks, KernelError, Plan},
};

use crate::stage::{Job, Stage, accept, is_idle, listen, port, select, until};

#[test]
fn dropped_hooks_leave_no_link() {
    let Stage { hooks, job, agent_v4, server_v4, .. } = Stage::new();
    assert_eq!(job.attempt("127.0.0.1", port(&server_v4)), "ok");
    accept(&agent_v4);
    assert!(is_idle(&server_v4));
    drop(hooks);
    assert_eq!(job.attempt("127.0.0.1", port(&server_v4)), "ok");
    accept(&server_v4);
    assert!(is_idle(&agent_v4));
}

const HOLD: &str = "WEIR_TEST_HOLD";

#[test]
fn killed_process_leaves_no_link() {
    if let Some(cgroup) = std::env::var_os(HOLD) {
        // The process to be killed: this very test, run again.
        let hooks = Hooks::load(Plan::default()).unwrap();
        let cgroup = Cgroup::adopt(Path::new(&cgroup)).unwrap();
        select(&hooks, &cgroup);
        hooks.attach(cgroup.path()).unwrap();
        println!("attached");
        loop {
            std::thread::park();
        }
    }
    let (job, server) = (Job::new(), listen("127.0.0.1:0"));
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "links::killed_process_leaves_no_link", "--nocapture"])
        .env(HOLD, job.cgroup.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(holder.stdout.take().unwrap());
    assert!(said.lines().any(|line| line.unwrap().ends_with("attached")));
    // There are no listeners, so a redirected connect is refused.
    assert_eq!(job.attempt("127.0.0.1", port(&server)), "ECONNREFUSED");
    holder.kill().unwrap();
    holder.wait().unwrap();
    until("a connect goes direct again", || job.attempt("127.0.0.1", port(&server)) == "ok");
    accept(&server);
}

#[test]
fn detached_cgroup_goes_direct_and_can_be_attached_again() {
    let stage = Stage::new();
    let (path, server) = (stage.job.cgroup.path(), port(&stage.server_v4));
    stage.hooks.detach(path);
    assert_eq!(stage.job.attempt("127.0.0.1", server), "ok");
    accept(&stage.server_v4);
    stage.hooks.attach(path).unwrap();
    stage.hooks.attach(path).unwrap();
    assert_eq!(stage.job.attempt("127.0.0.1", server), "ok");
    assert!(stage.accept(&stage.agent_v4).1.is_some());
    assert_eq!(stage.counts().redirected, 1);
}

#[test]
fn cgroup_below_a_selected_one_is_redirected_too() {
    let stage = Stage::new();
    let below = stage.job.cgroup.path().join("below");
    std::fs::create_dir(&below).unwrap();
    stage.job.run(&format!(
        "open('{}/cgroup.procs', 'w').write(str(os.getpid())); connect('127.0.0.1', {})",
        below.display(),
        port(&stage.server_v4)
    ));
    let (_stream, origin) = stage.accept(&stage.agent_v4);
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&below).unwrap());
    assert_eq!(origin.unwrap().cgroup_id, id);
}

#[test]
fn cgroups_inside_one_another_cannot_both_be_selected() {
    let stage = Stage::new();
    let below = stage.job.cgroup.path().join("below");
    std::fs::create_dir(&below).unwrap();
    assert!(matches!(stage.hooks.attach(&below), Err(KernelError::Overlap(..))));
    stage.hooks.detach(stage.job.cgroup.path());
    stage.hooks.attach(&below).unwrap();
    assert!(matches!(stage.hooks.attach(stage.job.cgroup.path()), Err(KernelError::Overlap(..))));
    stage.hooks.detach(&below);
}

#[test]
fn what_is_not_a_cgroup_cannot_be_selected() {
    let stage = Stage::new();
    let missing = stage.hooks.attach(Path::new("no/such/cgroup")).unwrap_err();
    assert!(matches!(missing, KernelError::Cgroup(CgroupError::Missing(_))), "{missing}");
    let elsewhere = stage.hooks.attach(&std::env::temp_dir()).unwrap_err();
    assert!(matches!(elsewhere, KernelError::Cgroup(CgroupError::NotACgroup(_))), "{elsewhere}");
}
