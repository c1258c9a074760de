//! MCP servers that speak over pipes: no hook sees what they are told, so that they were started is recorded.
//!
//! Enters: an argument list. Leaves: the pattern that it matches. Must never: look into a process.

use std::path::Path;

use weir_core::policy::glob;

/// The first pattern that a command line matches. An interpreter or `env` before the program is looked past.
pub fn pattern<'a>(patterns: &'a [String], arguments: &[u8]) -> Option<&'a str> {
    const LOOKED_PAST: usize = 2;
    let text = String::from_utf8_lossy(arguments);
    let arguments: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
    (0..arguments.len().min(LOOKED_PAST)).find_map(|skipped| {
        let (program, rest) = arguments.get(skipped..)?.split_first()?;
        let program =
            Path::new(program).file_name().map_or_else(|| (*program).into(), |name| name.to_string_lossy());
        let line = rest.iter().fold(program.into_owned(), |line, argument| line + " " + argument);
        patterns.iter().find(|pattern| glob(pattern, &line)).map(String::as_str)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Stdio;

    fn is_known(command: &str) -> bool {
        pattern(&Stdio::default().patterns, command.replace(' ', "\0").as_bytes()).is_some()
    }

    #[test]
    fn known_servers_are_told_apart_from_other_programs() {
        for command in [
            "npx -y @modelcontextprotocol/server-filesystem /tmp",
            "/usr/bin/node /usr/bin/npx -y @modelcontextprotocol/server-github",
            "/usr/bin/env npx some-mcp",
            "uvx mcp-server-git --repository .",
            "uv tool run mcp-server-time",
            "pipx run mcp-server-fetch",
            "docker run -i --rm ghcr.io/github/github-mcp-server",
            "docker run -i --rm mcp/postgres",
            "podman run -i mcp/time",
            "node /srv/mcp/dist/index.js",
            "python3 -m mcp_server_git",
            "/opt/bin/mcp-server-sqlite --db x",
            "/home/u/.local/bin/jira-mcp-server",
            "github-mcp-server stdio",
        ] {
            assert!(is_known(command), "{command}");
        }
        for command in [
            "npm install",
            "node build.js",
            "python3 -m pytest",
            "docker run -i alpine",
            "cat mcp.json",
            "sh -c true",
            "",
        ] {
            assert!(!is_known(command), "{command}");
        }
    }
}
