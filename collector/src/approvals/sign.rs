//! Signing: a statement's text and a key come in, an SSH signature goes out. `ssh-keygen` does it, so keys in files,
//! in an agent and on a token all serve, and a passphrase or PIN is asked for on the terminal.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use weir_core::approval::{NAMESPACE, SignedStatement};

use super::ApprovalError;

/// `~/.ssh/id_ed25519`.
pub fn default_key() -> PathBuf {
    std::env::home_dir().unwrap_or_default().join(".ssh/id_ed25519")
}

/// Whom a key names: the comment of its public half, which `ssh-keygen` fills with `user@host`.
pub(super) fn principal_of(key: &Path) -> Result<String, ApprovalError> {
    let mut public = key.as_os_str().to_owned();
    public.push(".pub");
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let text = read(Path::new(&public)).or_else(|| read(key)).unwrap_or_default();
    let comment = text.lines().next().and_then(comment).unwrap_or_default();
    if comment.is_empty() {
        return Err(ApprovalError::NoPrincipal(key.display().to_string()));
    }
    Ok(comment.to_owned())
}

/// What stands behind `ssh-ed25519 AAAA...`.
fn comment(line: &str) -> Option<&str> {
    let mut fields = line.splitn(3, ' ');
    let kind = fields.next()?;
    fields.next()?;
    ["ssh-", "ecdsa-", "sk-"]
        .iter()
        .any(|start| kind.starts_with(start))
        .then(|| fields.next())?
        .map(str::trim)
}

/// Says which key there is not, in better words than ssh-keygen's.
pub(super) fn exists(key: &Path) -> Result<(), ApprovalError> {
    if key.exists() { Ok(()) } else { Err(ApprovalError::NoKey(key.display().to_string())) }
}

/// Signs `statement` with `key`: a private key's file, or a public key's whose private half an agent has.
pub(super) async fn sign(statement: String, key: &Path) -> Result<SignedStatement, ApprovalError> {
    let failed = |what: &dyn std::fmt::Display| {
        ApprovalError::Sign(format!(
            "ssh-keygen cannot sign with {}: {what}; nothing was sent",
            key.display()
        ))
    };
    let spawned = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            ApprovalError::Sign("there is no ssh-keygen; install OpenSSH's client tools".into())
        }
        _ => failed(&error),
    })?;
    if let Some(mut input) = child.stdin.take() {
        // An ssh-keygen that dislikes the key ends without reading; its own message says why.
        let _ = input.write_all(statement.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| failed(&e))?;
    if !output.status.success() {
        return Err(failed(&"its reason stands above"));
    }
    let signature = String::from_utf8(output.stdout).map_err(|e| failed(&e))?;
    if !signature.starts_with("-----BEGIN SSH SIGNATURE-----") {
        return Err(failed(&"it gave no signature"));
    }
    Ok(SignedStatement { statement, signature })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_whom_its_comment_names() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        assert!(matches!(principal_of(&key), Err(ApprovalError::NoPrincipal(_))));
        let public = folder.path().join("key.pub");
        std::fs::write(&public, "ssh-ed25519 AAAA alice@example.test\n").unwrap();
        assert_eq!(principal_of(&key).unwrap(), "alice@example.test");
        assert_eq!(principal_of(&public).unwrap(), "alice@example.test");
        std::fs::write(&public, "ssh-ed25519 AAAA\n").unwrap();
        assert!(matches!(principal_of(&key), Err(ApprovalError::NoPrincipal(_))));
    }
}
