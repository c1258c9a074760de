//! Processes of a job stay its own, whatever they do, and what they were is known after they are gone.

// Shared with the tests of the hooks' basics, which use the rest of it.
#[path = "kernel/stage.rs"]
#[allow(dead_code)]
mod basics;
#[path = "lineage/followed.rs"]
mod followed;
#[path = "lineage/stage.rs"]
mod stage;

use std::fs;

use stage::{Process, Stage, cgroup, file_key, until};
use weir_ebpf::{
    Selected,
    task::event::{CGROUP, EXEC, EXIT, FORK, MOVE, SOCKET},
};

#[test]
fn a_process_that_comes_into_a_selected_cgroup_is_tagged_and_so_are_its_children() {
    let (stage, job) = (Stage::new(), cgroup());
    let id = stage.select(&job);
    let script = "say('in'); wait(); pid = os.fork()\nif pid == 0:\n  wait()\nelse:\n  say(pid); wait(); os.waitpid(pid, 0)\n";
    let mut process = Process::within(&job, script);
    process.line();
    let tag = stage.tag(process.id()).unwrap();
    assert_eq!((tag.job, tag.by_executable), (id, 0));
    let moved = stage.told("it moved", |told| told.event.kind == MOVE && told.event.tgid == process.id());
    assert_eq!((moved.event.cgroup_id, moved.event.start), (id, tag.process_start));
    process.go_on();
    let child = process.number();
    assert_eq!(stage.tag(child).unwrap().job, id);
    let forked = stage.told("it forked", |told| told.event.kind == FORK && told.event.tgid == child);
    assert_eq!((forked.event.parent_tgid, forked.event.parent_start), (process.id(), tag.process_start));
    assert!(forked.event.start > tag.process_start && forked.event.netns > 0 && forked.event.mount_ns > 0);
    process.go_on();
    process.go_on();
    process.finish();
    for pid in [child, tag_pid(&forked)] {
        stage.told("it ended", |told| told.event.kind == EXIT && told.event.tgid == pid);
        assert_eq!(stage.tag(pid), None);
    }
}

fn tag_pid(forked: &weir::kernel::Told) -> u32 {
    forked.event.parent_tgid
}

#[test]
fn a_daemon_that_moved_to_another_cgroup_stays_tagged() {
    let (stage, job, elsewhere) = (Stage::new(), cgroup(), cgroup());
    let id = stage.select(&job);
    let script = format!(
        "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    join({:?})\n    say(os.getpid())\n    \
         pid = os.fork()\n    if pid == 0:\n      os.execvp('sleep', ['sleep', '50'])\n    say(pid)\n    \
         wait()\n    os.kill(pid, 9)\n    os.waitpid(pid, 0)\n    say('done')\n  os._exit(0)\nos.wait()\n",
        elsewhere.path()
    );
    let mut process = Process::within(&job, &script);
    let daemon = process.number();
    let child = process.number();
    for pid in [daemon, child] {
        assert_eq!(stage.tag(pid).unwrap().job, id, "{pid}");
    }
    let exec = stage.told("it became sleep", |told| told.event.kind == EXEC && told.event.tgid == child);
    assert_eq!((exec.event.job, exec.event.cgroup_id), (id, elsewhere.id().unwrap()));
    assert_eq!(exec.arguments, b"sleep\x0050\0");
    assert!(exec.path.ends_with(b"/sleep") && !exec.cut);
    process.go_on();
    assert_eq!(process.line(), "done");
    process.finish();
    let exit = stage.told("it was killed", |told| told.event.kind == EXIT && told.event.tgid == child);
    assert_eq!(exit.event.detail, 9);
}

