//! Tampering with a store, by SQL alone. A store and dice come in; it is changed as its operator could, and what must be found
//! goes out.
//!
//! It knows tables and columns from the store itself, and of Weir's code what signs.

mod views;

use anyhow::{Context, Result, bail};
use clickhouse::Client;
use serde::Serialize;
use serde_json::Value;
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::{Frontier, Hash, leaf_hash};
use weir_core::ids::hex;

use crate::change::{ACTS, Act};
use crate::dice::Dice;

/// A change waits until it is done.
const DONE: &str = "SETTINGS mutations_sync = 2";
/// Rows count that were there before.
const EACH: &str = "SETTINGS insert_deduplicate = 0, deduplicate_insert = 'disable'";
/// What the collector alone says of a row, in no signed bytes: which agent sent it, when it came, and why it was not read.
const UNSIGNED: [&str; 4] = ["agent_uid", "agent_identity", "ingested_at", "parse_error"];
/// What the other tables say that verification reads, beside what names the row.
const OF_BATCHES: [&str; 9] = [
    "host_name",
    "epoch_first_seq",
    "last_seq",
    "events",
    "batch_digest",
    "tree_size",
    "root",
    "frontier",
    "sealed_at",
];
const OF_CHECKPOINTS: [&str; 4] = ["host_name", "first_seq", "root", "witnessed_at"];

/// What is done to a store: what is done to exports, and what they have no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Like(Act),
    OfBatch,
    OfCheckpoint,
    /// A view that leaves something out.
    View,
    /// A view by which each insert fills a table: it leaves something out, fills another table, or is gone.
    Filling,
}

const BESIDES: [Way; 4] = [Way::OfBatch, Way::OfCheckpoint, Way::View, Way::Filling];
/// How many ways there are.
const WAYS: usize = ACTS.len() + BESIDES.len();

impl Way {
    /// Neighbouring seeds go different ways.
    fn of(seed: u64) -> Option<Self> {
        let at = usize::try_from(seed).ok()? % WAYS;
        let besides = || BESIDES.get(at.checked_sub(ACTS.len())?).copied();
        ACTS.get(at).copied().map(Way::Like).or_else(besides)
    }

    fn name(self) -> &'static str {
        match self {
            Way::Like(act) => act.name(),
            Way::OfBatch => "of_batch",
            Way::OfCheckpoint => "of_checkpoint",
            Way::View => "view",
            Way::Filling => "filling",
        }
    }

    /// Kinds of finding of which one is enough.
    fn shows_as(self) -> &'static [&'static str] {
        match self {
            // Bytes that nobody can read do not say whose they are: nobody signed them here.
            Way::Like(Act::Splice) => &["spliced", "unsigned"],
            Way::Like(act) => act.shows_as(),
            Way::OfCheckpoint => &["projection"],
            Way::OfBatch => &["projection", "altered", "deleted"],
            Way::View | Way::Filling => &["definition"],
        }
    }
}

/// What was done, and where a finding must point.
#[derive(Debug, Serialize)]
pub struct Done {
    pub what: String,
    pub shows_as: &'static [&'static str],
    /// Empty where it is no log's.
    pub origin: String,
    pub first_seq: u64,
    pub last_seq: u64,
    pub statements: Vec<String>,
}

/// A store as its operator reaches it.
pub struct Store(Client);

/// A stored segment.
struct Batch {
    origin: String,
    epoch: u64,
    first_seq: u64,
    last_seq: u64,
}

impl Store {
    pub fn new(url: &str, database: &str, user: &str, password: &str) -> Self {
        Self(Client::default().with_url(url).with_database(database).with_user(user).with_password(password))
    }

    async fn ask(&self, question: &str) -> Result<Vec<Value>> {
        let mut answer = self.0.query_raw(question).fetch_bytes("JSONEachRow")?;
        let bytes = answer.collect().await.with_context(|| question.to_owned())?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
    }

    async fn batches(&self) -> Result<Vec<Batch>> {
        let question = "SELECT origin, epoch, first_seq, last_seq FROM batches ORDER BY origin, first_seq";
        let batch = |row: &Value| {
            Ok(Batch {
                origin: text(row, "origin")?,
                epoch: number(row, "epoch")?,
                first_seq: number(row, "first_seq")?,
                last_seq: number(row, "last_seq")?,
            })
        };
        self.ask(question).await?.iter().map(batch).collect()
    }

