//! `cargo xtask bench kernel`: connects and process starts, with Weir's kernel side and without it.
//!
//! In: the times of each round, from `agent/examples/kernel_cost.rs`, which says what is timed. Out: for each case the median
//! over the rounds of with / without, its quartiles, and the same of without / without, which is the noise. It must never be
//! part of the tests: what else a machine does decides it, too.

use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weir_tests::Setup;
use weir_tests::machine::require_kernel;

use crate::progress::{cargo, command_line, say, shown};

const EXAMPLE: &str = "kernel_cost";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often everything is measured; each round takes about two seconds.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// Print the result as JSON, the times of each round included.
    #[arg(long)]
    json: bool,
}

/// What is judged, and by what.
struct Bound {
    case: &'static str,
    title: &'static str,
    at_most: f64,
}

/// A connection is all that a client has of it, to a process that accepts, reads until the end and closes: what the bounds were
/// taken from was of that kind and length (12.6 us).
const BOUNDS: [Bound; 4] = [
    Bound { case: "redirected", title: "connection, selected and redirected", at_most: 1.15 },
    Bound { case: "passed", title: "connection, selected and passed through", at_most: 1.03 },
    Bound { case: "unselected", title: "connection, unselected below the hooks", at_most: 1.02 },
    Bound { case: "fork_exec", title: "fork and exec of /bin/true, followed", at_most: 1.02 },
];
const JUDGED: &str = "connection";

/// Shown beside them: the least that a connection can be, of which the same hooks are more; and the connect alone.
const SHOWN: [(&str, &str, &str); 6] = [
    ("redirected", "bare", "  bare, both ends in one process: redirected"),
    ("passed", "bare", "  bare: passed through"),
    ("unselected", "bare", "  bare: unselected"),
    ("redirected", "connect", "  connect(2) alone: redirected"),
    ("passed", "connect", "  connect(2) alone: passed through"),
    ("unselected", "connect", "  connect(2) alone: unselected"),
];

/// One case over all rounds.
#[derive(Debug)]
struct Ratio {
    /// In microseconds.
    without: f64,
    with: f64,
    ratio: Spread,
    /// Without against without.
    noise: Spread,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

pub fn run(options: &Options) -> Result<()> {
    require_kernel()?;
    let setup = Setup::locate()?;
    let build = ["--release", "--quiet", "--package", "weir", "--example", EXAMPLE];
    say("bench kernel: building what measures (release)");
    shown(cargo(&setup).arg("build").args(build))?;
    say(format_args!("bench kernel: measuring {} rounds", options.rounds));
    let mut measure = cargo(&setup);
    measure.arg("run").args(build).arg("--").arg(options.rounds.to_string());
    let line = command_line(&measure);
    let output = measure.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`{line}` failed ({})", output.status);
    let measured: Value = serde_json::from_slice(&output.stdout).context("reading what was measured")?;
    let judged: Vec<(&Bound, Ratio)> = BOUNDS
        .iter()
        .map(|bound| Ok((bound, Ratio::of(&measured, bound.case, JUDGED)?)))
        .collect::<Result<_>>()?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&judged, measured))?);
    } else {
        print(&judged, &measured)?;
    }
    let missed: Vec<String> = judged
        .iter()
        .filter(|(bound, ratio)| ratio.ratio.median > bound.at_most)
        .map(|(bound, ratio)| format!("{} {:.3} > {}", bound.title, ratio.ratio.median, bound.at_most))
        .collect();
    if !missed.is_empty() {
        bail!("above the bound: {}", missed.join("; "));
    }
    Ok(())
}

