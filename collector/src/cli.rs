//! The command line's shape, and what its arguments mean.

use std::path::PathBuf;

use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use jiff::{SpanRelativeTo, Timestamp};
use weir_collector::completeness::Asked;
use weir_collector::masked;
use weir_collector::query::named::{DEFAULT_LIMIT, NAMED, Parameter, named};
use weir_core::evidence::key::VerifyingKey;

use crate::auditing::{Exporting, Verifying};
use crate::fleet::{Agents, Ca, Offering};
use crate::runs::{Bundling, Replaying};

/// Weir's collector: takes records from agents, keeps them in ClickHouse, answers questions, signs approvals
#[derive(Debug, Parser)]
#[command(name = "weir-collector", version)]
#[command(after_help = "\
The way to begin:
  weir-collector migrate                      make the tables
  weir-collector serve                        take records from agents, until SIGTERM
  weir-collector query --named calls          what was called, by whom, and what came of it
  weir-collector query 'SELECT count() FROM calls WHERE result = $$ok$$'
  weir-collector bundle --run 731 -o run-731.tar.zst
  weir-collector replay run-731.tar.zst --against http://127.0.0.1:9000/mcp
  weir-collector completeness                 whether each connect that the kernel counted is accounted for
  weir-collector enrol-token --host NAME      a token by which a host enrols its agent
  weir-collector trust > trust.json           what to pin, once; compare it by another way
  weir-collector verify --trust trust.json    whether the records are those that were signed
  weir-collector approvals list               calls that wait for a human
  weir-collector approvals show ID
  weir-collector approvals approve ID --justification 'release 1.4 as planned, see CHG-7'

The configuration (another one by --config):
  [store]
  url = \"http://127.0.0.1:8123\"               # weir-store, or any ClickHouse; https too
  user = \"default\"
  password_file = \"/etc/weir/store.secret\"    # chmod 600
  database = \"weir\"
  [listen]
  socket = \"/run/weir/collector.sock\"
  agent_uids = [0]                            # the users that agents run as
  tls = \"0.0.0.0:8443\"                      # for agents of other hosts; see `weir-collector ca init`
  [witness]                                   # may be left out
  key_file = \"/etc/weir/witness.key\"         # made on first use, beside the configuration

Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage or configuration.")]
pub struct Cli {
    /// The configuration file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WEIR_COLLECTOR_CONFIG",
        default_value = "/etc/weir/collector.toml"
    )]
    pub config: PathBuf,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take segments and holds from agents until SIGTERM
    ///
    /// An event is acknowledged once it is in ClickHouse and was read back. On SIGTERM what has begun ends first.
    Serve(Serving),
    /// Bring the database to this program's tables; does nothing when it is there
    ///
    /// Also makes the witness's key, if there is none. For a cluster, migrate any single server first (an empty embedded store
    /// will do), print the statements, and run them on the cluster by your own means.
    Migrate {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Make nothing: print what makes this database's tables on a cluster, replicated and distributed by log
        #[arg(long, value_name = "NAME", requires = "print", conflicts_with = "json")]
        cluster: Option<String>,
        /// Print SQL instead of running it (with --cluster)
        #[arg(long, requires = "cluster")]
        print: bool,
    },
    /// Print the key by which this collector cosigns checkpoints, and make it if there is none
    ///
    /// One line, as C2SP writes a verifier's key. Whoever verifies records pins it. Collectors of one database have the same
    /// key: copy [witness] key_file from the first one.
    WitnessKey,
    /// Ask ClickHouse: free SQL, or a question by its name (reads only)
    ///
    /// The views are calls, messages, flows, jobs, unrecorded and gaps, over the tables events, holds, decisions and findings;
    /// docs/schema.md tells their columns. Control characters in a table or in JSON are shown as escapes.
    Query(Asking),
    /// Check that each connect that the kernel counted is accounted for
    ///
    /// Counts everything anew: the kernel's sums as agents stated them, and the rows that are in ClickHouse now, also of
    /// jobs that were closed long ago. Exits with 0 when the sums close (each connect has its row, or an agent's own gap
    /// tells why not), with 1 when they do not.
    Completeness(Counting),
    /// Delete events that the policy no longer keeps, and prove what is left
    Retention {
        #[command(subcommand)]
        command: Retention,
    },
    /// Verify records: in the store, or in an export, offline
    ///
    /// Computes everything anew from the records' bytes: leaves, roots, signatures, cosignatures, numbers, times; in the store
    /// the columns, the definitions of tables and views and the kernel's sums too. Names each fault with its place.
    Verify(Verifying),
    /// Write records and their proofs into a file that anybody can verify
    Export(Exporting),
    /// Propose a trust file out of what the store has now
    Trust,
    /// Write a run's bundle (its events and what proves them), or check one
    Bundle(Bundling),
    /// Play a bundle's calls again: against a sandbox server, or against another policy
    Replay(Replaying),
    /// Held calls: list, show, approve, refuse
    Approvals {
        #[command(subcommand)]
        command: Approvals,
    },
    /// The CA of agents on other hosts: make it, show it
    Ca {
        #[command(subcommand)]
        command: Ca,
    },
    /// Make a token by which one host can enrol, once
    ///
    /// Of the token the store keeps a keyed hash alone; it is shown now, and never again.
    EnrolToken(Offering),
    /// The agents on other hosts: list, revoke
    Agents {
        #[command(subcommand)]
        command: Agents,
    },
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

