//! Rows of `events` as they are stored: bytes of any kind come in, and with them the columns as ClickHouse has them, put
//! together by itself, to be compared with what the canonical bytes say.

use weir_core::evidence::{HASH_LEN, Hash};
use weir_core::record::Stored;

use super::VerifyError;
use super::binary::Binary;
use crate::rows::{Batch, BatchRow, EventRow, Place};
use crate::store::{Store, StoreError};
use clickhouse::Row;

/// A row, and its columns as RowBinary.
#[derive(Debug, Clone)]
pub(super) struct StoredRow {
    pub(super) epoch: u32,
    pub(super) seq: u64,
    pub(super) leaf_hash: Hash,
    /// The columns that tell who sent it and when, which no canonical bytes say.
    pub(super) batch: Batch,
    pub(super) parse_error: String,
    pub(super) canonical: Vec<u8>,
    pub(super) columns: Vec<u8>,
}

/// The rows of a log between two numbers, in order.
pub(super) async fn between(
    store: &Store,
    origin: &str,
    from: u64,
    to: u64,
    with_columns: bool,
) -> Result<Vec<StoredRow>, VerifyError> {
    let columns = match with_columns {
        true => format!("formatRow('RowBinary', {})", EventRow::COLUMN_NAMES.join(", ")),
        false => "''".to_owned(),
    };
    let question = format!(
        "SELECT epoch, seq, leaf_hash, batch_first_seq, batch_digest, toUnixTimestamp64Micro(sealed_at), agent_uid, \
                agent_identity, toUnixTimestamp64Micro(ingested_at), parse_error, canonical, {columns} \
         FROM events WHERE origin = ? AND seq BETWEEN ? AND ? ORDER BY seq, ingested_at"
    );
    let query = store.query(&question).bind(origin).bind(from).bind(to);
    let bytes = store.bytes(query, "RowBinary").await?;
    let mut at = Reader(&bytes);
    let mut rows = Vec::new();
    while !at.0.is_empty() {
        rows.push(at.row().ok_or(VerifyError::Rows)?);
    }
    Ok(rows)
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, n: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn text(&mut self) -> Option<&'b [u8]> {
        let (mut length, mut shift) = (0_usize, 0_u32);
        loop {
            let [byte] = self.array()?;
            length |= usize::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                return self.take(length);
            }
        }
    }

    fn row(&mut self) -> Option<StoredRow> {
        let epoch = u32::from_le_bytes(self.array()?);
        let seq = u64::from_le_bytes(self.array()?);
        let leaf_hash = self.array::<HASH_LEN>()?;
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let batch = Batch {
            epoch,
            first_seq: u64::from_le_bytes(self.array()?),
            digest: words(self.text()?),
            sealed_us: i64::from_le_bytes(self.array()?).unsigned_abs(),
            agent_uid: u32::from_le_bytes(self.array()?),
            agent_identity: words(self.text()?),
            ingested_us: i64::from_le_bytes(self.array()?),
        };
        let parse_error = words(self.text()?);
        let (canonical, columns) = (self.text()?.to_vec(), self.text()?.to_vec());
        Some(StoredRow { epoch, seq, leaf_hash, batch, parse_error, canonical, columns })
    }
}

impl StoredRow {
    /// The first column that is not what the canonical bytes and the batch say.
    pub(super) fn differing(&self, origin: &str, batch: Option<&BatchRow>) -> Option<&'static str> {
        let own = self.batch.clone();
        let expected = match batch {
            Some(row) => Batch {
                epoch: row.epoch,
                first_seq: row.first_seq,
                digest: row.batch_digest.clone(),
                sealed_us: row.sealed_at.unsigned_abs(),
                // Whoever tried again may be another.
                agent_uid: own.agent_uid,
                agent_identity: own.agent_identity,
                ingested_us: own.ingested_us,
            },
            None => own,
        };
        let projected = match Stored::read(&self.canonical) {
            Ok(event)
                if event.seq == self.seq
                    && event.origin.as_str() == origin
                    && batch
                        .is_none_or(|row| (&row.tenant, &row.host_name) == (&event.tenant, &event.host)) =>
            {
                EventRow::of(event, self.canonical.clone(), &expected)
            }
            // Its words are the collector's own; everything else follows from its place.
            _ => {
                let place = Place {
                    tenant: batch.map(|row| row.tenant.clone()).unwrap_or_default(),
                    host: batch.map(|row| row.host_name.clone()).unwrap_or_default(),
                    origin: origin.to_owned(),
                    seq: self.seq,
                };
                let error =
                    if self.parse_error.is_empty() { "unreadable".into() } else { self.parse_error.clone() };
                EventRow::opaque(&place, self.canonical.clone(), error, &expected)
            }
        };
        match Binary::of(&projected) {
            Ok(binary) => binary.differing(&self.columns),
            Err(_) => Some("canonical"),
        }
    }
}

impl Store {
    /// An answer in one of ClickHouse's formats, whole.
    async fn bytes(&self, query: clickhouse::query::Query, format: &str) -> Result<Vec<u8>, StoreError> {
        let mut cursor = query.fetch_bytes(format).map_err(|e| self.fault(e))?;
        cursor.collect().await.map(|bytes| bytes.to_vec()).map_err(|e| self.fault(e))
    }
}
