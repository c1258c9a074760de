//! Answers and faults as HTTP responses, with the headers that ClickHouse's clients look for.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use crate::engine::Counts;
use crate::fault::Fault;
use crate::job::Done;

pub type Reply = Response<Full<Bytes>>;

const TEXT: &str = "text/plain; charset=UTF-8";

/// What every reply says about the server.
#[derive(Debug, Clone)]
pub struct Server {
    pub timezone: String,
}

/// `/ping` and the like.
pub fn plain(status: StatusCode, text: &'static str) -> Reply {
    with(Response::new(Full::from(text)), status, &[(CONTENT_TYPE, TEXT.into())])
}

pub fn done(server: &Server, query_id: Option<&str>, done: Done, elapsed_ns: u128) -> Reply {
    let result_bytes = done.answer.len();
    let mut headers = vec![
        (CONTENT_TYPE, content_type(&done.format).into()),
        (HeaderName::from_static("x-clickhouse-format"), done.format),
        (HeaderName::from_static("x-clickhouse-summary"), summary(done.counts, result_bytes, elapsed_ns)),
    ];
    headers.extend(about(server, query_id));
    with(Response::new(Full::new(done.answer)), StatusCode::OK, &headers)
}

/// A fault's text is plain, even if the request asked for compressed frames.
pub fn fault(server: &Server, query_id: Option<&str>, fault: &Fault) -> Reply {
    let mut headers = vec![
        (CONTENT_TYPE, TEXT.to_owned()),
        (HeaderName::from_static("x-clickhouse-exception-code"), fault.code().to_string()),
    ];
    headers.extend(about(server, query_id));
    with(Response::new(Full::from(format!("{fault}\n"))), fault.status(), &headers)
}

/// The secret is wrong (403), or missing (401, so that a browser or curl knows to ask for it).
pub fn unauthenticated(server: &Server, fault_: &Fault, presented: bool) -> Reply {
    let mut reply = fault(server, None, fault_);
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    if !presented {
        *reply.status_mut() = StatusCode::UNAUTHORIZED;
        reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"weir-store\""));
    }
    reply
}

fn about(server: &Server, query_id: Option<&str>) -> Vec<(HeaderName, String)> {
    let mut headers = vec![
        (HeaderName::from_static("x-clickhouse-server-display-name"), "weir-store".to_owned()),
        (HeaderName::from_static("x-clickhouse-timezone"), server.timezone.clone()),
    ];
    headers.extend(query_id.map(|id| (HeaderName::from_static("x-clickhouse-query-id"), id.to_owned())));
    headers
}

/// A value that no header can hold (a line break in a query id) is left out.
fn with(mut reply: Reply, status: StatusCode, headers: &[(HeaderName, String)]) -> Reply {
    *reply.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            reply.headers_mut().insert(name, value);
        }
    }
    reply
}

fn summary(counts: Counts, result_bytes: usize, elapsed_ns: u128) -> String {
    // ClickHouse sends numbers as strings here.
    serde_json::json!({
        "read_rows": counts.read_rows.to_string(),
        "read_bytes": counts.read_bytes.to_string(),
        "written_rows": counts.written_rows.to_string(),
        "written_bytes": counts.written_bytes.to_string(),
        "total_rows_to_read": "0",
        "result_rows": counts.result_rows.to_string(),
        "result_bytes": result_bytes.to_string(),
        "elapsed_ns": elapsed_ns.to_string(),
    })
    .to_string()
}

fn content_type(format: &str) -> &'static str {
    let is = |names: &[&str]| names.iter().any(|name| format.eq_ignore_ascii_case(name));
    let starts = |name: &str| format.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    if is(&["TSV", "TabSeparated"]) || starts("TSVWith") || starts("TabSeparatedWith") {
        "text/tab-separated-values; charset=UTF-8"
    } else if starts("CSV") {
        "text/csv; charset=UTF-8; header=absent"
    } else if starts("JSONEachRow") || starts("JSONCompactEachRow") {
        "application/x-ndjson; charset=UTF-8"
    } else if starts("JSON") {
        "application/json; charset=UTF-8"
    } else if starts("RowBinary")
        || is(&["Native", "Parquet", "Arrow", "ArrowStream", "ORC", "Avro", "MsgPack", "Npy"])
    {
        "application/octet-stream"
    } else {
        TEXT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_id_that_no_header_can_hold_is_left_out() {
        let server = Server { timezone: "UTC".to_owned() };
        let reply = fault(&server, Some("a\r\nb"), &Fault::from_engine("Code: 62. x".into()));
        assert!(!reply.headers().contains_key("x-clickhouse-query-id"));
        assert_eq!(reply.headers()["x-clickhouse-exception-code"], "62");
    }

    #[test]
    fn formats_have_clickhouses_content_types() {
        assert_eq!(content_type("JSONEachRow"), "application/x-ndjson; charset=UTF-8");
        assert_eq!(content_type("JSON"), "application/json; charset=UTF-8");
        assert_eq!(content_type("RowBinaryWithNamesAndTypes"), "application/octet-stream");
        assert_eq!(content_type("Pretty"), TEXT);
    }
}
