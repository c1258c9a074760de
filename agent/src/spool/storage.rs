//! Where a spool's bytes lie: one flat folder. [`Folder`] is the real one; [`super::faulty::Faulty`] loses power
//! and fails on command. It knows names and bytes, and nothing of segments.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Room is made by writes of so many bytes.
const ZEROS: usize = 64 << 10;

/// A folder of files. A name is one path component.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Takes the folder for one writer, for as long as the lock lives.
    fn lock(&self, name: &str) -> Result<Lock, LockError>;
    /// The names and lengths of all that is in it.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// All of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes a file, or empties it, to be appended to.
    fn create(&self, name: &str) -> io::Result<Box<dyn Append>>;
    /// Cuts a file to `len` bytes, makes that last, and gives it to be appended to.
    fn cut(&self, name: &str, len: u64) -> io::Result<Box<dyn Append>>;
    /// Makes a file that takes up `len` bytes of the disk.
    fn preallocate(&self, name: &str, len: u64) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Why others than the owner might read a file, if they might.
    fn exposure(&self, name: &str) -> io::Result<Option<String>>;
    /// Renames a file over any other of that name. An open file stays open.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes what was created, removed and renamed last.
    fn sync_folder(&self) -> io::Result<()>;
}

/// A file that is written front to back.
pub trait Append: Send {
    /// Writes all of `bytes`. After an error, any part of them may have been.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was appended last (fdatasync).
    fn sync_data(&mut self) -> io::Result<()>;
    /// Puts so many zeros behind what was appended; what is appended next takes their place. Where they are on the disk, a
    /// sync has bytes to write and nothing of the file system's own.
    fn make_room(&mut self, len: usize) -> io::Result<()>;
    /// Cuts off the room that is left.
    fn give_room_back(&mut self) -> io::Result<()>;
}

/// Holds the folder until it is dropped.
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Box<dyn Send + Sync>);

impl Lock {
    pub(super) fn new(held: impl Send + Sync + 'static) -> Self {
        Self(Box::new(held))
    }
}

/// Why a folder could not be locked.
#[derive(Debug)]
pub enum LockError {
    /// By whom it is locked, if the lock says.
    Held(Option<u32>),
    Io(io::Error),
}

/// A folder of the real file system, of mode 0700, its files 0600.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the folder, and makes it (and its parents) if it is not there.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, name: &str, new: bool) -> io::Result<File> {
        let path = self.path.join(name);
        OpenOptions::new().write(true).create(new).truncate(new).mode(0o600).open(path)
    }
}

impl Storage for Folder {
    fn lock(&self, name: &str) -> Result<Lock, LockError> {
        let path = self.path.join(name);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.take(20).read_to_string(&mut pid)?;
                return Err(LockError::Held(pid.trim().parse().ok()));
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        // The pid is only for whoever finds the folder locked; a full disk is no reason to stop here.
        let note = file.set_len(0).and_then(|()| file.rewind());
        let note = note.and_then(|()| writeln!(file, "{}", std::process::id()));
        note.unwrap_or_else(|error| tracing::warn!(%error, "cannot write the pid into the spool's lock"));
        Ok(Lock::new(file))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let entry = |entry: io::Result<std::fs::DirEntry>| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
        };
        std::fs::read_dir(&self.path)?.map(entry).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Append>> {
        Ok(Box::new(self.write(name, true)?))
    }

    fn cut(&self, name: &str, len: u64) -> io::Result<Box<dyn Append>> {
        let mut file = self.write(name, false)?;
        file.set_len(len)?;
        file.sync_all()?;
        file.seek(io::SeekFrom::Start(len))?;
        Ok(Box::new(file))
    }

    fn preallocate(&self, name: &str, len: u64) -> io::Result<()> {
        let file = self.write(name, true)?;
        let len = i64::try_from(len).map_err(io::Error::other)?;
        if len > 0 {
            nix::fcntl::posix_fallocate(&file, 0, len)?;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn exposure(&self, name: &str) -> io::Result<Option<String>> {
        let metadata = self.path.join(name).metadata()?;
        let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
        Ok(if mode & 0o077 != 0 {
            Some(format!("mode {mode:04o}"))
        } else if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
            Some(format!("it belongs to uid {uid}"))
        } else {
            None
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Append for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn make_room(&mut self, len: usize) -> io::Result<()> {
        let zeros = [0; ZEROS];
        let (mut at, mut left) = (self.stream_position()?, len);
        while left > 0 {
            let some = zeros.get(..left).unwrap_or(&zeros);
            self.write_all_at(some, at)?;
            (at, left) = (at + some.len() as u64, left - some.len());
        }
        Ok(())
    }

    fn give_room_back(&mut self) -> io::Result<()> {
        let end = self.stream_position()?;
        self.set_len(end)
    }
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        LockError::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_lock_on_a_folder_names_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("a/spool")).unwrap();
        let held = folder.lock("lock").ok().unwrap();
        let other = Folder::open(folder.path()).unwrap();
        assert!(matches!(other.lock("lock"), Err(LockError::Held(Some(pid))) if pid == std::process::id()));
        drop(held);
        assert!(other.lock("lock").is_ok());
    }

    #[test]
    fn nobody_else_can_read_the_folder_or_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("spool")).unwrap();
        folder.create("x").unwrap().append(b"abc").unwrap();
        folder.preallocate("y", 8192).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!((mode(&folder.path().join("x")), mode(&folder.path().join("y"))), (0o600, 0o600));
        let mut names = folder.list().unwrap();
        names.sort();
        assert_eq!(names, [("x".to_owned(), 3), ("y".to_owned(), 8192)]);
    }

    #[test]
    fn a_cut_file_and_a_renamed_one_read_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut file = folder.create("a").unwrap();
        file.append(b"abcdef").unwrap();
        folder.rename("a", "b").unwrap();
        file.append(b"gh").unwrap();
        file.sync_data().unwrap();
        folder.sync_folder().unwrap();
        assert_eq!(folder.read("b").unwrap(), b"abcdefgh");
        folder.cut("b", 2).unwrap().append(b"x").unwrap();
        assert_eq!(folder.read("b").unwrap(), b"abx");
        let mut roomy = folder.create("c").unwrap();
        roomy.append(b"ab").unwrap();
        roomy.make_room(ZEROS + 5).unwrap();
        roomy.append(b"cd").unwrap();
        assert_eq!(folder.read("c").unwrap(), [&b"abcd"[..], &[0; ZEROS + 3]].concat());
        roomy.give_room_back().unwrap();
        roomy.append(b"e").unwrap();
        assert_eq!(folder.read("c").unwrap(), b"abcde");
        folder.remove("c").unwrap();
        folder.remove("b").unwrap();
        assert!(folder.list().unwrap().is_empty());
    }
}
