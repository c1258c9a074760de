//! A row as ClickHouse's RowBinary, and where each column of it begins: what is projected anew is compared with what is stored
//! byte by byte, and the first column that differs has a name.

use serde::ser::{self, Impossible, Serialize};

/// A row's bytes, and the names of its columns with their ends.
#[derive(Debug, Default)]
pub(super) struct Binary {
    bytes: Vec<u8>,
    ends: Vec<(&'static str, usize)>,
}

/// A row holds something that no column can.
#[derive(Debug, thiserror::Error)]
#[error("a row cannot be put as RowBinary: {0}")]
pub struct BinaryError(String);

impl ser::Error for BinaryError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl Binary {
    pub(super) fn of(row: &impl Serialize) -> Result<Self, BinaryError> {
        let mut binary = Self::default();
        row.serialize(&mut binary)?;
        Ok(binary)
    }

    /// The first column that is not the same in `stored`; `None` when all are.
    pub(super) fn differing(&self, stored: &[u8]) -> Option<&'static str> {
        if self.bytes == stored {
            return None;
        }
        let at = self.bytes.iter().zip(stored).take_while(|(own, other)| own == other).count();
        let column = self.ends.iter().find(|(_, end)| at < *end).or(self.ends.last());
        column.map(|(name, _)| *name)
    }

    fn length(&mut self, mut n: usize) {
        // LEB128.
        loop {
            let low = u8::try_from(n & 0x7f).unwrap_or(0);
            n >>= 7;
            if n == 0 {
                return self.bytes.push(low);
            }
            self.bytes.push(low | 0x80);
        }
    }
}

macro_rules! numbers {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(self, n: $type) -> Result<(), BinaryError> {
            self.bytes.extend_from_slice(&n.to_le_bytes());
            Ok(())
        })*
    };
}

fn no_column<T>(what: &str) -> Result<T, BinaryError> {
    Err(BinaryError(format!("{what} is no column's type")))
}

impl ser::Serializer for &mut Binary {
    type Ok = ();
    type Error = BinaryError;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Impossible<(), BinaryError>;
    type SerializeTupleVariant = Impossible<(), BinaryError>;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Impossible<(), BinaryError>;

    numbers!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_f32: f32, serialize_f64: f64
    );

    fn serialize_bool(self, v: bool) -> Result<(), BinaryError> {
        self.bytes.push(v.into());
        Ok(())
    }

    fn serialize_char(self, _: char) -> Result<(), BinaryError> {
        no_column("a char")
    }

    fn serialize_str(self, text: &str) -> Result<(), BinaryError> {
        self.serialize_bytes(text.as_bytes())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), BinaryError> {
        self.length(bytes.len());
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), BinaryError> {
        self.bytes.push(1);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), BinaryError> {
        self.bytes.push(0);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), BinaryError> {
        no_column("nothing")
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), BinaryError> {
        no_column("nothing")
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), BinaryError> {
        no_column("a variant")
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), BinaryError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), BinaryError> {
        no_column("a variant")
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self, BinaryError> {
        self.length(length.ok_or_else(|| BinaryError("a list without a length".into()))?);
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, BinaryError> {
        Ok(self)
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, BinaryError> {
        no_column("a tuple with a name")
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, BinaryError> {
        no_column("a variant")
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self, BinaryError> {
        self.serialize_seq(length)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, BinaryError> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, BinaryError> {
        no_column("a variant")
    }
}

impl ser::SerializeSeq for &mut Binary {
    type Ok = ();
    type Error = BinaryError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), BinaryError> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), BinaryError> {
        Ok(())
    }
}

impl ser::SerializeTuple for &mut Binary {
    type Ok = ();
    type Error = BinaryError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), BinaryError> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), BinaryError> {
        Ok(())
    }
}

impl ser::SerializeMap for &mut Binary {
    type Ok = ();
    type Error = BinaryError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), BinaryError> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), BinaryError> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), BinaryError> {
        Ok(())
    }
}

impl ser::SerializeStruct for &mut Binary {
    type Ok = ();
    type Error = BinaryError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), BinaryError> {
        value.serialize(&mut **self)?;
        let end = self.bytes.len();
        self.ends.push((name, end));
        Ok(())
    }

    fn end(self) -> Result<(), BinaryError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(serde::Serialize)]
    struct Row {
        text: String,
        number: Option<u16>,
        list: Vec<u32>,
        map: BTreeMap<&'static str, bool>,
        hash: [u8; 2],
    }

    fn row() -> Row {
        Row {
            text: "x".repeat(200),
            number: Some(258),
            list: vec![7],
            map: [("k", true)].into(),
            hash: [1, 2],
        }
    }

    #[test]
    fn a_row_is_put_as_clickhouse_has_it() {
        let binary = Binary::of(&row()).unwrap();
        let mut expected = vec![0xc8, 1];
        expected.extend_from_slice(&[b'x'; 200]);
        expected.extend_from_slice(&[0, 2, 1, 1, 7, 0, 0, 0, 1, 1, b'k', 1, 1, 2]);
        assert_eq!(binary.bytes, expected);
        assert_eq!(binary.differing(&expected), None);
    }

    #[test]
    fn the_first_column_that_differs_is_named() {
        let binary = Binary::of(&row()).unwrap();
        let named = |row: &Row| binary.differing(&Binary::of(row).unwrap().bytes);
        assert_eq!(named(&Row { text: "y".repeat(200), ..row() }), Some("text"));
        assert_eq!(named(&Row { number: None, ..row() }), Some("number"));
        assert_eq!(named(&Row { list: vec![7, 8], ..row() }), Some("list"));
        assert_eq!(named(&Row { hash: [1, 3], ..row() }), Some("hash"));
        assert_eq!(binary.differing(&binary.bytes[..5]), Some("text"));
    }
}
