// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control socket against a card that records what is done to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use serde_json::{json, Value};

use super::client::MAX_LINE;
use super::dispatch::answer;
use super::server::MAX_CLIENTS;
use super::*;
use crate::counters::{Counters, Snapshot};
use crate::faults::{Death, Decision, Fault, Faults, Point};

/// Generous: it is only ever waited for in full when something is broken.
const LIMIT: Duration = Duration::from_secs(30);

struct Recorder {
    faults: Faults,
    counters: Counters,
    limits: Mutex<Limits>,
    rates: Mutex<[Rate; 2]>,
    done: Mutex<Vec<String>>,
}

impl Recorder {
    fn new() -> Self {
        Self {
            faults: Faults::new(5, ["admin", "nvme1"]),
            counters: Counters::default(),
            limits: Mutex::new(Limits {
                max_ranges: 256,
                max_ranges_subsystem: 1024,
                min_granule: 0,
                max_granule: 9,
            }),
            rates: Mutex::new(
                [Rate {
                    iops: 0,
                    bytes_per_second: 0,
                    burst_ms: 100,
                }; 2],
            ),
            done: Mutex::default(),
        }
    }

    fn record(&self, text: String) {
        self.done.lock().unwrap().push(text);
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.done.lock().unwrap())
    }

    /// Sends a request and returns the whole reply.
    fn ask(&self, request: &Value) -> Value {
        let line = answer(request.to_string().as_bytes(), 77, self);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(line.last(), Some(&b'\n'));
        serde_json::from_slice(&line).unwrap()
    }

    fn ok(&self, request: &Value) -> Value {
        let reply = self.ask(request);
        assert!(reply.get("error").is_none(), "{request}: {reply}");
        reply["ok"].clone()
    }

    fn error(&self, request: &Value) -> String {
        let reply = self.ask(request);
        assert!(reply.get("ok").is_none(), "{request}: {reply}");
        reply["error"].as_str().unwrap().to_owned()
    }
}

impl ControlTarget for Recorder {
    fn functions(&self) -> Vec<FunctionInfo> {
        let function = |name: &str, kind: &str, controller_id| FunctionInfo {
            name: name.to_owned(),
            kind: kind.to_owned(),
            controller_id,
            connected: true,
            ready: false,
            suspended: false,
            dead: (controller_id == 1).then_some(Death::Cfs),
            stalled: 0,
            tracked_ranges: u64::from(controller_id) * 3,
        };
        vec![
            function("admin", "nvme-admin", 0),
            function("nvme1", "nvme", 1),
        ]
    }

