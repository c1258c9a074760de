//! A secret of 32 random bytes that stays on this host: made once, and readable by its owner alone.

use std::path::Path;

use super::TrustError;
use super::disk::{Audience, Folder};
use crate::random;

/// Reads the secret `name` of the folder, or makes it.
pub fn secret(folder: &Path, name: &str) -> Result<[u8; 32], TrustError> {
    let folder = Folder::lock(folder, Audience::Owner)?;
    if let Some(bytes) = folder.read(name, Audience::Owner)? {
        return bytes.try_into().map_err(|_| TrustError::Unusable {
            path: folder.path(name),
            fault: "it does not have 32 bytes".into(),
        });
    }
    let bytes = random::bytes();
    folder.write(name, &bytes, Audience::Owner)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let first = secret(dir.path(), "mask.key").unwrap();
        assert_eq!(dir.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(secret(dir.path(), "mask.key").unwrap(), first);
        assert_ne!(secret(dir.path(), "other.key").unwrap(), first);
        std::fs::write(dir.path().join("mask.key"), b"short").unwrap();
        assert!(secret(dir.path(), "mask.key").is_err());
        let mode = PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(dir.path().join("other.key"), mode).unwrap();
        assert!(secret(dir.path(), "other.key").is_err());
    }
}
