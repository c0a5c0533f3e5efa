// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A function that is in use moves to another function, as the uAPI gives it: its queues, commands that
//! are under way, completions that nobody took, interrupts.
//!
//! Both functions work with the same memory of this process, so what is tested is the state alone. Needs
//! root, the driver loaded, its back end with the card, and two functions of one card that share namespace
//! 1, which may lose its content.

use clap::Parser;
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use zeroshift_tests::ktap::{Outcome, Stop};
use zeroshift_tests::vfio::device::Device;
use zeroshift_tests::vfio::dma::{DATA, QUEUES};
use zeroshift_tests::vfio::exact::Ledger;
use zeroshift_tests::vfio::log::{Pages, PAGE};
use zeroshift_tests::vfio::migration::{DataFile, State};
use zeroshift_tests::vfio::nvme::{succeeded, Nvme, Wish, BLOCKS_OF_PAGE};
use zeroshift_tests::vfio::rig::{self, content, fill, with_pair, Options};
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::vfio::walk::{go, save, works, STEP};
use zeroshift_tests::{check, check_eq};

/// Tests migration of a function that is in use
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// PCI address of another function of the same card
    #[arg(long)]
    other: String,
}

type Run = fn(&mut Nvme<'_>, Device) -> Outcome;

/// Vector of the completion queue, entries of the queues, and the test.
type Test = (Option<u16>, u16, Run);

const TESTS: &[(&str, Test)] = &[
    ("idle", (None, 64, idle)),
    ("commands_under_way", (None, 64, commands_under_way)),
    (
        "commands_without_doorbell",
        (None, 64, commands_without_doorbell),
    ),
    ("doorbell_while_stopped", (None, 64, doorbell_while_stopped)),
    ("doorbell_on_its_way", (None, 64, doorbell_on_its_way)),
    ("queues_that_turned", (None, 7, queues_that_turned)),
    ("completions_not_taken", (None, 16, completions_not_taken)),
    ("interrupts", (Some(1), 64, interrupts)),
    ("pre_copy", (None, 64, pre_copy)),
    ("not_enabled", (None, 64, not_enabled)),
    ("back_and_forth", (None, 32, back_and_forth)),
    ("source_goes_on", (None, 64, source_goes_on)),
    ("both_at_work", (None, 64, both_at_work)),
    ("configuration_space", (None, 64, configuration_space)),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    let run = |(vector, entries, test): &Test, access: Access| {
        let wish = Wish {
            entries: *entries,
            vector: *vector,
        };
        let pair = [options.function.as_str(), arguments.other.as_str()];
        with_pair(&options.driver, pair, access, wish, test)
    };
    ExitCode::from(rig::run(options, TESTS, run))
}

/// Loads a stream into a function that is fresh or was reset; leaves it in STOP.
fn load(device: &Device, stream: &[u8]) -> Outcome {
    let file = device.set_state(State::Resuming)?.ok_or("no file")?;
    file.write_all(stream, STEP)?;
    device.set_state(State::Stop)?;
    check_eq!(device.state()?, State::Stop, "state of the destination");
    Ok(())
}

/// Moves a running function to `other` and gives the old one back, reset. Nothing runs before the new one does.
fn move_to(nvme: &mut Nvme<'_>, other: Device) -> Result<Device, Stop> {
    let stream = save(nvme)?;
    arrive(nvme, other, &stream)
}

/// The part of the destination.
fn arrive(nvme: &mut Nvme<'_>, other: Device, stream: &[u8]) -> Result<Device, Stop> {
    load(&other, stream)?;
    let old = nvme.go_on_with(other)?;
    go(nvme, State::Running)?;
    old.reset()?;
    check_eq!(old.state()?, State::Running, "state of the source");
    Ok(old)
}

/// Content that was there before is read, and writes arrive.
fn is_at_work(nvme: &mut Nvme<'_>, generation: u32) -> Outcome {
    for page in 0..4 {
        nvme.dma().write(DATA.iova, &[0; PAGE as usize]);
        nvme.read(page * BLOCKS_OF_PAGE, DATA.iova, PAGE)?;
        check!(
            nvme.dma().page(DATA.iova) == content(page, generation),
            "page {page} is not of generation {generation}"
        );
    }
    Ok(())
}

/// Takes the completions of all these commands, each once.
fn take_all(nvme: &mut Nvme<'_>, mut open: Vec<u16>) -> Outcome {
    while !open.is_empty() {
        let completion = nvme.next_completion()?;
        let place = open.iter().position(|cid| *cid == completion.cid);
        let place = place.ok_or(format!("command {} completed twice", completion.cid))?;
        succeeded(&completion, open.remove(place))?;
    }
    check!(!nvme.has_completion(), "a completion of no command");
    Ok(())
}

/// Puts reads of page 0 to `count` pages of memory that were cleared.
fn put_reads(nvme: &mut Nvme<'_>, count: u64) -> Vec<u16> {
    (0..count)
        .map(|n| {
            let page = DATA.iova + n * PAGE;
            nvme.dma().write(page, &[0; PAGE as usize]);
            nvme.put_read(0, page, PAGE)
        })
        .collect()
}

fn all_read(nvme: &Nvme<'_>, count: u64, generation: u32) -> Outcome {
    for n in 0..count {
        let page = nvme.dma().page(DATA.iova + n * PAGE);
        check!(page == content(0, generation), "page {n} was not read");
    }
    Ok(())
}

fn idle(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 4, 1)?;
    move_to(nvme, other)?;
    check!(nvme.is_ready(), "the destination is not ready");
    is_at_work(nvme, 1)?;
    fill(nvme, 4, 2)?;
    is_at_work(nvme, 2)?;
    nvme.identify(DATA.iova)?;
    Ok(())
}

