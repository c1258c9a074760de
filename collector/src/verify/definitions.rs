//! Definitions: what tables and views are, against what the migrations make. They are made anew in a database of their own, which
//! is dropped again, and ClickHouse tells of both: a view that leaves rows out has a finding, and so has one that an insert no
//! longer fills its table by. Where they cannot be made anew, nothing is known of any of them, and that is a finding too: what was
//! not looked at must never pass for sound.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::verify::{Finding, Kind};

use super::VerifyError;
use crate::store::Store;
use crate::store::migrate::{MIGRATIONS, MigrateError, migrate};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Defined {
    engine: String,
    /// A view's question; of a table what it is divided and ordered by, and when rows of it go by themselves.
    source: String,
    /// The table that a materialized view fills.
    target: String,
    /// Names, types, and how each is made where an insert does not say.
    columns: Vec<(String, String, String, String)>,
}

#[derive(Debug, Row, Deserialize)]
struct Table {
    name: String,
    engine: String,
    source: String,
    target: String,
}

#[derive(Debug, Row, Deserialize)]
struct Column {
    table: String,
    name: String,
    kind: String,
    default_kind: String,
    default_expression: String,
}

/// What differs.
pub(super) async fn check(store: &Store, now_us: i64) -> Result<Vec<Finding>, VerifyError> {
    let scratch = store.beside(&format!("{}_verify_{:x}_{}", store.database(), now_us, std::process::id()));
    let made = migrate(&scratch, &MIGRATIONS, now_us).await;
    let defined = match &made {
        Ok(_) => read(&scratch, store.database()).await,
        Err(_) => Ok(BTreeMap::new()),
    };
    let drop = format!("DROP DATABASE IF EXISTS {} SYNC", scratch.database());
    let dropped = scratch.execute(scratch.query_server(&drop)).await;
    match made {
        Ok(_) => {}
        Err(MigrateError::Store(error)) => {
            let why = format!(
                "not checked: this user cannot make the database {} to compare with; docs/roles.sql has the role weir_auditor, \
                 which can ({error})",
                scratch.database()
            );
            return Ok(vec![finding("tables and views", why)]);
        }
        Err(other) => return Err(other.into()),
    }
    let mut findings = differing(&defined?, &read(store, store.database()).await?);
    if let Err(error) = dropped {
        let why = format!("checked, but the database that was made for it is there still: drop it ({error})");
        findings.push(finding(scratch.database(), why));
    }
    Ok(findings)
}

/// What is not as expected.
fn differing(expected: &BTreeMap<String, Defined>, found: &BTreeMap<String, Defined>) -> Vec<Finding> {
    let differs = |(name, expected): (&String, &Defined)| {
        let Some(found) = found.get(name) else { return Some(finding(name, "it is not there".into())) };
        let other =
            |what: &str| Some(finding(name, format!("{what} not the one that the migrations give it")));
        if found.engine != expected.engine {
            other("its engine is")
        } else if found.source != expected.source {
            other("its source is")
        } else if found.target != expected.target {
            other("the table that it fills is")
        } else if found.columns != expected.columns {
            let differs = |(own, other): &(_, _)| own != other;
            let at = found.columns.iter().zip(&expected.columns).find(differs);
            let column = at.map_or("one that is missing, or too many", |(own, _)| &own.0);
            Some(finding(name, format!("its columns differ: {column}")))
        } else {
            None
        }
    };
    expected.iter().filter_map(differs).collect()
}

/// What a database defines, with `called` for its own name. That is for the one made here: what was found is compared to the
/// letter, since whatever were left out of it could stand in the middle of a word.
async fn read(store: &Store, called: &str) -> Result<BTreeMap<String, Defined>, VerifyError> {
    let tables = store.query_raw(
        "SELECT name, engine, \
                if(as_select = '', extract(engine_full, '(?s) (?:PARTITION|ORDER) BY .*?(?: SETTINGS |$)'), as_select) AS source, \
                extract(create_table_query, '^CREATE MATERIALIZED VIEW [^ ]+ TO ([^ ]+)') AS target \
         FROM system.tables WHERE database = currentDatabase() AND NOT startsWith(name, '.inner')",
    );
    let columns = store.query(
        "SELECT table, name, type AS kind, toString(default_kind) AS default_kind, default_expression \
         FROM system.columns WHERE database = currentDatabase() ORDER BY table, position",
    );
    let named = |text: String| text.replace(store.database(), called);
    let mut defined = BTreeMap::new();
    for Table { name, engine, source, target } in store.rows::<Table>(tables).await? {
        let (source, target) = (named(source), named(target));
        defined.insert(name, Defined { engine, source, target, columns: Vec::new() });
    }
    for Column { table, name, kind, default_kind, default_expression } in
        store.rows::<Column>(columns).await?
    {
        if let Some(table) = defined.get_mut(&table) {
            table.columns.push((name, kind, default_kind, default_expression));
        }
    }
    Ok(defined)
}

fn finding(what: &str, detail: String) -> Finding {
    Finding {
        kind: Kind::Definition,
        fault: true,
        origin: String::new(),
        epoch: 0,
        first_seq: 0,
        last_seq: 0,
        what: what.to_owned(),
        detail,
    }
}
