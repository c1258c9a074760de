//! A store and a collector on a folder of their own.

use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use weir_tests::places::{Setup, binary, fresh_folder};
use weir_tests::{Collector, Store};

pub struct World {
    pub collector: Collector,
    pub store: Store,
    pub folder: TempDir,
}

/// A running store alone, its database still empty.
pub fn store() -> (Store, TempDir) {
    let setup = Setup::locate().expect("a setup folder");
    let engine = setup.engine();
    assert!(engine.exists(), "{} is missing: run `cargo xtask test`, which sets it up", engine.display());
    let folder = fresh_folder("collector").expect("a folder");
    (Store::start(&setup, folder.path(), false).expect("a store"), folder)
}

impl World {
    pub fn start() -> Self {
        let (store, folder) = store();
        let collector = Collector::start(&store, folder.path(), "info", false).expect("a collector");
        Self { collector, store, folder }
    }

    /// For agents of other hosts, too.
    pub fn start_for_others() -> Self {
        let (store, folder) = store();
        let collector =
            Collector::start_for_others(&store, folder.path(), "info", false).expect("a collector");
        Self { collector, store, folder }
    }

    /// Rows of a question, each an object.
    pub fn sql(&self, question: &str) -> Vec<Value> {
        self.collector.sql(question).expect(question)
    }

    /// The one number that a question gives.
    pub fn number(&self, question: &str) -> u64 {
        let rows = self.sql(question);
        let number = rows.first().and_then(|row| row.as_object()?.values().next()?.as_u64());
        number.unwrap_or_else(|| panic!("{question}: {rows:?}"))
    }

    /// The store, as its operator reaches it.
    pub fn operator(&self) -> weir_collector::store::Store {
        let config = weir_collector::config::Config::read(self.collector.config()).expect("a configuration");
        weir_collector::store::Store::new(&config.store)
    }

    /// A statement of the store's operator: the collector's own command line only reads.
    pub async fn execute(&self, sql: &str) {
        let store = self.operator();
        store.execute(store.query_raw(sql)).await.expect(sql);
    }

    /// `weir-collector` with arguments: its exit code, stdout and stderr.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(self.collector.attempt(arguments).expect("weir-collector"))
    }
}

/// `weir-collector` with a configuration's text.
pub fn run_with(folder: &TempDir, config: &str, arguments: &[&str]) -> (i32, String, String) {
    let path = folder.path().join("other.toml");
    std::fs::write(&path, config).expect("a configuration");
    let mut command = Command::new(binary("weir-collector").expect("weir-collector"));
    command.arg("--config").arg(&path).args(arguments);
    told(command.output().expect("weir-collector runs"))
}

pub fn told(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}
