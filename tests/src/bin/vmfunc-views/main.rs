// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Views and windows of `/dev/vmfunc`, with guests of our own.
//!
//! Needs root, an Intel processor with VMFUNC, and `kvm_intel` loaded with `nested=0`; with
//! `nested=1` the only test is that the module refuses. The tests that unload the module load it
//! again from the file `--module`.

mod calls;
mod dirty;
mod events;
mod evicted;
mod faults;
mod files;
mod gate;
mod interface;
mod killed;
mod late;
mod lifetime;
mod plain;
mod query;
mod races;
mod ram;
mod rig;
mod windows;

use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use zeroshift_tests::ktap::{skip, Ktap, Outcome, Stop};
use zeroshift_tests::{vmfunc, vmm};

/// Tests views and windows of /dev/vmfunc
#[derive(Parser)]
struct Arguments {
    /// File of the module, for tests that unload it
    #[arg(long)]
    module: Option<PathBuf>,
    /// Run only tests whose names contain one of these
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Run just this test, in this process
    #[arg(long, hide = true)]
    test: Option<String>,
    /// Be the VMM that a test kills, and stay at this step
    #[arg(long, value_enum, hide = true)]
    victim: Option<killed::Step>,
}

/// What a test takes.
#[derive(Clone, Copy)]
enum Test {
    /// KVM.
    Guest(fn() -> Outcome),
    /// The module.
    Module(fn() -> Outcome),
    /// The module, and its file.
    Unload(fn(&Path) -> Outcome),
}

const TESTS: &[(&str, Test)] = &[
    ("guest_adds", Test::Guest(plain::guest_adds)),
    (
        "guest_reads_nothing",
        Test::Guest(plain::guest_reads_nothing),
    ),
    (
        "guest_has_no_vmfunc",
        Test::Guest(plain::guest_has_no_vmfunc),
    ),
    ("guest_takes_nmis", Test::Guest(plain::guest_takes_nmis)),
    ("attach", Test::Module(interface::attach)),
    ("attach_refused", Test::Module(interface::attach_refused)),
    ("out_of_reach", Test::Module(interface::out_of_reach)),
    ("attach_twice", Test::Module(interface::attach_twice)),
    ("not_attached", Test::Module(interface::not_attached)),
    ("arguments", Test::Module(interface::arguments)),
    (
        "no_room_for_answer",
        Test::Module(interface::no_room_for_answer),
    ),
    (
        "views_come_and_go",
        Test::Module(interface::views_come_and_go),
    ),
    ("windows_refused", Test::Module(interface::windows_refused)),
    ("query_counts", Test::Module(query::counts)),
    ("query_windows", Test::Module(query::windows)),
    ("events", Test::Module(events::changes)),
    ("event_of_vcpu", Test::Module(events::late_vcpu)),
    ("event_of_end", Test::Module(events::end)),
    ("unattached_vm", Test::Module(interface::unattached_vm)),
    ("read_window", Test::Module(windows::read_window)),
    ("owned_window", Test::Module(windows::owned_window)),
    ("removed_window", Test::Module(windows::removed_window)),
    ("file_window", Test::Module(files::memory)),
    ("file_cut", Test::Module(files::cut)),
    ("file_seals", Test::Module(files::seals)),
    ("file_large_pages", Test::Module(files::large_pages)),
    ("locked_memory", Test::Module(files::locked_memory)),
    ("files_refused", Test::Module(files::refused)),
    ("two_views", Test::Module(windows::two_views)),
    ("stopped_in_view", Test::Module(evicted::unchanged)),
    ("evicted_by_window", Test::Module(evicted::by_window)),
    ("evicted_by_view", Test::Module(evicted::by_view)),
    ("halted", Test::Module(evicted::halted)),
    ("nothing_left", Test::Module(evicted::nothing_left)),
    ("default_view", Test::Module(faults::default_view)),
    ("memory_in_slot", Test::Module(faults::memory_in_slot)),
    ("no_way", Test::Module(faults::no_way)),
    ("bad_index", Test::Module(faults::bad_index)),
    ("fetch_in_view", Test::Module(faults::fetch_in_view)),
    ("ring3", Test::Module(faults::ring3)),
    ("ring3_in_gate", Test::Module(faults::ring3_in_gate)),
    ("nmis", Test::Module(faults::nmis)),
    ("gate_calls", Test::Module(gate::calls)),
    ("gate_nmi_everywhere", Test::Module(gate::nmi_everywhere)),
    (
        "gate_debug_everywhere",
        Test::Module(gate::debug_everywhere),
    ),
    (
        "gate_machine_check_everywhere",
        Test::Module(gate::machine_check_everywhere),
    ),
    ("gate_smi_everywhere", Test::Module(gate::smi_everywhere)),
    (
        "gate_new_root_everywhere",
        Test::Module(gate::new_root_everywhere),
    ),
    (
        "gate_reset_everywhere",
        Test::Module(gate::reset_everywhere),
    ),
    ("gate_jump_everywhere", Test::Module(gate::jump_everywhere)),
    (
        "gate_breakpoint_everywhere",
        Test::Module(gate::breakpoint_everywhere),
    ),
    ("gate_stepped", Test::Module(gate::stepped)),
    ("gate_cheated", Test::Module(gate::cheated)),
    ("memslots", Test::Module(lifetime::memslots)),
    ("nx_huge_pages", Test::Module(lifetime::nx_huge_pages)),
    ("smm", Test::Module(lifetime::smm)),
    ("dirty_log", Test::Module(dirty::dirty_log)),
    ("dirty_log_manual", Test::Module(dirty::dirty_log_manual)),
    (
        "dirty_log_under_use",
        Test::Module(dirty::dirty_log_under_use),
    ),
    ("discarded", Test::Module(ram::discarded)),
    ("reclaimed", Test::Module(ram::reclaimed)),
    ("close", Test::Module(lifetime::close)),
    ("late_vcpu", Test::Module(late::one)),
    ("late_vcpu_in_guest", Test::Module(late::in_guest)),
    ("late_vcpus", Test::Module(late::many)),
    ("idle_vcpu", Test::Module(late::idle)),
    (
        "attach_while_running",
        Test::Module(races::attach_while_running),
    ),
    (
        "attach_interrupted",
        Test::Module(races::attach_interrupted),
    ),
    ("threads", Test::Module(races::threads)),
    ("windows_under_use", Test::Module(races::windows_under_use)),
    ("views_under_use", Test::Module(races::views_under_use)),
    (
        "removal_interrupts",
        Test::Module(races::removal_interrupts),
    ),
    ("closed_inside", Test::Module(races::closed_inside)),
    ("closed_halted", Test::Unload(races::closed_halted)),
    ("rmmod_refused", Test::Module(lifetime::rmmod_refused)),
    (
        "rmmod_after_close",
        Test::Unload(lifetime::rmmod_after_close),
    ),
    ("vm_ends", Test::Unload(lifetime::vm_ends)),
    ("vm_ends_last", Test::Unload(lifetime::vm_ends_last)),
    ("killed", Test::Unload(killed::killed)),
];

