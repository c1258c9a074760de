//! An MCP server made of the official Rust SDK: what the conformance suite asks of a server's tools, over HTTP/1.1 and h2.
//!
//! In: `--port N`, and `--certificate FILE --key FILE` for TLS. Out: one JSON line on stdout when it listens.

#![forbid(unsafe_code)]

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ListToolsResult, PaginatedRequestParams,
    ProgressNotificationParam, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const PIXEL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";
const STEP: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
struct Everything;

fn content(tool: &str) -> Option<Value> {
    let text = |text: &str| json!([{"type": "text", "text": text}]);
    Some(match tool {
        "test_simple_text" => text("This is a simple text response for testing."),
        "test_image_content" => json!([{"type": "image", "data": PIXEL, "mimeType": "image/png"}]),
        "test_error_handling" => text("This tool intentionally returns an error for testing"),
        "test_tool_with_progress" => text("done"),
        _ => return None,
    })
}

impl ServerHandler for Everything {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let names =
            ["test_simple_text", "test_image_content", "test_error_handling", "test_tool_with_progress"];
        let tool = |name| json!({"name": name, "description": name, "inputSchema": {"type": "object", "properties": {}}});
        parsed(json!({"tools": names.map(tool)}))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let unknown = || ErrorData::invalid_params(format!("no such tool: {}", request.name), None);
        let content = content(&request.name).ok_or_else(unknown)?;
        if request.name == "test_tool_with_progress"
            && let Some(token) = context.meta.get_progress_token()
        {
            for progress in [0.0, 50.0, 100.0] {
                let told = ProgressNotificationParam::new(token.clone(), progress).with_total(100.0);
                // Whoever asked may have left.
                let _ = context.peer.notify_progress(told).await;
                tokio::time::sleep(STEP).await;
            }
        }
        let failed = request.name == "test_error_handling";
        let result: CallToolResult = parsed(json!({"content": content, "isError": failed}))?;
        Ok(result.into())
    }
}

fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, ErrorData> {
    serde_json::from_value(value).map_err(|error| ErrorData::internal_error(error.to_string(), None))
}

type Service = TowerToHyperService<StreamableHttpService<Everything, LocalSessionManager>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (mut port, mut certificate, mut key) = (0, None, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--port" => port = value.parse()?,
            "--certificate" => certificate = Some(value),
            "--key" => key = Some(value),
            other => bail!("{other} is no option"),
        }
    }
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(acceptor(&certificate, &key)?),
        (None, None) => None,
        _ => bail!("--certificate and --key belong together"),
    };
    let allowed = StreamableHttpServerConfig::default()
        .with_allowed_origins(["http://localhost:*", "https://localhost:*"]);
    let service = StreamableHttpService::new(|| Ok(Everything), Arc::default(), allowed);
    let service = TowerToHyperService::new(service);
    // Both families: "localhost" is either.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await?;
    println!("{}", json!({"ready": true, "port": listener.local_addr()?.port(), "pid": std::process::id()}));
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream, tls.clone(), service.clone()));
    }
}

fn acceptor(certificate: &str, key: &str) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, service: Service) {
    let server = auto::Builder::new(TokioExecutor::new());
    let served = match tls {
        None => server.serve_connection(TokioIo::new(stream), service).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => server.serve_connection(TokioIo::new(stream), service).await,
            Err(error) => return eprintln!("a handshake failed: {error}"),
        },
    };
    if let Err(error) = served {
        eprintln!("a connection broke off: {error}");
    }
}
