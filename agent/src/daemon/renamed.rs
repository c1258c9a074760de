//! A host, or a tenant, with another name than its log. Collectors take a log from one host alone, for ever: so the log that is in
//! the spool's folder ends where it is, its folder is put beside as `spool-<log>`, and another log begins. Its first words say
//! which one ended, and a file beside the folder says that they are still to be said: an agent that is killed in between says them
//! when it begins again. What of the old one was not shipped is never deleted, and never shipped under the new name.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use weir_core::evidence::checkpoint::LogName;
use weir_core::mask::{Masked, Masker};
use weir_core::record::AgentEvent;

use crate::ledger::{Ledger, LedgerConfig, LedgerError, Recovered};
use crate::spool::Folder;

/// The event by which the new log names the old one.
pub(super) const RENAMED: &str = "log.renamed";

/// The file beside the spool's folder that names the log whose end is still to be told.
const UNTOLD: &str = "log-renamed";

/// A log that ended because its host or tenant was renamed.
pub(super) struct Ended {
    log: LogName,
    kept_in: PathBuf,
    untold: PathBuf,
}

/// Opens the log in `folder`, which `config` has for its storage; or, where that is of another name, a new one. It waits for the
/// disk.
pub(super) fn open(config: LedgerConfig, folder: &Path) -> Result<(Ledger, Recovered, Option<Ended>)> {
    let untold = folder.with_file_name(UNTOLD);
    let kept_in = |log: &LogName| folder.with_file_name(format!("spool-{}", log.origin));
    let log = match Ledger::open(config.clone()) {
        Err(LedgerError::Renamed(log)) => *log,
        opened => {
            let (ledger, recovered) = opened?;
            // That of this very log was written by an agent that went no further, and has its old name again.
            let ended = read(&untold)?.filter(|log| log.origin != *ledger.origin());
            let ended = ended.map(|log| Ended { kept_in: kept_in(&log), log, untold });
            return Ok((ledger, recovered, ended));
        }
    };
    let kept_in = kept_in(&log);
    let aside =
        || format!("cannot put the log of {}/{} aside as {}", log.tenant, log.host, kept_in.display());
    write(&untold, &log).with_context(aside)?;
    std::fs::rename(folder, &kept_in).with_context(aside)?;
    sync_parent(folder).with_context(aside)?;
    let storage = Arc::new(Folder::open(folder).context("cannot open a new spool")?);
    let (ledger, recovered) = Ledger::open(LedgerConfig { storage, ..config })?;
    Ok((ledger, recovered, Some(Ended { log, kept_in, untold })))
}

/// The log that an earlier agent put aside, and may not have told of.
fn read(untold: &Path) -> Result<Option<LogName>> {
    let unread =
        || format!("cannot read which log ended; if nobody needs to know, remove {}", untold.display());
    match std::fs::read_to_string(untold) {
        Ok(name) => LogName::try_from(name).map(Some).with_context(unread),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(unread),
    }
}

/// On disk when it returns.
fn write(untold: &Path, log: &LogName) -> std::io::Result<()> {
    let mut file = File::create(untold)?;
    file.write_all(log.to_string().as_bytes())?;
    file.sync_all()?;
    sync_parent(untold)
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

impl Ended {
    /// What the new log says of it.
    pub(super) fn told(&self, masker: &Masker) -> AgentEvent<Masked<String>> {
        let Self { log, kept_in, .. } = self;
        tracing::error!(
            log = %log.origin, was = format!("{}/{}", log.tenant, log.host), kept_in = %kept_in.display(),
            "this host or its tenant was renamed: its log has ended, and another begins; what was not shipped is kept"
        );
        let detail = [
            ("log", masker.text(log.origin.as_str())),
            ("tenant", masker.text(&log.tenant)),
            ("host", masker.text(&log.host)),
        ];
        let detail = detail.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        AgentEvent { name: RENAMED.to_owned(), detail }
    }

    /// What [`Self::told`] gives is on disk. It waits for the disk.
    ///
    /// # Errors
    ///
    /// The next agent would tell of it once more.
    pub(super) fn was_recorded(self) -> std::io::Result<()> {
        std::fs::remove_file(&self.untold)
    }
}

#[cfg(test)]
mod tests {
    use weir_core::ids::Boot;
    use weir_core::mask::MaskKey;

    use super::*;

    #[tokio::test]
    async fn a_host_with_another_name_begins_another_log_and_keeps_the_old_one() {
        let state = tempfile::tempdir().unwrap();
        let masker = Masker::new(MaskKey::new([1; 32]));
        let path = state.path().join("spool");
        let opened = |host: &str| {
            let keys = Arc::new(Folder::open(state.path()).unwrap());
            let storage = Arc::new(Folder::open(&path).unwrap());
            let boot = Boot::from_random([2; 16]);
            let config = LedgerConfig::new(storage, "t".into(), host.into(), boot, masker.clone());
            open(LedgerConfig { keys, ..config }, &path).unwrap()
        };
        let close = async |ledger: Ledger| {
            let origin = ledger.origin().clone();
            ledger.shutdown().await.unwrap();
            origin
        };
        let (ledger, _, ended) = opened("one");
        assert!(ended.is_none());
        let first = close(ledger).await;
        // The first that has the new name is killed before it said so.
        let (ledger, _, ended) = opened("two");
        assert!(ended.is_some());
        let second = close(ledger).await;
        let (ledger, _, ended) = opened("two");
        let ended = ended.unwrap();
        let told = ended.told(&masker);
        assert_eq!(told.name, RENAMED);
        let detail = |name: &str| told.detail[name].as_str().to_owned();
        assert_eq!((detail("log"), detail("host")), (first.to_string(), "one".to_owned()));
        assert_eq!(ledger.standing().epoch, 1, "another log begins anew");
        assert_ne!(first, second);
        assert_eq!(close(ledger).await, second);
        ended.was_recorded().unwrap();
        let kept = std::fs::read_dir(state.path().join(format!("spool-{first}"))).unwrap();
        assert!(kept.flatten().any(|entry| entry.path().extension().is_some_and(|end| end == "seg")));
        let (ledger, _, ended) = opened("two");
        assert!(ended.is_none());
        assert_eq!(close(ledger).await, second, "and goes on from then on");
    }
}