    /// Changes it as the seed says. Neighbouring seeds do different things.
    ///
    /// # Errors
    /// When the store does not answer or refuses a statement, and when it holds too little to be changed so: it takes two
    /// logs of three batches each.
    pub async fn tamper(&self, seed: u64) -> Result<Done> {
        let mut dice = Dice::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let done = self.plan(Way::of(seed).context("no way")?, &mut dice).await?;
        for statement in &done.statements {
            self.0.query_raw(statement).execute().await.with_context(|| statement.clone())?;
        }
        Ok(done)
    }

    async fn plan(&self, way: Way, dice: &mut Dice) -> Result<Done> {
        let all = self.batches().await?;
        let batch = dice.pick(&all).context("there is no batch")?;
        let of_log: Vec<&Batch> = all.iter().filter(|other| other.origin == batch.origin).collect();
        let seq = within(batch, dice);
        let mut what = way.name().to_owned();
        let mut place = (seq, seq);
        let origin = &batch.origin;
        let row = format!("origin = '{origin}' AND seq = {seq}");
        let statements = match way {
            Way::Like(Act::Canonical) => {
                let changed = hex(&self.changed(&row, dice).await?);
                vec![update("events", &format!("canonical = unhex('{changed}')"), &row)]
            }
            Way::Like(Act::CanonicalAndLeaf) => {
                let changed = self.changed(&row, dice).await?;
                let leaf = hex(&leaf_hash(&changed));
                let set = format!("canonical = unhex('{}'), leaf_hash = unhex('{leaf}')", hex(&changed));
                let mut statements = vec![update("events", &set, &row)];
                if dice.below(2) == 0 {
                    statements.push(leaf_of_batch(batch, seq, &leaf));
                }
                statements
            }
            Way::Like(Act::Column) => {
                let (column, statements) = self.column(&row, dice).await?;
                what = format!("{what} {column}");
                statements
            }
            Way::OfBatch => {
                place = (batch.first_seq, batch.last_seq + 1);
                let column = dice.pick(&OF_BATCHES).context("no column")?;
                what = format!("{what} {column}");
                let where_ = format!("origin = '{origin}' AND first_seq = {}", batch.first_seq);
                self.change("batches", column, &where_).await?
            }
            Way::OfCheckpoint => {
                place = (batch.last_seq, batch.last_seq + 1);
                let column = dice.pick(&OF_CHECKPOINTS).context("no column")?;
                what = format!("{what} {column}");
                let where_ =
                    format!("origin = '{origin}' AND first_seq + tree_size = {}", batch.last_seq + 1);
                self.change("checkpoints", column, &where_).await?
            }
            Way::Like(Act::DeleteRow) => vec![delete("events", &row)],
            Way::Like(Act::DeleteBatch) => {
                // The last one is the tail.
                let batch =
                    dice.pick(&of_log[..of_log.len().saturating_sub(1)]).context("one batch alone")?;
                place = (batch.first_seq, batch.last_seq);
                delete_batch(batch, dice.below(2) == 0)
            }
            Way::Like(Act::DeleteTail) => {
                let last = of_log.last().context("no batch")?.last_seq;
                // The first event stays: without it, it would be the whole log.
                place = (seq.max(1), last);
                behind(origin, place.0)
            }
            Way::Like(Act::DeleteOrigin) => {
                place = (0, u64::MAX);
                let tables = ["events", "batches", "checkpoints", "identities"];
                tables.map(|table| delete(table, &format!("origin = '{origin}'"))).to_vec()
            }
            Way::Like(Act::DoubleRow) => {
                vec![format!("INSERT INTO events SELECT * FROM events WHERE {row} {EACH}")]
            }
            Way::Like(Act::SwapRows) => {
                let other = loop {
                    let batch = *dice.pick(&of_log).context("no batch")?;
                    let other = within(batch, dice);
                    if other != seq {
                        break other;
                    }
                };
                // Of two, one may not say which number it has: bytes that nobody can read are stored, too.
                place = (seq.min(other), seq.max(other));
                let bytes = |seq: u64| {
                    format!("(SELECT canonical FROM events WHERE origin = '{origin}' AND seq = {seq})")
                };
                let set = format!("canonical = if(seq = {seq}, {}, {})", bytes(other), bytes(seq));
                vec![update("events", &set, &format!("origin = '{origin}' AND seq IN ({seq}, {other})"))]
            }
            Way::Like(Act::Splice) => {
                let others: Vec<&Batch> = all.iter().filter(|other| &other.origin != origin).collect();
                let theirs = *dice.pick(&others).context("there is one log alone")?;
                let next = of_log.last().context("no batch")?.last_seq + 1;
                place = (next, next);
                vec![format!(
                    "INSERT INTO events SELECT * REPLACE ('{origin}' AS origin, toUInt64({next}) AS seq) FROM \
                     (SELECT * FROM events WHERE origin = '{}' AND seq = {}) {EACH}",
                    theirs.origin,
                    within(theirs, dice)
                )]
            }
            Way::Like(Act::AnotherKey) => {
                place = (batch.first_seq, batch.last_seq);
                self.another_key(batch, seq, dice).await?
            }
            Way::Like(Act::RollBack) => {
                place = (0, u64::MAX);
                let mut origins: Vec<&str> = all.iter().map(|batch| batch.origin.as_str()).collect();
                origins.dedup();
                let half = |origin: &&str| {
                    let of_log: Vec<&Batch> = all.iter().filter(|batch| batch.origin == *origin).collect();
                    of_log.get(of_log.len() / 2).map_or_else(Vec::new, |cut| behind(origin, cut.first_seq))
                };
                origins.iter().flat_map(half).collect()
            }
            Way::View | Way::Filling => return self.view(way, dice).await,
        };
        let (first_seq, last_seq) = place;
        Ok(Done { what, shows_as: way.shows_as(), origin: origin.clone(), first_seq, last_seq, statements })
    }

