// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A card that refuses every few commands: what the state is then, and that it is true.
//!
//! Which command is refused depends on what was sent before, so each test does its thing until it has
//! seen both outcomes. Needs root, the driver loaded, its back end with the function's card, a card with
//! the fault rules of `xtask/src/test/variant.rs`, and a function whose namespace 1 may lose its content.

use clap::Parser;
use rustix::io::Errno;
use std::process::ExitCode;
use zeroshift_tests::ktap::{Outcome, Stop};
use zeroshift_tests::sysfs::Function;
use zeroshift_tests::vfio::device::Device;
use zeroshift_tests::vfio::dma::DATA;
use zeroshift_tests::vfio::log::{Pages, PAGE};
use zeroshift_tests::vfio::migration::State;
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig::{self, open, Options};
use zeroshift_tests::vfio::walk::{is_quiet, works};
use zeroshift_tests::{check, check_eq};

/// Tests a VFIO driver with a card that refuses commands
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

type Test = (&'static str, fn(&Function, &mut Nvme<'_>) -> Outcome);

const TESTS: &[Test] = &[
    ("suspend", suspend),
    ("resume", resume),
    ("get_state", get_state),
    ("log_start", log_start),
    ("log_report", log_report),
];

/// More than any rule lets succeed in a row.
const ROUNDS: u32 = 12;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    ExitCode::from(rig::run(options, TESTS, |test, access| {
        let function = rig::function(&options.function);
        let mut setup = open(&options.driver, &[&function], access)?;
        let device = setup.devices.pop().ok_or("no device")?;
        // An open is a reset, which the card may have refused as well.
        reset(&function, &device)?;
        test(
            &function,
            &mut Nvme::start(device, &setup.dma, Wish::default())?,
        )
    }))
}

/// Outcomes of which both have to be seen.
#[derive(Default)]
struct Seen {
    good: u32,
    bad: u32,
}

impl Seen {
    fn both(&self, what: &str) -> Outcome {
        check!(
            self.good > 0 && self.bad > 0,
            "{what}: {} good ones, {} bad ones",
            self.good,
            self.bad
        );
        Ok(())
    }
}

fn is_master(function: &Function) -> Result<bool, Stop> {
    Ok(function.command()? & 4 != 0)
}

/// Resets a device until it is RUNNING. When its card does not let it run, it may not write memory.
fn reset(function: &Function, device: &Device) -> Outcome {
    for _ in 0..ROUNDS {
        device.reset()?;
        match device.state()? {
            State::Running => return Ok(()),
            State::Error => check!(!is_master(function)?, "bus master after a reset into ERROR"),
            other => return Err(Stop::Fail(format!("{other:?} after a reset"))),
        }
    }
    Err(Stop::Fail("no reset helps".into()))
}

/// From wherever it is to RUNNING, with work done.
fn recover(function: &Function, nvme: &mut Nvme<'_>) -> Outcome {
    reset(function, &nvme.device)?;
    check!(is_master(function)?, "bus master after a reset");
    nvme.start_again(Wish::default())?;
    Ok(works(nvme, DATA.iova)?)
}

/// To RUNNING, by a reset if need be.
fn run(function: &Function, nvme: &mut Nvme<'_>) -> Outcome {
    match nvme.device.set_state(State::Running) {
        Ok(_) => Ok(works(nvme, DATA.iova)?),
        Err(_) => recover(function, nvme),
    }
}

/// A Suspend that is refused leaves the function running, or in ERROR when the Resume behind it is refused too.
fn suspend(function: &Function, nvme: &mut Nvme<'_>) -> Outcome {
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        match nvme.device.set_state(State::RunningP2p) {
            Ok(_) => {
                seen.good += 1;
                is_quiet(nvme, DATA.iova)?;
                match nvme.device.set_state(State::Running) {
                    Ok(_) => drop(nvme.next_completion()?),
                    Err(_) => recover(function, nvme)?,
                }
            }
            Err(error) => {
                check_eq!(error, Errno::IO, "error of a refused Suspend");
                match nvme.device.state()? {
                    State::Running => {
                        seen.bad += 1;
                        works(nvme, DATA.iova)?;
                    }
                    State::Error => recover(function, nvme)?,
                    other => return Err(Stop::Fail(format!("{other:?} after a refused Suspend"))),
                }
            }
        }
    }
    seen.both("Suspend")
}

