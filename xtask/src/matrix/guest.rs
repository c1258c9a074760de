//! One kernel, booted in an emulator, and what it says of its tests.
//!
//! In: a kernel and its initramfs. Out: a verdict for each test. A test has passed when its process ended well *and* said that
//! it ran one test and that this passed; whatever else happens, silence included, is a failure.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weir_tests::daemon::tail;

use crate::progress::say;
use crate::setup::kernels::Fetched;

/// Longer than a kernel takes to its first process on a machine that does much else.
const BOOT: Duration = Duration::from_secs(180);
/// What a test may take inside, in seconds; the emulator is some ten times slower than the machine.
pub const TEST_LIMIT_S: u64 = 240;
/// Silence that ends a boot: more than any one test may take.
const SILENCE: Duration = Duration::from_secs(TEST_LIMIT_S + 60);

/// Loud enough for a kernel's own warnings. The timer check and the watchdogs fail when the emulator gets no processor in time.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 no_timer_check nowatchdog";
/// What a kernel says when it has gone wrong.
const KERNEL_FAULTS: [&str; 6] =
    ["Kernel panic", "Oops: ", "BUG: ", "WARNING: ", "general protection fault", "Out of memory: "];

/// What became of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed {
        millis: u64,
    },
    Failed {
        millis: u64,
        why: String,
    },
    /// The kernel died, hung, or never came so far.
    NotRun {
        why: String,
    },
    LeftOut {
        reason: &'static str,
    },
}

/// What one boot came to.
#[derive(Debug)]
pub struct Boot {
    /// One for each test that was asked for.
    pub outcomes: Vec<Outcome>,
    /// What went wrong beside the tests.
    pub faults: Vec<String>,
    pub boot_seconds: Option<f64>,
    pub took: Duration,
}

/// Boots, and waits until every test has ended or nothing more can come.
pub fn boot(kernel: &Fetched, initramfs: &Path, titles: &[String], console: &Path) -> Result<Boot> {
    let _ = std::fs::remove_file(console);
    let _ = std::fs::remove_file(console);
    // So that none goes on emulating for a caller who is gone.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    // Never with the machine's own virtualisation: it is not everywhere, and this must be the same everywhere.
    qemu.args([
        "-accel",
        "tcg",
        "-cpu",
        kernel.processor,
        "-m",
        "1024",
        "-smp",
        "1",
        "-nodefaults",
        "-nic",
        "none",
    ]);
    qemu.args(["-display", "none", "-monitor", "none", "-no-reboot", "-append", COMMAND_LINE, "-kernel"]);
    qemu.arg(&kernel.image).arg("-initrd").arg(initramfs);
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    let began = Instant::now();
    let mut running = Emulator(
        qemu.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting qemu-system-x86_64 (Debian: the package qemu-system-x86)")?,
    );
    let lines = lines_of(&mut running)?;
    let mut told = Told::new(kernel, titles);
    let mut patience = BOOT;
    let ended = loop {
        match lines.recv_timeout(patience) {
            Ok(line) => {
                told.line(&line);
                patience = SILENCE;
            }
            Err(RecvTimeoutError::Disconnected) => break None,
            Err(RecvTimeoutError::Timeout) => {
                break Some(format!("nothing was heard of it for {} s", patience.as_secs()));
            }
        }
    };
    drop(running);
    Ok(told.end(ended, console, began.elapsed()))
}

/// Ends with its owner.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines_of(emulator: &mut Emulator) -> Result<Receiver<String>> {
    let output = emulator.0.stdout.take().context("the emulator has no output")?;
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            if send.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                break;
            }
        }
    });
    Ok(receive)
}

/// What was heard so far.
struct Told<'a> {
    kernel: &'a Fetched,
    titles: &'a [String],
    ready: Option<f64>,
    running: Option<(usize, f64)>,
    said: Vec<String>,
    outcomes: BTreeMap<usize, Outcome>,
    faults: Vec<String>,
    done: bool,
}

impl<'a> Told<'a> {
    fn new(kernel: &'a Fetched, titles: &'a [String]) -> Self {
        Self {
            kernel,
            titles,
            ready: None,
            running: None,
            said: Vec::new(),
            outcomes: BTreeMap::new(),
            faults: Vec::new(),
            done: false,
        }
    }

