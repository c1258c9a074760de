//! Signatures as OpenSSH makes and checks them, without Weir.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::approver::NAMESPACE;
use weir_tests::{Approver, World};

/// Checks the signature in a decision's record over the statement in it, by `ssh-keygen -Y verify`.
pub fn verify_recorded(world: &World, decision: &Value) -> Result<()> {
    let text = |name: &str| decision[name].as_str().with_context(|| format!("no {name} in {decision}"));
    let (statement, signature) = (world.folder().join("statement"), world.folder().join("statement.sig"));
    std::fs::write(&statement, text("statement")?)?;
    std::fs::write(&signature, text("signature")?)?;
    let verified = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-n", NAMESPACE, "-I", text("approver")?, "-f"])
        .arg(world.folder().join("allowed_signers"))
        .arg("-s")
        .arg(&signature)
        .stdin(File::open(&statement)?)
        .output()?;
    let said = String::from_utf8_lossy(&verified.stdout);
    ensure!(verified.status.success(), "the record's signature does not verify: {said} {decision}");
    let key = text("approver_key")?;
    ensure!(said.contains(key), "signed by another key than {key}: {said}");
    Ok(())
}

/// The SHA-256 fingerprint of an approver's key, as OpenSSH writes it.
pub fn fingerprint(approver: &Approver) -> Result<String> {
    let output = Command::new("ssh-keygen").args(["-l", "-E", "sha256", "-f"]).arg(&approver.key).output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().nth(1).map(str::to_owned).with_context(|| format!("no fingerprint in {text:?}"))
}

/// Signs a text as an approver would.
pub fn sign(approver: &Approver, text: &str) -> Result<String> {
    let mut child = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(&approver.key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ssh-keygen does not sign");
    Ok(String::from_utf8(output.stdout)?)
}
