//! The `clickhouse` crate, as the collector uses it.

use clickhouse::{Client, Compression, Row};
use serde::{Deserialize, Serialize};

use crate::harness::{Store, store};

#[derive(Debug, Clone, PartialEq, Row, Serialize, Deserialize)]
struct Event {
    seq: u64,
    tool: String,
    masked: String,
    tags: Vec<String>,
    parent: Option<u32>,
}

fn event(seq: u64) -> Event {
    Event {
        seq,
        tool: format!("tool-{}", seq % 7),
        // Blank lines, quotes and what else a format could stumble over must come back.
        masked: format!("\n\n;'\\\0\u{e9}{seq}"),
        tags: vec!["a".to_owned(), String::new()],
        parent: seq.is_multiple_of(2).then_some(7),
    }
}

fn client(store: &Store) -> Client {
    Client::default()
        .with_url(format!("http://{}", store.address))
        .with_user("default")
        .with_password(&store.secret)
        .with_database("weir")
}

/// A database and a table as the collector's migrations make them.
async fn prepared(store: &Store) -> Client {
    let client = client(store);
    client.clone().with_database("").query("CREATE DATABASE weir").execute().await.expect("a database");
    client
        .query(
            "CREATE TABLE events (seq UInt64, tool LowCardinality(String), masked String, tags Array(String), \
             parent Nullable(UInt32)) ENGINE = MergeTree ORDER BY seq SETTINGS non_replicated_deduplication_window = 1000, \
             fsync_after_insert = 1, fsync_part_directory = 1",
        )
        .execute()
        .await
        .expect("a table");
    client
}

/// One insert of `events` under `token`, with every setting that the collector sends.
async fn insert(client: &Client, token: &str, events: &[Event]) -> clickhouse::error::Result<()> {
    let mut insert = client
        .insert::<Event>("events")
        .await?
        .with_setting("async_insert", "0")
        .with_setting("insert_deduplicate", "1")
        .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
        .with_setting("insert_deduplication_token", token);
    for event in events {
        insert.write(event).await?;
    }
    insert.end().await
}

#[tokio::test]
async fn rows_that_the_crate_inserts_come_back_with_any_compression() {
    let (_folder, store) = store();
    let client = prepared(&store).await;
    for (at, compression) in [Compression::Lz4, Compression::None].into_iter().enumerate() {
        let client = client.clone().with_compression(compression);
        let events: Vec<Event> = (0..500).map(|seq| event(at as u64 * 1000 + seq)).collect();
        insert(&client, &format!("t{at}"), &events).await.expect("an insert");
        let found: Vec<Event> = client
            .query("SELECT ?fields FROM events WHERE seq >= ? AND tool != ? ORDER BY seq")
            .bind(at as u64 * 1000)
            .bind("it's \\ none")
            .fetch_all()
            .await
            .expect("rows");
        assert_eq!(found, events);
    }
    // Without validation, rows go as plain RowBinary.
    let client = client.with_validation(false);
    insert(&client, "plain", &[event(9000)]).await.expect("an insert");
    let found: Event =
        client.query("SELECT ?fields FROM events WHERE seq = 9000").fetch_one().await.expect("a row");
    assert_eq!(found, event(9000));
}

#[tokio::test]
async fn the_same_token_twice_keeps_one_copy() {
    let (_folder, store) = store();
    let client = prepared(&store).await;
    let events: Vec<Event> = (0..300).map(event).collect();
    for token in ["origin:1:0", "origin:1:0", "origin:1:300"] {
        insert(&client, token, &events).await.expect("an insert");
    }
    let (count, distinct): (u64, u64) =
        client.query("SELECT count(), uniqExact(seq) FROM events").fetch_one().await.expect("counts");
    assert_eq!((count, distinct), (600, 300));
}

#[tokio::test]
async fn parameters_are_bound_by_the_engine() {
    let (_folder, store) = store();
    let client = prepared(&store).await;
    insert(&client, "t", &(0..10).map(event).collect::<Vec<_>>()).await.expect("an insert");
    let hostile = "x'; DROP TABLE events; --\n\\";
    let (found, count): (String, u64) = client
        .query("SELECT {s:String}, count() FROM events WHERE seq < {n:UInt64} AND has({tools:Array(String)}, tool)")
        .param("s", hostile)
        .param("n", 5_u32)
        .param("tools", vec!["tool-1", "tool-2"])
        .fetch_one()
        .await
        .expect("a row");
    assert_eq!((found.as_str(), count), (hostile, 2));
}

#[tokio::test]
async fn a_cursor_passes_over_25k_rows() {
    let (_folder, store) = store();
    let client = prepared(&store).await;
    let events: Vec<Event> = (0..25_000).map(event).collect();
    insert(&client, "t", &events).await.expect("an insert");
    let parts: u64 = client
        .query("SELECT count() FROM system.parts WHERE active AND database = 'weir' AND table = 'events'")
        .fetch_one()
        .await
        .expect("a count");
    assert_eq!(parts, 1, "one insert is one block");
    let mut cursor =
        client.query("SELECT ?fields FROM events ORDER BY seq").fetch::<Event>().expect("a cursor");
    let mut seen = 0_u64;
    while let Some(found) = cursor.next().await.expect("a row") {
        assert_eq!(found, event(seen));
        seen += 1;
    }
    assert_eq!(seen, 25_000);
}

#[tokio::test]
async fn errors_carry_clickhouses_code() {
    let (_folder, store) = store();
    let client = prepared(&store).await;
    let failure = |text: &'static str| {
        let client = client.clone();
        async move { client.query(text).execute().await.expect_err(text).to_string() }
    };
    assert!(failure("SELECT * FROM missing").await.contains("Code: 60."));
    assert!(failure("SELEKT 1").await.contains("Code: 62."));
    assert!(failure("SELECT throwIf(1)").await.contains("Code: 395."));
    let stranger =
        client.clone().with_password("wrong").query("SELECT 1").execute().await.expect_err("a refusal");
    assert!(stranger.to_string().contains("Code: 516."), "{stranger}");
    let unknown = client.clone().with_setting("no_such_setting", "1").query("SELECT 1").execute().await;
    assert!(unknown.expect_err("a refusal").to_string().contains("Code: 115."));
    let nowhere = client.clone().with_database("nowhere").query("SELECT 1").execute().await;
    assert!(nowhere.expect_err("a refusal").to_string().contains("Code: 81."));
    let lost = client.insert::<Event>("missing").await.err().expect("a refusal");
    assert!(lost.to_string().contains("Code: 60."), "{lost}");
}

#[tokio::test]
async fn an_insert_that_is_given_up_leaves_nothing() {
    let (_folder, store) = store();
    let client = prepared(&store).await;
    let mut given_up = client.insert::<Event>("events").await.expect("an insert");
    for seq in 0..20_000 {
        given_up.write(&event(seq)).await.expect("a row");
    }
    drop(given_up);
    insert(&client, "kept", &[event(1)]).await.expect("an insert");
    let count: u64 = client.query("SELECT count() FROM events").fetch_one().await.expect("a count");
    assert_eq!(count, 1);
}
