// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What tools do with functions through `/dev/migdirty`: pause, resume, logs, states, and the
//! refusals. The functions work for plain vfio-pci, so the test knows every page that they write.
//!
//! Needs root, vfio-pci loaded, the module not loaded, and the card ZSFUNC0001 with two functions that
//! share namespace 1 of 16 MiB, which loses its content, and have no other.

use clap::Parser;
use migdirty_uapi::{
    MigdirtyCard, MigdirtyFunctionInfo, MigdirtyIdentity, MigdirtyLogStart, MigdirtyLogSync,
    MigdirtyRange, MigdirtyState, MigdirtyTarget, MAX_ARGSZ, MAX_LOG_RANGES, MAX_STATE,
    MAX_SYNC_RANGES, MIGDIRTY_FUNCTION_LIVE, MIGDIRTY_FUNCTION_LOGGING, MIGDIRTY_FUNCTION_LOG_LOST,
    MIGDIRTY_FUNCTION_OWNED_BY_TOOL, MIGDIRTY_FUNCTION_SUSPENDED, MIGDIRTY_GET_FUNCTION,
    MIGDIRTY_GET_IDENTITY, MIGDIRTY_LOG_START, MIGDIRTY_LOG_STOP, MIGDIRTY_LOG_SYNC,
    MIGDIRTY_PAUSE, MIGDIRTY_RESTORE, MIGDIRTY_RESUME, MIGDIRTY_SAVE,
};
use rustix::io::Errno;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use zeroshift_nvme::hmlm::state::ControllerState;
use zeroshift_tests::ktap::{Ktap, Outcome, Stop};
use zeroshift_tests::migdirty::{get, gone, open, Answer, State, Tool, DRIVER};
use zeroshift_tests::sys::{address_of, ioctl_with, Plain};
use zeroshift_tests::sysfs::Function;
use zeroshift_tests::vfio::dma::{DATA, QUEUES};
use zeroshift_tests::vfio::log::{range, Pages, Range, PAGE};
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig;
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::{check, check_eq, module};

/// Tests what migdirty does with functions
#[derive(Parser)]
struct Arguments {
    /// Module file to load and unload
    #[arg(long)]
    module: PathBuf,
    /// Run only tests whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

const ADMINISTRATIVE: u32 = 0x01_08_03;
const IO: u32 = 0x01_08_02;

/// Everything that a log can have.
const ALL: Range = range(0, 1 << 48);
/// Room for whatever a test does.
const ROOM: u32 = 4096;

/// What every test gets.
struct Setup {
    file: File,
    card: Function,
    functions: Vec<Function>,
}

impl Setup {
    fn tool(&self, index: usize) -> Tool<'_> {
        Tool {
            file: &self.file,
            address: number(&self.functions[index]),
        }
    }

    /// SUBNQN of the card.
    fn subnqn(&self) -> Result<String, Stop> {
        let card = get(&self.file, number(&self.card))?;
        Ok(card.text(std::mem::offset_of!(MigdirtyCard, subnqn), 256))
    }

    /// Starts the first function, and gives it to the test.
    fn running(&self, test: impl FnOnce(&mut Nvme<'_>, &Tool<'_>) -> Outcome) -> Outcome {
        let address = &self.functions[0].address;
        let tool = self.tool(0);
        let outcome = rig::with_nvme(
            "vfio-pci",
            address,
            Access::Group,
            Wish::default(),
            |nvme| test(nvme, &tool),
        );
        // For the tests behind one that failed.
        let _ = tool.resume();
        let _ = tool.log_stop();
        outcome
    }
}

/// `domain << 16 | bus << 8 | device << 3 | function`.
fn number(function: &Function) -> u32 {
    let parts: Vec<u32> = function
        .address
        .split([':', '.'])
        .map(|part| u32::from_str_radix(part, 16).unwrap())
        .collect();
    parts[0] << 16 | parts[1] << 8 | parts[2] << 3 | parts[3]
}

