// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift view` and `zeroshift doctor views`, with stock QEMUs whose guest tries VMFUNC, and with a
//! VM of our own that reads a window.
//!
//! Needs root, an Intel processor with VMFUNC, the module msr, and the module vmfunc_view not loaded
//! yet. kvm_intel has to have nested=0, or its file is given.

mod bench;
mod own;
mod rom;

use anyhow::Context as _;
use bench::{ended, signal, wait, Bench};
use clap::Parser;
use rom::{REFUSED, SWITCHED};
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::{json, Value};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use zeroshift_tests::ktap::{skip, Ktap, Outcome};
use zeroshift_tests::module;
use zeroshift_tests::vmfunc::MODULE;
use zeroshift_tests::{check, check_eq};

/// Tests zeroshift view and zeroshift doctor views
#[derive(Parser)]
struct Arguments {
    /// The program
    #[arg(long, default_value = "zeroshift")]
    zeroshift: PathBuf,
    /// QEMU
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// File of the module vmfunc_view
    #[arg(long)]
    module: PathBuf,
    /// File of the module kvm_intel, to load it with other parameters
    #[arg(long)]
    kvm: Option<PathBuf>,
    /// Parameters for it beside nested
    #[arg(long, default_value = "")]
    kvm_parameters: String,
    /// Run only tests whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

type Test = (&'static str, fn(&Bench) -> Outcome);

const TESTS: &[Test] = &[
    ("not_loaded", not_loaded),
    ("nested", nested),
    ("doctor", doctor),
    ("nothing_attached", nothing_attached),
    ("windows", windows),
    ("refusals", refusals),
    ("attach_twice", attach_twice),
    ("paused", paused),
    ("foreground", foreground),
    ("holder_killed", holder_killed),
    ("qemu_killed", qemu_killed),
    ("several_vms", own::several_vms),
    ("vm_closed", own::vm_closed),
    ("window_shows_file", own::window_shows_file),
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
        ktap.test(name, || {
            let bench = bench.as_ref().map_err(|error| format!("{error:#}"))?;
            let outcome = test(bench);
            bench.tidy();
            outcome
        });
    }
    ExitCode::from(ktap.finish())
}

fn not_loaded(bench: &Bench) -> Outcome {
    if module::is_loaded(MODULE) {
        return skip("the module is loaded");
    }
    let said = bench.view(&["list"])?;
    check!(
        said.contains("vmfunc_view is not loaded") && said.contains("modprobe vmfunc_view"),
        "{said}"
    );
    check_eq!(
        bench.json(&["list"])?,
        json!({"loaded": false, "attachments": []}),
        "list"
    );
    let ran = bench.program.run(&["doctor", "views"])?;
    let shown = String::from_utf8_lossy(&ran.output);
    check_eq!(ran.code, Some(1), "exit code of doctor");
    check!(shown.contains("MISSING  vmfunc_view"), "{shown}");
    Ok(())
}

/// The machine lacks something: that is what the error says, with the remedy.
fn nested(bench: &Bench) -> Outcome {
    if !bench.can_reload_kvm() {
        return skip("needs the file of kvm_intel");
    }
    bench.load_kvm(true)?;
    bench.load()?;
    let guest = bench.guest()?;
    let pid = guest.pid();
    bench.refused(
        &["attach", "--pid", &pid],
        &[
            &format!("of process {pid} (qemu"),
            "nested=1",
            "remedy: ",
            "modprobe kvm_intel",
        ],
    )?;
    check_eq!(bench.attachments()?.len(), 0, "attachments");
    let ran = bench.program.run(&["doctor", "views"])?;
    let shown = String::from_utf8_lossy(&ran.output);
    check!(shown.contains("MISSING  nested"), "{shown}");
    check!(ran.errors.contains("1 of 9 checks"), "{}", ran.errors);
    guest.kill()?;
    bench.unload()?;
    bench.load_kvm(false)?;
    Ok(())
}

fn doctor(bench: &Bench) -> Outcome {
    bench.ready()?;
    let said = bench.program.json(&["doctor", "views"])?;
    check_eq!(said["ready"], true, "ready: {said}");
    let checks = said["checks"].as_array().context("no checks")?;
    let names: Vec<&str> = checks
        .iter()
        .filter_map(|check| check["name"].as_str())
        .collect();
    check_eq!(
        names,
        [
            "VMX",
            "EPT",
            "VMFUNC",
            "MBEC",
            "address bits",
            "kvm_intel",
            "nested",
            "tdp_mmu",
            "vmfunc_view"
        ],
        "checks"
    );
    Ok(())
}

fn nothing_attached(bench: &Bench) -> Outcome {
    bench.ready()?;
    let said = bench.view(&["list"])?;
    check!(said.contains("no VM is attached"), "{said}");
    bench.refused(&["stat"], &["no VM is attached", "view attach --pid"])?;
    bench.refused(
        &["detach", "--pid", "1"],
        &["no VM of process 1 is attached"],
    )?;
    let own = std::process::id().to_string();
    bench.refused(
        &["attach", "--pid", &own],
        &["has no VM of KVM", "-accel kvm"],
    )?;
    bench.refused(&["attach", "--pid", "4194304"], &["no process 4194304"])?;
    Ok(())
}

/// From attaching to detaching, and all of it again.
fn windows(bench: &Bench) -> Outcome {
    bench.ready()?;
    let mut guest = bench.guest()?;
    let pid = guest.pid();
    for round in 0..2 {
        let attached = match round {
            0 => bench.attach(&guest)?,
            _ => bench.attach_again(&guest)?,
        };
        check_eq!(attached["pid"].to_string(), pid, "process");
        check_eq!(attached["slot"], "0x8000000000", "slot");
        check_eq!(attached["vcpus"], 1, "vCPUs");
        check_eq!(attached["views"], json!([]), "views");
        check_eq!(
            module::unload(MODULE),
            Err(Errno::WOULDBLOCK),
            "rmmod while attached"
        );

        let added = bench.json(&["add", "--length", "64K", "--write"])?;
        check_eq!(
            added,
            json!({"pid": attached["pid"], "vm": attached["vm"], "view": 1, "offset": "0x200000",
                "address": "0x8000200000", "length": 65536, "write": true, "file": null}),
            "the first window"
        );
        guest.says(SWITCHED)?;
        let vcpu = |stat: &Value| stat["vcpus"][0].clone();
        let first = vcpu(&bench.json(&["stat", "--pid", &pid])?);
        check_eq!(first["armed"], true, "{first}");
        check!(first["arms"].as_u64() > Some(0), "{first}");
        wait("more bounces", || {
            let now = vcpu(&bench.json(&["stat"])?);
            Ok((now["bounces"].as_u64() > first["bounces"].as_u64()).then_some(()))
        })?;

        let memory = guest.memory()?.display().to_string();
        let part = format!("{memory}:1M");
        let added = bench.json(&["add", "--view", "1", "--file", &part, "--length", "8K"])?;
        let file = json!({"path": memory, "offset": 1 << 20});
        check_eq!(added["file"], file, "the file");
        check_eq!(added["offset"], "0x400000", "its place");
        let all = ["add", "--view", "1", "--file", &memory, "--at", "1G"];
        check_eq!(bench.json(&all)?["length"], 32 << 20, "the whole file");
        let shown = bench.view(&["list"])?;
        for words in [
            format!("{}  read-write  module\n", "64 KiB"),
            format!("read        {memory}:0x100000\n"),
            format!("32 MiB  read        {memory}\n"),
        ] {
            check!(shown.contains(&words), "no {words:?} in {shown}");
        }

        // Another view does not disturb the first; its end neither.
        let other = bench.json(&["add", "--length", "4K", "--at", "0x600000"])?;
        check_eq!(other["view"], 2, "the second view");
        bench.view(&["remove", "--view", "2"])?;
        bench.view(&["remove", "--view", "1", "--at", "0x400000"])?;
        let list = bench.attachments()?;
        let left = list[0]["views"][0]["windows"]
            .as_array()
            .context("windows")?;
        let left: Vec<&Value> = left.iter().map(|window| &window["offset"]).collect();
        check_eq!(left, ["0x200000", "0x40000000"], "windows that are left");
        check_eq!(list[0]["views"].as_array().map(Vec::len), Some(1), "views");
        match round {
            0 => {
                bench.view(&["remove", "--view", "1"])?;
                guest.says(REFUSED)?;
                bench.view(&["detach"])?;
            }
            // With a window open.
            _ => {
                bench.view(&["detach", "--pid", &pid])?;
                guest.says(REFUSED)?;
            }
        }
        check_eq!(bench.attachments()?.len(), 0, "attachments");
        ended(&attached["holder"])?;
    }
    // The guest runs on without us.
    bench.unload()?;
    bench.load()?;
    Ok(())
}

fn refusals(bench: &Bench) -> Outcome {
    bench.ready()?;
    let guest = bench.guest()?;
    // Of what only the module knows it gives the reason in the log: which the program reads.
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let reaches_all = |bits: &str| cpuinfo.contains(&format!(": {bits} bits physical"));
    if !["48", "49", "50", "51", "52"].into_iter().any(reaches_all) {
        let beyond = ["attach", "--pid", &guest.pid(), "--slot", "0xff8000000000"];
        bench.refused(&beyond, &["(qemu", "physical addresses", "lower"])?;
    }
    bench.attach(&guest)?;
    bench.view(&["add", "--length", "8K"])?;
    let beyond = ["add", "--at", "0x7ffffff000", "--length", "8K"];
    bench.refused(&beyond, &["beyond the slot"])?;
    let overlap = ["add", "--view", "1", "--at", "0x201000", "--length", "4K"];
    bench.refused(
        &overlap,
        &["in view 1 of VM", "(qemu", "overlap", "without --at"],
    )?;
    let no_view = ["add", "--view", "9", "--length", "4K"];
    bench.refused(&no_view, &["view 9", "no such view", "view list"])?;
    bench.refused(&["remove", "--view", "9"], &["cannot end view 9"])?;
    let nothing = ["remove", "--view", "1", "--at", "0x400000"];
    bench.refused(&nothing, &["at 0x400000", "view list"])?;
    // What is refused leaves no view behind.
    let device = ["add", "--file", "/dev/null", "--length", "4K"];
    bench.refused(&device, &["memfd, tmpfs, hugetlbfs"])?;
    let memory = guest.memory()?.display().to_string();
    let long = format!("{memory}:{}", (32 << 20) - 4096);
    bench.refused(&["add", "--file", &long, "--length", "8K"], &["shorter"])?;
    bench.refused(
        &["add", "--file", &format!("{memory}:32M")],
        &["nothing from"],
    )?;
    bench.refused(&["add", "--file", "/no/such/file"], &["cannot open"])?;
    let list = bench.attachments()?;
    check_eq!(list[0]["views"].as_array().map(Vec::len), Some(1), "views");
    bench.view(&["detach"])?;
    Ok(())
}

fn attach_twice(bench: &Bench) -> Outcome {
    bench.ready()?;
    let guest = bench.guest()?;
    let holder = bench.attach(&guest)?["holder"].to_string();
    let pid = guest.pid();
    bench.refused(
        &["attach", "--pid", &pid],
        &[
            "attached already",
            &format!("process {holder} ("),
            "view detach",
        ],
    )?;
    // Which does not disturb the first.
    bench.view(&["add", "--length", "4K"])?;
    bench.view(&["detach"])?;
    Ok(())
}

/// A VMM that is stopped: its windows go at once. Detached, it stays attached for a while after all.
fn paused(bench: &Bench) -> Outcome {
    bench.ready()?;
    let mut guest = bench.guest()?;
    bench.attach(&guest)?;
    bench.view(&["add", "--length", "4K"])?;
    guest.says(SWITCHED)?;
    guest.stop()?;
    bench.view(&["remove", "--view", "1"])?;
    check_eq!(bench.attachments()?[0]["views"], json!([]), "views");
    guest.signal(Signal::CONT)?;
    guest.says(REFUSED)?;
    bench.view(&["add", "--length", "4K"])?;
    guest.says(SWITCHED)?;
    guest.stop()?;
    bench.view(&["detach"])?;
    check_eq!(bench.attachments()?.len(), 0, "attachments");
    let pid = guest.pid();
    bench.refused(
        &["attach", "--pid", &pid],
        &["still ending", "entered the guest once more", "cont"],
    )?;
    guest.signal(Signal::CONT)?;
    guest.says(REFUSED)?;
    bench.attach_again(&guest)?;
    bench.view(&["detach"])?;
    Ok(())
}

fn foreground(bench: &Bench) -> Outcome {
    bench.ready()?;
    let mut guest = bench.guest()?;
    let mut child = Command::new(&bench.program.0)
        .args([
            "view",
            "attach",
            "--foreground",
            "--json",
            "--pid",
            &guest.pid(),
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let output = child.stdout.take().context("no pipe")?;
    BufReader::new(output).read_line(&mut line)?;
    let attached: Value = serde_json::from_str(&line)?;
    check_eq!(attached["holder"], child.id(), "holder");
    bench.view(&["add", "--length", "4K"])?;
    guest.says(SWITCHED)?;
    signal(&attached["holder"], Signal::TERM)?;
    let status = child.wait()?;
    check!(status.success(), "it ended with {status}");
    guest.says(REFUSED)?;
    let ran = bench.program.run(&["view", "list"])?;
    check!(
        ran.errors.is_empty(),
        "no holder was killed: {}",
        ran.errors
    );
    Ok(())
}

/// The kernel closes the windows, and who looks next is told.
fn holder_killed(bench: &Bench) -> Outcome {
    bench.ready()?;
    let mut guest = bench.guest()?;
    let holder = bench.attach(&guest)?["holder"].clone();
    let memory = guest.memory()?.display().to_string();
    bench.view(&["add", "--length", "4K", "--write"])?;
    bench.view(&["add", "--view", "1", "--file", &memory])?;
    guest.says(SWITCHED)?;
    signal(&holder, Signal::KILL)?;
    guest.says(REFUSED)?;
    // The socket is closed, too.
    ended(&holder)?;
    let killed = "its holder was killed";
    bench.refused(
        &["stat"],
        &["not attached any more", killed, "view attach --pid"],
    )?;
    // Told once.
    bench.refused(&["stat"], &["no VM is attached"])?;
    bench.attach_again(&guest)?;
    bench.view(&["add", "--length", "4K"])?;
    guest.says(SWITCHED)?;
    bench.view(&["detach"])?;
    guest.says(REFUSED)?;
    bench.unload()?;
    bench.load()?;
    Ok(())
}

/// The holder ends by itself, and nothing is left.
fn qemu_killed(bench: &Bench) -> Outcome {
    bench.ready()?;
    let mut guest = bench.guest()?;
    let holder = bench.attach(&guest)?["holder"].clone();
    let memory = guest.memory()?.display().to_string();
    bench.view(&["add", "--length", "4K", "--write"])?;
    bench.view(&["add", "--view", "1", "--file", &memory])?;
    guest.says(SWITCHED)?;
    guest.kill()?;
    ended(&holder)?;
    let ran = bench.program.run(&["view", "list"])?;
    let shown = String::from_utf8_lossy(&ran.output);
    check!(shown.contains("no VM is attached"), "{shown}");
    check!(ran.errors.is_empty(), "{}", ran.errors);
    bench.unload()?;
    bench.load()?;
    Ok(())
}
