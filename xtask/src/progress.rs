//! Progress for people: one line when a step begins, a sign of life while it runs, one line with its time when it ends.
//!
//! In: commands. Out: lines on stderr, the commands' own output in log files, and errors that show the end of a log.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use weir_tests::daemon::tail;

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// How often a long step says that it is still at it.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// How much of a log's last line it shows, in characters.
const LAST_LINE: usize = 60;

/// One line, with the time since the start.
pub fn say(line: impl std::fmt::Display) {
    eprintln!("[{:7.1} s] {line}", BEGAN.elapsed().as_secs_f64());
}

/// Does a step, telling when it begins and how long it took.
pub fn step<T>(name: &str, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(format_args!("{name}: {what}"));
    let began = Instant::now();
    let done = work()?;
    say(format_args!("{name}: done in {:.1} s", began.elapsed().as_secs_f64()));
    Ok(done)
}

/// Runs a command with its output in a log file.
pub fn logged(name: &str, command: &mut Command, log: &Path) -> Result<()> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let began = Instant::now();
    let mut told = began;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if told.elapsed() >= SIGN_OF_LIFE {
            told = Instant::now();
            let last: String = tail(log, 1).trim().chars().take(LAST_LINE).collect();
            say(format_args!("{name}: at it for {} s ({last})", began.elapsed().as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("{name}: `{program}` failed ({status}); its log, {}, ends:\n{}", log.display(), tail(log, 30));
    }
    Ok(())
}

/// Runs a command that shows its own output.
pub fn shown(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs a command for what it says on stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
pub fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The cargo that runs us, with the tools of the setup found first.
pub fn cargo(setup: &weir_tests::Setup) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let tools = setup.tools().join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(tools).chain(std::env::split_paths(&path));
    if let Ok(path) = std::env::join_paths(all) {
        command.env("PATH", path);
    }
    command.env(weir_tests::places::SETUP_VARIABLE, setup.folder());
    // For weir-store's own tests, which do not know the setup.
    command.env("WEIR_ENGINE", setup.engine());
    command.current_dir(weir_tests::places::workspace());
    command
}
