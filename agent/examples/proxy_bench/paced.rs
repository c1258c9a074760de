//! A paced load: each connection has a thread that sleeps until its next call is due. A time counts from then, so that a
//! proxy that falls behind does not hide it by being asked less often.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::answer::Answer;
use super::load::{Measured, Options};
use super::{certificates, watch};

/// When the first call is due.
const SOON: Duration = Duration::from_millis(20);

pub fn run(options: &Options) -> Result<Measured> {
    // Threads inherit it; the usual slack of 50 us would be in every time.
    fs::write("/proc/self/timerslack_ns", "1000")?;
    let (tls, request) = (options.tls()?, Arc::new(options.request()));
    let connections = u32::try_from(options.connections)?;
    let every = Duration::from_secs(1) / options.rate;
    let warm_up = u32::try_from(options.warm_up)? * options.rate / 1000;
    let calls = warm_up + u32::try_from(options.millis)? * options.rate / 1000;
    // The first call is due when all have connected.
    let (connected, first) = (Arc::new(Barrier::new(options.connections + 1)), Arc::new(OnceLock::new()));
    let threads: Vec<_> = (0..connections)
        .map(|own| {
            let (tls, request, port) = (tls.clone(), request.clone(), options.port);
            let (connected, first) = (connected.clone(), first.clone());
            thread::spawn(move || -> Result<Vec<u64>> {
                let stream = connect(port, tls);
                connected.wait();
                let (mut stream, first) = (stream?, *first.get_or_init(|| Instant::now() + SOON));
                let (mut times, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
                for n in (own..calls).step_by(connections as usize) {
                    let due = first + every * n;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    call(&mut stream, &request, &mut buffer)?;
                    if n >= warm_up {
                        times.push(u64::try_from(due.elapsed().as_nanos())?);
                    }
                }
                Ok(times)
            })
        })
        .collect();
    connected.wait();
    let first = *first.get_or_init(|| Instant::now() + SOON);
    thread::sleep((first + every * warm_up).saturating_duration_since(Instant::now()));
    let (began, cpu) = (Instant::now(), watch::cpu_seconds(&options.watch)?);
    thread::sleep((first + every * calls).saturating_duration_since(Instant::now()));
    let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), watch::cpu_seconds(&options.watch)?);
    let mut times = Vec::new();
    for thread in threads {
        times.append(&mut thread.join().map_err(|_| anyhow!("a connection's thread panicked"))??);
    }
    Ok(Measured { times, seconds, cpu_seconds: cpu_after - cpu })
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn connect(port: u16, tls: Arc<ClientConfig>) -> Result<Stream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let connection = ClientConnection::new(tls, ServerName::try_from(certificates::NAME)?)?;
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn call(stream: &mut Stream, request: &[u8], buffer: &mut [u8]) -> Result<()> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut answer = Answer::default();
    loop {
        let read = stream.read(buffer)?;
        ensure!(read > 0, "the connection was closed within an answer");
        if answer.take(buffer.get(..read).unwrap_or_default())? {
            return Ok(());
        }
    }
}