type Test = (&'static str, fn(&Setup) -> Outcome);

const TESTS: &[Test] = &[
    ("describe", describe),
    ("identity", identity),
    ("pause_and_resume", pause_and_resume),
    ("pause_without_controller", pause_without_controller),
    ("log_is_exact", log_is_exact),
    ("log_of_a_part", log_of_a_part),
    ("log_with_little_room", log_with_little_room),
    ("log_granules", log_granules),
    ("log_started_while_paused", log_started_while_paused),
    ("log_stopped_while_paused", log_stopped_while_paused),
    ("log_is_complete_when_paused", log_is_complete_when_paused),
    ("log_refusals", log_refusals),
    (
        "log_that_the_caller_cannot_take",
        log_that_the_caller_cannot_take,
    ),
    ("reset_by_somebody_else", reset_by_somebody_else),
    ("state_moves", state_moves),
    ("state_refusals", state_refusals),
    ("fields", fields),
    ("card_unbound", card_unbound),
    ("card_reset_by_somebody_else", card_reset_by_somebody_else),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let tests: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| name.contains(&arguments.only))
        .collect();
    let mut ktap = Ktap::new(tests.len() + 2);
    let mut setup = None;
    ktap.test("load", || {
        module::load(&arguments.module, "")?;
        setup = Some(find()?);
        Ok(())
    });
    for (name, test) in tests {
        ktap.test(name, || match &setup {
            Some(setup) => test(setup),
            None => Err(Stop::Fail("there is no card".into())),
        });
    }
    let setup = setup.take();
    ktap.test("unload", || {
        // A tool that left something behind does not hold the module.
        if let Some(setup) = &setup {
            setup.tool(0).log_start(&[DATA], 0)?;
            setup.tool(1).pause()?;
        }
        drop(setup);
        module::unload(DRIVER)?;
        gone()
    });
    ExitCode::from(ktap.finish())
}

fn find() -> Result<Setup, Stop> {
    let cards = Function::of_class(ADMINISTRATIVE)?;
    let functions = Function::of_class(IO)?;
    check_eq!(cards.len(), 1, "number of cards");
    check!(functions.len() >= 2, "{} functions", functions.len());
    let file = open()?;
    Ok(Setup {
        file,
        card: cards[0].clone(),
        functions,
    })
}

fn describe(setup: &Setup) -> Outcome {
    for (index, function) in setup.functions.iter().enumerate() {
        let info = setup.tool(index).info()?;
        let expected = MigdirtyFunctionInfo {
            argsz: 128,
            flags: MIGDIRTY_FUNCTION_LIVE,
            address: number(function),
            card: number(&setup.card),
            // CAST: a few functions.
            controller_id: index as u16 + 1,
            ..MigdirtyFunctionInfo::ZERO
        };
        check_eq!(info, expected, "{}", function.address);
    }
    for address in [number(&setup.card), 0, 0xffff_ffff] {
        let tool = Tool {
            file: &setup.file,
            address,
        };
        check_eq!(tool.info(), Err(Errno::NOENT), "info of {address:#x}");
        check_eq!(tool.pause(), Err(Errno::NOENT), "pause of {address:#x}");
    }
    Ok(())
}

/// Field by field as docs/interfaces.md, section 13 has it. Namespace 2 belongs to no function.
fn identity(setup: &Setup) -> Outcome {
    let mut golden = Vec::new();
    // PCI vendor, device, subsystem vendor, subsystem; revision and class.
    golden.extend([0x53, 0x5a, 2, 0, 0x53, 0x5a, 2, 0]);
    golden.extend([1, 0x02, 0x08, 0x01]);
    golden.extend(format!("{:<20}{:<40}", "ZSFUNC0001", "Zeroshift zerocard").bytes());
    let subnqn = setup.subnqn()?;
    golden.extend([subnqn.len() as u8, 0]);
    golden.extend(subnqn.bytes());
    // Known: one.
    golden.extend([1, 0, 1, 0, 0, 0]);
    // NSID 1, blocks of 2^9 bytes, 32768 of them, no EUI64; then its NGUID.
    golden.extend([1, 0, 0, 0, 9, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0]);
    golden.extend([0; 8]);
    let mut nguids = Vec::new();
    for index in 0..2 {
        let tool = setup.tool(index);
        let size = golden.len() + 16;
        // CAST: a few hundred bytes.
        let needed = Err(size as u32);
        check_eq!(tool.identity_into(0)?, needed, "size without room");
        check_eq!(
            tool.identity_into(size - 1)?,
            needed,
            "size, too little room"
        );
        let record = tool.identity(size)?;
        check_eq!(tool.identity(size + 1)?, record, "with more room");
        let (fields, nguid) = record.split_at(golden.len());
        check_eq!(fields, &golden[..], "record of function {index}");
        nguids.push(nguid.to_vec());
    }
    check_eq!(nguids[0], nguids[1], "NGUID of a shared namespace");
    // What its driver is told.
    setup.running(|nvme, _| {
        nvme.identify_namespace(1, DATA.iova)?;
        let own = &nvme.dma().page(DATA.iova)[104..120];
        check_eq!(own, &nguids[0][..], "NGUID");
        Ok(())
    })
}

