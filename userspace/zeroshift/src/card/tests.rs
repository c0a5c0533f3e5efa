// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift card` against a card that answers what a test tells it.

use super::top::Style;
use super::*;
use crate::cli::{Arguments, Command};
use clap::Parser as _;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

/// A control socket that answers one connection from a list, and keeps the questions.
struct Card {
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<Vec<Value>>>,
}

impl Card {
    /// Answers are results; an error is a string.
    fn answering(answers: Vec<Result<Value, String>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut questions = vec![];
            for answer in answers {
                let Some(Ok(line)) = lines.next() else { break };
                let mut question: Value = serde_json::from_str(&line).unwrap();
                let id = question.as_object_mut().unwrap().remove("id");
                questions.push(question);
                let answer = match answer {
                    Ok(answer) => json!({"id": id, "ok": answer}),
                    Err(error) => json!({"id": id, "error": error}),
                };
                writeln!(stream, "{answer}").unwrap();
            }
            questions
        });
        Self {
            dir,
            thread: Some(thread),
        }
    }

    fn options(&self, arguments: &str) -> CardOptions {
        let words = ["zeroshift", "card", "--dir"].map(String::from);
        let dir = self.dir.path().to_str().unwrap().to_owned();
        let rest = arguments.split_whitespace().map(String::from);
        let words = words.into_iter().chain([dir]).chain(rest);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Card(options) => options,
            other => panic!("{other:?}"),
        }
    }

    /// What is printed for a command line, or the error with all its causes.
    fn run(&self, arguments: &str) -> Result<String, String> {
        let mut output = vec![];
        match run(&self.options(arguments), &mut output) {
            Ok(()) => Ok(String::from_utf8(output).unwrap()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    fn questions(mut self) -> Vec<Value> {
        self.thread.take().unwrap().join().unwrap()
    }
}

fn counters(clock_ns: u64, reads: u64, buckets: &Value) -> Value {
    json!({"clock_ns": clock_ns, "functions": [{
        "function": "nvme1", "tracked_ranges": 3, "reads": reads, "writes": 7, "others": 0,
        "admin": 12, "errors": 1, "bytes_read": reads * 4096, "bytes_written": 28672,
        "doorbells": 4, "polls": 5, "interrupts": 6, "memory_accesses": 8,
        "dirty_pages": reads, "connects": 1, "resets": 2, "new_in_some_version": true,
        "latency": {"count": 1, "p50_ns": 10240, "p90_ns": 10240, "p99_ns": 1_048_576,
                    "p999_ns": 1_048_576, "buckets": buckets},
    }]})
}

#[test]
fn every_subcommand_asks_what_it_says() {
    for (arguments, question) in [
        ("functions", json!({"op": "functions"})),
        ("counters", json!({"op": "counters"})),
        (
            "counters nvme1",
            json!({"op": "counters", "function": "nvme1"}),
        ),
        ("fault list", json!({"op": "faults"})),
        (
            "fault add op=read,stall",
            json!({"op": "fault-add", "rule": "op=read,stall"}),
        ),
        ("fault remove 3", json!({"op": "fault-remove", "fault": 3})),
        ("fault clear", json!({"op": "fault-clear"})),
        ("release", json!({"op": "release"})),
        ("limits", json!({"op": "limits"})),
        (
            "limits --max-ranges 4 --min-granule 0",
            json!({"op": "limits", "max_ranges": 4, "min_granule": 0}),
        ),
        (
            "rate nvme1 --iops 500 --bytes-per-second 0 --burst-ms 20",
            json!({"op": "rate", "function": "nvme1", "iops": 500, "bytes_per_second": 0,
                   "burst_ms": 20}),
        ),
        (
            "kill nvme1 --mode ones",
            json!({"op": "kill", "function": "nvme1", "mode": "ones"}),
        ),
        (
            "disconnect all",
            json!({"op": "disconnect", "function": "all"}),
        ),
    ] {
        let card = Card::answering(vec![Ok(json!({"made": "up"}))]);
        let printed = card.run(&format!("{arguments} --json")).unwrap();
        assert_eq!(printed, "{\"made\":\"up\"}\n", "{arguments}");
        assert_eq!(card.questions(), [question], "{arguments}");
    }
    let card = Card::answering(vec![Ok(json!({"fault": 1})), Ok(json!({"fault": 2}))]);
    let printed = card.run("fault add stall drop").unwrap();
    assert_eq!(printed, "added fault 1\nadded fault 2\n");
    assert_eq!(card.questions().len(), 2);
}

#[test]
fn answers_become_tables() {
    let printed =
        |answer: Value, arguments: &str| Card::answering(vec![Ok(answer)]).run(arguments).unwrap();
    let function = |name: &str, id: u16, dead: Value| {
        json!({"name": name, "kind": "nvme", "controller_id": id, "connected": id == 0,
               "ready": true, "suspended": false, "dead": dead, "stalled": 2,
               "tracked_ranges": 1})
    };
    let functions = [
        function("admin", 0, Value::Null),
        function("nvme1", 1, json!("cfs")),
    ];
    assert_eq!(
        printed(json!({"functions": functions}), "functions"),
        "\
FUNCTION  KIND  ID  CLIENT  STATE       STALLED  TRACKED RANGES
admin     nvme  0   yes     ready       2        1
nvme1     nvme  1   no      dead (cfs)  2        1
"
    );
    let shown = printed(counters(0, 900, &json!([])), "counters");
    let rows: Vec<Vec<&str>> = shown.lines().map(|l| l.split("  ").collect()).collect();
    let cells = |row: &Vec<&str>| {
        let cells = row
            .iter()
            .map(|cell| cell.trim())
            .filter(|cell| !cell.is_empty());
        cells.map(String::from).collect::<Vec<_>>()
    };
    let head = cells(&rows[0]);
    let row = cells(&rows[1]);
    assert_eq!(head.len(), row.len(), "{shown}");
    let cell = |name: &str| &row[head.iter().position(|known| known == name).unwrap()];
    for (name, value) in [
        ("FUNCTION", "nvme1"),
        ("READS", "900"),
        ("WRITES", "7"),
        ("ADMIN", "12"),
        ("BYTES READ", "3686400"),
        ("WRITTEN", "28672"),
        ("TRACKED RANGES", "3"),
        ("MEMORY ACCESSES", "8"),
        ("RESETS", "2"),
        ("P50", "10.2 us"),
        ("P99", "1.05 ms"),
    ] {
        assert_eq!(cell(name), value, "{name}\n{shown}");
    }
    let rule = json!({"fault": 3, "rule": "op=read,drop", "matched": 9, "fired": 8});
    assert_eq!(
        printed(json!({"seed": 5, "faults": [rule]}), "fault list"),
        "FAULT  MATCHED  FIRED  RULE\n3      9        8      op=read,drop\nseed 5\n"
    );
    assert_eq!(
        printed(json!({"seed": 5, "faults": []}), "fault list"),
        "no fault rules (seed 5)\n"
    );
    let limits = json!({"max_ranges": 4, "max_ranges_subsystem": 8, "min_granule": 0,
                        "max_granule": 9});
    assert_eq!(
        printed(limits, "limits"),
        "max ranges         4\nof the whole card  8\nmin granule        0 (4 KiB)\n\
         max granule        9 (2 MiB)\n"
    );
    let rate = json!({"function": "nvme1", "iops": 500, "bytes_per_second": 0, "burst_ms": 20});
    assert_eq!(
        printed(json!({"functions": [rate]}), "rate"),
        "FUNCTION  IOPS  BYTES/S   BURST\nnvme1     500   no limit  20 ms\n"
    );
    let released = printed(json!({"released": 4}), "release");
    assert_eq!(released, "released 4 commands\n");
    assert_eq!(printed(json!({}), "kill all --mode none"), "");
}

/// Two looks, two seconds apart.
fn top(arguments: &str, style: Style) -> String {
    let before = counters(1_000_000_000, 100, &json!([[1024, 50], [10240, 50]]));
    let after = counters(
        3_000_000_000,
        10_100,
        &json!([[1024, 50], [10240, 9950], [20480, 100]]),
    );
    let card = Card::answering(vec![Ok(before), Ok(after)]);
    let options = card.options(arguments);
    let CardCommand::Top(options) = &options.command else {
        panic!()
    };
    let slept = std::cell::Cell::new(vec![]);
    let sleep = |time: std::time::Duration| {
        let mut all = slept.take();
        all.push(time.as_secs());
        slept.set(all);
    };
    let mut client = Client::connect(card.dir.path()).unwrap();
    let mut output = vec![];
    let result = top::run(&mut client, options, style, sleep, &mut output);
    assert_eq!(result.is_ok(), options.once);
    assert_eq!(slept.take().first(), Some(&options.interval));
    String::from_utf8(output).unwrap()
}

#[test]
fn top_shows_rates_of_the_interval() {
    let expected = "\
FUNCTION  IOPS  READ MB/S  WRITE MB/S  DIRTY PAGES/S  TRACKED RANGES  ERRORS/S  P50      P99
nvme1     5000  20.5       0.0         5000           3               0         10.2 us  10.2 us
";
    assert_eq!(top("top --once --interval 2", Style::Lines), expected);
    // Without --once it goes on until the card ends.
    assert_eq!(top("top", Style::Lines), expected);
    let json: Value = serde_json::from_str(&top("top --once", Style::Json)).unwrap();
    assert_eq!(json["functions"][0]["iops"], 5000.0);
    assert_eq!(json["functions"][0]["p99_ns"], 10240);
    let screen = top("top --once", Style::Screen);
    assert!(screen.starts_with("\x1b[HFUNCTION"), "{screen:?}");
    assert!(screen.ends_with("10.2 us\x1b[K\n\x1b[J"), "{screen:?}");
}

#[test]
fn errors_name_the_socket_the_cause_and_the_next_step() {
    let refused = Card::answering(vec![Err("function: there is no \"x\"".into())]);
    let error = refused.run("counters x").unwrap_err();
    for word in ["control.sock", "'counters'", "there is no \"x\""] {
        assert!(error.contains(word), "{error}");
    }
    let ended = Card::answering(vec![]);
    let error = ended.run("functions").unwrap_err();
    assert!(error.contains("closed the connection"), "{error}");
    assert!(error.contains("zerocard still runs"), "{error}");
    let old = Card::answering(vec![Ok(json!({"functions": [{"name": "admin"}]}))]);
    let error = old.run("functions").unwrap_err();
    assert!(
        error.contains("control.sock") && error.contains("one version"),
        "{error}"
    );

    let gone = Card::answering(vec![]);
    let socket = gone.dir.path().join("control.sock");
    drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    let Card { dir, thread } = gone;
    thread.unwrap().join().unwrap();
    let left = Card { dir, thread: None };
    let error = left.run("functions").unwrap_err();
    assert!(
        error.contains("nobody listens") && error.contains("zerocard serve"),
        "{error}"
    );
    std::fs::remove_file(&socket).unwrap();
    let error = left.run("functions").unwrap_err();
    assert!(
        error.contains("no card is served") && error.contains("zerocard serve"),
        "{error}"
    );
}

#[test]
fn times_have_three_digits() {
    use show::time;
    for (nanoseconds, text) in [
        (0, "-"),
        (1024, "1.02 us"),
        (10_240, "10.2 us"),
        (131_072, "131 us"),
        (1_048_576, "1.05 ms"),
        (17_179_869_184, "17.2 s"),
    ] {
        assert_eq!(time(nanoseconds), text);
    }
}
