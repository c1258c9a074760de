//! The spool's promise: what was acknowledged is there after any fault, and no sequence number is there twice.

#[path = "spool/faults.rs"]
mod faults;
#[path = "spool/room.rs"]
mod room;
#[path = "spool/sites.rs"]
mod sites;

use std::collections::BTreeMap;
use std::sync::Arc;

use weir::spool::faulty::Faulty;
use weir::spool::{
    self, Around, Begins, Folder, Found, Group, Head, Limits, Priority, SetAside, Spool, SpoolError, Storage,
};
use weir_core::segment::{EventFrames, FrameKind, HEADER_LEN, Reader};

const SMALL: Limits =
    Limits { max_bytes: 1 << 20, reserve_bytes: 1 << 14, seal_bytes: 700, seal_events: 8, room_from: 100 };

/// What stands around events, to the spool only bytes.
struct Fixed(&'static str);

impl Around for Fixed {
    fn head(&self) -> Head {
        head(self.0)
    }

    fn closing(&self) -> Vec<u8> {
        b"closing".to_vec()
    }

    fn with_group(&self) -> Vec<u8> {
        b"with the group".to_vec()
    }
}

fn head(carry: &str) -> Head {
    Head { tree: b"tree".to_vec(), carry: carry.as_bytes().to_vec() }
}

fn open(disk: &Faulty) -> Result<Found, SpoolError> {
    spool::open(Arc::new(disk.clone()), SMALL)
}

fn start(disk: &Faulty) -> Spool {
    open(disk).unwrap().start(&head("carry")).unwrap()
}

fn append(spool: &mut Spool, group: &[&str]) -> Result<std::ops::Range<u64>, SpoolError> {
    append_as(spool, group, Priority::Ordinary)
}

fn append_as(
    spool: &mut Spool,
    group: &[&str],
    priority: Priority,
) -> Result<std::ops::Range<u64>, SpoolError> {
    let mut frames = EventFrames::of(spool.next_seq(), group.iter().map(|event| event.as_bytes()));
    spool.append(Group { frames: &mut frames, priority, checkpoint: false }, &Fixed("carry"))
}

/// All events that would be shipped. No sequence number may be among them twice.
fn log(spool: &mut Spool) -> BTreeMap<u64, String> {
    spool.seal(&Fixed("carry")).unwrap();
    let mut log = BTreeMap::new();
    for file in spool.shelf().sealed() {
        let bytes = spool.shelf().read(file.first_seq).unwrap();
        let mut events = 0;
        for frame in Reader::new(&bytes).unwrap().map(Result::unwrap).filter(|f| f.kind == FrameKind::Event) {
            let event = String::from_utf8(frame.bytes.to_vec()).unwrap();
            assert_eq!(log.insert(frame.seq, event), None, "{} is there twice", frame.seq);
            events += 1;
        }
        assert_eq!((file.events, file.bytes), (events, bytes.len() as u64));
    }
    log
}

fn values(log: &BTreeMap<u64, String>) -> Vec<&str> {
    log.values().map(String::as_str).collect()
}

/// The last segment's name, and its bytes.
fn last_segment(disk: &Faulty) -> (String, Vec<u8>) {
    let name = disk.names().into_iter().rfind(|name| name.ends_with(".seg")).unwrap();
    let bytes = disk.written(&name).unwrap();
    (name, bytes)
}

#[test]
fn what_was_appended_is_there_after_a_power_cut() {
    for seed in 0..50 {
        let disk = Faulty::new();
        let mut spool = start(&disk);
        assert_eq!(append(&mut spool, &["a", "b"]).unwrap(), 0..2);
        assert_eq!(append(&mut spool, &["c"]).unwrap(), 2..3);
        let disk = disk.power_cut(seed);
        let found = open(&disk).unwrap();
        assert_eq!((found.next_seq, &found.begins), (3, &Begins::Head(head("carry"))));
        assert_eq!(found.events, [b"a", b"b", b"c"]);
        assert_eq!(found.report, spool::Report::default());
        let mut spool = found.start(&head("")).unwrap();
        assert_eq!(values(&log(&mut spool)), ["a", "b", "c"]);
    }
}

#[test]
fn a_group_is_one_sync() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    let before = disk.data_syncs();
    append(&mut spool, &["a", "b", "c"]).unwrap();
    assert_eq!(disk.data_syncs(), before + 1);
}

