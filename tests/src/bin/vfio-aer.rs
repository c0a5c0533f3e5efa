// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors of the PCIe link (Advanced Error Reporting) of a function under a VFIO driver in every
//! migration state, while its writes are logged; and of the administrative controller of its card.
//!
//! A fatal error resets the link and with it the function: ERROR, until the user resets it. Another one
//! changes nothing. The user is told of both. Needs root, both modules loaded, `CONFIG_PCIEAER_INJECT`,
//! functions and ports with the capability, and functions whose namespace 1 may lose its content.

use clap::Parser;
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::thread;
use zeroshift_tests::aer::{Injector, Severity};
use zeroshift_tests::kmsg::Log;
use zeroshift_tests::ktap::{Outcome, Stop};
use zeroshift_tests::vfio::dma::{DATA, QUEUES};
use zeroshift_tests::vfio::exact::Ledger;
use zeroshift_tests::vfio::log::{Pages, PAGE};
use zeroshift_tests::vfio::migration::{DataFile, State};
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig::{self, content, fill, with_nvme, Options};
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::vfio::walk::{go, save, works, STEP};
use zeroshift_tests::vfio::{bind, stream};
use zeroshift_tests::{check, check_eq};

/// The back end's PCI driver.
const BACK_END: &str = "migdirty";

/// Tests errors of the PCIe link under a VFIO driver, with migration and logging
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// PCI address of another function of the same card, with a link of its own
    #[arg(long)]
    other: String,
    /// PCI address of the administrative controller of the card, with a link of its own
    #[arg(long)]
    admin: String,
}

type Run = fn(&Arguments, Access) -> Outcome;

#[derive(Clone, Copy)]
enum Test {
    Function(Severity, State),
    Card(Severity, State),
    Named(Run),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tests = Vec::new();
    for severity in [Severity::Fatal, Severity::Nonfatal] {
        for state in State::ALL {
            let name = format!("{severity:?}_in_{state:?}");
            tests.push((name, Test::Function(severity, state)));
        }
    }
    let named: [(&str, Run); 5] = [
        ("fatal_again", fatal_again),
        ("fatal_and_interrupts", fatal_and_interrupts),
        ("fatal_beside_a_reset", fatal_beside_a_reset),
        ("fatal_beside_others", fatal_beside_others),
        ("fatal_while_closed", fatal_while_closed),
    ];
    tests.extend(named.map(|(name, test)| (name.to_owned(), Test::Named(test))));
    for severity in [Severity::Fatal, Severity::Nonfatal] {
        for state in State::ALL {
            let name = format!("{severity:?}_of_the_card_in_{state:?}");
            tests.push((name, Test::Card(severity, state)));
        }
    }
    ExitCode::from(rig::run(
        &arguments.options,
        &tests,
        |test, access| match test {
            Test::Function(Severity::Fatal, state) => fatal_in(&arguments, access, *state),
            Test::Function(Severity::Nonfatal, state) => nonfatal_in(&arguments, access, *state),
            Test::Card(Severity::Fatal, state) => fatal_of_card(&arguments, access, *state),
            Test::Card(Severity::Nonfatal, state) => nonfatal_of_card(&arguments, access, *state),
            Test::Named(test) => test(&arguments, access),
        },
    ))
}

/// Makes errors of the function at an address. A machine that cannot is no failure.
fn errors_of(address: &str) -> Result<Injector, Stop> {
    Injector::new(&rig::function(address)).map_err(|why| Stop::Skip(format!("{why:#}")))
}

