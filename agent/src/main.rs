//! The `weir` command: arguments in, rooms called, an exit code out (0 done, 1 failed, 2 wrong usage or configuration).
#![forbid(unsafe_code)]

mod enrolling;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use weir::config::{Config, ConfigError};
use weir::daemon::Agent;
use weir::run::{self, Run};
use weir::{admin, oci, trust, uninstall};

use crate::enrolling::Enrolling;

/// Where state lives unless a configuration or an option says otherwise.
const STATE_DIR: &str = "/var/lib/weir";
/// Where the agent looks for its configuration.
const CONFIG: &str = "/etc/weir/weir.toml";

/// Intercepts, decides on and records the MCP calls of this host's CI jobs.
#[derive(Parser)]
#[command(name = "weir", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  weir run -- npx some-agent --task build     one command, its MCP calls listed at the end
  weir agent --config /etc/weir/weir.toml     the host's agent, in the foreground
  weir status --json                          what the running agent does
  weir key show                               the key by which the log can be verified
  weir agent --replace                        a new one in the running agent's place
  weir agent --detach                         no hook is left in force
  weir oci-hook --print-config hooks-dir      has podman register each container before it starts
Logs go to standard error; RUST_LOG=weir=debug shows more.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; `weir run` gives back its command's.";

const FAILED: u8 = 1;
/// As clap has it.
const WRONG_USAGE: u8 = 2;

