use super::*;

fn insert_of(text: &str) -> (&str, &str, &[u8]) {
    match split(text.as_bytes()) {
        Statement::Insert { head, format, data } => (std::str::from_utf8(head).expect("text"), format, data),
        other => panic!("{text:?} read as {other:?}"),
    }
}

fn format_of(text: &str) -> Option<&str> {
    match split(text.as_bytes()) {
        Statement::Plain { format, .. } => format,
        other => panic!("{text:?} read as {other:?}"),
    }
}

#[test]
fn an_insert_parts_from_its_rows_behind_the_format() {
    assert_eq!(
        insert_of("INSERT INTO weir.t (a, b) FORMAT JSONEachRow\n{\"a\":1}\n"),
        ("INSERT INTO weir.t (a, b)", "JSONEachRow", b"{\"a\":1}\n".as_slice())
    );
    assert_eq!(
        insert_of("insert into t settings x = 'format CSV' format RowBinary \t\r\n\n\n"),
        ("insert into t settings x = 'format CSV'", "RowBinary", b"\n\n".as_slice())
    );
    assert_eq!(insert_of("INSERT INTO t FORMAT CSV 1,2"), ("INSERT INTO t", "CSV", b"1,2".as_slice()));
}

#[test]
fn an_insert_without_a_format_takes_values_from_elsewhere() {
    assert_eq!(insert_of("INSERT INTO t"), ("INSERT INTO t", "Values", b"".as_slice()));
    assert_eq!(insert_of("INSERT INTO t (a) -- why\n"), ("INSERT INTO t (a)", "Values", b"".as_slice()));
    assert_eq!(insert_of("INSERT INTO t FORMAT Values"), ("INSERT INTO t", "Values", b"".as_slice()));
}

#[test]
fn names_spelled_like_keywords_are_names() {
    assert_eq!(insert_of("INSERT INTO values FORMAT TSV\n1").0, "INSERT INTO values");
    assert_eq!(insert_of("INSERT INTO db.select FORMAT TSV\n1").0, "INSERT INTO db.select");
    assert_eq!(
        insert_of("INSERT INTO `a b`.\"c\" (`format`) FORMAT TSV\n").0,
        "INSERT INTO `a b`.\"c\" (`format`)"
    );
    assert_eq!(insert_of("INSERT INTO TABLE t (format) FORMAT TSV\n").0, "INSERT INTO TABLE t (format)");
    assert_eq!(insert_of("INSERT INTO table FORMAT TSV\n").0, "INSERT INTO table");
    assert_eq!(
        insert_of("INSERT INTO FUNCTION null('a Int8') FORMAT TSV\n").0,
        "INSERT INTO FUNCTION null('a Int8')"
    );
}

#[test]
fn inserts_that_carry_their_own_rows_stay_whole() {
    for text in [
        "INSERT INTO t VALUES (1, 'FORMAT CSV')",
        "INSERT INTO t (a) SELECT 1 FORMAT Null",
        "INSERT INTO t (SELECT 1)",
        "INSERT INTO t WITH 1 AS x SELECT x",
        "INSERT INTO t; DROP TABLE t",
        "SELECT 1",
        "/* INSERT INTO t FORMAT CSV */ SELECT 1",
    ] {
        assert!(matches!(split(text.as_bytes()), Statement::Plain { .. }), "{text}");
    }
}

#[test]
fn the_format_of_a_query_is_the_one_at_its_end() {
    assert_eq!(format_of("SELECT 1 FORMAT JSON"), Some("JSON"));
    assert_eq!(format_of("select 1 format JSON settings max_threads = 1;"), Some("JSON"));
    assert_eq!(format_of("SELECT format FROM t"), None);
    assert_eq!(format_of("SELECT ' FORMAT CSV'"), None);
    assert_eq!(format_of("SELECT $q$ FORMAT CSV $q$ -- FORMAT TSV"), None);
    assert_eq!(format_of("SELECT (SELECT 1 FORMAT JSON)"), None);
    assert_eq!(format_of(""), None);
}

#[test]
fn files_of_the_client_are_noticed_outside_strings_alone() {
    let touches =
        |text: &str| matches!(split(text.as_bytes()), Statement::Plain { touches_client_files: true, .. });
    assert!(touches("SELECT 1 INTO /* x */ OUTFILE 'f'"));
    assert!(touches("INSERT INTO t FROM INFILE 'f' FORMAT CSV"));
    assert!(!touches("SELECT 'INTO OUTFILE'"));
}

#[test]
fn broken_text_never_runs_past_its_end() {
    for text in
        ["'", "'\\", "`a", "$", "$$", "$a$ x", "/*", "--", "INSERT", "INSERT INTO t FORMAT", "(((", "\u{e9}"]
    {
        split(text.as_bytes());
        split(&[text.as_bytes(), &[0xff, 0xfe]].concat());
    }
}
