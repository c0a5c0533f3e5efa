// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask demo`: the main job. An unmodified guest that works on a passed-through NVMe function moves from one
//! stock QEMU to another, and goes on. What happens is shown while it does; then the verdict, which is a pass only
//! when everything held. No step is simulated.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{json, Value};

use crate::rig::migration::{event, Rig, GUEST};
use crate::session::Session;
use crate::test::migrate;
use crate::ui::Step;

/// Name of the job.
const MOVE: &str = "move";

/// Runs it.
pub(crate) fn run(session: &Session, json: bool) -> Result<ExitCode> {
    let rig = Rig {
        name: "demo",
        moves: vec![migrate::moved(MOVE, "", GUEST)],
        ..Rig::default()
    };
    let mut display = Display::default();
    let ran = match rig.run(session, &mut |step, line| display.line(step, line)) {
        Ok(ran) => ran,
        Err(e) => {
            if json {
                let why = format!("{e:#}");
                let checks = json!([{"name": "the rig runs", "held": false, "why": why}]);
                println!("{}", json!({"verdict": "fail", "checks": checks}));
            }
            return Err(e);
        }
    };
    let mut checks = migrate::judge(&ran, MOVE);
    checks.extend(migrate::frame(&ran));
    let report = ran.report(MOVE).ok();
    checks.push(("the cards end in peace", ran.cards));
    let pass = checks.iter().all(|(_, outcome)| outcome.is_ok());
    let verdict = if pass { "pass" } else { "fail" };
    if json {
        let checks: Vec<Value> = checks
            .iter()
            .map(|(name, outcome)| match outcome {
                Ok(()) => json!({"name": name, "held": true}),
                Err(e) => json!({"name": name, "held": false, "why": format!("{e:#}")}),
            })
            .collect();
        let of = |key: &str| report.as_ref().map(|r| r.verdict[key].clone());
        println!(
            "{}",
            json!({
                "verdict": verdict, "checks": checks, "migration": of("migration"), "workloads": of("workloads"),
                "reported_dirty_bytes": report.as_ref().map(|r| r.counted("dirty_bytes")),
            })
        );
    } else {
        println!("\nA guest (Debian's stock kernel, its own nvme driver) wrote to and read from a function of a card that it had for");
        println!(
            "itself, and moved from one stock QEMU to another and to another function meanwhile.\n"
        );
        for line in report.iter().flat_map(|r| r.lines()) {
            println!("    {line}");
        }
        println!();
        for (name, outcome) in &checks {
            match outcome {
                Ok(()) => println!("    held    {name}"),
                Err(e) => println!("    FAILED  {name}: {e:#}"),
            }
        }
        println!("\nverdict: {verdict}");
    }
    Ok(if pass {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is shown while it runs.
#[derive(Debug, Default)]
struct Display {
    /// The newest round of each of the guest's programs.
    rounds: [String; 2],
    /// Passes over memory that were shown.
    passes: u64,
}

impl Display {
    fn line(&mut self, step: &Step, line: &str) {
        let Some(event) = event(line) else {
            // The machine's own words; what the guest's programs say comes as events too.
            if !line.starts_with("L2| {") {
                step.detail(line);
            }
            return;
        };
        if let Some(note) = self.pass(&event).or_else(|| note(&event)) {
            step.note(&note);
        }
        if let Some(detail) = self.detail(&event) {
            step.detail(&detail);
        }
    }

    /// What a new pass over memory has to copy.
    fn pass(&mut self, event: &Value) -> Option<String> {
        let number = |key: &str| event[key].as_u64().unwrap_or_default();
        let passes = number("syncs");
        // When the guest stands still, QEMU answers too late to tell anything.
        let told = event["event"] == "progress" && event["status"] == "active";
        if !told || passes <= self.passes {
            return None;
        }
        self.passes = passes;
        let rate = match number("dirty_rate") {
            0 => String::new(),
            rate => format!(", {rate} more each second"),
        };
        Some(format!(
            "{:6.1} s  {} dirty pages{rate}",
            event["ms"].as_f64().unwrap_or_default() / 1000.0,
            number("remaining") / 4096,
        ))
    }

    /// What changes all the time.
    fn detail(&mut self, event: &Value) -> Option<String> {
        let number = |of: &Value, key: &str| of[key].as_u64().unwrap_or_default();
        match event["event"].as_str()? {
            "progress" => Some(format!(
                "pass {}: {} MiB left, {} dirty pages/s",
                number(event, "syncs"),
                number(event, "remaining") >> 20,
                number(event, "dirty_rate")
            )),
            "guest" if event["said"]["event"] == "round" => {
                let said = &event["said"];
                let (place, name) = match said["workload"].as_str()? {
                    "ring-check" => (0, "ring-check"),
                    _ => (1, "fio"),
                };
                let stale = said["stale"]
                    .as_u64()
                    .map(|n| format!(", {n} stale"))
                    .unwrap_or_default();
                if let Some(round) = self.rounds.get_mut(place) {
                    *round = format!("{name} round {}{stale}", said["round"]);
                }
                Some(self.rounds.join("  "))
            }
            _ => None,
        }
    }
}

/// What stays on the screen.
fn note(event: &Value) -> Option<String> {
    let seconds = event["ms"].as_f64().unwrap_or_default() / 1000.0;
    let number = |of: &Value, key: &str| of[key].as_u64().unwrap_or_default();
    let text = match event["event"].as_str()? {
        "phase" => match event["phase"].as_str()? {
            "boot" => "the source QEMU starts the guest".to_owned(),
            "migration" => "the destination QEMU starts, and the migration".to_owned(),
            "full speed" => {
                "every program has worked during the migration: on with it at full speed".to_owned()
            }
            "work after the move" => "the guest works on in the destination".to_owned(),
            "stop" => "the guest is told to stop, and checks everything once more".to_owned(),
            _ => return None,
        },
        "guest" if event["said"]["event"] == "ready" => format!(
            "{} works in the guest: {} pages that only the function writes",
            event["said"]["workload"].as_str()?,
            number(&event["said"], "pages")
        ),
        "guest" if matches!(event["said"]["event"].as_str(), Some("stale" | "misread")) => {
            event["said"].to_string()
        }
        "qemu" => match (event["side"].as_str()?, event["name"].as_str()?) {
            ("source", "MIGRATION_PASS") => {
                format!("pass {} over memory", number(&event["data"], "pass"))
            }
            ("source", "STOP") => "the guest stands still".to_owned(),
            ("destination", "RESUME") => "the guest runs in the destination".to_owned(),
            _ => return None,
        },
        "moved" => format!(
            "moved in {} ms; it stood still for {} ms",
            number(event, "total_ms"),
            number(event, "downtime_ms")
        ),
        _ => return None,
    };
    Some(format!("{seconds:6.1} s  {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_stays_on_the_screen() {
        let stop = json!({"event": "qemu", "side": "source", "name": "STOP", "ms": 12_345});
        assert_eq!(note(&stop).unwrap(), "  12.3 s  the guest stands still");
        let other = json!({"event": "qemu", "side": "destination", "name": "STOP", "ms": 1});
        assert!(note(&other).is_none());
    }

    #[test]
    fn each_pass_is_shown_once() {
        let mut display = Display::default();
        let progress = json!({"event": "progress", "status": "active", "syncs": 2, "remaining": 8192, "dirty_rate": 7, "ms": 1500});
        assert_eq!(
            display.pass(&progress).unwrap(),
            "   1.5 s  2 dirty pages, 7 more each second"
        );
        assert_eq!(display.pass(&progress), None);
    }

    #[test]
    fn progress_and_rounds_are_shown_as_they_come() {
        let mut display = Display::default();
        let progress =
            json!({"event": "progress", "syncs": 2, "remaining": 3 << 20, "dirty_rate": 7});
        assert_eq!(
            display.detail(&progress).unwrap(),
            "pass 2: 3 MiB left, 7 dirty pages/s"
        );
        let round = json!({"event": "guest", "said": {"workload": "ring-check", "event": "round", "round": 4, "stale": 0}});
        assert_eq!(
            display.detail(&round).unwrap().trim(),
            "ring-check round 4, 0 stale"
        );
    }
}
