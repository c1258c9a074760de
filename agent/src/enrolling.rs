//! `weir enrol`: arguments in, this host's identity at a collector on disk and said.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::CommandFactory;
use weir::config::{CollectorPlace, CollectorUrl, Config, identity_folder};
use weir::daemon::{hostname, make_state_dir};
use weir::ship::enrol::{self, Anchor, Enrol};
use weir::trust::{Enrolment, Identity};
use weir_core::identity::EnrolToken;

use crate::{Arguments, Place, runtime};

const EXAMPLES: &str = "\
Examples:
  weir enrol --collector https://collector.example:8443 --ca-fingerprint 3f1c... --token-file /root/token
  ssh collector weir-collector enrol-token --host ci-7 | weir enrol --collector https://collector.example:8443 --ca ca.pem --token-file -
  weir enrol --renew                          a new key and certificate, before it is time";

/// The most bytes of a token's file.
const MAX_TOKEN: u64 = 4096;

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Enrolling {
    #[command(flatten)]
    place: Place,
    /// The collector's address, https://HOST:PORT; [collector] url of the configuration unless given.
    #[arg(long, value_name = "URL")]
    collector: Option<CollectorUrl>,
    /// A file with the certificate of the collector's CA.
    #[arg(long, value_name = "FILE", conflicts_with = "ca_fingerprint")]
    ca: Option<PathBuf>,
    /// The SHA-256 of that certificate, as `weir-collector ca show` prints it.
    #[arg(long, value_name = "SHA256")]
    ca_fingerprint: Option<String>,
    /// A file with the token of `weir-collector enrol-token`; `-` is standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "renew")]
    token_file: Option<PathBuf>,
    /// Renews the certificate of a host that has enrolled, now and with a new key.
    #[arg(long, conflicts_with_all = ["ca", "ca_fingerprint", "token_file"])]
    renew: bool,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

impl Enrolling {
    pub fn execute(self) -> Result<()> {
        let config = self.place.config()?;
        let url = url_of(&config, self.collector)?;
        let enrolment = Enrolment::at(&identity_folder(&config.state_dir));
        let identity = match self.token_file {
            Some(file) if !self.renew => {
                let anchor = match (self.ca, self.ca_fingerprint) {
                    (Some(file), _) => Anchor::file(&file)?,
                    (None, Some(text)) => Anchor::fingerprint(&text)?,
                    (None, None) => usage("whom to trust: give --ca FILE or --ca-fingerprint SHA256"),
                };
                let token = token(&file)?;
                make_state_dir(&config.state_dir)?;
                let (tenant, host) = (config.tenant.clone(), hostname());
                let enrol = Enrol { url: url.clone(), anchor, token, tenant, host, enrolment };
                runtime()?.block_on(enrol.execute())?
            }
            _ => runtime()?.block_on(enrol::renew(url.clone(), enrolment))?,
        };
        enrolled(&config, &url, &identity, self.json);
        Ok(())
    }
}

/// Where to enrol: as asked, or as configured.
fn url_of(config: &Config, asked: Option<CollectorUrl>) -> Result<CollectorUrl> {
    match (asked, &config.collector) {
        (Some(url), _) => Ok(url),
        (None, Some(CollectorPlace::Remote { url, .. })) => Ok(url.clone()),
        (None, _) => anyhow::bail!("no collector is named: give --collector URL, or set [collector] url"),
    }
}

fn token(file: &Path) -> Result<EnrolToken> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().lock().take(MAX_TOKEN).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read the token from {}", file.display()))?;
    EnrolToken::read(&text).with_context(|| {
        format!("{} holds no enrolment token; `weir-collector enrol-token` prints one", file.display())
    })
}

fn enrolled(config: &Config, url: &CollectorUrl, identity: &Identity, json: bool) {
    let expires =
        jiff::Timestamp::try_from(identity.expires).map_or_else(|_| String::new(), |t| t.to_string());
    if json {
        let told = serde_json::json!({
            "tenant": identity.name.tenant, "host": identity.name.host, "enrolment": identity.name.enrolment,
            "collector": url.to_string(), "expires_at": expires,
        });
        println!("{told}");
        return;
    }
    println!("enrolled as {} at {url}, until {expires} (renewed by the agent)", enrol::shown(&identity.name));
    let is_configured =
        matches!(&config.collector, Some(CollectorPlace::Remote { url: own, .. }) if own == url);
    if !is_configured {
        println!("to ship there, set in the agent's configuration:\n  [collector]\n  url = \"{url}\"");
    }
}

/// Ends the program as clap does with a wrong usage.
fn usage(message: &str) -> ! {
    Arguments::command().error(clap::error::ErrorKind::MissingRequiredArgument, message).exit()
}
