//! Released clients over loopback, each in a process of its own with nothing in its environment but `PATH` and
//! the CA variables: they must take Weir's leaves, and refuse them without the variables.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;

use super::*;

const NODE: &str = r"
const https = require('node:https');
const [host, port, name] = process.argv.slice(1);
const request = https.get({ host, port, servername: name, path: '/', agent: false }, (response) => {
  const issuer = response.socket.getPeerCertificate().issuer;
  response.on('data', (data) => process.stdout.write(`${data} from O=${issuer.O}, CN=${issuer.CN}`));
});
request.on('error', (error) => { console.log(`refused: ${error.code}`); process.exitCode = 1; });
";

const PYTHON: &str = r#"
import socket, ssl, sys
host, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.create_default_context()
# What Python 3.13 sets by itself.
context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
try:
    with context.wrap_socket(socket.create_connection((host, port)), server_hostname=name) as stream:
        stream.sendall(b"GET / HTTP/1.1\r\n\r\n")
        issuer = dict(pair for part in stream.getpeercert()["issuer"] for pair in part)
        body = stream.recv(4096).decode().rpartition("\r\n")[2]
        print(f"{body} from O={issuer['organizationName']}, CN={issuer['commonName']}")
except ssl.SSLCertVerificationError as error:
    sys.exit(f"refused: {error.verify_message}")
"#;

/// Terminates TLS for whatever name clients ask, and answers each request with `hello`.
async fn serve(listener: TcpListener, minter: Minter) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let address = tcp.local_addr().unwrap().ip();
        let Ok((Sniffed::Tls(hello), stream)) = sniff(tcp, WAIT).await else { continue };
        let wanted = hello.sni.map_or_else(|| ServerName::from(address), ServerName::from);
        let Ok(mut stream) = accept(stream, &minter.leaf(&wanted).unwrap(), Protocol::Http1, WAIT).await
        else {
            continue;
        };
        let mut request = [0_u8; 4096];
        if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
            stream.write_all(answer).await.unwrap();
        }
        // A client may be gone by now.
        let _ = stream.shutdown().await;
    }
}

async fn start(host: &Host, bind: &str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(bind).await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(serve(listener, host.minter())))
}

/// What a client printed, and whether it was content; `None` if it is not on this machine.
async fn run(program: &str, arguments: &[&str], environment: &[(&str, String)]) -> Option<(bool, String)> {
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("{program}: {error}"),
    };
    let output = tokio::time::timeout(6 * WAIT, child.wait_with_output()).await.expect(program).unwrap();
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[tokio::test]
async fn node_takes_the_leaf_with_the_bundle_and_refuses_it_without() {
    let host = Host::new();
    let environment = host.authority.environment();
    let expected = format!("hello from {}", host.authority.issuer());
    for (bind, names) in [("127.0.0.1:0", &["localhost", "mcp.example.test", ""][..]), ("[::1]:0", &[""])] {
        let (address, server) = start(&host, bind).await;
        for name in names {
            let port = address.port().to_string();
            let arguments = ["-e", NODE, &address.ip().to_string(), &port, name];
            let with = run("node", &arguments, &environment).await.expect("node is needed");
            assert_eq!(with, (true, expected.clone()), "{address} as {name:?}");
            let (content, text) = run("node", &arguments, &[]).await.unwrap();
            assert!(!content && text.contains("refused: "), "{text}");
        }
        server.abort();
    }
}

#[tokio::test]
async fn python_takes_the_leaf_in_strict_mode_and_refuses_it_without_the_bundle() {
    let host = Host::new();
    let environment = host.authority.environment();
    let expected = format!("hello from {}", host.authority.issuer());
    for (bind, names) in [
        ("127.0.0.1:0", &["localhost", "mcp.example.test", "127.0.0.1"][..]),
        ("[::1]:0", &["::1", "localhost"]),
    ] {
        let (address, server) = start(&host, bind).await;
        for name in names {
            let port = address.port().to_string();
            let arguments = ["-c", PYTHON, &address.ip().to_string(), &port, name];
            let (content, text) = run("python3", &arguments, &environment).await.expect("python3 is needed");
            assert_eq!((content, text.trim()), (true, expected.as_str()), "{address} as {name:?}");
            let (content, text) = run("python3", &arguments, &[]).await.unwrap();
            assert!(!content && text.contains("refused: "), "{text}");
        }
        server.abort();
    }
}

#[tokio::test]
async fn curl_takes_the_leaf_with_each_of_its_variables() {
    let host = Host::new();
    let (address, server) = start(&host, "127.0.0.1:0").await;
    let url = format!("https://mcp.example.test:{}/", address.port());
    let resolve = format!("mcp.example.test:{}:127.0.0.1", address.port());
    let arguments = ["--silent", "--show-error", "--noproxy", "*", "--resolve", &resolve, &url];
    for variable in ["CURL_CA_BUNDLE", "SSL_CERT_FILE"] {
        let environment: Vec<_> =
            host.authority.environment().into_iter().filter(|(name, _)| *name == variable).collect();
        let Some(with) = run("curl", &arguments, &environment).await else {
            eprintln!("curl is not on this machine: not tried");
            return;
        };
        assert_eq!(with, (true, "hello".to_owned()));
    }
    let (content, text) = run("curl", &arguments, &[]).await.unwrap();
    assert!(!content && text.contains("certificate"), "{text}");
    server.abort();
}

#[tokio::test]
async fn openssl_takes_the_leaf_in_strict_mode() {
    let host = Host::new();
    let (address, server) = start(&host, "127.0.0.1:0").await;
    let connect = address.to_string();
    let arguments = [
        "s_client",
        "-connect",
        &connect,
        "-servername",
        "mcp.example.test",
        "-verify_hostname",
        "mcp.example.test",
        "-verify_return_error",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-brief",
    ];
    let Some((content, text)) = run("openssl", &arguments, &host.authority.environment()).await else {
        eprintln!("openssl is not on this machine: not tried");
        return;
    };
    assert!(content && text.contains("Verification: OK"), "{text}");
    let (content, text) = run("openssl", &arguments, &[]).await.unwrap();
    assert!(!content || text.contains("verify error"), "{text}");
    server.abort();
}
