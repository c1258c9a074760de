//! The auditor's commands: verify, export, trust.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Args};
use weir_collector::config::Config;
use weir_collector::store::Store;
use weir_collector::verify::{self, Asked, Besides, SETTLE, read_trust};
use weir_collector::witness::Witness;
use weir_core::evidence::verify::Scope;
use weir_core::ids::Origin;

use crate::cli::{since, usage};
use crate::{say, say_json};

/// Which records.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("part").args(["run", "origin", "from"])))]
pub struct Part {
    /// Only batches that were sealed from this time on: 2h, 7d, or 2026-11-22T10:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Only batches that were sealed until this time
    #[arg(long, value_name = "TIME", requires = "from")]
    pub to: Option<String>,
    /// Only batches with events of this pipeline run
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,
    /// Only this log
    #[arg(long, value_name = "ORIGIN")]
    pub origin: Option<Origin>,
}

impl Part {
    fn asked(self) -> Result<Asked, String> {
        let time = |text: &str| since(text).map(|time| time.as_microsecond());
        Ok(match (self.run, self.origin, self.from) {
            (Some(run), _, _) => Asked::Run(run),
            (_, Some(origin), _) => Asked::Origin(origin),
            (_, _, Some(from)) => Asked::Range {
                from_us: time(&from)?,
                to_us: self.to.as_deref().map_or(Ok(crate::now_us()), time)?,
            },
            (None, None, None) => Asked::All,
        })
    }
}

/// `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 nothing stands against the records, 1 findings, 2 wrong usage.

The trust file holds what you believe before you look: the first key of each log, the witness's key, and the last checkpoints
that you saw. `weir-collector trust` proposes one out of the store, once, to be compared by another way and kept elsewhere.
What each finding means, and what none can tell, is in docs/verification.md; docs/verify.py is a second verifier for exports.
Tables and views of a whole store are compared with a database that is made beside, and dropped again: the role weir_auditor of
docs/roles.sql may do that. For a user who may not, one finding says that they were not compared, and the exit code is 1.

Examples:
  weir-collector verify --trust /media/audit/trust.json
  weir-collector verify --trust trust.json --witnessed /mnt/witness --from 7d
  weir-collector verify --trust trust.json --export records.tar.zst      offline: no store, no configuration")]
pub struct Verifying {
    /// What is believed: see `weir-collector trust`
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// A folder with checkpoints that somebody else keeps, as `[witness] publish_dir` has them
    #[arg(long, value_name = "DIR")]
    witnessed: Option<PathBuf>,
    /// An export, instead of the store
    #[arg(long, value_name = "FILE", conflicts_with_all = ["part", "to"])]
    pub export: Option<PathBuf>,
    /// What part the export must be of: all, origin, range or run. An export says that itself, and a part can leave much out
    #[arg(long, value_name = "PART", default_value = "all", value_parser = scope, requires = "export")]
    scope: Scope,
    #[command(flatten)]
    part: Part,
    /// How many seconds what is being stored right now may take to be witnessed
    #[arg(long, value_name = "SECONDS", default_value_t = SETTLE.as_secs())]
    settle: u64,
    /// Print one JSON object for each finding, for each log, and for the whole
    #[arg(long)]
    json: bool,
}

/// `export`.
#[derive(Debug, Args)]
#[command(after_help = "\
An export holds canonical bytes and proofs, and no columns: what it says can be verified by anybody, offline.

Examples:
  weir-collector export -o records.tar.zst
  weir-collector export --run 731 -o run-731.tar
  weir-collector verify --trust trust.json --export run-731.tar --scope run")]
pub struct Exporting {
    #[command(flatten)]
    part: Part,
    /// Where to: .tar, or .tar.zst
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// How many seconds what is being stored right now may take to be witnessed
    #[arg(long, value_name = "SECONDS", default_value_t = SETTLE.as_secs())]
    settle: u64,
}

/// Verifies an export without a configuration.
pub fn verify_export(verifying: &Verifying, export: &std::path::Path) -> Result<ExitCode> {
    let trust = trust_of(verifying);
    let (report, manifest) = verify::export(export, &trust, verifying.scope)?;
    if !verifying.json {
        let (scope, made) = (manifest.scope.as_str(), weir_collector::enrol::shown(manifest.made_us));
        let of = weir_collector::visible::line(&manifest.of);
        say(&format!("the export says of itself: {scope} {of}, made at {made}"))?;
    }
    told(&report, verifying.json)
}

fn scope(text: &str) -> Result<Scope, String> {
    let named = Scope::ALL.into_iter().find(|scope| scope.as_str() == text);
    named.ok_or_else(|| "one of all, origin, range, run".into())
}

/// Verifies what is in the store.
pub async fn verify(store: &Store, verifying: Verifying) -> Result<ExitCode> {
    let trust = trust_of(&verifying);
    let asked = verifying.part.asked().unwrap_or_else(|message| usage(&message));
    let besides = Besides { settle: Duration::from_secs(verifying.settle), everything: true };
    told(&verify::store(store, &asked, &trust, besides).await?, verifying.json)
}

fn trust_of(verifying: &Verifying) -> weir_core::evidence::verify::Trust {
    read_trust(&verifying.trust, verifying.witnessed.as_deref())
        .unwrap_or_else(|error| usage(&error.to_string()))
}

fn told(report: &weir_core::evidence::verify::Report, as_json: bool) -> Result<ExitCode> {
    if as_json {
        verify::json(report).try_for_each(|one| say_json(&one))?;
    } else {
        say(&verify::shown(report))?;
    }
    Ok(if report.findings.are_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes an export.
pub async fn export(store: &Store, exporting: Exporting) -> Result<ExitCode> {
    let asked = exporting.part.asked().unwrap_or_else(|message| usage(&message));
    let settle = Duration::from_secs(exporting.settle);
    let events = verify::write(store, &asked, settle, &exporting.output).await?;
    say(&format!("{events} events in {}", exporting.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Proposes a trust file.
pub async fn trust(config: &Config, store: &Store) -> Result<ExitCode> {
    let witness = Some(Witness::open(&config.witness)?.public().clone());
    let trust = verify::pins(store, witness).await?;
    eprintln!(
        "weir-collector: these are the keys and checkpoints that the store names now. Whoever can change the store can change \
         them: compare each log's key with its host's (`weir key`), and keep the file where the store's operators cannot write."
    );
    say(&serde_json::to_string_pretty(&trust)?)?;
    Ok(ExitCode::SUCCESS)
}
