use super::*;

fn single(text: &str) -> Message {
    match Body::parse(text.as_bytes()).unwrap() {
        Body::Single(message) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tool_call_gives_its_method_tool_and_id_to_the_letter() {
    let text =
        r#"{"jsonrpc":"2.0","id":"1\u0030","method":"tools/call","params":{"name":"echo","arguments":{}}}"#;
    let call = single(text);
    assert_eq!((call.method(), call.tool()), (Some("tools/call"), Some("echo")));
    assert_eq!(call.id().unwrap().as_json(), r#""1\u0030""#);
    let big = single(r#"{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"ping"}"#);
    assert_eq!(big.id().unwrap().as_json(), "123456789012345678901234567890");
}

#[test]
fn members_named_twice_are_ambiguous_at_any_depth() {
    for text in [
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":[{"b":1,"\u0062":2}]}}"#,
    ] {
        assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::Ambiguous(_))), "{text}");
    }
}

#[test]
fn messages_in_an_array_of_arrays_are_ambiguous_and_other_arrays_are_not() {
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#;
    for text in [
        format!("[[{call}]]"),
        format!("[1,[2,{call}]]"),
        format!("[[[[{call}]]]]"),
        "[[{\"method\":\"x\"}]]".into(),
    ] {
        assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::Ambiguous(_))), "{text}");
    }
    for text in ["[[1,2],[3]]", "[[{\"x\":1}]]", "[[[[\"x\"]]]]"] {
        assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::NotJsonRpc(_))), "{text}");
    }
}

#[test]
fn what_is_no_message_is_named_so() {
    for text in ["", "{", "[1,", "{\"a\":}", "nonsense"] {
        assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::NotJson(_))), "{text}");
    }
    assert!(matches!(Body::parse(b"\xff"), Err(ParseError::NotJson(_))));
    for text in ["[]", "7", "{}", "[7]", r#"{"client_name":"x"}"#] {
        assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::NotJsonRpc(_))), "{text}");
    }
}

#[test]
fn what_a_lenient_server_may_act_on_is_ambiguous() {
    for text in [
        r#"{"id":1,"method":"tools/call","params":{"name":"x"}}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#,
        r#"{"jsonrpc":"2.0"}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":5}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#,
    ] {
        assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::Ambiguous(_))), "{text}");
    }
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{}1{}}}"#,
        "[".repeat(500),
        "]".repeat(500)
    );
    assert!(Body::parse(deep.as_bytes()).is_err());
}

#[test]
fn batches_notifications_and_responses_are_told_apart() {
    let body = Body::parse(
        br#"[{"jsonrpc":"2.0","method":"notifications/initialized"},
             {"jsonrpc":"2.0","id":3,"result":{}},
             {"jsonrpc":"2.0","id":4,"error":{"code":-32601,"message":"no"}}]"#,
    )
    .unwrap();
    assert!(matches!(
        body.messages(),
        [
            Message::Notification { .. },
            Message::Response { result: Ok(_), .. },
            Message::Response { result: Err(ErrorObject { code: -32601, .. }), .. }
        ]
    ));
    let many = format!("[{}]", vec![r#"{"jsonrpc":"2.0","method":"x"}"#; MAX_BATCH + 1].join(","));
    assert!(matches!(Body::parse(many.as_bytes()), Err(ParseError::TooMany(_))));
    assert!(TOO_MANY_MESSAGES.starts_with(&format!("{MAX_BATCH} ")));
}

#[test]
fn json_at_its_limits_is_read_and_past_them_it_is_named() {
    let nested = |depth: usize| {
        let params = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for part in [r#""method":"x","params""#, r#""result""#, r#""error""#] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,{part}:{params}}}"#);
            let read = Body::parse(text.as_bytes());
            assert_eq!(read.as_ref().err(), (depth > MAX_DEPTH).then_some(&ParseError::TooDeep), "{depth}");
        }
        let objects = format!(r#"{}1{}"#, r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{objects}}}"#);
        assert_eq!(Body::parse(text.as_bytes()).is_err(), depth > MAX_DEPTH);
    };
    [1, MAX_DEPTH, MAX_DEPTH + 1, 127, 128, 129, 10_000].into_iter().for_each(nested);
    let values = |number: usize| {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"result":[{}1]}}"#, "1,".repeat(number - 2));
        Body::parse(text.as_bytes())
    };
    assert!(values(MAX_VALUES).is_ok());
    assert!(matches!(values(MAX_VALUES + 1), Err(ParseError::TooMany(_))));
}

#[test]
fn members_are_told_apart_however_many_there_are() {
    for number in [1, 15, 16, 17, 300] {
        let members: Vec<_> = (0..number).map(|n| format!(r#""m{n}":{n}"#)).collect();
        let body = |more: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{{}{more}}}}}"#, members.join(","));
            Body::parse(text.as_bytes())
        };
        assert!(body("").is_ok());
        for twice in [r#","m0":1"#, r#","\u006d0":1"#, &format!(r#","m{}":1"#, number - 1)] {
            assert!(matches!(body(twice), Err(ParseError::Ambiguous(_))), "{number} {twice}");
        }
    }
}

