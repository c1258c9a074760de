use weir_collector::config::Config;
use weir_collector::store::Store;
use weir_collector::store::migrate::{MIGRATIONS, MigrateError, Migration, check, migrate};

use crate::world::{World, run_with, store};

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
    for table in ["events", "holds", "decisions", "findings", "migrations", "jobs", "gaps"] {
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
    assert_eq!((code, out.trim()), (0, r#"{"database":"weir","version":7,"applied":[]}"#));
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
    assert!(out.ends_with("the database weir is at version 7\n"), "{out}");
}