fn running(
    arguments: &Arguments,
    access: Access,
    test: impl FnOnce(&mut Nvme<'_>) -> Outcome,
) -> Outcome {
    let Options {
        driver, function, ..
    } = &arguments.options;
    with_nvme(driver, function, access, Wish::default(), test)
}

fn some_pages(first: u64) -> Pages {
    (0..40)
        .map(|n| DATA.iova + (first + 7 * n) * PAGE)
        .collect()
}

fn event() -> Result<OwnedFd, Errno> {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
}

/// How often `event` was signalled.
fn count(event: &OwnedFd) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    match rustix::io::read(event, &mut bytes) {
        Ok(_) => Ok(u64::from_ne_bytes(bytes)),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Waits until `event` is signalled.
fn wait_for(event: &OwnedFd) -> Outcome {
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let mut wait = [PollFd::new(event, PollFlags::IN)];
    check_eq!(poll(&mut wait, Some(&limit))?, 1, "events");
    Ok(())
}

/// A data file in the middle of its use.
struct Half {
    file: DataFile,
    /// What was read of it.
    read: Vec<u8>,
    /// What is still to be written to it.
    rest: Vec<u8>,
}

/// Takes a running function to a state, and uses half of its data file.
fn half_way(nvme: &Nvme<'_>, state: State, stream: &[u8]) -> Result<Option<Half>, Stop> {
    if state == State::Resuming {
        nvme.device.reset()?;
    }
    if state == State::Running {
        return Ok(None);
    }
    let Some(file) = go(nvme, state)? else {
        return Ok(None);
    };
    let (mut read, mut rest) = (Vec::new(), Vec::new());
    if state == State::Resuming {
        let (first, second) = stream.split_at(stream.len() / 2);
        file.write_all(first, STEP)?;
        rest = second.to_vec();
    } else {
        // Less than any header part has.
        read = vec![0; 50];
        let length = read.len();
        check_eq!(file.read(&mut read)?, length, "bytes of a data file");
    }
    Ok(Some(Half { file, read, rest }))
}

fn is_dead(half: Option<&Half>, of: State) -> Outcome {
    let Some(Half { file, .. }) = half else {
        return Ok(());
    };
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

fn is_error(nvme: &Nvme<'_>, was: State) -> Outcome {
    check_eq!(nvme.device.state()?, State::Error, "state that was {was:?}");
    for to in State::ALL {
        let result = nvme.device.set_state(to).err();
        check_eq!(result, Some(Errno::IO), "ERROR to {to:?}");
    }
    Ok(())
}

/// The function is in ERROR. Its user resets it, and it can be used.
fn recovers(nvme: &mut Nvme<'_>) -> Outcome {
    nvme.device.reset()?;
    check_eq!(nvme.device.state()?, State::Running, "state after a reset");
    nvme.start_again(Wish::default())?;
    nvme.dma().write(DATA.iova, &[0; PAGE as usize]);
    works(nvme, DATA.iova)?;
    check!(nvme.dma().page(DATA.iova) == content(0, 7), "wrong data");
    Ok(())
}

fn fatal_in(arguments: &Arguments, access: Access, state: State) -> Outcome {
    let errors = errors_of(&arguments.options.function)?;
    running(arguments, access, |nvme| {
        fill(nvme, 1, 7)?;
        let mut ledger = Ledger::start(nvme, PAGE, &[DATA, QUEUES])?;
        nvme.write_pages(&some_pages(0))?;
        let stream = save(nvme)?;
        go(nvme, State::Running)?;
        let half = half_way(nvme, state, &stream)?;
        let told = event()?;
        nvme.device.set_error_event(&told)?;

        errors.inject(Severity::Fatal)?;
        check_eq!(count(&told)?, 1, "events");
        is_error(nvme, state)?;
        is_dead(half.as_ref(), state)?;
        // It was reset, so the log goes on, as it does at any reset.
        ledger.settle(nvme)?;

        recovers(nvme)?;
        ledger.settle(nvme)?;
        nvme.write_pages(&some_pages(300))?;
        ledger.settle(nvme)?;
        stream::check(&save(nvme)?)?;
        go(nvme, State::Running)?;
        works(nvme, DATA.iova)?;
        ledger.settle(nvme)?;
        nvme.device.stop_log()?;
        check_eq!(count(&told)?, 0, "events after it");
        is_dead(half.as_ref(), state)
    })
}

/// Takes up the data file where it was left, and lets the function run.
fn goes_on(nvme: &mut Nvme<'_>, state: State, half: Option<Half>) -> Outcome {
    if let Some(Half {
        file,
        mut read,
        rest,
    }) = half
    {
        if state == State::Resuming {
            file.write_all(&rest, STEP)?;
            go(nvme, State::Stop)?;
        } else {
            if state != State::StopCopy {
                go(nvme, State::StopCopy)?;
            }
            read.extend(file.read_all(STEP)?);
            stream::check(&read)?;
        }
    }
    go(nvme, State::Running)?;
    works(nvme, DATA.iova)?;
    Ok(())
}

fn nonfatal_in(arguments: &Arguments, access: Access, state: State) -> Outcome {
    let errors = errors_of(&arguments.options.function)?;
    running(arguments, access, |nvme| {
        fill(nvme, 1, 7)?;
        let mut ledger = Ledger::start(nvme, PAGE, &[DATA, QUEUES])?;
        nvme.write_pages(&some_pages(0))?;
        let stream = save(nvme)?;
        go(nvme, State::Running)?;
        let half = half_way(nvme, state, &stream)?;
        let told = event()?;
        nvme.device.set_error_event(&told)?;

        errors.inject(Severity::Nonfatal)?;
        check_eq!(count(&told)?, 1, "events");
        check_eq!(nvme.device.state()?, state, "state");
        goes_on(nvme, state, half)?;
        Ok(ledger.settle(nvme)?)
    })
}

/// An error that comes when the last one is not dealt with, and one after it.
fn fatal_again(arguments: &Arguments, access: Access) -> Outcome {
    let errors = errors_of(&arguments.options.function)?;
    running(arguments, access, |nvme| {
        fill(nvme, 1, 7)?;
        let told = event()?;
        nvme.device.set_error_event(&told)?;
        for _ in 0..2 {
            go(nvme, State::Stop)?;
            errors.inject(Severity::Fatal)?;
            errors.inject(Severity::Nonfatal)?;
            errors.inject(Severity::Fatal)?;
            check_eq!(count(&told)?, 3, "events");
            is_error(nvme, State::Stop)?;
            recovers(nvme)?;
        }
        Ok(())
    })
}

/// Interrupts that were set up before come again afterwards.
fn fatal_and_interrupts(arguments: &Arguments, access: Access) -> Outcome {
    let errors = errors_of(&arguments.options.function)?;
    let Options {
        driver, function, ..
    } = &arguments.options;
    let wish = Wish {
        vector: Some(1),
        ..Wish::default()
    };
    with_nvme(driver, function, access, wish, |nvme| {
        let events = [event()?, event()?];
        nvme.device.set_vectors(&events)?;
        nvme.read(0, DATA.iova, PAGE)?;
        wait_for(&events[1])?;
        errors.inject(Severity::Fatal)?;
        nvme.device.reset()?;
        nvme.start_again(wish)?;
        count(&events[1])?;
        nvme.read(0, DATA.iova, PAGE)?;
        wait_for(&events[1])
    })
}

/// A user who resets as soon as he hears of it, while the kernel is still about to reset the link. It ends
/// in ERROR, or, when the link was reset before, in a STOP that is one: it has a state to save.
fn fatal_beside_a_reset(arguments: &Arguments, access: Access) -> Outcome {
    let errors = errors_of(&arguments.options.function)?;
    running(arguments, access, |nvme| {
        fill(nvme, 1, 7)?;
        let told = event()?;
        nvme.device.set_error_event(&told)?;
        for _ in 0..10 {
            let device = &nvme.device;
            thread::scope(|scope| -> Outcome {
                let user = scope.spawn(|| -> Outcome {
                    wait_for(&told)?;
                    // Somebody else is resetting it.
                    while device.reset() == Err(Errno::AGAIN) {}
                    // EIO when that was too early.
                    let _ = device.set_state(State::Stop);
                    Ok(())
                });
                errors.inject(Severity::Fatal)?;
                user.join().map_err(|_| "the thread panicked")?
            })?;
            check_eq!(count(&told)?, 1, "events");
            match nvme.device.state()? {
                State::Error => {}
                State::Stop => {
                    stream::check(&save(nvme)?)?;
                    go(nvme, State::Running)?;
                }
                state => check_eq!(state, State::Stop, "state after an error and a reset"),
            }
            recovers(nvme)?;
        }
        Ok(())
    })
}

/// Others of the card do not notice.
fn fatal_beside_others(arguments: &Arguments, access: Access) -> Outcome {
    let errors = errors_of(&arguments.options.function)?;
    let driver = &arguments.options.driver;
    with_nvme(driver, &arguments.other, access, Wish::default(), |other| {
        let told = event()?;
        other.device.set_error_event(&told)?;
        let mut ledger = Ledger::start(other, PAGE, &[DATA, QUEUES])?;
        other.write_pages(&some_pages(5))?;
        let half = half_way(other, State::PreCopy, &[])?;
        running(arguments, access, |nvme| {
            fill(nvme, 1, 7)?;
            go(nvme, State::Stop)?;
            errors.inject(Severity::Fatal)?;
            is_error(nvme, State::Stop)?;
            other.write_pages(&some_pages(9))?;
            recovers(nvme)
        })?;
        check_eq!(count(&told)?, 0, "events");
        check_eq!(other.device.state()?, State::PreCopy, "state");
        goes_on(other, State::PreCopy, half)?;
        Ok(ledger.settle(other)?)
    })
}

/// An error of a function that nobody uses is history when it is opened.
fn fatal_while_closed(arguments: &Arguments, access: Access) -> Outcome {
    let function = rig::function(&arguments.options.function);
    let errors = errors_of(&arguments.options.function)?;
    bind::give(&function, &arguments.options.driver)?;
    for _ in 0..2 {
        errors.inject(Severity::Fatal)?;
        running(arguments, access, |nvme| {
            check_eq!(nvme.device.state()?, State::Running, "state after open");
            fill(nvme, 1, 7)?;
            stream::check(&save(nvme)?)?;
            go(nvme, State::Running)?;
            Ok(works(nvme, DATA.iova)?)
        })?;
    }
    Ok(())
}

/// A fatal error of the administrative controller ends every suspension and every log, so its owners
/// hear of it before; the card is dead until it is bound again.
fn fatal_of_card(arguments: &Arguments, access: Access, state: State) -> Outcome {
    let errors = errors_of(&arguments.admin)?;
    let admin = rig::function(&arguments.admin);
    let function = rig::function(&arguments.options.function);
    let outcome = running(arguments, access, |nvme| {
        fill(nvme, 1, 7)?;
        let stream = save(nvme)?;
        go(nvme, State::Running)?;
        nvme.device.start_log(PAGE, &[DATA])?;
        works(nvme, DATA.iova)?;
        let half = half_way(nvme, state, &stream)?;
        let mut log = Log::from_now()?;

        errors.inject(Severity::Fatal)?;
        let prefix = format!("{BACK_END} {}: ", admin.address);
        let said = log.of(&prefix)?;
        let dead: Vec<_> = said.iter().filter(|m| m.contains("dead")).collect();
        check!(
            matches!(dead.as_slice(), [one] if one.contains("the kernel lost the way to it")),
            "{said:?}"
        );
        is_dead(half.as_ref(), state)?;
        if state.runs() {
            check_eq!(nvme.device.state()?, state, "state");
            works(nvme, DATA.iova)?;
            let stop = nvme.device.set_state(State::Stop).err();
            check_eq!(stop, Some(Errno::IO), "{state:?} to STOP without a card");
        } else {
            is_error(nvme, state)?;
            check_eq!(function.command()? & 4, 0, "bus master in ERROR");
        }
        check_eq!(nvme.device.report(DATA), Err(Errno::IO), "report");
        recovers(nvme)?;
        let stop = nvme.device.set_state(State::Stop).err();
        check_eq!(stop, Some(Errno::IO), "RUNNING to STOP without a card");

        // Nothing but binding it again helps, and that does.
        check_eq!(admin.command()? & 4, 0, "bus master of a dead card");
        nvme.device.stop_log()?;
        admin.unbind(BACK_END)?;
        admin.bind(BACK_END)?;
        let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
        works(nvme, DATA.iova)?;
        ledger.settle(nvme)?;
        stream::check(&save(nvme)?)?;
        go(nvme, State::Running)?;
        works(nvme, DATA.iova)?;
        Ok(ledger.settle(nvme)?)
    });
    if outcome.is_err() && admin.driver().is_some() {
        admin.unbind(BACK_END)?;
    }
    if admin.driver().is_none() {
        admin.bind(BACK_END)?;
    }
    outcome
}

/// Other errors of the administrative controller change nothing.
fn nonfatal_of_card(arguments: &Arguments, access: Access, state: State) -> Outcome {
    let errors = errors_of(&arguments.admin)?;
    running(arguments, access, |nvme| {
        fill(nvme, 1, 7)?;
        let mut ledger = Ledger::start(nvme, PAGE, &[DATA, QUEUES])?;
        nvme.write_pages(&some_pages(0))?;
        let stream = save(nvme)?;
        go(nvme, State::Running)?;
        let half = half_way(nvme, state, &stream)?;
        errors.inject(Severity::Nonfatal)?;
        check_eq!(nvme.device.state()?, state, "state");
        goes_on(nvme, state, half)?;
        Ok(ledger.settle(nvme)?)
    })
}