#[test]
fn an_id_has_one_key() {
    let key = |text: &str| RequestId::read(text).unwrap().key();
    assert_eq!((key("7"), key(r#""7""#), key(r#""a.b""#)), ("7".into(), "\"7\"".into(), "\"a.b\"".into()));
    assert_eq!(key(r#""a\/b""#), key(r#""a/b""#));
    assert_eq!(key("1.50"), key("1.5"));
    let long = |end: &str| key(&format!(r#""{}{end}""#, "x".repeat(1000)));
    assert!(long("a").len() == MAX_KEY && long("a") != long("b"));
}

#[test]
fn an_error_reply_is_a_message_with_the_same_id() {
    let call = single(r#"{"jsonrpc":"2.0","id":"q","method":"tools/call","params":{"name":"x"}}"#);
    let reply = single(&error_reply(call.id(), REFUSED, "refused by rule \"a\"", None));
    let Message::Response { id, result: Err(error) } = reply else { panic!() };
    assert_eq!((id.as_ref(), error.code), (call.id(), REFUSED));
}

#[test]
fn a_message_hides_in_no_array() {
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"delete_repo"}}"#;
    for text in [
        format!("[7,{call}]"),
        format!("[{call},7]"),
        format!(r#"[{{"client":1}},{call}]"#),
        format!("[[],{call}]"),
        format!("[{}{call}]", "7,".repeat(1000)),
    ] {
        assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::Ambiguous(_))), "{text}");
    }
    let numbers = format!("[{}7]", "7,".repeat(1000));
    assert!(matches!(Body::parse(numbers.as_bytes()), Err(ParseError::NotJsonRpc(_))));
}

#[test]
fn names_in_other_letters_are_ambiguous() {
    for text in [
        r#"{"jsonrpc":"2.0","id":1,"Method":"tools/call","params":{"name":"x"}}"#,
        r#"{"JSONRPC":"2.0","id":1,"METHOD":"tools/call","ID":2}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","METHOD":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"},"param\u017f":{"name":"y"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","Name":"y"}}"#,
    ] {
        assert!(matches!(Body::parse(text.as_bytes()), Err(ParseError::Ambiguous(_))), "{text}");
    }
    // Of what is no message, and of arguments, the names are free.
    let other = Body::parse(br#"{"ID":1,"Result":2,"error":3}"#);
    assert!(matches!(other, Err(ParseError::NotJsonRpc(_))));
    let free = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"Name":1,"name":2}}}"#;
    assert_eq!(single(free).tool(), Some("x"));
}

#[test]
fn a_tools_name_is_a_string_or_absent() {
    let call = |params: &str| {
        Body::parse(
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#).as_bytes(),
        )
    };
    for params in [r#"{"name":["delete_repo"]}"#, r#"{"name":7}"#, r#"{"name":{}}"#] {
        assert!(matches!(call(params), Err(ParseError::Ambiguous(_))), "{params}");
    }
    for params in ["{}", "[]", r#"{"name":null}"#] {
        assert_eq!(call(params).unwrap().messages()[0].tool(), Some(""), "{params}");
    }
    assert_eq!(call(r#"{"name":"a\u002fb"}"#).unwrap().messages()[0].tool(), Some("a/b"));
}

#[test]
fn one_id_written_in_two_ways_is_one() {
    let id = |text: &str| RequestId::read(text).unwrap();
    assert!(id(r#""a/b""#).means(&id(r#""a\/b""#)) && id("7").means(&id("7")) && id(" 7 ").means(&id("7")));
    assert!(!id("7").means(&id(r#""7""#)) && !id("7").means(&id("8")));
    assert_eq!((RequestId::read("null"), RequestId::read("{}"), RequestId::read("")), (None, None, None));
}

#[test]
fn a_response_may_say_null_or_that_the_tool_failed() {
    let answer = |text: &str| match single(text) {
        Message::Response { result: Ok(answer), .. } => (answer.text, answer.says.is_error),
        other => panic!("{other:?}"),
    };
    assert_eq!(answer(r#"{"jsonrpc":"2.0","id":1,"result":null}"#), ("null".into(), false));
    assert_eq!(answer(r#"{"jsonrpc":"2.0","id":1,"result":{},"error":null}"#), ("{}".into(), false));
    assert!(answer(r#"{"jsonrpc":"2.0","id":1,"result":{"isError":true}}"#).1);
    assert!(!answer(r#"{"jsonrpc":"2.0","id":1,"result":{"isError":false}}"#).1);
}

#[test]
fn a_cancellation_names_its_request() {
    let text =
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId": "q","reason":"x"}}"#;
    assert_eq!(single(text).cancels(), RequestId::read(r#""q""#));
    let other = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"requestId":"q"}}"#;
    assert_eq!(single(other).cancels(), None);
}

#[test]
fn a_fault_is_told_without_the_bodys_own_words() {
    for text in [
        r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"hunter2":1,"hunter2":2}}"#,
        r#"{"jsonrpc":"hunter2","id":1,"method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":["hunter2"]}"#,
        r#"{"jsonrpc":"2.0","id":["hunter2"],"method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":["hunter2"]}}"#,
        r#"{"hunter2"}"#,
    ] {
        let told = Body::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(!told.contains("hunter"), "{told}");
    }
}
