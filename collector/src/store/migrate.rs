//! Migrations: the numbered files beside this one come in (embedded), tables and views go out. Each is applied
//! once and remembered with its checksum in the table `migrations`. An applied one never changes: a mend is a
//! new number. ClickHouse cannot roll back, so each statement can be run again, and a cut-off run is repeated. A line
//! `-- when: QUESTION` has the statement behind it run only where the question's answer is not 0.

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weir_core::ids::hex;

use super::{Store, StoreError};

/// One numbered step.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub version: u32,
    pub name: &'static str,
    pub sql: &'static str,
}

/// Every step that this program knows, in order.
pub const MIGRATIONS: [Migration; 10] = [
    Migration { version: 1, name: "events", sql: include_str!("migrations/0001_events.sql") },
    Migration { version: 2, name: "approvals", sql: include_str!("migrations/0002_approvals.sql") },
    Migration { version: 3, name: "views", sql: include_str!("migrations/0003_views.sql") },
    Migration { version: 4, name: "accounts", sql: include_str!("migrations/0004_accounts.sql") },
    Migration { version: 5, name: "findings", sql: include_str!("migrations/0005_findings.sql") },
    Migration { version: 6, name: "correlation", sql: include_str!("migrations/0006_correlation.sql") },
    Migration { version: 7, name: "flow_reason", sql: include_str!("migrations/0007_flow_reason.sql") },
    Migration { version: 8, name: "evidence", sql: include_str!("migrations/0008_evidence.sql") },
    Migration { version: 9, name: "questions", sql: include_str!("migrations/0009_questions.sql") },
    Migration { version: 10, name: "enrolment", sql: include_str!("migrations/0010_enrolment.sql") },
];

const TABLE: &str = "CREATE TABLE IF NOT EXISTS migrations (
    version UInt32, name String, checksum String, applied_at DateTime64(6, 'UTC')
) ENGINE = MergeTree ORDER BY version
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1";

/// Why a database is not brought, or not, to this program's tables.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(
        "migration {version} ({name}) was applied with other contents than this program has; \
         use the program that applied it, or a fresh [store] database"
    )]
    Changed { version: u32, name: String },
    #[error(
        "the database {database} has migration {version}, and this program knows up to {known}; \
         use a newer weir-collector"
    )]
    Newer { database: String, version: u32, known: u32 },
    #[error("the database {database} lacks migration {version} ({name}); run `weir-collector migrate`")]
    Missing { database: String, version: u32, name: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, Clone, PartialEq, Eq, Row, Serialize, Deserialize)]
struct Applied {
    version: u32,
    name: String,
    checksum: String,
    applied_at: i64,
}

impl Migration {
    /// SHA-256 of the file, as hex.
    pub fn checksum(&self) -> String {
        hex(&Sha256::digest(self.sql))
    }

    /// The file's statements: each ends with `;` at a line's end.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut step = Step::default();
        for line in self.sql.lines() {
            if let Some(question) = line.strip_prefix("-- when: ") {
                step.when = Some(question.to_owned());
            }
            if line.trim_start().starts_with("--") {
                continue;
            }
            let (text, ends) = line.strip_suffix(';').map_or((line, false), |text| (text, true));
            if !(step.sql.is_empty() && text.trim().is_empty()) {
                step.sql.push_str(text);
                step.sql.push('\n');
            }
            if ends {
                steps.push(std::mem::take(&mut step));
            }
        }
        if !step.sql.trim().is_empty() {
            steps.push(step);
        }
        steps
    }

    /// Runs its first `most` statements, and says whether those were all. What a run that was cut off does.
    pub async fn run(&self, store: &Store, most: usize) -> Result<bool, StoreError> {
        let steps = self.steps();
        for step in steps.iter().take(most) {
            if let Some(question) = &step.when {
                let answer: Vec<u64> = store.rows(store.query_raw(question)).await?;
                if answer.first().is_none_or(|answer| *answer == 0) {
                    continue;
                }
            }
            store.execute_at_length(store.query_raw(step.sql.trim())).await?;
        }
        Ok(steps.len() <= most)
    }
}

/// One statement, and the question that it depends on.
#[derive(Debug, Default)]
struct Step {
    when: Option<String>,
    sql: String,
}

/// Applies what is missing of `migrations` and says which those were. `now_us`: microseconds since 1970.
pub async fn migrate(
    store: &Store,
    migrations: &[Migration],
    now_us: i64,
) -> Result<Vec<Migration>, MigrateError> {
    let create = format!("CREATE DATABASE IF NOT EXISTS {}", store.database);
    store.execute(store.server.query_raw(&create)).await?;
    store.execute(store.query_raw(TABLE)).await?;
    let missing = missing(store, migrations).await?;
    for migration in &missing {
        tracing::info!(version = migration.version, name = migration.name, "migrating");
        migration.run(store, usize::MAX).await?;
        let row = Applied {
            version: migration.version,
            name: migration.name.to_owned(),
            checksum: migration.checksum(),
            applied_at: now_us,
        };
        // The token keeps two that migrate at once from writing two rows.
        let token = format!("migration/{}/{}", migration.version, row.checksum);
        store.insert("migrations", &token, &[row]).await?;
    }
    Ok(missing)
}

/// Fails unless the database has exactly this program's tables.
pub async fn check(store: &Store, migrations: &[Migration]) -> Result<(), MigrateError> {
    let missing = missing(store, migrations).await?;
    match missing.first() {
        None => Ok(()),
        Some(first) => Err(MigrateError::Missing {
            database: store.database.clone(),
            version: first.version,
            name: first.name,
        }),
    }
}

async fn missing(store: &Store, migrations: &[Migration]) -> Result<Vec<Migration>, MigrateError> {
    let question = store.query("SELECT ?fields FROM migrations ORDER BY version");
    let applied: Vec<Applied> =
        store.rows(question).await.map_err(|e| e.of_our_tables(&store.url, &store.database))?;
    for row in &applied {
        let Some(own) = migrations.iter().find(|own| own.version == row.version) else {
            return Err(MigrateError::Newer {
                database: store.database.clone(),
                version: row.version,
                known: migrations.last().map_or(0, |last| last.version),
            });
        };
        if own.checksum() != row.checksum {
            return Err(MigrateError::Changed { version: row.version, name: row.name.clone() });
        }
    }
    let is_missing = |own: &&Migration| applied.iter().all(|row| row.version != own.version);
    Ok(migrations.iter().filter(is_missing).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_dense_and_each_file_splits_into_statements() {
        for (at, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version as usize, at + 1);
            for step in migration.steps() {
                let statement = step.sql.trim();
                let repeatable = [
                    "CREATE TABLE IF NOT EXISTS",
                    "CREATE VIEW IF NOT EXISTS",
                    "CREATE OR REPLACE VIEW",
                    "CREATE MATERIALIZED VIEW IF NOT EXISTS",
                    "ALTER TABLE",
                    "DROP TABLE IF EXISTS",
                ];
                let is_guarded = step.when.is_some();
                assert!(
                    is_guarded || repeatable.iter().any(|start| statement.starts_with(start)),
                    "{statement}"
                );
                let added = |what: &str| statement.matches(what).count();
                assert_eq!(
                    added("ADD "),
                    added("ADD COLUMN IF NOT EXISTS ")
                        + added("ADD INDEX IF NOT EXISTS ")
                        + added("ADD PROJECTION IF NOT EXISTS ")
                );
                assert!(!statement.is_empty() && !statement.contains(';'), "{statement}");
            }
        }
    }
}
