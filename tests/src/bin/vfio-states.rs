// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Migration features and states of a VFIO driver: every pair of states, and every field of the
//! calls.
//!
//! Each pair of states is walked with a function that has queues: after it the function is quiet or
//! works, as the state says, and it works again once it is RUNNING. Needs root, the driver loaded,
//! its back end with the function's card, and a function whose namespace 1 may lose its content.

use clap::Parser;
use rustix::io::Errno;
use std::process::ExitCode;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
    VFIO_DEVICE_FEATURE_MIGRATION, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_MIGRATION_P2P, VFIO_MIGRATION_PRE_COPY,
    VFIO_MIGRATION_STOP_COPY,
};
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::dma::DATA;
use zeroshift_tests::vfio::feature::{GET, HEADER, PROBE, SET};
use zeroshift_tests::vfio::log::PAGE;
use zeroshift_tests::vfio::migration::State;
use zeroshift_tests::vfio::nvme::{succeeded, Nvme, Wish};
use zeroshift_tests::vfio::rig::{self, content, fill, with_nvme, Options};
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::vfio::walk::{go, is_quiet, reach, save, works};
use zeroshift_tests::{check, check_eq};

/// Tests migration states of a VFIO driver
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

type Function = fn(&mut Nvme<'_>) -> Outcome;

/// A test with a function that runs.
#[derive(Clone, Copy)]
enum Test {
    Named(Function),
    Pair(State, State),
}

const NAMED: &[(&str, Function)] = &[
    ("flags", flags),
    ("probe", probe),
    ("first_state", first_state),
    ("error_cannot_be_set", error_cannot_be_set),
    ("unknown_states", unknown_states),
    ("resuming_without_stream", resuming_without_stream),
    ("probe_of_qemu", probe_of_qemu),
    ("disabled_function", disabled_function),
    ("commands_wait", commands_wait),
    ("data_size", data_size),
    ("small_argsz", small_argsz),
    ("wrong_ways", wrong_ways),
    ("unknown_features", unknown_features),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tests: Vec<(String, Test)> = NAMED
        .iter()
        .map(|(name, test)| ((*name).to_owned(), Test::Named(*test)))
        .collect();
    for from in State::ALL {
        for to in State::ALL {
            tests.push((format!("{from:?}_to_{to:?}"), Test::Pair(from, to)));
        }
    }
    ExitCode::from(rig::run(&arguments.options, &tests, |test, access| {
        let test = *test;
        running(&arguments, access, move |nvme| match test {
            Test::Named(test) => test(nvme),
            Test::Pair(from, to) => pair(nvme, from, to),
        })
    }))
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

/// From a state to another; the function in the meantime and afterwards.
fn pair(nvme: &mut Nvme<'_>, from: State, to: State) -> Outcome {
    fill(nvme, 1, 5)?;
    let stream = save(nvme)?;
    go(nvme, State::Running)?;
    let old = reach(nvme, from, &stream)?;

    let result = nvme.device.set_state(to);
    let now = nvme.device.state()?;
    let file = match result {
        Err(error) => {
            check!(!from.may_become(to), "{from:?} to {to:?}: {error}");
            check_eq!(error, Errno::INVAL, "{from:?} to {to:?}");
            check_eq!(now, from, "state after a refused {from:?} to {to:?}");
            None
        }
        Ok(file) => {
            check!(from.may_become(to), "{from:?} to {to:?} was allowed");
            check_eq!(now, to, "state after {from:?} to {to:?}");
            let expected = from.gives_file(to);
            check_eq!(file.is_some(), expected, "a file for {from:?} to {to:?}");
            file
        }
    };
    if let Some(old) = &old {
        let mut byte = [0];
        let result = match from {
            State::Resuming => old.write(&[]),
            _ => old.read(&mut byte),
        };
        match from.keeps_file(now) {
            true => check!(
                result.is_ok(),
                "the file of {from:?} in {now:?}: {result:?}"
            ),
            false if from == State::Resuming => {
                let result = old.write(&[0]);
                check_eq!(result, Err(Errno::NODEV), "file of {from:?} in {now:?}");
            }
            false => check_eq!(result, Err(Errno::NODEV), "file of {from:?} in {now:?}"),
        }
    }
    drop(file);

    // RESUMING has no way back without a stream. When nothing was loaded, what the function had is
    // gone with the reset.
    if now == State::Resuming && from != State::Resuming {
        nvme.device.reset()?;
        check_eq!(nvme.device.state()?, State::Running, "state after a reset");
        nvme.start_again(Wish::default())?;
        works(nvme, DATA.iova)?;
        return Ok(());
    }
    let page = DATA.iova + PAGE;
    if now.runs() {
        works(nvme, page)?;
        go(nvme, State::Running)?;
    } else {
        let waiting = match now {
            // The stream is not loaded before RESUMING is left.
            State::Resuming => None,
            _ => Some(is_quiet(nvme, page)?),
        };
        go(nvme, State::Running)?;
        if let Some(cid) = waiting {
            succeeded(&nvme.next_completion()?, cid)?;
        }
    }
    nvme.dma().write(DATA.iova, &[0; PAGE as usize]);
    works(nvme, DATA.iova)?;
    check!(nvme.dma().page(DATA.iova) == content(0, 5), "wrong data");
    Ok(())
}

fn flags(nvme: &mut Nvme<'_>) -> Outcome {
    let all = VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | VFIO_MIGRATION_PRE_COPY;
    check_eq!(nvme.device.migration_flags()?, u64::from(all), "flags");
    Ok(())
}

const STATE: u32 = VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;

/// Features, the ways in which each can be used, and the size of its data.
const FEATURES: &[(u32, u32, usize)] = &[
    (VFIO_DEVICE_FEATURE_MIGRATION, GET, 8),
    (STATE, GET | SET, 8),
    (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, GET, 8),
    (VFIO_DEVICE_FEATURE_DMA_LOGGING_START, SET, 24),
    (VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, SET, 0),
    (VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, GET, 32),
    (VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, SET, 0),
];

fn probe(nvme: &mut Nvme<'_>) -> Outcome {
    for (feature, ways, _) in FEATURES {
        for asked in [0, GET, SET, GET | SET] {
            let expected = match asked & !ways {
                0 => Ok(()),
                _ => Err(Errno::INVAL),
            };
            let probed = nvme.device.probe_feature(*feature, asked);
            check_eq!(probed, expected, "probe of feature {feature}, {asked:#x}");
        }
    }
    Ok(())
}

fn first_state(nvme: &mut Nvme<'_>) -> Outcome {
    check_eq!(nvme.device.state()?, State::Running, "state after open");
    Ok(())
}

fn error_cannot_be_set(nvme: &mut Nvme<'_>) -> Outcome {
    for state in [State::Running, State::Stop, State::StopCopy] {
        let _file = nvme.device.set_state(state)?;
        let refused = nvme.device.set_state(State::Error);
        check_eq!(refused.err(), Some(Errno::INVAL), "{state:?} to ERROR");
        check_eq!(nvme.device.state()?, state, "state after it");
    }
    go(nvme, State::Running)?;
    Ok(works(nvme, DATA.iova)?)
}

fn unknown_states(nvme: &mut Nvme<'_>) -> Outcome {
    for number in [8, 9, 255, 0x8000_0002, u32::MAX] {
        for state in [State::Running, State::Stop] {
            nvme.device.set_state(state)?;
            let refused = nvme.device.set_state_number(number);
            check_eq!(refused.err(), Some(Errno::INVAL), "{state:?} to {number}");
            check_eq!(nvme.device.state()?, state, "state after it");
        }
    }
    go(nvme, State::Running)?;
    Ok(works(nvme, DATA.iova)?)
}

/// RESUMING cannot be left without a stream, but by a reset.
fn resuming_without_stream(nvme: &mut Nvme<'_>) -> Outcome {
    for to in State::ALL {
        nvme.device.reset()?;
        let file = go(nvme, State::Resuming)?;
        let result = nvme.device.set_state(to);
        if to == State::Resuming {
            check!(result?.is_none(), "RESUMING to RESUMING gave a file");
        } else {
            check_eq!(result.err(), Some(Errno::INVAL), "RESUMING to {to:?}");
        }
        check_eq!(nvme.device.state()?, State::Resuming, "state after {to:?}");
        drop(file);
    }
    nvme.device.reset()?;
    check_eq!(nvme.device.state()?, State::Running, "state after a reset");
    nvme.start_again(Wish::default())?;
    Ok(works(nvme, DATA.iova)?)
}

/// What QEMU does at every open, and again, with the function enabled.
fn probe_of_qemu(nvme: &mut Nvme<'_>) -> Outcome {
    for _ in 0..5 {
        go(nvme, State::RunningP2p)?;
        go(nvme, State::Running)?;
        works(nvme, DATA.iova)?;
    }
    Ok(())
}

/// All states with a controller that is not enabled; it can be enabled afterwards.
fn disabled_function(nvme: &mut Nvme<'_>) -> Outcome {
    nvme.device.reset()?;
    let stream = save(nvme)?;
    go(nvme, State::Running)?;
    for state in State::ALL {
        let _file = reach(nvme, state, &stream)?;
        go(nvme, State::Running)?;
    }
    nvme.device.enable(true)?;
    check!(!nvme.is_ready(), "ready, and nobody enabled it");
    nvme.start_again(Wish::default())?;
    Ok(works(nvme, DATA.iova)?)
}

/// Commands that are under way when it is suspended are done then or later, each once.
fn commands_wait(nvme: &mut Nvme<'_>) -> Outcome {
    const COUNT: u64 = 40;
    fill(nvme, 1, 6)?;
    for round in 0..5 {
        let mut open: Vec<u16> = Vec::new();
        for i in 0..COUNT {
            let page = DATA.iova + i * PAGE;
            nvme.dma().write(page, &[0; PAGE as usize]);
            open.push(nvme.put_read(0, page, PAGE));
        }
        nvme.ring_io();
        go(nvme, State::Stop)?;
        go(nvme, State::Running)?;
        while !open.is_empty() {
            let completion = nvme.next_completion()?;
            let place = open.iter().position(|cid| *cid == completion.cid);
            let cid = open.remove(place.ok_or("a command completed twice")?);
            succeeded(&completion, cid)?;
        }
        for i in 0..COUNT {
            let page = nvme.dma().page(DATA.iova + i * PAGE);
            check!(page == content(0, 6), "page {i} of round {round}");
        }
    }
    Ok(())
}

/// What is said to come is about what comes.
fn data_size(nvme: &mut Nvme<'_>) -> Outcome {
    for state in State::ALL {
        if state == State::Resuming {
            continue;
        }
        let _file = nvme.device.set_state(State::Running)?;
        let _file = nvme.device.set_state(state)?;
        check!(nvme.device.data_size()? > 0, "data size in {state:?}");
    }
    go(nvme, State::Running)?;
    let length = save(nvme)?.len() as u64;
    let said = nvme.device.data_size()?;
    check!(
        said.abs_diff(length) <= PAGE,
        "{said} bytes are said to come, {length} came"
    );
    Ok(())
}

fn small_argsz(nvme: &mut Nvme<'_>) -> Outcome {
    for (feature, ways, size) in FEATURES {
        for way in [GET, SET] {
            if ways & way == 0 {
                continue;
            }
            // Too small for the header; for the data.
            let too_small = [0, 4, HEADER - 1, HEADER, HEADER + size.saturating_sub(1)];
            for argsz in too_small {
                if *size == 0 && argsz >= HEADER {
                    continue;
                }
                let mut data = [0; 32];
                // CAST: a small number.
                let result = nvme.device.feature(argsz as u32, way | feature, &mut data);
                let what = format!("feature {feature}, {way:#x}, argsz {argsz}");
                check_eq!(result, Err(Errno::INVAL), "{what}");
                check!(data == [0; 32], "{what}: refused, but the data changed");
            }
        }
    }
    check_eq!(nvme.device.state()?, State::Running, "state after it");
    Ok(())
}

fn wrong_ways(nvme: &mut Nvme<'_>) -> Outcome {
    for (feature, ways, _) in FEATURES {
        for flags in [0, GET | SET, GET, SET, 1 << 19, 1 << 31 | GET] {
            if matches!(flags, GET | SET) && ways & flags != 0 {
                continue;
            }
            let result = nvme.device.feature(64, flags | feature, &mut [0; 56]);
            check_eq!(
                result,
                Err(Errno::INVAL),
                "feature {feature} with flags {flags:#x}"
            );
        }
    }
    check_eq!(nvme.device.state()?, State::Running, "state after it");
    Ok(())
}

fn unknown_features(nvme: &mut Nvme<'_>) -> Outcome {
    for feature in [100, 0xffff] {
        for flags in [GET, SET, PROBE] {
            let result = nvme.device.feature(64, flags | feature, &mut [0; 56]);
            check_eq!(result, Err(Errno::NOTTY), "feature {feature}, {flags:#x}");
        }
    }
    Ok(())
}