fn commands_under_way(nvme: &mut Nvme<'_>, mut other: Device) -> Outcome {
    fill(nvme, 1, 3)?;
    for _ in 0..3 {
        let open = put_reads(nvme, 60);
        nvme.ring_io();
        other = move_to(nvme, other)?;
        take_all(nvme, open)?;
        all_read(nvme, 60, 3)?;
    }
    Ok(())
}

/// Commands in the queue of which the function does not know yet.
fn commands_without_doorbell(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 1, 4)?;
    let mut open = put_reads(nvme, 10);
    nvme.ring_io();
    take_all(nvme, std::mem::take(&mut open))?;
    let open = put_reads(nvme, 20);
    move_to(nvme, other)?;
    check!(
        !nvme.has_completion(),
        "a command was done without doorbell"
    );
    nvme.ring_io();
    take_all(nvme, open)?;
    all_read(nvme, 20, 4)
}

/// A doorbell that rings after the function was suspended and before its state is taken.
fn doorbell_while_stopped(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 1, 5)?;
    let open = put_reads(nvme, 20);
    go(nvme, State::Stop)?;
    nvme.ring_io();
    // A write of a register may be on its way for a while; a read comes behind it.
    check!(nvme.is_ready(), "a stopped function is not ready");
    check!(!nvme.has_completion(), "a command was done in STOP");
    move_to(nvme, other)?;
    take_all(nvme, open)?;
    all_read(nvme, 20, 5)
}

/// A doorbell that the function may not have when its card is told to suspend it and to give its state: a write of
/// a register is posted, and goes another way. Proves something with a card to which writes are late.
fn doorbell_on_its_way(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 1, 12)?;
    let open = put_reads(nvme, 3);
    // Every write before has arrived.
    check!(nvme.is_ready(), "the source is not ready");
    nvme.ring_io();
    move_to(nvme, other)?;
    take_all(nvme, open)?;
    all_read(nvme, 3, 12)
}

