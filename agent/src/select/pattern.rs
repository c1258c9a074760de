//! Paths by pattern: `*` and `?` within one part of a path, `**` for any number of parts.

use std::path::{Path, PathBuf};

use weir_core::policy::glob;

/// A pattern for the paths of cgroups, relative to the hierarchy's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<String>,
    text: String,
}

impl Pattern {
    /// Absolute patterns lie below `mount`; one without a slash is a folder's name at any depth. None: it lies elsewhere.
    pub fn new(text: &str, mount: &str) -> Option<Self> {
        let relative = match text.strip_prefix('/') {
            None => text,
            Some(_) => text.strip_prefix(mount).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
        };
        let mut parts: Vec<String> =
            relative.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if !text.contains('/') {
            parts.insert(0, "**".into());
        }
        Some(Self { parts, text: text.to_owned() })
    }

    pub fn matches(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        parts_match(&self.parts, &path)
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Whether it holds nothing that stands for something else.
pub fn is_literal(pattern: &str) -> bool {
    !pattern.contains(['*', '?'])
}

fn parts_match(pattern: &[String], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "**" => {
            (0..=path.len()).any(|skip| parts_match(rest, path.get(skip..).unwrap_or_default()))
        }
        (Some((first, rest)), Some((part, below))) => glob(first, part) && parts_match(rest, below),
        _ => false,
    }
}

/// The files that an absolute pattern stands for now.
pub fn files(pattern: &str) -> Vec<PathBuf> {
    const MOST: usize = 4096;
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        if is_literal(part) {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        found = found.iter().flat_map(|folder| entries(folder, part)).take(MOST).collect();
    }
    found.retain(|path| path.is_file());
    found
}

fn entries(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| glob(pattern, name)))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_relative_absolute_or_a_name_alone() {
        let matches = |pattern: &str, path: &str| {
            Pattern::new(pattern, "/sys/fs/cgroup").is_some_and(|pattern| pattern.matches(path))
        };
        for (pattern, path) in [
            ("system.slice/a.service", "system.slice/a.service"),
            ("/sys/fs/cgroup/system.slice/a.service", "system.slice/a.service"),
            ("*/actions.runner.*.service", "system.slice/actions.runner.acme.service"),
            ("actions.runner.*.service", "system.slice/actions.runner.acme.service"),
            ("docker-*.scope", "docker-1.scope"),
            ("a/**/z", "a/z"),
            ("a/**/z", "a/b/c/z"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("system.slice/a.service", "user.slice/system.slice/a.service"),
            ("*/actions.runner.*.service", "actions.runner.acme.service"),
            ("system.slice/*", "system.slice/a/b"),
            ("/sys/fs/cgroups/a", "a"),
            ("/tmp/a", "a"),
            ("a.service", "a.service/below"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn executables_are_found_by_glob() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["1", "2"] {
            std::fs::create_dir_all(folder.path().join(version).join("bin")).unwrap();
            std::fs::write(folder.path().join(version).join("bin/runner"), "").unwrap();
        }
        let pattern = format!("{}/*/bin/run*", folder.path().display());
        let mut found = files(&pattern);
        found.sort();
        let expected = ["1", "2"].map(|version| folder.path().join(version).join("bin/runner"));
        assert_eq!(found, expected);
        assert_eq!(files("/nonexistent/*"), Vec::<PathBuf>::new());
    }
}
