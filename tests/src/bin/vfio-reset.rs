// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Resets of a function in every migration state while its writes are logged: by the VFIO user, and by
//! the guest, who knows nothing of migration.
//!
//! After each the function is RUNNING, its data files are dead, the log has lost nothing and goes on.
//! Needs root, the driver loaded, its back end with the function's card, and a function whose namespace
//! 1 may lose its content.

use clap::Parser;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::process::ExitCode;
use std::thread;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::device::Device;
use zeroshift_tests::vfio::dma::{DATA, LOW, QUEUES};
use zeroshift_tests::vfio::exact::Ledger;
use zeroshift_tests::vfio::log::{range, Pages, Range, PAGE};
use zeroshift_tests::vfio::migration::{DataFile, State};
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig::{self, content, fill, with_nvme, Options};
use zeroshift_tests::vfio::walk::{go, reach, save, works};
use zeroshift_tests::{check, check_eq};

/// Tests resets under a VFIO driver, with migration and logging
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// Who resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    User,
    Guest,
}

impl By {
    fn reset(self, nvme: &Nvme<'_>) -> Outcome {
        self.reset_device(&nvme.device)
    }

    fn reset_device(self, device: &Device) -> Outcome {
        match self {
            Self::User => device.reset()?,
            Self::Guest => device.reset_by_guest()?,
        }
        Ok(())
    }
}