/// Queues of seven entries, moved at each place of their rings, in both phases.
fn queues_that_turned(nvme: &mut Nvme<'_>, mut other: Device) -> Outcome {
    fill(nvme, 1, 6)?;
    for _ in 0..16 {
        other = move_to(nvme, other)?;
        works(nvme, DATA.iova)?;
    }
    // Full but for the one entry that has to be free.
    for _ in 0..3 {
        let open = put_reads(nvme, 6);
        nvme.ring_io();
        other = move_to(nvme, other)?;
        take_all(nvme, open)?;
        all_read(nvme, 6, 6)?;
        works(nvme, DATA.iova)?;
    }
    Ok(())
}

/// Completions that lie in the queue when the function moves, and that the new one counts as not taken.
fn completions_not_taken(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 1, 7)?;
    let open = put_reads(nvme, 15);
    nvme.ring_io();
    wait_for(nvme, |nvme| nvme.has_completion())?;
    let other = move_to(nvme, other)?;
    take_all(nvme, open)?;
    all_read(nvme, 15, 7)?;
    move_to(nvme, other)?;
    works(nvme, DATA.iova)?;
    Ok(())
}

fn wait_for(nvme: &Nvme<'_>, ready: impl Fn(&Nvme<'_>) -> bool) -> Outcome {
    let start = std::time::Instant::now();
    while !ready(nvme) {
        check!(start.elapsed().as_secs() < 120, "nothing happens");
        std::thread::yield_now();
    }
    Ok(())
}

fn two_events() -> Result<Vec<OwnedFd>, Errno> {
    let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
    (0..2).map(|_| eventfd(0, flags)).collect()
}

fn has_interrupt(event: &OwnedFd) -> Outcome {
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let mut wait = [PollFd::new(event, PollFlags::IN)];
    check_eq!(poll(&mut wait, Some(&limit))?, 1, "interrupts");
    rustix::io::read(event, &mut [0; 8])?;
    Ok(())
}

/// Whoever waits for an interrupt gets it from the new function.
fn interrupts(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    let old = two_events()?;
    nvme.device.set_vectors(&old)?;
    fill(nvme, 1, 8)?;
    // Of a completion that came before, and was not taken.
    let open = put_reads(nvme, 3);
    nvme.ring_io();
    wait_for(nvme, |nvme| nvme.has_completion())?;
    let stream = save(nvme)?;
    load(&other, &stream)?;
    other.enable(true)?;
    let new = two_events()?;
    other.set_vectors(&new)?;
    nvme.go_on_with(other)?;
    go(nvme, State::Running)?;
    has_interrupt(&new[1])?;
    take_all(nvme, open)?;
    all_read(nvme, 3, 8)?;
    while rustix::io::read(&new[1], &mut [0; 8]).is_ok() {}
    // Of one that comes now.
    let cid = nvme.put_read(0, DATA.iova, PAGE);
    nvme.ring_io();
    has_interrupt(&new[1])?;
    succeeded(&nvme.next_completion()?, cid)?;
    Ok(())
}

/// One file from PRE_COPY to the end, and a destination that reads as it comes.
fn pre_copy(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 4, 9)?;
    let source = go(nvme, State::PreCopy)?.ok_or("no file")?;
    let target = other.set_state(State::Resuming)?.ok_or("no file")?;
    let copy = |source: &DataFile, target: &DataFile| -> Result<usize, Stop> {
        let bytes = source.read_all(100)?;
        target.write_all(&bytes, 64)?;
        Ok(bytes.len())
    };
    let first = copy(&source, &target)?;
    check!(first > 0, "nothing to read in PRE_COPY");
    is_at_work(nvme, 9)?;
    check_eq!(copy(&source, &target)?, 0, "bytes after the first ones");
    go(nvme, State::PreCopyP2p)?;
    copy(&source, &target)?;
    go(nvme, State::StopCopy)?;
    check!(copy(&source, &target)? > 0, "nothing to read in STOP_COPY");
    other.set_state(State::Stop)?;
    nvme.go_on_with(other)?;
    go(nvme, State::Running)?;
    is_at_work(nvme, 9)
}

