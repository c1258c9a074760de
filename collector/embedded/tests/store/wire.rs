//! ClickHouse's HTTP interface, byte by byte, as `curl` uses it.

use crate::harness::{Store, encoded, store};

/// `CREATE DATABASE` and one table with a row.
fn prepared() -> (tempfile::TempDir, Store) {
    let (folder, store) = store();
    store.ask("CREATE DATABASE weir");
    store.ask("CREATE TABLE weir.t (a UInt32, s String) ENGINE = MergeTree ORDER BY a");
    store.ask("INSERT INTO weir.t VALUES (1, 'one')");
    (folder, store)
}

#[test]
fn nobody_without_the_secret_gets_past_ping() {
    let (_folder, store) = prepared();
    assert_eq!(store.http_with("GET", "/ping", &[], b"").text(), "Ok.\n");
    let short = &store.secret[..store.secret.len() - 1];
    let basic = ("Authorization", "Basic ZGVmYXVsdDp3cm9uZw==");
    for statement in
        ["ALTER TABLE weir.t DELETE WHERE 1", "DELETE FROM weir.t WHERE 1", "DROP DATABASE weir", "SELECT 1"]
    {
        let target = format!("/?query={}", encoded(statement));
        for headers in [
            vec![],
            vec![("X-ClickHouse-Key", short)],
            vec![("X-ClickHouse-Key", "")],
            vec![("X-ClickHouse-User", "root"), ("X-ClickHouse-Key", store.secret.as_str())],
            vec![("X-ClickHouse-Key", "wrong"), ("Authorization", "Basic whatever")],
            vec![basic],
        ] {
            for reply in [
                store.http_with("POST", "/", &headers, statement.as_bytes()),
                store.http_with("POST", &target, &headers, b""),
                store.http_with("GET", &format!("{target}&password=wrong"), &headers, b""),
            ] {
                assert!([401, 403].contains(&reply.status), "{statement} {headers:?}: {reply:?}");
                assert_eq!(reply.code(), Some(516));
                assert!(!reply.text().contains(&store.secret));
            }
        }
    }
    assert_eq!(store.ask("SELECT count() FROM weir.t"), "1");
}

#[test]
fn the_secret_opens_by_header_by_basic_and_by_url() {
    let (_folder, store) = store();
    let basic = std::process::Command::new("base64")
        .args(["-w0"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            use std::io::Write as _;
            write!(child.stdin.take().expect("its stdin"), "default:{}", store.secret)?;
            child.wait_with_output()
        })
        .expect("base64");
    let basic = format!("Basic {}", String::from_utf8_lossy(&basic.stdout));
    for (target, headers) in [
        (
            "/?query=SELECT+1".to_owned(),
            vec![("X-ClickHouse-User", "default"), ("X-ClickHouse-Key", store.secret.as_str())],
        ),
        ("/?query=SELECT+1".to_owned(), vec![("Authorization", basic.as_str())]),
        (format!("/?query=SELECT+1&user=default&password={}", store.secret), vec![]),
    ] {
        let reply = store.http_with("GET", &target, &headers, b"");
        assert_eq!((reply.status, reply.text().as_str()), (200, "1\n"));
    }
}

#[test]
fn rows_in_the_body_arrive_whatever_bytes_they_hold() {
    let (_folder, store) = prepared();
    let insert =
        |format: &str| format!("/?query={}", encoded(&format!("INSERT INTO weir.t FORMAT {format}")));
    let lines = b"{\"a\":2,\"s\":\"x\\n\\n;y\"}\n\n\n{\"a\":3,\"s\":\"z\"}\n";
    let reply = store.http("POST", &insert("JSONEachRow"), lines);
    assert_eq!((reply.status, reply.text().as_str()), (200, ""));
    let summary: serde_json::Value =
        serde_json::from_str(reply.header("X-ClickHouse-Summary").expect("a summary")).expect("JSON");
    assert_eq!(summary["written_rows"], "2");
    let whole = [b"INSERT INTO weir.t FORMAT JSONEachRow\n".as_slice(), b"{\"a\":4,\"s\":\"w\"}"].concat();
    assert_eq!(store.http("POST", "/", &whole).status, 200);
    let binary = b"\x05\0\0\0\x08\n\n;\n\n'\\\0";
    assert_eq!(store.http("POST", &insert("RowBinary"), binary).status, 200);
    let native = store.http("POST", "/", b"SELECT toUInt32(6) AS a, 'n' AS s FORMAT Native");
    assert_eq!(native.header("X-ClickHouse-Format"), Some("Native"));
    assert_eq!(store.http("POST", &insert("Native"), &native.body).status, 200);
    assert_eq!(
        store.ask("SELECT a, hex(s) FROM weir.t ORDER BY a FORMAT CSV"),
        "1,\"6F6E65\"\n2,\"780A0A3B79\"\n3,\"7A\"\n4,\"77\"\n5,\"0A0A3B0A0A275C00\"\n6,\"6E\""
    );
}

