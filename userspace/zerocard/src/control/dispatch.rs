// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One line to one reply.
//!
//! Owned by the server, pure but for what the target does. Whatever the bytes are, there is a
//! reply, and nothing is done to the card unless the whole request makes sense.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use super::target::{ControlTarget, FunctionInfo, Limits, Rate};
use crate::counters::Snapshot;
use crate::faults::{Death, Rule};

/// All operations, for error messages.
const OPERATIONS: &str = "functions, counters, faults, fault-add, fault-remove, fault-clear, \
                          release, limits, rate, kill and disconnect";

/// Answers a line (without its end) with a line (with its end).
pub(super) fn answer(line: &[u8], clock_ns: u64, target: &dyn ControlTarget) -> Vec<u8> {
    let (id, result) = match parse(line) {
        Ok((id, operation, arguments)) => (id, execute(&operation, arguments, clock_ns, target)),
        Err((id, error)) => (id, Err(error)),
    };
    reply(id, result)
}

/// A reply to something that is not even a line.
pub(super) fn complaint(error: &str) -> Vec<u8> {
    reply(None, Err(error.to_owned()))
}

fn reply(id: Option<u64>, result: Result<Value, String>) -> Vec<u8> {
    let value = match result {
        Ok(value) => json!({"id": id, "ok": value}),
        Err(error) => json!({"id": id, "error": error}),
    };
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

type Parsed = (Option<u64>, String, Arguments);

/// Id, operation and the rest of a request. An error has the id if that was legible.
fn parse(line: &[u8]) -> Result<Parsed, (Option<u64>, String)> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| (None, format!("no JSON: {error}")))?;
    let Value::Object(mut arguments) = value else {
        let hint = "a request is an object such as {\"id\":1,\"op\":\"functions\"}";
        return Err((None, hint.to_owned()));
    };
    let id = match arguments.remove("id") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_u64() {
            Some(id) => Some(id),
            None => return Err((None, "id: it is an unsigned integer".to_owned())),
        },
    };
    match arguments.remove("op") {
        Some(Value::String(operation)) => Ok((id, operation, Arguments(arguments))),
        _ => Err((
            id,
            format!("op: a string is missing; there are {OPERATIONS}"),
        )),
    }
}

/// What is left of a request while its arguments are taken out one by one.
struct Arguments(Map<String, Value>);

impl Arguments {
    /// Takes an argument; `None` when it is not there.
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| format!("{key}: {error}")),
        }
    }

    /// Takes an argument that has to be there.
    fn need<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, String> {
        self.take(key)?
            .ok_or_else(|| format!("{key}: it is missing"))
    }

    /// Refuses what nobody took. Before anything is done.
    fn finish(self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => {
                let key: String = key.chars().take(40).collect();
                Err(format!("{key:?} is no argument of this op"))
            }
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Ones,
    Cfs,
    None,
}

/// Counters in a reply.
#[derive(Serialize)]
struct FunctionCounters<'a> {
    function: &'a str,
    /// A gauge, not a counter.
    tracked_ranges: u64,
    #[serde(flatten)]
    counters: Snapshot,
}

#[derive(Serialize)]
struct FunctionRate<'a> {
    function: &'a str,
    #[serde(flatten)]
    rate: Rate,
}

