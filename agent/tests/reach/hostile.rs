//! A job that wants the books not to close, or another's connection.

use std::{
    io::Read,
    os::fd::AsFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt::Linger},
};
use weir::kernel::Origin;
use weir_ebpf::{action, verdict};

use super::{
    churn,
    scene::{Scene, below, destination, id, levels, selected},
    stage::{port, silent, until},
};

/// More than the room for connections on their way, and more than there are ports.
#[test]
fn seventy_thousand_connects_of_one_job_lose_nobodys_origin() {
    const CLIENTS: u64 = 4;
    const EACH: u64 = 17_500;
    let scene = Scene::new();
    let victim = below(&scene.around, "victim");
    scene.hooks.select_cgroup(id(&victim), selected(id(&victim), 0)).unwrap();
    // At the listener of the other family, so that it is not accepted before its turn.
    let mut waiting =
        victim.start(&format!("made = connect('::1', {}); say('connected'); wait()", port(&scene.server_v6)));
    assert_eq!(waiting.line(), "connected");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            scene.job.start(&format!(
                "signal.alarm(150)\n\
                 for _ in range({EACH}):\n\
                 \x20   made = make('127.0.0.1')\n\
                 \x20   try: made.connect(('127.0.0.1', {})); made.recv(1)\n\
                 \x20   except ConnectionResetError: pass\n\
                 \x20   made.close()",
                port(&scene.server_v4)
            ))
        })
        .collect();
    for _ in 0..CLIENTS * EACH {
        let (stream, origin) = scene.accept(&scene.agent_v4);
        assert_eq!(origin.job, scene.id());
        // Reset, so that the port is free at once.
        setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    }
    clients.into_iter().for_each(|client| drop(client.finish()));
    assert_eq!(scene.accept(&scene.agent_v6).1.job, id(&victim));
    waiting.go_on();
    waiting.finish();
    scene.close(&[(verdict::REDIRECTED, CLIENTS * EACH)]);
    scene.close_of(id(&victim), &[(verdict::REDIRECTED, 1)]);
}

/// Many threads open, connect, dissolve, reset and close the same sockets, on the same few ports, as fast as they can.
#[test]
fn after_thousands_of_hostile_rounds_each_verdict_adds_up() {
    let test = "hostile::after_thousands_of_hostile_rounds_each_verdict_adds_up";
    if let Some(orders) = std::env::var_os(churn::ORDERS) {
        // The hostile client: this very test, run again.
        return churn::run(&orders.into_string().unwrap());
    }
    let scene = Scene::new();
    let inner = below(&scene.job, "inner");
    scene.hooks.select_cgroup(id(&inner), selected(id(&inner), 0)).unwrap();
    scene.hooks.change_settings(|settings| settings.cgroup_levels = levels([2, 3])).unwrap();
    let passed = super::stage::listen("127.0.0.1:0");
    scene
        .hooks
        .set_destinations(&[
            destination("127.0.0.1", port(&passed), action::PASS),
            destination("127.0.0.2", 0, action::DENY),
            destination("127.0.0.3", 0, action::INTERCEPT),
        ])
        .unwrap();
    let client = |job: &super::stage::Job| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(
                churn::ORDERS,
                format!(
                    "{} {} {} {} {}",
                    job.cgroup.path().join("cgroup.procs").display(),
                    port(&scene.server_v4),
                    port(&scene.server_v6),
                    port(&passed),
                    silent("127.0.0.1:0").port()
                ),
            )
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut clients = [client(&scene.job), client(&inner)];
    let over = AtomicBool::new(false);
    let (hooks, agents) = (&scene.hooks, [&scene.agent_v4, &scene.agent_v6]);
    let taken: Vec<Origin> = thread::scope(|scope| {
        let agents = agents.map(|listener| {
            let over = &over;
            scope.spawn(move || {
                let mut taken = Vec::new();
                loop {
                    let is_over = over.load(Ordering::Acquire);
                    let timeout = PollTimeout::from(20_u8);
                    let ready =
                        poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
                    if ready == 0 && is_over {
                        return taken;
                    }
                    while let Ok((mut stream, peer)) = listener.accept() {
                        taken.extend(hooks.take_origin(hooks.netns_cookie(), peer).unwrap());
                        let _ = stream.set_nonblocking(true);
                        let _ = stream.read(&mut [0; 64]);
                    }
                }
            })
        });
        let drain = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                let mut ready = [PollFd::new(passed.as_fd(), PollFlags::POLLIN)];
                poll(&mut ready, PollTimeout::from(20_u8)).unwrap();
                while passed.accept().is_ok() {}
            }
        });
        while clients.iter_mut().any(|client| client.try_wait().unwrap().is_none()) {
            scene.told();
            thread::yield_now();
        }
        over.store(true, Ordering::Release);
        drain.join().unwrap();
        agents.into_iter().flat_map(|agent| agent.join().unwrap()).collect()
    });
    assert!(clients.iter_mut().all(|client| client.wait().unwrap().success()));
    assert!(taken.len() > 1000, "only {} connections came", taken.len());
    scene.book(taken);
    // What a client closed in order and the agent's kernel dropped on its way: swept, as the agent does it.
    until("nothing is on its way", || {
        scene.book(scene.hooks.sweep_pending(Duration::from_secs(1)).unwrap());
        scene.hooks.pending().unwrap().is_empty()
    });
    scene.told();
    for (job, counts) in scene.hooks.jobs().unwrap() {
        if job == weir_ebpf::STRAY_JOB {
            continue;
        }
        let of = |verdict: u8| (verdict, counts.verdicts[usize::from(verdict)]);
        let seen = [
            verdict::REDIRECTED,
            verdict::PASSED,
            verdict::REFUSED,
            verdict::UNANSWERED,
            verdict::DATAGRAM,
            verdict::SOCKET,
        ]
        .map(of);
        assert!(seen.iter().all(|(_, count)| *count > 0), "a way was never gone: {seen:?}");
        // With what was lost for want of room in the ring counted as such.
        scene.close_of(job, &seen);
    }
}