#[test]
fn the_largest_segment_is_one_block() {
    let (_folder, store) = prepared();
    let rows: String = (0..20_000).map(|row| format!("{row}\t{}\n", "x".repeat(840))).collect();
    assert!(rows.len() > 16 << 20);
    let target = format!("/?max_insert_threads=1&query={}", encoded("INSERT INTO weir.t FORMAT TSV"));
    assert_eq!(store.http("POST", &target, rows.as_bytes()).status, 200);
    let parts = "SELECT rows FROM system.parts WHERE active AND table = 't' ORDER BY rows";
    assert_eq!(store.ask(parts), "1\n20000");
}

#[test]
fn broken_rows_are_refused_whole() {
    let (_folder, store) = prepared();
    for (format, body, code) in [
        ("RowBinary", b"\x05\0\0\0\x01x\x06\0".as_slice(), 33),
        ("JSONEachRow", b"{\"a\":7,\"s\":\"x\"}\n{\"a\":\"no\"", 27),
        ("Nonsense", b"x", 73),
    ] {
        let target = format!("/?query={}", encoded(&format!("INSERT INTO weir.t FORMAT {format}")));
        let reply = store.http("POST", &target, body);
        assert_eq!(reply.code(), Some(code), "{format}: {}", reply.text());
    }
    for text in
        ["INSERT INTO weir.t VALUES (7, 'x'); DROP TABLE weir.t", "INSERT INTO weir.t VALUES (7, 'x'), ("]
    {
        assert!(store.http("POST", "/", text.as_bytes()).code().is_some(), "{text}");
    }
    assert_eq!(store.ask("SELECT count() FROM weir.t"), "1");
}

#[test]
fn settings_of_a_url_hold_for_that_query_alone() {
    let (_folder, store) = store();
    let read = b"SELECT getSetting('max_threads'), getSetting('log_comment')".as_slice();
    let reply = store.http("POST", "/?max_threads=3&log_comment=it%27s", read);
    assert_eq!(reply.text(), "3\tit\\'s\n");
    assert_ne!(store.ask("SELECT getSetting('max_threads')"), "3");
    for (target, code, status) in [
        ("/?no_such_setting=1", 115, 404),
        ("/?max_threads=many", 27, 400),
        ("/?max_threads%20=1", 115, 404),
        ("/?database=nowhere", 81, 404),
        ("/?role=auditor", 511, 404),
    ] {
        let reply = store.http("POST", target, b"SELECT 1");
        assert_eq!((reply.code(), reply.status), (Some(code), status), "{target}: {}", reply.text());
    }
    // Not a setting of a query but of a table: a real server says the same.
    assert_eq!(store.http("POST", "/?fsync_after_insert=1", b"SELECT 1").code(), Some(115));
}

#[test]
fn a_get_changes_nothing_and_writes_no_file() {
    let (folder, store) = prepared();
    let get = |sql: &str| store.http("GET", &format!("/?query={}", encoded(sql)), b"");
    assert_eq!(get("SELECT count() FROM weir.t").text(), "1\n");
    assert_eq!(get("SHOW TABLES FROM weir").text(), "t\n");
    for sql in [
        "DROP TABLE weir.t",
        "INSERT INTO weir.t VALUES (2, 'x')",
        "INSERT INTO weir.t FORMAT TSV",
        "SET readonly = 0",
        "ALTER TABLE weir.t DELETE WHERE 1",
        // Embedded, the engine by itself would let this one lift its own restriction.
        "DROP TABLE weir.t SETTINGS readonly = 0",
    ] {
        for reply in [get(sql), store.http("POST", "/?readonly=1", sql.as_bytes())] {
            assert_eq!((reply.code(), reply.status), (Some(164), 500), "{sql}: {}", reply.text());
        }
    }
    let file = folder.path().join("out");
    let outfile = format!("SELECT 1 INTO OUTFILE '{}'", file.display());
    assert_eq!(get(&outfile).code(), Some(358));
    assert_eq!(store.http("POST", "/", outfile.as_bytes()).code(), Some(358));
    assert!(!file.exists());
    assert_eq!(store.ask("SELECT count() FROM weir.t"), "1");
}

#[test]
fn one_request_is_one_statement() {
    let (_folder, store) = prepared();
    for text in [
        "SELECT 1; DROP TABLE weir.t",
        "INSERT INTO weir.t; DROP TABLE weir.t",
        "exit",
        "",
        ";",
        "-- nothing",
    ] {
        let reply = store.http("POST", "/", text.as_bytes());
        assert_eq!((reply.code(), reply.status), (Some(62), 400), "{text:?}: {}", reply.text());
    }
    assert_eq!(store.ask("SELECT 1; -- the end"), "1");
    assert_eq!(store.ask("SELECT count() FROM weir.t"), "1");
}

