//! Exports on disk: a tar file, with zstd around it where its name ends in `.zst`. The manifest comes first, then the lines in
//! files of some megabytes, so that neither writing nor reading holds more than one.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use weir_core::evidence::export::{self, MANIFEST, MAX_EVENT, MAX_LINE, Manifest};
use weir_core::evidence::verify::{Item, Verifier};

use super::VerifyError;

/// When a file of lines is full enough, bytes.
const PART: usize = 8 << 20;
/// The most bytes of a manifest.
const MAX_MANIFEST: u64 = 1 << 20;
/// The most that is held of a file of lines: what was read, and the longest thing that may follow.
const BUFFER: usize = 1 << 20;
/// The most blocks of a file, each of [`BUFFER`] bytes, that are read before they are verified.
const AHEAD: usize = 8;
/// zstd's own default: a tenth of the bytes at some hundred megabytes a second.
const LEVEL: i32 = 3;

enum Out {
    Plain(File),
    Zstd(Box<zstd::Encoder<'static, File>>),
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Out::Plain(file) => file.write(bytes),
            Out::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::Plain(file) => file.flush(),
            Out::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// An export that is being written. The file has its name when it is whole.
pub(super) struct Writer {
    tar: tar::Builder<Out>,
    lines: Vec<u8>,
    parts: u32,
    unfinished: PathBuf,
    path: PathBuf,
}

fn is_zstd(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "zst")
}

impl Writer {
    pub(super) fn create(path: &Path, manifest: &Manifest) -> io::Result<Self> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        let file = File::create(&unfinished)?;
        let out = match is_zstd(path) {
            true => Out::Zstd(Box::new(zstd::Encoder::new(file, LEVEL)?)),
            false => Out::Plain(file),
        };
        let tar = tar::Builder::new(out);
        let mut writer = Self { tar, lines: Vec::new(), parts: 0, unfinished, path: path.to_owned() };
        writer.file(MANIFEST, &serde_json::to_vec(manifest)?)?;
        Ok(writer)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        self.tar.append_data(&mut header, name, bytes)
    }

    pub(super) fn write(&mut self, item: &Item<'_>) -> io::Result<()> {
        export::write(item, &mut self.lines);
        if self.lines.len() >= PART { self.part() } else { Ok(()) }
    }

    fn part(&mut self) -> io::Result<()> {
        self.parts += 1;
        let lines = std::mem::take(&mut self.lines);
        self.file(&format!("log/{:06}", self.parts), &lines)
    }

    /// Ends the file; it is on disk then.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if !self.lines.is_empty() {
            self.part()?;
        }
        let file = match self.tar.into_inner()? {
            Out::Plain(file) => file,
            Out::Zstd(encoder) => encoder.finish()?,
        };
        file.sync_all()?;
        std::fs::rename(&self.unfinished, &self.path)
    }
}

/// A file's bytes, read and decompressed by a thread of its own while what came before is verified.
struct Ahead {
    blocks: Option<Receiver<io::Result<Vec<u8>>>>,
    block: Vec<u8>,
    at: usize,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    fn open(path: &Path) -> io::Result<Self> {
        let file = BufReader::with_capacity(BUFFER, File::open(path)?);
        let bytes: Box<dyn Read + Send> = match is_zstd(path) {
            true => Box::new(zstd::Decoder::with_buffer(file)?),
            false => Box::new(file),
        };
        let (blocks, ahead) = sync_channel(AHEAD);
        let thread =
            std::thread::Builder::new().name("export".into()).spawn(move || read_all(bytes, &blocks))?;
        Ok(Self { blocks: Some(ahead), block: Vec::new(), at: 0, thread: Some(thread) })
    }
}

/// Until the end, a fault, or until nobody takes them any more.
fn read_all(mut bytes: Box<dyn Read + Send>, blocks: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut block = Vec::with_capacity(BUFFER);
        let read = bytes.by_ref().take(BUFFER as u64).read_to_end(&mut block);
        let is_last = !matches!(read, Ok(1..));
        // Before a fault there may be bytes that are good.
        if !block.is_empty() && blocks.send(Ok(block)).is_err() {
            return;
        }
        if let Err(fault) = read {
            // Whoever read them may be gone.
            let _ = blocks.send(Err(fault));
        }
        if is_last {
            return;
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            let next = self.blocks.as_ref().and_then(|blocks| blocks.recv().ok());
            self.block = next.transpose()?.unwrap_or_default();
            self.at = 0;
        }
        let rest = self.block.get(self.at..).unwrap_or_default();
        let taken = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..taken), rest.get(..taken)) {
            to.copy_from_slice(from);
        }
        self.at += taken;
        Ok(taken)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.blocks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("reading the export broke");
        }
    }
}

/// Reads an export, and hands each of its items on. What is not in its form ends it, and is a finding.
pub(super) fn read(
    path: &Path,
    begin: impl FnOnce(&Manifest) -> Result<Verifier, VerifyError>,
) -> Result<(Verifier, Manifest), VerifyError> {
    let wrong = |source| VerifyError::Export { path: path.to_owned(), source };
    let mut archive = tar::Archive::new(Ahead::open(path).map_err(wrong)?);
    let mut entries = archive.entries().map_err(wrong)?;
    let no_export = || wrong(io::Error::new(io::ErrorKind::InvalidData, "it does not begin with a manifest"));
    let first = entries.next().ok_or_else(no_export)?.map_err(wrong)?;
    if first.path().map_err(wrong)?.as_os_str() != MANIFEST {
        return Err(no_export());
    }
    let mut text = Vec::new();
    first.take(MAX_MANIFEST).read_to_end(&mut text).map_err(wrong)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| wrong(e.into()))?;
    if manifest.weir_export != export::VERSION {
        let why =
            format!("it is of version {}, and this program reads {}", manifest.weir_export, export::VERSION);
        return Err(wrong(io::Error::new(io::ErrorKind::InvalidData, why)));
    }
    let mut verifier = begin(&manifest)?;
    let until_us = Some(manifest.made_us);
    for entry in entries {
        let read = entry.map_err(|e| e.to_string()).and_then(|entry| lines(entry, &mut verifier, until_us));
        if let Err(why) = read {
            verifier.unreadable(&why);
            break;
        }
    }
    Ok((verifier, manifest))
}

/// One file's lines.
fn lines(mut file: impl Read, verifier: &mut Verifier, until_us: Option<i64>) -> Result<(), String> {
    let mut held: Vec<u8> = Vec::with_capacity(2 * BUFFER);
    let mut at = 0;
    loop {
        loop {
            let rest = held.get(at..).unwrap_or_default();
            match export::read(rest).map_err(|e| e.to_string())? {
                Some((item, taken)) => {
                    verifier.take(item, until_us);
                    at += taken;
                }
                None => break,
            }
        }
        held.drain(..at);
        at = 0;
        if held.len() > MAX_LINE + MAX_EVENT + 2 {
            return Err("something in it does not end".into());
        }
        let before = held.len();
        let mut some = file.by_ref().take(BUFFER as u64);
        some.read_to_end(&mut held).map_err(|e| e.to_string())?;
        if held.len() == before {
            return if held.is_empty() { Ok(()) } else { Err("it ends in the middle of a line".into()) };
        }
    }
}