fn pause_and_resume(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        let before = tool.info()?;
        check_eq!(tool.resume(), Ok(()), "resume of what runs");
        check_eq!(tool.info()?.flags, MIGDIRTY_FUNCTION_LIVE, "flags");
        tool.pause()?;
        tool.pause()?;
        let info = tool.info()?;
        let held = MIGDIRTY_FUNCTION_SUSPENDED | MIGDIRTY_FUNCTION_OWNED_BY_TOOL;
        check_eq!(info.flags, MIGDIRTY_FUNCTION_LIVE | held, "flags");

        let cid = nvme.put_read(0, DATA.iova, PAGE);
        nvme.ring_io();
        // It answers others, and this one would have been answered before.
        let second = setup.tool(1);
        second.pause()?;
        second.resume()?;
        check!(!nvme.has_completion(), "a suspended function works");
        tool.resume()?;
        let completion = nvme.next_completion()?;
        check_eq!(completion.cid, cid, "the command that waited");
        let info = tool.info()?;
        check_eq!(info.flags, MIGDIRTY_FUNCTION_LIVE, "flags");
        check!(info.suspends > before.suspends, "suspends");
        check!(info.resumes > before.resumes, "resumes");
        Ok(())
    })
}

/// Functions whose controller is not enabled can be paused too.
fn pause_without_controller(setup: &Setup) -> Outcome {
    let tool = setup.tool(1);
    for _ in 0..3 {
        tool.pause()?;
        tool.resume()?;
    }
    Ok(())
}

/// A page in `DATA`.
fn page(number: u64) -> u64 {
    DATA.iova + number * PAGE
}

fn pages(numbers: impl IntoIterator<Item = u64>) -> Pages {
    numbers.into_iter().map(page).collect()
}

/// Writes `pages` of `DATA`, and checks that a sync says so and nothing else. (A running function's
/// queues are outside of `DATA`.)
fn writes_are_seen(nvme: &mut Nvme<'_>, tool: &Tool<'_>, pages: &Pages) -> Outcome {
    nvme.write_pages(pages)?;
    let synced = tool.log_sync(DATA, ROOM)?;
    check_eq!(&synced.pages(), pages, "dirty pages");
    check!(!synced.more && !synced.complete, "flags: {synced:?}");
    let again = tool.log_sync(DATA, ROOM)?;
    check_eq!(again.ranges, vec![], "a second sync");
    Ok(())
}

fn log_is_exact(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        let before = tool.info()?;
        check_eq!(tool.log_start(&[DATA], 0), Ok(PAGE), "granule");
        check_eq!(
            tool.log_start(&[DATA], 0),
            Err(Errno::ALREADY),
            "a second start"
        );
        let info = tool.info()?;
        let held = MIGDIRTY_FUNCTION_LOGGING | MIGDIRTY_FUNCTION_OWNED_BY_TOOL;
        check_eq!(info.flags, MIGDIRTY_FUNCTION_LIVE | held, "flags");
        check_eq!((info.ranges, info.granule), (1, PAGE), "ranges and granule");

        writes_are_seen(nvme, tool, &pages([0, 1, 5, 63, 64, 65, 1023]))?;
        writes_are_seen(nvme, tool, &pages((0..1024).step_by(3)))?;
        writes_are_seen(nvme, tool, &pages(0..1024))?;
        let info = tool.info()?;
        check_eq!(info.harvests - before.harvests, 6, "harvests");
        check_eq!(
            info.dirty_bytes - before.dirty_bytes,
            (7 + 342 + 1024) * PAGE,
            "dirty bytes"
        );

        tool.log_stop()?;
        check_eq!(tool.log_stop(), Ok(()), "a second stop");
        check_eq!(tool.info()?.flags, MIGDIRTY_FUNCTION_LIVE, "flags");
        check_eq!(
            tool.log_sync(DATA, ROOM),
            Err(Errno::INVAL),
            "sync without a log"
        );
        nvme.write_pages(&pages([7]))?;
        check_eq!(tool.log_start(&[DATA], 0), Ok(PAGE), "granule");
        writes_are_seen(nvme, tool, &pages([8]))
    })
}