    /// Other bytes for an event.
    async fn changed(&self, row: &str, dice: &mut Dice) -> Result<Vec<u8>> {
        let rows = self.ask(&format!("SELECT hex(canonical) AS bytes FROM events WHERE {row}")).await?;
        let mut bytes = unhex(&text(rows.first().context("no such row")?, "bytes")?)?;
        match dice.below(4) {
            0 => bytes.push(b' '),
            1 => bytes.truncate(bytes.len().saturating_sub(1 + dice.below(8))),
            2 => bytes = b"{}".to_vec(),
            _ => {
                let at = dice.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(5);
                }
            }
        }
        Ok(bytes)
    }

    /// A column of an event gets another value.
    async fn column(&self, row: &str, dice: &mut Dice) -> Result<(String, Vec<String>)> {
        let columns = self
            .ask(
                "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'events' \
                 AND default_kind IN ('', 'DEFAULT') ORDER BY position",
            )
            .await?;
        let mut derived = Vec::new();
        for column in &columns {
            let name = text(column, "name")?;
            // What names the row is another act, and so are its bytes and their leaf.
            if !UNSIGNED.contains(&name.as_str())
                && !["origin", "seq", "canonical", "leaf_hash"].contains(&name.as_str())
            {
                derived.push(name);
            }
        }
        let name = dice.pick(&derived).context("no column")?;
        Ok((name.clone(), self.change("events", name, row).await?))
    }

    /// What gives a column of some rows another value. What a table is ordered or divided by cannot be changed in its place: such
    /// rows are taken out, and put back otherwise.
    async fn change(&self, table: &str, column: &str, rows: &str) -> Result<Vec<String>> {
        let question = format!(
            "SELECT type, is_in_sorting_key OR is_in_partition_key AS key FROM system.columns \
             WHERE database = currentDatabase() AND table = '{table}' AND name = '{column}'"
        );
        let told = self.ask(&question).await?;
        let told = told.first().with_context(|| format!("{table} has no {column}"))?;
        let other = other(column, &text(told, "type")?)?;
        if number(told, "key")? == 0 {
            return Ok(vec![update(table, &format!("{column} = {other}"), rows)]);
        }
        let put_aside = format!(
            "INSERT INTO aside SELECT * REPLACE ({other} AS {column}) FROM (SELECT * FROM {table} WHERE {rows})"
        );
        Ok(vec![
            "DROP TABLE IF EXISTS aside SYNC".to_owned(),
            format!("CREATE TABLE aside AS {table} ENGINE = Memory"),
            put_aside,
            delete(table, rows),
            format!("INSERT INTO {table} SELECT * FROM aside {EACH}"),
            "DROP TABLE aside SYNC".to_owned(),
        ])
    }

    /// A batch is rewritten: another event, its leaf, the root, and the checkpoints over it under keys of the forger's.
    async fn another_key(&self, batch: &Batch, seq: u64, dice: &mut Dice) -> Result<Vec<String>> {
        let origin = &batch.origin;
        let of_batch = format!("origin = '{origin}' AND first_seq = {}", batch.first_seq);
        let of_checkpoint = format!(
            "origin = '{origin}' AND epoch = {} AND first_seq + tree_size = {}",
            batch.epoch,
            batch.last_seq + 1
        );
        let rows = self
            .ask(&format!(
                "SELECT note, epoch_first_seq, arrayMap(x -> hex(x), frontier) AS frontier, \
                        arrayMap(x -> hex(x), leaf_hashes) AS leaves FROM batches WHERE {of_batch}"
            ))
            .await?;
        let stored = rows.first().context("no such batch")?;
        let noted = self.ask(&format!("SELECT note FROM checkpoints WHERE {of_checkpoint}")).await?;
        let noted = text(noted.first().context("no checkpoint of the batch")?, "note")?;
        // The last line is `— name signature`.
        let witness =
            noted.lines().last().and_then(|line| line.split(' ').nth(1)).context("no cosignature")?;

        let size = batch.first_seq - number(stored, "epoch_first_seq")?;
        let mut tree = Frontier::of_parts(size, hashes(stored, "frontier")?).context("no tree")?;
        let (mut leaves, bytes) = (hashes(stored, "leaves")?, format!("{{\"forged\":{}}}", dice.roll()));
        let leaf = leaf_hash(bytes.as_bytes());
        *leaves.get_mut(usize::try_from(seq - batch.first_seq)?).context("no such leaf")? = leaf;
        tree.extend(leaves);

        let honest: SignedNote = text(stored, "note")?.parse()?;
        let mut lines: Vec<String> = honest.text().lines().map(str::to_owned).collect();
        *lines.get_mut(2).context("no root")? =
            base64::Engine::encode(&base64::prelude::BASE64_STANDARD, tree.root());
        let mut note = SignedNote::new(format!("{}\n", lines.join("\n")))?;
        note.sign(&SigningKey::from_seed(&dice.bytes()), lines.first().context("no name")?)?;
        let bare = hex(note.to_string().as_bytes());
        note.cosign(&SigningKey::from_seed(&dice.bytes()), witness, 1_795_300_000)?;
        let cosigned = hex(note.to_string().as_bytes());
        let (leaf, root) = (hex(&leaf), hex(&tree.root()));
        Ok(vec![
            update(
                "events",
                &format!("canonical = unhex('{}'), leaf_hash = unhex('{leaf}')", hex(bytes.as_bytes())),
                &format!("origin = '{origin}' AND seq = {seq}"),
            ),
            leaf_of_batch(batch, seq, &leaf),
            update("batches", &format!("note = unhex('{bare}'), root = unhex('{root}')"), &of_batch),
            update(
                "checkpoints",
                &format!("note = unhex('{cosigned}'), root = unhex('{root}')"),
                &of_checkpoint,
            ),
        ])
    }
}

