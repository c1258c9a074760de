use super::*;
use crate::mask::{MaskKey, Masker};
use crate::mcp::jsonrpc::RequestId;

const LIMIT: usize = 400;
const TOKEN: &str = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";

fn id(text: &str) -> RequestId {
    RequestId::read(text).unwrap()
}

fn masking(asked: &[&str]) -> Editor {
    Editor::new(asked.iter().copied().map(id).collect()).masking(Masker::new(MaskKey::new([7; 32])))
}

fn hiding(list: &str) -> Editor {
    Editor::new(vec![id(list)]).hiding(Lists::Of(vec![id(list)]), |name| name.starts_with("delete_"))
}

fn run(mut rewriter: Rewriter, pieces: &[&[u8]]) -> (String, Told) {
    let mut out = Vec::new();
    for piece in pieces {
        out.extend(rewriter.feed(piece));
    }
    out.extend(rewriter.finish());
    assert_eq!(rewriter.kept(), 0);
    (String::from_utf8(out).unwrap(), rewriter.told().clone())
}

fn events(editor: Editor, text: &str) -> (String, Told) {
    run(Rewriter::of_events(editor, LIMIT), &[text.as_bytes()])
}

fn whole(editor: Editor, text: &str) -> (String, Told) {
    run(Rewriter::of_whole(editor, LIMIT), &[text.as_bytes()])
}

#[test]
fn a_stream_in_which_nothing_changes_stays_to_the_letter_however_it_is_cut() {
    let text = "\u{feff}: hi\n\nretry: 500\nid: 7\ndata:\n\nevent: endpoint\ndata: /m?token=correct-horse\n\n\
                event: message\nid:8\ndata: {\"jsonrpc\":\"2.0\",\ndata:  \"id\": 1, \"result\":{\"n\":1.50e3}}\nfoo: bar\n\n\
                : x\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\ndata: cut off";
    for ending in ["\n", "\r", "\r\n"] {
        let text = text.replace('\n', ending);
        let text = text.strip_suffix("data: cut off").unwrap();
        for cut in 0..text.len() {
            let (head, tail) = text.as_bytes().split_at(cut);
            for editor in [masking(&["1"]), hiding("1"), Editor::new(vec![])] {
                let (out, told) = run(Rewriter::of_events(editor, LIMIT), &[head, tail]);
                assert!(out == text && told.is_nothing(), "{ending:?} cut at {cut}: {out:?} {told:?}");
            }
        }
    }
}

#[test]
fn signs_of_life_and_ids_go_on_before_their_event_is_whole() {
    let mut rewriter = Rewriter::of_events(masking(&["1"]), LIMIT);
    assert_eq!(
        rewriter.feed(b": alive\nid: 5\nretry: 1\nevent: message\n"),
        b": alive\nid: 5\nretry: 1\nevent: message\n"
    );
    assert_eq!(rewriter.feed(b"data: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n"), b"");
    // The line, and the name of the event.
    assert_eq!(rewriter.kept(), 37 + 7);
    assert_eq!(rewriter.feed(b"\r\n"), b"data: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\r\n");
}

#[test]
fn a_changed_event_is_another_in_its_data_alone() {
    for ending in ["\n", "\r", "\r\n"] {
        let text = format!(
            "id: 5\ndata:{{\"jsonrpc\":\"2.0\",\ndata: \"id\":1, \"result\":{{\"text\":\"{TOKEN}\",\"n\":1.0}}}}\nretry: 3\n\ndata: {{}}\n\n"
        );
        let (out, told) = events(masking(&["1"]), &text.replace('\n', ending));
        let expected_head = format!(
            "id: 5{ending}data:{{\"jsonrpc\":\"2.0\",{ending}data:\"id\":1, \"result\":{{\"text\":\"[masked:github-token:p0:"
        );
        assert!(out.starts_with(&expected_head), "{out:?}");
        assert!(out.contains(&format!("\",\"n\":1.0}}}}{ending}retry: 3{ending}{ending}")), "{out:?}");
        assert_eq!((told.masked.len(), told.masked[0].pointer.as_str()), (1, "/text"));
    }
}

