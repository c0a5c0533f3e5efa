// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Benches, in groups. A group's program prints one JSON object per line, first what the machine is, then each
//! figure; this builds it, runs it here or in a rig, and makes a table of it. Groups that cannot be measured yet say
//! so. A figure that could not be measured, for whatever reason, is a line with the reason, beside the others.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use serde_json::{json, Value};

use crate::command::Failed;
use crate::kernel::{Kernel, Kind};
use crate::modules::Modules;
use crate::rig::bochs::{Bochs, Model};
use crate::rig::card::Card;
use crate::rig::console::Transcript;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;
use crate::userspace::{self, Programs};
use crate::{command, test};

/// Prints the lines of a group.
type Group = fn(&Session) -> Result<Vec<Value>>;

/// The groups that are built.
const GROUPS: [(&str, Group); 3] = [("card", card), ("migration", migration), ("view", view)];

/// Runs a group, or all. The exit code is 2 when something could not be measured; missed goals are for the reader.
pub(crate) fn run(session: &Session, group: Option<&str>, json: bool) -> Result<ExitCode> {
    let names = GROUPS.map(|(name, _)| name);
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
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

/// Exit code of a program that could not measure some figure, and says so in its lines.
const INCOMPLETE: i32 = 2;

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
    );
    let output = output.or_else(|error| match error.downcast::<Failed>() {
        Ok(failed) if failed.status.code() == Some(INCOMPLETE) => Ok(failed.text),
        Ok(failed) => Err(failed.into()),
        Err(error) => Err(error),
    })?;
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

/// What the machine of group `view` does before it measures.
const LOAD_VIEWS: &str = "set -e
mount -t tracefs tracefs /sys/kernel/tracing
rmmod kvm_intel
insmod /zs/modules/kvm_intel.ko nested=0";

/// Group `migration`: the modules, in L1 on the test kernel. Each figure has a machine and a card of its own, so
/// that one which brings its machine down leaves the others.
fn migration(session: &Session) -> Result<Vec<Value>> {
    let programs = userspace::build(session)?;
    let modules = session.modules(Kind::Test)?;
    let kernel = session.kernel(Kind::Test)?;
    let mut machine = None;
    let mut figures = Vec::new();
    for figure in planned(&programs, "migration-bench")? {
        let (described, figure) = with_reason(figure, |name| {
            in_l1(session, &programs, &modules, kernel, name)
        });
        machine = machine.or(described);
        figures.push(figure);
    }
    Ok(all(machine, figures))
}

/// The figures of a program, none of them measured.
fn planned(programs: &Programs, program: &str) -> Result<Vec<Value>> {
    let mut list = command::command(programs.path(program));
    list.arg("--list");
    Ok(json_lines(command::output(list)?.lines()))
}

/// What a group prints.
fn all(machine: Option<Value>, figures: Vec<Value>) -> Vec<Value> {
    let machine = machine.unwrap_or_else(|| json!({"machine": null}));
    [vec![machine], figures].concat()
}

/// Says all of an error here; for a line, what stands before the end of a console.
fn reason(what: &str, error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    eprintln!("{what}: {text}");
    text.lines().next().unwrap_or_default().to_owned()
}

/// The lines that `measure` gives for `figure`: the machine's and the figure's, which has the reason instead of a
/// value when there is none.
fn with_reason(
    mut figure: Value,
    measure: impl FnOnce(&str) -> Result<(Value, Value)>,
) -> (Option<Value>, Value) {
    let name = figure["name"].as_str().unwrap_or_default().to_owned();
    match measure(&name) {
        Ok((machine, figure)) => (Some(machine), figure),
        Err(error) => {
            figure["reason"] = Value::from(reason(&name, &error));
            (None, figure)
        }
    }
}

/// Measures the figure `name` in a machine, and gives back what the machine is and the figure.
fn in_l1(
    session: &Session,
    programs: &Programs,
    modules: &Modules,
    kernel: &Kernel,
    name: &str,
) -> Result<(Value, Value)> {
    const SERIAL: &str = "ZSBENCH001";
    let run = session.cache.run_dir("bench")?;
    let options = ["--namespace", "memory=16M", "--functions", "1"].map(str::to_owned);
    let zerocard = programs.path("zerocard");
    let card = Card::start(&session.cache, &zerocard, run.path(), SERIAL, &options)?;
    let transcript = L1 {
        name: "bench-migration",
        kernel,
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
            .job("measure", &format!("{MEASURE} {name}")),
        limit: Duration::from_secs(1200),
    }
    .run(session.place()?)?;
    let lines = measured(&transcript)?;
    card.stop()?;
    Ok(lines)
}

/// Group `view`: vmfunc_view, on the stock kernel in Bochs, whose time stamp counter counts instructions.
fn view(session: &Session) -> Result<Vec<Value>> {
    let programs = userspace::build(session)?;
    let planned = planned(&programs, "view-bench")?;
    Ok(completed(planned, in_bochs(session, &programs)))
}