type Run = fn(&mut Nvme<'_>, By) -> Outcome;

#[derive(Clone, Copy)]
enum Test {
    In(State),
    Named(Run),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tests = Vec::new();
    for by in [By::User, By::Guest] {
        for state in State::ALL {
            tests.push((format!("by_{by:?}_in_{state:?}"), (by, Test::In(state))));
        }
        for (name, test) in [
            ("under_load", under_load as Run),
            ("many", many),
            ("beside_arcs", beside_arcs),
            ("beside_everything", beside_everything),
            ("log_that_waits", log_that_waits),
            ("stop_that_waits", stop_that_waits),
        ] {
            tests.push((format!("by_{by:?}_{name}"), (by, Test::Named(test))));
        }
    }
    let Options {
        driver, function, ..
    } = &arguments.options;
    ExitCode::from(rig::run(
        &arguments.options,
        &tests,
        |(by, test), access| {
            with_nvme(
                driver,
                function,
                access,
                Wish::default(),
                |nvme| match test {
                    Test::In(state) => in_state(nvme, *by, *state),
                    Test::Named(test) => test(nvme, *by),
                },
            )
        },
    ))
}

/// All memory that the function can reach.
fn everything() -> Vec<Range> {
    [DATA, QUEUES].into_iter().chain(LOW).collect()
}

fn some_pages(first: u64) -> Pages {
    (0..40)
        .map(|n| DATA.iova + (first + 7 * n) * PAGE)
        .collect()
}

fn is_dead(file: &DataFile, of: State) -> Outcome {
    let result = match of {
        State::Resuming => file.write(&[0]),
        _ => file.read(&mut [0]),
    };
    check_eq!(result, Err(Errno::NODEV), "use of a file of {of:?}");
    let poll = file.poll()?;
    check!(
        poll.contains(PollFlags::ERR),
        "poll of a file of {of:?}: {poll:?}"
    );
    Ok(())
}

/// The function is RUNNING and disabled; it can be started, and can migrate.
fn starts_again(nvme: &mut Nvme<'_>) -> Outcome {
    check_eq!(nvme.device.state()?, State::Running, "state after a reset");
    nvme.device.enable(true)?;
    check!(!nvme.is_ready(), "ready after a reset");
    nvme.start_again(Wish::default())?;
    nvme.dma().write(DATA.iova, &[0; PAGE as usize]);
    works(nvme, DATA.iova)?;
    check!(nvme.dma().page(DATA.iova) == content(0, 7), "wrong data");
    Ok(())
}

fn in_state(nvme: &mut Nvme<'_>, by: By, state: State) -> Outcome {
    fill(nvme, 1, 7)?;
    let stream = save(nvme)?;
    go(nvme, State::Running)?;
    let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
    nvme.write_pages(&some_pages(0))?;
    let file = reach(nvme, state, &stream)?;

    by.reset(nvme)?;
    check_eq!(nvme.device.state()?, State::Running, "state after it");
    if let Some(file) = &file {
        is_dead(file, state)?;
    }
    // What was written before is still to be told.
    ledger.settle(nvme)?;
    starts_again(nvme)?;
    ledger.settle(nvme)?;
    nvme.write_pages(&some_pages(300))?;
    ledger.settle(nvme)?;

    // And everything works once more.
    let again = save(nvme)?;
    check!(!again.is_empty(), "no stream after a reset");
    go(nvme, State::Running)?;
    nvme.write_pages(&some_pages(500))?;
    ledger.settle(nvme)?;
    nvme.device.stop_log()?;
    if let Some(file) = &file {
        is_dead(file, state)?;
    }
    Ok(())
}

/// The function is in the middle of writing: what it wrote is reported, and nothing else.
fn under_load(nvme: &mut Nvme<'_>, by: By) -> Outcome {
    const COUNT: u64 = 60;
    fill(nvme, 1, 7)?;
    nvme.device.start_log(PAGE, &[DATA])?;
    for round in 0..4 {
        let pages: Vec<u64> = (0..COUNT)
            .map(|n| DATA.iova + (round * 100 + n) * PAGE)
            .collect();
        for page in &pages {
            nvme.dma().write(*page, &[0; PAGE as usize]);
            nvme.put_read(0, *page, PAGE);
        }
        nvme.ring_io();
        by.reset(nvme)?;
        check_eq!(nvme.device.state()?, State::Running, "state after it");
        let reported = nvme.device.report(DATA)?;
        for page in &pages {
            let written = nvme.dma().page(*page) != [0; PAGE as usize];
            check!(
                !written || reported.contains(page),
                "{page:#x} was written before reset {round}, and is not reported"
            );
        }
        let told: Pages = pages.into_iter().collect();
        check!(reported.is_subset(&told), "reported what nobody wrote");
        starts_again(nvme)?;
        // The read that found out that it works.
        let one = Pages::from([DATA.iova]);
        check_eq!(nvme.device.report(DATA)?, one, "after it is started again");
    }
    Ok(())
}

fn many(nvme: &mut Nvme<'_>, by: By) -> Outcome {
    fill(nvme, 1, 7)?;
    let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
    nvme.write_pages(&some_pages(3))?;
    for _ in 0..20 {
        by.reset(nvme)?;
    }
    ledger.settle(nvme)?;
    starts_again(nvme)?;
    Ok(ledger.settle(nvme)?)
}

/// A reset comes in the middle of an arc. Whatever wins, the state is true: the function can be made to run, and does.
fn beside_arcs(nvme: &mut Nvme<'_>, by: By) -> Outcome {
    fill(nvme, 1, 7)?;
    for _ in 0..20 {
        let device = &nvme.device;
        thread::scope(|scope| -> Outcome {
            let arcs = scope.spawn(|| {
                for state in [State::Stop, State::Running, State::Stop] {
                    // Never refused: a reset is no reason not to get there.
                    device.set_state(state)?;
                }
                Ok::<(), Errno>(())
            });
            by.reset_device(device)?;
            arcs.join().map_err(|_| "the thread panicked")??;
            Ok(())
        })?;
        let state = nvme.device.state()?;
        check!(
            matches!(state, State::Running | State::RunningP2p | State::Stop),
            "{state:?} after arcs and a reset"
        );
        go(nvme, State::Running)?;
        starts_again(nvme)?;
    }
    Ok(())
}

/// Several threads do all that a user can do at the same time, page faults included. Nothing is promised of their
/// results, but that all come to an end, and that the function works afterwards.
fn beside_everything(nvme: &mut Nvme<'_>, by: By) -> Outcome {
    const ROUNDS: usize = 60;
    fill(nvme, 1, 7)?;
    let device = &nvme.device;
    thread::scope(|scope| -> Outcome {
        let arcs = || {
            for state in State::ALL.iter().cycle().take(2 * ROUNDS) {
                let _ = device.set_state(*state);
                let _ = device.state();
                let _ = device.data_size();
            }
        };
        let logs = || {
            for _ in 0..ROUNDS {
                let _ = device.start_log(PAGE, &[DATA]);
                let _ = device.stop_log();
            }
        };
        // A bitmap of 1 MiB, so that it is new memory each time.
        let reports = || {
            for _ in 0..ROUNDS {
                let _ = device.report_in(range(0, 1 << 35), PAGE);
            }
        };
        // A new map each time, so that it is faulted in.
        let registers = || {
            for _ in 0..4 * ROUNDS {
                if let Ok(bar) = device.map_bar() {
                    bar.read32(0);
                }
            }
        };
        scope.spawn(arcs);
        scope.spawn(logs);
        scope.spawn(reports);
        scope.spawn(reports);
        scope.spawn(registers);
        for _ in 0..ROUNDS {
            by.reset_device(device)?;
        }
        Ok(())
    })?;
    by.reset(nvme)?;
    nvme.device.stop_log()?;
    starts_again(nvme)?;
    let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
    nvme.write_pages(&some_pages(1))?;
    Ok(ledger.settle(nvme)?)
}

/// A log that was started in STOP, and has to wait, does not wait for ever.
fn log_that_waits(nvme: &mut Nvme<'_>, by: By) -> Outcome {
    fill(nvme, 1, 7)?;
    go(nvme, State::Stop)?;
    nvme.device.start_log(PAGE, &everything())?;
    by.reset(nvme)?;
    starts_again(nvme)?;
    let pages = some_pages(9);
    nvme.write_pages(&pages)?;
    // Everything may be dirty once.
    let reported = nvme.device.report(DATA)?;
    check!(reported.is_superset(&pages), "pages are missing");
    let pages = some_pages(11);
    nvme.write_pages(&pages)?;
    check_eq!(nvme.device.report(DATA)?, pages, "the second report");
    Ok(())
}

/// A log that was stopped in STOP can be started again after a reset.
fn stop_that_waits(nvme: &mut Nvme<'_>, by: By) -> Outcome {
    fill(nvme, 1, 7)?;
    nvme.device.start_log(PAGE, &everything())?;
    go(nvme, State::Stop)?;
    nvme.device.stop_log()?;
    by.reset(nvme)?;
    let part = range(DATA.iova, PAGE);
    check_eq!(nvme.device.report(part), Err(Errno::INVAL), "report");
    starts_again(nvme)?;
    let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
    nvme.write_pages(&some_pages(1))?;
    Ok(ledger.settle(nvme)?)
}
