//! `weir oci-hook`: a container runtime's createRuntime hook. The runtime has made the container's namespaces and waits
//! for its hooks before it starts the container's first process.
//!
//! Enters: the container's state, as the runtime gives it on standard input (OCI runtime specification, "State" and
//! "POSIX-platform Hooks"). Leaves: the namespace registered by the agent of a state folder. Must never: keep the runtime
//! waiting longer than an answer may take.

use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::{self, Answer, Ask};
use crate::netns::Registered;

/// The most bytes of a container's state, annotations included.
const MAX_STATE: u64 = 1 << 20;
/// Seconds after which the runtime ends the hook and gives the container up: more than the agent may take to answer.
const TIMEOUT: u32 = 10;

/// Why a container's namespace is not registered.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("no container's state on standard input: {0}; a container runtime runs this as its hook")]
    State(#[source] io::Error),
    #[error("the container has no process yet: let the runtime run this as a createRuntime hook")]
    NoProcess,
    #[error("no agent answers at {socket}: {source}; is `weir agent` running?")]
    Away { socket: String, source: io::Error },
    #[error("the agent did not register the container's network namespace: {0}")]
    Refused(String),
}

/// What of it is read.
#[derive(Debug, Deserialize)]
struct State {
    #[serde(default)]
    pid: u32,
}

/// Has the network namespace of the container registered whose state comes in.
pub async fn register(state: impl Read, state_dir: &Path) -> Result<Registered, OciError> {
    let State { pid } =
        serde_json::from_reader(state.take(MAX_STATE)).map_err(|error| OciError::State(error.into()))?;
    if pid == 0 {
        return Err(OciError::NoProcess);
    }
    match admin::ask(state_dir, &Ask::Register { pid }).await {
        Ok(Answer::Registered(registered)) => Ok(registered),
        Ok(Answer::Refused(why)) => Err(OciError::Refused(why)),
        Ok(other) => Err(OciError::Refused(format!("it said {other:?}"))),
        Err(source) => Err(OciError::Away { socket: admin::socket(state_dir).display().to_string(), source }),
    }
}

/// What a runtime can be configured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sample {
    /// A file for a folder of hooks (podman, CRI-O: /etc/containers/oci/hooks.d/weir.json).
    HooksDir,
    /// The part of a container's config.json, or of containerd's base_runtime_spec.
    Runtime,
}

/// The configuration that makes a runtime run `weir` with these arguments for each container.
pub fn sample(sample: Sample, weir: &Path, arguments: &[String]) -> Value {
    let args: Vec<&str> = ["weir"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let hook = json!({ "path": weir, "args": args, "timeout": TIMEOUT });
    match sample {
        Sample::HooksDir => json!({
            "version": "1.0.0",
            "hook": hook,
            "when": { "always": true },
            "stages": ["createRuntime"],
        }),
        Sample::Runtime => json!({ "hooks": { "createRuntime": [hook] } }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let said =
            async |state: &str| register(state.as_bytes(), folder.path()).await.unwrap_err().to_string();
        assert!(said("").await.starts_with("no container's state"));
        assert!(
            said(r#"{"ociVersion":"1.0.2","id":"a","status":"stopped"}"#).await.contains("no process yet")
        );
        let away = said(r#"{"ociVersion":"1.0.2","id":"a","status":"creating","pid":7,"bundle":"/b"}"#).await;
        assert!(away.contains("agent.sock") && away.contains("is `weir agent` running?"), "{away}");
    }

    #[test]
    fn the_samples_are_what_runtimes_read() {
        let arguments = ["oci-hook".to_owned(), "--require".to_owned()];
        let hook =
            json!({ "path": "/usr/bin/weir", "args": ["weir", "oci-hook", "--require"], "timeout": TIMEOUT });
        let of = |which| sample(which, Path::new("/usr/bin/weir"), &arguments);
        assert_eq!(of(Sample::Runtime)["hooks"]["createRuntime"][0], hook);
        let hooks_dir = of(Sample::HooksDir);
        assert_eq!((&hooks_dir["hook"], &hooks_dir["stages"]), (&hook, &json!(["createRuntime"])));
        assert_eq!(
            (&hooks_dir["version"], &hooks_dir["when"]),
            (&json!("1.0.0"), &json!({ "always": true }))
        );
    }
}