    /// One line of the second serial line, see `init.sh`.
    fn line(&mut self, line: &str) {
        if let Some(said) = line.strip_prefix('|') {
            self.said.push(said.to_owned());
            return;
        }
        let Some(told) = line.strip_prefix('@') else { return };
        if self.understand(told).is_none() {
            self.faults.push(format!("not understood: {line}"));
        }
    }

    fn understand(&mut self, told: &str) -> Option<()> {
        let (word, rest) = told.split_once(' ').unwrap_or((told, ""));
        match word {
            "fault" => self.faults.push(rest.to_owned()),
            "ready" => {
                let (release, seconds) = rest.split_once(' ')?;
                if release != self.kernel.release {
                    let wanted = &self.kernel.release;
                    self.faults.push(format!("the kernel that booted is {release}, not {wanted}"));
                }
                self.ready = Some(seconds.parse().ok()?);
                say(format_args!("{}: {release} is up after {seconds} s", self.kernel.name));
            }
            "begin" => {
                let (number, since) = rest.split_once(' ')?;
                self.running = Some((number.parse().ok()?, since.parse().ok()?));
                self.said.clear();
            }
            "end" => self.end_of_test(rest)?,
            "done" => self.done = true,
            _ => return None,
        }
        Some(())
    }

    fn end_of_test(&mut self, rest: &str) -> Option<()> {
        let mut words = rest.splitn(4, ' ');
        let number: usize = words.next()?.parse().ok()?;
        let until: f64 = words.next()?.parse().ok()?;
        let code: i32 = words.next()?.parse().ok()?;
        let result = words.next().unwrap_or_default();
        let title = self.titles.get(number)?;
        let (begun, since) = self.running.take()?;
        if begun != number || self.outcomes.contains_key(&number) {
            return None;
        }
        let millis = ((until - since).max(0.0) * 1000.0) as u64;
        let outcome = if code == 0 && result.starts_with("test result: ok. 1 passed; 0 failed; 0 ignored;") {
            Outcome::Passed { millis }
        } else {
            Outcome::Failed { millis, why: self.why(code, result) }
        };
        let word = if matches!(outcome, Outcome::Passed { .. }) { "ok" } else { "FAILED" };
        let (count, seconds) = (self.titles.len(), until - since);
        say(format_args!("{}: {}/{count} {word} {title} ({seconds:.1} s)", self.kernel.name, number + 1));
        self.outcomes.insert(number, outcome);
        Some(())
    }

    fn why(&mut self, code: i32, result: &str) -> String {
        let said = std::mem::take(&mut self.said).join("\n");
        match (code, result) {
            // 128 + SIGKILL
            (137, "") => format!("it had not ended after {TEST_LIMIT_S} s, or was killed\n{said}"),
            (0, _) => format!("its process ended well, yet said {result:?}\n{said}"),
            _ => format!("its process ended with {code}\n{said}"),
        }
    }

    /// Draws the conclusion: what was not heard of did not pass.
    fn end(mut self, ended: Option<String>, console: &Path, took: Duration) -> Boot {
        let heard = std::fs::read(console).unwrap_or_default();
        let heard = String::from_utf8_lossy(&heard);
        let complaints: Vec<&str> = heard
            .lines()
            .map(str::trim)
            .filter(|line| KERNEL_FAULTS.iter().any(|f| line.contains(f)))
            .collect();
        for complaint in complaints.iter().take(3) {
            self.faults.push(format!("the kernel said: {complaint}"));
        }
        if !self.done {
            let how = ended.unwrap_or_else(|| "the emulator ended".to_owned());
            let where_to = match (self.ready, self.running) {
                (None, _) => "before it was up".to_owned(),
                (Some(_), Some((number, _))) => {
                    let title = self.titles.get(number).map_or("?", String::as_str);
                    format!("in the test {title}")
                }
                (Some(_), None) => "between two tests".to_owned(),
            };
            self.faults.push(format!("{how}, {where_to}; its console ends:\n{}", tail(console, 15)));
        }
        let why = "the kernel did not come so far";
        let outcomes = (0..self.titles.len())
            .map(|number| {
                self.outcomes.remove(&number).unwrap_or_else(|| Outcome::NotRun { why: why.to_owned() })
            })
            .collect();
        Boot { outcomes, faults: self.faults, boot_seconds: self.ready, took }
    }
}

