//! Measures what a row costs the collector: from an event's canonical bytes, read and proven canonical, to the row, up to the
//! client's own encoding. Run by `cargo xtask bench proxy`. Leaves one line of JSON on stdout.

use anyhow::{Context, Result};
use weir_collector::rows::{Batch, EventRow};
use weir_core::record::Stored;

/// Rows of each kind.
const ROWS: u64 = 20_000;

fn main() -> Result<()> {
    let batch = Batch {
        epoch: 1,
        first_seq: 0,
        digest: "d".repeat(64),
        sealed_us: 1_790_000_000_000_000,
        agent_uid: 64_991,
        agent_identity: "uid:64991".into(),
        ingested_us: 1_790_000_000_000_000,
    };
    let events = [intent(), outcome()];
    let bytes: usize = events.iter().map(String::len).sum();
    let began = own_time()?;
    for _ in 0..ROWS {
        for event in &events {
            let stored = Stored::read(event.as_bytes())?;
            std::hint::black_box(EventRow::of(stored, event.clone().into_bytes(), &batch));
        }
    }
    let rows = ROWS * events.len() as u64;
    let us_per_row = (own_time()? - began) as f64 / 1000.0 / rows as f64;
    println!("{{\"us_per_row\":{us_per_row:.3},\"bytes_per_row\":{}}}", bytes / events.len());
    Ok(())
}

/// An intent with the params that the load sends.
fn intent() -> String {
    let arguments = "src/main.rs ".repeat(45);
    placed(&format!(
        r#"{{"call_id":"{ID}","caller":{{"cgroup":"/job","comm":"node","command_line":"node /opt/runner/client.mjs --server https://localhost/mcp","executable":"/usr/bin/node","gid":1000,"job":{{"actor":"kim","commit":"0123456789abcdef","job":"build","provider":"github","reference":"refs/heads/main","repository":"acme/app","run_id":"1","runner":"r1","workflow":"ci"}},"pid":7,"seen_alive":true,"start_time":9,"uid":1000}},"durability":"strict","flow_id":"{ID}","kind":"intent","mcp":{{"method":"tools/call","request_id":"7","tool":"read_file"}},"payload":{{"bytes":600,"text":"{{\"name\":\"read_file\",\"arguments\":{{\"text\":\"{arguments}\"}}}}","truncated":false}},"server":{{"address":"127.0.0.1","name":"localhost","port":443,"proof":"certificate"}},"verdict":{{"action":"allow","policy_digest":"{ID}{ID}","rule":"reads"}}}}"#
    ).replace(r#""#, ""))
}

/// An outcome with the answer that the server gives.
fn outcome() -> String {
    let text = "The pipeline builds three images. ".repeat(60);
    placed(&format!(
        r#"{{"call_id":"{ID}","duration_us":345,"error_code":null,"http_status":200,"kind":"outcome","payload":{{"bytes":2150,"text":"{{\"content\":[{{\"type\":\"text\",\"text\":\"{text}\"}}]}}","truncated":false}},"result":"ok"}}"#
    ))
}

const ID: &str = "0123456789abcdef0123456789abcdef";

fn placed(body: &str) -> String {
    format!(
        r#"{{"body":{body},"boot":"{ID}","host":"h","origin":"{ID}","seq":9,"tenant":"bench","time_us":1790000000000000,"v":1}}"#
    )
}

/// The nanoseconds that this thread has run: what else the machine does is not in them.
fn own_time() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split(' ').next().context("no schedstat")?.parse()?)
}
