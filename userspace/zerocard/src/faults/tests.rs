// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rules from text to decision, and that a seed makes runs repeatable.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{json, Value};
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::status::Status;

use super::random::Random;
use super::stage::Stage;
use super::*;

const READ: Point = Point {
    admin: false,
    opcode: 0x02,
    cdw10: 0x1234,
};
const TRACK_RECEIVE: Point = Point {
    admin: true,
    opcode: 0x3e,
    cdw10: 0,
};

fn rule(text: &str) -> Rule {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    text.parse::<Rule>().unwrap_err().to_string()
}

/// What a rule alone decides about the first `count` commands like `point`.
fn decisions(seed: u64, text: &str, point: Point, count: usize) -> Vec<Decision> {
    let mut stage = Stage::new(seed, "nvme1");
    stage.insert(1, &rule(text));
    (0..count).map(|_| stage.decide(&point)).collect()
}

/// Numbers (from 1) of the commands at which it fires.
fn fires(seed: u64, text: &str, count: usize) -> Vec<usize> {
    let decided = decisions(seed, text, READ, count);
    let numbered = decided.iter().zip(1..);
    numbered
        .filter(|(decision, _)| **decision != Decision::Proceed)
        .map(|(_, number)| number)
        .collect()
}

#[test]
fn rules_match_what_they_name() {
    let hits = |text: &str, point: Point| decisions(0, text, point, 1)[0] != Decision::Proceed;
    let track = |cdw10| Point {
        cdw10,
        ..TRACK_RECEIVE
    };
    for (text, read, receive) in [
        ("stall", true, true),
        ("queue=any,stall", true, true),
        ("queue=io,stall", true, false),
        ("queue=admin,stall", false, true),
        ("op=read,stall", true, false),
        ("op=2,stall", true, false),
        ("queue=admin,op=2,stall", false, false),
        ("op=3eh,stall", false, true),
        ("op=0x3e,stall", false, true),
        ("op=track-receive , stall", false, true),
        ("op=flush,stall", false, false),
        ("sel=0x34,stall", true, false),
        ("cdw10=0x1234,stall", true, false),
        ("cdw10=0x34,stall", false, false),
    ] {
        assert_eq!(hits(text, READ), read, "{text} for a read");
        assert_eq!(
            hits(text, TRACK_RECEIVE),
            receive,
            "{text} for Track Receive"
        );
    }
    assert!(hits("sel=1,stall", track(0xab01)));
    assert!(!hits("sel=1,stall", track(0x0100)));
}

#[test]
fn rules_fire_when_they_say() {
    let first = |text| fires(7, text, 12);
    assert_eq!(first("stall"), (1..=12).collect::<Vec<_>>());
    assert_eq!(first("stall,nth=3"), [3]);
    assert_eq!(first("stall,every=5"), [5, 10]);
    assert_eq!(first("stall,from=2,every=5"), [2, 7, 12]);
    assert_eq!(first("stall,from=4,times=3"), [4, 5, 6]);
    assert_eq!(first("stall,every=2,times=2"), [2, 4]);
    assert_eq!(first("stall,p=1,times=2"), [1, 2]);
    let half = fires(7, "stall,p=0.5", 1000).len();
    assert!((400..600).contains(&half), "{half}");
    assert_eq!(fires(7, "stall,p=0.5,times=4", 1000).len(), 4);
}