/// What is not asked for stays, and what is not tracked never comes.
fn log_of_a_part(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        let low = range(page(0), 16 * PAGE);
        let high = range(page(512), 16 * PAGE);
        tool.log_start(&[high, low], PAGE)?;
        check_eq!(tool.info()?.ranges, 2, "ranges");
        nvme.write_pages(&pages([2, 3, 4, 15, 16, 100, 511, 512, 527, 528]))?;
        let part = tool.log_sync(range(page(3), PAGE), ROOM)?;
        check_eq!(part.ranges, vec![range(page(3), PAGE)], "one page");
        // Half a page: it is reported as far as it was asked for, and stays.
        let half = range(page(4) + 1024, 2048);
        check_eq!(tool.log_sync(half, ROOM)?.ranges, vec![half], "half a page");
        let rest = tool.log_sync(ALL, ROOM)?;
        check_eq!(rest.pages(), pages([2, 4, 15, 512, 527]), "the rest");
        Ok(())
    })
}

fn log_with_little_room(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        tool.log_start(&[DATA], 0)?;
        let wanted = pages((0..20).map(|n| n * 2));
        nvme.write_pages(&wanted)?;
        let mut found = Pages::new();
        for round in 0..3 {
            let synced = tool.log_sync(ALL, 8)?;
            check_eq!(synced.more, round < 2, "more to come");
            check_eq!(synced.ranges.len(), if round < 2 { 8 } else { 4 }, "ranges");
            found.extend(synced.pages());
        }
        check_eq!(found, wanted, "all of them");
        // Two in a row are one range.
        nvme.write_pages(&pages([7, 8]))?;
        check_eq!(
            tool.log_sync(ALL, 1)?.ranges,
            vec![range(page(7), 2 * PAGE)],
            "one range"
        );
        Ok(())
    })
}

fn log_granules(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        const COARSE: u64 = 64 << 10;
        check_eq!(tool.log_start(&[DATA], COARSE), Ok(COARSE), "granule");
        nvme.write_pages(&pages([3, 40]))?;
        let synced = tool.log_sync(DATA, ROOM)?;
        check_eq!(
            synced.pages(),
            pages((0..16).chain(32..48)),
            "granules of 64 KiB"
        );
        // A granule that is asked for in parts is not lost after the first.
        nvme.write_pages(&pages([3]))?;
        let parts: Vec<_> = (0..16).map(|n| range(page(n), PAGE)).collect();
        for part in parts {
            check_eq!(tool.log_sync(part, ROOM)?.ranges, vec![part], "a part");
        }
        check_eq!(tool.log_sync(ALL, ROOM)?.ranges, vec![], "nothing is left");
        tool.log_stop()?;
        // The coarsest that there is, when a coarser one is wished for.
        check_eq!(tool.log_start(&[DATA], 1 << 30), Ok(2 << 20), "granule");
        tool.log_stop()?;
        // Unaligned to the granule: only what was asked for is reported.
        let odd = range(page(3), 10 * PAGE);
        check_eq!(tool.log_start(&[odd], COARSE), Ok(COARSE), "granule");
        nvme.write_pages(&pages([1, 14]))?;
        check_eq!(tool.log_sync(ALL, ROOM)?.pages(), pages(3..13), "cut");
        Ok(())
    })
}

fn log_started_while_paused(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        tool.pause()?;
        check_eq!(tool.log_start(&[DATA], 0), Ok(PAGE), "granule");
        check_eq!(
            tool.log_start(&[DATA], 0),
            Err(Errno::ALREADY),
            "a second start"
        );
        let synced = tool.log_sync(ALL, ROOM)?;
        check!(
            synced.complete && synced.ranges.is_empty(),
            "paused: {synced:?}"
        );
        tool.resume()?;
        // Nobody knows what it wrote before the card tracked it.
        let synced = tool.log_sync(ALL, ROOM)?;
        check_eq!(synced.ranges, vec![DATA], "everything, once");
        writes_are_seen(nvme, tool, &pages([1, 2, 9]))
    })
}

