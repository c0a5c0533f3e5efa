// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is known of the guest, from what it says on its serial ports. It is one guest, whichever QEMU it is in: a
//! line may begin in one and end in the other.

use std::collections::BTreeMap;

use serde_json::{json, Value};

use crate::events::{guest_line, Events};
use crate::qemu::PORTS;

/// A program of the guest that says JSON lines with its name as `workload`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Workload {
    /// Rounds that it ended.
    pub(crate) rounds: u64,
    /// Of these, the ones before a move, and until its end.
    marks: [Option<u64>; 2],
    /// The best I/Os per second of a round.
    pub(crate) best_iops: u64,
    /// What it said about the whole, at its end.
    pub(crate) summary: Option<Value>,
}

impl Workload {
    /// The same for the verdict. `before`, `during` and `after` count rounds around a move.
    pub(crate) fn json(&self) -> Value {
        let [before, until] = self.marks;
        let during = before.zip(until).map(|(before, until)| until - before);
        json!({
            "rounds": self.rounds, "before": before, "during": during, "after": until.map(|n| self.rounds - n),
            "best_iops": self.best_iops, "summary": self.summary,
        })
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    unended: [Vec<u8>; PORTS],
    /// Its programs by name, as soon as they say something.
    pub(crate) workloads: BTreeMap<String, Workload>,
    /// How its job ended.
    pub(crate) exit: Option<i32>,
    /// It is done and switches itself off.
    pub(crate) halted: bool,
    /// Its last lines.
    last: Vec<String>,
}

impl Guest {
    /// It said `bytes` on `port`.
    pub(crate) fn hear(&mut self, port: usize, bytes: &[u8], events: &Events) {
        let Some(unended) = self.unended.get_mut(port) else {
            return;
        };
        unended.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = unended.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = unended.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        for line in lines {
            guest_line(&line);
            self.take(&line, events);
        }
    }

    fn take(&mut self, line: &str, events: &Events) {
        if let Some(code) = line
            .strip_prefix("ZS-END ")
            .and_then(|l| l.rsplit_once(' '))
        {
            self.exit = self.exit.filter(|c| *c != 0).or(code.1.parse().ok());
        } else if line == "ZS-HALT" {
            self.halted = true;
        } else if line.starts_with('{') {
            if let Ok(said) = serde_json::from_str(line) {
                self.heard(&said, events);
            }
        }
        self.last.push(line.to_owned());
        if self.last.len() > 6 {
            self.last.remove(0);
        }
    }

    /// A workload's own word.
    fn heard(&mut self, said: &Value, events: &Events) {
        let text = |key| said.get(key).and_then(Value::as_str);
        let (Some(name), Some(event)) = (text("workload"), text("event")) else {
            return;
        };
        let workload = self.workloads.entry(name.to_owned()).or_default();
        match event {
            "round" => {
                workload.rounds += 1;
                let iops = said.get("iops").and_then(Value::as_u64).unwrap_or_default();
                workload.best_iops = workload.best_iops.max(iops);
            }
            "summary" => workload.summary = Some(said.clone()),
            _ => {}
        }
        events.say("guest", json!({"said": said}));
    }

    /// It begins to move.
    pub(crate) fn moves(&mut self) {
        for workload in self.workloads.values_mut() {
            workload.marks = [Some(workload.rounds), None];
        }
    }

    /// Rounds of the program `name` since it began to move.
    pub(crate) fn rounds_since(&self, name: &str) -> u64 {
        let workload = self.workloads.get(name);
        workload.map_or(0, |w| w.rounds - w.marks[0].unwrap_or(w.rounds))
    }

    /// It has moved.
    pub(crate) fn moved(&mut self) {
        for workload in self.workloads.values_mut() {
            workload.marks = [workload.marks[0], Some(workload.rounds)];
        }
    }

    /// Its last lines, for messages.
    pub(crate) fn ending(&self) -> String {
        match self.last.as_slice() {
            [] => "the guest said nothing".to_owned(),
            lines => format!("the guest said last: {}", lines.join(" / ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_begin_in_one_qemu_and_end_in_the_other() {
        let (mut guest, events) = (Guest::default(), Events::new());
        guest.hear(1, b"ZS-BEGIN work\r\n{\"workload\":\"x\",\"eve", &events);
        guest.hear(0, b"[   1.0] a kernel line\n", &events);
        assert!(guest.workloads.is_empty());
        guest.hear(1, b"nt\":\"round\",\"iops\":70}\r\n", &events);
        guest.hear(
            1,
            b"{\"workload\":\"x\",\"event\":\"summary\",\"pass\":true}\n",
            &events,
        );
        guest.moves();
        guest.hear(
            1,
            b"{\"workload\":\"x\",\"event\":\"round\",\"iops\":60}\n",
            &events,
        );
        guest.moved();
        let x = guest.workloads.get("x").unwrap();
        let said = x.json();
        assert_eq!(
            (&said["before"], &said["during"], &said["after"]),
            (&json!(1), &json!(1), &json!(0))
        );
        assert_eq!((x.rounds, x.best_iops), (2, 70));
        assert_eq!(x.summary.as_ref().unwrap()["pass"], true);
        guest.hear(1, b"ZS-END work 3\nZS-END more 0\nZS-HALT\n", &events);
        assert_eq!((guest.exit, guest.halted), (Some(3), true));
    }
}