/// The machine's line and one of each figure that was planned, with the reason when it was not measured.
fn completed(mut figures: Vec<Value>, measured: Result<Vec<Value>>) -> Vec<Value> {
    let (lines, reason) = match measured {
        Ok(lines) => (lines, "the measurement did not come to it".to_owned()),
        Err(error) => (Vec::new(), reason("view", &error)),
    };
    for figure in &mut figures {
        match lines.iter().find(|line| line["name"] == figure["name"]) {
            Some(line) => *figure = line.clone(),
            None => figure["reason"] = Value::from(reason.as_str()),
        }
    }
    let machine = lines.iter().find(|line| line.get("machine").is_some());
    all(machine.cloned(), figures)
}

/// Measures the group `view` in a machine.
fn in_bochs(session: &Session, programs: &Programs) -> Result<Vec<Value>> {
    let modules = session.modules(Kind::Stock)?;
    let transcript = Bochs {
        name: "bench-view",
        kernel: session.kernel(Kind::Stock)?,
        model: Model::SkylakeX,
        cpus: 1,
        modules: &["kvm_intel"],
        overlay: Overlay::new()
            .file("/zs/vmfunc_view.ko", modules.path("vmfunc_view")?)
            .file("/zs/bin/view-bench", &programs.path("view-bench"))
            .job("load", LOAD_VIEWS)
            .job("measure", "view-bench --module /zs/vmfunc_view.ko"),
        limit: Duration::from_secs(900),
    }
    .run(session.place()?)?;
    lines(&transcript)
}

/// What the jobs of a machine measured, if all went well.
fn measured(transcript: &Transcript) -> Result<(Value, Value)> {
    match <[Value; 2]>::try_from(lines(transcript)?) {
        Ok([machine, figure]) => Ok((machine, figure)),
        Err(lines) => bail!("{} lines instead of the machine and a figure", lines.len()),
    }
}

/// The lines that the jobs of a machine printed, if all went well.
fn lines(transcript: &Transcript) -> Result<Vec<Value>> {
    transcript.check()?;
    test::succeeded(transcript, "load")?;
    let job = transcript.job("measure")?;
    if job.exit != Some(INCOMPLETE) {
        test::succeeded(transcript, "measure")?;
    }
    Ok(json_lines(job.lines.iter().map(String::as_str)))
}

/// The figures for people.
fn table(machine: &Value, figures: &[Value]) -> String {
    let machine = &machine["machine"];
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut out = match machine {
        Value::Null => "no machine came so far as to say what it is".to_owned(),
        machine => format!(
            "{}, {} cores, Linux {}",
            text(&machine["cpu"]),
            machine["cores"],
            text(&machine["kernel"]),
        ),
    };
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
    use crate::rig::console::Job;

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

    #[test]
    fn a_machine_that_fails_is_the_reason_of_its_figure() {
        let planned =
            || json!({"name": "m.x", "value": null, "goal": 1.5, "reason": "not asked for"});
        let ran = |exit, line: &str| Transcript {
            jobs: vec![job("load", Some(0), ""), job("measure", exit, line)],
            halted: true,
            ..Transcript::default()
        };
        let asked = |transcript: &Transcript| {
            with_reason(planned(), |name| {
                assert_eq!(name, "m.x");
                measured(transcript)
            })
        };
        let good = r#"{"name":"m.x","value":1}"#;
        assert_eq!(asked(&ran(Some(0), good)).1["value"], 1);
        // The program knows the reason.
        let (machine, figure) = asked(&ran(Some(2), r#"{"name":"m.x","reason":"it rains"}"#));
        assert_eq!(
            (machine, &figure["reason"]),
            (Some(json!({})), &json!("it rains"))
        );
        // Somebody else does.
        let mut crashed = ran(Some(0), good);
        crashed.trouble = vec!["BUG: x".to_owned()];
        for (transcript, reason) in [
            (crashed, "the kernel reported trouble: BUG: x"),
            (ran(None, good), "the job measure never ended"),
            (ran(Some(101), good), "the job measure ended with 101"),
            (
                ran(Some(0), ""),
                "1 lines instead of the machine and a figure",
            ),
        ] {
            let (machine, figure) = asked(&transcript);
            assert_eq!((machine, &figure["reason"]), (None, &json!(reason)));
            assert_eq!(
                (&figure["value"], &figure["goal"]),
                (&Value::Null, &json!(1.5))
            );
        }
    }

    #[test]
    fn what_is_missing_has_a_reason() {
        let planned = || {
            let figure =
                |name: &str| json!({"name": name, "value": null, "reason": "not asked for"});
            vec![figure("v.x"), figure("v.y")]
        };
        let machine = json!({"machine": {"cores": 1}});
        let lines = completed(
            planned(),
            Ok(vec![machine.clone(), json!({"name": "v.y", "value": 3})]),
        );
        assert_eq!(lines[0], machine);
        assert_eq!(lines[1]["reason"], "the measurement did not come to it");
        assert_eq!(lines[2]["value"], 3);
        let lines = completed(planned(), Err(anyhow::anyhow!("it rains")));
        assert_eq!(lines[0], json!({"machine": null}));
        assert!(lines[1..].iter().all(|line| line["reason"] == "it rains"));
        assert_eq!(lines.len(), 3);
    }

    fn job(name: &str, exit: Option<i32>, line: &str) -> Job {
        Job {
            name: name.to_owned(),
            exit,
            lines: vec!["{}".to_owned(), line.to_owned()],
        }
    }
}
