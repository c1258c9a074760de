//! What tables and views of a database are and what they should be come in; what differs goes out. Pure.
//!
//! On a cluster a table stands under its own name as a Distributed one, and what has the rows is `<name>_local` on each shard, replicated
//! ([`crate::store::cluster`]); a view that inserts run is `<name>_local`, too, between such tables. It is judged by these then: those
//! of the server that was asked.

use std::collections::BTreeMap;

use weir_core::evidence::verify::{Finding, Kind};

/// What one table or view is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Defined {
    pub engine: String,
    /// A view's question; of a table what it is divided and ordered by, and when rows of it go by themselves.
    pub source: String,
    /// The table that a materialized view fills, or that a Distributed one is over, with its database.
    pub target: String,
    /// Names, types, and how each is made where an insert does not say.
    pub columns: Vec<(String, String, String, String)>,
}

type Definitions = BTreeMap<String, Defined>;

/// What is not as expected in this database.
pub(super) fn differing(database: &str, expected: &Definitions, found: &Definitions) -> Vec<Finding> {
    let one = |(name, one): (&String, &Defined)| {
        let local = format!("{name}_local");
        let why = match (found.get(name), found.get(&local)) {
            (Some(over), Some(own)) if is_table(one) && over.engine == "Distributed" => {
                over_shards(database, &local, one, over).or_else(|| why(&replicated(one), own))
            }
            (None, Some(own)) if one.engine == "MaterializedView" => {
                why(&on_a_shard(database, one, expected), own)
            }
            (Some(own), _) => why(one, own),
            (None, _) => Some("it is not there".to_owned()),
        };
        why.map(|why| finding(name, why))
    };
    expected.iter().filter_map(one).collect()
}

fn is_table(one: &Defined) -> bool {
    one.engine.ends_with("MergeTree")
}

fn why(expected: &Defined, found: &Defined) -> Option<String> {
    let other = |what: &str| Some(format!("{what} not the one that the migrations give it"));
    if found.engine != expected.engine {
        other("its engine is")
    } else if found.source != expected.source {
        other("its source is")
    } else if found.target != expected.target {
        other("the table that it fills is")
    } else if found.columns != expected.columns {
        let differs = |(own, other): &(_, _)| own != other;
        let at = found.columns.iter().zip(&expected.columns).find(differs);
        Some(columns(at.map(|(own, _)| &*own.0)))
    } else {
        None
    }
}

fn columns(which: Option<&str>) -> String {
    format!("its columns differ: {}", which.unwrap_or("one that is missing, or too many"))
}

/// A Distributed table is over its own local ones, and shows their columns.
fn over_shards(database: &str, local: &str, expected: &Defined, over: &Defined) -> Option<String> {
    if over.target != format!("{database}.{local}") {
        return Some("it is over another table than its own on each shard".to_owned());
    }
    let shown = |one: &Defined| -> Vec<(String, String)> {
        one.columns.iter().map(|(name, kind, ..)| (name.clone(), kind.clone())).collect()
    };
    (shown(over) != shown(expected)).then(|| columns(None))
}

/// The table that stands on a shard.
fn replicated(expected: &Defined) -> Defined {
    Defined { engine: format!("Replicated{}", expected.engine), ..expected.clone() }
}

/// The view that stands on a shard, between the tables there.
fn on_a_shard(database: &str, expected: &Defined, all: &Definitions) -> Defined {
    let mut local = expected.clone();
    for (name, _) in all.iter().filter(|(_, one)| is_table(one)) {
        let table = format!("{database}.{name}");
        local.source = whole_words(&local.source, &table);
        if local.target == table {
            local.target.push_str("_local");
        }
    }
    local
}

/// With `_local` behind each place where this name stands, and not only the beginning of another.
fn whole_words(text: &str, name: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once(name) {
        out.push_str(before);
        out.push_str(name);
        if !behind.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            out.push_str("_local");
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

pub(super) fn finding(what: &str, detail: String) -> Finding {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table(engine: &str, target: &str) -> Defined {
        Defined {
            engine: engine.into(),
            source: " ORDER BY (origin, seq)".into(),
            target: target.into(),
            columns: vec![("origin".into(), "String".into(), String::new(), String::new())],
        }
    }

    fn view(engine: &str, source: &str, target: &str) -> Defined {
        Defined { engine: engine.into(), source: source.into(), target: target.into(), ..Defined::default() }
    }

    fn named(all: &[(&str, Defined)]) -> Definitions {
        all.iter().map(|(name, one)| ((*name).to_owned(), one.clone())).collect()
    }

    fn expected() -> Definitions {
        named(&[
            ("events", table("MergeTree", "")),
            ("held", table("MergeTree", "")),
            ("filling", view("MaterializedView", "SELECT origin FROM weir.events", "weir.held")),
            ("flows", view("View", "SELECT origin FROM weir.events", "")),
        ])
    }

    fn cluster() -> Definitions {
        let over = |local: &str| Defined { source: String::new(), ..table("Distributed", local) };
        named(&[
            ("events", over("weir.events_local")),
            ("events_local", table("ReplicatedMergeTree", "")),
            ("held", over("weir.held_local")),
            ("held_local", table("ReplicatedMergeTree", "")),
            (
                "filling_local",
                view("MaterializedView", "SELECT origin FROM weir.events_local", "weir.held_local"),
            ),
            ("flows", view("View", "SELECT origin FROM weir.events", "")),
        ])
    }

    fn found(in_it: &Definitions) -> Vec<String> {
        differing("weir", &expected(), in_it).into_iter().map(|one| one.what).collect()
    }

    #[test]
    fn a_cluster_has_what_one_server_has() {
        assert_eq!(found(&expected()), Vec::<String>::new());
        assert_eq!(found(&cluster()), Vec::<String>::new());
        assert_eq!(found(&Definitions::new()), ["events", "filling", "flows", "held"]);
    }

    #[test]
    fn what_is_other_on_a_cluster_is_named() {
        let other = |name: &str, one: Option<Defined>| {
            let mut other = cluster();
            other.remove(name);
            other.extend(one.map(|one| (name.to_owned(), one)));
            found(&other)
        };
        assert_eq!(other("events_local", None), ["events"]);
        assert_eq!(other("events_local", Some(table("MergeTree", ""))), ["events"]);
        assert_eq!(other("events", Some(table("Distributed", "weir.held_local"))), ["events"]);
        assert_eq!(other("filling_local", None), ["filling"]);
        for (source, target) in [
            ("SELECT origin FROM weir.events", "weir.held_local"),
            ("SELECT origin FROM weir.events_local WHERE 0", "weir.held_local"),
            ("SELECT origin FROM weir.events_local", "weir.other"),
        ] {
            let one = view("MaterializedView", source, target);
            assert_eq!(other("filling_local", Some(one)), ["filling"], "{source} {target}");
        }
        let mut fewer = table("Distributed", "weir.events_local");
        fewer.columns.clear();
        assert_eq!(other("events", Some(fewer)), ["events"]);
    }
}
