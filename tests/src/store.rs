//! The embedded store, `weir-store`, on a data folder of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::daemon::{Daemon, Program};
use crate::places::{Setup, binary, free_port};

const START: Duration = Duration::from_secs(60);

/// The running store.
#[derive(Debug)]
pub struct Store {
    program: Program,
    daemon: Daemon,
    address: SocketAddr,
    secret: PathBuf,
}

impl Store {
    pub fn start(setup: &Setup, folder: &Path, outlives: bool) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let secret = folder.join("store.secret");
        let program = Program::new("the store", binary("weir-store")?, folder.join("store.log"))
            .arg("--data")
            .arg(folder.join("store"))
            .arg("--listen")
            .arg(address.to_string())
            .arg("--secret-file")
            .arg(&secret)
            .env("WEIR_ENGINE", setup.engine().to_string_lossy())
            .outlives(outlives);
        let daemon = up(&program, address)?;
        Ok(Self { program, daemon, address, secret })
    }

    /// Starts it again on the same data and port, after it was ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = up(&self.program, self.address)?;
        Ok(())
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Runs a statement with the store's own secret, as somebody could who has taken the store over.
    pub fn execute(&self, statement: &str) -> Result<String> {
        let secret = std::fs::read_to_string(&self.secret)?;
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "POST /?database=weir HTTP/1.1\r\nHost: {}\r\nX-ClickHouse-User: default\r\nX-ClickHouse-Key: {}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{statement}",
            self.address,
            secret.trim(),
            statement.len(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "the store answered {statement:?} with {answer}");
        Ok(answer)
    }

    /// The file of the password, for root alone.
    pub fn secret(&self) -> &Path {
        &self.secret
    }
}

fn up(program: &Program, address: SocketAddr) -> Result<Daemon> {
    let mut daemon = program.start()?;
    daemon.until_ready(START, || Ok(ping(address).unwrap_or(false).then_some(())))?;
    Ok(daemon)
}

/// ClickHouse's own liveness question.
fn ping(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(
        format!("GET /ping HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200") && answer.contains("Ok."))
}