fn execute(
    operation: &str,
    mut arguments: Arguments,
    clock_ns: u64,
    target: &dyn ControlTarget,
) -> Result<Value, String> {
    match operation {
        "functions" => {
            arguments.finish()?;
            Ok(json!({"functions": target.functions()}))
        }
        "counters" => {
            let functions = target.functions();
            let counters: Vec<_> = only_functions(arguments, &functions)?
                .into_iter()
                .map(|(index, info)| FunctionCounters {
                    function: &info.name,
                    tracked_ranges: info.tracked_ranges,
                    counters: target.counters(index),
                })
                .collect();
            Ok(json!({"clock_ns": clock_ns, "functions": counters}))
        }
        "faults" => {
            arguments.finish()?;
            let faults = target.faults();
            Ok(json!({"seed": faults.seed(), "faults": faults.list()}))
        }
        "fault-add" => {
            let rule: Value = arguments.need("rule")?;
            arguments.finish()?;
            let rule = Rule::from_json(&rule).map_err(|error| error.to_string())?;
            Ok(json!({"fault": target.faults().add(rule)?}))
        }
        "fault-remove" => {
            let fault: u64 = arguments.need("fault")?;
            arguments.finish()?;
            if !target.faults().remove(fault) {
                return Err(format!(
                    "fault: there is no rule {fault}; op faults lists them"
                ));
            }
            Ok(json!({}))
        }
        "fault-clear" => {
            arguments.finish()?;
            Ok(json!({"removed": target.faults().clear()}))
        }
        "release" => {
            let functions = target.functions();
            let selected = only_functions(arguments, &functions)?;
            let released = selected.iter().map(|(index, _)| target.release(*index));
            Ok(json!({"released": released.sum::<u64>()}))
        }
        "limits" => limits(arguments, target),
        "rate" => rate(arguments, target),
        "kill" => {
            let death = match arguments.need("mode")? {
                Mode::Ones => Some(Death::Ones),
                Mode::Cfs => Some(Death::Cfs),
                Mode::None => None,
            };
            for (index, _) in only_functions(arguments, &target.functions())? {
                target.kill(index, death);
            }
            Ok(json!({}))
        }
        "disconnect" => {
            let functions = target.functions();
            let selected = only_functions(arguments, &functions)?;
            let closed = selected
                .iter()
                .filter(|(index, _)| target.disconnect(*index));
            Ok(json!({"disconnected": closed.count()}))
        }
        other => {
            let other: String = other.chars().take(40).collect();
            Err(format!("op: there is no {other:?}; there are {OPERATIONS}"))
        }
    }
}

fn limits(mut arguments: Arguments, target: &dyn ControlTarget) -> Result<Value, String> {
    let now = target.limits();
    let wanted = Limits {
        max_ranges: arguments.take("max_ranges")?.unwrap_or(now.max_ranges),
        max_ranges_subsystem: arguments
            .take("max_ranges_subsystem")?
            .unwrap_or(now.max_ranges_subsystem),
        min_granule: arguments.take("min_granule")?.unwrap_or(now.min_granule),
        max_granule: arguments.take("max_granule")?.unwrap_or(now.max_granule),
    };
    arguments.finish()?;
    if wanted != now {
        wanted.check()?;
        target.set_limits(wanted)?;
    }
    Ok(json!(wanted))
}

fn rate(mut arguments: Arguments, target: &dyn ControlTarget) -> Result<Value, String> {
    let iops = arguments.take("iops")?;
    let bytes_per_second = arguments.take("bytes_per_second")?;
    let burst_ms = arguments.take("burst_ms")?;
    let functions = target.functions();
    let mut rates = Vec::new();
    for (index, info) in only_functions(arguments, &functions)? {
        let now = target.rate(index);
        let rate = Rate {
            iops: iops.unwrap_or(now.iops),
            bytes_per_second: bytes_per_second.unwrap_or(now.bytes_per_second),
            burst_ms: burst_ms.unwrap_or(now.burst_ms),
        };
        if rate != now {
            target.set_rate(index, rate);
        }
        rates.push(FunctionRate {
            function: &info.name,
            rate,
        });
    }
    Ok(json!({"functions": rates}))
}

/// The functions that a request is for, from its last argument: by name; absent, or `all`, means
/// every function. With their numbers.
fn only_functions(
    mut arguments: Arguments,
    functions: &[FunctionInfo],
) -> Result<Vec<(usize, &FunctionInfo)>, String> {
    let wanted: Option<String> = arguments.take("function")?;
    arguments.finish()?;
    let wanted = wanted.filter(|wanted| wanted != "all");
    let numbered = functions.iter().enumerate();
    let selected: Vec<_> = numbered
        .filter(|(_, info)| wanted.as_ref().is_none_or(|wanted| *wanted == info.name))
        .collect();
    match wanted {
        Some(wanted) if selected.is_empty() => {
            let wanted: String = wanted.chars().take(40).collect();
            let names: Vec<&str> = functions.iter().map(|info| &*info.name).collect();
            Err(format!(
                "function: there is no {wanted:?}; the card has {}",
                names.join(", ")
            ))
        }
        _ => Ok(selected),
    }
}
