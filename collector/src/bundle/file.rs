//! A bundle's file: lines of an export and what they are of come in, a tar file under zstd goes out, and back. What is
//! read may be anybody's: its sizes are bounded before memory is taken.

use std::io::{Read, Write};

use weir_core::evidence::export::{self, MANIFEST, Manifest, VERSION};
use weir_core::evidence::verify::{Item, Scope, StoredEvent};

/// The file of the lines.
const LINES: &str = "log/000001";
/// The most bytes of a bundle, unpacked.
pub const MAX_BUNDLE: usize = 256 << 20;
/// The most bytes of the manifest.
const MAX_MANIFEST: u64 = 64 << 10;
/// zstd's level: packed once, kept long.
const LEVEL: i32 = 9;

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub manifest: Manifest,
    /// Lines of an export.
    pub lines: Vec<u8>,
}

/// Why a file is no bundle. Whoever made or changed it is at fault.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read or write the bundle: {0}")]
    Io(#[from] std::io::Error),
    #[error("not a bundle of Weir's: {0}")]
    Form(String),
    #[error("the bundle has more than {} MiB unpacked, which is no run's", MAX_BUNDLE >> 20)]
    TooLarge,
}

impl Bundle {
    /// Of a run, made now.
    pub fn of_run(run: &str, lines: Vec<u8>, made_us: i64) -> Self {
        let manifest = Manifest { weir_export: VERSION, scope: Scope::Run, of: run.to_owned(), made_us };
        Self { manifest, lines }
    }

    pub fn write(&self, to: impl Write) -> Result<(), FileError> {
        let mut tar = tar::Builder::new(zstd::Encoder::new(to, LEVEL)?);
        let manifest = serde_json::to_vec(&self.manifest).map_err(|e| FileError::Form(e.to_string()))?;
        for (name, bytes) in [(MANIFEST, &manifest), (LINES, &self.lines)] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes.as_slice())?;
        }
        tar.into_inner()?.finish()?.flush()?;
        Ok(())
    }

    pub fn read(from: impl Read) -> Result<Self, FileError> {
        let form = |what: String| FileError::Form(what);
        let mut tar = tar::Archive::new(zstd::Decoder::new(from)?.take(MAX_BUNDLE as u64 + 1));
        let (mut manifest, mut lines) = (None, Vec::new());
        for entry in tar.entries().map_err(|e| form(e.to_string()))? {
            let entry = entry.map_err(|e| form(e.to_string()))?;
            let name = entry.path().map_err(|e| form(e.to_string()))?.to_string_lossy().into_owned();
            let size = entry.size();
            match (&manifest, name.as_str()) {
                (None, MANIFEST) => {
                    let mut text = Vec::new();
                    entry.take(MAX_MANIFEST).read_to_end(&mut text)?;
                    let read: Manifest = serde_json::from_slice(&text).map_err(|e| form(e.to_string()))?;
                    if read.weir_export != VERSION || read.scope != Scope::Run {
                        return Err(form("it is no export of one run in this program's version".into()));
                    }
                    manifest = Some(read);
                }
                (Some(_), name) if name.starts_with("log/") => {
                    if size.saturating_add(lines.len() as u64) > MAX_BUNDLE as u64 {
                        return Err(FileError::TooLarge);
                    }
                    let before = lines.len();
                    entry.take(size).read_to_end(&mut lines)?;
                    if (lines.len() - before) as u64 != size {
                        return Err(form("it is cut short".into()));
                    }
                }
                _ => return Err(form(format!("it holds the file {name:?}"))),
            }
        }
        let manifest = manifest.ok_or_else(|| form("it has no manifest".into()))?;
        Ok(Self { manifest, lines })
    }

    /// Each item in order; ends at the first that is none.
    pub fn items(&self) -> impl Iterator<Item = Result<Item<'_>, String>> {
        let mut rest = self.lines.as_slice();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            Some(match export::read(rest) {
                Ok(Some((item, taken))) => {
                    rest = rest.get(taken..).unwrap_or_default();
                    Ok(item)
                }
                Ok(None) => {
                    rest = &[];
                    Err("it ends in the middle of something".into())
                }
                Err(error) => {
                    rest = &[];
                    Err(error.to_string())
                }
            })
        })
    }

    /// The signed checkpoints in it: of batches, and those that were cosigned.
    pub fn notes(&self) -> Vec<String> {
        let note = |item| match item {
            Ok(Item::Checkpoint(checkpoint)) => Some(checkpoint.note),
            Ok(Item::Batch(batch)) => Some(batch.note),
            _ => None,
        };
        self.items().filter_map(note).collect()
    }

    /// The events in it, whether proven or not.
    pub fn events(&self) -> impl Iterator<Item = StoredEvent<'_>> {
        self.items().filter_map(|item| match item {
            Ok(Item::Event(event)) => Some(event),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        Bundle::of_run("731", b"L {\"origin\":\"00000000000000000000000000000000\"}\n".to_vec(), 7)
    }

    #[test]
    fn a_bundle_reads_back_and_a_cut_at_any_byte_is_refused() {
        let mut file = Vec::new();
        bundle().write(&mut file).unwrap();
        let read = Bundle::read(file.as_slice()).unwrap();
        assert_eq!((read.manifest.clone(), read.lines.clone()), (bundle().manifest, bundle().lines));
        assert!(matches!(read.items().next(), Some(Ok(Item::Log { .. }))));
        for cut in 0..file.len() {
            assert!(Bundle::read(&file[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        assert!(Bundle::read(&b"no zstd"[..]).is_err());
        let mut other = bundle();
        other.manifest.scope = Scope::All;
        let mut file = Vec::new();
        other.write(&mut file).unwrap();
        assert!(Bundle::read(file.as_slice()).unwrap_err().to_string().contains("no export of one run"));
        let torn = Bundle { lines: b"E 1 2".to_vec(), ..bundle() };
        assert!(torn.items().next().unwrap().is_err());
    }

    #[test]
    fn a_bundle_that_unpacks_past_the_limit_is_refused() {
        let mut file = Vec::new();
        Bundle { lines: vec![b'x'; MAX_BUNDLE + 1], ..bundle() }.write(&mut file).unwrap();
        assert!(file.len() < 1 << 20);
        assert!(matches!(Bundle::read(file.as_slice()), Err(FileError::TooLarge)));
    }
}
