//! A network namespace of the test's own, which lives as long as a process that sleeps in it, and cables between two.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait::until;

const DEADLINE: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Debug)]
pub struct Net {
    holder: Child,
}

impl Net {
    /// A new one, its loopback interface up as container runtimes have it.
    pub fn new() -> Result<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "setpriv", "--pdeathsig", "KILL", "sleep", "infinity"]);
        let holder = unshare.stdin(Stdio::null()).spawn().context("starting unshare")?;
        let net = Self { holder };
        let own = inode("/proc/self/ns/net")?;
        until("a process to be in its network namespace", DEADLINE, || {
            Ok((net.inode()? != own).then_some(()))
        })?;
        net.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(net)
    }

    /// The process that it lives by.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    pub fn inode(&self) -> Result<u64> {
        inode(&format!("/proc/{}/ns/net", self.pid()))
    }

    /// Where it can be entered.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// What a command is to begin with to run in there.
    pub fn enter(&self) -> Vec<OsString> {
        ["nsenter".into(), format!("--net={}", self.path()).into(), "--".into()].into()
    }

    /// What a command in there says.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let output = Command::new("nsenter").args(&self.enter()[1..]).args(command).output()?;
        let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{command:?} in a network namespace: {why}");
        Ok(said.into_owned())
    }

    /// A private network of this one and another: one cable, an IPv4 and an IPv6 address (with prefix length) on each end.
    pub fn connect(&self, own: [&str; 2], other: &Net, others: [&str; 2]) -> Result<()> {
        let there = other.pid().to_string();
        // Made in there, so that this machine never sees either end.
        self.run(&["ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &there])?;
        for (net, addresses) in [(self, own), (other, others)] {
            for address in addresses {
                // Without duplicate address detection, which takes a second; an IPv4 address has none.
                let v6: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
                net.run(&[&["ip", "address", "add", address, "dev", "cable"], v6].concat())?;
            }
            net.run(&["ip", "link", "set", "cable", "up"])?;
        }
        Ok(())
    }

    /// Whether the other end of its cable is still there.
    pub fn has_cable(&self) -> Result<bool> {
        Ok(self.run(&["ip", "-o", "link"])?.contains("cable"))
    }

    /// Ends the process that it lives by.
    pub fn end(mut self) -> Result<()> {
        self.holder.kill()?;
        self.holder.wait()?;
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // It may have been ended.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn inode(path: &str) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("looking at {path}"))?.ino())
}