impl Ratio {
    fn of(measured: &Value, case: &str, timed: &str) -> Result<Self> {
        let rounds = measured.get("rounds").and_then(Value::as_array).context("no rounds")?;
        let times = |part: &str| -> Result<Vec<f64>> {
            let time = |round: &Value| round.get(case)?.get(part)?.get(timed)?.as_f64();
            rounds
                .iter()
                .map(|round| time(round).with_context(|| format!("no {case} {part} {timed}")))
                .collect()
        };
        let (without, with, again) = (times("without")?, times("with")?, times("again")?);
        let pairwise = |above: &[f64], below: &[f64]| -> Vec<f64> {
            above.iter().zip(below).map(|(above, below)| above / below).collect()
        };
        // Against both batches beside it, so that a drift within the round cancels out.
        let beside: Vec<f64> = without.iter().zip(&again).map(|(one, other)| (one + other) / 2.0).collect();
        Ok(Self {
            without: Spread::of(beside.clone())?.median / 1000.0,
            with: Spread::of(with.clone())?.median / 1000.0,
            ratio: Spread::of(pairwise(&with, &beside))?,
            noise: Spread::of(pairwise(&again, &without))?,
        })
    }
}

impl Spread {
    fn of(mut numbers: Vec<f64>) -> Result<Self> {
        numbers.sort_by(f64::total_cmp);
        let at = |part: usize| numbers.get((numbers.len().saturating_sub(1)) * part / 4).copied();
        let (Some(low), Some(median), Some(high)) = (at(1), at(2), at(3)) else {
            bail!("nothing was measured")
        };
        Ok(Self { low, median, high })
    }
}

fn print(judged: &[(&Bound, Ratio)], measured: &Value) -> Result<()> {
    println!(
        "{:44} {:>11} {:>11} {:>7} {:>15} {:>6}  noise (without / without)",
        "", "without", "with", "ratio", "quartiles", "bound"
    );
    let line = |title: &str, ratio: &Ratio, bound: &str| {
        println!(
            "{title:44} {:8.2} us {:8.2} us {:7.3} {:>7.3}-{:<7.3} {bound:>6}  {:.3} ({:.3}-{:.3})",
            ratio.without,
            ratio.with,
            ratio.ratio.median,
            ratio.ratio.low,
            ratio.ratio.high,
            ratio.noise.median,
            ratio.noise.low,
            ratio.noise.high
        );
    };
    for (bound, ratio) in judged {
        line(bound.title, ratio, &format!("{:.2}", bound.at_most));
    }
    for (case, timed, title) in SHOWN {
        line(title, &Ratio::of(measured, case, timed)?, "");
    }
    println!("\n{:12} {:20} {:>8} {:>10}", "case", "program", "runs", "ns each");
    for program in measured.get("programs").and_then(Value::as_array).context("no programs")? {
        let text = |name: &str| program.get(name).and_then(Value::as_str).unwrap_or("?");
        let number = |name: &str| program.get(name).and_then(Value::as_u64).unwrap_or(0);
        println!(
            "{:12} {:20} {:>8} {:>10}",
            text("case"),
            text("program"),
            number("runs"),
            number("ns_each")
        );
    }
    Ok(())
}

fn as_json(judged: &[(&Bound, Ratio)], measured: Value) -> Value {
    let spread = |spread: &Spread| json!({ "low": spread.low, "median": spread.median, "high": spread.high });
    let ratios: Vec<Value> = judged
        .iter()
        .map(|(bound, ratio)| {
            json!({
                "what": bound.title,
                "without_us": ratio.without,
                "with_us": ratio.with,
                "ratio": spread(&ratio.ratio),
                "noise": spread(&ratio.noise),
                "bound": bound.at_most,
                "kept": ratio.ratio.median <= bound.at_most,
            })
        })
        .collect();
    json!({ "ratios": ratios, "measured": measured })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_against_what_is_beside() {
        let round = |without: u64, with: u64, again: u64| {
            let times = |time: u64| json!({ "connect": time, "connection": 1 });
            json!({ "passed": { "without": times(without), "with": times(with), "again": times(again) } })
        };
        let measured =
            json!({ "rounds": [round(1000, 1100, 1000), round(2000, 2400, 2000), round(900, 9000, 1100)] });
        let ratio = Ratio::of(&measured, "passed", "connect").unwrap();
        assert!((ratio.ratio.median - 1.2).abs() < 1e-9, "{ratio:?}");
        assert!((ratio.noise.median - 1.0).abs() < 1e-9, "{ratio:?}");
        assert!(Ratio::of(&measured, "redirected", "connect").is_err());
        assert!(Ratio::of(&json!({ "rounds": [] }), "passed", "connect").is_err());
    }
}