fn log_stopped_while_paused(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        tool.log_start(&[DATA], 0)?;
        nvme.write_pages(&pages([1]))?;
        tool.pause()?;
        tool.log_stop()?;
        check_eq!(tool.log_sync(ALL, ROOM), Err(Errno::INVAL), "sync");
        // Another one, of which the card hears at the same time.
        let other = range(page(100), 8 * PAGE);
        tool.log_start(&[other], 0)?;
        tool.log_stop()?;
        tool.log_start(&[other], 0)?;
        tool.resume()?;
        check_eq!(
            tool.log_sync(ALL, ROOM)?.ranges,
            vec![other],
            "everything, once"
        );
        nvme.write_pages(&pages([1, 101]))?;
        check_eq!(
            tool.log_sync(ALL, ROOM)?.pages(),
            pages([101]),
            "of the second log"
        );
        tool.pause()?;
        tool.log_stop()?;
        tool.resume()?;
        check_eq!(tool.info()?.flags, MIGDIRTY_FUNCTION_LIVE, "flags");
        tool.log_start(&[DATA], 0)?;
        writes_are_seen(nvme, tool, &pages([1]))
    })
}

fn log_is_complete_when_paused(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        tool.log_start(&[DATA, QUEUES], 0)?;
        nvme.take_written();
        nvme.write_pages(&pages((0..900).step_by(2)))?;
        tool.pause()?;
        let first = tool.log_sync(ALL, 100)?;
        check!(first.more && !first.complete, "more to come");
        let mut found = first.pages();
        let second = tool.log_sync(ALL, ROOM)?;
        check!(second.complete && !second.more, "complete");
        found.extend(second.pages());
        check_eq!(found, nvme.take_written(), "all that it ever wrote");
        let third = tool.log_sync(ALL, ROOM)?;
        check!(third.complete && third.ranges.is_empty(), "nothing more");
        Ok(())
    })
}

fn log_refusals(setup: &Setup) -> Outcome {
    setup.running(|_, tool| {
        let good = range(page(0), PAGE);
        for (what, ranges, granule) in [
            ("no page", vec![range(page(0), 100)], 0),
            ("unaligned", vec![range(page(0) + 1, PAGE)], 0),
            ("no byte", vec![good, range(page(5), 0)], 0),
            (
                "beyond the end",
                vec![range(0u64.wrapping_sub(PAGE), 2 * PAGE)],
                0,
            ),
            ("the same twice", vec![good, good], 0),
            (
                "overlapping",
                vec![range(page(0), 4 * PAGE), range(page(3), PAGE)],
                0,
            ),
            ("none", vec![], 0),
            (
                "too many",
                (0..=u64::from(MAX_LOG_RANGES))
                    .map(|n| range(page(n * 2), PAGE))
                    .collect(),
                0,
            ),
            ("granule of 2048", vec![good], 2048),
            ("granule of 12288", vec![good], 12288),
        ] {
            check_eq!(
                tool.log_start(&ranges, granule),
                Err(Errno::INVAL),
                "{what}"
            );
        }
        check_eq!(
            tool.info()?.flags,
            MIGDIRTY_FUNCTION_LIVE,
            "nothing was started"
        );
        let most: Vec<_> = (0..u64::from(MAX_LOG_RANGES))
            .map(|n| range(page(n * 2), PAGE))
            .collect();
        tool.log_start(&most, 0)?;
        check_eq!(tool.info()?.ranges, MAX_LOG_RANGES, "ranges");
        for (room, length) in [(0, PAGE), (MAX_SYNC_RANGES + 1, PAGE), (1, 0)] {
            let result = tool.log_sync(range(page(0), length), room);
            check_eq!(result, Err(Errno::INVAL), "room {room}, length {length}");
        }
        let beyond = tool.log_sync(range(u64::MAX, 2), 1);
        check_eq!(beyond, Err(Errno::INVAL), "beyond the end");
        check_eq!(
            tool.log_sync(range(u64::MAX, 1), 1)?.ranges,
            vec![],
            "at the end"
        );
        Ok(())
    })
}

/// What could not be copied to the caller stays in the log.
fn log_that_the_caller_cannot_take(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        tool.log_start(&[DATA], 0)?;
        let wanted = pages([1, 3, 5]);
        nvme.write_pages(&wanted)?;
        let mut sync = MigdirtyLogSync {
            count: 100,
            length: ALL.length,
            ranges: 8,
            ..MigdirtyLogSync::question(tool.address)
        };
        let result = ioctl_with(tool.file, MIGDIRTY_LOG_SYNC, &mut sync);
        check_eq!(result, Err(Errno::FAULT), "no memory there");
        check_eq!(tool.log_sync(ALL, ROOM)?.pages(), wanted, "pages");
        Ok(())
    })
}

