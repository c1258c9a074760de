//! File systems of a test's own: in memory, or in an image behind a loop device.
//!
//! They are mounted in a mount namespace of the calling thread and what it starts. When the last of these ends, however it
//! does, the kernel takes the mounts away, and with them the loop devices.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// From here on, what this thread mounts is seen by itself and by what it starts from now on, and by nobody else.
pub fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)
        .context("a mount namespace of our own needs CAP_SYS_ADMIN; run this as root")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")
}

/// A mounted file system, unmounted when it is dropped.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// One in memory, of so many bytes.
    pub fn in_memory(at: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let options = format!("size={bytes},mode=0755");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mounting a tmpfs at {}", at.display()))?;
        Ok(Self(at.to_owned()))
    }

    /// The one in an image. The loop device goes with it.
    pub fn image(image: &Path, at: &Path) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        Ok(Self(at.to_owned()))
    }

    pub fn at(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, since a program under test may still have a file open; its end is the mount's.
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{} cannot be unmounted: {error}", self.0.display());
        }
    }
}

/// Makes an image with an empty ext4 in it: small blocks and a small journal, so that it is quickly copied.
pub fn ext4(image: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(image)?.set_len(bytes)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "1024", "-J", "size=1"]).arg(image))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Copies an image as it is at one moment, while somebody writes to it through its loop device: the file system that the
/// image's file lies in is frozen meanwhile. What a device has not been given by then is not in the copy, as after a power cut.
#[derive(Debug)]
pub struct Snapshot {
    child: Child,
    told: BufReader<ChildStdout>,
}

/// Freezes `$1`, copies `$2` to `$3` as soon as it is told to, or when its starter has died, and lets writes go on.
const FREEZE: &str = "fsfreeze -f \"$1\" || exit 1; echo frozen; read -r go; cp --sparse=always \"$2\" \"$3\"; kept=$?; fsfreeze -u \"$1\" && exit $kept";

impl Snapshot {
    /// Returns when nothing reaches the image any more.
    pub fn begin(holds_image: &Mounted, image: &Path, copy: &Path) -> Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", FREEZE, "sh"])
            .args([holds_image.at(), image, copy])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting fsfreeze")?;
        let mut told = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        told.read_line(&mut line)?;
        if line != "frozen\n" {
            bail!("{} cannot be frozen ({})", holds_image.at().display(), child.wait()?);
        }
        Ok(Self { child, told })
    }

    /// Makes the copy, and lets writes go on.
    pub fn take(mut self) -> Result<()> {
        if let Some(mut stdin) = self.child.stdin.take() {
            stdin.write_all(b"go\n")?;
        }
        let mut rest = String::new();
        self.told.read_line(&mut rest)?;
        let exit = self.child.wait()?;
        ensure!(exit.success(), "the copy failed ({exit})");
        Ok(())
    }
}
