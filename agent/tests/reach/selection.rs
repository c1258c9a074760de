//! Whose connect it is: by cgroup, user, tag, or by who made the socket.

use std::time::Duration;

use weir_ebpf::{STRAY_JOB, Tag, counter, flag, reason, verdict};

use super::{
    scene::{Scene, below, id, levels, selected, verdicts},
    stage::{Job, accept, is_idle, port, until},
};

/// Sends a socket to whoever listens at a path.
const SEND: &str = "def post(made, path):\n\
     \x20   to = socket.socket(socket.AF_UNIX); to.connect(path); socket.send_fds(to, [b'x'], [made.fileno()]); to.recv(1)\n";
const RECEIVE: &str = "def inbox(path):\n\
     \x20   made = socket.socket(socket.AF_UNIX); made.bind(path); made.listen(); return made\n\
     def received(made):\n\
     \x20   link = made.accept()[0]; fd = socket.recv_fds(link, 1, 1)[1][0]; link.send(b'x')\n\
     \x20   return socket.socket(fileno=fd)\n";

/// Moves the running script.
fn go_to(job: &Job) -> String {
    format!("open('{}/cgroup.procs', 'w').write(str(os.getpid()))", job.cgroup.path().display())
}

#[test]
fn cgroups_far_below_a_selected_one_are_selected() {
    let scene = Scene::new();
    let mut deep = vec![below(&scene.job, "1")];
    for name in 2..=9 {
        deep.push(below(deep.last().unwrap(), &name.to_string()));
    }
    let deepest = deep.last().unwrap();
    let client = deepest.start(&format!("connect('127.0.0.1', {})", port(&scene.server_v4)));
    let (_stream, origin) = scene.accept(&scene.agent_v4);
    assert_eq!((origin.job, origin.cgroup_id), (scene.id(), id(deepest)));
    client.finish();
    scene.close(&[(verdict::REDIRECTED, 1)]);
    while deep.pop().is_some() {}
}

#[test]
fn deepest_of_the_selected_cgroups_wins_and_brings_its_own_flags() {
    let scene = Scene::new();
    let middle = below(&scene.job, "middle");
    let inner = below(&middle, "inner");
    let under = below(&inner, "under");
    scene.hooks.select_cgroup(id(&inner), selected(id(&inner), flag::STRICT)).unwrap();
    scene.hooks.change_settings(|settings| settings.cgroup_levels = levels([2, 4])).unwrap();
    let server = port(&scene.server_v4);
    for outer in [&scene.job, &middle] {
        assert_eq!(outer.attempt("127.0.0.1", server), "ok");
        assert_eq!(scene.accept(&scene.agent_v4).1.job, scene.id());
    }
    for strict in [&inner, &under] {
        assert_eq!(strict.attempt("127.0.0.1", server), "EPERM");
    }
    let told = scene.close_of(id(&inner), &[(verdict::REFUSED, 2)]);
    assert_eq!(verdicts(&told), [(verdict::REFUSED, reason::NOT_NAMED); 2]);
    scene.close(&[(verdict::REDIRECTED, 2)]);
    drop((under, inner));
}

#[test]
fn unselected_process_below_the_attached_cgroup_is_left_alone_and_not_counted() {
    let scene = Scene::new();
    let beside = below(&scene.around, "beside");
    let mut clients = Vec::new();
    for unselected in [&scene.around, &beside] {
        let script = format!(
            "connect('127.0.0.1', {}); socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)",
            port(&scene.server_v4)
        );
        clients.push(unselected.start(&script));
        accept(&scene.server_v4);
    }
    clients.into_iter().for_each(|client| drop(client.finish()));
    assert!(is_idle(&scene.agent_v4));
    assert_eq!(scene.close(&[]), []);
}

