//! Measures what the named questions take over a large record: `rows.sql` makes the rows inside the store, the migrations'
//! views and indexes take them in as they would any, and each question is asked again and again as `weir-collector query`
//! asks it, its answer read to the end. Run by `cargo xtask bench queries`. Leaves one line of JSON for each question on stdout.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use weir_collector::config::Config;
use weir_collector::query::named::{NAMED, Named, Parameter};
use weir_collector::query::{Shape, ask};
use weir_collector::store::Store;

/// A while in which nothing merges.
const QUIET: Duration = Duration::from_millis(500);
/// How long merges may take.
const MERGES: Duration = Duration::from_secs(300);

#[derive(Debug, Parser)]
struct Options {
    /// The collector's configuration; its database is migrated, and has no rows yet.
    #[arg(long)]
    config: std::path::PathBuf,
    #[arg(long)]
    rows: u64,
    /// How often each question is asked.
    #[arg(long)]
    rounds: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let store = Store::new(&Config::read(&options.config)?.store);
    ensure!(number(&store, "SELECT count() FROM events").await? == 0, "the database has rows already");
    let filling = store.query_raw(include_str!("rows.sql")).param("rows", options.rows);
    filling.execute().await.context("filling the store")?;
    settled(&store).await?;
    let secret =
        text(&store, "SELECT masked_pseudonyms[1] FROM events WHERE notEmpty(masked_pseudonyms) LIMIT 1")
            .await?;
    for named in &NAMED {
        for (how, params) in questions(named, &secret) {
            let (mut took, mut rows) = (Vec::new(), 0);
            for _ in 0..options.rounds {
                let mut out = Vec::new();
                let began = Instant::now();
                ask(&store, named.sql, &params, &Shape::Json, &mut out).await.with_context(|| named.name)?;
                took.push(began.elapsed());
                rows = out.iter().filter(|byte| **byte == b'\n').count();
            }
            took.sort_unstable();
            let ms = |at: usize| took.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
            println!(
                "{}",
                serde_json::json!({ "question": named.name, "with": how, "rows": rows, "p50_ms": ms(took.len() / 2),
                                    "max_ms": ms(took.len().saturating_sub(1)) })
            );
        }
    }
    Ok(())
}

/// A question as it is asked of everything, and of one job.
fn questions(named: &Named, secret: &str) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let with = |job: &str| {
        let mut params = vec![("limit", "50".to_owned())];
        for parameter in Parameter::ALL.into_iter().filter(|parameter| named.takes(*parameter)) {
            params.push((
                parameter.name(),
                match parameter {
                    Parameter::Since => "1970-01-01 00:00:00".to_owned(),
                    Parameter::Job => job.to_owned(),
                    Parameter::Run => "run-41".to_owned(),
                    Parameter::Tool if named.needs(parameter) => "tool_3".to_owned(),
                    Parameter::Tool => String::new(),
                    Parameter::Secret => secret.to_owned(),
                    Parameter::Words => "files tool_3".to_owned(),
                },
            ));
        }
        params
    };
    let mut all = vec![("", with(""))];
    if named.takes(Parameter::Job) {
        all.push(("--job run-41", with("run-41")));
    }
    all
}

/// Waits until nothing merges: an insert of millions is not what questions are asked beside.
async fn settled(store: &Store) -> Result<()> {
    let began = Instant::now();
    let mut quiet = Instant::now();
    while quiet.elapsed() < QUIET {
        ensure!(began.elapsed() < MERGES, "merges went on for {MERGES:?}");
        if number(store, "SELECT count() FROM system.merges").await? > 0 {
            quiet = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn number(store: &Store, sql: &str) -> Result<u64> {
    Ok(store.query_raw(sql).fetch_one().await?)
}

async fn text(store: &Store, sql: &str) -> Result<String> {
    Ok(store.query_raw(sql).fetch_one().await?)
}
