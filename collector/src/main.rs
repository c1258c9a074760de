//! `weir-collector`: the command line. Arguments come in, exit codes go out: 0 done, 1 failed, 2 wrong usage.
//! Reasons go to stderr, each as one sentence; answers go to stdout.

mod auditing;
mod cli;
mod fleet;
mod runs;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weir_collector::approvals::{self, Request};
use weir_collector::authority::Authority;
use weir_collector::completeness;
use weir_collector::config::{Config, ConfigError, Listen, ListenTls};
use weir_collector::ingest::{self, Doors, Socket, Tls};
use weir_collector::query::{self, Shape};
use weir_collector::retention::{self, RetentionError};
use weir_collector::store::migrate::{MIGRATIONS, check, migrate};
use weir_collector::store::{Store, cluster};
use weir_collector::verify::read_trust;
use weir_collector::witness::Witness;
use weir_core::approval::Answer;

use crate::cli::{Answering, Approvals, Asking, Cli, Command, Counting, Retention, Serving, usage};

/// The widest cell of a table on a terminal, characters.
const CELL_WIDTH: usize = 48;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "weir-collector", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| match cli.command {
            Command::Serve(_) => "info".into(),
            _ => "warn".into(),
        });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ran = runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(run(cli)));
    match ran {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-collector: {error:#}");
            if error.is::<ConfigError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    if let Command::Query(Asking { list: true, json, .. }) = &cli.command {
        return named_questions(*json);
    }
    if let Command::Ca { command } = cli.command {
        return fleet::ca(command, &cli.config);
    }
    if let Command::Verify(verifying) = &cli.command
        && let Some(export) = &verifying.export
    {
        return auditing::verify_export(verifying, export);
    }
    if let Command::Replay(replaying) = cli.command {
        return runs::replay(replaying).await;
    }
    if let Command::Bundle(bundling @ runs::Bundling { check: Some(file), .. }) = &cli.command {
        return runs::checked(file, bundling);
    }
    let config = Config::read(&cli.config)?;
    let store = Store::new(&config.store);
    match cli.command {
        Command::Serve(serving) => serve(config, store, serving).await,
        Command::Migrate { cluster: Some(cluster), .. } => for_cluster(&store, &cluster).await,
        Command::Migrate { json, .. } => migrated(&config, &store, json).await,
        Command::WitnessKey => witness_key(&config),
        Command::Query(asking) => ask(&store, asking).await,
        Command::Completeness(counting) => completeness(&config, &store, counting).await,
        Command::Retention { command: Retention::Apply { dry_run, json } } => {
            retire(&config, &store, dry_run, json).await
        }
        Command::Verify(verifying) => auditing::verify(&store, verifying).await,
        Command::Export(exporting) => auditing::export(&store, exporting).await,
        Command::Trust => auditing::trust(&config, &store).await,
        Command::Bundle(bundling) => runs::bundle(&store, bundling).await,
        Command::Approvals { command } => approvals(&store, command).await,
        Command::EnrolToken(offering) => fleet::offer(&config, &store, offering).await,
        Command::Agents { command } => fleet::agents(&store, command).await,
        Command::Ca { .. } | Command::Replay(_) | Command::Completions { .. } => Ok(ExitCode::SUCCESS),
    }
}

async fn serve(config: Config, store: Store, serving: Serving) -> Result<ExitCode> {
    // Before anything is said to be ready, so that a stop is never lost.
    let stop = stop_on_signal()?;
    if serving.migrate {
        migrate(&store, &MIGRATIONS, now_us()).await?;
    } else {
        check(&store, &MIGRATIONS).await?;
    }
    let Listen { socket, agent_uids, tls } = config.listen;
    let at_tls = match tls {
        None => None,
        Some(ListenTls { address, ca, certificate, key }) => {
            Some(Tls::bind(address, Arc::new(Authority::open(&ca)?), &certificate, &key).await?)
        }
    };
    let witness = Witness::open(&config.witness)?;
    // The last: who waits for the socket's file may come in by either.
    let at_socket = socket.as_deref().map(|path| Socket::bind(path, &agent_uids)).transpose()?;
    let address = at_tls.as_ref().map(Tls::address).transpose()?.map(|address| address.to_string());
    tracing::info!(key = %witness.public(), "witness");
    tracing::info!(?socket, tls = address, store = store.url(), database = store.database(), "ready");
    if serving.json {
        let ready = json!({ "ready": true, "pid": std::process::id(), "socket": socket, "tls": address });
        say(&ready.to_string())?;
    }
    let doors = Doors { socket: at_socket, agent_uids, tls: at_tls, ..Doors::default() };
    let ended = ingest::serve(doors, store, witness, stop).await;
    anyhow::ensure!(ended, "requests were still running at the end; agents will send them again");
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn stop_on_signal() -> Result<CancellationToken> {
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

async fn retire(config: &Config, store: &Store, dry_run: bool, json: bool) -> Result<ExitCode> {
    let policy = config.retention.as_ref().ok_or(RetentionError::NoPolicy)?;
    check(store, &MIGRATIONS).await?;
    let witness = Witness::open(&config.witness)?;
    let report = retention::apply(store, policy, &witness, now_us(), dry_run).await?;
    if json {
        for line in report.json() {
            say(&line.to_string())?;
        }
    } else {
        print!("{}", report.table(std::io::stdout().is_terminal().then_some(CELL_WIDTH)));
    }
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn for_cluster(store: &Store, name: &str) -> Result<ExitCode> {
    if !cluster::is_name(name) {
        usage("a cluster's name consists of letters, digits, _ and -");
    }
    check(store, &MIGRATIONS).await?;
    say(cluster::print(store, name).await?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn witness_key(config: &Config) -> Result<ExitCode> {
    say(&Witness::open(&config.witness)?.public().to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn migrated(config: &Config, store: &Store, as_json: bool) -> Result<ExitCode> {
    let applied = migrate(store, &MIGRATIONS, now_us()).await?;
    Witness::open(&config.witness)?;
    let version = MIGRATIONS.last().map_or(0, |last| last.version);
    if as_json {
        let names: Vec<_> = applied.iter().map(|m| json!({ "version": m.version, "name": m.name })).collect();
        say(&json!({ "database": store.database(), "version": version, "applied": names }).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    for migration in &applied {
        say(&format!("applied {:04} {}", migration.version, migration.name))?;
    }
    say(&format!("the database {} is at version {version}", store.database()))?;
    Ok(ExitCode::SUCCESS)
}

fn named_questions(as_json: bool) -> Result<ExitCode> {
    for one in &query::named::NAMED {
        say(&if as_json {
            json!({ "name": one.name, "about": one.about, "needs": one.needed(), "sql": one.sql }).to_string()
        } else {
            format!("{:<11} {}", one.name, one.about)
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(store: &Store, asking: Asking) -> Result<ExitCode> {
    let question = asking.question().unwrap_or_else(|message| usage(&message));
    let shape = match asking.format {
        Some(format) => Shape::Format(format),
        None if asking.json => Shape::Json,
        None if asking.csv => Shape::Csv,
        None => Shape::Table { cell_width: cell_width() },
    };
    query::ask(store, &question.sql, &question.params, &shape, &mut std::io::stdout().lock()).await?;
    Ok(ExitCode::SUCCESS)
}

async fn completeness(config: &Config, store: &Store, counting: Counting) -> Result<ExitCode> {
    let as_json = counting.json;
    let witnesses = match &counting.trust {
        Some(path) => read_trust(path, None).unwrap_or_else(|error| usage(&error.to_string())).witnesses,
        None => Witness::known(&config.witness).into_iter().collect(),
    };
    if witnesses.is_empty() {
        tracing::warn!("no witness's key can be read, so no tombstone is believed: give --trust FILE");
    }
    let asked = counting.asked(witnesses).unwrap_or_else(|message| usage(&message));
    let report = completeness::report(store, &asked).await?;
    if as_json {
        report.json().try_for_each(|one| say_json(&one))?;
    } else {
        say(report.table(cell_width()).trim_end())?;
    }
    Ok(if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn approvals(store: &Store, command: Approvals) -> Result<ExitCode> {
    match command {
        Approvals::List { all, json } => {
            let held = approvals::list(store, all, now_us()).await?;
            if json {
                held.iter().try_for_each(|one| say_json(&approvals::json(one)))?;
            } else if held.is_empty() {
                say(if all { "no call was ever held" } else { "no call waits for a decision" })?;
            } else {
                say(approvals::table(&held, now_us(), cell_width()).trim_end())?;
            }
        }
        Approvals::Show { id, json } => {
            let held = approvals::find(store, &id, now_us()).await?;
            if json {
                say_json(&approvals::json(&held))?;
            } else {
                say(approvals::shown(&held).trim_end())?;
            }
        }
        Approvals::Approve(answering) => return answer(store, Answer::Approve, answering).await,
        Approvals::Refuse(answering) => return answer(store, Answer::Refuse, answering).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn answer(store: &Store, answer: Answer, answering: Answering) -> Result<ExitCode> {
    let key = answering.key.unwrap_or_else(approvals::default_key);
    let request = Request {
        id: answering.id,
        answer,
        justification: answering.justification,
        ticket: answering.ticket.unwrap_or_default(),
        key,
        principal: answering.principal,
        submitted_by: cli::submitter(),
        wait: !answering.no_wait,
    };
    let answered = approvals::answer(store, request).await?;
    if answering.json {
        say_json(&answered.json())?;
    } else {
        say(&approvals::summary(&answered.held))?;
        say(&answered.sentence())?;
    }
    Ok(if answered.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// Cells are cut where somebody reads them on a screen, and nowhere else.
fn cell_width() -> Option<usize> {
    std::io::stdout().is_terminal().then_some(CELL_WIDTH)
}

fn say(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")
}

fn say_json(value: &serde_json::Value) -> std::io::Result<()> {
    say(&weir_collector::visible::json(&value.to_string()))
}

/// Whoever read the answer has read enough (`| head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
