//! The suite's results: a `checks.json` in a folder for each scenario, read and compared.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A check that did not come out the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub scenario: String,
    pub check: String,
    /// How often with each status, and why where it failed: without Weir, and through it.
    pub directly: Vec<String>,
    pub through: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    id: String,
    status: String,
    #[serde(default)]
    error_message: Option<String>,
}

/// The results of one run, by scenario.
#[derive(Debug, Default)]
pub struct Results {
    scenarios: BTreeMap<String, Vec<Check>>,
}

/// The statuses that say how a check came out; a note of a request that was seen is none.
const OUTCOMES: [&str; 4] = ["SUCCESS", "FAILURE", "WARNING", "SKIPPED"];

impl Results {
    pub fn read(folder: &Path) -> Result<Self> {
        let mut results = Self::default();
        results.gather(folder, "")?;
        Ok(results)
    }

    fn gather(&mut self, folder: &Path, above: &str) -> Result<()> {
        for entry in std::fs::read_dir(folder)
            .with_context(|| format!("the suite's results in {}", folder.display()))?
        {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let checks = entry.path().join("checks.json");
            if checks.exists() {
                let scenario = without_time(&name);
                // Its first word says what is tested.
                let scenario = scenario.strip_prefix("server-").unwrap_or(scenario);
                let text = std::fs::read_to_string(&checks)?;
                let read: Vec<Check> =
                    serde_json::from_str(&text).with_context(|| format!("{}", checks.display()))?;
                self.scenarios.entry(format!("{above}{scenario}")).or_default().extend(read);
            } else if entry.file_type()?.is_dir() {
                self.gather(&entry.path(), &format!("{above}{name}/"))?;
            }
        }
        Ok(())
    }

    pub fn scenarios(&self) -> impl Iterator<Item = &str> {
        self.scenarios.keys().map(String::as_str)
    }

    /// Checks that came out in some way, and those that passed, of the scenarios that are compared.
    pub fn count(&self, compares: impl Fn(&str) -> bool) -> (u64, u64) {
        let of = self.scenarios.iter().filter(|(name, _)| compares(name)).flat_map(|(_, checks)| checks);
        of.filter(|check| OUTCOMES.contains(&check.status.as_str()))
            .fold((0, 0), |(all, passed), check| (all + 1, passed + u64::from(check.status == "SUCCESS")))
    }

    /// The checks that came out otherwise, or another number of times.
    pub fn differences(&self, through: &Self, compares: impl Fn(&str) -> bool) -> Vec<Difference> {
        let (ours, theirs) = (self.outcomes(&compares), through.outcomes(&compares));
        let mut keys: Vec<_> = ours.keys().chain(theirs.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let different = |key: &&(String, String)| statuses(ours.get(*key)) != statuses(theirs.get(*key));
        let told = |checks: Option<&Vec<Check>>| checks.into_iter().flatten().map(tell).collect();
        keys.into_iter()
            .filter(different)
            .map(|key| Difference {
                scenario: key.0.clone(),
                check: key.1.clone(),
                directly: told(ours.get(key)),
                through: told(theirs.get(key)),
            })
            .collect()
    }

    fn outcomes(&self, compares: impl Fn(&str) -> bool) -> BTreeMap<(String, String), Vec<Check>> {
        let mut outcomes: BTreeMap<_, Vec<Check>> = BTreeMap::new();
        for (scenario, checks) in self.scenarios.iter().filter(|(name, _)| compares(name)) {
            for check in checks.iter().filter(|check| OUTCOMES.contains(&check.status.as_str())) {
                outcomes.entry((scenario.clone(), check.id.clone())).or_default().push(check.clone());
            }
        }
        outcomes
    }
}

/// In no order: checks of one id may come from work that goes on at once.
fn statuses(checks: Option<&Vec<Check>>) -> Vec<&str> {
    let mut statuses: Vec<_> = checks.into_iter().flatten().map(|check| check.status.as_str()).collect();
    statuses.sort_unstable();
    statuses
}

fn tell(check: &Check) -> String {
    match &check.error_message {
        Some(why) => format!("{}: {why}", check.status),
        None => check.status.clone(),
    }
}

/// The folder's name up to the time at its end (`-2026-11-22T10-00-00-000Z`).
fn without_time(name: &str) -> &str {
    const TIME: usize = "-2026-11-22T10-00-00-000Z".len();
    name.len().checked_sub(TIME).and_then(|at| name.get(..at)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(folder: &Path, name: &str, checks: &str) -> Results {
        let scenario = folder.join(format!("{name}-2026-11-22T10-00-00-000Z"));
        std::fs::create_dir_all(&scenario).unwrap();
        std::fs::write(scenario.join("checks.json"), checks).unwrap();
        Results::read(folder).unwrap()
    }

    #[test]
    fn a_check_that_comes_out_otherwise_or_not_at_all_is_a_difference() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let passed =
            r#"[{"id":"a","status":"SUCCESS"},{"id":"b","status":"SUCCESS"},{"id":"seen","status":"INFO"}]"#;
        let failed = r#"[{"id":"a","status":"FAILURE","errorMessage":"no"}]"#;
        let (one, other) =
            (results(one.path(), "server-ping", passed), results(other.path(), "server-ping", failed));
        assert_eq!(one.scenarios().collect::<Vec<_>>(), ["ping"]);
        assert_eq!(one.count(|_| true), (2, 2));
        let found = one.differences(&other, |_| true);
        let keys: Vec<_> = found.iter().map(|each| (each.scenario.as_str(), each.check.as_str())).collect();
        assert_eq!(keys, [("ping", "a"), ("ping", "b")]);
        assert_eq!(found[0].through, ["FAILURE: no"]);
        assert!(one.differences(&one, |_| true).is_empty() && one.differences(&other, |_| false).is_empty());
    }

    #[test]
    fn scenarios_are_known_by_their_own_names() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("auth");
        std::fs::create_dir_all(&below).unwrap();
        results(&below, "basic-cimd", "[]");
        let read = results(folder.path(), "server-server-initialize", "[]");
        assert_eq!(read.scenarios().collect::<Vec<_>>(), ["auth/basic-cimd", "server-initialize"]);
    }
}