#[test]
fn rules_do_what_they_say() {
    use Decision::{After, Before};
    let first = |text, point| decisions(3, text, point, 1)[0];
    let read = |text| first(text, READ);
    let ms = Duration::from_millis;
    assert_eq!(read("delay=5ms"), Before(Fault::Delay(ms(5))));
    assert_eq!(read("after,delay=2s"), After(Fault::Delay(ms(2000))));
    assert_eq!(read("before,drop"), Before(Fault::Drop));
    assert_eq!(read("after,stall"), After(Fault::Stall));
    assert_eq!(read("disconnect"), Before(Fault::Disconnect));
    assert_eq!(read("dead=ones"), Before(Fault::Die(Death::Ones)));
    assert_eq!(read("dead=cfs"), Before(Fault::Die(Death::Cfs)));
    let suspended = Status::new(1, 0x39);
    assert_eq!(read("status=1/39h"), Before(Fault::Status(suspended)));
    let Before(Fault::Status(status)) = read("status=2/0x81,dnr") else {
        panic!()
    };
    // SCT 2, SC 81h, Do Not Retry in bit 14.
    assert_eq!(status.bits(), 0x4281);
    assert_eq!(
        read("corrupt=sqhd"),
        After(Fault::CorruptCompletion(Field::Sqhd))
    );
    let get_state = Point {
        admin: true,
        opcode: 0x42,
        cdw10: 0x0001_0000,
    };
    assert!(matches!(
        first("corrupt=state", get_state),
        After(Fault::CorruptState(_))
    ));
    assert_eq!(read("corrupt=state"), Decision::Proceed);
}

#[test]
fn a_random_delay_stays_in_its_range_and_uses_it() {
    let nanoseconds = |decision: &Decision| match decision {
        Decision::Before(Fault::Delay(time)) => time.as_nanos(),
        other => panic!("{other:?}"),
    };
    let drawn = decisions(1, "delay=10us..20us", READ, 500);
    let drawn: Vec<u128> = drawn.iter().map(nanoseconds).collect();
    assert!(drawn.iter().all(|time| (10_000..=20_000).contains(time)));
    assert!(drawn.iter().any(|time| *time < 11_000));
    assert!(drawn.iter().any(|time| *time > 19_000));
}

#[test]
fn the_first_rule_wins_and_others_keep_counting() {
    let faults = Faults::new(0, ["admin", "nvme1"]);
    let stall = faults.add(rule("op=read,nth=2,stall")).unwrap();
    let drop = faults.add(rule("function=nvme1,every=2,drop")).unwrap();
    let stage = faults.stage(1).unwrap();
    let decided = [0; 4].map(|_| stage.decide(&READ));
    assert_eq!(
        decided,
        [
            Decision::Proceed,
            Decision::Before(Fault::Stall),
            Decision::Proceed,
            Decision::Before(Fault::Drop),
        ]
    );
    let counts = |id| {
        let list = faults.list();
        let listed = list.iter().find(|listed| listed.fault == id).unwrap();
        (listed.matched, listed.fired)
    };
    assert_eq!((counts(stall), counts(drop)), ((4, 1), (4, 1)));
    // The other function counts for itself, and for the rules that it has.
    let other = faults.stage(0).unwrap();
    assert_eq!(other.decide(&READ), Decision::Proceed);
    assert_eq!(other.decide(&READ), Decision::Before(Fault::Stall));
    assert_eq!((counts(stall), counts(drop)), ((6, 2), (4, 1)));
}

#[test]
fn rules_come_and_go() {
    let faults = Faults::new(0, ["admin", "nvme1"]);
    let stage = faults.stage(1).unwrap();
    assert!(stage.is_idle());
    let one = faults.add(rule("stall")).unwrap();
    let two = faults.add(rule("forget=1")).unwrap();
    assert!(one != two && !stage.is_idle() && stage.loses_mark());
    assert!(faults.remove(one) && !faults.remove(one));
    assert_eq!(stage.decide(&READ), Decision::Proceed);
    assert!(!stage.is_idle() && stage.loses_mark());
    assert_eq!(faults.clear(), 1);
    assert!(stage.is_idle() && !stage.loses_mark() && faults.list().is_empty());
    assert_ne!(faults.add(rule("stall")), Ok(two));
    let error = faults.add(rule("function=nvme2,stall")).unwrap_err();
    assert!(
        error.contains("nvme2") && error.contains("admin, nvme1"),
        "{error}"
    );
    while faults.list().len() < set::MAX_RULES {
        faults.add(rule("stall")).unwrap();
    }
    assert!(faults.add(rule("stall")).unwrap_err().contains("256"));
}

