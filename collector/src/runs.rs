//! The commands about one run: `bundle` writes and checks its file, `replay` plays it again.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use serde_json::json;
use weir_collector::bundle::{Asked, Bundle, Checked, Story, check, gather};
use weir_collector::replay::bind::{Bindings, value};
use weir_collector::replay::{Header, Outcome, Sandbox, Target, against, policy};
use weir_collector::store::Store;
use weir_collector::visible;
use weir_core::evidence::verify::Trust;

use crate::cli::usage;
use crate::{now_us, say, say_json};

/// The most bytes of a file of trust or of CAs.
const MAX_SIDE_FILE: u64 = 16 << 20;

/// `bundle`.
#[derive(Debug, Args)]
#[command(after_help = "\
A bundle is an export of one run: its events to the letter, the leaves of the batches that they came in, checkpoints, keys, and
the policies that were in force. `verify --export` and docs/verify.py read it, too.

Examples:
  weir-collector bundle --run 731 -o run-731.tar.zst
  weir-collector bundle --run 731 --repository example/payments -o run-731.tar.zst
  weir-collector bundle --check run-731.tar.zst --trust trust.json
  weir-collector bundle --check run-731.tar.zst --json | jq '.story.tools'")]
#[command(group(ArgGroup::new("which").required(true).args(["run", "check"])))]
pub struct Bundling {
    /// The run, by the id that its CI gave it
    #[arg(long, value_name = "RUN", requires = "output")]
    pub run: Option<String>,
    /// Of this repository, where two use one id
    #[arg(long, value_name = "NAME", requires = "run")]
    repository: Option<String>,
    /// Where the bundle goes; a file that is there is not written over
    #[arg(short, long, value_name = "FILE", conflicts_with = "check")]
    output: Option<PathBuf>,
    /// Check a bundle instead, without any store: exits with 1 when something in it does not hold
    #[arg(long, value_name = "FILE")]
    pub check: Option<PathBuf>,
    /// The keys to hold it against, as `verify` takes them; without it the bundle's own
    #[arg(long, value_name = "FILE", requires = "check")]
    trust: Option<PathBuf>,
    /// Let a bundle pass in which events are signed by nobody (from before logs were signed, or with its proofs taken out)
    #[arg(long, requires = "check", conflicts_with = "trust")]
    unsigned_ok: bool,
    /// Print one JSON object; of a bundle that is checked with all that is in it
    #[arg(long)]
    json: bool,
}

/// `replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
The bundle is checked first; one that does not hold is not played. Each call comes out as `same`, `different` (with the places),
`refused` (it was refused then, and is not played), `unplayed` or `unknown` (nothing to compare with). `inexact` says that
something masked was part of it. What the sandbox asks of its client meanwhile is declined. Exits with 1 when a call is different.

Examples:
  weir-collector replay run-731.tar.zst --against http://127.0.0.1:9000/mcp --dry-run
  weir-collector replay run-731.tar.zst --against https://sandbox.test/mcp --ca sandbox-ca.pem --json
  weir-collector replay run-731.tar.zst --against http://127.0.0.1:9000/mcp --bind 'p0:0123456789abcdef=@token.txt'
  weir-collector replay run-731.tar.zst --against http://127.0.0.1:9000/mcp --header 'authorization=env:SANDBOX_TOKEN'
  weir-collector replay run-731.tar.zst --policy /etc/weir/next.toml")]
#[command(group(ArgGroup::new("how").required(true).args(["against", "policy"])))]
pub struct Replaying {
    /// The bundle
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Play the client's side against this MCP server (streamable HTTP), which must be none of the record
    #[arg(long, value_name = "URL")]
    against: Option<String>,
    /// Say what this policy would have decided: a file with rules as an agent's configuration has them, or a folder of such
    #[arg(long, value_name = "PATH")]
    policy: Option<PathBuf>,
    /// Send nothing; say what would be sent
    #[arg(long, requires = "against")]
    dry_run: bool,
    /// Also against a server of the record: its tools do again what they did
    #[arg(long, requires = "against")]
    force_original: bool,
    /// A value for what was masked: PSEUDONYM=@FILE or PSEUDONYM=env:NAME; it is never shown
    #[arg(long, value_name = "BINDING", requires = "against")]
    bind: Vec<String>,
    /// A header for each request: NAME=@FILE or NAME=env:NAME; it is never shown
    #[arg(long, value_name = "HEADER", requires = "against")]
    header: Vec<String>,
    /// PEM of the CA that the sandbox's certificate is of (https)
    #[arg(long, value_name = "FILE", requires = "against")]
    ca: Option<PathBuf>,
    /// Seconds that each call may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..3600))]
    timeout: u64,
    /// The keys to hold the bundle against, as `verify` takes them; without it the bundle's own
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Print one JSON object for each call
    #[arg(long)]
    json: bool,
}

/// Writes a run's bundle, and checks what was written.
pub async fn bundle(store: &Store, bundling: Bundling) -> Result<ExitCode> {
    let (Some(run), Some(output)) = (bundling.run, bundling.output) else {
        usage("give --run and -o, or --check");
    };
    let asked = Asked { run, repository: bundling.repository };
    let bundle = gather(store, &asked, now_us()).await?;
    let checked = check(&bundle, None)?;
    let file = File::create_new(&output).with_context(|| format!("cannot make {}", output.display()))?;
    bundle.write(BufWriter::new(&file))?;
    file.sync_all()?;
    if bundling.json {
        say_json(&json!({ "file": output, "run": asked.run, "check": checked.json() }))?;
    } else {
        say(&format!("wrote {}", output.display()))?;
        checked.sentences().iter().try_for_each(|line| say(&visible::line(line)))?;
    }
    Ok(exit(checked.is_whole()))
}

