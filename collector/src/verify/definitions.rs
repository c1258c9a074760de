//! Definitions: what tables and views are, against what the migrations make. They are made anew in a database of their own, which
//! is dropped again, and ClickHouse tells of both; a view that leaves rows out so has a finding.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::verify::{Finding, Kind};

use super::VerifyError;
use crate::store::Store;
use crate::store::migrate::{MIGRATIONS, MigrateError, migrate};

#[derive(Debug, PartialEq, Eq)]
struct Defined {
    /// A view's question; a table's engine.
    source: String,
    /// Names, types, and how each is made where an insert does not say.
    columns: Vec<(String, String, String, String)>,
}

#[derive(Debug, Row, Deserialize)]
struct Table {
    name: String,
    source: String,
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
        Ok(_) => read(&scratch).await,
        Err(_) => Ok(BTreeMap::new()),
    };
    let drop = format!("DROP DATABASE IF EXISTS {} SYNC", scratch.database());
    let dropped = scratch.execute(scratch.query_server(&drop)).await;
    match made {
        Ok(_) => {}
        Err(MigrateError::Store(error)) => {
            let why = format!("not checked: this user may not make a database to compare with ({error})");
            return Ok(vec![Finding { fault: false, ..finding("tables and views", why) }]);
        }
        Err(other) => return Err(other.into()),
    }
    dropped?;
    let (expected, found) = (defined?, read(store).await?);
    let mut findings = Vec::new();
    for (name, expected) in &expected {
        match found.get(name) {
            None => findings.push(finding(name, "it is not there".into())),
            Some(found) if found.source != expected.source => {
                findings.push(finding(name, "its source is not the one that the migrations give it".into()));
            }
            Some(found) if found.columns != expected.columns => {
                let differs = |(own, other): &(_, _)| own != other;
                let at = found.columns.iter().zip(&expected.columns).find(differs);
                let column = at.map_or("one that is missing, or too many", |(own, _)| &own.0);
                findings.push(finding(name, format!("its columns differ: {column}")));
            }
            Some(_) => {}
        }
    }
    Ok(findings)
}

async fn read(store: &Store) -> Result<BTreeMap<String, Defined>, VerifyError> {
    let tables = store.query(
        "SELECT name, if(as_select = '', engine, as_select) AS source FROM system.tables \
         WHERE database = currentDatabase() AND NOT startsWith(name, '.inner')",
    );
    let columns = store.query(
        "SELECT table, name, type AS kind, toString(default_kind) AS default_kind, default_expression \
         FROM system.columns WHERE database = currentDatabase() ORDER BY table, position",
    );
    let own = format!("{}.", store.database());
    let mut defined = BTreeMap::new();
    for Table { name, source } in store.rows::<Table>(tables).await? {
        let source = source.replace(&own, "");
        defined.insert(name, Defined { source, columns: Vec::new() });
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