/// A reset of the function ends its suspension and not its log.
fn reset_by_somebody_else(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        tool.log_start(&[DATA], 0)?;
        nvme.write_pages(&pages([1, 2]))?;
        tool.pause()?;
        nvme.device.reset()?;
        check_eq!(tool.save().err(), Some(Errno::BUSY), "a state of what runs");
        check_eq!(
            tool.info()?.flags & MIGDIRTY_FUNCTION_SUSPENDED,
            0,
            "it is not suspended"
        );
        nvme.start_again(Wish::default())?;
        nvme.write_pages(&pages([9]))?;
        let synced = tool.log_sync(ALL, ROOM)?;
        check_eq!(synced.pages(), pages([1, 2, 9]), "from before and after");
        check!(!synced.complete, "it runs");

        // The same, found by a sync.
        tool.pause()?;
        nvme.device.reset()?;
        check!(!tool.log_sync(ALL, ROOM)?.complete, "it runs");
        check_eq!(
            tool.info()?.flags & MIGDIRTY_FUNCTION_SUSPENDED,
            0,
            "it is not suspended"
        );
        // And by a resume.
        tool.pause()?;
        nvme.device.reset()?;
        check_eq!(tool.resume(), Ok(()), "resume");
        tool.log_stop()?;

        // A log that believes it to be suspended, when it is asked for or later.
        for before in [true, false] {
            tool.pause()?;
            if before {
                nvme.device.reset()?;
            }
            check_eq!(tool.log_start(&[DATA], 0), Ok(PAGE), "granule");
            if !before {
                check!(tool.log_sync(ALL, ROOM)?.complete, "it is suspended");
                nvme.device.reset()?;
            }
            let synced = tool.log_sync(ALL, ROOM)?;
            check!(!synced.complete, "it runs");
            check_eq!(synced.ranges, vec![DATA], "everything, once");
            nvme.start_again(Wish::default())?;
            writes_are_seen(nvme, tool, &pages([3]))?;
            tool.log_stop()?;
            check_eq!(tool.info()?.flags, MIGDIRTY_FUNCTION_LIVE, "flags");
        }
        Ok(())
    })
}

/// The second function goes on where the first one stopped, in the middle of a command.
fn state_moves(setup: &Setup) -> Outcome {
    let both = [&setup.functions[0], &setup.functions[1]];
    let mut devices = rig::open("vfio-pci", &both, Access::Group)?;
    let destination = devices.devices.pop().unwrap();
    let source = devices.devices.pop().unwrap();
    let mut nvme = Nvme::start(source, &devices.dma, Wish::default())?;
    let (from, to) = (setup.tool(0), setup.tool(1));
    rig::fill(&mut nvme, 4, 3)?;
    from.pause()?;
    let cid = nvme.put_read(2 * 8, DATA.iova, PAGE);
    nvme.ring_io();

    let state = from.save()?;
    check_eq!(
        from.save_into(100)?,
        Err(state.data.len() as u64),
        "room that is needed"
    );
    check_eq!(
        from.save_into(state.data.len())?,
        Ok(state.clone()),
        "room that fits"
    );
    check_eq!(state.version, 0, "version");
    check!(
        state.uuid != [0; 16],
        "the whole state has the vendor's part"
    );
    let decoded = ControllerState::decode(&state.data)
        .map_err(|malformed| Stop::Fail(format!("{malformed}")))?;
    check!(decoded.header.suspended, "taken while suspended");
    check_eq!(decoded.submission_queues().count(), 1, "submission queues");

    to.pause()?;
    to.restore(&state)?;
    let counts = (from.info()?.states_read, to.info()?.states_written);
    check!(counts.0 >= 2 && counts.1 == 1, "counters {counts:?}");
    let source = nvme.go_on_with(destination)?;
    to.resume()?;
    let completion = nvme.next_completion()?;
    check_eq!(completion.cid, cid, "the command that was under way");
    check!(completion.status.is_success(), "{:?}", completion.status);
    check_eq!(
        nvme.dma().page(DATA.iova),
        rig::content(2, 3),
        "what it read"
    );
    nvme.read(3 * 8, DATA.iova, PAGE)?;
    check_eq!(
        nvme.dma().page(DATA.iova),
        rig::content(3, 3),
        "what it reads next"
    );
    source.reset()?;
    from.resume()?;
    Ok(())
}