#[test]
fn compressed_frames_go_both_ways() {
    let (_folder, store) = prepared();
    // CityHash128 and LZ4 as a ClickHouse client would read them: `1\n` in one frame.
    let reply = store.http("POST", "/?compress=1", b"SELECT 1");
    let frame = b"\xde\x79\xcf\x08\x7f\xb6\x35\x04\x9d\xb8\x16\xdf\x19\x5b\x01\x6b\x82\x0c\0\0\0\x02\0\0\0\x20\x31\x0a";
    assert_eq!(reply.body, frame);
    let target = format!("/?decompress=1&query={}", encoded("SELECT 'a' AS s, * FROM (SELECT"));
    assert_eq!(
        store.http("POST", &target, frame).code(),
        Some(62),
        "the frame's content is part of the text"
    );
    let target = format!("/?decompress=1&query={}", encoded("INSERT INTO weir.t FORMAT Native"));
    let rows = store.http(
        "POST",
        "/?compress=1",
        b"SELECT number::UInt32 AS a, toString(number) AS s FROM numbers(50000) FORMAT Native",
    );
    assert_eq!(store.http("POST", &target, &rows.body).status, 200);
    assert_eq!(store.ask("SELECT count(), sum(a) FROM weir.t"), "50001\t1249975001");
    let mut broken = rows.body.clone();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    assert_eq!(store.http("POST", &target, &broken).code(), Some(40));
    assert_eq!(store.http("POST", &target, &rows.body[..last]).code(), Some(271));
    assert_eq!(store.ask("SELECT count() FROM weir.t"), "50001");
}

#[test]
fn what_the_store_does_not_take_it_names() {
    let (_folder, store) = store();
    let key = ("X-ClickHouse-Key", store.secret.as_str());
    let gzip = store.http_with("POST", "/", &[key, ("Content-Encoding", "gzip")], b"x");
    assert_eq!(gzip.code(), Some(89));
    assert!(gzip.text().contains("gzip"), "{}", gzip.text());
    assert_eq!(store.http("PUT", "/", b"").status, 405);
    assert_eq!(store.http("GET", "/play", b"").status, 404);
    let user = store.http("POST", "/", b"CREATE USER eve");
    assert_eq!((user.code(), user.status), (Some(497), 403), "{}", user.text());
}

#[test]
fn every_table_is_durable_even_if_its_create_does_not_say_so() {
    let (_folder, store) = store();
    assert_eq!(
        store
            .ask("SELECT groupArray((name, value)) FROM system.merge_tree_settings WHERE name LIKE 'fsync%'"),
        "[('fsync_after_insert','1'),('fsync_part_directory','1')]"
    );
}

#[test]
fn forms_carry_a_query_and_its_parameters() {
    let (_folder, store) = store();
    let form = "--b\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT {a:String}, {n:UInt8}\r\n--b\r\n\
                Content-Disposition: form-data; name=\"param_a\"\r\n\r\nx'y\r\n--b--\r\n";
    let headers =
        [("X-ClickHouse-Key", store.secret.as_str()), ("Content-Type", "multipart/form-data; boundary=b")];
    let reply = store.http_with("POST", "/?param_n=7", &headers, form.as_bytes());
    assert_eq!(reply.text(), "x\\'y\t7\n");
    let missing = store.http("POST", "/", b"SELECT {a:String}");
    assert_eq!(missing.code(), Some(456), "{}", missing.text());
}

#[test]
fn the_body_at_its_limit_passes_and_one_byte_more_does_not() {
    const LIMIT: usize = 64 << 20;
    let (_folder, store) = store();
    store.ask("CREATE TABLE raw (s String) ENGINE = Memory");
    let target = format!("/?query={}", encoded("INSERT INTO raw FORMAT RawBLOB"));
    let mut body = vec![b'x'; LIMIT];
    let reply = store.http("POST", &target, &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(store.ask("SELECT length(s) FROM raw"), LIMIT.to_string());
    body.push(b'x');
    let reply = store.http("POST", &target, &body);
    assert_eq!((reply.status, reply.code()), (413, Some(229)));
}

#[test]
fn an_answer_past_its_limit_is_a_fault_and_not_a_cut_one() {
    let (_folder, store) = store();
    let reply = store.http("POST", "/", b"SELECT number FROM numbers(100000000)");
    assert_eq!((reply.status, reply.code()), (500, Some(396)), "{}", reply.text());
    let reply =
        store.http("POST", "/?max_result_bytes=1000", b"SELECT number FROM numbers(1000) FORMAT RowBinary");
    assert_eq!(reply.code(), Some(396));
    let reply = store.http("POST", "/", b"SELECT number FROM numbers(1000000) FORMAT RowBinary");
    assert_eq!((reply.status, reply.body.len()), (200, 8_000_000));
}

#[test]
fn many_queries_at_once_all_get_their_own_answer() {
    let (_folder, store) = prepared();
    std::thread::scope(|scope| {
        for n in 0..40_u32 {
            let store = &store;
            scope.spawn(move || {
                let reply = store.http(
                    "POST",
                    &format!("/?max_threads={}&param_n={n}", n % 5 + 1),
                    b"SELECT {n:UInt32}, getSetting('max_threads') FROM numbers(3) WHERE NOT sleepEachRow(0.02)",
                );
                let line = format!("{n}\t{}\n", n % 5 + 1);
                assert_eq!((reply.status, reply.text()), (200, line.repeat(3)));
            });
        }
    });
}
