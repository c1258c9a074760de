//! A running store in a folder of its own, and plain HTTP to it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Opening the engine takes 0.3 s on an idle host.
pub const START_WAIT: Duration = Duration::from_secs(60);

pub fn engine() -> PathBuf {
    let engine = std::env::var_os("WEIR_ENGINE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/setup/chdb/libchdb.so"),
        PathBuf::from,
    );
    assert!(
        engine.is_file(),
        "ClickHouse's engine is not at {}: run `cargo xtask test`, which sets it up, or name it in WEIR_ENGINE",
        engine.display()
    );
    engine
}

/// The binary with its engine, a data folder and any free port.
pub fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-store"));
    command.env_remove("RUST_LOG").env("WEIR_ENGINE", engine());
    command.arg("--data").arg(data).args(["--listen", "127.0.0.1:0"]);
    command
}

pub struct Store {
    process: Child,
    pub address: SocketAddr,
    pub secret: String,
    pub data: PathBuf,
}

impl Store {
    /// Starts on `data`, and waits until it is ready.
    pub fn on(data: &Path) -> Self {
        Self::with(data, &[])
    }

    pub fn with(data: &Path, arguments: &[&str]) -> Self {
        let log = data.with_extension("log");
        let mut process = command(data)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log file"))
            .spawn()
            .expect("the store starts");
        let stdout = process.stdout.take().expect("its stdout");
        let (line_to, line_from) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = line_to.send(line);
        });
        let line = line_from.recv_timeout(START_WAIT).unwrap_or_default();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            let _ = process.kill();
            panic!("no ready line ({error}): {line:?}; {}", fs::read_to_string(&log).unwrap_or_default())
        });
        let address = ready["listening"].as_str().expect("an address").parse().expect("an address");
        let secret = fs::read_to_string(data.join("store.secret")).expect("the secret").trim().to_owned();
        Self { process, address, secret, data: data.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A signal, and the end of the process.
    pub fn end_by(mut self, signal: Signal) -> ExitStatus {
        let pid = i32::try_from(self.process.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("the signal is sent");
        let deadline = Instant::now() + START_WAIT;
        loop {
            if let Some(status) = self.process.try_wait().expect("a status") {
                return status;
            }
            assert!(Instant::now() < deadline, "the store does not end on {signal}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A request with the secret.
    pub fn http(&self, method: &str, target: &str, body: &[u8]) -> Reply {
        self.http_with(method, target, &[("X-ClickHouse-Key", &self.secret)], body)
    }

    pub fn http_with(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        request(self.address, method, target, headers, body).expect("an HTTP answer")
    }

    /// The answer of a query that must succeed.
    pub fn ask(&self, sql: &str) -> String {
        let reply = self.http("POST", "/", sql.as_bytes());
        assert_eq!(reply.status, 200, "{sql}: {}", reply.text());
        reply.text().trim_end().to_owned()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A store in a new folder; the folder goes with the first of the pair.
pub fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::on(&folder.path().join("data"));
    (folder, store)
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// ClickHouse's code of a fault.
    pub fn code(&self) -> Option<u16> {
        self.header("X-ClickHouse-Exception-Code")?.parse().ok()
    }
}

/// One request on a connection of its own.
pub fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(START_WAIT))?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    if method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    // The store may have answered and closed before it has read a body that it refuses.
    let sent = stream.write_all(body);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        sent?;
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let body = answer[end + 4..].to_vec();
    let promised: Option<usize> = Reply { status, head: head.clone(), body: Vec::new() }
        .header("Content-Length")
        .and_then(|length| length.parse().ok());
    if promised.is_some_and(|promised| promised != body.len()) && method != "HEAD" {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Reply { status, head, body })
}

/// `text` for a URL's query.
pub fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
