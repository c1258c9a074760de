//! A server made of a released SDK, with what the conformance suite asks for: `tests/sdks` and `tests/rmcp`.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::conformance::Sdk;
use crate::daemon::{Daemon, Program};
use crate::server::Scheme;
use crate::world::World;

/// A cold start on a busy machine takes its time.
const START: Duration = Duration::from_secs(60);

/// The running server.
#[derive(Debug)]
pub struct SdkServer {
    daemon: Daemon,
    scheme: Scheme,
    port: u16,
}

impl SdkServer {
    /// Starts it at one of the ports that the world intercepts, with the certificate of the world's own server.
    pub fn start(world: &World, sdk: Sdk, scheme: Scheme, port: u16) -> Result<Self> {
        let mut command = sdk.server(&world.setup)?.into_iter();
        let log = world.folder().join(format!("sdk-server-{port}.log"));
        // An earlier server's at this port would say that this one is ready.
        if log.exists() {
            std::fs::remove_file(&log)?;
        }
        let program = Program::new("the SDK's server", command.next().context("no command")?, log.clone());
        let mut program = command.fold(program, Program::arg).arg("--port").arg(port.to_string());
        if scheme == Scheme::Https {
            let (certificate, key) = world.server.certificate();
            program = program.arg("--certificate").arg(certificate).arg("--key").arg(key);
        }
        let mut daemon = program.start()?;
        let is_ready = |line: &str| line.starts_with("{\"ready\"");
        daemon
            .until_ready(START, || Ok(std::fs::read_to_string(&log)?.lines().any(is_ready).then_some(())))?;
        Ok(Self { daemon, scheme, port })
    }

    pub fn url(&self, host: &str) -> String {
        let scheme = if self.scheme == Scheme::Https { "https" } else { "http" };
        format!("{scheme}://{host}:{}/mcp", self.port)
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}