#[test]
fn marks_are_lost_as_the_rule_says() {
    let lost = |text: &str| {
        let mut stage = Stage::new(0, "nvme1");
        stage.insert(1, &rule(text));
        assert_eq!(
            stage.decide(&READ),
            Decision::Proceed,
            "no command is its business"
        );
        let marks = (1..=10).filter(|_| stage.loses_mark());
        marks.collect::<Vec<u32>>()
    };
    assert_eq!(lost("forget=4"), [4, 8]);
    assert_eq!(lost("forget=1,from=3,times=2"), [3, 4]);
    assert_eq!(lost("forget=3,from=1"), [1, 4, 7, 10]);
}

#[test]
fn writes_are_late_as_the_rule_says() {
    let late = |text: &str| {
        let mut stage = Stage::new(0, "nvme1");
        stage.insert(1, &rule(text));
        assert!(stage.has_writes() && !stage.has_commands() && !stage.loses_mark());
        assert_eq!(stage.decide(&READ), Decision::Proceed);
        let writes = (1..=10).filter(|_| stage.late_write() == Some(Duration::from_millis(5)));
        writes.collect::<Vec<u32>>()
    };
    assert_eq!(late("late=5ms,every=4"), [4, 8]);
    assert_eq!(late("nth=3,late=5ms"), [3]);
    assert_eq!(late("late=5ms,from=9"), [9, 10]);
}

#[test]
fn a_corrupt_completion_differs_in_one_field() {
    let good = Completion {
        sqhd: 5,
        sqid: 1,
        cid: 9,
        phase: true,
        ..Completion::default()
    };
    let bytes = |field: Field| {
        let mut entry = good;
        field.corrupt(&mut entry);
        entry.to_bytes()[8..].to_vec()
    };
    // DW2: SQHD, SQID; DW3: CID, then the status with the phase tag in bit 0.
    assert_eq!(bytes(Field::Sqhd), [5, 0x80, 1, 0, 9, 0, 1, 0]);
    assert_eq!(bytes(Field::Sqid), [5, 0, 1, 0x80, 9, 0, 1, 0]);
    assert_eq!(bytes(Field::Cid), [5, 0, 1, 0, 9, 0x80, 1, 0]);
    assert_eq!(bytes(Field::Phase), [5, 0, 1, 0, 9, 0, 0, 0]);
}

