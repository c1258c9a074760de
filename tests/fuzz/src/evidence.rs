//! Evidence, and segments that carry it: what reads is what would be written, and nothing that is signed is believed of
//! bytes that nobody signed.

use weir_core::evidence::TreeState;
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::key::{SigningKey, VerifyingKey};
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::rotation::Rotation;
use weir_core::evidence::tombstone::Tombstone;
use weir_core::segment::{FrameKind, HEADER_LEN, Reader, header, push_frame};

/// Notes and what they say, keys, and trees.
pub fn run(bytes: &[u8]) {
    if let Ok(tree) = TreeState::read(bytes) {
        assert_eq!(TreeState::read(&tree.to_bytes()).as_ref(), Ok(&tree), "a tree");
        assert_eq!(tree.frontier.nodes().len(), tree.frontier.size().count_ones() as usize);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(key) = text.parse::<VerifyingKey>() {
        assert_eq!(key.to_string(), text, "a key has one text");
    }
    let Ok(note) = text.parse::<SignedNote>() else { return };
    assert_eq!(note.to_string().parse::<SignedNote>().as_ref(), Ok(&note), "a note");
    let nobodys = SigningKey::from_seed(&[0xee; 32]);
    if let Ok(checkpoint) = Checkpoint::read(&note) {
        assert_eq!(checkpoint.text(), note.text(), "a checkpoint has one text");
        if let Ok(key) = nobodys.verifying(&checkpoint.log.to_string()) {
            assert!(Checkpoint::open(&note, &key).is_err(), "nobody signed it");
        }
    }
    if let Ok(key) = nobodys.verifying("nobody") {
        assert!(Rotation::open(&note, &key).is_err(), "nobody handed over");
    }
    if let Ok(key) = nobodys.cosigning("nobody") {
        assert!(note.cosigned(&key).is_err() && Tombstone::open(&note, &[key]).is_err(), "nobody saw it");
    }
}

/// Segments: whole frames, in order, that can be written again to the same bytes.
pub fn segment(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(bytes) else { return };
    let mut again = header(reader.first_seq()).to_vec();
    let (mut next, mut faults) = (reader.first_seq(), 0);
    for frame in reader.by_ref() {
        let Ok(frame) = frame else {
            faults += 1;
            continue;
        };
        if frame.kind == FrameKind::Event {
            assert_eq!(frame.seq, next, "numbers are dense");
            next = next.wrapping_add(1);
        }
        push_frame(&mut again, frame.kind, frame.seq, frame.bytes);
    }
    assert!(faults <= 1, "a reader ends after its first error");
    assert_eq!(reader.offset(), again.len(), "where it stopped");
    assert_eq!(bytes.get(HEADER_LEN..again.len()), again.get(HEADER_LEN..), "what was read");
}
