//! Where the engine is.

use std::path::{Path, PathBuf};

/// The engine's file name, as its makers give it.
const FILE_NAME: &str = "libchdb.so";
/// Where a package puts it.
const INSTALLED: &str = "/usr/lib/weir/libchdb.so";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ClickHouse's engine (libchdb.so) is missing; looked at {}; let `cargo xtask demo` set it up, or name it with --engine or WEIR_ENGINE",
    listed(looked_at)
)]
pub struct EngineMissing {
    looked_at: Vec<PathBuf>,
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The file that `named` (by flag or variable) gives, and no other; else the first that is there.
pub fn engine(named: Option<&Path>) -> Result<PathBuf, EngineMissing> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(FILE_NAME)));
    let looked_at = match named.filter(|named| !named.as_os_str().is_empty()) {
        Some(named) => vec![named.to_owned()],
        None => beside.into_iter().chain([PathBuf::from(INSTALLED)]).collect(),
    };
    match looked_at.iter().find(|path| path.is_file()) {
        // The loader takes a name without a slash for one of the system's libraries.
        Some(found) => Ok(found.canonicalize().unwrap_or_else(|_| found.clone())),
        None => Err(EngineMissing { looked_at }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_engine_is_the_only_one_looked_at() {
        let error =
            engine(Some(Path::new("/nonexistent/libchdb.so"))).expect_err("it is not there").to_string();
        assert!(error.contains("looked at /nonexistent/libchdb.so; let `cargo xtask demo`"), "{error}");
    }

    #[test]
    fn without_a_name_all_places_are_told() {
        let error = engine(None).expect_err("no engine beside the tests").to_string();
        assert!(error.contains("deps/libchdb.so, /usr/lib/weir/libchdb.so"), "{error}");
    }
}
