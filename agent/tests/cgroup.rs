//! Cgroups on the running kernel. Needs root.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use weir::cgroup::{Cgroup, CgroupError, mount_point, resolve};

const PATIENCE: Duration = Duration::from_secs(20);

fn name(of: &str) -> PathBuf {
    format!("weir-test-{of}-{}", std::process::id()).into()
}

/// A process that does nothing until it is killed.
fn idler() -> (Child, Pid) {
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    (child, pid)
}

#[test]
fn cgroup_is_made_filled_killed_and_removed_with_all_below_it() {
    let cgroup =
        Cgroup::create(name("life").join("job")).expect("these tests need root and a cgroup2 hierarchy");
    let path = cgroup.path().to_owned();
    assert_eq!(resolve(&name("life").join("job")).unwrap(), path);
    let below = path.join("below/further");
    fs::create_dir_all(&below).unwrap();
    let ((mut one, pid), (mut other, other_pid)) = (idler(), idler());
    cgroup.add(pid).unwrap();
    fs::write(below.join("cgroup.procs"), other_pid.to_string()).unwrap();
    assert_eq!(cgroup.processes().unwrap(), [pid]);
    assert_eq!(cgroup.id().unwrap(), std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap()));
    cgroup.kill(PATIENCE).unwrap();
    assert_eq!(cgroup.processes().unwrap(), []);
    cgroup.remove().unwrap();
    assert!(!path.exists());
    assert!(!mount_point().unwrap().join(name("life")).exists(), "the parent that was made for it is left");
    for child in [&mut one, &mut other] {
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}

#[test]
fn waiting_for_the_last_process_ends_with_it_or_with_the_deadline() {
    let cgroup = Cgroup::create(name("wait")).unwrap();
    let (mut child, pid) = idler();
    cgroup.add(pid).unwrap();
    let began = Instant::now();
    let early = cgroup.wait_until_empty(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(early, CgroupError::StillPopulated { .. }), "{early}");
    assert!(began.elapsed() >= Duration::from_millis(50));
    // Its end is seen as it happens, by another thread than the one that reaps it.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cgroup.wait_until_empty(PATIENCE));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        waiting.join().unwrap().unwrap();
    });
    assert!(began.elapsed() < PATIENCE);
    cgroup.remove().unwrap();
}

#[test]
fn cgroup_that_is_used_cannot_be_removed() {
    let cgroup = Cgroup::create(name("used")).unwrap();
    let path = cgroup.path().to_owned();
    let (mut child, pid) = idler();
    cgroup.add(pid).unwrap();
    // Consumed all the same: dropping it kills what is in it.
    assert!(matches!(cgroup.remove(), Err(CgroupError::Io { .. })));
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    // Where the process was gone at once, the cgroup is, too.
    if let Err(error) = fs::remove_dir(path) {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
    }
}

#[test]
fn dropping_an_empty_cgroup_removes_it() {
    let cgroup = Cgroup::create(name("drop")).unwrap();
    let path = cgroup.path().to_owned();
    fs::create_dir(path.join("below")).unwrap();
    drop(cgroup);
    assert!(!path.exists());
}

#[test]
fn cgroup_that_exists_is_not_taken_over() {
    let first = Cgroup::create(name("twice")).unwrap();
    let second = Cgroup::create(name("twice"));
    assert!(matches!(second, Err(CgroupError::Io { doing: "create cgroup", .. })), "{second:?}");
    assert!(first.path().exists());
    first.remove().unwrap();
}