/// Where a kernel's console is kept.
pub fn console(logs: &Path, kernel: &Fetched) -> PathBuf {
    logs.join(format!("kernel-{}.console", kernel.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot_that_said(lines: &[&str], console: &str) -> Boot {
        let kernel = Fetched {
            name: "6.1",
            release: "6.1.0-50".to_owned(),
            version: String::new(),
            image: PathBuf::new(),
            modules: PathBuf::new(),
            processor: "max",
        };
        let titles = ["kernel::a".to_owned(), "kernel::b".to_owned()];
        let mut told = Told::new(&kernel, &titles);
        lines.iter().for_each(|line| told.line(line));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), console).unwrap();
        told.end(None, file.path(), Duration::ZERO)
    }

    const OK: &str =
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 25 filtered out; finished in 0.1s";

    fn whole(first_end: &str) -> Boot {
        let lines = ["@ready 6.1.0-50 2.19", "@begin 0 2.20", "|it said this", first_end, "@begin 1 4.00"];
        let last = format!("@end 1 4.50 0 {OK}");
        boot_that_said(&[lines.as_slice(), &[&last, "@done"]].concat(), "")
    }

    #[test]
    fn a_test_that_ends_well_and_says_so_has_passed() {
        let boot = whole(&format!("@end 0 3.20 0 {OK}"));
        assert_eq!(boot.outcomes, [Outcome::Passed { millis: 1000 }, Outcome::Passed { millis: 500 }]);
        assert!(boot.faults.is_empty(), "{:?}", boot.faults);
    }

    #[test]
    fn a_test_that_says_less_has_not_passed() {
        let none_ran = OK.replace("1 passed", "0 passed");
        let ignored = "test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 25 filtered out";
        let ends = [
            "@end 0 3.20 0 ".to_owned(),
            format!("@end 0 3.20 0 {none_ran}"),
            format!("@end 0 3.20 0 {ignored}"),
            format!("@end 0 3.20 101 {OK}"),
            "@end 0 3.20 137 ".to_owned(),
        ];
        for end in ends {
            let boot = whole(&end);
            let Some(Outcome::Failed { why, .. }) = boot.outcomes.first() else { panic!("{end}: {boot:?}") };
            assert!(why.contains("it said this"), "{why}");
            assert_eq!(boot.outcomes.get(1), Some(&Outcome::Passed { millis: 500 }));
        }
    }

    #[test]
    fn a_kernel_that_dies_fails_what_it_ran_and_what_it_did_not_come_to() {
        let panic = "[    9.1] Kernel panic - not syncing: Fatal exception\n";
        let boot = boot_that_said(&["@ready 6.1.0-50 2.19", "@begin 0 2.20"], panic);
        assert!(boot.outcomes.iter().all(|outcome| matches!(outcome, Outcome::NotRun { .. })), "{boot:?}");
        let faults = boot.faults.join("\n");
        assert!(faults.contains("Kernel panic") && faults.contains("in the test kernel::a"), "{faults}");
    }

    #[test]
    fn a_boot_without_a_word_is_a_failure() {
        let boot = boot_that_said(&[], "");
        assert_eq!(boot.outcomes.len(), 2);
        assert!(boot.faults.concat().contains("before it was up"), "{boot:?}");
    }

    #[test]
    fn another_kernel_than_the_one_asked_for_is_a_fault() {
        let boot = boot_that_said(&["@ready 6.18.0 2.19", "@done"], "");
        assert!(boot.faults.concat().contains("6.18.0"), "{boot:?}");
    }

    #[test]
    fn a_last_word_that_never_came_is_a_fault_though_all_tests_passed() {
        let end = format!("@end 0 3.20 0 {OK}");
        let boot = boot_that_said(&["@ready 6.1.0-50 2.19", "@begin 0 2.20", &end], "");
        assert!(matches!(boot.outcomes.first(), Some(Outcome::Passed { .. })));
        assert!(!boot.faults.is_empty());
    }

    #[test]
    fn what_a_test_prints_is_not_taken_for_our_own_words() {
        let boot = boot_that_said(&["@ready 6.1.0-50 2.19", &format!("|@end 0 3.20 0 {OK}")], "");
        assert!(matches!(boot.outcomes.first(), Some(Outcome::NotRun { .. })));
    }
}