#[test]
fn a_cut_at_each_byte_of_the_last_write_loses_only_that_write() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    append(&mut spool, &["first", "second"]).unwrap();
    let before = last_segment(&disk).1.len();
    append(&mut spool, &["third", "fourth"]).unwrap();
    let (name, bytes) = last_segment(&disk);
    // At the end of the file, or in its room.
    for (cut, room) in (before..bytes.len()).flat_map(|cut| [(cut, 0), (cut, 500)]) {
        let what = format!("cut at {cut}, {room} zeros behind");
        let disk = disk.copy();
        disk.put(&name, &[&bytes[..cut], &vec![0; room]].concat());
        let found = open(&disk).unwrap();
        let kept =
            if cut < before + 17 + 5 { vec!["first", "second"] } else { vec!["first", "second", "third"] };
        let whole = if kept.len() == 2 { before } else { before + 17 + 5 };
        let spool::Report { torn_bytes, room_bytes, tail_kept, .. } = found.report;
        assert_eq!(torn_bytes + room_bytes, (cut + room - whole) as u64, "{what}");
        assert!(room_bytes >= room as u64 && !tail_kept, "{what}");
        let mut spool = found.start(&head("")).unwrap();
        assert_eq!(append(&mut spool, &["next"]).unwrap().start, kept.len() as u64, "{what}");
        assert_eq!(values(&log(&mut spool)), [&kept[..], &["next"]].concat(), "{what}");
    }
}

#[test]
fn the_report_says_how_many_bytes_were_torn() {
    let disk = Faulty::new();
    append(&mut start(&disk), &["first"]).unwrap();
    let (name, mut bytes) = last_segment(&disk);
    bytes.extend_from_slice(&[7; 40]);
    disk.put(&name, &bytes);
    let found = open(&disk.killed()).unwrap();
    assert_eq!((found.report.torn_bytes, found.report.tail_kept), (40, false));
    assert_eq!(found.next_seq, 1);
}

#[test]
fn a_segment_behind_a_large_one_has_room_which_is_no_part_of_it() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    let large = "l".repeat(SMALL.room_from);
    append(&mut spool, &[&large]).unwrap();
    let (first, bytes) = last_segment(&disk);
    assert_eq!(disk.bytes(&first).unwrap(), bytes, "nothing was large before");
    spool.seal(&Fixed("carry")).unwrap();
    append(&mut spool, &["b"]).unwrap();
    let (second, bytes) = last_segment(&disk);
    let with_room = disk.bytes(&second).unwrap();
    assert!(with_room.len() > bytes.len() + SMALL.room_from, "{} of {}", bytes.len(), with_room.len());
    // More of it is written into the room, which is no tail, and whatever is torn in it is counted without it.
    append(&mut spool, &["c"]).unwrap();
    assert_eq!(disk.bytes(&second).unwrap().len(), with_room.len());
    let torn = disk.copy();
    let (_, mut bytes) = last_segment(&torn);
    bytes.extend([&[9; 30][..], &[0; 300]].concat());
    torn.put(&second, &bytes);
    let found = open(&torn).unwrap();
    assert_eq!((found.report.torn_bytes, found.report.room_bytes, found.next_seq), (30, 300, 3));
    let found = open(&disk.copy()).unwrap();
    let room_bytes = (with_room.len() - last_segment(&disk).1.len()) as u64;
    assert_eq!((found.report, found.next_seq), (spool::Report { room_bytes, ..Default::default() }, 3));
    // A sealed segment has none.
    assert_eq!(log(&mut spool).into_values().collect::<Vec<_>>(), [&large, "b", "c"]);
    assert_eq!(disk.bytes(&second), disk.written(&second));
}

