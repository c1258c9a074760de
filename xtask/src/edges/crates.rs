//! The edges between crates that must not exist, by cargo's own graph: through any number of crates, but not for tests alone.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A crate, and the crates that must not be in its tree.
const RULES: [(&str, &[&str], &str); 7] = [
    ("weir-core", &["tokio", "aya", "rustls", "hyper", "mio"], "agent/core is pure"),
    (
        "weir",
        &["weir-collector", "clickhouse", "weir-store"],
        "the agent does not know the collector or ClickHouse",
    ),
    (
        "weir-collector",
        &["weir", "weir-ebpf", "aya", "weir-store"],
        "the collector shares agent/core alone with the agent",
    ),
    ("weir-ebpf", &["weir", "weir-core", "weir-store"], "the kernel programs stand alone"),
    (
        "weir-store",
        &["weir", "weir-core", "weir-collector", "clickhouse"],
        "the store is a ClickHouse like any other",
    ),
    (
        "weir-tests",
        &["weir", "weir-core", "weir-collector", "weir-store"],
        "the harness sees Weir as a user does",
    ),
    ("xtask", &["weir", "weir-core", "weir-collector", "weir-store"], "xtask sees Weir as a user does"),
];

/// The names of crates, each with those it depends on.
type Graph = BTreeMap<String, Vec<String>>;

/// The forbidden edges, each told with the way it goes.
pub fn check(workspace: &Path) -> Result<Vec<String>> {
    Ok(forbidden(&graph(workspace)?))
}

fn forbidden(graph: &Graph) -> Vec<String> {
    RULES
        .iter()
        .flat_map(|(from, to, says)| to.iter().map(move |to| (*from, *to, *says)))
        .filter_map(|(from, to, says)| {
            let way = way(graph, from, to)?;
            Some(format!("Cargo.toml of {from}: `{}`: {says}", way.join(" -> ")))
        })
        .collect()
}

/// The shortest way from one crate to another.
fn way(graph: &Graph, from: &str, to: &str) -> Option<Vec<String>> {
    let mut came: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = VecDeque::from([from]);
    while let Some(at) = next.pop_front() {
        for dependency in graph.get(at).into_iter().flatten() {
            if dependency == from || came.contains_key(dependency.as_str()) {
                continue;
            }
            came.insert(dependency, at);
            if dependency == to {
                let mut way = vec![to.to_owned()];
                let mut back = to;
                while let Some(&before) = came.get(back) {
                    way.insert(0, before.to_owned());
                    back = before;
                }
                return Some(way);
            }
            next.push_back(dependency);
        }
    }
    None
}

fn graph(workspace: &Path) -> Result<Graph> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1"])
        .current_dir(workspace)
        .output()
        .context("running `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    of_metadata(&serde_json::from_slice(&output.stdout)?)
        .context("the output of `cargo metadata` is not as expected")
}

fn of_metadata(metadata: &Value) -> Option<Graph> {
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()?
        .iter()
        .map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
        .collect::<Option<_>>()?;
    let mut graph = Graph::new();
    for node in metadata["resolve"]["nodes"].as_array()? {
        let edges = graph.entry((*names.get(node["id"].as_str()?)?).to_owned()).or_default();
        for dependency in node["deps"].as_array()? {
            let kinds = dependency["dep_kinds"].as_array()?;
            if kinds.iter().any(|kind| kind["kind"].as_str() != Some("dev")) {
                edges.push((*names.get(dependency["pkg"].as_str()?)?).to_owned());
            }
        }
    }
    Some(graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_crate_is_found_through_others() {
        let edges = [("weir-core", "regex"), ("regex", "tokio"), ("weir", "weir-core")];
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry(from.into()).or_default().push(to.into());
        }
        assert_eq!(
            forbidden(&graph),
            ["Cargo.toml of weir-core: `weir-core -> regex -> tokio`: agent/core is pure"]
        );
    }

    #[test]
    fn a_dependency_for_tests_alone_is_no_edge() {
        let metadata = serde_json::json!({
            "packages": [{"id": "a", "name": "weir"}, {"id": "b", "name": "clickhouse"}],
            "resolve": {"nodes": [
                {"id": "a", "deps": [{"pkg": "b", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "b", "deps": []},
            ]},
        });
        assert_eq!(forbidden(&of_metadata(&metadata).unwrap()), Vec::<String>::new());
    }
}