/// `serve`.
#[derive(Debug, Args)]
pub struct Serving {
    /// Migrate the database first
    #[arg(long)]
    pub migrate: bool,
    /// Print one JSON object on stdout when ready
    #[arg(long)]
    pub json: bool,
}

/// `completeness`.
#[derive(Debug, Args)]
#[command(after_help = "\
A closed job's sums must be equal; of a running one, what is on its way is left out of account. A job is `new` until its
first statement has stood there for 30 seconds or another follows, and `unstated` while there are rows of it alone.
Reasons: rows_deleted (its log lacks numbers), ring_full (the kernel could not tell), surplus (rows that are too many),
unexplained.

Examples:
  weir-collector completeness --since 7d
  weir-collector completeness --job 00c0ffee00c0ffee-0000000000001a2b
  weir-collector completeness --json | jq 'select(.findings != [])'")]
pub struct Counting {
    /// Only this job, by its key (see `query --named jobs`)
    #[arg(long, value_name = "KEY")]
    pub job: Option<String>,
    /// Only jobs and logs with events from this time on: 2h, 7d, or 2026-11-22T10:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// A trust file with the keys of the witnesses whose tombstones are believed; without it this collector's own key
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Print one JSON object for each job and verdict
    #[arg(long)]
    pub json: bool,
}

impl Counting {
    /// What is asked.
    pub fn asked(self, witnesses: Vec<VerifyingKey>) -> Result<Asked, String> {
        let since = self.since.as_deref().map_or(Ok(Timestamp::UNIX_EPOCH), since)?;
        Ok(Asked { job: self.job, since_us: since.as_microsecond(), witnesses })
    }
}

/// `query`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weir-collector query --list
  weir-collector query --named calls --job deploy --since 2h
  weir-collector query --named timeline --run 731 --csv > run-731.csv
  weir-collector query --named callers --tool deploy --since 7d
  weir-collector query --named spread --secret p0:0123456789abcdef
  weir-collector query --json 'SELECT gen_ai_tool_name, count() AS n FROM calls GROUP BY 1 ORDER BY n DESC'
  weir-collector query --format CSVWithNames 'SELECT * FROM gaps' > gaps.csv
  weir-collector query 'DESCRIBE calls'")]