    fn counters(&self, function: usize) -> Snapshot {
        self.record(format!("counters {function}"));
        self.counters.snapshot()
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn release(&self, function: usize) -> u64 {
        self.record(format!("release {function}"));
        2
    }

    fn limits(&self) -> Limits {
        *self.limits.lock().unwrap()
    }

    fn set_limits(&self, limits: Limits) -> Result<(), String> {
        if limits.max_ranges == 13 {
            return Err("not thirteen".into());
        }
        *self.limits.lock().unwrap() = limits;
        Ok(())
    }

    fn rate(&self, function: usize) -> Rate {
        self.rates.lock().unwrap()[function]
    }

    fn set_rate(&self, function: usize, rate: Rate) {
        self.rates.lock().unwrap()[function] = rate;
    }

    fn kill(&self, function: usize, death: Option<Death>) {
        self.record(format!("kill {function} {death:?}"));
    }

    fn disconnect(&self, function: usize) -> bool {
        self.record(format!("disconnect {function}"));
        function == 1
    }
}

#[test]
fn functions_and_counters_are_the_contract() {
    let card = Recorder::new();
    card.counters.io.reads.add(3);
    card.counters.io.latency.record(Duration::from_micros(10));
    assert_eq!(
        card.ask(&json!({"id": 7, "op": "functions"})),
        json!({"id": 7, "ok": {"functions": [
            {"name": "admin", "kind": "nvme-admin", "controller_id": 0, "connected": true,
             "ready": false, "suspended": false, "dead": null, "stalled": 0, "tracked_ranges": 0},
            {"name": "nvme1", "kind": "nvme", "controller_id": 1, "connected": true,
             "ready": false, "suspended": false, "dead": "cfs", "stalled": 0, "tracked_ranges": 3},
        ]}})
    );
    assert_eq!(
        card.ok(&json!({"op": "counters", "function": "nvme1"})),
        json!({"clock_ns": 77, "functions": [{
            "function": "nvme1", "tracked_ranges": 3,
            "reads": 3, "writes": 0, "others": 0, "admin": 0, "errors": 0,
            "bytes_read": 0, "bytes_written": 0, "doorbells": 0, "polls": 0, "interrupts": 0,
            "memory_accesses": 0, "dirty_pages": 0, "connects": 0, "resets": 0,
            "latency": {"count": 1, "p50_ns": 10240, "p90_ns": 10240, "p99_ns": 10240,
                        "p999_ns": 10240, "buckets": [[10240, 1]]},
        }]})
    );
    assert_eq!(card.done(), ["counters 1"]);
    card.ok(&json!({"op": "counters", "function": "all"}));
    card.ok(&json!({"op": "counters"}));
    assert_eq!(
        card.done(),
        ["counters 0", "counters 1", "counters 0", "counters 1"]
    );
}

#[test]
fn rules_reach_the_stages() {
    let card = Recorder::new();
    let rule = json!({"function": "nvme1", "op": "read", "stall": true});
    let added = card.ok(&json!({"op": "fault-add", "rule": rule}));
    assert_eq!(added, json!({"fault": 1}));
    card.ok(&json!({"op": "fault-add", "rule": "op=write,p=0.5,drop"}));
    let read = Point {
        admin: false,
        opcode: 2,
        cdw10: 0,
    };
    let decide = || card.faults.stage(1).unwrap().decide(&read);
    assert_eq!(decide(), Decision::Before(Fault::Stall));
    assert_eq!(
        card.ok(&json!({"op": "faults"})),
        json!({"seed": 5, "faults": [
            {"fault": 1, "rule": "function=nvme1,op=read,stall", "matched": 1, "fired": 1},
            {"fault": 2, "rule": "op=write,p=0.5,drop", "matched": 0, "fired": 0},
        ]})
    );
    assert_eq!(
        card.ok(&json!({"op": "fault-remove", "fault": 1})),
        json!({})
    );
    assert_eq!(decide(), Decision::Proceed);
    let error = card.error(&json!({"op": "fault-remove", "fault": 1}));
    assert!(error.contains("no rule 1"), "{error}");
    assert_eq!(
        card.ok(&json!({"op": "fault-clear"})),
        json!({"removed": 1})
    );
    let error = card.error(&json!({"op": "fault-add", "rule": "delay=1"}));
    assert!(error.contains("delay") && error.contains("10us"), "{error}");
}

#[test]
fn actions_reach_the_functions_that_they_name() {
    let card = Recorder::new();
    assert_eq!(card.ok(&json!({"op": "release"})), json!({"released": 4}));
    card.ok(&json!({"op": "kill", "function": "nvme1", "mode": "ones"}));
    card.ok(&json!({"op": "kill", "function": "nvme1", "mode": "none"}));
    let closed = card.ok(&json!({"op": "disconnect"}));
    assert_eq!(closed, json!({"disconnected": 1}));
    assert_eq!(
        card.done(),
        [
            "release 0",
            "release 1",
            "kill 1 Some(Ones)",
            "kill 1 None",
            "disconnect 0",
            "disconnect 1"
        ]
    );
}

#[test]
fn limits_and_rates_change_only_what_is_given() {
    let card = Recorder::new();
    let limits = |ranges, all, min, max| {
        json!({"max_ranges": ranges, "max_ranges_subsystem": all,
               "min_granule": min, "max_granule": max})
    };
    assert_eq!(card.ok(&json!({"op": "limits"})), limits(256, 1024, 0, 9));
    let set = card.ok(&json!({"op": "limits", "max_ranges": 4, "min_granule": 3}));
    assert_eq!(set, limits(4, 1024, 3, 9));
    for (bad, words) in [
        (json!({"op": "limits", "max_granule": 10}), "0 to 9"),
        (
            json!({"op": "limits", "max_granule": 2}),
            "above max_granule",
        ),
        (
            json!({"op": "limits", "max_ranges_subsystem": 3}),
            "max_ranges 4",
        ),
        (json!({"op": "limits", "max_ranges": 65536}), "max_ranges: "),
        (json!({"op": "limits", "max_ranges": 13}), "not thirteen"),
    ] {
        let error = card.error(&bad);
        assert!(error.contains(words), "{bad}: {error}");
    }
    assert_eq!(card.ok(&json!({"op": "limits"})), limits(4, 1024, 3, 9));

    let set = card.ok(&json!({"op": "rate", "function": "nvme1", "iops": 500, "burst_ms": 7}));
    let nvme1 = json!({"function": "nvme1", "iops": 500, "bytes_per_second": 0, "burst_ms": 7});
    assert_eq!(set, json!({"functions": [nvme1]}));
    let admin = json!({"function": "admin", "iops": 0, "bytes_per_second": 0, "burst_ms": 100});
    assert_eq!(
        card.ok(&json!({"op": "rate"})),
        json!({"functions": [admin, nvme1]})
    );
}

#[test]
fn nothing_happens_unless_the_whole_request_makes_sense() {
    let card = Recorder::new();
    for (bad, words) in [
        (json!([1]), "{\"id\":1"),
        (json!({"id": -1, "op": "functions"}), "id"),
        (json!({"id": 1}), "op"),
        (json!({"op": 7}), "op"),
        (json!({"op": "explode"}), "fault-add"),
        (json!({"op": "functions", "x": 1}), "\"x\""),
        (json!({"op": "kill"}), "mode: it is missing"),
        (json!({"op": "kill", "mode": "softly"}), "mode: "),
        (
            json!({"op": "kill", "mode": "ones", "function": "nvme9"}),
            "admin, nvme1",
        ),
        (json!({"op": "release", "functions": "nvme1"}), "functions"),
        (json!({"op": "disconnect", "function": 1}), "function: "),
        (json!({"op": "counters", "function": ""}), "\"\""),
        (json!({"op": "fault-add"}), "rule"),
        (json!({"op": "fault-remove", "fault": "1"}), "fault: "),
        (json!({"op": "rate", "iops": -1}), "iops: "),
    ] {
        let error = card.error(&bad);
        assert!(error.contains(words), "{bad}: {error}");
    }
    assert!(card.done().is_empty());
    let reply = card.ask(&json!({"id": 9, "op": "explode"}));
    assert_eq!(reply["id"], 9);
}

#[test]
fn no_line_panics() {
    let card = Recorder::new();
    let seeds: Vec<Vec<u8>> = [
        r#"{"id":7,"op":"functions"}"#,
        r#"{"id":7,"op":"counters","function":"nvme1"}"#,
        r#"{"op":"fault-add","rule":{"op":"read","delay":"1ms..2ms","p":0.5,"nth":3}}"#,
        r#"{"op":"fault-add","rule":"op=read,status=1/39h,dnr"}"#,
        r#"{"op":"fault-remove","fault":1}"#,
        r#"{"op":"limits","max_ranges":4,"min_granule":3}"#,
        r#"{"op":"rate","iops":18446744073709551615,"burst_ms":1e9}"#,
        r#"{"op":"kill","mode":"cfs"}"#,
        r#"{"op":"fault-clear"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = move |limit: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    };
    let (mut good, rounds) = (0, 40_000);
    for _ in 0..rounds {
        let mut line = seeds[random(seeds.len())].clone();
        for _ in 0..random(5) {
            let at = random(line.len() + 1);
            match random(5) {
                0 => line.insert(at, random(256) as u8),
                1 => line.truncate(at),
                2 if at < line.len() => line[at] = b"\"{}[],:0-9e\\\0"[random(13)],
                3 if at < line.len() => {
                    line.remove(at);
                }
                _ => {
                    let other = &seeds[random(seeds.len())];
                    let from = random(other.len());
                    line.splice(at..at, other[from..].iter().copied());
                }
            }
        }
        let reply: Value = serde_json::from_slice(&answer(&line, 0, &card)).unwrap();
        good += usize::from(reply.get("ok").is_some());
        assert!(reply.get("ok").is_some() != reply.get("error").is_some());
    }
    assert!(good > rounds / 20 && good < rounds, "{good}");
    let deep = "[".repeat(60_000);
    assert!(card.error(&json!(deep)).contains("object"));
    let reply: Value = serde_json::from_slice(&answer(deep.as_bytes(), 0, &card)).unwrap();
    assert!(reply["error"].as_str().unwrap().contains("JSON"));
}

/// A served control socket.
struct Served {
    directory: tempfile::TempDir,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(patience: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let server = Server::with_patience(Arc::new(Recorder::new()), patience);
            server.run(listener.as_fd(), stopped.as_fd()).unwrap();
        });
        Self {
            directory,
            stop,
            thread: Some(thread),
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("s")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn line(reader: &mut impl BufRead) -> Value {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

fn answers(stream: &UnixStream) -> BufReader<UnixStream> {
    BufReader::new(stream.try_clone().unwrap())
}

#[test]
fn lines_are_answered_in_order_however_they_arrive() {
    let served = Served::start(LIMIT);
    let mut client = served.connect();
    let mut replies = answers(&client);
    for byte in b"{\"id\":1,\"op\":\"functions\"}\r\n" {
        client.write_all(&[*byte]).unwrap();
    }
    assert_eq!(line(&mut replies)["id"], 1);
    let mut many = Vec::new();
    for id in 2..500 {
        many.extend(format!("\n{{\"id\":{id},\"op\":\"limits\"}}\n").into_bytes());
    }
    // The last needs no end when nothing follows.
    many.extend(b"{\"id\":500,\"op\":\"limits\"}");
    let writer = std::thread::spawn(move || {
        client.write_all(&many).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
    });
    for id in 2..=500 {
        let reply = line(&mut replies);
        assert_eq!(
            (&reply["id"], reply.get("ok").is_some()),
            (&json!(id), true)
        );
    }
    assert_eq!(
        replies.read(&mut [0]).unwrap(),
        0,
        "closed once all is answered"
    );
    writer.join().unwrap();
}

#[test]
fn a_bad_line_leaves_the_connection_alone() {
    let served = Served::start(LIMIT);
    let mut client = served.connect();
    let mut replies = answers(&client);
    client.write_all(b"nonsense\n\xff\xfe\n").unwrap();
    assert!(line(&mut replies)["error"]
        .as_str()
        .unwrap()
        .contains("JSON"));
    assert!(line(&mut replies)["error"]
        .as_str()
        .unwrap()
        .contains("JSON"));
    // A line of the largest size, then one byte more, then much more.
    for (size, words) in [
        (MAX_LINE, "JSON"),
        (MAX_LINE + 1, "65536"),
        (5 * MAX_LINE, "65536"),
    ] {
        let mut long = vec![b'x'; size];
        long.push(b'\n');
        client.write_all(&long).unwrap();
        let reply = line(&mut replies);
        assert!(
            reply["error"].as_str().unwrap().contains(words),
            "{size}: {reply}"
        );
        client.write_all(b"{\"id\":3,\"op\":\"limits\"}\n").unwrap();
        assert_eq!(line(&mut replies)["id"], 3);
    }
}

#[test]
fn clients_have_a_limit_and_one_that_leaves_makes_room() {
    let served = Served::start(LIMIT);
    let ask = |client: &UnixStream| {
        let mut client = client;
        let _ = client.write_all(b"{\"id\":1,\"op\":\"limits\"}\n");
        line(&mut answers(client))
    };
    let mut clients: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| served.connect()).collect();
    for client in &clients {
        assert_eq!(ask(client)["id"], 1);
    }
    let reply = line(&mut answers(&served.connect()));
    assert!(
        reply["error"].as_str().unwrap().contains("16 clients"),
        "{reply}"
    );
    clients.pop();
    // The server may see the new client before it sees that the other left.
    let start = std::time::Instant::now();
    while ask(&served.connect())["id"] != 1 {
        assert!(start.elapsed() < LIMIT);
    }
}

#[test]
fn a_client_that_never_reads_is_dropped_and_disturbs_nobody() {
    let served = Served::start(Duration::from_millis(20));
    let deaf = served.connect();
    deaf.set_nonblocking(true).unwrap();
    let mut writer = &deaf;
    let many = "{\"op\":\"functions\"}\n".repeat(1000);
    // Until both directions are full.
    while writer.write(many.as_bytes()).is_ok() {}
    let mut fds = [PollFd::new(&deaf, PollFlags::empty())];
    let limit = Timespec::try_from(LIMIT).unwrap();
    rustix::event::poll(&mut fds, Some(&limit)).unwrap();
    assert!(
        fds[0].revents().contains(PollFlags::HUP),
        "it is still connected"
    );
    let mut other = served.connect();
    other.write_all(b"{\"id\":1,\"op\":\"limits\"}\n").unwrap();
    assert_eq!(line(&mut answers(&other))["id"], 1);
}

#[test]
fn the_end_comes_with_clients_in_any_state() {
    let served = Served::start(LIMIT);
    let mut half = served.connect();
    half.write_all(b"{\"id\":").unwrap();
    let deaf = served.connect();
    deaf.set_nonblocking(true).unwrap();
    let mut writer = &deaf;
    let many = "{\"op\":\"functions\"}\n".repeat(1000);
    while writer.write(many.as_bytes()).is_ok() {}
    drop(served);
}