/// A function that nobody has enabled moves as well.
fn not_enabled(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 4, 10)?;
    nvme.disable()?;
    move_to(nvme, other)?;
    check!(!nvme.is_ready(), "the destination is enabled");
    nvme.start_again(Wish::default())?;
    is_at_work(nvme, 10)
}

/// Many moves, each function being source and destination in turn, with a log that is exact all the time.
fn back_and_forth(nvme: &mut Nvme<'_>, mut other: Device) -> Outcome {
    fill(nvme, 4, 11)?;
    for round in 0..6u64 {
        let mut ledger = Ledger::start(nvme, PAGE, &[DATA, QUEUES])?;
        let pages: Pages = (0..50)
            .map(|n| DATA.iova + (round * 60 + n) * PAGE)
            .collect();
        nvme.write_pages(&pages)?;
        ledger.settle(nvme)?;
        nvme.write_pages(&pages)?;
        let stream = save(nvme)?;
        ledger.settle(nvme)?;
        nvme.device.stop_log()?;
        other = arrive(nvme, other, &stream)?;
        is_at_work(nvme, 11)?;
    }
    Ok(())
}

/// A destination that refuses what it gets is no reason for the source to stop.
fn source_goes_on(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 4, 12)?;
    let open = put_reads(nvme, 30);
    nvme.ring_io();
    let mut stream = save(nvme)?;
    let last = stream.len() - 1;
    stream[last / 2] ^= 1;
    check!(
        load(&other, &stream).is_err(),
        "a damaged stream was loaded"
    );
    go(nvme, State::Running)?;
    take_all(nvme, open)?;
    all_read(nvme, 30, 12)?;
    is_at_work(nvme, 12)?;
    // And then it works out.
    other.reset()?;
    move_to(nvme, other)?;
    is_at_work(nvme, 12)
}

/// VMMs refuse a destination whose configuration space is another one. Nothing but what the header says of this
/// machine may differ, by reads of any width.
#[allow(clippy::needless_pass_by_value)] // As every test.
fn configuration_space(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    /// Behind the header, where command, status and BARs are.
    const FROM: u64 = 0x40;
    let whole = |device: &Device| device.read_config::<{ 4096 - FROM as usize }>(FROM);
    let mine = whole(&nvme.device)?;
    let differs = |theirs: &[u8]| mine.iter().zip(theirs).position(|(a, b)| a != b);
    check_eq!(differs(&whole(&other)?), None, "in one read");
    let mut by_width = [Vec::new(), Vec::new(), Vec::new()];
    for at in FROM..4096 {
        by_width[0].extend(other.read_config::<1>(at)?);
        if at % 2 == 0 {
            by_width[1].extend(other.read_config::<2>(at)?);
        }
        if at % 4 == 0 {
            by_width[2].extend(other.read_config::<4>(at)?);
        }
    }
    for (theirs, width) in by_width.iter().zip([1, 2, 4]) {
        check_eq!(differs(theirs), None, "in reads of {width} bytes");
    }
    Ok(())
}

/// The other function can be used by somebody else while this one is stopped, saved and resumed.
fn both_at_work(nvme: &mut Nvme<'_>, other: Device) -> Outcome {
    fill(nvme, 4, 13)?;
    let other_state = other.state()?;
    check_eq!(other_state, State::Running, "state of the other");
    for state in State::ALL {
        if state == State::Resuming {
            continue;
        }
        let _file = nvme.device.set_state(state)?;
        check_eq!(other.state()?, State::Running, "other in {state:?}");
        go(nvme, State::Running)?;
    }
    let _file = other.set_state(State::StopCopy)?;
    is_at_work(nvme, 13)?;
    other.set_state(State::Running)?;
    is_at_work(nvme, 13)?;
    drop(other);
    is_at_work(nvme, 13)
}