#[test]
fn denied_tools_are_taken_out_of_a_list_and_all_else_stays() {
    let tool = |name: &str| format!(r#"{{ "name":"{name}" , "inputSchema":{{"x": 1.50}} }}"#);
    let text = format!(
        r#"{{"jsonrpc":"2.0", "id":"a\/b","result":{{"tools":[ {} , {},{}  ],"nextCursor":"c", "ttl": 5}}}}"#,
        tool("echo"),
        tool("delete_repo"),
        tool("count")
    );
    let (out, told) = whole(hiding(r#""a/b""#), &text);
    assert_eq!(out, text.replace(&format!("{},", tool("delete_repo")), ""), "{out}");
    assert_eq!(told.hidden, ["delete_repo"]);
    // The answer to something else is no list of tools.
    let (out, told) = whole(hiding("7"), &text);
    assert!(out == text && told.is_nothing());
    let (out, _) = whole(hiding("1"), r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"delete_a"}]}}"#);
    assert_eq!(out, r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#);
}

#[test]
fn of_a_batch_each_message_is_masked_and_nothing_else() {
    let text = format!(
        r#"[ {{"jsonrpc":"2.0","id":1,"result":{{"content":[{{"type":"text","text":"{TOKEN}"}}],"nextCursor":"{TOKEN}"}}}} ,
            {{"jsonrpc":"2.0","id":2,"error":{{"code":-32000,"message":"no {TOKEN}"}}}}]"#
    );
    let (out, told) = run(Rewriter::of_whole(masking(&["1", "2"]), 4000), &[text.as_bytes()]);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value[0]["result"]["nextCursor"], TOKEN);
    assert_eq!(out.matches(TOKEN).count(), 1, "{out}");
    assert_eq!((value[1]["error"]["code"].as_i64(), told.masked.len()), (Some(-32000), 2));
}