/// What there is with `kvm_intel.nested=1`.
const REFUSED: &[(&str, Test)] = &[("nested", Test::Module(interface::nested))];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(step) = arguments.victim {
        return killed::victim(step);
    }
    let all = if rig::is_nested() { REFUSED } else { TESTS };
    if let Some(name) = &arguments.test {
        let test = all.iter().find(|(n, _)| n == name);
        return report(test.map_or_else(
            || Err(Stop::Fail(format!("there is no test {name}"))),
            |(_, test)| run(*test, arguments.module.as_deref()),
        ));
    }
    let only = &arguments.only;
    let wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part));
    let tests = all.iter().filter(|(name, _)| wanted(name));
    let mut ktap = Ktap::new(tests.clone().count());
    if rig::is_nested() {
        println!("# kvm_intel.nested=1: all other tests need nested=0");
    }
    for (name, _) in tests {
        ktap.test(name, || in_child(name, arguments.module.as_deref()));
    }
    ExitCode::from(ktap.finish())
}

/// Runs a test in a process of its own: KVM lets go of a VM for good when its process ends.
fn in_child(name: &str, module: Option<&Path>) -> Outcome {
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["--test", name]);
    if let Some(module) = module {
        child.arg("--module").arg(module);
    }
    let child = child.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let ended = child.wait_with_output()?;
    let why = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    match ended.status.code() {
        Some(0) => Ok(()),
        Some(SKIPPED) => skip(why),
        Some(_) => Err(Stop::Fail(why)),
        None => Err(Stop::Fail(format!("{}: {why}", ended.status))),
    }
}

/// Exit code of a test that cannot run here.
const SKIPPED: i32 = 4;

/// Tells the parent, by standard error and the exit code, what came out.
fn report(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Skip(why)) => {
            eprintln!("{why}");
            // CAST: 4.
            ExitCode::from(SKIPPED as u8)
        }
        Err(Stop::Fail(why)) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(test: Test, module: Option<&Path>) -> Outcome {
    if let Some(why) = vmm::obstacle() {
        return skip(why);
    }
    match test {
        Test::Guest(test) => test(),
        _ if !vmfunc::exists() => skip("there is no /dev/vmfunc"),
        Test::Module(test) => test(),
        Test::Unload(test) => match module {
            None => skip("--module was not given"),
            Some(path) => test(path),
        },
    }
}