#[test]
fn a_damaged_sealed_segment_is_set_aside_and_the_rest_stays() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    for event in ["a", "b", "c"] {
        append(&mut spool, &[event]).unwrap();
        spool.seal(&Fixed("carry")).unwrap();
    }
    append(&mut spool, &["d"]).unwrap();
    let name = format!("{:020}.seg", 1);
    let bytes = disk.bytes(&name).unwrap();
    // Behind the last event lies a checkpoint, which is no loss.
    for at in 0..bytes.len() - (17 + "closing".len()) {
        let disk = disk.copy();
        let mut bad = bytes.clone();
        bad[at] ^= 4;
        disk.put(&name, &bad);
        let found = open(&disk).unwrap();
        assert_eq!((found.next_seq, found.report.damaged.len()), (4, 1), "byte {at}");
        assert_eq!(found.report.damaged[0].first_seq, 1);
        let mut spool = found.start(&head("")).unwrap();
        assert_eq!(values(&log(&mut spool)), ["a", "c", "d"], "byte {at}");
        assert_eq!(disk.bytes(&format!("{name}.damaged")), Some(bad), "byte {at}");
        drop(spool);
        assert_eq!(open(&disk).unwrap().report, spool::Report::default(), "byte {at}: reported once");
    }
}

#[test]
fn damage_inside_the_last_segment_keeps_what_lies_behind_it_for_a_human() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    append(&mut spool, &["a"]).unwrap();
    let end_of_a = last_segment(&disk).1.len();
    append(&mut spool, &["b"]).unwrap();
    append(&mut spool, &["c"]).unwrap();
    let (name, mut bytes) = last_segment(&disk);
    bytes[end_of_a + 17] ^= 1;
    disk.put(&name, &bytes);
    let disk = disk.killed();
    let found = open(&disk).unwrap();
    assert!(found.report.tail_kept && found.report.torn_bytes as usize == bytes.len() - end_of_a);
    assert_eq!(found.next_seq, 3, "a sequence number that was given away is not given again");
    assert_eq!(disk.bytes(&format!("{name}.tail")).as_deref(), bytes.get(end_of_a..));
    let mut spool = found.start(&head("")).unwrap();
    append(&mut spool, &["d"]).unwrap();
    assert_eq!(log(&mut spool), BTreeMap::from([(0, "a".into()), (3, "d".into())]));
}

#[test]
fn a_last_segment_cut_anywhere_before_its_first_event_goes_on_where_it_began() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    append(&mut spool, &["a", "b"]).unwrap();
    spool.seal(&Fixed("after b")).unwrap();
    let (name, bytes) = last_segment(&disk);
    for cut in 0..bytes.len() {
        for (alone, room) in [(false, 0), (true, 0), (false, 500), (true, 500)] {
            // The header is on disk before the file has its name.
            if room > 0 && cut < HEADER_LEN {
                continue;
            }
            let disk = disk.copy();
            disk.put(&name, &[&bytes[..cut], &vec![0; room]].concat());
            if alone {
                disk.remove(&format!("{:020}.seg", 0)).unwrap();
            }
            let found = open(&disk).unwrap();
            assert_eq!(found.next_seq, 2, "cut at {cut}");
            let begins = if alone { Begins::Unknown } else { Begins::Head(head("carry")) };
            assert_eq!(found.begins, begins, "cut at {cut}");
            let mut spool = found.start(&head("")).unwrap();
            assert_eq!(append(&mut spool, &["c"]).unwrap(), 2..3, "cut at {cut}");
            assert_eq!(log(&mut spool).len(), if alone { 1 } else { 3 });
        }
    }
}

#[test]
fn the_log_goes_on_where_it_was_when_all_segments_were_trimmed() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    let origin = disk.bytes("origin").unwrap();
    append(&mut spool, &["a", "b"]).unwrap();
    spool.seal(&Fixed("two calls")).unwrap();
    spool.shelf().trim(0).unwrap();
    assert_eq!(spool.shelf().sealed(), []);
    let disk = disk.power_cut(1);
    let found = open(&disk).unwrap();
    assert_eq!((found.next_seq, &found.begins), (2, &Begins::Head(head("two calls"))));
    assert_eq!(found.events, Vec::<Vec<u8>>::new());
    assert_eq!(format!("{}\n", found.origin).as_bytes(), origin);
}

