//! An MCP client as a pipeline job has one: the official Rust SDK, released and unmodified.
//!
//! In: a URL, then `--revision R`, `--nonce PREFIX`, `--calls echo,count,...` and `--arguments JSON`. Without `--calls` it
//! calls each tool that the server lists, once, as the conformance suite wants. Out: JSON lines, one for each call and one at
//! the end. It knows nothing of Weir.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use rmcp::model::{CallToolRequestParams, ClientConfig, JsonObject, ProtocolVersion};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientLifecycleMode, ClientServiceExt};
use serde_json::{Value, json};

/// What the suite tells its clients of the revision.
const REVISION: &str = "MCP_CONFORMANCE_PROTOCOL_VERSION";

struct Plan {
    url: String,
    revision: ProtocolVersion,
    nonce: String,
    calls: Option<Vec<String>>,
    arguments: JsonObject,
}

impl Plan {
    fn read() -> Result<Self> {
        let mut words = std::env::args().skip(1);
        let url = words
            .next()
            .context("usage: weir-tests-rmcp-client URL [--revision R] [--calls A,B] [--nonce N]")?;
        let revision = std::env::var(REVISION).unwrap_or_else(|_| "2025-11-25".into());
        let mut plan = Self {
            url,
            revision: known(&revision)?,
            nonce: "rmcp".into(),
            calls: None,
            arguments: JsonObject::new(),
        };
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--revision" => plan.revision = known(&value)?,
                "--nonce" => plan.nonce = value,
                "--calls" => plan.calls = Some(value.split(',').map(str::to_owned).collect()),
                "--arguments" => plan.arguments = serde_json::from_str(&value)?,
                other => bail!("{other} is no option"),
            }
        }
        Ok(plan)
    }

    fn lifecycle(&self) -> ClientLifecycleMode {
        if self.revision == ProtocolVersion::V_2026_07_28 {
            ClientLifecycleMode::Discover { preferred_versions: vec![self.revision.clone()] }
        } else {
            ClientLifecycleMode::Initialize
        }
    }
}

fn known(revision: &str) -> Result<ProtocolVersion> {
    Ok(serde_json::from_value(Value::String(revision.to_owned()))?)
}

/// A value for a JSON schema.
fn sample(schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("integer" | "number") => json!(5),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("object") => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            Value::Object(fields.map(|(name, each)| (name.clone(), sample(each))).collect())
        }
        _ => json!("text"),
    }
}

/// The arguments that the pipeline's own server wants, but for the nonce.
fn arguments_of(tool: &str) -> Value {
    match tool {
        "echo" => json!({"text": "hello from Rust"}),
        "read_config" => json!({"name": "deploy.env"}),
        "delete_repo" => json!({"repo": "payments"}),
        "count" => json!({"to": 5}),
        _ => json!({}),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let plan = Plan::read()?;
    // The SDK is built without one, so that one cryptography library is enough.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        bail!("a provider of cryptography is there already");
    }
    let transport = StreamableHttpClientTransport::from_uri(plan.url.as_str());
    let mut config = ClientConfig::default();
    config.protocol_version = plan.revision.clone();
    let client = config.serve_with_lifecycle(transport, plan.lifecycle()).await.context("connecting")?;
    println!("{}", json!({"event": "session", "client": "rmcp", "pid": std::process::id()}));
    let calls: Vec<(String, Value)> = match &plan.calls {
        Some(calls) => calls.iter().map(|tool| (tool.clone(), arguments_of(tool))).collect(),
        None => {
            let tools = client.list_all_tools().await.context("listing tools")?;
            let sampled = |tool: rmcp::model::Tool| {
                (tool.name.to_string(), sample(&Value::Object((*tool.input_schema).clone())))
            };
            tools.into_iter().map(sampled).collect()
        }
    };
    for (number, (tool, mut arguments)) in calls.into_iter().enumerate() {
        let nonce = format!("{}-{number}", plan.nonce);
        if let Value::Object(fields) = &mut arguments
            && plan.calls.is_some()
        {
            fields.extend(plan.arguments.clone());
            fields.insert("nonce".into(), json!(nonce));
        }
        let mut call = CallToolRequestParams::new(tool.clone());
        call.arguments = arguments.as_object().cloned();
        let line = match client.call_tool(call).await {
            Ok(result) => {
                let result = serde_json::to_value(&result)?;
                let parts = result["content"].as_array().into_iter().flatten();
                let text: String = parts.filter_map(|part| part["text"].as_str()).collect();
                json!({"event": "call", "tool": tool, "nonce": nonce, "ok": result["isError"] != true, "text": text, "ms": 0})
            }
            Err(error) => {
                json!({"event": "call", "tool": tool, "nonce": nonce, "ok": false, "message": error.to_string(), "ms": 0})
            }
        };
        println!("{line}");
    }
    client.cancel().await?;
    println!("{}", json!({"event": "end", "issuer": null, "tcp_connects": 0}));
    Ok(())
}
