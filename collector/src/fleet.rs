//! The commands for a fleet: the agents' CA, one-time tokens, and the agents that have enrolled.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use jiff::{SpanRelativeTo, Timestamp};
use serde_json::json;
use weir_collector::authority::{AGENT_LIFETIME, Authority};
use weir_collector::config::{CA_FOLDER, Config};
use weir_collector::enrol::{AgentLine, Certified, Enrolment, Registry, Revocation, shown};
use weir_collector::store::Store;
use weir_collector::visible;
use weir_core::evidence::key::VerifyingKey;

use crate::cli::{submitter, usage};
use crate::{say, say_json};

/// `ca`.
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Make the CA, and a certificate for this collector
    ///
    /// Its key stays in the folder (0600). Copy the folder to each further collector, and `ca.pem` (or the fingerprint that is
    /// printed) to each host that is to enrol.
    Init(Named),
    /// Make this collector's own key and certificate anew: for other names, or before the old one expires
    ///
    /// Agents go on trusting it, since they trust the CA. Restart the collector to have it used.
    Server(Named),
    /// Show the CA's fingerprint and where it lies
    Show {
        #[command(flatten)]
        folder: CaFolder,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct CaFolder {
    /// The CA's folder [default: [listen] ca of the configuration, or /var/lib/weir-collector/ca]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Named {
    /// A name or an address that agents reach this collector by; once for each
    #[arg(long = "name", value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    folder: CaFolder,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `enrol-token`.
#[derive(Debug, Args)]
#[command(after_help = "\
On the host, with the token on standard input:
  weir enrol --collector https://collector.example:8443 --ca-fingerprint FINGERPRINT --token-file -

Examples:
  weir-collector enrol-token --host ci-runner-7
  weir-collector enrol-token --host ci-runner-7 --tenant payments --valid 15m --json | jq -r .token")]
pub struct Offering {
    /// The host, by the name that it calls itself (`hostname`)
    #[arg(long, value_name = "HOST")]
    host: String,
    /// Its tenant, as its configuration names it
    #[arg(long, value_name = "TENANT", default_value = "default")]
    tenant: String,
    /// How long the token is good: 15m, 1h; a week at most
    #[arg(long, value_name = "WHILE", default_value = "1h")]
    valid: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `agents`.
#[derive(Debug, Subcommand)]
pub enum Agents {
    /// List enrolments, the latest first
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
        /// Only this host's
        #[arg(long)]
        host: Option<String>,
        /// Print one JSON object for each
        #[arg(long)]
        json: bool,
    },
    /// Take a log's new key on your word, when its host has lost the old one
    ///
    /// The host's agent is refused then, and says with which key and number: find out first what happened to the old key.
    /// `verify` tells the key as `another_key` until an auditor, who knows why, pins it.
    Certify {
        /// The new key, as the refusal names it and `weir key show` on the host
        #[arg(long, value_name = "VKEY")]
        key: VerifyingKey,
        /// The number at which its epoch begins, as the refusal names it
        #[arg(long, value_name = "SEQ")]
        first_seq: u64,
        /// Why, in at least 15 characters, for whoever reads it later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// End a host's enrolments: collectors refuse it within seconds, and a token that waits is void
    ///
    /// What it has recorded stays on its disk and is shipped when it is enrolled again.
    Revoke {
        /// The host
        #[arg(long)]
        host: String,
        /// Its tenant
        #[arg(long, default_value = "default")]
        tenant: String,
        /// Only this enrolment of it (see `agents list`)
        #[arg(long, value_name = "ID")]
        enrolment: Option<String>,
        /// Why, for whoever reads it later
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Print one JSON object for each
        #[arg(long)]
        json: bool,
    },
}

/// Runs a command on the CA; the configuration is read only if it has to say where that is.
pub fn ca(command: Ca, config: &Path) -> Result<ExitCode> {
    let dir = |folder: &CaFolder| match &folder.dir {
        Some(dir) => Ok(dir.clone()),
        None if config.exists() => {
            let listen = Config::read(config)?.listen;
            anyhow::Ok(listen.tls.map_or_else(|| CA_FOLDER.into(), |tls| tls.ca))
        }
        None => Ok(CA_FOLDER.into()),
    };
    let now = SystemTime::now();
    let (authority, json) = match command {
        Ca::Init(Named { names, folder, json }) => (Authority::init(&dir(&folder)?, &names, now)?, json),
        Ca::Server(Named { names, folder, json }) => {
            let authority = Authority::open(&dir(&folder)?)?;
            authority.renew_server(&names, now)?;
            (authority, json)
        }
        Ca::Show { folder, json } => (Authority::open(&dir(&folder)?)?, json),
    };
    let (certificate, fingerprint) = (authority.certificate_path(), authority.fingerprint());
    if json {
        say_json(&json!({ "certificate": certificate, "fingerprint": fingerprint }))?;
    } else {
        say(&format!("certificate  {}\nfingerprint  {fingerprint}", certificate.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes a token.
pub async fn offer(config: &Config, store: &Store, offering: Offering) -> Result<ExitCode> {
    let valid = while_of(&offering.valid).unwrap_or_else(|message| usage(&message));
    let listen = config.listen.tls.as_ref();
    let listen =
        listen.context("this collector has no [listen] tls: it takes agents of its own host alone")?;
    let authority = Arc::new(Authority::open(&listen.ca)?);
    let fingerprint = authority.fingerprint();
    let enrolment = Enrolment { authority, registry: Registry::new(store.clone()) };
    let offer =
        enrolment.offer(&offering.tenant, &offering.host, valid, &submitter(), SystemTime::now()).await?;
    if offering.json {
        say_json(&json!({
            "token": offer.token,
            "tenant": offering.tenant,
            "host": offering.host,
            "enrolment": offer.enrolment,
            "expires_at": shown(offer.expires_us),
            "ca_fingerprint": fingerprint,
        }))?;
    } else {
        // The token alone on stdout, so that it can be piped where it is to go.
        eprintln!(
            "good once, until {}, for the host {}/{}; the CA's fingerprint is {fingerprint}",
            shown(offer.expires_us),
            visible::line(&offering.tenant),
            visible::line(&offering.host)
        );
        say(&offer.token)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists or revokes.
pub async fn agents(store: &Store, command: Agents) -> Result<ExitCode> {
    let registry = Registry::new(store.clone());
    let now = SystemTime::now();
    match command {
        Agents::List { tenant, host, json } => {
            let lines = registry.agents(tenant.as_deref(), host.as_deref()).await?;
            if json {
                lines.iter().try_for_each(|line| say_json(&told(line)))?;
            } else if lines.is_empty() {
                say("no host was ever offered a token")?;
            } else {
                lines.iter().try_for_each(|line| say(&row(line)))?;
            }
        }
        Agents::Certify { key, first_seq, reason } => {
            let asked = Certified { key: &key, first_seq, reason: &reason, by: &submitter() };
            asked.certify(store, Timestamp::now().as_microsecond()).await?;
            say(&format!("{key} signs from {first_seq} on"))?;
        }
        Agents::Revoke { host, tenant, enrolment, reason, json } => {
            let mut lines = registry.agents(Some(&tenant), Some(&host)).await?;
            lines.retain(|line| line.revoked_at == 0);
            if let Some(only) = &enrolment {
                lines.retain(|line| line.enrolment == *only);
            }
            anyhow::ensure!(
                !lines.is_empty(),
                "the host {}/{} has no enrolment that could be revoked; see `weir-collector agents list`",
                visible::line(&tenant),
                visible::line(&host)
            );
            let by = submitter();
            registry.revoke(&Revocation { enrolments: &lines, reason: &reason, by: &by }, now).await?;
            for line in &lines {
                if json {
                    say_json(&json!({ "enrolment": line.enrolment, "revoked": true }))?;
                } else {
                    say(&format!(
                        "revoked {} of {}/{}",
                        line.enrolment,
                        visible::line(&tenant),
                        visible::line(&host)
                    ))?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn told(line: &AgentLine) -> serde_json::Value {
    let time = |us: i64| (us > 0).then(|| shown(us));
    json!({
        "tenant": line.tenant,
        "host": line.host_name,
        "enrolment": line.enrolment,
        "state": line.state(Timestamp::now().as_microsecond()).label(),
        "offered_at": time(line.offered_at),
        "token_expires_at": time(line.token_expires_at),
        "enrolled_at": time(line.enrolled_at),
        "renewed_at": time(line.renewed_at),
        "expires_at": time(line.expires_at),
        "fingerprint": line.fingerprint,
        "revoked_at": time(line.revoked_at),
        "revoke_reason": line.revoke_reason,
    })
}

fn row(line: &AgentLine) -> String {
    let state = line.state(Timestamp::now().as_microsecond()).label();
    let until = match line.expires_at {
        0 => line.token_expires_at,
        certificate => certificate,
    };
    let whose = visible::line(&format!("{}/{}", line.tenant, line.host_name));
    format!("{}  {state:<8}  until {}  {whose}", line.enrolment, shown(until))
}

fn while_of(text: &str) -> Result<Duration, String> {
    let parsed = text
        .parse::<jiff::Span>()
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()))
        .ok()
        .and_then(|length| Duration::try_from(length).ok());
    parsed
        .filter(|length| !length.is_zero() && *length < AGENT_LIFETIME)
        .ok_or_else(|| format!("{text:?} is not a while such as 15m or 1h, of a week at most"))
}
