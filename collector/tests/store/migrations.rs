use weir_collector::config::Config;
use weir_collector::store::Store;
use weir_collector::store::migrate::{MIGRATIONS, MigrateError, Migration, check, migrate};

use crate::world::{World, run_with, store};

/// The number of the last migration.
const LATEST: usize = MIGRATIONS.len();

/// The table under a heading of docs/schema.md: its rows' first two cells, a column and its type.
fn documented(heading: &str) -> Vec<(String, String)> {
    let text = include_str!("../../../docs/schema.md");
    let section = text.split_once(&format!("\n## {heading}\n")).expect(heading).1;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (column, rest) = row.split_once("` | `").expect(row);
        (column.to_owned(), rest.split_once("` |").expect(row).0.to_owned())
    })
    .collect()
}

#[test]
fn the_documented_columns_are_those_of_the_database() {
    let world = World::start();
    let described = |table: &str| -> Vec<(String, String)> {
        let text = |row: &serde_json::Value, name: &str| row[name].as_str().expect(name).to_owned();
        let rows = world.sql(&format!("DESCRIBE {table}"));
        rows.iter().map(|row| (text(row, "name"), text(row, "type"))).collect()
    };
    for table in [
        "events",
        "calls_5m",
        "held",
        "batches",
        "checkpoints",
        "claims",
        "identities",
        "policies",
        "tombstones",
        "holds",
        "decisions",
        "findings",
        "enrol_tokens",
        "agent_certificates",
        "revocations",
        "migrations",
        "jobs",
        "gaps",
    ] {
        assert_eq!(documented(table), described(table), "{table}");
    }
    let events = described("events");
    let own = documented("calls");
    for column in described("calls") {
        let result = column.0 == "result";
        assert!(own.contains(&column) || (events.contains(&column) && !result), "calls: {column:?}");
    }
    for column in &own {
        assert!(described("calls").contains(column), "calls: {column:?}");
    }
    for view in ["flows", "unrecorded", "messages"] {
        assert!(described(view).iter().all(|column| events.contains(column)), "{view}");
    }
}

