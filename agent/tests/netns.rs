//! Other network namespaces: registered once, served, bounded, and let go when nobody is in them any more. Needs root.

#[path = "netns/held.rs"]
mod held;
#[path = "netns/stage.rs"]
mod stage;

use std::net::Ipv4Addr;

use stage::{Job, Net, Stage, until};
use weir::netns::{EMPTY_LOOKS, For, NetnsError, Registered};
use weir_ebpf::{reason, verdict};

const JOB: For = For::Job(7);

/// Looks so often that an empty namespace is let go.
async fn look_often(stage: &Stage) {
    for _ in 0..EMPTY_LOOKS {
        stage.namespaces.look().await;
    }
}

#[tokio::test]
async fn a_namespace_is_registered_once_however_often_and_at_once_it_is_asked_for() {
    let mut stage = Stage::new().await;
    let (net, other) = (Net::new(), Net::new());
    let second = net.start(&["sleep", "infinity"]);
    let (first, second_id) = (net.pid(), second.id());
    until("the second process is in there", || {
        std::fs::read_link(format!("/proc/{second_id}/ns/net")).ok()
            == std::fs::read_link(format!("/proc/{first}/ns/net")).ok()
    });
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (namespaces, id) = (stage.namespaces.clone(), if n % 2 == 0 { first } else { second_id });
        asking.spawn(async move { namespaces.register(id, JOB).await.unwrap() });
    }
    let answers = asking.join_all().await;
    assert_eq!(answers.iter().filter(|answer| **answer == Registered::New).count(), 1);
    assert_eq!(answers.iter().filter(|answer| **answer == Registered::Known).count(), 19);
    assert_eq!(stage.namespaces.register(other.pid(), For::Runtime).await.unwrap(), Registered::New);
    assert_eq!(stage.namespaces.register(std::process::id(), JOB).await.unwrap(), Registered::Host);
    assert_eq!(stage.namespaces.len(), 2);

    let (one, two) = (stage.opened.recv().await.unwrap(), stage.opened.recv().await.unwrap());
    assert_ne!(one.namespace.cookie(), two.namespace.cookie());
    for opened in [&one, &two] {
        assert_eq!(opened.listeners.len(), 2, "one in each family");
    }
    assert!(stage.opened.try_recv().is_err());
    let mut second = second;
    second.kill().unwrap();
    second.wait().unwrap();
}

#[tokio::test]
async fn sockets_are_made_inside_the_namespace_and_reach_what_is_in_there_alone() {
    let mut stage = Stage::new().await;
    let net = Net::new();
    stage.namespaces.register(net.pid(), JOB).await.unwrap();
    let opened = stage.opened.recv().await.unwrap();
    let address = opened.listeners[0].local_addr().unwrap();
    // From here there is nobody at that address; from in there the listener is.
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let socket = opened.namespace.tcp_socket(false).await.unwrap();
    let (connected, accepted) = tokio::join!(socket.connect(address), opened.listeners[0].accept());
    assert_eq!(connected.unwrap().local_addr().unwrap(), accepted.unwrap().1);
    let v6 = opened.listeners[1].local_addr().unwrap();
    let socket = opened.namespace.tcp_socket(true).await.unwrap();
    let (connected, accepted) = tokio::join!(socket.connect(v6), opened.listeners[1].accept());
    assert_eq!(connected.unwrap().local_addr().unwrap(), accepted.unwrap().1);
}

/// Two namespaces and a private network between them: the job's, and one with a server (which listens already).
fn private_network() -> (Net, Net, std::process::Child, u16) {
    let (jobs, servers) = (Net::new(), Net::new());
    jobs.connect(&servers);
    for (net, end) in [(&jobs, "1"), (&servers, "2")] {
        net.run(&["ip", "address", "add", &format!("10.77.0.{end}/24"), "dev", "cable"]);
        net.run(&["ip", "address", "add", &format!("fd77::{end}/64"), "dev", "cable", "nodad"]);
        net.run(&["ip", "link", "set", "cable", "up"]);
    }
    let mut server = servers.start(&[
        "python3",
        "-c",
        "import socket\n\
         made = socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True)\n\
         print(made.getsockname()[1], flush=True)\n\
         while True: made.accept()[0].sendall(b'served')",
    ]);
    let mut line = String::new();
    let said = server.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
    let port = line.trim().parse().unwrap();
    (jobs, servers, server, port)
}

