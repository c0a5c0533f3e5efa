// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Views and windows of `/dev/vmfunc`, with guests of our own.
//!
//! Needs root, an Intel processor with VMFUNC, and `kvm_intel` loaded with `nested=0`; with
//! `nested=1` the only test is that the module refuses. The tests that unload the module load it
//! again from the file `--module`.

mod faults;
mod interface;
mod killed;
mod lifetime;
mod plain;
mod rig;
mod windows;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use zeroshift_tests::ktap::{skip, Ktap, Outcome};
use zeroshift_tests::vmm;

/// Tests views and windows of /dev/vmfunc
#[derive(Parser)]
struct Arguments {
    /// File of the module, for tests that unload it
    #[arg(long)]
    module: Option<PathBuf>,
    /// Run only tests whose names contain this
    #[arg(long, default_value = "")]
    only: String,
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
    Unload(fn(&std::path::Path) -> Outcome),
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
    ("attach_twice", Test::Module(interface::attach_twice)),
    ("not_attached", Test::Module(interface::not_attached)),
    ("arguments", Test::Module(interface::arguments)),
    (
        "views_come_and_go",
        Test::Module(interface::views_come_and_go),
    ),
    ("windows_refused", Test::Module(interface::windows_refused)),
    ("unattached_vm", Test::Module(interface::unattached_vm)),
    ("read_window", Test::Module(windows::read_window)),
    ("owned_window", Test::Module(windows::owned_window)),
    ("removed_window", Test::Module(windows::removed_window)),
    ("two_views", Test::Module(windows::two_views)),
    ("default_view", Test::Module(faults::default_view)),
    ("bad_index", Test::Module(faults::bad_index)),
    ("fetch_in_view", Test::Module(faults::fetch_in_view)),
    ("ring3", Test::Module(faults::ring3)),
    ("nmis", Test::Module(faults::nmis)),
    ("memslots", Test::Module(lifetime::memslots)),
    ("close", Test::Module(lifetime::close)),
    ("rmmod_refused", Test::Module(lifetime::rmmod_refused)),
    (
        "rmmod_after_close",
        Test::Unload(lifetime::rmmod_after_close),
    ),
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
    let tests = all.iter().filter(|(n, _)| n.contains(&arguments.only));
    let mut ktap = Ktap::new(tests.clone().count());
    if rig::is_nested() {
        println!("# kvm_intel.nested=1: all other tests need nested=0");
    }
    let obstacle = vmm::obstacle();
    for (name, test) in tests {
        ktap.test(name, || {
            if let Some(why) = &obstacle {
                return skip(why);
            }
            match test {
                Test::Guest(test) => test(),
                _ if !zeroshift_tests::vmfunc::exists() => skip("there is no /dev/vmfunc"),
                Test::Module(test) => test(),
                Test::Unload(test) => match &arguments.module {
                    None => skip("--module was not given"),
                    Some(path) => test(path),
                },
            }
        });
    }
    ExitCode::from(ktap.finish())
}