fn state_refusals(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        check_eq!(tool.save().err(), Some(Errno::BUSY), "save while running");
        tool.pause()?;
        let state = tool.save()?;
        tool.resume()?;
        check_eq!(
            tool.restore(&state),
            Err(Errno::BUSY),
            "restore while running"
        );
        nvme.disable()?;
        tool.pause()?;
        let version = State {
            version: 1,
            ..state.clone()
        };
        check_eq!(
            tool.restore(&version),
            Err(Errno::OPNOTSUPP),
            "unknown version"
        );
        let format = State {
            uuid: [7; 16],
            ..state.clone()
        };
        check_eq!(
            tool.restore(&format),
            Err(Errno::OPNOTSUPP),
            "unknown format"
        );
        let mut cut = state.clone();
        cut.data.truncate(cut.data.len() - 4);
        check_eq!(tool.restore(&cut), Err(Errno::INVAL), "cut short");
        let mut odd = state.clone();
        odd.data.push(0);
        check_eq!(tool.restore(&odd), Err(Errno::INVAL), "odd size");
        let mut wrong = state.clone();
        let last = wrong.data.len() - 60;
        wrong.data[last] ^= 1;
        check_eq!(tool.restore(&wrong), Err(Errno::INVAL), "a wrong byte");
        tool.restore(&state)?;
        tool.resume()?;
        check!(nvme.is_ready(), "it is what it was");
        nvme.read(0, DATA.iova, PAGE)?;
        Ok(())
    })
}

/// A structure with what is wrong about it, and the error for that.
fn refused<T: Plain>(
    file: &File,
    number: u32,
    what: &str,
    mut argument: T,
    error: Errno,
) -> Outcome {
    check_eq!(
        ioctl_with(file, number, &mut argument),
        Err(error),
        "{number:#x}: {what}"
    );
    Ok(())
}

fn fields(setup: &Setup) -> Outcome {
    let (file, address) = (&setup.file, setup.tool(0).address);
    macro_rules! sizes {
        ($number:ident, $type:ty) => {{
            let good = <$type>::question(address);
            for (what, argsz, error) in [
                ("no size", 0, Errno::INVAL),
                ("too small", good.argsz - 1, Errno::INVAL),
                ("too large", MAX_ARGSZ + 1, Errno::TOOBIG),
            ] {
                refused(
                    file,
                    $number,
                    what,
                    <$type>::clone(&good).with(argsz, 0),
                    error,
                )?;
            }
            for flag in [1, 1 << 31] {
                refused(
                    file,
                    $number,
                    "flags",
                    good.with(good.argsz, flag),
                    Errno::INVAL,
                )?;
            }
        }};
    }
    trait With {
        fn with(self, argsz: u32, flags: u32) -> Self;
    }
    macro_rules! with {
        ($($type:ty)*) => {
            $(impl With for $type {
                fn with(self, argsz: u32, flags: u32) -> Self {
                    Self { argsz, flags, ..self }
                }
            })*
        };
    }
    with!(MigdirtyFunctionInfo MigdirtyTarget MigdirtyLogStart MigdirtyLogSync MigdirtyState
        MigdirtyIdentity);
    sizes!(MIGDIRTY_GET_FUNCTION, MigdirtyFunctionInfo);
    sizes!(MIGDIRTY_LOG_START, MigdirtyLogStart);
    sizes!(MIGDIRTY_LOG_SYNC, MigdirtyLogSync);
    sizes!(MIGDIRTY_LOG_STOP, MigdirtyTarget);
    sizes!(MIGDIRTY_PAUSE, MigdirtyTarget);
    sizes!(MIGDIRTY_RESUME, MigdirtyTarget);
    sizes!(MIGDIRTY_SAVE, MigdirtyState);
    sizes!(MIGDIRTY_RESTORE, MigdirtyState);
    sizes!(MIGDIRTY_GET_IDENTITY, MigdirtyIdentity);

    let info = MigdirtyFunctionInfo::question(address);
    let reserved = MigdirtyFunctionInfo {
        reserved: 1,
        ..info
    };
    refused(
        file,
        MIGDIRTY_GET_FUNCTION,
        "reserved",
        reserved,
        Errno::INVAL,
    )?;
    let reserved2 = [0, 0, 0, 0, 0, 1];
    let reserved = MigdirtyFunctionInfo { reserved2, ..info };
    refused(
        file,
        MIGDIRTY_GET_FUNCTION,
        "reserved2",
        reserved,
        Errno::INVAL,
    )?;
    for number in [MIGDIRTY_LOG_STOP, MIGDIRTY_PAUSE, MIGDIRTY_RESUME] {
        let target = MigdirtyTarget {
            reserved: 1,
            ..MigdirtyTarget::question(address)
        };
        refused(file, number, "reserved", target, Errno::INVAL)?;
    }
    let start = MigdirtyLogStart {
        count: 1,
        ranges: 8,
        ..MigdirtyLogStart::question(address)
    };
    refused(
        file,
        MIGDIRTY_LOG_START,
        "ranges nowhere",
        start,
        Errno::FAULT,
    )?;
    let mut list = [MigdirtyRange {
        iova: 0,
        length: PAGE,
    }];
    let elsewhere = MigdirtyLogStart {
        address: number(&setup.card),
        ranges: address_of(&mut list),
        ..start
    };
    refused(
        file,
        MIGDIRTY_LOG_START,
        "no function",
        elsewhere,
        Errno::NOENT,
    )?;
    let state = MigdirtyState::question(address);
    for (number, error) in [
        (MIGDIRTY_SAVE, Errno::BUSY),
        (MIGDIRTY_RESTORE, Errno::INVAL),
    ] {
        refused(file, number, "size 0", state, error)?;
        let size = MAX_STATE + 1;
        refused(
            file,
            number,
            "size",
            MigdirtyState { size, ..state },
            Errno::INVAL,
        )?;
        let reserved = MigdirtyState {
            reserved: 1,
            size: 64,
            ..state
        };
        refused(file, number, "reserved", reserved, Errno::INVAL)?;
    }
    let nowhere = MigdirtyState {
        data: 8,
        size: MAX_STATE,
        ..state
    };
    refused(
        file,
        MIGDIRTY_RESTORE,
        "state nowhere",
        nowhere,
        Errno::FAULT,
    )?;
    check_eq!(
        setup.tool(0).info()?.flags,
        MIGDIRTY_FUNCTION_LIVE,
        "nothing is left"
    );
    Ok(())
}

