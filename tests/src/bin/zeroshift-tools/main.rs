// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line `zeroshift` with real modules, a real driver and functions that do I/O: what an
//! operator may do with a function that no virtual machine has, and what is refused with which words.
//!
//! Needs root, the modules migdirty, nvme and vfio-pci, a card with two functions that share
//! namespace 1, which is only read, and another card with one. Owned by nobody; every test leaves
//! the first function with nvme and the others without a driver.

mod bench;

use anyhow::Context as _;
use bench::{names, number, open, read, text, Bench, DIRECT, EXCLUSIVE, LIMIT, READ};
use clap::Parser;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{channel, TryRecvError};
use zeroshift_tests::ktap::{skip, Ktap, Outcome};
use zeroshift_tests::sysfs::Function;
use zeroshift_tests::vfio::bind;
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig::with_nvme;
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::{check, check_eq};

/// Tests the command line zeroshift
#[derive(Parser)]
struct Arguments {
    /// The program
    #[arg(long, default_value = "zeroshift")]
    zeroshift: PathBuf,
    /// Serial number of the card with two functions
    #[arg(long)]
    serial: String,
    /// Serial number of the other card
    #[arg(long)]
    other: String,
    /// A folder on a file system with room for hardly anything
    #[arg(long)]
    tiny: PathBuf,
    /// Run only tests whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

/// The driver that migrates.
const OURS: &str = "zeroshift_vfio_pci";

type Test = (&'static str, fn(&Bench) -> Outcome);

const TESTS: &[Test] = &[
    ("doctor", doctor),
    ("list", list),
    ("usage", usage),
    ("nobody_manages_it", nobody_manages_it),
    ("bind_and_unbind", bind_and_unbind),
    ("bind_in_use", bind_in_use),
    ("bind_ours", bind_ours),
    ("log", log),
    ("log_refusals", log_refusals),
    ("pause_and_resume", pause_and_resume),
    ("save", save),
    ("save_full_disk", save_full_disk),
    ("save_and_restore", save_and_restore),
    ("restore_refusals", restore_refusals),
    ("vfio_owns_it", vfio_owns_it),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let tests: Vec<&Test> = TESTS
        .iter()
        .filter(|(name, _)| name.contains(&arguments.only))
        .collect();
    let bench = Bench::new(&arguments);
    let mut ktap = Ktap::new(tests.len());
    for (name, test) in tests {
        ktap.test(name, || match &bench {
            Ok(bench) => {
                let outcome = bench.ready().map_err(Into::into).and_then(|()| test(bench));
                bench.tidy();
                outcome
            }
            Err(error) => Err(anyhow::anyhow!("{error:#}").into()),
        });
    }
    ExitCode::from(ktap.finish())
}

fn doctor(bench: &Bench) -> Outcome {
    if !Path::new("/sys/bus/pci/drivers").join(OURS).exists() {
        return skip(format!("{OURS} is not loaded"));
    }
    let said = bench.json(&["doctor", "migration"])?;
    check_eq!(said["ready"], true, "ready");
    let checks = said["checks"].as_array().context("no checks")?;
    let of = |name: &str| {
        let found = checks.iter().find(|check| check["name"] == name);
        found.map(|check| text(&check["found"])).unwrap_or_default()
    };
    let cards = of("cards");
    check!(cards.starts_with("2 of 2 can migrate"), "cards: {cards}");
    let functions = of("functions");
    check!(
        functions.starts_with("0 of 3 with"),
        "functions: {functions}"
    );
    // This kernel can log; a machine without the module cannot be asked.
    check!(of("kernel").contains("can report"), "{said}");
    let shown = bench.text(&["doctor", "migration"])?;
    check!(
        shown.ends_with("this host can migrate guests\n"),
        "doctor says {shown}"
    );
    let without = ["doctor", "migration", "--device", "/dev/no-such-device"];
    let ran = bench.run(&without)?;
    let shown = String::from_utf8_lossy(&ran.output);
    check_eq!(ran.code, Some(1), "exit code without the module");
    check!(
        shown.contains("MISSING") && shown.contains("modprobe migdirty"),
        "{shown}"
    );
    check!(ran.errors.contains("1 of 4 checks"), "{}", ran.errors);
    Ok(())
}

fn list(bench: &Bench) -> Outcome {
    let list = bench.json(&["list", "--functions"])?;
    let functions = list["functions"].as_array().context("no functions")?;
    check_eq!(functions.len(), 3, "functions of two cards");
    let of = |function: &Function| {
        let mut all = functions.iter();
        let found = all.find(|known| known["address"] == function.address.as_str());
        found.cloned().context("a function is missing")
    };
    for (function, id, driver) in [
        (&bench.source, 1, Value::from("nvme")),
        (&bench.destination, 2, Value::Null),
    ] {
        let known = of(function)?;
        check_eq!(known["card"], bench.card.as_str(), "card");
        check_eq!(known["controller_id"], id, "controller id");
        check_eq!(known["driver"], driver, "driver");
        check_eq!(known["state"], "running", "state");
        check_eq!(known["card_live"], true, "card_live");
        check_eq!(known["owner"], Value::Null, "owner");
        check_eq!(known["log"], Value::Null, "log");
        let status = bench.json(&["status", &function.address])?;
        check_eq!(status, known, "status is what list says");
    }
    let shown = bench.text(&["list", "--functions"])?;
    let row = format!("{}  {}  1   nvme ", bench.source.address, bench.card);
    check!(shown.contains(&row), "no row \"{row}\" in:\n{shown}");
    let shown = bench.text(&["status", &bench.source.address])?;
    check!(shown.contains("running"), "status says {shown}");
    Ok(())
}

fn usage(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    bench.refused(&["status", "here"], 2, &["here", "0000:01:00.0"])?;
    bench.refused(&["log", "start", source], 2, &["--range"])?;
    let odd = ["log", "start", source, "--range", "100+4K"];
    bench.refused(&odd, 2, &["multiples of 4096"])?;
    bench.refused(&["fly"], 2, &["fly"])?;
    Ok(())
}

fn nobody_manages_it(bench: &Bench) -> Outcome {
    // The host bridge is always there.
    let words = ["0000:00:00.0", "no card manages it", "list --functions"];
    for command in ["status", "pause", "resume"] {
        bench.refused(&[command, "0000:00:00.0"], 1, &words)?;
    }
    let words = ["no PCI function 0000:ee:00.0"];
    bench.refused(&["status", "ee:00.0"], 1, &words)?;
    bench.refused(&["bind", "ee:00.0"], 1, &words)?;
    // An administrative controller is no function of its own.
    bench.refused(&["pause", &bench.card], 1, &["no card manages it"])?;
    Ok(())
}

fn bind_and_unbind(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    let driver = |value: &Value| {
        (
            text(&value["driver"]["before"]),
            text(&value["driver"]["after"]),
        )
    };
    let bound = bench.json(&["bind", source, "--driver", "vfio-pci"])?;
    check_eq!(
        driver(&bound),
        ("nvme".to_owned(), "vfio-pci".to_owned()),
        "bind"
    );
    check_eq!(bench.source.driver().as_deref(), Some("vfio-pci"), "driver");
    let group = bind::group(&bench.source)?;
    check_eq!(bound["iommu_group"], group.as_str(), "group");
    let again = bench.text(&["bind", source, "--driver", "vfio-pci"])?;
    check!(again.contains("as before"), "bound again: {again}");

    // Unbinding would wait until its user is gone.
    let user = File::options()
        .read(true)
        .write(true)
        .open(format!("/dev/vfio/{group}"))?;
    let name = format!(
        "/dev/vfio/{group} is open in process {}",
        std::process::id()
    );
    bench.refused(&["unbind", source], 1, &[source, &name, "--force"])?;
    check_eq!(bench.source.driver().as_deref(), Some("vfio-pci"), "driver");
    drop(user);

    let unbound = bench.json(&["unbind", source])?;
    check_eq!(
        driver(&unbound),
        ("vfio-pci".to_owned(), "nvme".to_owned()),
        "unbind"
    );
    bench.read_some()?;
    let words = [source, "no-such-driver", "modprobe no_such_driver"];
    bench.refused(&["bind", source, "--driver", "no-such-driver"], 1, &words)?;
    // A driver that is there, and does not take it: the old one has it again.
    let words = [source, "is with nvme again", "dmesg"];
    bench.refused(&["bind", source, "--driver", "pcieport"], 1, &words)?;
    bench.read_some()?;
    Ok(())
}

fn bind_in_use(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    let block = bench.block()?;
    let node = block.display().to_string();
    let who = format!("{node} is open in process {}", std::process::id());
    let command = ["bind", source, "--driver", "vfio-pci"];
    let user = open(&block, 0)?;
    bench.refused(&command, 1, &[source, &who, "--force"])?;
    drop(user);
    let user = open(&block, EXCLUSIVE)?;
    let name = node.trim_start_matches("/dev/");
    bench.refused(&command, 1, &[&format!("{name} is in use"), &who])?;
    drop(user);
    check_eq!(bench.source.driver().as_deref(), Some("nvme"), "driver");
    bench.read_some()?;
    Ok(())
}

fn bind_ours(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    if !Path::new("/sys/bus/pci/drivers").join(OURS).exists() {
        return skip(format!("{OURS} is not loaded"));
    }
    let said = bench.text(&["bind", source])?;
    check_eq!(said, format!("{source}: nvme -> {OURS}\n"), "bind");
    let said = bench.text(&["unbind", source])?;
    check_eq!(said, format!("{source}: {OURS} -> nvme\n"), "unbind");
    // It is where it belongs, and the card that is driven is not taken away from its functions.
    let said = bench.text(&["unbind", source])?;
    check_eq!(said, format!("{source}: nvme, as before\n"), "unbind again");
    let card = bench.card.as_str();
    let words = [card, "migdirty drives", "--force"];
    bench.refused(&["bind", card], 1, &words)?;
    bench.text(&["status", source])?;
    bench.read_some()?;
    Ok(())
}

/// Everything that a driver of this machine gets for DMA.
const RANGE: &str = "0+4G";

fn log(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    let start = ["log", "start", source, "--range", RANGE, "--granule", "4K"];
    let started = bench.json(&start)?;
    check_eq!(started["owner"], "tool", "owner");
    check_eq!(started["log"]["lost"], false, "lost");
    check_eq!(started["log"]["granule_bytes"], 4096, "granule");
    check!(number(&started["log"]["ranges"])? >= 1, "no range");
    bench.read_some()?;
    let synced = bench.json(&["log", "sync", source])?;
    let bytes = number(&synced["bytes"])?;
    // What was read, and what goes with it: completions, a list of pages.
    let (least, most) = (READ as u64, READ as u64 + (16 << 12));
    check!((least..=most).contains(&bytes), "{bytes} bytes: {synced}");
    let mut end = 0;
    let mut sum = 0;
    let ranges = synced["ranges"].as_array().context("no ranges")?;
    for range in ranges {
        let iova = text(&range["iova"]);
        let iova = u64::from_str_radix(iova.trim_start_matches("0x"), 16)?;
        let length = number(&range["length"])?;
        check!(iova > end || (iova == 0 && end == 0), "order: {synced}");
        end = iova + length;
        sum += length;
    }
    check_eq!(sum, bytes, "sum of the ranges");
    check_eq!(synced["count"], ranges.len(), "count");
    check_eq!(synced["complete"], false, "complete, while it runs");
    let again = bench.json(&["log", "sync", source, "--totals"])?;
    check!(number(&again["bytes"])? < least, "reported again: {again}");
    check!(again.get("ranges").is_none(), "totals with ranges");

    bench.read_some()?;
    bench.text(&["pause", source])?;
    let last = bench.text(&["log", "sync", source])?;
    check!(last.contains("; complete\n"), "after the pause: {last}");
    let none = bench.json(&["log", "sync", source])?;
    check_eq!(none["bytes"], 0, "after all was read");
    check_eq!(none["complete"], true, "complete");
    bench.text(&["resume", source])?;
    let stopped = bench.json(&["log", "stop", source])?;
    check_eq!(stopped["log"], Value::Null, "log");
    check_eq!(stopped["owner"], Value::Null, "owner");
    check_eq!(stopped["state"], "running", "state");
    let counters = &stopped["counters"];
    check!(number(&counters["dirty_bytes"])? >= 2 * least, "{counters}");
    check!(number(&counters["harvests"])? >= 1, "{counters}");
    bench.read_some()?;
    Ok(())
}

fn log_refusals(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    bench.refused(
        &["log", "sync", source],
        1,
        &[source, "no log", "log start"],
    )?;
    let said = bench.text(&["log", "stop", source])?;
    check!(said.contains("no log"), "stop without a log: {said}");
    let start = ["log", "start", source, "--range", RANGE];
    bench.text(&start)?;
    bench.refused(&start, 1, &[source, "has a log", "log stop"])?;
    bench.text(&["log", "stop", source])?;
    let overlap = [&start[..], &["--range", "1G+4K"]].concat();
    bench.refused(&overlap, 1, &[source, "overlap"])?;
    Ok(())
}

fn pause_and_resume(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    let before = bench.json(&["status", source])?;
    let file = open(&bench.block()?, DIRECT)?;
    let said = bench.text(&["pause", source])?;
    check_eq!(said, format!("{source} is paused\n"), "pause");
    let (done, reads) = channel();
    let reader = std::thread::spawn(move || done.send(read(&file)));
    bench.text(&["pause", source])?;
    let status = bench.json(&["status", source])?;
    check_eq!(status["state"], "paused", "state");
    check_eq!(status["owner"], "tool", "owner");
    let early = reads.try_recv();
    let said = bench.text(&["resume", source])?;
    check!(
        matches!(early, Err(TryRecvError::Empty)),
        "a paused function has read: {early:?}"
    );
    check_eq!(said, format!("{source} is running\n"), "resume");
    let read = reads.recv_timeout(LIMIT);
    read.context("the read did not end after the resume")??;
    let _ = reader.join();
    bench.text(&["resume", source])?;
    let after = bench.json(&["status", source])?;
    check_eq!(after["state"], "running", "state");
    check_eq!(after["owner"], Value::Null, "owner");
    for counter in ["suspends", "resumes"] {
        let count = |status: &Value| number(&status["counters"][counter]);
        check!(count(&after)? > count(&before)?, "{counter} did not grow");
    }
    Ok(())
}

fn save(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    let file = bench.files.join("save.state");
    let name = file.to_str().context("a name")?;
    let words = [source, "it runs", "zeroshift pause"];
    bench.refused(&["save", source, name], 1, &words)?;
    check!(!file.exists(), "a file of a function that runs");
    bench.text(&["pause", source])?;
    let saved = bench.json(&["save", source, name])?;
    check_eq!(saved["bytes"], fs::metadata(&file)?.len(), "bytes");
    bench.refused(&["save", source, name], 1, &[name, "exists", "--force"])?;
    bench.text(&["save", source, name, "--force"])?;
    let piped = bench.run(&["save", source, "-"])?;
    check_eq!(piped.output, fs::read(&file)?, "standard output");
    bench.text(&["resume", source])?;

    let seen = bench.json(&["inspect", name])?;
    check_eq!(seen["identity"]["class"], "010802", "class");
    check_eq!(seen["identity"]["namespaces"][0]["nsid"], 1, "namespace");
    check_eq!(seen["registers"], Value::Null, "registers");
    let uuid = "9edbdb91-8d5f-46fc-b482-6c7d393c7a9b";
    check_eq!(seen["format"]["uuid"], uuid, "format of zerocard");
    let (state, bytes) = (number(&seen["state_bytes"])?, number(&seen["bytes"])?);
    check!(
        bytes - state <= 512 + state / 50,
        "{bytes} bytes for {state} of state"
    );
    check!(names(&bench.files).len() == 1, "more than the file is left");
    fs::remove_file(&file)?;
    Ok(())
}

fn save_full_disk(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    let file = bench.tiny.join("save.state");
    let name = file.to_str().context("a name")?;
    // No page is left.
    let filler = bench.tiny.join("filler");
    let full = fs::write(&filler, vec![1; 1 << 20]);
    check!(full.is_err(), "{} has room", bench.tiny.display());
    bench.text(&["pause", source])?;
    bench.refused(&["save", source, name], 1, &[name, "No space left"])?;
    bench.text(&["resume", source])?;
    check_eq!(names(&bench.tiny), ["filler"], "what is left");
    fs::remove_file(filler)?;
    Ok(())
}

fn save_and_restore(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    let destination = bench.destination.address.as_str();
    let [one, two] = ["one.state", "two.state"].map(|name| bench.files.join(name));
    let (first, second) = (
        one.to_str().context("a name")?,
        two.to_str().context("a name")?,
    );
    bench.text(&["pause", source])?;
    bench.text(&["save", source, first])?;
    // A driver that leaves it shuts it down, and lets it be enabled.
    fs::write(bench.sysfs(&bench.destination).join("reset"), "1")?;
    bench.text(&["pause", destination])?;
    let restored = bench.json(&["restore", destination, first])?;
    check_eq!(restored["bytes"], fs::metadata(&one)?.len(), "bytes");
    bench.text(&["save", destination, second])?;
    // The other function is what the first one was, to the byte.
    check!(
        fs::read(&one)? == fs::read(&two)?,
        "another state came back"
    );
    let status = bench.json(&["status", destination])?;
    check_eq!(status["state"], "paused", "state");
    check_eq!(status["counters"]["states_written"], 1, "states_written");

    // Its queues are in memory that it cannot reach: a reset makes it its own again.
    bind::give(&bench.destination, "nvme")?;
    bench.text(&["resume", destination])?;
    bench.text(&["resume", source])?;
    bench.read_some()?;
    bind::take(&bench.source)?;
    let here = Bench {
        source: bench.destination.clone(),
        destination: bench.source.clone(),
        ..bench.clone()
    };
    here.read_some()?;
    fs::remove_file(one)?;
    fs::remove_file(two)?;
    Ok(())
}

fn restore_refusals(bench: &Bench) -> Outcome {
    let source = bench.source.address.as_str();
    let destination = bench.destination.address.as_str();
    let stranger = bench.stranger.address.as_str();
    let file = bench.files.join("refused.state");
    let name = file.to_str().context("a name")?;
    bench.text(&["pause", source])?;
    bench.text(&["save", source, name])?;
    let words = [destination, "it runs", "zeroshift pause"];
    bench.refused(&["restore", destination, name], 1, &words)?;
    // It is enabled, and has queues.
    bench.refused(
        &["restore", source, name],
        1,
        &[source, "refused", "disabled", "/reset"],
    )?;
    bench.text(&["resume", source])?;
    bench.read_some()?;
    bench.text(&["pause", stranger])?;
    let words = [stranger, "another function", "here and", "in the stream"];
    bench.refused(&["restore", stranger, name], 1, &words)?;
    bench.text(&["resume", stranger])?;

    bench.text(&["pause", destination])?;
    let good = fs::read(&file)?;
    let mut flipped = good.clone();
    let at = flipped.len() - 100;
    flipped[at] ^= 4;
    for (bytes, what) in [
        (&good[..good.len() - 7], "cut short"),
        (&good[..100], "cut short"),
        (&flipped, "wrong checksum"),
        (b"something else entirely, of some length", "stream"),
    ] {
        fs::write(&file, bytes)?;
        bench.refused(&["restore", destination, name], 1, &[name, what])?;
    }
    fs::remove_file(&file)?;
    bench.refused(&["restore", destination, name], 1, &["cannot open", name])?;
    let status = bench.json(&["status", destination])?;
    check_eq!(status["state"], "paused", "state");
    bench.text(&["resume", destination])?;
    Ok(())
}

fn vfio_owns_it(bench: &Bench) -> Outcome {
    if !Path::new("/sys/bus/pci/drivers").join(OURS).exists() {
        return skip(format!("{OURS} is not loaded"));
    }
    let destination = bench.destination.address.as_str();
    let owned = |_: &mut Nvme<'_>| -> Outcome {
        let status = bench.json(&["status", destination])?;
        check_eq!(status["owner"], "vfio", "owner");
        let words = [destination, "VFIO user"];
        bench.refused(&["pause", destination], 1, &words)?;
        bench.refused(&["resume", destination], 1, &words)?;
        let start = ["log", "start", destination, "--range", RANGE];
        bench.refused(&start, 1, &words)?;
        bench.refused(&["unbind", destination], 1, &["is in use"])?;
        Ok(())
    };
    with_nvme(OURS, destination, Access::Group, Wish::default(), owned)?;
    let status = bench.json(&["status", destination])?;
    check_eq!(status["owner"], Value::Null, "owner, once it is closed");
    // And the other way round.
    bench.text(&["pause", destination])?;
    let open = with_nvme(
        OURS,
        destination,
        Access::Group,
        Wish::default(),
        |_| Ok(()),
    );
    check!(open.is_err(), "VFIO opens what tools have paused");
    bench.text(&["resume", destination])?;
    with_nvme(
        OURS,
        destination,
        Access::Group,
        Wish::default(),
        |_| Ok(()),
    )
}