#[test]
fn what_must_be_masked_and_is_over_the_limit_becomes_an_error_and_what_follows_goes_on() {
    let message = |n: usize| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"x":"{}"}}}}"#, "x".repeat(n));
    let around = message(0).len();
    let fits = message(LIMIT - around);
    assert_eq!(whole(masking(&["1"]), &fits).0, fits);
    let (out, told) = whole(masking(&["1"]), &message(LIMIT - around + 1));
    assert!(
        out.starts_with(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-31403"#) && told.withheld == 1,
        "{out}"
    );

    let next = "data: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\n";
    let line = "data: ".len();
    let fits = format!("id: 4\ndata: {}\n\n{next}", message(LIMIT - around - line));
    assert_eq!(events(masking(&["1"]), &fits).0, fits);
    for ending in ["\n", "\r\n"] {
        let over = format!("id: 4\ndata: {}\nid: 5\n\n{next}", message(LIMIT)).replace('\n', ending);
        let (out, told) = events(masking(&["1"]), &over);
        assert!(
            out.starts_with(&format!("id: 4{ending}data: {{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":")),
            "{out:?}"
        );
        assert!(
            out.ends_with(&next.replace('\n', ending)) && !out.contains("xx") && told.withheld == 1,
            "{out:?}"
        );
        // Nobody asked: a comment stands there.
        let (out, _) = events(masking(&[]), &over);
        assert!(out.contains(": weir: an event") && !out.contains("xx"), "{out:?}");
        // Where nothing must be masked, it goes on as it is.
        let (out, told) = events(hiding("1"), &over);
        assert!(out == over && told.is_nothing(), "{out:?}");
    }
    assert_eq!(whole(hiding("1"), &message(LIMIT)).0, message(LIMIT));
}

#[test]
fn what_is_no_message_is_masked_as_the_record_would_mask_it_and_what_is_no_text_is_withheld() {
    for (text, kept) in [
        (format!("see {TOKEN}"), "see [masked:github-token:"),
        (
            r#"{"jsonrpc":"2.0","id":1,"result":{"a":1,"token":"abc","a":2}}"#.into(),
            r#"{"a":1,"token":"[masked:"#,
        ),
        (r#"{"token":"correct-horse"}"#.into(), r#"{"token":"[masked:"#),
    ] {
        let (out, told) = whole(masking(&["1"]), &text);
        assert!(out.contains(kept) && told.masked.len() == 1 && told.withheld == 0, "{out}");
        for name in ["message", "own"] {
            let (out, _) = events(masking(&["1"]), &format!("event: {name}\ndata: {text}\n\n"));
            assert!(out.contains(kept) && out.ends_with("\n\n"), "{out}");
        }
        assert_eq!(whole(hiding("1"), &text).0, text);
    }
    let (out, told) = run(Rewriter::of_whole(masking(&["1"]), LIMIT), &[b"\xff{}"]);
    assert!(out.contains("\"id\":1,\"error\"") && told.withheld == 1);
    // What the stream cut off is masked as well.
    let (out, _) = events(
        masking(&["1"]),
        &format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"x\",\"params\":[\"{TOKEN}\"]}}"),
    );
    assert!(out.contains("[masked:") && !out.contains(TOKEN), "{out}");
    assert_eq!(whole(masking(&["1"]), "").0, "");
}

#[test]
fn one_that_there_is_no_room_for_is_as_one_over_the_limit() {
    let mut rewriter = Rewriter::of_events(masking(&["1"]), LIMIT);
    assert_eq!(rewriter.feed(b"data: {\"jsonrpc\":"), b"");
    assert_eq!(rewriter.give_up(), b"");
    assert_eq!((rewriter.feed(b"\"2.0\"}\n"), rewriter.kept()), (vec![], 0));
    let out = String::from_utf8(rewriter.feed(b"\n: alive\n")).unwrap();
    assert!(out.starts_with("data: {\"jsonrpc\"") && out.ends_with("\n\n: alive\n"), "{out:?}");
    let mut rewriter = Rewriter::of_whole(hiding("1"), LIMIT);
    assert_eq!(rewriter.feed(b"{\"a"), b"");
    assert_eq!(
        (rewriter.give_up(), rewriter.feed(b"\":1}"), rewriter.finish()),
        (b"{\"a".to_vec(), b"\":1}".to_vec(), vec![])
    );
}

#[test]
fn a_servers_progress_rises_above_what_was_told_while_the_call_was_held() {
    let mut progress = Progress::of("\"p\"").unwrap();
    let told: Vec<String> = (0..3).map(|_| progress.tell("waiting")).collect();
    assert!(
        told[0].contains(r#""progressToken":"p","progress":0.000001,"message":"waiting""#),
        "{}",
        told[0]
    );
    let server = |token: &str, value: &str| {
        format!(
            "data: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progress\": {value} ,\"progressToken\":{token},\"total\":5}}}}\n\n"
        )
    };
    let text: String =
        [("\"p\"", "0"), ("\"p\"", "0.000002"), ("\"q\"", "0"), ("\"p\"", "1"), ("\"p\"", "2.50")]
            .map(|(t, v)| server(t, v))
            .concat();
    let (out, said) = events(Editor::new(vec![]).renumbering(progress), &text);
    let expected: String =
        [("\"p\"", "0.000004"), ("\"p\"", "0.000005"), ("\"q\"", "0"), ("\"p\"", "1"), ("\"p\"", "2.50")]
            .map(|(t, v)| server(t, v))
            .concat();
    assert_eq!((out, said.renumbered), (expected, 2));
    // Where nothing was told, nothing is renumbered.
    let untold = Progress::of("\"p\"").unwrap();
    assert_eq!(events(Editor::new(vec![]).renumbering(untold), &text).0, text);
    assert!(Progress::of("null").is_none() && Progress::of("{}").is_none() && Progress::of("").is_none());
}
