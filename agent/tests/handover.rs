//! A hand-over that breaks off, at each step and on either side: before the old process has said `go` it goes on as it was,
//! afterwards the new one is the agent. Both sides are the real ones, but for the one that dies.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;
use weir::handover::{Asking, Estate, HandoverError, Hello, Predecessor, Sockets, Step, Successor, give};
use weir::ledger::{Ledger, LedgerConfig, TakenOver};
use weir::spool::Limits;
use weir::spool::faulty::Faulty;
use weir_core::ids::Boot;
use weir_core::mask::{MaskKey, Masker};
use weir_core::record::AgentEvent;

fn config(disk: &Faulty, boot: u8) -> LedgerConfig {
    let masker = Masker::new(MaskKey::new([3; 32]));
    let boot = Boot::from_random([boot; 16]);
    let limits = Limits { max_bytes: 4 << 20, reserve_bytes: 1 << 16, ..Limits::default() };
    LedgerConfig { limits, ..LedgerConfig::new(Arc::new(disk.clone()), "t".into(), "h".into(), boot, masker) }
}

async fn writes(ledger: &Ledger) -> bool {
    ledger.write(AgentEvent { name: "test".into(), detail: Default::default() }).await.is_ok()
}

/// The old process: answers one question on its admin socket, and gives to whoever asked.
async fn old(state: &Path, ledger: Ledger) -> Result<Successor, HandoverError> {
    let listener = UnixListener::bind(weir::admin::socket(state)).unwrap();
    let runtime = Handle::current();
    let giving = tokio::task::spawn_blocking(move || {
        let (stream, _) = listener.accept().unwrap();
        // Nothing follows before the answer, so nothing is read too far.
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(asked["ask"], "replace");
        let hello: Hello = serde_json::from_value(asked).unwrap();
        writeln!(&stream, "\"replacing\"").unwrap();
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = [Sockets::copy_of(7, &v4, &v4).unwrap()];
        let estate =
            Estate { ledger: &ledger, boot: Boot::from_random([1; 16]), lock: None, sockets: &sockets };
        give(Asking { hello, stream }, &estate, &runtime)
    });
    giving.await.unwrap()
}

/// A ledger on this disk, and the old process, which gives it away as soon as it is asked.
async fn giving(
    state: &Path,
    disk: &Faulty,
) -> (Ledger, tokio::task::JoinHandle<Result<Successor, HandoverError>>) {
    let (ledger, _) = Ledger::open(config(disk, 1)).unwrap();
    let giving = tokio::spawn({
        let (state, ledger) = (state.to_owned(), ledger.clone());
        async move { old(&state, ledger).await }
    });
    wait_for(&weir::admin::socket(state)).await;
    (ledger, giving)
}

/// How far a new process comes before it dies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Comes {
    ToTheLock,
    ToTheState,
    ToTheLog,
    ToGo,
    Through,
}

/// The new process, up to a step; what it has of the log is dropped with its death.
async fn new(state: &Path, disk: &Faulty, comes: Comes) -> Option<(TakenOver, u16)> {
    let (state, disk) = (state.to_owned(), disk.clone());
    tokio::task::spawn_blocking(move || take(&state, &disk, comes)).await.unwrap()
}