fn update(table: &str, set: &str, where_: &str) -> String {
    format!("ALTER TABLE {table} UPDATE {set} WHERE {where_} {DONE}")
}

fn delete(table: &str, where_: &str) -> String {
    format!("ALTER TABLE {table} DELETE WHERE {where_} {DONE}")
}

fn delete_batch(batch: &Batch, with_checkpoints: bool) -> Vec<String> {
    let Batch { origin, first_seq, last_seq, .. } = batch;
    let mut statements = vec![
        delete("events", &format!("origin = '{origin}' AND seq BETWEEN {first_seq} AND {last_seq}")),
        delete("batches", &format!("origin = '{origin}' AND first_seq = {first_seq}")),
    ];
    if with_checkpoints {
        let inside = format!(
            "origin = '{origin}' AND first_seq + tree_size > {first_seq} AND first_seq + tree_size <= {} ",
            last_seq + 1
        );
        statements.push(delete("checkpoints", &inside));
    }
    statements
}

/// All of a log from a number on goes, with its checkpoints and keys.
fn behind(origin: &str, cut: u64) -> Vec<String> {
    vec![
        delete("events", &format!("origin = '{origin}' AND seq >= {cut}")),
        delete("batches", &format!("origin = '{origin}' AND last_seq >= {cut}")),
        delete("checkpoints", &format!("origin = '{origin}' AND first_seq + tree_size > {cut}")),
        delete("identities", &format!("origin = '{origin}' AND first_seq >= {cut}")),
    ]
}