#[command(group(ArgGroup::new("what").required(true).args(["sql", "named", "list"])))]
pub struct Asking {
    /// One SELECT, SHOW, DESCRIBE or EXPLAIN
    #[arg(value_name = "SQL")]
    pub sql: Option<String>,
    /// A question by its name: calls, timeline, callers, policy, denied, approvals, approvers, first-seen, tools, spread,
    /// unverified, mentions, rates, silences, clock, gaps and others (--list; docs/queries.md has an example of each)
    #[arg(long, value_name = "NAME")]
    pub named: Option<String>,
    /// List the named questions
    #[arg(long)]
    pub list: bool,
    /// Print one JSON object for each row
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Print CSV, the columns' names first (control characters as escapes)
    #[arg(long, conflicts_with_all = ["json", "format"])]
    pub csv: bool,
    /// Print in one of ClickHouse's formats, to the byte (control characters too)
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Only this job, by its name or its run's id (named questions)
    #[arg(long, value_name = "JOB", conflicts_with = "sql")]
    pub job: Option<String>,
    /// Only from this time on: 2h, 7d, or 2026-11-22T10:00:00Z (named questions)
    #[arg(long, value_name = "TIME", conflicts_with = "sql")]
    pub since: Option<String>,
    /// Of this run, by the id that its CI gave it (timeline)
    #[arg(long, value_name = "RUN", conflicts_with = "sql")]
    pub run: Option<String>,
    /// Of this tool (callers, calls)
    #[arg(long, value_name = "TOOL", conflicts_with = "sql")]
    pub tool: Option<String>,
    /// Of this secret, by its pseudonym as it stands in the record: p0:... (spread)
    #[arg(long, value_name = "PSEUDONYM", conflicts_with = "sql")]
    pub secret: Option<String>,
    /// With these words (mentions)
    #[arg(long, value_name = "WORDS", conflicts_with = "sql")]
    pub words: Option<String>,
    /// At most so many rows (named questions) [default: 50]
    #[arg(long, value_name = "ROWS", conflicts_with = "sql")]
    pub limit: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Retention {
    /// Delete whole segments that are older than the policy keeps, and sign tombstones for them
    ///
    /// Leaves, roots and checkpoints stay: `verify` passes as before, and says what was retired by which policy. What the
    /// policy keeps (keep_runs, keep_origins) stays, and so does a segment whose events are not those that came: it is told
    /// as altered, and the exit code is 1. Cut off anywhere, the same command ends the work.
    #[command(after_help = "\
The configuration:
  [retention]
  name = \"audit-7y\"                          # what tombstones call it
  events_days = 2557
  keep_runs = [\"7312905518\"]                 # legal hold: runs that are kept whatever their age
  keep_origins = []                            # the same for logs

Examples:
  weir-collector retention apply --dry-run
  weir-collector retention apply --json | jq 'select(.state != \"retired\")'
  weir-collector query 'SELECT policy, host_name, first_seq, last_seq, retired_at FROM tombstones'")]
    Apply {
        /// Say what would be retired, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object for each stretch of segments
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum Approvals {
    /// List the calls that wait for a decision, the newest first
    List {
        /// Also those that are over
        #[arg(long)]
        all: bool,
        /// Print one JSON object for each
        #[arg(long)]
        json: bool,
    },
    /// Show all that an approver must see before signing
    Show {
        /// The hold's id, or enough of its beginning
        id: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Sign that a held call may go on
    ///
    /// The statement (the hold as `show` tells it, your answer and your reason) is signed by
    /// `ssh-keygen -Y sign -n weir-approval`. The agent accepts it if its own allowed-signers file lists the key for
    /// you, and serves one call with it. It cannot be taken back.
    Approve(Answering),
    /// Sign that a held call must not go on
    ///
    /// Signed and judged as an approval is. The client gets an error that carries your reason.
    Refuse(Answering),
}

/// `approvals approve` and `approvals refuse`.
#[derive(Debug, Args)]
pub struct Answering {
    /// The hold's id, or enough of its beginning
    pub id: String,
    /// Why, in at least 15 characters, for whoever reads it later
    #[arg(long, value_name = "TEXT")]
    pub justification: String,
    /// The change or incident that this belongs to
    #[arg(long, value_name = "TICKET")]
    pub ticket: Option<String>,
    /// Your SSH key: a private key, or a public one whose private half is in your ssh-agent [default: ~/.ssh/id_ed25519]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Who you are in the agent's allowed signers [default: the comment of the key's public half]
    #[arg(long = "as", value_name = "PRINCIPAL")]
    pub principal: Option<String>,
    /// Do not wait until the agent has judged the signature
    #[arg(long)]
    pub no_wait: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// SQL, and the values of its parameters.
#[derive(Debug)]
pub struct Question {
    pub sql: String,
    pub params: Vec<(&'static str, String)>,
}

impl Asking {
    /// What is asked.
    pub fn question(&self) -> Result<Question, String> {
        if let Some(sql) = &self.sql {
            return Ok(Question { sql: sql.clone(), params: Vec::new() });
        }
        let name = self.named.as_deref().unwrap_or_default();
        let Some(question) = named(name) else {
            let names: Vec<&str> = NAMED.iter().map(|one| one.name).collect();
            return Err(format!("there is no question named {name:?}; there are {}", names.join(", ")));
        };
        let mut params = vec![("limit", self.limit.unwrap_or(DEFAULT_LIMIT).to_string())];
        for parameter in Parameter::ALL {
            let (option, value) = (parameter.name(), self.value(parameter)?);
            match value {
                Some(_) if !question.takes(parameter) => {
                    return Err(format!("the question {name} does not ask for that; leave out --{option}"));
                }
                None if question.needs(parameter) => {
                    return Err(format!("the question {name} needs --{option}"));
                }
                value if question.takes(parameter) => {
                    let always = || {
                        if parameter == Parameter::Since {
                            clickhouse_time(Timestamp::UNIX_EPOCH)
                        } else {
                            String::new()
                        }
                    };
                    params.push((option, value.unwrap_or_else(always)));
                }
                _ => {}
            }
        }
        Ok(Question { sql: question.sql.to_owned(), params })
    }

    /// What was given for a parameter, as ClickHouse reads it.
    fn value(&self, parameter: Parameter) -> Result<Option<String>, String> {
        Ok(match parameter {
            Parameter::Since => self.since.as_deref().map(since).transpose()?.map(clickhouse_time),
            Parameter::Job => self.job.clone(),
            Parameter::Run => self.run.clone(),
            Parameter::Tool => self.tool.clone(),
            Parameter::Words => self.words.clone(),
            Parameter::Secret => self.secret.as_deref().map(pseudonym).transpose()?,
        })
    }
}

fn clickhouse_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string()
}

/// Whoever asks for a secret by itself would leave it in the shell's history, and find nothing.
fn pseudonym(text: &str) -> Result<String, String> {
    masked::pseudonym(text).map(str::to_owned).ok_or_else(|| {
        "--secret takes a pseudonym as it stands in the record, such as p0:0123456789abcdef, and never the secret itself".into()
    })
}

/// A time, or how long ago it was.
pub fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago =
        text.parse::<jiff::Span>().and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    ago.and_then(|ago| Timestamp::now().checked_sub(ago.abs())).map_err(|_| {
        format!("{text:?} is neither a time such as 2026-11-22T10:00:00Z nor a while such as 2h or 7d")
    })
}

/// Ends the program as clap does with a wrong usage.
pub fn usage(message: &str) -> ! {
    Cli::command().error(clap::error::ErrorKind::ValueValidation, message).exit()
}

/// Who runs this: `user@host`.
pub fn submitter() -> String {
    let uid = nix::unistd::getuid();
    let user =
        nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_and_whiles_are_read() {
        assert_eq!(since("2026-11-22T10:00:00Z").unwrap().to_string(), "2026-11-22T10:00:00Z");
        assert!(since("2h").unwrap() < Timestamp::now() && since("7d").unwrap() < since("2h").unwrap());
        assert!(since("yesterday-ish").is_err());
    }
}
