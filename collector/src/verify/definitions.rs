//! Definitions: what tables and views are, against what the migrations make. They are made anew in a database of their own, which
//! is dropped again, and ClickHouse tells of both: a view that leaves rows out has a finding, and so has one that an insert no
//! longer fills its table by. Where they cannot be made anew, nothing is known of any of them, and that is a finding too: what was
//! not looked at must never pass for sound.

mod differing;

use std::collections::BTreeMap;

use clickhouse::Row;
use differing::{Defined, differing, finding};
use serde::Deserialize;
use weir_core::evidence::verify::Finding;

use super::VerifyError;
use crate::store::Store;
use crate::store::migrate::{MIGRATIONS, MigrateError, migrate};

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
    let mut findings = differing(store.database(), &defined?, &read(store, store.database()).await?);
    if let Err(error) = dropped {
        let why = format!("checked, but the database that was made for it is there still: drop it ({error})");
        findings.push(finding(scratch.database(), why));
    }
    Ok(findings)
}

/// What a database defines, with `called` for its own name. That is for the one made here: what was found is compared to the
/// letter, since whatever were left out of it could stand in the middle of a word.
async fn read(store: &Store, called: &str) -> Result<BTreeMap<String, Defined>, VerifyError> {
    let tables = store.query_raw(
        "SELECT name, engine, \
                if(as_select = '', extract(engine_full, '(?s) (?:PARTITION|ORDER) BY .*?(?: SETTINGS |$)'), as_select) AS source, \
                if(engine = 'Distributed', \
                   arrayStringConcat(extractGroups(engine_full, '^Distributed.[^,]+, .([a-zA-Z0-9_]+)., .([a-zA-Z0-9_]+).'), '.'), \
                   extract(create_table_query, '^CREATE MATERIALIZED VIEW [^ ]+ TO ([^ ]+)')) AS target \
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
