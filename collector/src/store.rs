//! The store: ClickHouse, whichever it is, over its HTTP interface. Rows and questions go in; rows and errors
//! that name the mend come out. It knows tables and settings, but not what a column means ([`crate::rows`]).

pub mod cluster;
pub mod error;
pub mod migrate;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use clickhouse::query::Query;
use clickhouse::{Client, Row, RowOwned, RowRead, RowWrite};
use tokio::sync::OnceCell;

pub use error::StoreError;

use crate::config;

/// How long a question of the collector's own may take.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long a statement of a migration may take: it may copy a table.
const MIGRATION_WAIT: Duration = Duration::from_secs(6 * 3600);
/// How long one chunk of an insert may take to be sent.
const SEND_WAIT: Duration = Duration::from_secs(30);
/// How long ClickHouse may take to commit an insert once it has all of it.
const COMMIT_WAIT: Duration = Duration::from_secs(60);

/// Settings of every insert, all given, since ClickHouse's defaults have changed between versions: it is
/// synchronous, deduplicated by its token, and one block of one thread, whatever its size. (`deduplicate_insert` is
/// added where the server knows it: from 26.2 on it overrules `insert_deduplicate`.)
const INSERT_SETTINGS: [(&str, &str); 8] = [
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ("max_insert_threads", "1"),
    ("max_insert_block_size", "1048576"),
    ("min_insert_block_size_rows", "1048576"),
    ("min_insert_block_size_bytes", "1073741824"),
    ("input_format_parallel_parsing", "0"),
];

/// How many tokens are tried for one insert. A MergeTree notes a token before the part that it is for has its name:
/// a kill in between makes the server acknowledge each retry, and store nothing, until it forgets the token.
pub const TOKENS: u32 = 3;

/// The token of an insert's attempt, from 0; the same from every collector.
pub fn again(token: String, attempt: u32) -> String {
    match attempt {
        0 => token,
        n => format!("{token}/again-{n}"),
    }
}

/// A ClickHouse with Weir's database.
#[derive(Clone)]
pub struct Store {
    /// Without a database: for making it.
    server: Client,
    client: Client,
    url: String,
    user: String,
    database: String,
    /// Whether this server has the setting `deduplicate_insert`, once it was asked.
    newer_deduplication: Arc<OnceCell<bool>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("url", &self.url)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Connects to nothing yet.
    pub fn new(config: &config::Store) -> Self {
        let server = Client::default()
            .with_url(&config.url)
            .with_user(&config.user)
            .with_password(config.password.as_str())
            .with_product_info("weir-collector", env!("CARGO_PKG_VERSION"));
        let client = server.clone().with_database(&config.database);
        let (url, user) = (config.url.clone(), config.user.clone());
        let database = config.database.clone();
        Self { server, client, url, user, database, newer_deduplication: Arc::default() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// The same server's other database.
    pub fn beside(&self, database: &str) -> Self {
        let client = self.server.clone().with_database(database);
        Self { client, database: database.to_owned(), ..self.clone() }
    }

    /// A statement about databases, to the letter.
    pub fn query_server(&self, sql: &str) -> Query {
        self.server.query_raw(sql)
    }

    /// A question with `?` for values to bind.
    pub fn query(&self, sql: &str) -> Query {
        self.client.query(sql)
    }

    /// A question taken to the letter.
    pub fn query_raw(&self, sql: &str) -> Query {
        self.client.query_raw(sql)
    }

    /// All rows of a question.
    pub async fn rows<T: RowOwned + RowRead>(&self, query: Query) -> Result<Vec<T>, StoreError> {
        self.bounded(query.fetch_all()).await
    }

    /// Runs a statement that answers nothing.
    pub async fn execute(&self, query: Query) -> Result<(), StoreError> {
        self.bounded(query.execute()).await
    }

    /// The same for what may take hours.
    pub(crate) async fn execute_at_length(&self, query: Query) -> Result<(), StoreError> {
        match tokio::time::timeout(MIGRATION_WAIT, query.execute()).await {
            Ok(answer) => answer.map_err(|e| self.fault(e)),
            Err(_) => Err(self.fault(clickhouse::error::Error::TimedOut)),
        }
    }

    /// Inserts all rows as one block, or none. A second insert under the same token does nothing, whatever its
    /// rows, so the caller reads back what stands there.
    pub async fn insert<'r, T>(
        &self,
        table: &str,
        token: &str,
        rows: impl IntoIterator<Item = &'r T, IntoIter: Send>,
    ) -> Result<(), StoreError>
    where
        T: Row + RowWrite + Sync + 'r,
        for<'a> T: Row<Value<'a> = T>,
    {
        let rows = rows.into_iter();
        let mut insert = self.bounded(self.client.insert::<T>(table)).await?;
        for (name, value) in INSERT_SETTINGS {
            insert = insert.with_setting(name, value);
        }
        if *self.newer_deduplication.get_or_try_init(|| self.has_setting("deduplicate_insert")).await? {
            insert = insert.with_setting("deduplicate_insert", "enable");
        }
        insert = insert
            .with_setting("insert_deduplication_token", token)
            .with_timeouts(Some(SEND_WAIT), Some(COMMIT_WAIT));
        for row in rows {
            insert.write(row).await.map_err(|e| self.fault(e))?;
        }
        insert.end().await.map_err(|e| self.fault(e))
    }

    /// Whether the server knows a setting: it refuses what it does not know.
    async fn has_setting(&self, name: &str) -> Result<bool, StoreError> {
        let question = self.query("SELECT name FROM system.settings WHERE name = ?").bind(name);
        Ok(!self.rows::<String>(question).await?.is_empty())
    }

    async fn bounded<T>(
        &self,
        answer: impl Future<Output = clickhouse::error::Result<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(ANSWER_WAIT, answer).await {
            Ok(answer) => answer.map_err(|e| self.fault(e)),
            Err(_) => Err(self.fault(clickhouse::error::Error::TimedOut)),
        }
    }

    pub(crate) fn fault(&self, error: clickhouse::error::Error) -> StoreError {
        StoreError::of(error, &self.url, &self.user, &self.database)
    }
}
