//! `weir run -- COMMAND`: the command runs as it would without, its calls are listed, and nothing stays behind,
//! however it ends.

#[path = "run/ends.rs"]
mod ends;
#[path = "run/together.rs"]
mod together;
#[path = "run/traces.rs"]
mod traces;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::job::client_command;
use weir_tests::machine::require_kernel;
use weir_tests::places::{binary, fresh_folder};
use weir_tests::world::RULES;
use weir_tests::{AgentConfig, ClientKind, Conversation, McpServer, Scheme, Setup};

/// A place to run commands in: an MCP server, and a configuration that intercepts it.
struct Place {
    setup: Setup,
    folder: tempfile::TempDir,
    server: McpServer,
    config: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        require_kernel()?;
        let (setup, folder) = (Setup::complete()?, fresh_folder("run")?);
        let server =
            McpServer::start(&setup, &folder.path().join("server"), Scheme::Https, &["localhost"], false)?;
        let config = folder.path().join("weir.toml");
        let text = configuration(&server, None).toml(&folder.path().join("state"));
        std::fs::write(&config, text)?;
        Ok(Self { setup, folder, server, config })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `weir run OPTIONS --config CONFIG -- COMMAND`, to be started.
    fn weir_run<S: AsRef<OsStr>>(&self, options: &[&str], command: &[S]) -> Result<Command> {
        let mut weir = weir_run()?;
        weir.args(options).arg("--config").arg(&self.config).arg("--").args(command);
        Ok(weir)
    }

    /// The same, to its end; nothing may stay behind.
    fn run<S: AsRef<OsStr>>(&self, options: &[&str], command: &[S]) -> Result<Ran> {
        finish(&mut self.weir_run(options, command)?)
    }

    /// The command of a client that makes these calls.
    fn client(&self, kind: ClientKind, calls: &str) -> Vec<std::ffi::OsString> {
        let mut command = client_command(&self.setup, kind);
        command.extend([self.server.url("localhost").into(), "--calls".into(), calls.into()]);
        command
    }
}

/// What an agent is told that intercepts a server.
fn configuration(server: &McpServer, collector: Option<&Path>) -> AgentConfig {
    AgentConfig {
        tenant: "run".into(),
        default_action: "allow".into(),
        cgroups: Vec::new(),
        // `weir run` pins nothing.
        failure: String::new(),
        service: None,
        pin_dir: "/sys/fs/bpf/weir-not-used".into(),
        collector: collector.map(Path::to_owned),
        protect: Vec::new(),
        names: vec!["localhost".into()],
        cidrs: vec!["127.0.0.0/8".into()],
        ports: vec![server.port()],
        roots: vec![server.ca()],
        upstream: String::new(),
        allowed_signers: None,
        deadline: "2m".into(),
        keepalive: "1s".into(),
        approval: String::new(),
        rules: RULES.into(),
    }
}

/// `weir run`, with an environment made from nothing; it dies with the test.
fn weir_run() -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(binary("weir")?).arg("run");
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// A `weir run` that has ended, and its command with it.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Runs it to its end, and looks that no cgroup of its own is left.
fn finish(command: &mut Command) -> Result<Ran> {
    let child = command.spawn()?;
    let pid = child.id();
    let ran = Ran::of(child.wait_with_output()?);
    ensure!(traces::cgroups_of(pid)?.is_empty(), "a cgroup stays behind: {ran:?}");
    Ok(ran)
}

/// The calls of a report: one JSON object a line.
fn report(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("the report {}", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The tool, decision and result of each call of a tool.
fn told(report: &[Value]) -> Vec<(&str, &str, &str)> {
    report
        .iter()
        .filter_map(|call| {
            Some((call["tool"].as_str()?, call["decision"].as_str()?, call["result"].as_str()?))
        })
        .collect()
}

#[test]
fn a_commands_exit_code_is_given_back() -> Result<()> {
    let place = Place::new()?;
    let script = place.path("not executable");
    std::fs::write(&script, "#!/bin/sh\n")?;
    let cases: [(&[&str], i32); 8] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["/nonexistent/command"], 127),
        (&["no-such-command-on-the-path"], 127),
        (&[script.to_str().context("a path that is not UTF-8")?], 126),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
    ];
    for (command, code) in cases {
        let ran = place.run(&[], command)?;
        assert_eq!(ran.code, Some(code), "{command:?}: {ran:?}");
        assert!(ran.stderr.ends_with("weir: 0 MCP calls\n"), "it makes no call: {ran:?}");
        let sentence = match code {
            127 => format!("weir: cannot run {}: No such file or directory (os error 2)\n", command[0]),
            126 => format!("weir: cannot run {}: Permission denied (os error 13)\n", command[0]),
            _ => String::new(),
        };
        assert_eq!(ran.stderr, format!("{sentence}weir: 0 MCP calls\n"));
    }
    Ok(())
}

