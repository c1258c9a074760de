//! Debian's packages out of suites that this machine need not have, with an apt state of our own.
//!
//! In: names of suites and packages. Out: packages, unpacked into a folder. It must never change what is installed here,
//! nor this machine's own lists.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{logged, output};

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with lists and a cache of its own.
#[derive(Debug)]
pub struct Apt<'a> {
    name: &'a str,
    state: PathBuf,
    log: &'a Path,
}

impl<'a> Apt<'a> {
    /// Fetches the lists of these suites into `state`. Messages begin with `name`.
    pub fn with_suites(name: &'a str, state: PathBuf, suites: &[&str], log: &'a Path) -> Result<Self> {
        std::fs::create_dir_all(state.join("lists/partial"))?;
        std::fs::create_dir_all(state.join("archives/partial"))?;
        let mirror = mirror(name, log)?;
        let lines = suites.iter().map(|suite| format!("deb [signed-by={KEYS}] {mirror} {suite} main\n"));
        std::fs::write(state.join("sources.list"), lines.collect::<String>())?;
        let apt = Self { name, state, log };
        logged(name, apt.command("apt-get").arg("update"), log)?;
        Ok(apt)
    }

    /// Downloads one package and unpacks it into a folder. `package` may name a version: `name=version`.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let download = self.state.join("download");
        let _ = std::fs::remove_dir_all(&download);
        std::fs::create_dir_all(&download)?;
        let mut apt = self.command("apt-get");
        logged(self.name, apt.current_dir(&download).arg("download").arg(package), self.log)?;
        let deb = std::fs::read_dir(&download)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded no {package}"))?;
        logged(self.name, Command::new("dpkg").arg("-x").arg(&deb).arg(into), self.log)?;
        Ok(std::fs::remove_dir_all(&download)?)
    }

    /// The newest version of a package in these suites, whatever apt's own preference among them.
    pub fn newest(&self, package: &str) -> Result<String> {
        let known = output(self.command("apt-cache").args(["madison", package]))?;
        let mut newest: Option<&str> = None;
        for version in known.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim) {
            if newest.is_none_or(|other| is_newer(version, other)) {
                newest = Some(version);
            }
        }
        Ok(newest.with_context(|| format!("Debian has no {package} in these suites"))?.to_owned())
    }

    /// What a package depends on, by name, the first of each choice, with the version where one is demanded.
    pub fn depends(&self, package: &str) -> Result<Vec<(String, Option<String>)>> {
        let told = output(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let line = told.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        Ok(dependencies(line))
    }

    fn command(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.current_dir(&self.state);
        apt.arg("-o").arg(format!("Dir::Etc::SourceList={}", self.state.join("sources.list").display()));
        apt.args(["-o", "Dir::Etc::SourceParts=-", "-o", "APT::Sandbox::User=root"]);
        apt.arg("-o").arg(format!("Dir::State::Lists={}", self.state.join("lists").display()));
        apt.arg("-o").arg(format!("Dir::Cache={}", self.state.display()));
        apt
    }
}

/// deb-control(5): `a (= 1), b | c (>= 2)`.
fn dependencies(line: &str) -> Vec<(String, Option<String>)> {
    let first_of_each = line.split(',').filter_map(|choices| choices.split('|').next()).map(str::trim);
    first_of_each
        .filter(|dependency| !dependency.is_empty())
        .map(|dependency| match dependency.split_once(" (") {
            Some((name, demand)) => {
                let exact = demand.strip_prefix("= ").map(|version| version.trim_end_matches(')').to_owned());
                (name.to_owned(), exact)
            }
            None => (dependency.to_owned(), None),
        })
        .collect()
}

fn is_newer(version: &str, other: &str) -> bool {
    let mut dpkg = Command::new("dpkg");
    dpkg.args(["--compare-versions", version, "gt", other]).status().is_ok_and(|status| status.success())
}

/// Where this machine gets Debian from.
fn mirror(name: &str, log: &Path) -> Result<String> {
    if let Some(mirror) = known_mirror()? {
        return Ok(mirror);
    }
    // A machine that has just been made has no lists yet.
    logged(name, Command::new("apt-get").arg("update"), log)?;
    match known_mirror()? {
        Some(mirror) => Ok(mirror),
        None => bail!("apt knows no Debian mirror: name one in /etc/apt/sources.list"),
    }
}

fn known_mirror() -> Result<Option<String>> {
    let format = "$(ORIGIN) $(LABEL) $(REPO_URI)";
    let known =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    Ok(known.lines().find_map(|line| line.strip_prefix("Debian Debian ")).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_dependencies_is_read() {
        let line = "linux-base (>= 4.3), dracut | initramfs-tools (>= 0.120), linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)";
        let none = |name: &str| (name.to_owned(), None);
        let image = ("linux-image-6.1.0-50-cloud-amd64".to_owned(), Some("6.1.176-1".to_owned()));
        assert_eq!(dependencies(line), [none("linux-base"), none("dracut"), image]);
        assert!(dependencies("").is_empty());
    }
}
