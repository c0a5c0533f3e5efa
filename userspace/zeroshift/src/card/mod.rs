// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift card`: looks into a software card that is being served, and disturbs it on purpose.
//!
//! Every subcommand is one question on the card's control socket (`docs/interfaces.md`, section 8)
//! and one way to print the answer; `top` asks again and again.

mod client;
mod options;
mod replies;
mod show;
mod top;

pub(crate) use options::CardOptions;

use crate::WRITING;
use anyhow::{Context as _, Result};
use client::Client;
use options::{CardCommand, FaultCommand};
use serde_json::{json, Map, Value};
use std::io::{IsTerminal as _, Write};

/// Runs the subcommand.
pub(crate) fn run(options: &CardOptions, output: &mut impl Write) -> Result<()> {
    let mut client = Client::connect(&options.dir)?;
    if let CardCommand::Top(top) = &options.command {
        let style = match (options.json, std::io::stdout().is_terminal()) {
            (true, _) => top::Style::Json,
            (false, true) => top::Style::Screen,
            (false, false) => top::Style::Lines,
        };
        return top::run(&mut client, top, style, std::thread::sleep, output);
    }
    for (operation, arguments) in questions(&options.command) {
        let answer = client.ask(operation, arguments)?;
        if options.json {
            writeln!(output, "{answer}").context(WRITING)?;
        } else {
            show::answer(operation, &client, answer, output)?;
        }
    }
    Ok(())
}

/// What to ask the card for a subcommand: operations and their arguments.
fn questions(command: &CardCommand) -> Vec<(&'static str, Map<String, Value>)> {
    let one = |operation, arguments| vec![(operation, given(arguments))];
    match command {
        CardCommand::Functions => one("functions", json!({})),
        CardCommand::Counters { function } => one("counters", json!({"function": function})),
        CardCommand::Top(_) => vec![],
        CardCommand::Fault(FaultCommand::List) => one("faults", json!({})),
        CardCommand::Fault(FaultCommand::Add { rules }) => {
            let add = |rule| ("fault-add", given(json!({"rule": rule})));
            rules.iter().map(add).collect()
        }
        CardCommand::Fault(FaultCommand::Remove { faults }) => {
            let remove = |fault| ("fault-remove", given(json!({"fault": fault})));
            faults.iter().map(remove).collect()
        }
        CardCommand::Fault(FaultCommand::Clear) => one("fault-clear", json!({})),
        CardCommand::Release { function } => one("release", json!({"function": function})),
        CardCommand::Limits(limits) => one(
            "limits",
            json!({
                "max_ranges": limits.max_ranges,
                "max_ranges_subsystem": limits.max_ranges_subsystem,
                "min_granule": limits.min_granule,
                "max_granule": limits.max_granule,
            }),
        ),
        CardCommand::Rate(rate) => one(
            "rate",
            json!({
                "function": rate.function,
                "iops": rate.iops,
                "bytes_per_second": rate.bytes_per_second,
                "burst_ms": rate.burst_ms,
            }),
        ),
        CardCommand::Kill { function, mode } => {
            let mode = mode.word();
            one("kill", json!({"function": function, "mode": mode}))
        }
        CardCommand::Disconnect { function } => one("disconnect", json!({"function": function})),
    }
}

/// The arguments that were given: an option that was not is null.
fn given(arguments: Value) -> Map<String, Value> {
    let Value::Object(mut arguments) = arguments else {
        return Map::new();
    };
    arguments.retain(|_, value| !value.is_null());
    arguments
}

#[cfg(test)]
mod tests;