#[test]
fn a_runs_calls_are_listed_and_reported_as_the_server_saw_them() -> Result<()> {
    let place = Place::new()?;
    let file = place.path("calls of the run.jsonl");
    for kind in ClientKind::BOTH {
        let before = place.server.executed()?.len();
        let options = ["--report", file.to_str().context("not UTF-8")?];
        let ran = place.run(&options, &place.client(kind, "echo,delete_repo,count,read_config"))?;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        // Standard output is the client's own, and its client trusts what it is shown.
        let conversation = Conversation::read(&ran.stdout)?;
        assert_eq!(ran.stdout.lines().filter(|line| !line.starts_with("{\"event\"")).count(), 0, "{ran:?}");
        assert!(conversation.issuer.as_deref().is_some_and(|issuer| issuer.starts_with("Weir ")), "{ran:?}");
        assert_eq!(
            conversation.calls.iter().map(|call| call.ok).collect::<Vec<_>>(),
            [true, false, true, true]
        );

        let calls = report(&file)?;
        assert_eq!(
            told(&calls),
            [
                ("echo", "allow", "ok"),
                ("delete_repo", "deny", "refused"),
                ("count", "allow", "ok"),
                ("read_config", "allow", "ok")
            ]
        );
        assert!(calls.iter().any(|call| call["method"] == "initialize" || call["method"] == "tools/list"));
        for call in &calls {
            assert_eq!(call["server"], "localhost", "{call}");
            assert_eq!(call["pid"], conversation.pid.context("no pid")?, "{call}");
            assert!(call["executable"].as_str().is_some_and(|path| path.starts_with('/')), "{call}");
        }
        assert!(ran.stderr.contains(&format!("weir: {} MCP calls\n", calls.len())), "{}", ran.stderr);
        for (part, call) in
            [("allow     ok", "tools/call echo"), ("deny      refused", "tools/call delete_repo")]
        {
            let row = ran.stderr.lines().find(|line| line.ends_with(call)).context("no row")?;
            assert!(row.contains(part) && row.contains("localhost"), "{row}");
        }
        let executed: Vec<_> =
            place.server.executed()?.into_iter().skip(before).map(|call| call.tool).collect();
        assert_eq!(executed, ["echo", "count", "read_config"]);
    }
    Ok(())
}

#[test]
fn what_goes_in_and_out_passes_through_untouched() -> Result<()> {
    let place = Place::new()?;
    let mut bytes = vec![0; 1 << 20];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut child =
        place.weir_run(&[], &["sh", "-c", "echo to stderr >&2; cat"])?.stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output()?;
    writer.join().ok().context("the writer")??;
    assert!(output.status.success() && output.stdout == bytes, "{} bytes came back", output.stdout.len());
    assert_eq!(String::from_utf8(output.stderr)?, "to stderr\nweir: 0 MCP calls\n");
    // A report to standard output comes after all that the command wrote.
    let ran = place.run(&["--report", "-"], &place.client(ClientKind::Python, "echo"))?;
    let (last, calls): (Vec<_>, Vec<_>) = ran.stdout.lines().partition(|line| line.starts_with("{\"event\""));
    assert!(ran.stdout.starts_with("{\"event\"") && last.len() == 3, "{ran:?}");
    assert!(calls.iter().any(|line| line.contains("\"tool\":\"echo\"")), "{ran:?}");
    Ok(())
}

/// Calls a tool of any name.
const PLAIN_CLIENT: &str = include_str!("hold/plain_client.py");

/// Prints what a process has from its parent.
const SELF: &str = "env | cut -d= -f1 | grep -vE '^(PWD|SHLVL|_|OLDPWD)$' | sort; echo; \
    grep -E '^(Sig(Blk|Ign)|CapEff|Umask|NoNewPrivs)' /proc/self/status; ls -l /proc/self/fd | grep -c -- '->'; pwd; id -u";

#[test]
fn the_command_differs_in_nothing_but_its_cgroup_and_the_ca_variables() -> Result<()> {
    let place = Place::new()?;
    let cwd = place.path("a folder with spaces");
    std::fs::create_dir(&cwd)?;
    let shell = cwd.join("a shell");
    std::fs::copy("/bin/sh", &shell)?;
    let command = [shell.as_os_str(), "-c".as_ref(), SELF.as_ref()];
    let bare = Command::new(&shell)
        .args(&command[1..])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .current_dir(&cwd)
        .output()?;
    let ran = finish(place.weir_run(&[], &command)?.current_dir(&cwd))?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let bare = String::from_utf8(bare.stdout)?;
    let split = |text: &str| -> Result<(BTreeSet<String>, String)> {
        let (names, rest) = text.split_once("\n\n").with_context(|| text.to_owned())?;
        Ok((names.lines().map(str::to_owned).collect(), rest.to_owned()))
    };
    let ((names, rest), (names_bare, rest_bare)) = (split(&ran.stdout)?, split(&bare)?);
    assert_eq!(rest, rest_bare, "descriptors, signals, folder and rights are the same");
    let added: Vec<_> = names.difference(&names_bare).map(String::as_str).collect();
    assert!(names_bare.is_subset(&names) && added.contains(&"NODE_EXTRA_CA_CERTS"), "{added:?}");
    let for_trust = ["CA", "CERT", "CAINFO"];
    assert!(added.iter().all(|name| for_trust.iter().any(|part| name.contains(part))), "{added:?}");
    Ok(())
}

#[test]
fn a_tools_name_cannot_command_the_terminal() -> Result<()> {
    let place = Place::new()?;
    let (file, url) = (place.path("report.jsonl"), place.server.url("localhost"));
    let name = "dep\u{1b}[2K\u{9b}31m\u{202e}yol";
    let python = place.setup.python();
    let command: [&OsStr; 6] =
        [python.as_ref(), "-c".as_ref(), PLAIN_CLIENT.as_ref(), url.as_ref(), "n".as_ref(), name.as_ref()];
    let ran = place.run(&["--report", file.to_str().context("not UTF-8")?], &command)?;
    let row =
        ran.stderr.lines().find(|line| line.contains("tools/call")).with_context(|| format!("{ran:?}"))?;
    assert!(row.ends_with("tools/call dep\\u{1b}[2K\\u{9b}31m\\u{202e}yol"), "{row}");
    let text = std::fs::read_to_string(&file)?;
    assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text}");
    assert_eq!(told(&report(&file)?)[0].0, name);
    Ok(())
}
