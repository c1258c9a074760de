use super::book::{MAX_TOOLS, REMEMBERED};
use super::*;
use crate::config::Limits;
use crate::share::Shares;

fn session(limits: Limits) -> Session {
    let share = Shares::new(&limits).of(1);
    Session::new(Kind::Id, None, share.keep())
}

fn tool(name: String) -> (String, String) {
    (name, "d".repeat(64))
}

#[test]
fn tools_are_those_of_the_last_list_with_all_its_pages() {
    let session = session(Limits::default());
    session.listed(vec![tool("a".into()), tool("b".into())], false);
    session.listed(vec![tool("c".into())], true);
    assert!(["a", "b", "c"].iter().all(|name| session.tool_digest(name).is_some()));
    session.listed(vec![tool("c".into())], false);
    assert!(session.tool_digest("a").is_none() && session.tool_digest("c").is_some());
}

#[test]
fn no_more_tools_are_known_than_there_is_room_for() {
    let many = || (0..=MAX_TOOLS).map(|n| tool(format!("t{n}"))).collect::<Vec<_>>();
    let session_with_room = session(Limits::default());
    session_with_room.listed(many(), false);
    let known = (0..=MAX_TOOLS).filter(|n| session_with_room.tool_digest(&format!("t{n}")).is_some());
    assert_eq!(known.count(), MAX_TOOLS);
    let narrow = session(Limits { buffered: 1000, ..Limits::default() });
    narrow.listed(many(), false);
    assert!(narrow.tool_digest("t0").is_none(), "none, rather than some of them");
    narrow.listed(vec![tool("t0".into())], false);
    assert!(narrow.tool_digest("t0").is_some());
}

#[test]
fn the_servers_requests_are_remembered_up_to_a_limit() {
    let session = session(Limits::default());
    let masker = weir_core::mask::Masker::new(weir_core::mask::MaskKey::new([1; 32]));
    let id = |n: usize| RequestId::read(&n.to_string()).unwrap();
    let asked = |n: u8| Asked {
        message_id: MessageId::from_random([n; 16]),
        method: masker.text("ping"),
        call: None,
        answered: false,
    };
    for n in 0..=REMEMBERED {
        session.asks(&id(n), None, asked(n as u8));
    }
    assert!(session.answers(&id(0)).is_none());
    assert!(!session.answers(&id(1)).unwrap().answered);
    assert!(session.answers(&id(1)).unwrap().answered, "the second time it was answered before");
    // An id that is used again names the later request.
    session.asks(&id(1), Some(&id(9)), asked(200));
    assert_eq!(session.answers(&id(1)).unwrap().message_id, MessageId::from_random([200; 16]));
    assert_eq!(session.asked_under(&id(9)).unwrap().message_id, MessageId::from_random([200; 16]));
    assert!(session.asked_under(&id(1)).is_none(), "a token is no id");
}