#[test]
fn neither_the_active_segment_nor_one_that_is_not_there_can_be_trimmed() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    append(&mut spool, &["a"]).unwrap();
    let shelf = spool.shelf();
    assert!(matches!(shelf.trim(0), Err(SpoolError::NotSealed(0))));
    assert!(matches!(shelf.read(0), Err(SpoolError::NotSealed(0))));
    assert!(matches!(shelf.set_aside(7, SetAside::Conflict), Err(SpoolError::NotSealed(7))));
    assert_eq!(values(&log(&mut spool)), ["a"]);
}

#[test]
fn segments_are_sealed_by_bytes_and_by_events() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    for _ in 0..9 {
        append(&mut spool, &["a"]).unwrap();
    }
    assert_eq!(spool.shelf().sealed().iter().map(|file| file.events).collect::<Vec<_>>(), [8]);
    let long = "l".repeat(640);
    append(&mut spool, &[&long]).unwrap();
    append(&mut spool, &[&long]).unwrap();
    let sealed = spool.shelf().sealed();
    assert_eq!(sealed.iter().map(|file| file.events).collect::<Vec<_>>(), [8, 1, 1]);
    assert_eq!(sealed.iter().map(|file| file.last_seq()).collect::<Vec<_>>(), [7, 8, 9]);
    assert!(matches!(append(&mut spool, &["a"; 9]), Err(SpoolError::TooLarge { events: 9, .. })));
}

#[test]
fn an_event_may_be_as_large_as_a_frame_and_no_larger() {
    let disk = Faulty::new();
    let mut spool = spool::open(Arc::new(disk), Limits::default()).unwrap().start(&head("")).unwrap();
    let largest = "m".repeat(weir_core::segment::MAX_FRAME);
    append(&mut spool, &[&largest]).unwrap();
    let error = append(&mut spool, &[&format!("{largest}m")]).unwrap_err();
    assert!(matches!(error, SpoolError::TooLarge { .. }), "{error}");
    let error = append(&mut spool, &[&largest, &largest, &largest, &largest]).unwrap_err();
    assert!(matches!(error, SpoolError::TooLarge { .. }), "{error}");
    assert_eq!(append(&mut spool, &["a"]).unwrap(), 1..2);
}

#[test]
fn foreign_files_stay_and_are_reported() {
    let disk = Faulty::new();
    disk.put("notes.txt", b"hello");
    disk.put("7.seg", b"x");
    disk.put(&format!("{:020}.seg.conflict", 4), b"kept");
    let found = open(&disk).unwrap();
    assert_eq!(found.report.foreign, ["7.seg", "notes.txt"]);
    let spool = found.start(&head("")).unwrap();
    assert_eq!(spool.shelf().usage().aside_bytes, 4);
    assert!(disk.names().contains(&"notes.txt".to_owned()));
}

#[test]
fn a_segment_that_is_set_aside_is_kept_counted_and_not_shipped() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    append(&mut spool, &["a"]).unwrap();
    spool.seal(&Fixed("")).unwrap();
    let bytes = spool.shelf().read(0).unwrap();
    spool.shelf().set_aside(0, SetAside::Conflict).unwrap();
    assert_eq!(spool.shelf().sealed(), []);
    assert_eq!(spool.shelf().usage().aside_bytes, bytes.len() as u64);
    drop(spool);
    let disk = disk.power_cut(3);
    let spool = start(&disk);
    assert_eq!((spool.shelf().sealed(), spool.next_seq()), (vec![], 1));
    assert_eq!(disk.bytes(&format!("{:020}.seg.conflict", 0)), Some(bytes));
}

#[test]
fn a_second_writer_is_told_who_the_first_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let folder = || Arc::new(Folder::open(dir.path().join("spool")).unwrap());
    let first = spool::open(folder(), SMALL).unwrap().start(&head("")).unwrap();
    let error = spool::open(folder(), SMALL).err().unwrap().to_string();
    assert!(error.contains(&format!("another weir agent (pid {})", std::process::id())), "{error}");
    drop(first);
    spool::open(folder(), SMALL).unwrap();
}