#[test]
fn a_child_that_begins_in_another_cgroup_belongs_to_that_one() {
    let (stage, job, elsewhere) = (Stage::new(), cgroup(), cgroup());
    let id = stage.select(&job);
    // clone3 with CLONE_INTO_CGROUP: its parent is no job's.
    let script = format!(
        "import struct\nfd = os.open({:?}, os.O_RDONLY)\n\
         args = struct.pack('11Q', 0x200000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, fd)\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         libc.syscall.restype = ctypes.c_long\n\
         pid = libc.syscall(435, args, len(args))\n\
         if pid == 0:\n  wait(); os._exit(0)\n\
         say(pid if pid > 0 else -ctypes.get_errno()); wait(); os.waitpid(pid, 0)\n",
        job.path()
    );
    let mut process = Process::within(&elsewhere, &script);
    let child = process.number();
    assert_eq!(stage.tag(child).unwrap().job, id);
    assert_eq!(stage.tag(process.id()), None);
    process.go_on();
    process.go_on();
    process.finish();
}

#[test]
fn each_start_of_a_selected_executable_begins_a_job_that_its_children_keep_wherever_they_go() {
    let (stage, folder, elsewhere) = (Stage::new(), tempfile::tempdir().unwrap(), cgroup());
    let runner = folder.path().join("runner");
    fs::copy("/bin/sh", &runner).unwrap();
    let selected = Selected { job: 0, flags: weir_ebpf::flag::STRICT, reserved: 0 };
    stage.hooks.select_executable(file_key(&runner), selected).unwrap();
    let other = stage.select(&elsewhere);
    let script = format!(
        "for _ in range(2):\n  pid = os.posix_spawn({runner:?}, ['sh', '-c', 'echo $$; read x; sleep 50 & echo $! ; \
         echo $! > {:?}; read x; kill $!'], os.environ)\n  os.waitpid(pid, 0)\n",
        elsewhere.path().join("cgroup.procs")
    );
    let mut process = Process::beside(&script);
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let shell = process.number();
        let tag = stage.tag(shell).unwrap();
        assert_eq!((tag.job, tag.by_executable), (tag.process_start | 1 << 63, 1));
        assert_eq!(tag.flags, weir_ebpf::flag::STRICT);
        process.go_on();
        let child = process.number();
        stage.told("the child moved", |told| told.event.kind == MOVE && told.event.tgid == child);
        assert_eq!(stage.tag(child).unwrap().job, tag.job);
        assert_ne!(tag.job, other);
        jobs.push(tag.job);
        process.go_on();
    }
    assert_ne!(jobs[0], jobs[1]);
    assert_eq!(stage.tag(process.id()), None);
    process.finish();
}

#[test]
fn a_selected_users_processes_are_tagged_and_others_are_not() {
    const UID: u32 = 61_234;
    let stage = Stage::new();
    let selected = Selected { job: u64::from(UID) | 1 << 62, flags: 0, reserved: 0 };
    stage.hooks.select_user(UID, selected).unwrap();
    let script = format!(
        "own = os.getpid()\npid = os.fork()\nif pid == 0:\n  os.setuid({UID})\n  child = os.fork()\n  if child == 0:\n    wait(); os._exit(0)\n  \
         say(child); os.waitpid(child, 0); os._exit(0)\nos.waitpid(pid, 0)\n"
    );
    let mut process = Process::beside(&script);
    let child = process.number();
    assert_eq!(stage.tag(child).unwrap().job, selected.job);
    assert_eq!(stage.tag(process.id()), None);
    process.go_on();
    process.finish();
}

