//! Links on the running kernel: cgroups, pins and programs of their own. Needs root and python3.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::cgroup::Cgroup;

const PASS: i32 = 1;
const REFUSE: i32 = 0;

/// A cgroup, and a folder of pins.
struct Stage {
    cgroup: Cgroup,
    folder: PathBuf,
}

impl Stage {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("weir-link-{}-{number}", std::process::id());
        Self {
            cgroup: Cgroup::create(&name).expect("these tests need root and a cgroup2 hierarchy"),
            folder: Path::new("/sys/fs/bpf").join(name),
        }
    }

    fn pins(&self) -> Pins {
        Pins::open(&self.folder).unwrap()
    }

    fn attach(&self, pins: Option<&Pins>, answer: i32) -> Link {
        let program = syscall::load_answering(answer, AttachType::Connect4 as u32).unwrap();
        let cgroup = File::open(self.cgroup.path()).unwrap();
        Link::attach(pins, "connect4", program.as_fd(), AttachType::Connect4, &cgroup).unwrap()
    }

    /// What a process in the cgroup gets of a connect to a port of 127.0.0.1 at which nobody listens.
    fn attempt(&self) -> String {
        let mut client = self.client("say()");
        let line = client.line();
        client.end();
        line
    }

    fn client(&self, script: &str) -> Client {
        let prelude = format!(
            "import errno, os, signal, socket, sys\nsignal.alarm(60)\n\
             open({:?}, 'w').write(str(os.getpid()))\n\
             def attempt():\n\
             \x20   made = socket.socket()\n\
             \x20   said = errno.errorcode[made.connect_ex(('127.0.0.1', 1))]\n\
             \x20   made.close()\n\
             \x20   return said\n\
             def say(): print(attempt(), flush=True)\n",
            self.cgroup.path().join("cgroup.procs")
        );
        let mut child = Command::new("python3")
            .args(["-c", &(prelude + script)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Client { child, from }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.cgroup.kill(Duration::from_secs(20));
        let _ = pins::remove(&self.folder);
    }
}

struct Client {
    child: Child,
    from: BufReader<ChildStdout>,
}

impl Client {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the script ended early");
        line.trim_end().to_owned()
    }

    fn has_said(&self) -> bool {
        poll(&mut [PollFd::new(self.from.get_ref().as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap()
            > 0
    }

    /// Closes its input, and waits for it.
    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn a_pinned_link_outlives_its_agent_and_its_tables_keep_their_epoch() {
    let stage = Stage::new();
    let pins = stage.pins();
    let (epoch, link) = (pins.epoch(), stage.attach(Some(&pins), REFUSE));
    drop((pins, link));
    assert_eq!(stage.attempt(), "EPERM");
    let pins = stage.pins();
    assert_eq!(pins.epoch(), epoch);
    pins.remove_all().unwrap();
    assert_eq!(stage.attempt(), "ECONNREFUSED");
    assert!(!stage.folder.exists());
    assert_ne!(stage.pins().epoch(), epoch, "new tables, and the epoch of the old");
}

#[test]
fn a_link_without_pins_ends_with_its_agent() {
    let stage = Stage::new();
    let link = stage.attach(None, REFUSE);
    assert_eq!(stage.attempt(), "EPERM");
    assert_eq!(link.state().unwrap(), State::Attached);
    drop(link);
    assert_eq!(stage.attempt(), "ECONNREFUSED");
}

/// Swap upon swap during two thousand connects: none of them finds the cgroup without a program, which would let it be made.
#[test]
fn the_program_of_a_pinned_link_is_swapped_without_a_window() {
    const CONNECTS: usize = 2000;
    let stage = Stage::new();
    let pins = stage.pins();
    let mut latest = stage.attach(Some(&pins), REFUSE);
    let mut client = stage.client(&format!(
        "say()\nseen = [attempt() for _ in range({CONNECTS})]\nprint(seen.count('EPERM'), flush=True)"
    ));
    assert_eq!(client.line(), "EPERM");
    let mut swaps = 0;
    while !client.has_said() {
        let next = stage.attach(Some(&pins), REFUSE);
        assert_eq!(next.id, latest.id, "another link, not another program");
        assert_ne!(next.program_id, latest.program_id);
        latest = next;
        swaps += 1;
    }
    assert_eq!(client.line(), CONNECTS.to_string());
    assert!(swaps > 20, "only {swaps} swaps");
    client.end();
}

#[test]
fn each_way_to_lay_hands_on_a_link_is_seen_and_mended() {
    let stage = Stage::new();
    let pins = stage.pins();
    let mut link = stage.attach(Some(&pins), REFUSE);
    let pin = pins.link_path(link.name());
    assert!(link.watch().unwrap().is_none());
    let mut seen = |state: State, before: &str| {
        assert_eq!(stage.attempt(), before, "{state:?}");
        let found = link.watch().unwrap().expect("nothing was seen");
        assert_eq!((found.state, found.cgroup_id), (state, stage.cgroup.id().unwrap()));
        found.mended.unwrap();
        assert!(link.watch().unwrap().is_none());
        assert_eq!(stage.attempt(), "EPERM");
        assert_eq!(pinned(&pin).unwrap().id, link.id);
    };
    syscall::link_detach(syscall::open_pin(&pin).unwrap().as_fd()).unwrap();
    seen(State::Detached, "ECONNREFUSED");
    let other = syscall::load_answering(PASS, AttachType::Connect4 as u32).unwrap();
    syscall::link_update(syscall::open_pin(&pin).unwrap().as_fd(), other.as_fd()).unwrap();
    seen(State::OtherProgram(syscall::program_id(other.as_fd()).unwrap()), "ECONNREFUSED");
    std::fs::remove_file(&pin).unwrap();
    seen(State::Unpinned, "EPERM");
    // Another's link under this one's name.
    let cgroup = File::open(stage.cgroup.path()).unwrap();
    let planted = syscall::link_create(other.as_fd(), Some(cgroup.as_fd()), AttachType::Connect4 as u32);
    pins::replace(planted.unwrap().as_fd(), &pin).unwrap();
    seen(State::Unpinned, "EPERM");
}

#[test]
fn a_cgroup_that_is_gone_is_told_from_a_hook_that_was_taken_off() {
    let mut stage = Stage::new();
    let pins = stage.pins();
    let mut link = stage.attach(Some(&pins), REFUSE);
    let other = Stage::new();
    std::mem::replace(&mut stage.cgroup, Cgroup::adopt(other.cgroup.path()).unwrap()).remove().unwrap();
    // The kernel lets go of it a little later.
    let deadline = Instant::now() + Duration::from_secs(20);
    let found = loop {
        match link.watch().unwrap() {
            Some(found) => break found,
            None => assert!(Instant::now() < deadline, "the link is still attached"),
        }
        std::thread::yield_now();
    };
    assert_eq!(found.state, State::Detached);
    assert!(found.mended.unwrap_err().is_cgroup_gone());
    // Its pin goes with the next look at what is selected.
    pins.keep_links(&[]).unwrap();
    assert!(!pins.link_path(link.name()).exists());
}

/// A pin of the right name whose link hangs elsewhere is not taken for this cgroup's.
#[test]
fn a_planted_link_is_not_taken_over() {
    let (stage, elsewhere) = (Stage::new(), Stage::new());
    let pins = stage.pins();
    let program = syscall::load_answering(PASS, AttachType::Connect6 as u32).unwrap();
    let name = format!("connect4-{:016x}", stage.cgroup.id().unwrap());
    let cgroups = [&stage, &elsewhere].map(|stage| File::open(stage.cgroup.path()).unwrap());
    for (cgroup, attach_type) in [(&cgroups[1], AttachType::Connect6), (&cgroups[0], AttachType::Connect6)] {
        let planted =
            syscall::link_create(program.as_fd(), Some(cgroup.as_fd()), attach_type as u32).unwrap();
        pins::replace(planted.as_fd(), &pins.link_path(&name)).unwrap();
        drop(planted);
        let link = stage.attach(Some(&pins), REFUSE);
        assert_eq!(stage.attempt(), "EPERM");
        assert_eq!(link.state().unwrap(), State::Attached);
        link.detach().unwrap();
        assert_eq!(stage.attempt(), "ECONNREFUSED");
    }
}

#[test]
fn one_agent_at_a_time_uses_a_folder_and_a_successor_gets_its_lock() {
    let stage = Stage::new();
    let pins = stage.pins();
    let refused = Pins::open(&stage.folder).unwrap_err();
    assert!(matches!(refused, PinError::InUse { holder: Some(pid), .. } if pid == std::process::id()));
    assert!(matches!(pins::remove(&stage.folder), Err(PinError::InUse { .. })));
    let sent = File::from(pins.lock().unwrap());
    let successor = Pins::take_over(&stage.folder, sent).unwrap();
    assert_eq!(successor.epoch(), pins.epoch());
    drop(pins);
    assert!(matches!(Pins::open(&stage.folder), Err(PinError::InUse { .. })), "the successor has it");
    let wrong = File::open("/sys/fs/bpf").unwrap();
    assert!(Pins::take_over(&stage.folder, wrong).is_err());
    drop(successor);
    assert!(pins::remove(&stage.folder).unwrap());
    assert!(!pins::remove(&stage.folder).unwrap(), "there is nothing left, and that is no error");
}

#[test]
fn what_another_version_left_is_named_and_removed_when_asked() {
    let stage = Stage::new();
    let pins = stage.pins();
    let program = syscall::load_answering(REFUSE, AttachType::Connect4 as u32).unwrap();
    let old = stage.folder.join("v9999");
    for folder in [old.clone(), old.join("links"), old.join("maps")] {
        std::fs::create_dir(folder).unwrap();
    }
    let cgroup = File::open(stage.cgroup.path()).unwrap();
    let link = syscall::link_create(program.as_fd(), Some(cgroup.as_fd()), AttachType::Connect4 as u32);
    syscall::pin(link.unwrap().as_fd(), &old.join("links/connect")).unwrap();
    let own = stage.attach(Some(&pins), PASS);
    assert_eq!(pins.other_layouts().unwrap(), [9999]);
    assert_eq!(stage.attempt(), "EPERM", "the old one refuses");
    pins.remove_other_layouts().unwrap();
    assert_eq!(stage.attempt(), "ECONNREFUSED");
    assert!(!old.exists());
    assert_eq!(own.state().unwrap(), State::Attached);
}

#[test]
fn a_folder_that_is_no_folder_of_our_own_on_a_bpffs_is_refused() {
    // Mounts a bpffs if there is none.
    let stage = Stage::new();
    drop(stage.pins());
    for (folder, ours) in [("/tmp/weir-pins", true), ("/sys/fs/bpf", false), ("weir", false)] {
        let error = Pins::open(Path::new(folder)).unwrap_err();
        assert_eq!(matches!(error, PinError::NotBpffs(_)), ours, "{error}");
        assert_eq!(matches!(error, PinError::NotOurs(_)), !ours, "{error}");
        assert!(error.to_string().contains("[kernel] pin_dir"), "{error}");
    }
    assert!(matches!(Pins::open(Path::new("/sys/fs/bpf/a.b")), Err(PinError::NotOurs(_))));
}

#[test]
fn a_folder_open_to_others_is_closed_and_one_of_another_user_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new();
    drop(stage.pins());
    std::fs::set_permissions(&stage.folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(stage.pins());
    assert_eq!(std::fs::metadata(&stage.folder).unwrap().permissions().mode() & 0o777, 0o700);
    std::os::unix::fs::chown(&stage.folder, Some(65534), None).unwrap();
    let error = Pins::open(&stage.folder).unwrap_err();
    assert!(matches!(error, PinError::Owner { owner: 65534, user: 0, .. }), "{error}");
}
