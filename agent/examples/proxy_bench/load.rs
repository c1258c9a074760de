//! The load: so many connections that ask again as soon as they have their answer, for a while; or a connection for each call.
//! Out: calls a second, the time that one took at the median and at the 99th percentile, and what the watched processes used.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::answer::Answer;
use super::{certificates, idle, messages, on_all_cores, paced, watch};

/// How long the connections may take to come up.
const COMING: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[arg(value_enum)]
    pub shape: Shape,
    /// The port to ask at, on loopback.
    pub port: u16,
    /// The CA certificates that it trusts.
    #[arg(long)]
    pub roots: PathBuf,
    /// What is asked for.
    #[arg(long, value_enum, default_value = "plain")]
    pub answer: Wanted,
    /// The tool that is called.
    #[arg(long, default_value = "read_file")]
    pub tool: String,
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// Calls a second, of paced loads.
    #[arg(long, default_value_t = 1000)]
    pub rate: u32,
    /// How long it asks before it is measured, and while.
    #[arg(long, default_value_t = 300)]
    pub warm_up: u64,
    #[arg(long, default_value_t = 1000)]
    pub millis: u64,
    /// The processes whose time, or memory, is measured.
    #[arg(long, value_delimiter = ',')]
    pub watch: Vec<u32>,
    /// The cgroup to ask from.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Each connection asks again at once.
    Closed,
    /// So many a second, whatever the answers take; a time counts from when a call was due.
    Paced,
    /// A connection for each call, with a full handshake.
    Fresh,
    /// A connection for each call, with a handshake that goes on from an earlier one.
    Resumed,
    /// Connections that ask once and stay.
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    Plain,
    Events,
    Large,
}

impl Options {
    pub fn request(&self) -> Vec<u8> {
        let path = match self.answer {
            Wanted::Plain => messages::PLAIN,
            Wanted::Events => messages::EVENTS,
            Wanted::Large => messages::LARGE,
        };
        messages::request(path, &self.tool, &format!("{}:{}", certificates::NAME, self.port))
    }

    pub fn tls(&self) -> Result<Arc<ClientConfig>> {
        certificates::client(&self.roots, self.shape == Shape::Resumed)
    }
}

/// What was measured of one stretch of time.
pub struct Measured {
    /// Nanoseconds of each call.
    pub times: Vec<u64>,
    pub seconds: f64,
    pub cpu_seconds: f64,
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(cgroup) = &options.cgroup {
        std::fs::write(cgroup.join("cgroup.procs"), "0").context("joining the cgroup")?;
    }
    let told = match options.shape {
        Shape::Paced => paced::run(options)?.told(),
        Shape::Idle => idle::run(options)?,
        Shape::Closed | Shape::Fresh | Shape::Resumed => {
            let (options, (say, said)) = (options.clone(), std::sync::mpsc::channel());
            on_all_cores(async move {
                let measured = closed(options).await?;
                say.send(measured).context("nobody listens")
            })?;
            said.recv()?.told()
        }
    };
    println!("{told}");
    Ok(())
}

impl Measured {
    fn told(mut self) -> Value {
        self.times.sort_unstable();
        let part = |part: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
            let at = (self.times.len().saturating_sub(1) as f64 * part) as usize;
            self.times.get(at).map(|nanos| *nanos as f64 / 1000.0)
        };
        let calls = self.times.len() as f64;
        json!({
            "calls": self.times.len(),
            "rps": calls / self.seconds,
            "p50_us": part(0.5),
            "p99_us": part(0.99),
            "cpu_s_per_1k": self.cpu_seconds / calls * 1000.0,
        })
    }
}

/// What all connections share.
struct Load {
    options: Options,
    request: Vec<u8>,
    connector: TlsConnector,
    /// How many connections have had their first answer.
    begun: AtomicUsize,
    measuring: AtomicBool,
    over: AtomicBool,
}

async fn closed(options: Options) -> Result<Measured> {
    let load = Arc::new(Load {
        request: options.request(),
        connector: TlsConnector::from(options.tls()?),
        begun: AtomicUsize::new(0),
        measuring: AtomicBool::new(false),
        over: AtomicBool::new(false),
        options,
    });
    let workers: Vec<_> = (0..load.options.connections).map(|_| tokio::spawn(load.clone().work())).collect();
    let comes = Instant::now();
    while load.begun.load(Ordering::Relaxed) < load.options.connections && comes.elapsed() < COMING {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(load.options.warm_up)).await;
    let (began, cpu) = (Instant::now(), watch::cpu_seconds(&load.options.watch)?);
    load.measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(load.options.millis)).await;
    load.measuring.store(false, Ordering::Relaxed);
    let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), watch::cpu_seconds(&load.options.watch)?);
    load.over.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for worker in workers {
        times.append(&mut worker.await??);
    }
    ensure!(!times.is_empty(), "no call was answered in time");
    Ok(Measured { times, seconds, cpu_seconds: cpu_after - cpu })
}

impl Load {
    /// Asks until it is over, and says how long each measured call took.
    async fn work(self: Arc<Self>) -> Result<Vec<u64>> {
        let (mut times, mut stays, mut buffer) = (Vec::new(), None, vec![0; 64 << 10]);
        let mut begun = false;
        while !self.over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut stream = match stays.take() {
                Some(stream) => stream,
                None => connect(self.options.port, &self.connector).await?,
            };
            call(&mut stream, &self.request, &mut buffer).await?;
            if self.options.shape == Shape::Closed {
                stays = Some(stream);
            } else {
                let _ = stream.shutdown().await;
            }
            if !std::mem::replace(&mut begun, true) {
                self.begun.fetch_add(1, Ordering::Relaxed);
            }
            if self.measuring.load(Ordering::Relaxed) {
                times.push(u64::try_from(began.elapsed().as_nanos())?);
            }
        }
        Ok(times)
    }
}

pub async fn connect(port: u16, connector: &TlsConnector) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(connector.connect(ServerName::try_from(certificates::NAME)?, stream).await?)
}

pub async fn call(stream: &mut TlsStream<TcpStream>, request: &[u8], buffer: &mut [u8]) -> Result<()> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut answer = Answer::default();
    loop {
        let read = stream.read(buffer).await?;
        ensure!(read > 0, "the connection was closed within an answer");
        if answer.take(buffer.get(..read).unwrap_or_default())? {
            return Ok(());
        }
    }
}