#[test]
fn user_is_selected_wherever_the_process_is() {
    let scene = Scene::new();
    let (uid, job) = (23_456, 23_456 | 1 << 62);
    scene.hooks.select_user(uid, selected(job, 0)).unwrap();
    let server = port(&scene.server_v4);
    let client = scene.around.start(&format!("os.setuid({uid}); connect('127.0.0.1', {server})"));
    let (_stream, origin) = scene.accept(&scene.agent_v4);
    assert_eq!((origin.job, origin.uid, origin.cgroup_id), (job, uid, id(&scene.around)));
    client.finish();
    // Another user, and the selected one in a selected cgroup, which goes first.
    assert_eq!(scene.around.run(&format!("os.setuid(23457); say(attempt('127.0.0.1', {server}))")), ["ok"]);
    accept(&scene.server_v4);
    let client = scene.job.start(&format!("os.setuid({uid}); connect('127.0.0.1', {server})"));
    assert_eq!(scene.accept(&scene.agent_v4).1.job, scene.id());
    client.finish();
    scene.close_of(job, &[(verdict::REDIRECTED, 1)]);
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

#[test]
fn tagged_process_is_selected_wherever_it_is() {
    let scene = Scene::new();
    let tag = Tag { job: scene.id(), process_start: 7_000_000_000, flags: 0, by_executable: 0 };
    let server = port(&scene.server_v4);
    let mut client = scene.around.start(&format!(
        "say('here'); wait(); connect('127.0.0.1', {server}); wait(); connect('127.0.0.1', {server})"
    ));
    assert_eq!(client.line(), "here");
    scene.hooks.tag(client.id(), tag).unwrap();
    client.go_on();
    let (_stream, origin) = scene.accept(&scene.agent_v4);
    assert_eq!(origin.process_start, Some(Duration::from_secs(7)));
    assert_eq!((origin.job, origin.cgroup_id), (scene.id(), id(&scene.around)));
    scene.hooks.untag(client.id()).unwrap();
    client.go_on();
    accept(&scene.server_v4);
    client.finish();
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

/// TCP, MPTCP and UDP, in the hands of a process that is not selected.
#[test]
fn socket_made_by_the_job_is_the_jobs_in_other_hands() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inbox");
    let server = port(&scene.server_v4);
    scene
        .hooks
        .set_destinations(&[super::scene::destination("127.0.0.1", 443, weir_ebpf::action::INTERCEPT)])
        .unwrap();
    let mut other = scene.around.start(&format!(
        "{RECEIVE}box = inbox({path:?}); say('open')\n\
         for _ in range(2):\n\
         \x20   made = received(box); made.settimeout(20); made.connect(('127.0.0.1', {server})); wait(); made.close()\n\
         made = received(box)\n\
         try: made.sendto(b'x', ('127.0.0.1', 443))\n\
         except OSError as e: say(errno.errorcode[e.errno])"
    ));
    assert_eq!(other.line(), "open");
    let maker = scene.job.start(&format!(
        "{SEND}post(make('127.0.0.1'), {path:?})\n\
         post(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262), {path:?})\n\
         post(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), {path:?})"
    ));
    for _ in 0..2 {
        let (_stream, origin) = scene.accept(&scene.agent_v4);
        assert_eq!((origin.job, origin.tgid), (scene.id(), other.id()));
        assert_eq!(origin.cgroup_id, id(&scene.around));
        other.go_on();
    }
    maker.finish();
    assert_eq!(other.finish(), ["EPERM"]);
    assert!(is_idle(&scene.server_v4));
    scene.close(&[(verdict::REDIRECTED, 2), (verdict::DATAGRAM, 1)]);
}

#[test]
fn socket_made_before_its_process_left_the_job_is_still_the_jobs() {
    let scene = Scene::new();
    let client = scene.job.start(&format!(
        "made = make('127.0.0.1'); {}; made.connect(('127.0.0.1', {}))",
        go_to(&scene.around),
        port(&scene.server_v4)
    ));
    let (_stream, origin) = scene.accept(&scene.agent_v4);
    assert_eq!((origin.job, origin.cgroup_id), (scene.id(), id(&scene.around)));
    client.finish();
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

#[test]
fn socket_made_before_its_process_came_into_the_job_is_the_jobs_then() {
    let scene = Scene::new();
    let client = scene.around.start(&format!(
        "made = make('127.0.0.1'); {}; made.connect(('127.0.0.1', {}))",
        go_to(&scene.job),
        port(&scene.server_v4)
    ));
    assert_eq!(scene.accept(&scene.agent_v4).1.job, scene.id());
    client.finish();
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

/// As a socket that `systemd-run` or an activated unit hands down: made elsewhere, and used by what it became.
#[test]
fn socket_inherited_over_exec_by_a_job_process_is_the_jobs() {
    let scene = Scene::new();
    let client = scene.around.start(&format!(
        "made = make('127.0.0.1'); made.set_inheritable(True); made.setblocking(True); {}\n\
         os.execvp('python3', ['python3', '-c',\n\
         \x20   'import socket; socket.socket(fileno=%d).connect((\"127.0.0.1\", {}))' % made.fileno()])",
        go_to(&scene.job),
        port(&scene.server_v4)
    ));
    assert_eq!(scene.accept(&scene.agent_v4).1.job, scene.id());
    client.finish();
    scene.close(&[(verdict::REDIRECTED, 1)]);
}

#[test]
fn socket_of_a_job_that_ended_is_a_stray_and_still_led_to_the_agent() {
    let scene = Scene::new();
    let mut client = scene.job.start(&format!(
        "made = make('127.0.0.1'); {}; say('made'); wait(); made.connect(('127.0.0.1', {}))",
        go_to(&scene.around),
        port(&scene.server_v4)
    ));
    assert_eq!(client.line(), "made");
    scene.hooks.unselect_cgroup(scene.id()).unwrap();
    scene.hooks.end_job(scene.id()).unwrap();
    client.go_on();
    assert_eq!(scene.accept(&scene.agent_v4).1.job, STRAY_JOB);
    client.finish();
    scene.close_of(STRAY_JOB, &[(verdict::REDIRECTED, 1)]);
    assert_eq!(scene.hooks.count(counter::STRAY).unwrap(), 1);
}

/// Whose it was nobody can tell any more: the cgroup of the socket is all that says so, and it is gone.
#[test]
fn socket_of_a_cgroup_that_is_gone_is_a_stray_in_other_hands() {
    let scene = Scene::new();
    let ended = below(&scene.around, "ended");
    scene.hooks.select_cgroup(id(&ended), selected(id(&ended), 0)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inbox");
    let mut other = scene.around.start(&format!(
        "{RECEIVE}box = inbox({path:?}); say('open')\n\
         made = received(box); made.settimeout(20); say('there'); wait(); made.connect(('127.0.0.1', {}))",
        port(&scene.server_v4)
    ));
    assert_eq!(other.line(), "open");
    ended.run(&format!("{SEND}post(make('127.0.0.1'), {path:?})"));
    assert_eq!(other.line(), "there");
    scene.hooks.unselect_cgroup(id(&ended)).unwrap();
    scene.hooks.end_job(id(&ended)).unwrap();
    until("the cgroup is removed", || std::fs::remove_dir(ended.cgroup.path()).is_ok());
    other.go_on();
    assert_eq!(scene.accept(&scene.agent_v4).1.job, STRAY_JOB);
    other.finish();
    scene.close_of(STRAY_JOB, &[(verdict::REDIRECTED, 1)]);
}
