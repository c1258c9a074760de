//! Starting and stopping, with good and bad input.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Reply, START_WAIT, Store, command, request, store};

/// The exit code and stderr of a process that must end by itself.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut stderr = process.stderr.take().expect("its stderr");
    let text = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + START_WAIT;
    let status = loop {
        if let Some(status) = process.try_wait().expect("a status") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = process.kill();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (status.code(), text.join().expect("the thread"))
}

/// Fails with one sentence that names `fault` and `mend`.
fn refuses(command: &mut Command, fault: &str, mend: &str) {
    let (code, stderr) = run(command);
    assert_eq!(code, Some(1), "{stderr}");
    let sentence =
        stderr.lines().find(|line| line.starts_with("weir-store: ")).unwrap_or_else(|| panic!("{stderr}"));
    assert!(sentence.contains(fault) && sentence.contains(mend), "{sentence}");
}

#[test]
fn a_stop_signal_ends_it_cleanly_and_the_data_stays() {
    let (folder, store) = store();
    store.ask("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a");
    store.ask("INSERT INTO t VALUES (7)");
    let secret = store.secret.clone();
    assert_eq!(
        fs::metadata(store.data.join("store.secret")).expect("the secret").permissions().mode() & 0o777,
        0o600
    );
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let store = Store::on(&folder.path().join(if signal == Signal::SIGTERM { "other" } else { "third" }));
        assert_eq!(store.end_by(signal).code(), Some(0));
    }
    assert_eq!(store.end_by(Signal::SIGTERM).code(), Some(0));
    let store = Store::on(&folder.path().join("data"));
    assert_eq!(store.secret, secret);
    assert_eq!(store.ask("SELECT a FROM t"), "7");
}

/// A query of about `seconds`, under way in a thread of its own.
fn slow_query(store: &Store, seconds: u32) -> std::thread::JoinHandle<std::io::Result<Reply>> {
    let (address, secret) = (store.address, store.secret.clone());
    let sql = format!(
        "SELECT count() FROM numbers({seconds}0) WHERE NOT sleepEachRow(0.1) SETTINGS max_block_size = 1"
    );
    let query = std::thread::spawn(move || {
        request(address, "POST", "/", &[("X-ClickHouse-Key", &secret)], sql.as_bytes())
    });
    let running = "SELECT count() FROM system.processes WHERE query LIKE '%sleepEachRow(0.1)%' AND query NOT LIKE '%LIKE%'";
    let deadline = Instant::now() + START_WAIT;
    while store.ask(running) == "0" {
        assert!(Instant::now() < deadline, "the query does not run");
    }
    query
}

#[test]
fn a_running_query_is_finished_before_the_stop() {
    let (_folder, store) = store();
    let query = slow_query(&store, 1);
    assert_eq!(store.end_by(Signal::SIGTERM).code(), Some(0));
    assert_eq!(query.join().expect("the thread").expect("an answer").text(), "10\n");
}

#[test]
fn a_stop_leaves_a_query_that_takes_too_long() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    let store = Store::with(&data, &["--stop-wait", "1"]);
    store.ask("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a");
    store.ask("INSERT INTO t VALUES (7)");
    let query = slow_query(&store, 100);
    assert_eq!(store.end_by(Signal::SIGTERM).code(), Some(1));
    assert!(query.join().expect("the thread").is_err());
    let log = fs::read_to_string(data.with_extension("log")).expect("the log");
    assert!(log.contains("weir-store: queries were still running after 1 s"), "{log}");
    assert_eq!(Store::on(&data).ask("SELECT a FROM t"), "7");
}

#[test]
fn a_second_process_on_a_data_folder_is_refused() {
    let (_folder, store) = store();
    refuses(
        &mut command(&store.data),
        "is in use by another weir-store",
        &format!("process {}", store.pid()),
    );
    assert_eq!(store.ask("SELECT 1"), "1");
}

#[test]
fn bad_engines_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    refuses(
        command(&data).args(["--engine", "/nonexistent/libchdb.so"]),
        "looked at /nonexistent/libchdb.so",
        "cargo xtask demo",
    );
    let text = folder.path().join("libchdb.so");
    fs::write(&text, "not a library").expect("a file");
    refuses(command(&data).arg("--engine").arg(&text), "cannot load the engine", "--engine");
    let libm = Path::new("/lib/x86_64-linux-gnu/libm.so.6");
    refuses(command(&data).arg("--engine").arg(libm), "lacks `chdb_version`", "--engine");
}

/// A library with every symbol of the engine, and nothing behind them but a version of last year.
#[test]
fn an_engine_that_is_too_old_is_named() {
    const SYMBOLS: &str = "set_signal_handlers_enabled connect close_conn query_with_params_n classify_query_n \
        stream_insert_with_params_n stream_append stream_done stream_insert_error destroy_insert_stream result_buffer \
        result_length result_error result_rows_read result_storage_rows_read result_storage_bytes_read \
        result_rows_written result_bytes_written destroy_query_result";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("old.c");
    let stubs: String = SYMBOLS.split(' ').map(|name| format!("void chdb_{name}(void) {{}}\n")).collect();
    fs::write(&source, format!("const char *chdb_version(void) {{ return \"25.12.1\"; }}\n{stubs}"))
        .expect("a file");
    let library = folder.path().join("libchdb.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.expect("a C compiler, as Rust itself needs one to link").success());
    let data = folder.path().join("data");
    refuses(
        command(&data).arg("--engine").arg(&library),
        "is version 25.12.1, older than 26.7",
        "cargo xtask demo",
    );
}

#[test]
fn a_data_folder_that_the_engine_cannot_open_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("db/metadata")).expect("a folder");
    fs::write(data.join("db/metadata/weir.sql"), "no statement").expect("a file");
    refuses(&mut command(&data), "the engine refuses to open", "data/db");
}

#[test]
fn bad_folders_ports_and_secrets_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a file");
    refuses(&mut command(&file.join("data")), "cannot use the data folder", "Not a directory");
    refuses(&mut command(Path::new("/proc/weir")), "cannot use the data folder", "/proc/weir");

    let data = folder.path().join("data");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").to_string();
    let mut on_taken = Command::new(env!("CARGO_BIN_EXE_weir-store"));
    on_taken.env("WEIR_ENGINE", crate::harness::engine()).arg("--data").arg(&data).args(["--listen", &port]);
    refuses(&mut on_taken, &format!("cannot listen on {port}"), "--listen");

    let open = folder.path().join("open.secret");
    fs::write(&open, "0123456789abcdef").expect("a file");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).expect("a mode");
    refuses(command(&data).arg("--secret-file").arg(&open), "can be read by every user", "chmod 600");
    refuses(
        command(&data).arg("--secret-file").arg(file.join("s")),
        "cannot make the secret file",
        "Not a directory",
    );
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let binary = || Command::new(env!("CARGO_BIN_EXE_weir-store"));
    assert_eq!(run(&mut binary()).0, Some(2));
    assert_eq!(run(binary().args(["--data", "x", "--listen", "nowhere"])).0, Some(2));
    let help = binary().arg("--help").output().expect("the help");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("curl") && help.contains("store.secret") && help.contains("Exit codes"), "{help}");
    let completions = binary().args(["completions", "bash"]).output().expect("the script");
    assert!(String::from_utf8_lossy(&completions.stdout).contains("--secret-file"));
}