#[derive(Subcommand)]
enum Command {
    /// Runs the host's agent until it gets SIGTERM or SIGINT.
    ///
    /// Its hooks stay in force when it has ended, in the failure mode that [failure] names, until another agent takes them
    /// over or --detach takes them away.
    Agent {
        /// The configuration file.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
        /// Takes the place of the agent that runs for the same state folder: an upgrade, or a restart with another
        /// configuration, in which no connection meets nobody and no call fails.
        ///
        /// The old agent ends when its connections and held calls have. Should the new one fail before it has taken over,
        /// the old one goes on. If none runs, this is a start like any other.
        #[arg(long, conflicts_with = "detach")]
        replace: bool,
        /// Takes away the hooks and tables that an agent left in force, and runs none.
        #[arg(long)]
        detach: bool,
    },
    /// Takes Weir off this host: hooks, tables and CA, and with --purge all else; says what it removes.
    ///
    /// The runner's environment must no more name Weir's CA (`weir ca env`), or its jobs trust nobody. Programs, service
    /// and configuration file stay for the package manager.
    Uninstall {
        #[command(flatten)]
        place: Place,
        /// Removes records, keys and the state folder too. Records that were not shipped are lost.
        #[arg(long)]
        purge: bool,
        /// Ends a running agent first, instead of refusing.
        #[arg(long)]
        force: bool,
    },
    /// Makes this host known to a collector on another host, by a one-time token.
    ///
    /// A key is made and stays here (0600, below the state folder); the collector certifies it for this host's name. Then set
    /// [collector] url in the configuration. The agent renews the certificate by itself.
    Enrol(Enrolling),
    /// Runs a command in a cgroup of its own under interception, and lists its MCP calls when it ends.
    ///
    /// Nothing stays behind: no cgroup, hook or process, however the command ends. Its exit code is given back.
    /// Without --config everything on ports 80 and 443 is recorded, and no rule refuses anything.
    Run {
        /// A configuration file; what it selects and listens on is not used.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Where records are kept when there is no --config; each run at a time takes a log of its own below it.
        #[arg(long, default_value = STATE_DIR, conflicts_with = "config")]
        state_dir: PathBuf,
        /// Also writes the calls to this file as JSON lines; `-` is standard output.
        #[arg(long)]
        report: Option<PathBuf>,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Shows what the running agent does: listeners, connects as the kernel counted them, records not yet shipped.
    Status {
        #[command(flatten)]
        place: Place,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Shows Weir's certificate authority, or where the bundle for jobs is.
    Ca {
        #[command(flatten)]
        place: Place,
        #[command(subcommand)]
        what: CaCommand,
    },
    /// Shows or changes the key that signs the host's log.
    Key {
        #[command(subcommand)]
        what: KeyCommand,
    },
    /// A container runtime's createRuntime hook: has the container's network namespace registered before its first process.
    ///
    /// Reads the container's state on standard input, asks the running agent, and waits for its answer. Without an agent it
    /// says so and exits with 0, and the container starts: what it connects to is refused, or passed, as the agent's
    /// failure mode has it. With --require it exits with 1, and the runtime gives the container up.
    OciHook {
        #[command(flatten)]
        place: Place,
        /// Fail when the namespace is not registered.
        #[arg(long)]
        require: bool,
        /// Print what makes a runtime run this hook, and do nothing else.
        #[arg(long, value_name = "FOR")]
        print_config: Option<oci::Sample>,
    },
    /// Works with configuration files.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Prints completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// `weir run`'s own: enters a cgroup and becomes a command.
    #[command(hide = true)]
    EnterCgroup {
        cgroup: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// `weir run`'s own: cleans up when it is killed.
    #[command(hide = true)]
    KeepCgroup { name: String },
}

#[derive(Subcommand)]
enum CaCommand {
    /// Prints the certificate (PEM); makes the CA if there is none.
    Show,
    /// Prints the path of the bundle: the system's roots, the configured ones and Weir's.
    Bundle,
    /// Prints the variables that make a job's clients trust the bundle, one NAME=VALUE a line.
    Env,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Prints the key that signs the log now, for whoever verifies it to pin.
    ///
    /// Pin it before there is anything to verify. A key that was changed since is followed by the statements in the log,
    /// which the key before has signed.
    Show {
        #[command(flatten)]
        place: Place,
        /// As one JSON object: the log's name, the epoch, the key.
        #[arg(long)]
        json: bool,
    },
    /// Has the running agent change the key: the old one signs a statement that names the new one, and is removed.
    ///
    /// Do this when somebody may have read the key: what was recorded and witnessed before stays proven.
    Rotate {
        #[command(flatten)]
        place: Place,
        /// As one JSON object: the new key, its epoch, the sequence number of its first event.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Checks a configuration file, and says where it is wrong.
    Check {
        #[arg(default_value = CONFIG)]
        file: PathBuf,
    },
}

#[derive(clap::Args)]
struct Place {
    /// The agent's configuration file.
    #[arg(long, default_value = CONFIG)]
    config: PathBuf,
    /// The agent's state folder, when there is no configuration file at hand.
    #[arg(long, conflicts_with = "config")]
    state_dir: Option<PathBuf>,
}

impl Place {
    fn config(&self) -> Result<Config> {
        match &self.state_dir {
            Some(state_dir) => Ok(Config::built_in(state_dir.clone())),
            None => Ok(Config::read(&self.config)?),
        }
    }
}

impl Place {
    /// What leads a hook to the same agent, from wherever the runtime runs it.
    fn hook_arguments(&self, require: bool) -> Result<Vec<String>> {
        let (name, path) = match &self.state_dir {
            Some(state_dir) => ("--state-dir", state_dir),
            None => ("--config", &self.config),
        };
        let path = std::path::absolute(path)?;
        let mut arguments = vec!["oci-hook".to_owned(), name.to_owned(), path.display().to_string()];
        arguments.extend(require.then(|| "--require".to_owned()));
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let quiet = matches!(arguments.command, Command::Run { .. });
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(filter.unwrap_or_else(|_| if quiet { "warn" } else { "info" }.into()))
        .init();
    match execute(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir: {error:#}");
            ExitCode::from(if error.is::<ConfigError>() { WRONG_USAGE } else { FAILED })
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Agent { config, replace, detach: false } => runtime()?.block_on(agent(&config, replace))?,
        Command::Agent { config, detach: true, .. } => {
            tell(&runtime()?.block_on(uninstall::detach(&Config::read(&config)?))?);
        }
        Command::Uninstall { place, purge, force } => {
            let plan = uninstall::Plan { purge, force };
            tell(&runtime()?.block_on(uninstall::uninstall(&place.config()?, plan))?);
        }
        Command::Run { config, state_dir, report, command } => {
            let run = Run { config, state_dir, command, report };
            let code = runtime()?.block_on(run.execute())?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        Command::Enrol(enrolling) => enrolling.execute()?,
        Command::Status { place, json } => status(&place, json)?,
        Command::Ca { place, what } => ca(&place, &what)?,
        Command::Key { what: KeyCommand::Show { place, json } } => key_show(&place, json)?,
        Command::Key { what: KeyCommand::Rotate { place, json } } => key_rotate(&place, json)?,
        Command::OciHook { place, require, print_config: Some(sample) } => {
            let weir = std::env::current_exe().context("cannot tell where this program lies")?;
            println!("{:#}", oci::sample(sample, &weir, &place.hook_arguments(require)?));
        }
        Command::OciHook { place, require, print_config: None } => match oci_hook(&place) {
            Err(error) if !require => eprintln!("weir: {error:#}"),
            done => done?,
        },
        Command::Config { what: ConfigCommand::Check { file } } => {
            Config::read(&file)?;
            println!("{}: no mistakes found", file.display());
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "weir", &mut std::io::stdout());
        }
        Command::EnterCgroup { cgroup, command } => {
            let (code, error) = run::enter(&cgroup, &command);
            eprintln!("weir: {error:#}");
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        Command::KeepCgroup { name } => run::keep(&name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(lines: &[String]) {
    lines.iter().for_each(|line| println!("{line}"));
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    weir::memory::keep_few_arenas();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

async fn agent(config: &Path, replace: bool) -> Result<()> {
    let config = Config::read(config)?;
    if !replace && let Ok(running) = admin::status(&config.state_dir).await {
        anyhow::bail!(
            "an agent (pid {}) runs already for {}: `weir agent --replace` takes its place, or stop it first",
            running.pid,
            config.state_dir.display()
        );
    }
    anyhow::ensure!(
        !config.select.is_empty(),
        "no cgroup is selected, no executable and no user: name the runner's in [select] cgroups = [...]"
    );
    raise_open_files(config.limits.flows);
    if config.policy.holds() && (config.collector.is_none() || config.approval.signers.is_empty()) {
        tracing::warn!(
            "a rule holds calls that nobody can approve: set [collector] and [approval] allowed_signers"
        );
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut agent = if replace { Agent::replace(config).await } else { Agent::start(config, None).await }?;
    let status = agent.status();
    tracing::info!(v4 = status.listen.v4, v6 = status.listen.v6, origin = %status.origin, "intercepting");
    status.missing.iter().for_each(|what| tracing::warn!("{what}"));
    loop {
        let asking = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            asking = agent.asked() => asking,
        };
        match agent.hand_over(asking).await {
            Ok(()) => {
                return agent
                    .drain(async {
                        tokio::select! {
                            _ = terminate.recv() => {}
                            _ = interrupt.recv() => {}
                        }
                    })
                    .await;
            }
            Err(error) => tracing::error!(%error, "this agent was not replaced, and goes on"),
        }
    }
    tracing::info!("ending");
    agent.stop().await
}

/// The usual soft limit of 1024 open files is there for programs that use select(2), and is used up by 500 flows. What
/// runs under `weir run` is somebody else's program, so this is for the agent alone.
fn raise_open_files(flows: usize) {
    // The client's connection, the server's, and some of the agent's own.
    let needed = (2 * flows + 64) as u64;
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(allowed) if allowed < needed => {
            tracing::warn!(
                allowed,
                needed,
                "too few open files are allowed for [limits] flows; raise LimitNOFILE"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the number of open files"),
    }
}

fn status(place: &Place, json: bool) -> Result<()> {
    let state_dir = place.config()?.state_dir;
    let socket = admin::socket(&state_dir);
    let status = runtime()?.block_on(admin::status(&state_dir)).with_context(|| {
        format!("no agent answers at {}; is `weir agent` running, and are you root?", socket.display())
    })?;
    if json {
        println!("{}", serde_json::to_string(&status)?);
        return Ok(());
    }
    let connects = status.connects;
    println!("agent      pid {}, {}", status.pid, if status.ready { "intercepting" } else { "not ready" });
    println!("log        {}", status.origin);
    println!("listens    {} and {}", status.listen.v4, status.listen.v6);
    println!(
        "connects   {} redirected, {} passed, {} refused, {} unanswered, {} failed",
        connects.redirected, connects.passed, connects.refused, connects.unanswered, connects.failed
    );
    for what in &status.missing {
        println!("missing    {what}");
    }
    let calls = status.calls;
    println!(
        "calls      {} open, {} outcomes wait for the disk, {} notes lost, {} did not wait for their record",
        calls.open, calls.owed_outcomes, calls.lost_notes, calls.unwaited_intents
    );
    if let Some(fault) = calls.fault {
        println!("fault      every call is refused: {fault}");
    }
    println!(
        "spool      {} events in {} segments wait to be shipped ({} bytes, {} of them set aside)",
        status.spool.unshipped_events,
        status.spool.segments,
        status.spool.bytes,
        status.spool.set_aside_bytes
    );
    let at = status.evidence.standing;
    let witnessed = match status.evidence.witnessed {
        Some(to) if to.epoch == at.epoch => format!("the collector has witnessed {}", to.size),
        Some(to) => format!("the collector has witnessed {} of epoch {}", to.size, to.epoch),
        None => "the collector has witnessed none".to_owned(),
    };
    println!("evidence   epoch {} from event {} on: {} leaves, {witnessed}", at.epoch, at.first_seq, at.size);
    println!("CA         {} ({})", status.ca.issuer, status.ca.bundle.display());
    Ok(())
}

fn key_show(place: &Place, json: bool) -> Result<()> {
    let spool = place.config()?.state_dir.join("spool");
    let shown = weir::ledger::shown(&spool)?;
    if json {
        println!("{}", serde_json::to_string(&shown)?);
    } else {
        println!("{}", shown.key);
    }
    Ok(())
}

fn key_rotate(place: &Place, json: bool) -> Result<()> {
    let state_dir = place.config()?.state_dir;
    let asked = runtime()?.block_on(admin::ask(&state_dir, &admin::Ask::RotateKey));
    let rotated = match asked {
        Ok(admin::Answer::Rotated(rotated)) => *rotated,
        Ok(admin::Answer::Refused(why)) => anyhow::bail!("the key was not changed: {why}"),
        Ok(other) => anyhow::bail!("the agent answered what was not asked: {other:?}"),
        Err(error) => {
            let socket = admin::socket(&state_dir);
            return Err(error).with_context(|| {
                format!("no agent answers at {}; start it, since it alone writes the log", socket.display())
            });
        }
    };
    if json {
        println!("{}", serde_json::to_string(&rotated)?);
    } else {
        println!("{}", rotated.key);
        eprintln!("weir: epoch {} begins with event {}", rotated.epoch, rotated.first_seq);
    }
    Ok(())
}

fn oci_hook(place: &Place) -> Result<()> {
    let state_dir = place.config()?.state_dir;
    let registered = runtime()?.block_on(oci::register(std::io::stdin(), &state_dir))?;
    tracing::debug!(?registered, "the container's network namespace");
    Ok(())
}

fn ca(place: &Place, what: &CaCommand) -> Result<()> {
    let config = place.config()?;
    let authority =
        trust::Authority::open_or_create(&config.state_dir.join("ca"), &weir::daemon::hostname())?;
    match what {
        CaCommand::Show => {
            let pem = std::fs::read(authority.certificate_path()).context("cannot read the certificate")?;
            std::io::stdout().write_all(&pem)?;
        }
        CaCommand::Bundle => println!("{}", authority.write_bundle(&config.upstream.roots)?.display()),
        CaCommand::Env => {
            authority.write_bundle(&config.upstream.roots)?;
            for (name, value) in authority.environment() {
                println!("{name}={value}");
            }
        }
    }
    Ok(())
}
