// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What comes and goes while a device is in use: the user, the driver, the modules, the card's
//! administrative controller.
//!
//! Needs root, both modules loaded (they are unloaded and loaded again), and a function whose namespace
//! 1 may lose its content.

use clap::Parser;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_MIGRATION,
};
use zeroshift_tests::kmsg::Log;
use zeroshift_tests::ktap::{Outcome, Stop};
use zeroshift_tests::sysfs::Function;
use zeroshift_tests::vfio::dma::{DATA, QUEUES};
use zeroshift_tests::vfio::exact::Ledger;
use zeroshift_tests::vfio::log::{Pages, PAGE};
use zeroshift_tests::vfio::migration::{DataFile, State};
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig::{self, content, fill, with_nvme, Options};
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::vfio::walk::{go, reach, save, works};
use zeroshift_tests::vfio::{bind, stream};
use zeroshift_tests::{check, check_eq, module};

/// The back end: its module and its PCI driver.
const BACK_END: &str = "migdirty";

/// Tests what comes and goes under a VFIO driver
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// PCI address of the administrative controller of the function's card
    #[arg(long)]
    admin: String,
    /// File of the driver's module, which has the driver's name
    #[arg(long)]
    module: PathBuf,
}

type Run = fn(&Arguments, Access) -> Outcome;