#[test]
fn refusals_name_key_value_and_what_is_allowed() {
    for (text, words) in [
        ("", &["empty", "delay, status"][..]),
        ("stall,", &["empty"]),
        ("op=read", &["delay, status, stall"]),
        ("colour=red,stall", &["\"colour\"", "function, queue"]),
        ("stall=1", &["stall", "\"1\"", "no value"]),
        ("delay", &["delay", "missing"]),
        ("stall,stall", &["stall", "twice"]),
        (
            "queue=both,stall",
            &["queue", "\"both\"", "admin, io or any"],
        ),
        ("op=fly,stall", &["op", "\"fly\"", "0 to 255", "track-send"]),
        ("op=256,stall", &["op", "\"256\"", "0 to 255"]),
        ("op=+2,stall", &["op", "\"+2\""]),
        ("queue=admin,op=read,stall", &["op", "read", "queue=io"]),
        ("sel=256,stall", &["sel", "0 to 255"]),
        ("cdw10=4294967296,stall", &["cdw10", "4294967295"]),
        ("nth=0,stall", &["nth", "\"0\"", "from 1"]),
        ("nth=1,times=2,stall", &["nth", "times"]),
        ("every=0,stall", &["every", "from 1"]),
        ("p=0,stall", &["p:", "above 0"]),
        ("p=1.5,stall", &["p:", "at most 1"]),
        ("p=nan,stall", &["p:", "probability"]),
        ("delay=5", &["delay", "\"5\"", "10us"]),
        ("delay=5m", &["delay", "\"5m\""]),
        ("delay=2ms..1ms", &["delay", "MIN..MAX"]),
        ("delay=3601s", &["delay", "hour"]),
        ("delay=99999999999999999999s", &["delay", "hour"]),
        ("delay=5\u{b5}s", &["delay"]),
        ("status=8/0", &["status", "SCT/SC"]),
        ("status=1/100h", &["status", "\"1/100h\""]),
        ("status=39h", &["status", "1/39h"]),
        ("stall,dnr", &["dnr", "status"]),
        ("stall,drop", &["stall", "drop", "one action"]),
        ("delay=1ms,status=0/6", &["delay", "status", "one action"]),
        ("before,after,stall", &["before", "after"]),
        ("dead=maybe", &["dead", "\"maybe\"", "ones or cfs"]),
        ("corrupt=all", &["corrupt", "\"all\"", "phase or state"]),
        ("before,corrupt=cid", &["before", "corrupt"]),
        (
            "op=track-receive,corrupt=state",
            &["corrupt", "migration-receive"],
        ),
        ("forget=0", &["forget", "from 1"]),
        ("forget=2,every=3", &["every", "forget"]),
        ("forget=2,op=read", &["forget", "marks"]),
        ("forget=2,after", &["forget", "marks"]),
        ("late=0us", &["late", "above 0"]),
        ("late=1001ms", &["late", "up to 1s"]),
        ("late=1ms,op=read", &["late", "writes"]),
        ("late=1ms,before", &["late", "writes"]),
        ("late=1ms,stall", &["late", "stall"]),
        ("function=a b,stall", &["function", "\"a b\""]),
        ("function=,stall", &["function", "\"\""]),
    ] {
        let error = refusal(text);
        for word in words {
            assert!(error.contains(word), "{text}: {error:?} lacks {word:?}");
        }
    }
    let long = refusal(&format!("op={},stall", "\u{1b}x".repeat(1000)));
    assert!(long.len() < 900 && !long.contains('\u{1b}'), "{long}");
}

#[test]
fn json_says_the_same_as_text() {
    for (object, text) in [
        (
            json!({"op": "read", "delay": "1ms..5ms", "p": 0.25}),
            "op=read,p=0.25,delay=1ms..5ms",
        ),
        (
            json!({"function": "nvme1", "op": 62, "nth": 3, "stall": true}),
            "function=nvme1,op=0x3e,nth=3,stall",
        ),
        (
            json!({"status": "1/39h", "dnr": true, "after": true}),
            "after,status=1/0x39,dnr",
        ),
        (json!("function=all,drop"), "drop"),
    ] {
        let rule = Rule::from_json(&object).unwrap();
        assert_eq!(rule.to_string(), text);
        assert_eq!(serde_json::to_value(&rule).unwrap(), json!(text));
    }
    for bad in [
        json!({"stall": false}),
        json!({"op": ["read"], "stall": true}),
        json!({"op": "read,stall"}),
        json!({"nth": -1, "stall": true}),
        json!({"nth": 1.5, "stall": true}),
        json!(7),
        Value::Null,
    ] {
        assert!(Rule::from_json(&bad).is_err(), "{bad}");
    }
}