/// Checks a bundle.
pub fn checked(file: &Path, bundling: &Bundling) -> Result<ExitCode> {
    let (bundle, checked) = opened(file, bundling.trust.as_deref())?;
    if bundling.json {
        let story = checked.is_whole().then(|| Story::of(&bundle).json());
        let checkpoints: Vec<String> = bundle.notes();
        let told = json!({ "run": bundle.manifest.of, "made_us": bundle.manifest.made_us, "check": checked.json(),
                           "checkpoints": checkpoints, "story": story });
        say_json(&told)?;
    } else {
        say(&format!("the run {}", visible::line(&bundle.manifest.of)))?;
        checked.sentences().iter().try_for_each(|line| say(&visible::line(line)))?;
    }
    // Whoever takes a bundle's proofs out must not make it pass.
    let is_signed = checked.unsigned == 0 || bundling.trust.is_some() || bundling.unsigned_ok;
    if checked.is_whole() && !is_signed {
        eprintln!(
            "weir-collector: nothing proves {} of {} events; give --trust FILE, or --unsigned-ok if they must be from before \
             their log was signed",
            checked.unsigned, checked.events
        );
    }
    Ok(exit(checked.is_whole() && is_signed))
}

/// Plays a bundle.
pub async fn replay(replaying: Replaying) -> Result<ExitCode> {
    let bindings = Bindings::read(&replaying.bind).unwrap_or_else(|error| usage(&error.to_string()));
    let headers = headers(&replaying.header).unwrap_or_else(|error| usage(&error));
    let (bundle, checked) = opened(&replaying.file, replaying.trust.as_deref())?;
    if !checked.is_whole() {
        checked.sentences().iter().for_each(|line| eprintln!("{}", visible::line(line)));
        bail!("the bundle does not hold, and is not played");
    }
    if checked.unsigned > 0 && !replaying.json {
        eprintln!("{} of {} events are signed by nobody", checked.unsigned, checked.events);
    }
    let story = Story::of(&bundle);
    if let Some(path) = &replaying.policy {
        return judged(&story, path, replaying.json);
    }
    let url = replaying.against.as_deref().unwrap_or_default();
    let target = Target::of(url, &story.servers, replaying.force_original)?;
    let ca = replaying.ca.as_deref().map(side_file).transpose()?;
    let sandbox = match replaying.dry_run {
        true => None,
        false => Some(Sandbox::new(target, ca.as_deref(), headers, Duration::from_secs(replaying.timeout))?),
    };
    let tell = |played: &weir_collector::replay::Played| {
        if replaying.json {
            return say_json(&played.json());
        }
        played.lines().iter().try_for_each(|line| say(&visible::line(line)))
    };
    let played = against::play(&story, sandbox.as_ref(), &bindings, tell).await?;
    let count = |outcome: Outcome| played.iter().filter(|one| one.outcome == outcome).count();
    let inexact = played.iter().filter(|one| !one.inexact.is_empty()).count();
    if !replaying.json {
        say(&format!(
            "{} calls: {} same, {} different, {} refused, {} unplayed, {} unknown; {inexact} inexact",
            played.len(),
            count(Outcome::Same),
            count(Outcome::Different),
            count(Outcome::Refused),
            count(Outcome::Unplayed),
            count(Outcome::Unknown),
        ))?;
    }
    Ok(exit(count(Outcome::Different) == 0))
}

fn judged(story: &Story, path: &Path, as_json: bool) -> Result<ExitCode> {
    let policy = policy::read(path)?;
    let all = policy::judge(story, &policy);
    for one in &all {
        if as_json { say_json(&one.json())? } else { say(&visible::line(&one.line()))? }
    }
    let changed = all.iter().filter(|one| one.is_changed()).count();
    if !as_json {
        say(&format!(
            "{} calls: {changed} decided differently by the policy {}",
            all.len(),
            policy.digest()
        ))?;
    }
    Ok(exit(changed == 0))
}

fn opened(file: &Path, trust: Option<&Path>) -> Result<(Bundle, Checked)> {
    let from = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let bundle = Bundle::read(from).with_context(|| file.display().to_string())?;
    let trust = match trust {
        None => None,
        Some(path) => Some(Trust::read(&side_file(path)?).with_context(|| path.display().to_string())?),
    };
    let checked = check(&bundle, trust.as_ref())?;
    Ok((bundle, checked))
}

/// A small file that an option names.
fn side_file(path: &Path) -> Result<Vec<u8>> {
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(about.len() <= MAX_SIDE_FILE, "{} is too large to be one", path.display());
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn headers(given: &[String]) -> Result<Vec<Header>, String> {
    let header = |text: &String| {
        let (name, source) =
            text.split_once('=').ok_or_else(|| "a header is NAME=@FILE or NAME=env:NAME".to_owned())?;
        let value = value(source).map_err(|why| format!("the value of the header {name}: {why}"))?;
        Ok(Header { name: name.to_owned(), value })
    };
    given.iter().map(header).collect()
}

fn exit(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