/// A Resume that is refused is ERROR, and the function is kept from memory; a reset mends it.
fn resume(function: &Function, nvme: &mut Nvme<'_>) -> Outcome {
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        if nvme.device.set_state(State::Stop).is_err() {
            if nvme.device.state()? == State::Error {
                recover(function, nvme)?;
            }
            continue;
        }
        match nvme.device.set_state(State::Running) {
            Ok(_) => {
                seen.good += 1;
                works(nvme, DATA.iova)?;
            }
            Err(error) => {
                seen.bad += 1;
                check_eq!(error, Errno::IO, "error of a refused Resume");
                check_eq!(nvme.device.state()?, State::Error, "state after it");
                check!(!is_master(function)?, "bus master in ERROR");
                let stuck = nvme.device.set_state(State::Running).err();
                check_eq!(stuck, Some(Errno::IO), "from ERROR to RUNNING");
                recover(function, nvme)?;
            }
        }
    }
    seen.both("Resume")
}

/// A state that the card does not give leaves the function in STOP, and another try may get it.
fn get_state(function: &Function, nvme: &mut Nvme<'_>) -> Outcome {
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        if nvme.device.set_state(State::Stop).is_err() {
            run(function, nvme)?;
            continue;
        }
        match nvme.device.set_state(State::StopCopy) {
            Ok(file) => {
                seen.good += 1;
                let stream = file.ok_or("no file")?.read_all(PAGE as usize)?;
                check!(!stream.is_empty(), "an empty stream");
            }
            Err(error) => {
                seen.bad += 1;
                check_eq!(error, Errno::IO, "error of a refused Get Controller State");
                check_eq!(nvme.device.state()?, State::Stop, "state after it");
            }
        }
        run(function, nvme)?;
    }
    seen.both("Get Controller State")
}

/// A log that does not start is none.
fn log_start(_: &Function, nvme: &mut Nvme<'_>) -> Outcome {
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        match nvme.device.start_log(PAGE, &[DATA]) {
            Ok(_) => {
                seen.good += 1;
                // Both may be refused as well. There is no log then either.
                let _ = nvme.device.report(DATA);
                let _ = nvme.device.stop_log();
            }
            Err(error) => {
                seen.bad += 1;
                check_eq!(error, Errno::IO, "error of a refused start");
            }
        }
        check_eq!(nvme.device.report(DATA), Err(Errno::INVAL), "without a log");
        works(nvme, DATA.iova)?;
    }
    seen.both("Track Send")
}

/// A report that fails is the end of the log; nothing is ever missing in one that does not.
fn log_report(_: &Function, nvme: &mut Nvme<'_>) -> Outcome {
    let mut seen = Seen::default();
    for round in 0..ROUNDS {
        if nvme.device.start_log(PAGE, &[DATA]).is_err() {
            continue;
        }
        for page in 0..8 {
            let page = DATA.iova + u64::from(round * 8 + page) * PAGE;
            works(nvme, page)?;
            match nvme.device.report(DATA) {
                Ok(pages) => {
                    seen.good += 1;
                    check_eq!(pages, Pages::from([page]), "report of one page");
                }
                Err(error) => {
                    seen.bad += 1;
                    check_eq!(error, Errno::IO, "error of a refused Track Receive");
                    for _ in 0..3 {
                        check_eq!(nvme.device.report(DATA), Err(Errno::IO), "of a lost log");
                    }
                    break;
                }
            }
        }
        let _ = nvme.device.stop_log();
    }
    seen.both("Track Receive")
}