fn any_rule() -> impl Strategy<Value = String> {
    let option = |values: &[&str]| {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        prop::sample::select(values)
    };
    (
        option(&["", "function=all,", "function=nvme1,"]),
        option(&[
            "",
            "queue=io,",
            "queue=admin,op=6,",
            "op=9,",
            "op=read,",
            "op=track-send,",
        ]),
        option(&["", "sel=3,", "cdw10=70000,"]),
        prop_oneof![
            Just(String::new()),
            (1..9u64).prop_map(|n| format!("nth={n},")),
            (1..9u64, 1..9u64).prop_map(|(n, m)| format!("from={n},every={m},")),
            (1..9u64, 1..9u64).prop_map(|(n, m)| format!("every={n},times={m},")),
            (1..9u64, 1..9u64).prop_map(|(n, m)| format!("from={n},times={m},")),
        ],
        prop_oneof![
            Just(String::new()),
            (1..=1000u32).prop_map(|p| format!("p={},", f64::from(p) / 1000.0)),
        ],
        option(&["", "before,", "after,"]),
        prop_oneof![
            (0..5000u64, 0..5000u64).prop_map(|(a, b)| format!("delay={a}us..{}us", a + b)),
            (0..8u8, any::<u8>()).prop_map(|(a, b)| format!("status={a}/{b}")),
            option(&["stall", "drop", "disconnect", "dead=ones", "dead=cfs"]),
        ],
    )
        .prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g].concat())
}

proptest! {
    #[test]
    fn the_canonical_text_means_the_same(text in any_rule()) {
        let one = rule(&text);
        prop_assert_eq!(&one, &rule(&one.to_string()), "{}", one);
    }

    #[test]
    fn a_seed_makes_runs_repeatable(
        texts in prop::collection::vec(any_rule(), 1..5),
        seed: u64,
        commands in prop::collection::vec((any::<bool>(), 0..12u8, 0..4u32), 0..200),
    ) {
        let run = |seed| {
            let mut stage = Stage::new(seed, "nvme1");
            for (id, text) in (1..).zip(&texts) {
                stage.insert(id, &rule(text));
            }
            let decide = |&(admin, opcode, cdw10)| stage.decide(&Point { admin, opcode, cdw10 });
            commands.iter().map(decide).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(seed), run(seed));
    }

    #[test]
    fn another_seed_makes_other_runs(seed: u64) {
        let text = "p=0.5,delay=1us..1s";
        let run = |seed| decisions(seed, text, READ, 50);
        prop_assert_ne!(run(seed), run(seed ^ 1));
    }

    #[test]
    fn a_rule_behind_others_does_not_move_them(text in any_rule(), seed: u64) {
        let alone = decisions(seed, &text, READ, 50);
        let mut stage = Stage::new(seed, "nvme1");
        stage.insert(1, &rule(&text));
        stage.insert(2, &rule("p=0.5,drop"));
        for expected in alone {
            let decided = stage.decide(&READ);
            if expected != Decision::Proceed {
                prop_assert_eq!(decided, expected);
            }
        }
    }
}

#[test]
fn no_text_panics() {
    let pieces = [
        "op=",
        "read",
        "delay=",
        "5ms",
        "..",
        ",",
        "=",
        "stall",
        "nth=",
        "0",
        "9",
        "p=",
        "1e400",
        "status=",
        "1/39h",
        "/",
        "h",
        "0x",
        "forget=",
        "late=",
        "corrupt=",
        "state",
        "\u{b5}s",
        "\0",
        " ",
        "function=",
        "18446744073709551615",
        "-1",
        "after",
        "dnr",
        "queue=",
        "\u{1f980}",
    ];
    let mut random = Random::new(42);
    let mut accepted = 0;
    for round in 0..100_000 {
        let count = 1 + random.next() as usize % 8;
        let mut text = String::new();
        for _ in 0..count {
            match random.next() % 8 {
                0 => text.push(char::from(random.next() as u8)),
                _ => text.push_str(pieces[random.next() as usize % pieces.len()]),
            }
        }
        if let Ok(rule) = text.parse::<Rule>() {
            accepted += 1;
            let again: Rule = rule.to_string().parse().unwrap();
            assert_eq!(again, rule, "round {round}: {text}");
            let mut stage = Stage::new(round, "f");
            stage.insert(1, &rule);
            stage.decide(&READ);
            stage.loses_mark();
        }
    }
    assert!(accepted > 100, "{accepted}: the pieces make too few rules");
}