fn leaf_of_batch(batch: &Batch, seq: u64, leaf: &str) -> String {
    let at = seq - batch.first_seq + 1;
    let set = format!(
        "leaf_hashes = arrayMap((x, n) -> if(n = {at}, toFixedString(unhex('{leaf}'), 32), x), leaf_hashes, arrayEnumerate(leaf_hashes))"
    );
    update("batches", &set, &format!("origin = '{}' AND first_seq = {}", batch.origin, batch.first_seq))
}

/// Another value for a column of this type.
fn other(name: &str, kind: &str) -> Result<String> {
    let plain = kind.strip_prefix("LowCardinality(").and_then(|kind| kind.strip_suffix(')')).unwrap_or(kind);
    Ok(match plain {
        "String" => format!("concat({name}, 'x')"),
        "Bool" => format!("NOT {name}"),
        "FixedString(32)" => format!("toFixedString(reverse({name}), 32)"),
        "DateTime64(6, 'UTC')" => format!("addSeconds({name}, 1)"),
        "Nullable(DateTime64(6, 'UTC'))" => {
            format!("addSeconds(ifNull({name}, toDateTime64(0, 6, 'UTC')), 1)")
        }
        "Map(String, String)" => format!("mapUpdate({name}, map('x', 'y'))"),
        "Map(String, UInt64)" => format!("mapUpdate({name}, map('x', toUInt64(1)))"),
        _ if plain.starts_with("Array(FixedString(32)") => {
            format!("arrayPushBack({name}, toFixedString(repeat('x', 32), 32))")
        }
        _ if plain.starts_with("Array(") && plain.contains("String") => format!("arrayPushBack({name}, 'x')"),
        _ if plain.starts_with("Array(") && plain.contains("Int") => format!("arrayPushBack({name}, 1)"),
        _ if plain.starts_with("Nullable(") && plain.contains("Int") => format!("ifNull({name}, 0) + 1"),
        _ if plain.starts_with("UInt") || plain.starts_with("Int") => format!("{name} + 1"),
        _ => bail!("no other value is known for {name}, a {kind}"),
    })
}

fn within(batch: &Batch, dice: &mut Dice) -> u64 {
    let events = usize::try_from(batch.last_seq - batch.first_seq + 1).unwrap_or(1);
    batch.first_seq + dice.below(events) as u64
}

fn text(row: &Value, name: &str) -> Result<String> {
    row[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {row}"))
}

fn number(row: &Value, name: &str) -> Result<u64> {
    let value = &row[name];
    let quoted = || value.as_str().and_then(|digits| digits.parse().ok());
    value.as_u64().or_else(quoted).with_context(|| format!("no {name} in {row}"))
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

fn hashes(row: &Value, name: &str) -> Result<Vec<Hash>> {
    let list = row[name].as_array().with_context(|| format!("no {name} in {row}"))?;
    let hash = |text: &Value| {
        let bytes = unhex(text.as_str().context("no hash")?)?;
        bytes.try_into().ok().context("a hash has another length")
    };
    list.iter().map(hash).collect()
}
