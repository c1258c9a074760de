//! Where a server of 2024-11-05 wants its messages: what its stream's `endpoint` event says comes in, the path and query that a
//! client will post to go out.

use url::Url;

/// The path and query of an endpoint that a stream at `base`, a path and query itself, announced: an absolute URL, one without a
/// scheme, an absolute path, or one relative to the stream's. `None` for what no client can post to.
///
/// It is resolved as clients do it (WHATWG URL). An absolute URL's host is not looked at: the same server may have another name
/// for itself than clients have for it.
pub fn resolve(base: &str, endpoint: &str) -> Option<String> {
    if endpoint.trim().is_empty() {
        return None;
    }
    let url = Url::parse(&format!("http://stream.invalid{base}")).ok()?.join(endpoint).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    Some(match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_where_its_stream_says() {
        for (endpoint, target) in [
            ("/messages/?session_id=1", "/messages/?session_id=1"),
            ("http://a.test:8/m?s=1", "/m?s=1"),
            ("//a.test/m?s=1", "/m?s=1"),
            ("https://a.test?s=1", "/?s=1"),
            ("http://a.test", "/"),
            ("messages?s=1", "/mcp/messages?s=1"),
            ("../messages?s=1", "/messages?s=1"),
            ("?s=1", "/mcp/sse?s=1"),
            (" /m?next=http://b.test/ ", "/m?next=http://b.test/"),
            ("/m?s=1#there", "/m?s=1"),
            ("/a b", "/a%20b"),
        ] {
            assert_eq!(resolve("/mcp/sse?x=/y/z", endpoint).as_deref(), Some(target), "{endpoint}");
        }
        for none in ["", "  ", "ftp://a.test/m", "mailto:a@b.test", "http://[::1"] {
            assert_eq!(resolve("/sse", none), None, "{none}");
        }
    }
}
