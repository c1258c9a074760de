//! `weir-store`: the embedded default store.
//!
//! ClickHouse's own engine (libchdb.so, loaded at run time) on a data folder, behind as much of ClickHouse's HTTP
//! interface as Weir's collector and `curl` need, so that a real ClickHouse is only another URL. It must never
//! answer a query to one who does not hold the secret, and never acknowledge what the engine has not committed.

mod ask;
mod engine;
mod fault;
mod folder;
mod frames;
mod job;
mod locate;
mod multipart;
mod reply;
mod secret;
mod serve;
mod statement;
mod tokens;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::folder::Folder;
use crate::reply::Server;
use crate::secret::Secret;
use crate::serve::Store;

/// Threads that serve sockets; the work is the engine's.
const RUNTIME_THREADS: usize = 2;
/// How long the runtime may take to put its last threads away.
const RUNTIME_WAIT: Duration = Duration::from_secs(1);

/// Weir's embedded store: ClickHouse's own engine behind ClickHouse's HTTP interface
///
/// Keeps its tables in DIR, and answers whoever presents the secret as the password of user `default`. When it is ready
/// it prints one line of JSON: {"listening":"127.0.0.1:8123"}. SIGTERM and SIGINT stop it cleanly; what it has
/// acknowledged also survives a kill -9.
#[derive(Parser)]
#[command(
    name = "weir-store",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
#[command(after_help = "\
Talk to it:
  curl -s http://127.0.0.1:8123/ping
  curl -s http://127.0.0.1:8123/ --user default:$(cat DIR/store.secret) -d 'SELECT version()'
  curl -s 'http://127.0.0.1:8123/?query=INSERT+INTO+t+FORMAT+JSONEachRow' \\
       -H \"X-ClickHouse-Key: $(cat DIR/store.secret)\" --data-binary @rows.ndjson

Settings in the URL hold for that one query (?max_threads=1). A GET reads only. Whoever holds the secret can do
whatever ClickHouse can, reading this host's files with the rights of this process included: run it as a user of its own.

Exit codes: 0 stopped, 1 failed (with the reason on stderr), 2 wrong usage.")]
struct Cli {
    /// The data folder; made, for its owner alone, if it is absent
    #[arg(long, value_name = "DIR", required = true)]
    data: Option<PathBuf>,

    /// Address and port; port 0 takes any free one. Anything but loopback exposes the store without TLS
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8123")]
    listen: SocketAddr,

    /// The file with the secret; made with a random one, mode 0600, if it is absent [default: DIR/store.secret]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,

    /// ClickHouse's engine; else beside this binary, else /usr/lib/weir/libchdb.so
    #[arg(long, value_name = "LIBCHDB.SO", env = "WEIR_ENGINE")]
    engine: Option<PathBuf>,

    /// How long running queries may take to end after SIGTERM or SIGINT
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    stop_wait: u64,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Completions { shell }) = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "weir-store", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-store: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let data = cli.data.context("--data is missing")?;
    let library = locate::engine(cli.engine.as_deref())?;
    let folder = Folder::take(&data)?;
    let secret_file = cli.secret_file.unwrap_or_else(|| folder.secret());
    let secret = Secret::of_file(&secret_file)?;
    if !cli.listen.ip().is_loopback() {
        tracing::warn!(address = %cli.listen, "listening beyond loopback without TLS: the secret and all data can be read on the way");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .max_blocking_threads(serve::MAX_QUERIES + RUNTIME_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // The port before the engine: a taken one is told at once, and early clients wait instead of being refused.
    let listener = runtime.block_on(TcpListener::bind(cli.listen)).with_context(|| {
        format!("cannot listen on {}: name another with --listen, or stop who holds it", cli.listen)
    })?;
    let address = listener.local_addr().context("the listener has no address")?;

    let burnt = tokens::free_burnt(&folder.database())
        .with_context(|| format!("cannot look through the tables in {}", folder.database().display()))?;
    if burnt > 0 {
        tracing::warn!(burnt, "freed the tokens of inserts that a kill had interrupted");
    }
    let engine = Arc::new(Engine::open(&library, &folder.database(), &folder.config())?);
    let server = Server { timezone: timezone(&engine)? };
    let store = Arc::new(Store::new(engine.clone(), secret, server));
    // After the engine, so that no handler of its own stands in the way.
    let stop = runtime.block_on(async { stop_on_signal() })?;

    tracing::info!(%address, data = %data.display(), secret = %secret_file.display(), engine = engine.version(), "ready");
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", serde_json::json!({ "listening": address.to_string() }))
        .and_then(|()| stdout.flush())
        .context("cannot say that it is ready")?;

    let ended = runtime.block_on(serve::serve(listener, store, stop, Duration::from_secs(cli.stop_wait)));
    runtime.shutdown_timeout(RUNTIME_WAIT);
    if !ended {
        eprintln!(
            "weir-store: queries were still running after {} s; left them, none acknowledged",
            cli.stop_wait
        );
        engine::abandon(1);
    }
    engine.close();
    drop(folder);
    tracing::info!("stopped");
    Ok(())
}

/// Also shows that the engine answers at all.
fn timezone(engine: &Engine) -> anyhow::Result<String> {
    let mut session = engine.session()?;
    let answer = session
        .query(b"SELECT timezone()", "TSVRaw", &[])
        .map_err(|error| anyhow::anyhow!("the engine answers no query: {error}"))?;
    Ok(String::from_utf8_lossy(answer.as_ref()).trim().to_owned())
}

fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("cannot take signals")?;
        let stop = stop.clone();
        // Lives as long as the process; the token is all it touches.
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                tracing::info!("stopping");
                stop.cancel();
            }
        });
    }
    Ok(stop)
}