#[test]
fn a_process_ends_with_its_last_thread_and_is_told_of_once() {
    let (stage, job) = (Stage::new(), cgroup());
    stage.select(&job);
    // The first thread ends before the others.
    let script = "import threading\ngates = [threading.Event() for _ in range(8)]\n\
        def work():\n  wait_all.wait(); ctypes.CDLL(None).syscall(60, 0)\n\
        wait_all = threading.Event()\n[threading.Thread(target=work, daemon=True).start() for _ in range(8)]\n\
        def last():\n  wait(); wait_all.set(); time.sleep(0.05); ctypes.CDLL(None).syscall(60, 0)\n\
        threading.Thread(target=last).start()\nsay('ready'); ctypes.CDLL(None).syscall(60, 0)\n";
    let mut process = Process::within(&job, script);
    process.line();
    let pid = process.id();
    until("the first thread ended", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ")
    });
    assert!(stage.tag(pid).is_some(), "threads of it still run");
    process.go_on();
    process.finish();
    stage.told("it ended", |told| told.event.kind == EXIT && told.event.tgid == pid);
    let ends = stage.all().iter().filter(|t| t.event.kind == EXIT && t.event.tgid == pid).count();
    assert_eq!((ends, stage.tag(pid)), (1, None));
    let forks = stage.all().iter().filter(|t| t.event.kind == FORK).count();
    assert_eq!(forks, 0, "threads are no processes");
}

#[test]
fn sockets_that_the_hooks_cannot_see_are_told_of_where_functions_can_be_traced() {
    let (stage, job) = (Stage::new(), cgroup());
    if let Some(fault) = stage.hooks.socket_fault() {
        // There the agent finds them by looking; see `a_packet_socket_is_recorded_with_its_maker`.
        assert!(fault.contains("Operation not permitted"), "{fault}");
        return;
    }
    let id = stage.select(&job);
    let script = "wait()\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300)\nsocket.socket(socket.AF_UNIX)\n\
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        try:\n  socket.socket(44, socket.SOCK_RAW, 7)\nexcept OSError as e:\n  say(e.errno)\n";
    let mut outside = Process::beside(script);
    let mut process = Process::within(&job, script);
    for process in [&mut outside, &mut process] {
        process.go_on();
    }
    let (pid, outsider) = (process.id(), outside.id());
    let errno: u32 = process.finish().concat().parse().unwrap();
    outside.finish();
    stage.told("it ended", |told| told.event.kind == EXIT && told.event.tgid == pid);
    let sockets: Vec<_> = stage.all().into_iter().filter(|told| told.event.kind == SOCKET).collect();
    let seen: Vec<_> =
        sockets.iter().map(|t| (t.event.tgid, t.event.detail, t.event.socket, t.event.error)).collect();
    assert_eq!(seen, [(pid, 17, 3 << 16 | 0x0300, 0), (pid, 44, 3 << 16 | 7, errno)], "not {outsider}");
    assert!(sockets.iter().all(|told| told.event.job == id));
}

#[test]
fn a_new_cgroup_is_told_of_with_its_path() {
    let stage = Stage::new();
    let made = cgroup();
    let id = made.id().unwrap();
    let told = stage.told("it was made", |told| told.event.kind == CGROUP && told.event.cgroup_id == id);
    let below = made.path().strip_prefix(weir::cgroup::mount_point().unwrap()).unwrap();
    assert_eq!(told.path, [b"/", below.as_os_str().as_encoded_bytes()].concat());
}

#[test]
fn what_finds_no_room_in_the_ring_is_counted() {
    let (stage, job) = (Stage::new(), cgroup());
    stage.select(&job);
    // Nobody reads meanwhile: 4 MiB of execs at 2.4 KiB each.
    let script = "wait()\nfor _ in range(2200):\n  os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)\nsay('done')\nwait()\n";
    let mut process = Process::within(&job, script);
    process.go_on();
    assert_eq!(process.line(), "done");
    let lost = stage.hooks.count(weir_ebpf::counter::TASK_EVENTS_LOST).unwrap();
    let told = stage.all().iter().filter(|t| t.event.job == job.id().unwrap()).count() as u64;
    // Moved, then forked, became another, ended. Of cgroups that others on the host make meanwhile nothing is told to a full ring
    // either, and that is counted, too.
    let (own, others) = (1 + 3 * 2200, 50);
    assert!(lost > 0 && (own..own + others).contains(&(told + lost)), "{told} told, {lost} lost, of {own}");
    process.go_on();
    process.finish();
}