/// What tools started ends with the card, and the function runs.
fn card_unbound(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        tool.log_start(&[DATA], 0)?;
        tool.pause()?;
        let cid = nvme.put_read(0, DATA.iova, PAGE);
        nvme.ring_io();
        setup.card.unbind(DRIVER)?;
        check_eq!(nvme.next_completion()?.cid, cid, "the function runs");
        check_eq!(tool.info(), Err(Errno::NOENT), "info");
        check_eq!(tool.log_sync(ALL, ROOM), Err(Errno::NOENT), "sync");
        setup.card.bind(DRIVER)?;
        let info = tool.info()?;
        check_eq!(info.flags, MIGDIRTY_FUNCTION_LIVE, "flags");
        check_eq!(info.suspends, 0, "counters begin anew");
        tool.log_start(&[DATA], 0)?;
        writes_are_seen(nvme, tool, &pages([1]))
    })
}

/// A reset of the administrative controller ends what tools started, and they hear of it.
fn card_reset_by_somebody_else(setup: &Setup) -> Outcome {
    setup.running(|nvme, tool| {
        tool.log_start(&[DATA], 0)?;
        tool.pause()?;
        let cid = nvme.put_read(0, DATA.iova, PAGE);
        nvme.ring_io();
        check!(setup.card.reset()?, "it cannot be reset");
        check_eq!(nvme.next_completion()?.cid, cid, "the function runs");
        let flags = tool.info()?.flags;
        let lost = MIGDIRTY_FUNCTION_LOGGING | MIGDIRTY_FUNCTION_LOG_LOST;
        check_eq!(flags, lost | MIGDIRTY_FUNCTION_OWNED_BY_TOOL, "flags");
        check_eq!(tool.log_sync(ALL, ROOM), Err(Errno::IO), "sync");
        check_eq!(tool.pause(), Err(Errno::IO), "pause");
        tool.log_stop()?;
        check_eq!(tool.info()?.flags, 0, "flags");
        let card = get(tool.file, 0).map(|answer: Answer| answer.is_live());
        check_eq!(card, Ok(false), "the card is dead");
        setup.card.unbind(DRIVER)?;
        setup.card.bind(DRIVER)?;
        check_eq!(tool.info()?.flags, MIGDIRTY_FUNCTION_LIVE, "flags");
        tool.log_start(&[DATA], 0)?;
        writes_are_seen(nvme, tool, &pages([1]))
    })
}