#[test]
fn a_real_folder_keeps_what_the_faulty_one_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Arc::new(Folder::open(dir.path()).unwrap());
    let mut spool = spool::open(folder.clone(), SMALL).unwrap().start(&head("one")).unwrap();
    for n in 0..20 {
        append(&mut spool, &[&n.to_string()]).unwrap();
    }
    assert_eq!(spool.shelf().sealed().len(), 2);
    spool.shelf().trim(0).unwrap();
    drop(spool);
    let found = spool::open(folder.clone(), SMALL).unwrap();
    assert_eq!((found.next_seq, found.events.len()), (20, 4));
    let mut spool = found.start(&head("two")).unwrap();
    assert_eq!(log(&mut spool).keys().copied().collect::<Vec<_>>(), (8..20).collect::<Vec<_>>());
    let reserve = folder.list().unwrap().into_iter().find(|(name, _)| name == "reserve").unwrap();
    assert_eq!(reserve.1, SMALL.reserve_bytes);
}

#[test]
fn a_full_spool_refuses_ordinary_groups_and_takes_reserved_ones() {
    let limits =
        Limits { max_bytes: 8192, reserve_bytes: 2048, seal_bytes: 1024, seal_events: 100, room_from: 100 };
    let disk = Faulty::new();
    let mut spool = spool::open(Arc::new(disk.clone()), limits).unwrap().start(&head("")).unwrap();
    let event = "e".repeat(200);
    let fill = |spool: &mut Spool, priority| {
        (0..100).take_while(|_| append_as(spool, &[&event], priority).is_ok()).count()
    };
    assert!(fill(&mut spool, Priority::Ordinary) > 20);
    let error = append(&mut spool, &[&event]).unwrap_err();
    assert!(matches!(error, SpoolError::Full { disk: false, max: 8192, .. }), "{error}");
    assert!(fill(&mut spool, Priority::Reserved) >= 7, "the reserve takes refusals");
    assert!(disk.used() <= limits.max_bytes, "{}", disk.used());
    assert!(!disk.names().contains(&"reserve".to_owned()));
    assert!(append(&mut spool, &["small"]).is_err(), "the reserve is not for ordinary groups");

    for file in spool.shelf().sealed() {
        spool.shelf().trim(file.first_seq).unwrap();
    }
    append(&mut spool, &[&event]).unwrap();
    assert!(disk.names().contains(&"reserve".to_owned()), "it is there again before ordinary groups are");
}

#[test]
fn on_a_disk_that_others_filled_reserved_groups_are_still_written() {
    let disk = Faulty::new();
    let mut spool = start(&disk);
    append(&mut spool, &["a"]).unwrap();
    disk.set_capacity(Some(disk.used() + 10));
    let error = append(&mut spool, &["an ordinary event"]).unwrap_err();
    assert!(matches!(error, SpoolError::Full { disk: true, .. }), "{error}");
    assert_eq!(append_as(&mut spool, &["a refusal"], Priority::Reserved).unwrap(), 1..2);
    disk.set_capacity(Some(disk.used() + 10));
    assert!(append(&mut spool, &["b"]).is_err(), "ordinary groups wait until the reserve is back");
    disk.set_capacity(None);
    assert_eq!(append(&mut spool, &["b"]).unwrap(), 2..3);
    let disk = disk.power_cut(9);
    assert_eq!(values(&log(&mut start(&disk))), ["a", "a refusal", "b"]);
}

#[test]
fn a_log_without_its_origin_or_without_its_segments_is_not_written() {
    let disk = Faulty::new();
    append(&mut start(&disk), &["a"]).unwrap();
    let without_origin = disk.copy();
    without_origin.remove("origin").unwrap();
    assert!(matches!(open(&without_origin), Err(SpoolError::Inconsistent(_))));
    let without_segments = disk.copy();
    without_segments.remove(&format!("{:020}.seg", 0)).unwrap();
    assert!(matches!(open(&without_segments), Err(SpoolError::Inconsistent(_))));
    let other = disk.copy();
    other.put("origin", b"zzz");
    assert!(matches!(open(&other), Err(SpoolError::Inconsistent(_))));
}
