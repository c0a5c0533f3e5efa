// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Benches, in groups. A group's program prints one JSON object per line, first what the machine is, then each
//! figure; this builds it, runs it here or in a rig, and makes a table of it. Groups that cannot be measured yet say
//! so.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use serde_json::Value;

use crate::kernel::Kind;
use crate::rig::card::Card;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;
use crate::{command, test, userspace};

/// Prints the lines of a group.
type Group = fn(&Session) -> Result<Vec<Value>>;

/// The groups that are built.
const GROUPS: [(&str, Group); 2] = [("card", card), ("migration", migration)];

/// Groups that are planned, and what has to be built first.
const PLANNED: [(&str, &str); 1] = [("view", "EPT alternate views")];

/// Runs a group, or all. The exit code is 2 when something could not be measured; missed goals are for the reader.
pub(crate) fn run(session: &Session, group: Option<&str>, json: bool) -> Result<ExitCode> {
    let built = GROUPS.iter().map(|(name, _)| *name);
    let names: Vec<&str> = built.chain(PLANNED.iter().map(|(name, _)| *name)).collect();
    if let Some(name) = group.filter(|name| !names.contains(name)) {
        bail!("no bench group {name}\n=> there are: {}", names.join(", "));
    }
    let wanted = |name: &str| group.is_none_or(|group| group == name);
    let mut complete = true;
    for (_, measure) in GROUPS.iter().filter(|(name, _)| wanted(name)) {
        let lines = measure(session)?;
        let (machine, figures) = lines.split_first().context("the bench printed nothing")?;
        if json {
            for line in &lines {
                println!("{line}");
            }
        } else {
            print!("{}", table(machine, figures));
        }
        complete &= !figures.is_empty() && figures.iter().all(|figure| !figure["value"].is_null());
    }
    for (name, needs) in PLANNED.iter().filter(|(name, _)| wanted(name)) {
        eprintln!("{name}: not built yet; it measures {needs}");
        complete = false;
    }
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

/// The JSON lines of a program's output; beside them there may be warnings.
fn json_lines<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Value> {
    lines
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Group `card`: zerocard, on this machine.
fn card(session: &Session) -> Result<Vec<Value>> {
    let programs = userspace::build(session)?;
    let dir = session.cache.run_dir("bench")?;
    let mut bench = command::command(programs.path("card-bench"));
    bench.arg("--zerocard").arg(programs.path("zerocard"));
    bench.arg("--dir").arg(dir.path());
    bench.env("ZEROCARD_LOG", "warn");
    let output = command::run_and_read(
        "measuring zerocard against raw io_uring",
        &session.cache.log("bench-card"),
        bench,
    )?;
    Ok(json_lines(output.lines()))
}

/// What the machine of group `migration` does before it measures.
const LOAD: &str = "set -e
mount -t tracefs tracefs /sys/kernel/tracing
insmod /zs/migdirty.ko
insmod /zs/zeroshift_vfio_pci.ko";

/// The measurement, with the function whose class is NVMe I/O controller.
const MEASURE: &str = "set -e
for device in /sys/bus/pci/devices/*; do
  if [ $(cat $device/class) = 0x010802 ]; then function=${device##*/}; fi
done
migration-bench --function $function";

/// Group `migration`: the modules, in L1 on the test kernel.
fn migration(session: &Session) -> Result<Vec<Value>> {
    const SERIAL: &str = "ZSBENCH001";
    let programs = userspace::build(session)?;
    let modules = session.modules(Kind::Test)?;
    let run = session.cache.run_dir("bench")?;
    let options = ["--namespace", "memory=16M", "--functions", "1"].map(str::to_owned);
    let zerocard = programs.path("zerocard");
    let card = Card::start(&session.cache, &zerocard, run.path(), SERIAL, &options)?;
    let transcript = L1 {
        name: "bench-migration",
        kernel: session.kernel(Kind::Test)?,
        iommu: Iommu::Vtd,
        functions: card.sockets(),
        memory_mib: 1024,
        modules: &["vfio_iommu_type1", "vfio_pci"],
        nested: false,
        peers: false,
        overlay: Overlay::new()
            .file("/zs/migdirty.ko", modules.path("migdirty")?)
            .file(
                "/zs/zeroshift_vfio_pci.ko",
                modules.path("zeroshift_vfio_pci")?,
            )
            .file("/zs/bin/migration-bench", &programs.path("migration-bench"))
            .job("load", LOAD)
            .job("measure", MEASURE),
        limit: Duration::from_secs(1200),
    }
    .run(session.place()?)?;
    transcript.check()?;
    test::succeeded(&transcript, "load")?;
    let job = test::succeeded(&transcript, "measure")?;
    card.stop()?;
    Ok(json_lines(job.lines.iter().map(String::as_str)))
}

/// The figures for people.
fn table(machine: &Value, figures: &[Value]) -> String {
    let machine = &machine["machine"];
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut out = format!(
        "{}, {} cores, Linux {}",
        text(&machine["cpu"]),
        machine["cores"],
        text(&machine["kernel"]),
    );
    if let Some(bytes) = machine["file_bytes"].as_u64() {
        out += &format!(
            ", zerocard {}, {} MiB on {}, in the page cache",
            text(&machine["zerocard"]),
            bytes >> 20,
            text(&machine["file_system"]),
        );
    }
    out += "\n\n";
    let mut row = |cells: [&str; 5]| {
        let [name, value, spread, goal, met] = cells;
        out += &format!("{name:<26} {value:>8} {spread:>18} {goal:>10}  {met}\n");
    };
    row(["figure", "median", "spread", "goal", "met"]);
    for figure in figures {
        let number = |key: &str| figure[key].as_f64().map(|value| format!("{value:.3}"));
        let name = text(&figure["name"]);
        let side = if figure["better"] == "lower" {
            "<="
        } else {
            ">="
        };
        let goal = format!("{side} {}", figure["goal"]);
        let Some(value) = number("value") else {
            let why = format!("not measured: {}", text(&figure["reason"]));
            row([&name, "-", "-", &goal, &why]);
            continue;
        };
        let [low, high] = ["min", "max"].map(|key| number(key).unwrap_or_default());
        let met = if figure["met"] == true { "yes" } else { "no" };
        row([&name, &value, &format!("{low}..{high}"), &goal, met]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_shows_what_was_measured_and_why_something_was_not() {
        let machine = json!({"machine": {"cpu": "A CPU", "cores": 2, "kernel": "7.2", "zerocard": "0.1.0",
            "file_bytes": 1 << 20, "file_system": "ext4"}});
        let figures = [
            json!({"name": "card.x", "value": 0.6614, "min": 0.5, "max": 0.7, "goal": 0.6, "better": "higher",
                "met": true}),
            json!({"name": "card.y", "value": null, "goal": 0.5, "better": "lower", "met": null,
                "reason": "it rains"}),
        ];
        let table = table(&machine, &figures);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("A CPU, 2 cores, Linux 7.2"));
        let words =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        assert_eq!(
            words(lines[3]),
            ["card.x", "0.661", "0.500..0.700", ">=", "0.6", "yes"]
        );
        assert!(lines[4].ends_with("<= 0.5  not measured: it rains"));
    }
}