#[derive(Clone, Copy)]
enum Test {
    Close(State),
    Unbind(State),
    Reset(State),
    Named(Run),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tests: Vec<(String, Test)> = Vec::new();
    for state in State::ALL {
        tests.push((format!("close_in_{state:?}"), Test::Close(state)));
    }
    for state in State::ALL {
        tests.push((
            format!("back_end_unbound_in_{state:?}"),
            Test::Unbind(state),
        ));
    }
    for state in State::ALL {
        tests.push((format!("card_reset_in_{state:?}"), Test::Reset(state)));
    }
    let named: [(&str, Run); 6] = [
        ("files_outlive_driver", files_outlive_driver),
        ("unbind_waits_for_user", unbind_waits_for_user),
        ("back_end_cannot_go_first", back_end_cannot_go_first),
        ("no_back_end", no_back_end),
        ("back_end_comes_later", back_end_comes_later),
        ("load_and_unload", load_and_unload),
    ];
    tests.extend(named.map(|(name, test)| (name.to_owned(), Test::Named(test))));
    ExitCode::from(rig::run(
        &arguments.options,
        &tests,
        |test, access| match test {
            Test::Close(state) => close_in(&arguments, access, *state),
            Test::Unbind(state) => card_lost(&arguments, access, *state, &unbound),
            Test::Reset(state) => card_lost(&arguments, access, *state, &card_reset),
            Test::Named(test) => test(&arguments, access),
        },
    ))
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

/// A device that was opened just now knows nothing of what was before, and works.
fn is_fresh(arguments: &Arguments, access: Access) -> Outcome {
    running(arguments, access, |nvme| {
        check_eq!(nvme.device.state()?, State::Running, "state after open");
        check_eq!(
            nvme.device.report(DATA),
            Err(Errno::INVAL),
            "report after open"
        );
        let mut ledger = Ledger::start(nvme, PAGE, &[DATA, QUEUES])?;
        nvme.dma().write(DATA.iova, &[0; PAGE as usize]);
        works(nvme, DATA.iova)?;
        check!(nvme.dma().page(DATA.iova) == content(0, 1), "wrong data");
        ledger.settle(nvme)?;
        stream::check(&save(nvme)?)?;
        go(nvme, State::Running)?;
        works(nvme, DATA.iova)?;
        Ok(ledger.settle(nvme)?)
    })
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
    let info = file.precopy_info();
    check!(
        info.is_err(),
        "PRECOPY_INFO of a dead file of {of:?}: {info:?}"
    );
    Ok(())
}

/// The user goes in the middle of it, with a log and a data file, and leaves nothing behind.
fn close_in(arguments: &Arguments, access: Access, state: State) -> Outcome {
    let mut file = None;
    running(arguments, access, |nvme| {
        fill(nvme, 1, 1)?;
        let stream = save(nvme)?;
        go(nvme, State::Running)?;
        nvme.device.start_log(PAGE, &[DATA])?;
        works(nvme, DATA.iova)?;
        file = reach(nvme, state, &stream)?;
        Ok(())
    })?;
    if let Some(file) = &file {
        is_dead(file, state)?;
    }
    is_fresh(arguments, access)?;
    if let Some(file) = &file {
        is_dead(file, state)?;
    }
    Ok(())
}

type Lose = dyn Fn(&Function) -> Outcome;

fn unbound(admin: &Function) -> Outcome {
    admin.unbind(BACK_END)?;
    Ok(())
}

/// Somebody resets the administrative controller. That nobody tells the back end is the card's way of
/// ending every suspension; unbinding afterwards makes sure that it is noticed.
fn card_reset(admin: &Function) -> Outcome {
    check!(
        admin.reset()?,
        "the administrative controller cannot be reset"
    );
    unbound(admin)
}

/// The card goes away while the function is in a state. The function may not write unseen.
fn card_lost(arguments: &Arguments, access: Access, state: State, lose: &Lose) -> Outcome {
    let admin = rig::function(&arguments.admin);
    let function = rig::function(&arguments.options.function);
    let outcome = running(arguments, access, |nvme| {
        fill(nvme, 1, 1)?;
        let stream = save(nvme)?;
        go(nvme, State::Running)?;
        nvme.device.start_log(PAGE, &[DATA])?;
        works(nvme, DATA.iova)?;
        let file = reach(nvme, state, &stream)?;

        lose(&admin)?;
        if let Some(file) = &file {
            is_dead(file, state)?;
        }
        if state.runs() {
            check_eq!(nvme.device.state()?, state, "state");
            works(nvme, DATA.iova)?;
            for to in [State::Stop, State::StopCopy, State::PreCopyP2p] {
                let result = nvme.device.set_state(to).err();
                check_eq!(result, Some(Errno::IO), "{state:?} to {to:?}");
            }
            // The ways to some of these begin with RUNNING.
            check!(nvme.device.state()?.runs(), "state after it");
            go(nvme, State::Running)?;
            works(nvme, DATA.iova)?;
        } else {
            check_eq!(
                nvme.device.state()?,
                State::Error,
                "state that was {state:?}"
            );
            check_eq!(function.command()? & 4, 0, "bus master in ERROR");
            for to in State::ALL {
                let result = nvme.device.set_state(to).err();
                check_eq!(result, Some(Errno::IO), "ERROR to {to:?}");
            }
        }
        check_eq!(nvme.device.report(DATA), Err(Errno::IO), "report");
        let start = nvme.device.start_log(PAGE, &[DATA]);
        check!(start.is_err(), "a log without a card: {start:?}");
        check_eq!(nvme.device.report(DATA), Err(Errno::IO), "report");

        // As plain VFIO it goes on, after a reset, which leaves the command register alone.
        nvme.device.reset()?;
        check_eq!(nvme.device.state()?, State::Running, "state after a reset");
        check_eq!(function.command()? & 4, 4, "bus master after a reset");
        nvme.start_again(Wish::default())?;
        works(nvme, DATA.iova)?;
        let stop = nvme.device.set_state(State::Stop).err();
        check_eq!(stop, Some(Errno::IO), "RUNNING to STOP without a card");

        // When its card is back, so is everything but the log.
        check_eq!(nvme.device.stop_log(), Ok(()), "stop of a log that is lost");
        admin.bind(BACK_END)?;
        check!(nvme.device.report(DATA).is_err(), "report of a lost log");
        let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
        works(nvme, DATA.iova)?;
        ledger.settle(nvme)?;
        stream::check(&save(nvme)?)?;
        go(nvme, State::Running)?;
        works(nvme, DATA.iova)?;
        Ok(ledger.settle(nvme)?)
    });
    if admin.driver().as_deref() != Some(BACK_END) {
        admin.bind(BACK_END)?;
    }
    outcome?;
    is_fresh(arguments, access)
}

/// Data files stay open when the device is closed, unbound, and used anew; the module has to stay for
/// them.
fn files_outlive_driver(arguments: &Arguments, access: Access) -> Outcome {
    let driver = arguments.options.driver.as_str();
    let function = rig::function(&arguments.options.function);
    for state in [State::StopCopy, State::PreCopy, State::Resuming] {
        let mut file = None;
        running(arguments, access, |nvme| {
            fill(nvme, 1, 1)?;
            let stream = save(nvme)?;
            go(nvme, State::Running)?;
            file = reach(nvme, state, &stream)?;
            Ok(())
        })?;
        let file = file.ok_or("no file")?;
        bind::take(&function)?;
        is_dead(&file, state)?;
        check_eq!(
            module::unload(driver),
            Err(Errno::AGAIN),
            "unload with a file"
        );
        is_dead(&file, state)?;
        drop(file);
    }
    reload(arguments)?;
    is_fresh(arguments, access)
}

/// Unloads and loads the driver's module. Functions of it have to be given to it again.
fn reload(arguments: &Arguments) -> Outcome {
    let driver = arguments.options.driver.as_str();
    module::unload(driver).map_err(|error| format!("unload: {error}"))?;
    check!(!module::is_loaded(driver), "the module is left");
    module::load(&arguments.module, "").map_err(|error| format!("load: {error}"))?;
    Ok(())
}

/// The driver cannot be taken away from under a user, and goes when the user has gone.
fn unbind_waits_for_user(arguments: &Arguments, access: Access) -> Outcome {
    let driver = arguments.options.driver.clone();
    let function = rig::function(&arguments.options.function);
    thread::scope(|scope| -> Outcome {
        let (started, has_started) = mpsc::channel();
        let mut unbind = None;
        running(arguments, access, |nvme| {
            fill(nvme, 1, 1)?;
            let unload = module::unload(&driver);
            check_eq!(unload, Err(Errno::AGAIN), "unload with a user");
            nvme.device.start_log(PAGE, &[DATA])?;
            let (function, driver) = (function.clone(), driver.clone());
            unbind = Some(scope.spawn(move || -> Result<(), Stop> {
                started.send(())?;
                Ok(function.unbind(&driver)?)
            }));
            has_started.recv()?;
            for state in [State::PreCopy, State::StopCopy, State::Running] {
                let _file = nvme.device.set_state(state)?;
            }
            works(nvme, DATA.iova)?;
            let one = Pages::from([DATA.iova]);
            check_eq!(nvme.device.report(DATA)?, one, "report");
            Ok(())
        })?;
        let unbind = unbind.ok_or("no thread")?;
        unbind.join().map_err(|_| "the thread panicked")??;
        check_eq!(function.driver(), None, "driver after unbind");
        Ok(())
    })?;
    is_fresh(arguments, access)
}

fn back_end_cannot_go_first(arguments: &Arguments, access: Access) -> Outcome {
    running(arguments, access, |nvme| {
        let unload = module::unload(BACK_END);
        check_eq!(unload, Err(Errno::AGAIN), "unload of the back end");
        works(nvme, DATA.iova)?;
        Ok(())
    })?;
    let unload = module::unload(BACK_END);
    check_eq!(unload, Err(Errno::AGAIN), "unload of the back end");
    Ok(())
}

/// Without a card that manages it, a function works as with vfio-pci; the kernel's log says why, once.
fn no_back_end(arguments: &Arguments, access: Access) -> Outcome {
    let admin = rig::function(&arguments.admin);
    let function = rig::function(&arguments.options.function);
    let mut log = Log::from_now()?;
    bind::take(&function)?;
    admin.unbind(BACK_END)?;
    let prefix = format!("{} {}: ", arguments.options.driver, function.address);
    let outcome = (|| {
        for _ in 0..3 {
            running(arguments, access, |nvme| {
                let device = &nvme.device;
                for feature in [
                    VFIO_DEVICE_FEATURE_MIGRATION,
                    VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
                ] {
                    let probed = device.probe_feature(feature, 0);
                    check_eq!(probed, Err(Errno::NOTTY), "probe of feature {feature}");
                }
                check_eq!(device.state(), Err(Errno::NOTTY), "state");
                let start = device.start_log(PAGE, &[DATA]);
                check_eq!(start, Err(Errno::NOTTY), "start of a log");
                fill(nvme, 1, 1)?;
                works(nvme, DATA.iova)?;
                nvme.device.reset()?;
                nvme.start_again(Wish::default())?;
                Ok(works(nvme, DATA.iova)?)
            })?;
        }
        let messages = log.of(&prefix)?;
        let why = messages.iter().filter(|m| m.contains("migrat"));
        check_eq!(why.count(), 1, "messages that say why, of {messages:?}");
        Ok(())
    })();
    admin.bind(BACK_END)?;
    outcome?;
    is_fresh(arguments, access)
}

/// A card that comes while a device is open is there for the next one.
fn back_end_comes_later(arguments: &Arguments, access: Access) -> Outcome {
    let admin = rig::function(&arguments.admin);
    admin.unbind(BACK_END)?;
    let outcome = running(arguments, access, |nvme| {
        fill(nvme, 1, 1)?;
        admin.bind(BACK_END)?;
        check_eq!(nvme.device.state(), Err(Errno::NOTTY), "state");
        Ok(works(nvme, DATA.iova)?)
    });
    if admin.driver().is_none() {
        admin.bind(BACK_END)?;
    }
    outcome?;
    is_fresh(arguments, access)
}

fn load_and_unload(arguments: &Arguments, access: Access) -> Outcome {
    let function = rig::function(&arguments.options.function);
    for _ in 0..5 {
        is_fresh(arguments, access)?;
        bind::take(&function)?;
        reload(arguments)?;
    }
    is_fresh(arguments, access)
}
