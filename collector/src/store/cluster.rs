//! Tables for a cluster: the statements that made a database's tables come in, as that database shows them, and go out for
//! `ON CLUSTER`: each table replicated on its shard as `<name>_local`, and under its own name a Distributed one over all shards. All of
//! a log is on one shard, so that a retried insert meets its token there. Pure, but for [`print`], which reads the database.

use std::fmt::Write;

use clickhouse::Row;
use serde::Deserialize;

use super::{Store, StoreError};

/// How long a shard remembers an insert's token, seconds: longer than any backlog waits.
const WINDOW_SECONDS: u32 = 90 * 24 * 3600;

/// A table or view as a database shows it.
#[derive(Debug, Clone, Row, Deserialize)]
pub struct Made {
    pub name: String,
    pub engine: String,
    pub sorting_key: String,
    pub create_table_query: String,
}

/// A migration as it was applied: the new tables are of the same version.
#[derive(Debug, Clone, Row, Deserialize)]
pub struct Version {
    pub version: u32,
    pub name: String,
    pub checksum: String,
}

/// Whether a cluster can be called so: what needs no quoting anywhere.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}

/// The statements that make this store's tables on a cluster.
pub async fn print(store: &Store, cluster: &str) -> Result<String, StoreError> {
    let question = store
        .query(
            "SELECT name, engine, sorting_key, create_table_query FROM system.tables \
             WHERE database = ? AND NOT is_temporary AND NOT startsWith(name, '.') \
             ORDER BY engine = 'MaterializedView', engine = 'View', metadata_modification_time, name",
        )
        .bind(store.database());
    let made: Vec<Made> = store.rows(question).await?;
    let question = store.query("SELECT version, name, checksum FROM migrations ORDER BY version");
    let versions: Vec<Version> =
        store.rows(question).await.map_err(|e| e.of_our_tables(store.url(), store.database()))?;
    Ok(statements(store.database(), cluster, &made, &versions))
}

/// The same, of what is given.
pub fn statements(database: &str, cluster: &str, made: &[Made], versions: &[Version]) -> String {
    let is_table = |one: &&Made| one.engine.ends_with("MergeTree");
    let tables: Vec<&str> = made.iter().filter(is_table).map(|one| one.name.as_str()).collect();
    let mut out = format!(
        "-- Weir's tables on the cluster {cluster}, of version {}. Each server needs the macros {{shard}} and {{replica}}.\n\n\
         CREATE DATABASE IF NOT EXISTS {database} ON CLUSTER '{cluster}';\n",
        versions.last().map_or(0, |last| last.version)
    );
    for one in made.iter().filter(is_table) {
        // Writing into a string does not fail.
        let _ =
            write!(out, "\n{};\n\n{};\n", local(database, cluster, one), distributed(database, cluster, one));
    }
    for one in made.iter().filter(|one| !is_table(one)) {
        let _ = write!(out, "\n{};\n", view(database, cluster, one, &tables));
    }
    for Version { version, name, checksum } in versions {
        let _ = write!(
            out,
            "\nINSERT INTO {database}.migrations (version, name, checksum, applied_at) \
             SELECT {version}, '{name}', '{checksum}', now64(6) \
             WHERE {version} NOT IN (SELECT version FROM {database}.migrations);\n"
        );
    }
    out
}

/// The table on each shard, replicated there.
fn local(database: &str, cluster: &str, one: &Made) -> String {
    let name = &one.name;
    let on_cluster = format!("CREATE TABLE IF NOT EXISTS {database}.{name}_local ON CLUSTER '{cluster}' ");
    let made = one.create_table_query.replacen(&format!("CREATE TABLE {database}.{name} "), &on_cluster, 1);
    let kind = one.engine.trim_end_matches("MergeTree");
    let place = format!("'/clickhouse/tables/{{shard}}/{database}/{name}_local', '{{replica}}'");
    let replicated = format!("ENGINE = Replicated{kind}MergeTree({place}");
    // Some engines have columns for arguments.
    let engine = format!("ENGINE = {}", one.engine);
    let made = match made.split_once(&format!("{engine}(")) {
        Some((before, behind)) => format!("{before}{replicated}, {behind}"),
        None => made.replacen(&engine, &format!("{replicated})"), 1),
    };
    let Some((before, behind)) = made.split_once("non_replicated_deduplication_window = ") else {
        return made;
    };
    format!(
        "{before}replicated_deduplication_window_seconds = {WINDOW_SECONDS}, replicated_deduplication_window = {behind}"
    )
}