fn connected(config: &std::path::Path) -> Store {
    Store::new(&Config::read(config).expect("a configuration").store)
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_twice_changes_nothing_and_a_changed_step_is_refused() {
    let world = World::start();
    let (code, out, _) = world.run(&["migrate", "--json"]);
    assert_eq!(
        (code, out.trim()),
        (0, format!(r#"{{"database":"weir","version":{LATEST},"applied":[]}}"#).as_str())
    );
    assert_eq!(world.number("SELECT count() FROM migrations"), MIGRATIONS.len() as u64);

    let store = connected(world.collector.config());
    let mut changed = MIGRATIONS;
    changed[1].sql = "CREATE TABLE IF NOT EXISTS other (a UInt8) ENGINE = Memory;";
    let refused = migrate(&store, &changed, 0).await.expect_err("a changed step");
    assert!(matches!(refused, MigrateError::Changed { version: 2, .. }), "{refused}");
    assert!(refused.to_string().contains("was applied with other contents"), "{refused}");
    assert_eq!(world.number("SELECT count() FROM system.tables WHERE name = 'other'"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_a_newer_program_is_refused() {
    let world = World::start();
    let store = connected(world.collector.config());
    let newer = Migration {
        version: MIGRATIONS.len() as u32 + 1,
        name: "later",
        sql: "CREATE TABLE IF NOT EXISTS later (a UInt8) ENGINE = Memory;",
    };
    let mut steps = MIGRATIONS.to_vec();
    steps.push(newer);
    let applied = migrate(&store, &steps, 0).await.expect("a newer program's migration");
    assert_eq!(applied.iter().map(|m| m.version).collect::<Vec<_>>(), [newer.version]);

    for refused in [migrate(&store, &MIGRATIONS, 0).await.map(drop), check(&store, &MIGRATIONS).await] {
        let refused = refused.expect_err("a newer database");
        assert!(refused.to_string().contains("use a newer weir-collector"), "{refused}");
    }
}

#[test]
fn a_database_without_tables_is_not_served_unless_told_to_migrate() {
    let (store, folder) = store();
    let config = format!(
        "[store]\nurl = \"{}\"\npassword_file = \"{}\"\n[listen]\nsocket = \"{}\"\nagent_uids = [0]\n",
        store.url(),
        store.secret().display(),
        folder.path().join("c.sock").display()
    );
    for arguments in [&["serve"][..], &["query", "--named", "gaps"], &["approvals", "list"]] {
        let (code, _, told) = run_with(&folder, &config, arguments);
        assert_eq!(code, 1);
        assert!(told.contains("weir-collector migrate") && told.lines().count() == 1, "{told}");
    }
    assert!(!folder.path().join("c.sock").exists());
    let (code, out, told) = run_with(&folder, &config, &["migrate"]);
    assert_eq!(code, 0, "{told}");
    assert!(out.ends_with(&format!("the database weir is at version {LATEST}\n")), "{out}");
}

/// As the columns of `events` were before there were trees.
const OLD_ROWS: &str = "INSERT INTO events (tenant, host_name, origin, seq, time, kind, canonical, agent_uid, ingested_at) \
    SELECT 'demo', 'runner-1', leftPad(toString(number % 3), 32, '0'), intDiv(number, 3), \
           toDateTime64('2026-01-01 00:00:00', 6, 'UTC') + toIntervalDay(number % 300), 'outcome', \
           concat('event ', toString(number)), 7, toDateTime64('2026-11-22 00:00:00', 6, 'UTC') - toIntervalDay(number % 200) \
    FROM numbers(3000) SETTINGS max_partitions_per_insert_block = 0";

/// So many statements make the copy, still empty; the next one fills it, and the one behind exchanges the tables.
const COPY_MADE: usize = 3;

/// Of all rows, in any order, what must outlive the change of tables.
const SUM: &str =
    "SELECT sum(cityHash64(tenant, host_name, origin, seq, time, kind, canonical, agent_uid, ingested_at))";

#[tokio::test(flavor = "multi_thread")]
async fn the_change_of_partitions_can_be_cut_off_behind_any_statement_and_run_again() {
    let (server, folder) = store();
    let at = |cut: usize| {
        let config = format!(
            "[store]\nurl = \"{}\"\npassword_file = \"{}\"\ndatabase = \"cut_{cut}\"\n\
             [listen]\nsocket = \"/run/c.sock\"\nagent_uids = [0]\n",
            server.url(),
            server.secret().display(),
        );
        let path = folder.path().join("cut.toml");
        std::fs::write(&path, config).expect("a configuration");
        connected(&path)
    };
    let evidence = MIGRATIONS[7];
    // What comes behind them makes tables that nothing depends on.
    for cut in COPY_MADE..=COPY_MADE + 3 {
        let store = at(cut);
        let sum = async || -> u64 {
            store.rows(store.query_raw(&format!("{SUM} FROM events"))).await.expect("a sum")[0]
        };
        migrate(&store, &MIGRATIONS[..7], 0).await.expect("the tables of before");
        store.execute(store.query_raw(OLD_ROWS)).await.expect("rows");
        let before = sum().await;
        assert!(!evidence.run(&store, cut).await.expect("the first statements"), "{cut} are not all");
        let mut late = 0;
        if cut == COPY_MADE {
            // In the middle of the copying: a part of the rows is there.
            let half = "INSERT INTO events_resealed SELECT * FROM events WHERE seq % 2 = 0 \
                        SETTINGS max_partitions_per_insert_block = 0";
            store.execute(store.query_raw(half)).await.expect("a part of the copy");
        } else if cut == COPY_MADE + 2 {
            // Exchanged; a collector that still runs wrote into the old table before that, and behind the copying.
            let row = "INSERT INTO events_resealed (tenant, origin, seq, ingested_at) \
                       SELECT 'demo', leftPad('0', 32, '0'), 1000000, now64(6)";
            store.execute(store.query_raw(row)).await.expect("a late row");
            late = 1;
        }
        migrate(&store, &MIGRATIONS[..8], 0).await.expect("the rest");
        let late_rows = "DELETE FROM events WHERE seq = 1000000 SETTINGS mutations_sync = 2";
        let there = "SELECT count() FROM events WHERE seq = 1000000";
        let there: Vec<u64> = store.rows(store.query_raw(there)).await.expect("a count");
        assert_eq!(there, [late], "{cut}");
        store.execute(store.query_raw(late_rows)).await.expect("a delete");
        assert_eq!(sum().await, before, "{cut}");
        let rows: Vec<(u64, u64, u64, u64)> = store
            .rows(store.query_raw(
                "SELECT count(), uniqExact(origin, seq), \
                 countIf(leaf_hash = SHA256(concat(unhex('00'), canonical)) AND epoch = 0 AND sealed_at = ingested_at \
                 AND agent_identity = 'uid:7'), toUInt64(uniqExact(_partition_id)) FROM events",
            ))
            .await
            .expect("rows");
        assert_eq!(rows, [(3000, 3000, 3000, 7)], "{cut}: a partition for each month of the sealing");
        let left: Vec<String> = store
            .rows(store.query_raw(
                "SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE '%resealed%'",
            ))
            .await
            .expect("tables");
        assert!(left.is_empty(), "{cut}: {left:?}");
    }
}

/// What roles are given stands on tables and columns that there are; the embedded store refuses every one of these statements.
async fn roles_name_what_there_is_and_the_embedded_store_has_none(world: &World, roles: &[String]) {
    let columns = world.sql("SELECT table, name FROM system.columns WHERE database = 'weir'");
    let is_there = |table: &str, column: &str| {
        columns.iter().any(|one| one["table"] == table && (column.is_empty() || one["name"] == column))
    };
    let operator = world.operator();
    let mut granted = 0;
    for statement in roles {
        let refused = operator.execute(operator.query_raw(statement)).await;
        assert!(refused.is_err(), "the embedded store took: {statement}");
        let Some((what, whose)) =
            statement.strip_prefix("GRANT ").and_then(|rest| rest.split_once(" ON weir."))
        else {
            continue;
        };
        let table = whose.split_once(" TO ").map_or(whose, |(table, _)| table);
        let named = what.split_once('(').map_or("", |(_, named)| named.trim_end_matches(')'));
        for column in named.split(',').map(str::trim) {
            assert!(table == "*" || is_there(table, column), "{table} {column:?}: {statement}");
            granted += 1;
        }
    }
    assert!(granted > 40, "{granted}");
    let users = operator.execute(operator.query_raw("CREATE USER ada IDENTIFIED WITH no_password")).await;
    assert!(users.is_err(), "an embedded store with a second user has roles, too: run them here");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_a_cluster_are_printed_as_the_engine_reads_them() {
    let world = World::start();
    let (code, printed, told) = world.run(&["migrate", "--cluster", "west", "--print"]);
    assert_eq!(code, 0, "{told}");
    let statements: Vec<&str> = printed.split(";\n").map(str::trim).filter(|one| !one.is_empty()).collect();
    let tables = world
        .sql("SELECT name, engine FROM system.tables WHERE database = 'weir' AND NOT startsWith(name, '.')");
    for table in &tables {
        let (name, engine) =
            (table["name"].as_str().expect("a name"), table["engine"].as_str().expect("an engine"));
        let of = |start: String| statements.iter().filter(|one| one.contains(&start)).count();
        let on = |name: &str| of(format!(" weir.{name} ON CLUSTER 'west'"));
        let expected = match engine {
            "View" => (0, 1),
            "MaterializedView" => (1, 0),
            _ => (1, 1),
        };
        assert_eq!((on(&format!("{name}_local")), on(name)), expected, "{name}: {engine}");
    }
    let many = |part: &str| statements.iter().filter(|one| one.contains(part)).count();
    for table in ["events", "batches", "checkpoints", "claims", "identities", "findings", "tombstones"] {
        assert_eq!(
            many(&format!("Distributed('west', 'weir', '{table}_local', cityHash64(origin))")),
            1,
            "{table}"
        );
    }
    assert_eq!(many("INSERT INTO weir.migrations"), MIGRATIONS.len());
    assert!(!printed.contains("non_replicated") && !printed.contains("ENGINE = MergeTree"), "{printed}");
    let roles: Vec<String> = include_str!("../../../docs/roles.sql")
        .split(";\n")
        .map(|one| one.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n"))
        .filter(|one| !one.trim().is_empty())
        .collect();
    assert!(roles.len() > 15, "{roles:?}");
    for statement in statements.into_iter().chain(roles.iter().map(String::as_str)) {
        // What the engine's own parser takes for one, to the last word.
        let quoted = statement.replace('\\', "\\\\").replace('\'', "\\'");
        let read = world.sql(&format!("SELECT formatQuery('{quoted}') AS read"));
        assert!(!read[0]["read"].as_str().expect("text").is_empty(), "{statement}");
    }
    roles_name_what_there_is_and_the_embedded_store_has_none(&world, &roles).await;
    for wrong in [&["--cluster", "west"][..], &["--print"], &["--cluster", "a'b", "--print"]] {
        let (code, _, told) = world.run(&[&["migrate"], wrong].concat());
        assert_eq!(code, 2, "{wrong:?}: {told}");
    }
}
