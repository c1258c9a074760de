//! The result of all boots, for people and for scripts.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::Sum;
use super::guest::Outcome;
use crate::setup::kernels::Fetched;

/// One kernel's results. Each column has the same tests in the same order.
#[derive(Debug)]
pub struct Column {
    pub kernel: Fetched,
    pub outcomes: Vec<(String, Outcome)>,
    pub faults: Vec<String>,
    pub boot_seconds: Option<f64>,
    pub took: Duration,
}

/// A fault beside the tests counts as one failure more: a boot that went wrong is never green.
pub fn sum(columns: &[Column]) -> Sum {
    let mut sum = Sum::default();
    for column in columns {
        sum.failed += u64::from(!column.faults.is_empty());
        for (_, outcome) in &column.outcomes {
            match outcome {
                Outcome::Passed { .. } => sum.passed += 1,
                Outcome::Failed { .. } | Outcome::NotRun { .. } => sum.failed += 1,
                Outcome::LeftOut { .. } => sum.left_out += 1,
            }
        }
    }
    sum
}

/// Test by kernel, then each failure, then what was left out and why.
pub fn table(columns: &[Column]) -> String {
    let mut out = String::new();
    let titles: Vec<&str> = columns
        .first()
        .map(|c| c.outcomes.iter().map(|(title, _)| title.as_str()).collect())
        .unwrap_or_default();
    let first = titles.iter().map(|title| title.len()).max().unwrap_or(4);
    let widths: Vec<usize> = columns.iter().map(|column| column.kernel.release.len().max(8)).collect();
    // Writing into a string cannot fail.
    let _ = write!(out, "{:first$}", "test");
    for (column, width) in columns.iter().zip(&widths) {
        let _ = write!(out, "  {:>width$}", column.kernel.release);
    }
    let _ = writeln!(out);
    for (row, title) in titles.iter().enumerate() {
        let _ = write!(out, "{title:first$}");
        for (column, width) in columns.iter().zip(&widths) {
            let cell = match column.outcomes.get(row).map(|(_, outcome)| outcome) {
                Some(Outcome::Passed { millis }) => format!("{:.1} s", *millis as f64 / 1000.0),
                Some(Outcome::Failed { .. }) => "FAILED".to_owned(),
                Some(Outcome::NotRun { .. }) | None => "NOT RUN".to_owned(),
                Some(Outcome::LeftOut { .. }) => "left out".to_owned(),
            };
            let _ = write!(out, "  {cell:>width$}");
        }
        let _ = writeln!(out);
    }
    for column in columns {
        let release = &column.kernel.release;
        let boot =
            column.boot_seconds.map_or("never up".to_owned(), |seconds| format!("up after {seconds:.1} s"));
        let _ = writeln!(
            out,
            "\n{release}: Debian's {}, {boot}, all in {} s",
            column.kernel.version,
            column.took.as_secs()
        );
        for fault in &column.faults {
            let _ = writeln!(out, "  FAULT on {release}: {}", indented(fault));
        }
        for (title, outcome) in &column.outcomes {
            match outcome {
                Outcome::Failed { why, .. } => {
                    let _ = writeln!(out, "  FAILED on {release}: {title}: {}", indented(why));
                }
                Outcome::LeftOut { reason } => {
                    let _ = writeln!(out, "  left out on {release}: {title}: {reason}");
                }
                Outcome::Passed { .. } | Outcome::NotRun { .. } => {}
            }
        }
    }
    out
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n      ")
}

pub fn json(columns: &[Column]) -> Value {
    let sum = sum(columns);
    let kernels: Vec<Value> = columns
        .iter()
        .map(|column| {
            let tests: Vec<Value> =
                column.outcomes.iter().map(|(title, outcome)| test(title, outcome)).collect();
            json!({
                "kernel": column.kernel.name,
                "release": column.kernel.release,
                "package_version": column.kernel.version,
                "boot_seconds": column.boot_seconds,
                "seconds": column.took.as_secs_f64(),
                "faults": column.faults,
                "tests": tests,
            })
        })
        .collect();
    json!({ "passed": sum.passed, "failed": sum.failed, "left_out": sum.left_out, "kernels": kernels })
}

fn test(title: &str, outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Passed { millis } => json!({ "test": title, "outcome": "passed", "millis": millis }),
        Outcome::Failed { millis, why } => {
            json!({ "test": title, "outcome": "failed", "millis": millis, "why": why })
        }
        Outcome::NotRun { why } => json!({ "test": title, "outcome": "not_run", "why": why }),
        Outcome::LeftOut { reason } => json!({ "test": title, "outcome": "left_out", "why": reason }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn column(outcomes: &[Outcome], faults: &[&str]) -> Column {
        Column {
            kernel: Fetched {
                name: "6.1",
                release: "6.1.0-50".to_owned(),
                version: "6.1.176-1".to_owned(),
                image: PathBuf::new(),
                modules: PathBuf::new(),
                processor: "max",
            },
            outcomes: outcomes.iter().map(|outcome| ("kernel::a".to_owned(), outcome.clone())).collect(),
            faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
            boot_seconds: Some(2.0),
            took: Duration::from_secs(3),
        }
    }

    #[test]
    fn only_what_passed_counts_as_passed() {
        let passed = Outcome::Passed { millis: 1 };
        let failed = Outcome::Failed { millis: 1, why: "x".to_owned() };
        let not_run = Outcome::NotRun { why: "x".to_owned() };
        let left_out = Outcome::LeftOut { reason: "no io_uring there" };
        let all = column(&[passed.clone(), failed, not_run, left_out], &[]);
        assert_eq!(sum(&[all]), Sum { passed: 1, failed: 2, left_out: 1 });
        assert_eq!(sum(&[column(&[passed], &["it panicked"])]), Sum { passed: 1, failed: 1, left_out: 0 });
    }

    #[test]
    fn what_is_left_out_is_shown_with_its_reason_and_what_failed_with_its_words() {
        let failed = Outcome::Failed { millis: 1, why: "EPERM\nat line 3".to_owned() };
        let shown =
            table(&[column(&[failed, Outcome::LeftOut { reason: "no io_uring there" }], &["it panicked"])]);
        for part in ["no io_uring there", "EPERM", "at line 3", "it panicked", "FAILED", "left out"] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
    }
}