/// The table over all shards.
fn distributed(database: &str, cluster: &str, one: &Made) -> String {
    let name = &one.name;
    let first = one.sorting_key.split(',').next().unwrap_or_default().trim();
    // A tenant has many logs, and a log has one shard.
    let by = if first == "tenant" && one.create_table_query.contains("`origin`") { "origin" } else { first };
    format!(
        "CREATE TABLE IF NOT EXISTS {database}.{name} ON CLUSTER '{cluster}' AS {database}.{name}_local\n\
         ENGINE = Distributed('{cluster}', '{database}', '{name}_local', cityHash64({by}))"
    )
}

/// A view over all shards; one that is filled by inserts stands on each shard, between the tables there.
fn view(database: &str, cluster: &str, one: &Made, tables: &[&str]) -> String {
    let Made { name, create_table_query: made, .. } = one;
    let filled = one.engine == "MaterializedView";
    let kind = if filled { "MATERIALIZED VIEW" } else { "VIEW" };
    let own = if filled { format!("{name}_local") } else { name.clone() };
    let on_cluster = format!("CREATE {kind} IF NOT EXISTS {database}.{own} ON CLUSTER '{cluster}' ");
    let made = made.replacen(&format!("CREATE {kind} {database}.{name} "), &on_cluster, 1);
    if !filled {
        return made;
    }
    tables.iter().fold(made, |made, table| {
        let mut out = String::with_capacity(made.len());
        let mut rest = made.as_str();
        let whole = format!("{database}.{table}");
        while let Some((before, behind)) = rest.split_once(&whole) {
            out.push_str(before);
            out.push_str(&whole);
            // Another table's name may begin like this one's.
            if !behind.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                out.push_str("_local");
            }
            rest = behind;
        }
        out.push_str(rest);
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str, engine: &str, sorting_key: &str, query: &str) -> Made {
        Made {
            name: name.into(),
            engine: engine.into(),
            sorting_key: sorting_key.into(),
            create_table_query: query.into(),
        }
    }

    #[test]
    fn each_table_is_replicated_on_its_shard_and_distributed_by_its_log() {
        let tables = [
            made(
                "events",
                "MergeTree",
                "tenant, origin, seq",
                "CREATE TABLE weir.events (`tenant` String, `origin` String, `seq` UInt64) ENGINE = MergeTree PARTITION BY \
                 toYYYYMM(sealed_at) ORDER BY (tenant, origin, seq) SETTINGS non_replicated_deduplication_window = 100000, \
                 fsync_after_insert = 1",
            ),
            made(
                "findings",
                "ReplacingMergeTree",
                "tenant",
                "CREATE TABLE weir.findings (`tenant` String) ENGINE = ReplacingMergeTree(found_at) ORDER BY tenant",
            ),
            made(
                "events_5m",
                "AggregatingMergeTree",
                "tenant",
                "CREATE TABLE weir.events_5m (`tenant` String) ENGINE = AggregatingMergeTree ORDER BY tenant",
            ),
            made(
                "counted",
                "MaterializedView",
                "",
                "CREATE MATERIALIZED VIEW weir.counted TO weir.events_5m (`tenant` String) AS SELECT tenant FROM weir.events",
            ),
            made(
                "calls",
                "View",
                "",
                "CREATE VIEW weir.calls (`tenant` String) AS SELECT tenant FROM weir.events",
            ),
        ];
        let versions = [Version { version: 1, name: "events".into(), checksum: "c".into() }];
        let out = statements("weir", "west", &tables, &versions);
        for part in [
            "CREATE DATABASE IF NOT EXISTS weir ON CLUSTER 'west';",
            "CREATE TABLE IF NOT EXISTS weir.events_local ON CLUSTER 'west' (`tenant`",
            "ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/weir/events_local', '{replica}') PARTITION BY",
            "SETTINGS replicated_deduplication_window_seconds = 7776000, replicated_deduplication_window = 100000, fsync",
            "CREATE TABLE IF NOT EXISTS weir.events ON CLUSTER 'west' AS weir.events_local\n\
             ENGINE = Distributed('west', 'weir', 'events_local', cityHash64(origin));",
            "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/weir/findings_local', '{replica}', found_at) ORDER",
            "ReplicatedAggregatingMergeTree('/clickhouse/tables/{shard}/weir/events_5m_local', '{replica}') ORDER",
            "weir.counted_local ON CLUSTER 'west' TO weir.events_5m_local (`tenant` String) AS SELECT tenant FROM weir.events_local;",
            "CREATE VIEW IF NOT EXISTS weir.calls ON CLUSTER 'west' (`tenant` String) AS SELECT tenant FROM weir.events;",
            "SELECT 1, 'events', 'c', now64(6)",
        ] {
            assert!(out.contains(part), "{part}\n{out}");
        }
        assert!(!out.contains("non_replicated"), "{out}");
    }

    #[test]
    fn a_cluster_is_called_by_what_needs_no_quoting() {
        assert!(is_name("west-1_a"));
        for bad in ["", "a b", "a'", "a\\", "{cluster}"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