fn take(state: &Path, disk: &Faulty, comes: Comes) -> Option<(TakenOver, u16)> {
    let (predecessor, lock) = Predecessor::ask(state).unwrap();
    assert!(lock.is_none());
    if comes == Comes::ToTheLock {
        return None;
    }
    let mut inheritance = predecessor.ready().unwrap();
    if comes == Comes::ToTheState {
        return None;
    }
    let taken = Ledger::take_over(config(disk, 2), inheritance.handed.take().unwrap()).unwrap();
    if comes == Comes::ToTheLog {
        return None;
    }
    inheritance.opened().unwrap();
    let sockets = std::mem::take(&mut inheritance.sockets);
    assert_eq!(sockets.len(), 1);
    let [v4, _] = sockets.into_iter().next().unwrap().into_listeners().unwrap();
    let port = v4.local_addr().unwrap().port();
    if comes == Comes::ToGo { None } else { Some((taken, port)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_that_dies_before_go_leaves_the_old_one_as_it_was() {
    for comes in [Comes::ToTheLock, Comes::ToTheState, Comes::ToTheLog] {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Faulty::new());
        let (ledger, giving) = giving(folder.path(), &disk).await;
        assert!(new(folder.path(), &disk, comes).await.is_none());
        let error = giving.await.unwrap().unwrap_err();
        let at = if comes == Comes::ToTheLock { Step::Loading } else { Step::Opening };
        assert!(
            matches!(error, HandoverError::Broken { at: found, .. } if found == at),
            "{comes:?}: {error}"
        );
        assert!(writes(&ledger).await, "{comes:?}: the log is the old process's");
        ledger.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_go_the_log_is_the_new_processs_and_the_old_one_writes_through_it() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), Faulty::new());
    let (ledger, giving) = giving(folder.path(), &disk).await;
    let (taken, port) = new(folder.path(), &disk, Comes::Through).await.unwrap();
    giving.await.unwrap().unwrap().done();
    let successor = taken.begin("the old one").unwrap();
    assert!(port != 0 && writes(&ledger).await && writes(&successor).await);
    ledger.shutdown().await.unwrap();
    successor.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_that_dies_after_go_leaves_an_old_one_that_refuses() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), Faulty::new());
    let (ledger, giving) = giving(folder.path(), &disk).await;
    assert!(new(folder.path(), &disk, Comes::ToGo).await.is_none());
    giving.await.unwrap().unwrap();
    assert!(!writes(&ledger).await, "nobody writes the log");
    drop(ledger);
    let (next, _) = Ledger::open(config(&disk, 3)).unwrap();
    assert!(writes(&next).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_process_that_dies_before_its_word_leaves_the_new_one_in_its_place() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), Faulty::new());
    let state = folder.path().to_owned();
    let (ledger, _) = Ledger::open(config(&disk, 1)).unwrap();
    let listener = UnixListener::bind(weir::admin::socket(&state)).unwrap();
    let (opened, has_opened) = std::sync::mpsc::channel::<()>();
    let (dead, is_dead) = std::sync::mpsc::channel::<()>();
    let its = disk.clone();
    let taking = tokio::task::spawn_blocking(move || {
        let (predecessor, _) = Predecessor::ask(&state).unwrap();
        let mut inheritance = predecessor.ready().unwrap();
        let taken = Ledger::take_over(config(&its, 2), inheritance.handed.take().unwrap()).unwrap();
        opened.send(()).unwrap();
        is_dead.recv().unwrap();
        inheritance.opened().unwrap();
        inheritance.until_done();
        taken.begin("one that is dead").unwrap()
    });
    let (runtime, old) = (Handle::current(), ledger.clone());
    let given = tokio::task::spawn_blocking(move || {
        let (stream, _) = listener.accept().unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        writeln!(&stream, "\"replacing\"").unwrap();
        let broken = stream.try_clone().unwrap();
        let dies = std::thread::spawn(move || {
            has_opened.recv().unwrap();
            broken.shutdown(std::net::Shutdown::Both).unwrap();
            dead.send(()).unwrap();
        });
        let boot = Boot::from_random([1; 16]);
        let estate = Estate { ledger: &old, boot, lock: None, sockets: &[] };
        let given = give(Asking { hello: Hello::own(), stream }, &estate, &runtime);
        dies.join().unwrap();
        given.is_ok()
    });
    assert!(!given.await.unwrap());
    let new = taking.await.unwrap();
    assert!(writes(&new).await);
    new.guests_gone().await;
    // Were it not dead, it would find that the log is another's.
    assert!(!writes(&ledger).await);
    new.shutdown().await.unwrap();
}

#[test]
fn another_version_is_refused_with_what_both_know() {
    assert_eq!(Hello::own().fault(), None);
    let newer = Hello { handover: 2, version: "9.9".into(), ..Hello::own() };
    let fault = newer.fault().unwrap();
    assert!(fault.contains("hand-over 1") && fault.contains("(version 9.9) hand-over 2"), "{fault}");
    let other = Hello { layout: 0, ..Hello::own() };
    assert!(other.fault().unwrap().contains("kernel table layout"), "{other:?}");
}

#[test]
fn where_no_agent_listens_there_is_none_to_replace() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Predecessor::ask(folder.path()), Err(HandoverError::NoAgent(_))));
}

#[test]
fn listening_sockets_arrive_with_what_waits_in_their_queues() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = std::net::TcpStream::connect(address).unwrap();
    let copies = Sockets::copy_of(1, &listener, &listener).unwrap();
    drop(listener);
    let [v4, _] = copies.into_listeners().unwrap();
    let (mut accepted, _) = v4.accept().unwrap();
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    accepted.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

async fn wait_for(socket: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !socket.exists() {
        assert!(std::time::Instant::now() < deadline, "nobody listens");
        tokio::task::yield_now().await;
    }
}
