//! Plays a fleet against one collector: so many logs, each with a key and a tree of its own, as agents send them. Run by
//! `cargo xtask bench fleet`. Leaves lines of JSON on stdout: what segments take while so many are on their way at a time, and
//! what all logs' idle checkpoints take together.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::{TreeState, leaf_hash};
use weir_core::ids::{Origin, hex};
use weir_core::segment::{FrameKind, header, push_frame};
use weir_core::wire::{CHECKPOINTS, CheckpointPost, ENROL, EnrolRequest, SEGMENTS, VERSION, VERSION_HEADER};

#[derive(Debug, Parser)]
struct Options {
    /// The collector's socket.
    #[arg(long)]
    socket: PathBuf,
    #[arg(long, default_value_t = 1000)]
    origins: usize,
    /// Segments of each log.
    #[arg(long, default_value_t = 3)]
    segments: usize,
    /// Events of a segment.
    #[arg(long, default_value_t = 40)]
    events: u64,
    /// Connections at a time.
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

/// One simulated host's log.
struct Log {
    name: LogName,
    key: SigningKey,
    tree: TreeState,
    time_us: u64,
}

impl Log {
    fn of(n: usize) -> Result<Self> {
        // Of this run alone: a store may be used twice.
        let run = u64::from(std::process::id());
        let origin = Origin::from_random((u128::from(run) << 64 | n as u128).to_be_bytes());
        let name = LogName { tenant: "bench".into(), host: format!("host-{n}"), origin, epoch: 1 };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&(n as u64).to_le_bytes());
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_micros();
        Ok(Self {
            name,
            key: SigningKey::from_seed(&seed),
            tree: TreeState::begin(1, 0),
            time_us: u64::try_from(now)?,
        })
    }

    fn enrolment(&self) -> Result<Vec<u8>> {
        let key = self.key.verifying(&self.name.to_string())?;
        Ok(serde_json::to_vec(&EnrolRequest { key, first_seq: 0, rotation: None })?)
    }

    /// An outcome, as canonical JSON.
    fn event(&self, seq: u64) -> String {
        let LogName { tenant, host, origin, .. } = &self.name;
        let text = "The pipeline builds three images. ".repeat(20);
        format!(
            r#"{{"body":{{"call_id":"{seq:032x}","duration_us":345,"error_code":null,"http_status":200,"kind":"outcome","payload":{{"bytes":700,"text":"{text}","truncated":false}},"result":"ok"}},"boot":"{origin}","host":"{host}","origin":"{origin}","seq":{seq},"tenant":"{tenant}","time_us":{},"v":1}}"#,
            self.time_us
        )
    }

    fn checkpoint(&mut self) -> Result<String> {
        self.time_us += 1000;
        Ok(Checkpoint::of(&self.name, &self.tree, self.time_us).signed(&self.key)?.to_string())
    }

    fn segment(&mut self, events: u64) -> Result<Vec<u8>> {
        let first_seq = self.tree.next_seq();
        let mut out = header(first_seq).to_vec();
        push_frame(&mut out, FrameKind::Tree, first_seq, &self.tree.to_bytes());
        for seq in first_seq..first_seq + events {
            let event = self.event(seq);
            self.tree.push(event.as_bytes());
            push_frame(&mut out, FrameKind::Event, seq, event.as_bytes());
        }
        let note = self.checkpoint()?;
        push_frame(&mut out, FrameKind::Checkpoint, self.tree.next_seq(), note.as_bytes());
        Ok(out)
    }

    fn idle(&mut self) -> Result<Vec<u8>> {
        let first_seq = self.tree.next_seq();
        let heartbeat = self.event(first_seq);
        self.tree.push(heartbeat.as_bytes());
        let leaves = vec![hex(&leaf_hash(heartbeat.as_bytes()))];
        Ok(serde_json::to_vec(&CheckpointPost { note: self.checkpoint()?, first_seq, leaves })?)
    }
}

/// Posts, and says how long the answer took.
async fn post(options: &Options, path: &str, body: Vec<u8>) -> Result<Duration> {
    let began = Instant::now();
    let stream = UnixStream::connect(&options.socket).await.context("the collector's socket")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::post(path).header(VERSION_HEADER, VERSION).header("host", "weir");
    let answer = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
    let status = answer.status();
    let answer = answer.into_body().collect().await?.to_bytes();
    drop(sender);
    driver.await??;
    if status != 200 {
        bail!("{path}: {status} {}", String::from_utf8_lossy(&answer));
    }
    Ok(began.elapsed())
}

/// What is sent, of all logs, by so many at a time.
async fn all(
    options: &Arc<Options>,
    logs: &Arc<Vec<Mutex<Log>>>,
    connections: usize,
    path: &'static str,
    body: fn(&mut Log, &Options) -> Result<Vec<u8>>,
) -> Result<Vec<Duration>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (options, logs, next) = (options.clone(), logs.clone(), next.clone());
        tasks.spawn(async move {
            let mut taken = Vec::new();
            while let Some(log) = logs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let body = body(&mut *log.lock().await, &options)?;
                taken.push(post(&options, path, body).await?);
            }
            anyhow::Ok(taken)
        });
    }
    let mut taken = Vec::with_capacity(logs.len());
    while let Some(some) = tasks.join_next().await {
        taken.extend(some??);
    }
    taken.sort_unstable();
    Ok(taken)
}

fn told(what: &str, taken: &[Duration], whole: Duration) {
    let ms = |at: usize| {
        taken.get(at.min(taken.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    let line = json!({
        "what": what,
        "count": taken.len(),
        "seconds": whole.as_secs_f64(),
        "per_second": taken.len() as f64 / whole.as_secs_f64(),
        "p50_ms": ms(taken.len() / 2),
        "p99_ms": ms(taken.len() * 99 / 100),
    });
    println!("{line}");
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Arc::new(Options::parse());
    let logs: Result<Vec<_>> = (0..options.origins).map(|n| Ok(Mutex::new(Log::of(n)?))).collect();
    let logs = Arc::new(logs?);
    let began = Instant::now();
    let taken = all(&options, &logs, options.connections, ENROL, |log, _| log.enrolment()).await?;
    told("enrolments", &taken, began.elapsed());
    let began = Instant::now();
    let mut taken = Vec::new();
    for _ in 0..options.segments {
        let put = |log: &mut Log, options: &Options| log.segment(options.events);
        taken.extend(all(&options, &logs, options.connections, SEGMENTS, put).await?);
    }
    taken.sort_unstable();
    told("segments", &taken, began.elapsed());
    let began = Instant::now();
    // Idle hosts do not wait for one another.
    let taken = all(&options, &logs, options.connections.max(200), CHECKPOINTS, |log, _| log.idle()).await?;
    told("idle checkpoints", &taken, began.elapsed());
    Ok(())
}