#[tokio::test]
async fn connects_of_a_namespace_are_refused_and_told_until_it_is_registered_and_led_to_the_agent_from_then_on()
 {
    let mut stage = Stage::new().await;
    let job = Job::of(&stage.hooks);
    let (jobs, _servers, mut server, port) = private_network();
    let mut told = stage.hooks.connects().unwrap();
    for address in ["10.77.0.2", "fd77::2", "::ffff:10.77.0.2"] {
        assert_eq!(job.attempt(&jobs, address, port), "ECONNREFUSED");
        let refused = told.take(&stage.hooks).unwrap().unwrap();
        assert_eq!((refused.verdict, refused.reason), (verdict::REFUSED, reason::NO_LISTENER));
        assert_eq!(refused.destination.port(), port);
        assert_ne!(refused.netns_cookie, stage.hooks.netns_cookie());
    }
    // A readiness probe has its true answer already, and that asks for no listener.
    assert_eq!(job.attempt(&jobs, "127.0.0.1", port), "ECONNREFUSED");
    assert_eq!(told.take(&stage.hooks).unwrap().unwrap().verdict, verdict::UNANSWERED);

    stage.namespaces.register(jobs.pid(), JOB).await.unwrap();
    let opened = stage.opened.recv().await.unwrap();
    for address in ["10.77.0.2", "fd77::2", "::ffff:10.77.0.2"] {
        let listener = &opened.listeners[usize::from(address == "fd77::2")];
        let said = job.attempt(&jobs, address, port);
        let (_stream, peer) = listener.accept().await.unwrap();
        assert_eq!(said, format!("ok {}", peer.port()));
        let origin = stage.hooks.take_origin(opened.namespace.cookie(), peer).unwrap().unwrap();
        let asked: std::net::IpAddr = address.parse().unwrap();
        assert_eq!(origin.destination, (asked.to_canonical(), port).into());
        assert_eq!(origin.netns_cookie, opened.namespace.cookie());
        assert_eq!(origin.cgroup_id, job.cgroup.id().unwrap());
        // Under the host's cookie there is none: the same address and port may be another connection here.
        assert_eq!(stage.hooks.take_origin(stage.hooks.netns_cookie(), peer).unwrap(), None);
        // And on it goes from inside: nobody else's network reaches that server.
        let socket = opened.namespace.tcp_socket(asked.to_canonical().is_ipv6()).await.unwrap();
        stage.hooks.exempt(std::os::fd::AsFd::as_fd(&socket)).unwrap();
        let mut upstream = socket.connect(origin.destination).await.unwrap();
        let mut served = [0; 6];
        tokio::io::AsyncReadExt::read_exact(&mut upstream, &mut served).await.unwrap();
        assert_eq!(&served, b"served");
    }
    for address in ["127.0.0.1", "::1"] {
        assert_eq!(job.attempt(&jobs, address, port), "ECONNREFUSED", "the probe's answer is still true");
        let own = opened.listeners[usize::from(address == "::1")].local_addr().unwrap().port();
        assert_eq!(job.attempt(&jobs, address, own), "EPERM", "the agent's own port in there");
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

#[tokio::test]
async fn a_namespace_dies_when_its_last_process_ends_although_it_was_registered() {
    let mut stage = Stage::new().await;
    let (net, witness) = (Net::new(), Net::new());
    net.connect(&witness);
    stage.namespaces.register(net.pid(), JOB).await.unwrap();
    // The interceptor's, which it drops when the namespace is let go.
    let opened = stage.opened.recv().await.unwrap();
    net.end();
    assert!(witness.has_cable(), "the listeners hold the namespace, and with it the cable");
    look_often(&stage).await;
    assert!(stage.namespaces.is_empty());
    opened.namespace.let_go().await;
    let namespace = opened.namespace.clone();
    drop(opened);
    until("the namespace, and with it the cable, is gone", || !witness.has_cable());
    assert_eq!(namespace.tcp_socket(false).await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    let names: Vec<_> = stage.events(2, "cookie").await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["netns.registered", "netns.let_go"]);
}

#[tokio::test]
async fn a_namespace_stays_for_as_long_as_any_process_or_thread_is_in_it() {
    let stage = Stage::new().await;
    let net = Net::new();
    let mut other = net.start(&["sleep", "infinity"]);
    stage.namespaces.register(net.pid(), JOB).await.unwrap();
    net.end();
    look_often(&stage).await;
    assert_eq!(stage.namespaces.len(), 1, "another process is in there");
    other.kill().unwrap();
    other.wait().unwrap();
    look_often(&stage).await;
    assert!(stage.namespaces.is_empty());

    let thread = std::process::Command::new("python3")
        .args([
            "-c",
            "import ctypes, threading, sys\n\
             def work():\n    ctypes.CDLL(None).unshare(0x40000000)\n    print(threading.get_native_id(), flush=True)\n    sys.stdin.readline()\n\
             threading.Thread(target=work).start()",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut process = thread.unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout.take().unwrap()), &mut line)
        .unwrap();
    stage.namespaces.register(line.trim().parse().unwrap(), JOB).await.unwrap();
    look_often(&stage).await;
    assert_eq!(stage.namespaces.len(), 1, "a thread is in there, whose process is not");
    process.kill().unwrap();
    process.wait().unwrap();
    look_often(&stage).await;
    assert!(stage.namespaces.is_empty());
}

#[tokio::test]
async fn a_namespace_whose_loopback_is_down_or_has_no_ipv6_is_registered_and_told_of() {
    let mut stage = Stage::new().await;
    let (bare, without_v6) = (Net::bare(), Net::new());
    without_v6.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"]);
    assert_eq!(stage.namespaces.register(bare.pid(), JOB).await.unwrap(), Registered::New);
    assert_eq!(stage.namespaces.register(without_v6.pid(), JOB).await.unwrap(), Registered::New);
    let (of_bare, _of_other) = (stage.opened.recv().await.unwrap(), stage.opened.recv().await.unwrap());
    let events = stage.events(3, "pid").await;
    let of = |name: &str, net: &Net| (name.to_owned(), net.pid().to_string());
    assert_eq!(
        events,
        [
            of("netns.registered", &bare),
            of("netns.loopback_down", &bare),
            of("netns.registered", &without_v6)
        ]
    );
    // Brought up later, it is served: nothing has to be registered again.
    bare.run(&["ip", "link", "set", "lo", "up"]);
    let address = of_bare.listeners[0].local_addr().unwrap();
    assert_eq!(address.ip(), Ipv4Addr::LOCALHOST);
    let socket = of_bare.namespace.tcp_socket(false).await.unwrap();
    let (connected, accepted) = tokio::join!(socket.connect(address), of_bare.listeners[0].accept());
    connected.unwrap();
    accepted.unwrap();
}

#[tokio::test]
async fn the_namespace_of_an_ordinary_user_in_a_user_namespace_is_entered_too() {
    let mut stage = Stage::new().await;
    let net = Net::of_user();
    assert_eq!(stage.namespaces.register(net.pid(), JOB).await.unwrap(), Registered::New);
    let opened = stage.opened.recv().await.unwrap();
    assert_eq!(opened.listeners.len(), 2);
    look_often(&stage).await;
    assert_eq!(stage.namespaces.len(), 1, "its process is seen");
    net.end();
    look_often(&stage).await;
    assert!(stage.namespaces.is_empty());
}

#[tokio::test]
async fn there_is_room_for_so_many_and_one_job_gets_half_of_it() {
    let mut stage = Stage::with_room(4).await;
    let nets: Vec<Net> = (0..5).map(|_| Net::bare()).collect();
    for net in &nets[..2] {
        stage.namespaces.register(net.pid(), JOB).await.unwrap();
    }
    let refused = stage.namespaces.register(nets[2].pid(), JOB).await;
    assert!(matches!(refused, Err(NetnsError::NoRoom { room: 4 })), "{refused:?}");
    for net in &nets[2..4] {
        stage.namespaces.register(net.pid(), For::Runtime).await.unwrap();
    }
    let refused = stage.namespaces.register(nets[4].pid(), For::Runtime).await;
    assert!(matches!(refused, Err(NetnsError::NoRoom { room: 4 })), "{refused:?}");
    let events = stage.events(9, "count").await;
    assert!(events.contains(&("netns.no_room".into(), "2".into())), "{events:?}");
    // Room that is left can be used again.
    let mut nets = nets;
    nets.remove(0).end();
    look_often(&stage).await;
    assert_eq!(stage.namespaces.len(), 3);
    stage.opened.recv().await.unwrap();
    assert_eq!(stage.namespaces.register(nets[3].pid(), For::Runtime).await.unwrap(), Registered::New);
}

#[tokio::test]
async fn a_process_that_is_gone_is_said_to_be() {
    let stage = Stage::new().await;
    let net = Net::bare();
    let pid = net.pid();
    net.end();
    let gone = stage.namespaces.register(pid, JOB).await;
    assert!(matches!(gone, Err(NetnsError::Gone(id)) if id == pid), "{gone:?}");
    let events = stage.events(1, "last").await;
    assert_eq!(events, [("netns.failed".to_owned(), format!("process {pid} is gone"))]);
}

#[tokio::test]
async fn what_a_refused_connect_asks_for_is_registered_without_waiting() {
    let mut stage = Stage::new().await;
    let net = Net::new();
    let queue = stage.queue.take().unwrap();
    let ending = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(stage.namespaces.clone().run(queue, ending.clone()));
    stage.namespaces.want(stage.hooks.netns_cookie(), std::process::id(), std::process::id(), 7);
    // The thread that connected is gone, its process is not.
    stage.namespaces.want(u64::MAX, u32::MAX >> 1, net.pid(), 7);
    let opened = tokio::time::timeout(stage::PATIENCE, stage.opened.recv()).await.unwrap().unwrap();
    assert_eq!(opened.listeners.len(), 2);
    assert_eq!(stage.namespaces.len(), 1);
    ending.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn however_much_one_job_asks_for_another_job_is_heard() {
    let mut stage = Stage::new().await;
    let net = Net::new();
    // More than may wait in all, each of a namespace of its own; nobody is there any more.
    for cookie in 0..1000 {
        stage.namespaces.want(1_000_000 + cookie, u32::MAX >> 1, u32::MAX >> 1, 7);
    }
    stage.namespaces.want(u64::MAX, net.pid(), net.pid(), 8);
    let queue = stage.queue.take().unwrap();
    let ending = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(stage.namespaces.clone().run(queue, ending.clone()));
    let opened = tokio::time::timeout(stage::PATIENCE, stage.opened.recv()).await;
    assert!(opened.is_ok_and(|opened| opened.is_some()), "the other job was not heard");
    // Its own turn comes again once what it asked for is heard.
    let again = Net::new();
    stage.namespaces.want(u64::MAX - 1, again.pid(), again.pid(), 7);
    let opened = tokio::time::timeout(stage::PATIENCE, stage.opened.recv()).await;
    assert!(opened.is_ok_and(|opened| opened.is_some()), "the job is heard no more");
    ending.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn an_agent_takes_up_what_one_before_it_had_registered_and_forgets_the_dead() {
    let mut stage = Stage::new().await;
    let (net, other) = (Net::new(), Net::new());
    stage.namespaces.register(net.pid(), JOB).await.unwrap();
    let before = stage.opened.recv().await.unwrap();
    let (v4, v6) = ("127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap());
    let (own, dead) = (stage.hooks.netns_cookie(), u64::MAX);
    for cookie in [own, dead] {
        stage.hooks.listen(cookie, v4, v6).unwrap();
    }
    let (next, mut opened) = stage.next_agent();
    next.take_up().await.unwrap();
    let after = opened.recv().await.unwrap();
    assert_eq!(after.namespace.cookie(), before.namespace.cookie());
    assert_eq!(next.len(), 1, "process {} is in no namespace that was registered", other.pid());
    let listening: std::collections::BTreeSet<_> = stage.hooks.listening().unwrap().into_iter().collect();
    assert_eq!(listening, [own, before.namespace.cookie()].into());
}

#[tokio::test]
async fn the_admin_socket_registers_for_a_runtime_and_whoever_asks_nothing_keeps_nobody_waiting() {
    use weir::admin::{Answer, Ask, Desk, ask, listen, serve, socket};
    let stage = Stage::new().await;
    let (net, folder) = (Net::new(), tempfile::tempdir().unwrap());
    let ending = tokio_util::sync::CancellationToken::new();
    let desk = Desk {
        status: std::sync::Arc::new(|| unreachable!("nobody asks for it")),
        namespaces: stage.namespaces.clone(),
        ledger: stage.ledger().clone(),
        successors: None,
    };
    let listener = listen(&socket(folder.path())).unwrap();
    let serving = tokio::spawn(serve(listener, std::sync::Arc::new(desk), ending.clone()));
    let silent = tokio::net::UnixStream::connect(socket(folder.path())).await.unwrap();

    let mut stream = tokio::net::UnixStream::connect(socket(folder.path())).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"{\"ask\":\"the time\"}\n").await.unwrap();
    let mut said = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut said).await.unwrap();
    assert!(said.starts_with("{\"refused\":\"not understood: ") && said.ends_with('\n'), "{said}");

    let state =
        format!(r#"{{"ociVersion":"1.0.2","id":"a","status":"creating","pid":{},"bundle":"/b"}}"#, net.pid());
    assert_eq!(weir::oci::register(state.as_bytes(), folder.path()).await.unwrap(), Registered::New);
    assert_eq!(weir::oci::register(state.as_bytes(), folder.path()).await.unwrap(), Registered::Known);
    let own = ask(folder.path(), &Ask::Register { pid: std::process::id() }).await.unwrap();
    assert_eq!(own, Answer::Registered(Registered::Host));
    let gone = ask(folder.path(), &Ask::Register { pid: i32::MAX.cast_unsigned() }).await.unwrap();
    assert!(matches!(&gone, Answer::Refused(why) if why.contains("is gone")), "{gone:?}");
    drop(silent);
    ending.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn root_of_a_namespace_who_turns_the_way_to_the_listener_is_found_out() {
    let mut stage = Stage::new().await;
    let job = Job::of(&stage.hooks);
    let (jobs, servers, mut server, port) = private_network();
    stage.namespaces.register(jobs.pid(), JOB).await.unwrap();
    let opened = stage.opened.recv().await.unwrap();
    let own = opened.listeners[0].local_addr().unwrap().port();
    // In there loopback is led to an accomplice, who takes what comes for that address and port.
    for net in [&jobs, &servers] {
        net.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet"]);
    }
    let turn = "ip rule add pref 100 lookup local && ip rule del pref 0 && \
                ip route add 127.0.0.1/32 via 10.77.0.2 dev cable src 10.77.0.1 table 7 && ip rule add pref 50 lookup 7";
    jobs.run(&["sh", "-c", turn]);
    let mut accomplice = servers.start(&[
        "python3",
        "-c",
        &format!("import socket\nmade = socket.create_server(('0.0.0.0', {own}))\nprint(flush=True)\nmade.accept()[0].recv(1)"),
    ]);
    std::io::Read::read_exact(&mut accomplice.stdout.take().unwrap(), &mut [0]).unwrap();
    let said = job.attempt(&jobs, "10.77.0.2", port);
    assert!(said.starts_with("ok "), "not prevented: {said}");
    let never_accepted = stage.hooks.sweep_pending(std::time::Duration::ZERO).unwrap();
    assert_eq!(never_accepted.len(), 1);
    assert_eq!(never_accepted[0].verdict, verdict::REDIRECTED);
    assert_eq!(
        never_accepted[0].destination,
        "10.77.0.2".parse::<Ipv4Addr>().map(|ip| (ip, port).into()).unwrap()
    );
    for child in [&mut accomplice, &mut server] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
