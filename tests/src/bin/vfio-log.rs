// SPDX-License-Identifier: Apache-2.0 OR MIT

//! DMA logging of a VFIO driver: what is reported is what the function wrote, exact to the granule.
//!
//! The function writes pages that the test chooses (it reads blocks into them, and its completion
//! queues are pages too), and the union of reports is compared with them. Needs root, the driver
//! loaded, its back end with the function's card, and a function whose namespace 1 may lose its
//! content. With `--coarse` the function's card has limits so small that granules and ranges have to
//! give way, and only what is then still promised is tested.

use clap::Parser;
use rustix::io::Errno;
use std::process::ExitCode;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::dma::{DATA, LOW, QUEUES};
use zeroshift_tests::vfio::exact::Ledger;
use zeroshift_tests::vfio::log::{pages_of, range, words, Pages, Range, NOWHERE, PAGE};
use zeroshift_tests::vfio::migration::State;
use zeroshift_tests::vfio::nvme::{succeeded, Nvme, Wish, BLOCK};
use zeroshift_tests::vfio::rig::{self, content, fill, with_nvme, Options};
use zeroshift_tests::vfio::walk::{go, works};
use zeroshift_tests::{check, check_eq};

/// Tests DMA logging of a VFIO driver
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// The card tracks little: test only what it can still promise
    #[arg(long)]
    coarse: bool,
}

type Test = (&'static str, fn(&mut Nvme<'_>) -> Outcome);

const EXACT: &[Test] = &[
    ("scattered_pages", scattered_pages),
    ("edges", edges),
    ("parts_of_pages", parts_of_pages),
    ("long_transfers", long_transfers),
    ("completion_queues", completion_queues),
    ("sub_ranges", sub_ranges),
    ("neighbours_below_1m", neighbours_below_1m),
    ("overlapping_reports", overlapping_reports),
    ("untracked", untracked),
    ("bits_are_added", bits_are_added),
    ("report_in_larger_pages", report_in_larger_pages),
    ("many_ranges", many_ranges),
    ("whole_address_space", whole_address_space),
    ("reports_under_load", reports_under_load),
    ("p2p_is_final", p2p_is_final),
    ("stop_and_start", stop_and_start),
    ("second_start", second_start),
    ("without_start", without_start),
    ("wished_granules", wished_granules),
    ("started_while_stopped", started_while_stopped),
    ("stopped_while_stopped", stopped_while_stopped),
    ("runs_while_stopped", runs_while_stopped),
    ("every_state", every_state),
    ("bad_page_size", bad_page_size),
    ("bad_ranges", bad_ranges),
    ("bad_reports", bad_reports),
];

const COARSE: &[Test] = &[
    ("fallback_one_range", fallback_one_range),
    ("fallback_many_ranges", fallback_many_ranges),
    ("fallback_whole_space", fallback_whole_space),
    ("stop_and_start", stop_and_start),
    ("started_while_stopped", started_while_stopped),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let tests = if arguments.coarse { COARSE } else { EXACT };
    let Options {
        driver, function, ..
    } = &arguments.options;
    ExitCode::from(rig::run(&arguments.options, tests, |test, access| {
        with_nvme(driver, function, access, Wish::default(), test)
    }))
}

/// All memory that the function can reach.
fn everything() -> Vec<Range> {
    [DATA, QUEUES].into_iter().chain(LOW).collect()
}

/// The pages of the window for data with these numbers.
fn data_pages(numbers: impl IntoIterator<Item = u64>) -> Pages {
    numbers.into_iter().map(|n| DATA.iova + n * PAGE).collect()
}

/// Pages without a pattern: each number is used once in a while.
fn scatter(seed: u64, count: u64) -> Pages {
    let all = DATA.length / PAGE;
    let mut state = seed;
    data_pages((0..count).map(|_| {
        // Knuth's multiplier; the high bits are good enough.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % all
    }))
}

fn scattered_pages(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
    check_eq!(ledger.granule(), PAGE, "granule");
    ledger.settle(nvme)?;
    for round in 1..=5 {
        let pages = scatter(round, 60);
        nvme.write_pages(&pages)?;
        let reported = ledger.report(nvme, DATA)?;
        check_eq!(reported, pages, "reported in round {round}");
        ledger.settle(nvme)?;
    }
    Ok(())
}

/// First and last pages of what is tracked, and of words and pages of the bitmap.
fn edges(nvme: &mut Nvme<'_>) -> Outcome {
    let last = DATA.length / PAGE - 1;
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    for page in [
        0,
        1,
        31,
        32,
        62,
        63,
        64,
        65,
        127,
        128,
        511,
        512,
        last - 1,
        last,
    ] {
        let pages = data_pages([page]);
        nvme.write_pages(&pages)?;
        check_eq!(ledger.report(nvme, DATA)?, pages, "page {page}");
    }
    ledger.settle(nvme)?;

    // A range that is neither aligned nor a power of two long, and its neighbours outside.
    nvme.device.stop_log()?;
    let odd = range(DATA.iova + 3 * PAGE, 7 * PAGE);
    let mut ledger = Ledger::start(nvme, PAGE, &[odd])?;
    nvme.write_pages(&data_pages(0..16))?;
    check_eq!(ledger.report(nvme, DATA)?, data_pages(3..10), "odd range");
    Ok(ledger.settle(nvme)?)
}

/// A block makes its page dirty; one page of data at an odd place, two.
fn parts_of_pages(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    nvme.read(0, DATA.iova + 5 * PAGE + BLOCK, BLOCK)?;
    check_eq!(ledger.report(nvme, DATA)?, data_pages([5]), "a block");
    nvme.read(0, DATA.iova + 8 * PAGE - BLOCK, BLOCK)?;
    check_eq!(ledger.report(nvme, DATA)?, data_pages([7]), "a last block");
    nvme.read(0, DATA.iova + 9 * PAGE + PAGE / 2, PAGE)?;
    check_eq!(
        ledger.report(nvme, DATA)?,
        data_pages([9, 10]),
        "two halves"
    );
    nvme.identify(DATA.iova + 20 * PAGE)?;
    check_eq!(ledger.report(nvme, DATA)?, data_pages([20]), "Identify");
    Ok(ledger.settle(nvme)?)
}

fn long_transfers(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    for (first, count) in [(0, 2), (60, 8), (500, 32), (700, 128)] {
        nvme.read(0, DATA.iova + first * PAGE, count * PAGE)?;
        let pages = data_pages(first..first + count);
        check_eq!(ledger.report(nvme, DATA)?, pages, "{count} pages");
    }
    // What it reads is not written.
    nvme.write(0, DATA.iova, 16 * PAGE)?;
    check_eq!(
        ledger.report(nvme, DATA)?,
        Pages::new(),
        "pages that it read"
    );
    Ok(ledger.settle(nvme)?)
}

/// The queues of a function are memory that it writes.
fn completion_queues(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &[QUEUES])?;
    ledger.settle(nvme)?;
    works(nvme, DATA.iova)?;
    let io = Pages::from([nvme.queues.io.completion]);
    check_eq!(ledger.report(nvme, QUEUES)?, io, "after a read");
    nvme.identify(DATA.iova)?;
    let admin = Pages::from([nvme.queues.admin.completion]);
    check_eq!(ledger.report(nvme, QUEUES)?, admin, "after Identify");
    Ok(ledger.settle(nvme)?)
}

/// Reports of parts add up to the whole.
fn sub_ranges(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    for step in [1, 3, 64, 100, 511] {
        let pages = scatter(step, 80);
        nvme.write_pages(&pages)?;
        let mut union = Pages::new();
        let mut at = 0;
        while at < DATA.length {
            let length = (step * PAGE).min(DATA.length - at);
            // A page at a time is slow: it is done for a part.
            let length = if step == 1 && at >= 128 * PAGE {
                DATA.length - at
            } else {
                length
            };
            union.append(&mut ledger.report(nvme, range(DATA.iova + at, length))?);
            at += length;
        }
        check_eq!(union, pages, "union of reports of {step} pages");
        check_eq!(ledger.pending(), 0, "pages that were not reported");
    }
    // Backwards, and with writes in between.
    let half = DATA.length / 2;
    nvme.write_pages(&scatter(7, 40))?;
    ledger.report(nvme, range(DATA.iova + half, half))?;
    nvme.write_pages(&scatter(8, 40))?;
    ledger.report(nvme, range(DATA.iova, half))?;
    Ok(ledger.settle(nvme)?)
}

/// The memory of a PC below 1 MiB as QEMU asks for it: sections at odd places, side by side, some of
/// them not tracked as such.
fn neighbours_below_1m(nvme: &mut Nvme<'_>) -> Outcome {
    let tracked = range(0xc_0000, 0x4_0000);
    let mut ledger = Ledger::start(nvme, PAGE, &[range(0, 0xa_0000), tracked, DATA])?;
    let pages: Pages = LOW.iter().flat_map(|window| window.pages()).collect();
    for _ in 0..2 {
        nvme.write_pages(&pages)?;
        let mut union = Pages::new();
        for (iova, length) in [
            (0, 0xa_0000),
            (0xa_0000, 0x2_0000),
            (0xc_0000, 0xa000),
            (0xc_a000, 0x3000),
            (0xc_d000, 0x1000),
            (0xc_e000, 0x1_6000),
            (0xe_4000, 0xc000),
            (0xf_0000, 0x1_0000),
            (0x10_0000, 0x1000),
        ] {
            union.append(&mut ledger.report(nvme, range(iova, length))?);
        }
        check_eq!(union, pages, "union of the sections");
        ledger.settle(nvme)?;
    }
    Ok(())
}

/// What two reports share is in the first one.
fn overlapping_reports(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    let all = data_pages(0..100);
    nvme.write_pages(&all)?;
    let part = |first: u64, count: u64| range(DATA.iova + first * PAGE, count * PAGE);
    let first = ledger.report(nvme, part(20, 40))?;
    check_eq!(first, data_pages(20..60), "the first report");
    let second = ledger.report(nvme, part(40, 40))?;
    check_eq!(second, data_pages(60..80), "the second report");
    let third = ledger.report(nvme, part(0, 100))?;
    check_eq!(
        third,
        data_pages((0..20).chain(80..100)),
        "the third report"
    );
    Ok(ledger.settle(nvme)?)
}

/// Writes outside of what is tracked are nobody's business, and asking for them is no error.
fn untracked(nvme: &mut Nvme<'_>) -> Outcome {
    let tracked = range(DATA.iova + 64 * PAGE, 64 * PAGE);
    let mut ledger = Ledger::start(nvme, PAGE, &[tracked])?;
    nvme.write_pages(&data_pages(0..192))?;
    check_eq!(ledger.report(nvme, QUEUES)?, Pages::new(), "the queues");
    let before = range(DATA.iova, 64 * PAGE);
    check_eq!(ledger.report(nvme, before)?, Pages::new(), "before it");
    let after = range(DATA.iova + 128 * PAGE, 64 * PAGE);
    check_eq!(ledger.report(nvme, after)?, Pages::new(), "behind it");
    let far = range(1 << 46, PAGE);
    check_eq!(ledger.report(nvme, far)?, Pages::new(), "far away");
    let all = ledger.report(nvme, DATA)?;
    check_eq!(all, data_pages(64..128), "around it");
    Ok(ledger.settle(nvme)?)
}

/// A report sets bits and clears none, and touches nothing beside its bitmap.
fn bits_are_added(nvme: &mut Nvme<'_>) -> Outcome {
    const GUARD: u64 = 0x5a5a_5a5a_5a5a_5a5a;
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    nvme.write_pages(&data_pages([0, 64, 100]))?;
    let part = range(DATA.iova, 120 * PAGE);
    let mut bitmap = vec![GUARD; 1 + words(part.length, PAGE) + 1];
    bitmap[1] = 1 << 5;
    bitmap[2] = 1 << 63;
    nvme.device.report_into(part, PAGE, &mut bitmap[1..3])?;
    let expected = [GUARD, 1 | 1 << 5, 1 | 1 << 36 | 1 << 63, GUARD];
    check_eq!(bitmap, expected, "the bitmap");
    ledger.note(nvme);
    ledger.compare(part, &data_pages([0, 64, 100]))?;
    Ok(ledger.settle(nvme)?)
}

/// A bit stands for a page of the size that the report asks for, whatever the log has.
fn report_in_larger_pages(nvme: &mut Nvme<'_>) -> Outcome {
    nvme.device.start_log(PAGE, &[DATA])?;
    for size in [2 * PAGE, 16 * PAGE, 512 * PAGE] {
        let pages = scatter(size, 10);
        nvme.write_pages(&pages)?;
        let expected: Pages = pages
            .iter()
            .flat_map(|page| range(page / size * size, size).pages())
            .collect();
        let reported = nvme.device.report_in(DATA, size)?;
        check_eq!(reported, expected, "in units of {size:#x}");
        check_eq!(nvme.device.report(DATA)?, Pages::new(), "reported again");
    }
    Ok(())
}

/// As many ranges as the uAPI promises, each a page, with a page between them.
fn many_ranges(nvme: &mut Nvme<'_>) -> Outcome {
    let ranges: Vec<Range> = (0..256)
        .map(|n| range(DATA.iova + 2 * n * PAGE, PAGE))
        .collect();
    let mut ledger = Ledger::start(nvme, PAGE, &ranges)?;
    nvme.write_pages(&data_pages(0..512))?;
    let reported = ledger.report(nvme, DATA)?;
    check_eq!(
        reported,
        data_pages((0..256).map(|n| 2 * n)),
        "every other page"
    );
    Ok(ledger.settle(nvme)?)
}

/// The ranges of a guest with a 64-bit PCI hole: little memory, a span of terabytes.
fn whole_address_space(nvme: &mut Nvme<'_>) -> Outcome {
    let hole = range(1 << 32, (1 << 45) - (1 << 32));
    let low = range(0, 1 << 31);
    let mut ledger = Ledger::start(nvme, PAGE, &[low, hole])?;
    for seed in 1..4 {
        let pages = scatter(seed, 40);
        nvme.write_pages(&pages)?;
        check_eq!(ledger.report(nvme, DATA)?, pages, "of {low:x?}");
        let far = range((1 << 45) - (1 << 30), 1 << 30);
        check_eq!(ledger.report(nvme, far)?, Pages::new(), "far away");
    }
    ledger.report(nvme, low)?;
    nvme.device.stop_log()?;

    // More than the card has bits for at 4 KiB: the granule gives way.
    let start = 1u64 << 32;
    let end = 1u64 << 53;
    let mut ledger = Ledger::start(nvme, PAGE, &[low, range(start, end - start)])?;
    check!(ledger.granule() > PAGE, "granule {:#x}", ledger.granule());
    nvme.write_pages(&scatter(9, 40))?;
    ledger.report(nvme, low)?;
    let last = range(end - PAGE, PAGE);
    check_eq!(ledger.report(nvme, last)?, Pages::new(), "the last page");
    nvme.device.stop_log()?;

    // To the end of what an address can be, which is more than the card has bits for at 2 MiB.
    let all = range(start, !(PAGE - 1) - start);
    let start = |nvme: &Nvme<'_>| nvme.device.start_log(PAGE, &[low, all]);
    refused_start(nvme, start, Errno::NOSPC, "2^64 bytes")?;
    let mut ledger = Ledger::start(nvme, PAGE, &[low, hole])?;
    nvme.write_pages(&scatter(10, 40))?;
    Ok(ledger.report(nvme, low).map(drop)?)
}

/// Reports while the function writes: the union misses nothing.
fn reports_under_load(nvme: &mut Nvme<'_>) -> Outcome {
    let granule = nvme.device.start_log(PAGE, &[DATA])?;
    check_eq!(granule, PAGE, "granule");
    for round in 0..5 {
        let first = round * 100;
        let mut union = Pages::new();
        let mut open = Vec::new();
        for page in first..first + 60 {
            open.push(nvme.put_read(0, DATA.iova + page * PAGE, PAGE));
        }
        nvme.ring_io();
        while !open.is_empty() {
            union.append(&mut nvme.device.report(DATA)?);
            let completion = nvme.next_completion()?;
            let place = open.iter().position(|cid| *cid == completion.cid);
            let cid = open.remove(place.ok_or("a command completed twice")?);
            succeeded(&completion, cid)?;
        }
        union.append(&mut nvme.device.report(DATA)?);
        check_eq!(
            union,
            data_pages(first..first + 60),
            "union of round {round}"
        );
    }
    Ok(())
}

/// A report in P2P has everything that the function did before, and nothing comes after it.
fn p2p_is_final(nvme: &mut Nvme<'_>) -> Outcome {
    const COUNT: u64 = 60;
    fill(nvme, 1, 9)?;
    nvme.device.start_log(PAGE, &[DATA])?;
    for round in 0..5 {
        let mut open = Vec::new();
        let empty = vec![0; PAGE as usize];
        for page in 0..COUNT {
            nvme.dma().write(DATA.iova + page * PAGE, &empty);
            open.push(nvme.put_read(0, DATA.iova + page * PAGE, PAGE));
        }
        nvme.ring_io();
        go(nvme, State::RunningP2p)?;
        let done = data_pages(
            (0..COUNT).filter(|page| nvme.dma().page(DATA.iova + page * PAGE) == content(0, 9)),
        );
        let reported = nvme.device.report(DATA)?;
        check_eq!(reported, done, "pages written before P2P, round {round}");
        check_eq!(nvme.device.report(DATA)?, Pages::new(), "written in P2P");
        for page in (0..COUNT).filter(|page| !done.contains(&(DATA.iova + page * PAGE))) {
            let page = nvme.dma().page(DATA.iova + page * PAGE);
            check!(page == empty, "half a page was written");
        }
        go(nvme, State::Running)?;
        while !open.is_empty() {
            let completion = nvme.next_completion()?;
            let place = open.iter().position(|cid| *cid == completion.cid);
            let cid = open.remove(place.ok_or("a command completed twice")?);
            succeeded(&completion, cid)?;
        }
        let rest = data_pages(0..COUNT).difference(&done).copied().collect();
        check_eq!(nvme.device.report(DATA)?, rest, "the rest of round {round}");
    }
    Ok(())
}

/// After a stop there is no log, and the next one knows nothing of the one before.
fn stop_and_start(nvme: &mut Nvme<'_>) -> Outcome {
    for seed in 0..3 {
        let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
        nvme.write_pages(&scatter(seed, 20))?;
        if seed > 0 {
            ledger.settle(nvme)?;
        }
        nvme.write_pages(&scatter(seed + 10, 20))?;
        nvme.device.stop_log()?;
        check_eq!(
            nvme.device.report(DATA),
            Err(Errno::INVAL),
            "report after stop"
        );
        check_eq!(nvme.device.stop_log(), Ok(()), "a second stop");
        nvme.write_pages(&scatter(seed + 20, 20))?;
    }
    let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
    Ok(ledger.settle(nvme)?)
}

/// A second start is refused, and the log goes on.
fn second_start(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    nvme.write_pages(&scatter(1, 20))?;
    for ranges in [[DATA], [QUEUES]] {
        let refused = nvme.device.start_log(PAGE, &ranges);
        check_eq!(refused, Err(Errno::ALREADY), "a second start");
    }
    nvme.write_pages(&scatter(2, 20))?;
    Ok(ledger.settle(nvme)?)
}

fn without_start(nvme: &mut Nvme<'_>) -> Outcome {
    check_eq!(nvme.device.report(DATA), Err(Errno::INVAL), "report");
    check_eq!(nvme.device.stop_log(), Ok(()), "stop");
    for state in [State::Stop, State::RunningP2p, State::PreCopy] {
        let _file = nvme.device.set_state(state)?;
        check_eq!(nvme.device.report(DATA), Err(Errno::INVAL), "in {state:?}");
        check_eq!(nvme.device.stop_log(), Ok(()), "stop in {state:?}");
    }
    go(nvme, State::Running)?;
    Ok(works(nvme, DATA.iova)?)
}

/// Whatever is wished for, the log is exact to what is answered, and that is no coarser than the
/// wish unless the card cannot.
fn wished_granules(nvme: &mut Nvme<'_>) -> Outcome {
    for shift in [12, 13, 16, 20, 21, 22] {
        let wish = 1u64 << shift;
        let mut ledger = Ledger::start(nvme, wish, &[DATA])?;
        check!(
            ledger.granule() <= wish,
            "wished for {wish:#x}, got {:#x}",
            ledger.granule()
        );
        for seed in 0..3 {
            nvme.write_pages(&scatter(seed * 100 + shift, 5))?;
            let part = range(DATA.iova + 100 * PAGE, 300 * PAGE);
            ledger.report(nvme, part)?;
            ledger.settle(nvme)?;
        }
        nvme.device.stop_log()?;
    }
    // More than the card has, and less than a page.
    for (wish, ranges) in [(1 << 30, [range(0, 1 << 30)]), (2048, [DATA]), (1, [DATA])] {
        let mut ledger = Ledger::start(nvme, wish, &ranges)?;
        nvme.write_pages(&scatter(wish, 5))?;
        ledger.settle(nvme)?;
        nvme.device.stop_log()?;
    }
    Ok(())
}

/// States in which a function does not run, and from which it comes back with all it had.
const SUSPENDED: [State; 4] = [
    State::RunningP2p,
    State::Stop,
    State::StopCopy,
    State::PreCopyP2p,
];

/// A log that starts while the function is suspended is empty until it runs, and then everything is
/// dirty once.
fn started_while_stopped(nvme: &mut Nvme<'_>) -> Outcome {
    for state in SUSPENDED {
        works(nvme, DATA.iova)?;
        let file = go(nvme, state)?;
        let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
        check_eq!(
            nvme.device.report(DATA)?,
            Pages::new(),
            "report in {state:?}"
        );
        drop(file);
        go(nvme, State::Running)?;
        ledger.all_dirty();
        ledger.settle(nvme)?;
        nvme.write_pages(&scatter(state as u64, 30))?;
        ledger.settle(nvme)?;
        nvme.device.stop_log()?;
    }
    Ok(())
}

/// A log can be ended, and started again, while the function is suspended.
fn stopped_while_stopped(nvme: &mut Nvme<'_>) -> Outcome {
    for state in SUSPENDED {
        Ledger::start(nvme, PAGE, &[DATA])?;
        nvme.write_pages(&scatter(1, 20))?;
        let file = go(nvme, state)?;
        nvme.device.stop_log()?;
        check_eq!(nvme.device.report(DATA), Err(Errno::INVAL), "in {state:?}");
        let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
        drop(file);
        go(nvme, State::Running)?;
        ledger.all_dirty();
        ledger.settle(nvme)?;
        go(nvme, State::Stop)?;
        nvme.device.stop_log()?;
        go(nvme, State::Running)?;
        check_eq!(
            nvme.device.report(DATA),
            Err(Errno::INVAL),
            "after {state:?}"
        );
        works(nvme, DATA.iova)?;
    }
    Ok(())
}

/// A stopped function that runs, because its controller was reset by its registers, is no news that a
/// report may keep to itself: what it writes next is not in it.
fn runs_while_stopped(nvme: &mut Nvme<'_>) -> Outcome {
    for log_first in [true, false] {
        go(nvme, State::Stop)?;
        if log_first {
            nvme.device.start_log(PAGE, &[DATA])?;
        }
        nvme.disable()?;
        if !log_first {
            nvme.device.start_log(PAGE, &[DATA])?;
        }
        let error = nvme.device.report(DATA).err();
        check_eq!(error, Some(Errno::IO), "report, log first {log_first}");
        go(nvme, State::Running)?;
        nvme.device.stop_log()?;
        nvme.start_again(Wish::default())?;
        works(nvme, DATA.iova)?;
    }
    Ok(())
}

/// What was written before is reported in any state, once.
fn every_state(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &everything())?;
    for state in SUSPENDED.into_iter().chain([State::PreCopy]) {
        nvme.write_pages(&scatter(state as u64, 30))?;
        let file = go(nvme, state)?;
        ledger.settle(nvme)?;
        drop(file);
        go(nvme, State::Running)?;
        ledger.settle(nvme)?;
        // And not asked for before it runs again.
        nvme.write_pages(&scatter(state as u64 + 10, 30))?;
        go(nvme, State::Stop)?;
        go(nvme, State::Running)?;
        ledger.settle(nvme)?;
    }
    Ok(())
}

/// A start that is refused leaves no log, and the next one works.
fn refused_start(
    nvme: &mut Nvme<'_>,
    start: impl FnOnce(&Nvme<'_>) -> Result<u64, Errno>,
    with: Errno,
    what: &str,
) -> Outcome {
    check_eq!(start(nvme), Err(with), "{what}");
    check_eq!(
        nvme.device.report(DATA),
        Err(Errno::INVAL),
        "report after {what}"
    );
    Ok(())
}

fn bad_page_size(nvme: &mut Nvme<'_>) -> Outcome {
    for size in [0, 3, 4095, 4097, 12288, u64::MAX] {
        let what = format!("page_size {size}");
        // Aligned to anything that the core may ask for.
        let ranges = [range(0, 0x3000_0000)];
        let start = |nvme: &Nvme<'_>| nvme.device.start_log(size, &ranges);
        refused_start(nvme, start, Errno::INVAL, &what)?;
    }
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    nvme.write_pages(&scatter(1, 10))?;
    Ok(ledger.settle(nvme)?)
}

fn bad_ranges(nvme: &mut Nvme<'_>) -> Outcome {
    let cases: &[(&str, &[Range], Errno)] = &[
        ("no length", &[range(DATA.iova, 0)], Errno::INVAL),
        ("no length at 0", &[range(0, 0)], Errno::INVAL),
        (
            "one of two has no length",
            &[DATA, range(0, 0)],
            Errno::INVAL,
        ),
        (
            "an odd start",
            &[range(DATA.iova + 512, PAGE)],
            Errno::INVAL,
        ),
        (
            "an odd length",
            &[range(DATA.iova, PAGE + 512)],
            Errno::INVAL,
        ),
        ("the same range twice", &[DATA, DATA], Errno::INVAL),
        (
            "ranges that overlap",
            &[DATA, range(DATA.iova + DATA.length - PAGE, 2 * PAGE)],
            Errno::INVAL,
        ),
        (
            "an end beyond 2^64",
            &[range(!0xfff, 2 * PAGE)],
            Errno::OVERFLOW,
        ),
        ("no ranges", &[], Errno::INVAL),
    ];
    for (what, ranges, with) in cases {
        let start = |nvme: &Nvme<'_>| nvme.device.start_log(PAGE, ranges);
        refused_start(nvme, start, *with, what)?;
    }
    let many: Vec<Range> = (0..257).map(|n| range(n * 2 * PAGE, PAGE)).collect();
    let start = |nvme: &Nvme<'_>| nvme.device.start_log(PAGE, &many);
    refused_start(nvme, start, Errno::TOOBIG, "257 ranges")?;
    let start = |nvme: &Nvme<'_>| nvme.device.start_log_with(PAGE, 1, 0, NOWHERE);
    refused_start(nvme, start, Errno::FAULT, "ranges nowhere")?;
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    nvme.write_pages(&scatter(1, 10))?;
    Ok(ledger.settle(nvme)?)
}

/// Bad reports are refused, or say nothing; good ones still work.
fn bad_reports(nvme: &mut Nvme<'_>) -> Outcome {
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    nvme.write_pages(&scatter(1, 20))?;
    for size in [0, 1, 2048, 4097, 12288] {
        let result = nvme.device.report_into(DATA, size, &mut [0; 64]);
        check_eq!(result, Err(Errno::INVAL), "page_size {size}");
    }
    let beyond = range(u64::MAX - PAGE + 1, 2 * PAGE);
    let result = nvme.device.report_into(beyond, PAGE, &mut [0; 2]);
    check_eq!(result, Err(Errno::OVERFLOW), "an end beyond 2^64");
    // Nothing of nothing is not refused by every kernel; it must do no harm.
    let mut bitmap = [0; 1];
    let _ = nvme
        .device
        .report_into(range(DATA.iova, 0), PAGE, &mut bitmap);
    check_eq!(bitmap, [0], "bits of no length");
    // Not aligned: what it overlaps.
    let mut bitmap = [0; 2];
    let odd = range(DATA.iova + 512, 16 * PAGE - 512);
    nvme.device.report_into(odd, PAGE, &mut bitmap)?;
    ledger.note(nvme);
    let reported = pages_of(&bitmap, DATA.iova, PAGE);
    ledger.compare(range(DATA.iova, 16 * PAGE), &reported)?;
    ledger.settle(nvme)?;

    // A bitmap that is not there: the log may be lost by that, the driver not.
    nvme.write_pages(&scatter(2, 20))?;
    let _ = nvme.device.report_to_nowhere(DATA, PAGE);
    nvme.take_written();
    nvme.device.stop_log()?;
    let mut ledger = Ledger::start(nvme, PAGE, &[DATA])?;
    nvme.write_pages(&scatter(3, 20))?;
    Ok(ledger.settle(nvme)?)
}

/// The card's smallest granule is coarser than the wish.
fn fallback_one_range(nvme: &mut Nvme<'_>) -> Outcome {
    for wish in [PAGE, 1 << 21] {
        let mut ledger = Ledger::start(nvme, wish, &[DATA])?;
        check!(ledger.granule() > PAGE, "this card is not coarse");
        for seed in 0..5 {
            nvme.write_pages(&scatter(seed, 8))?;
            ledger.report(nvme, range(DATA.iova, 300 * PAGE))?;
            ledger.settle(nvme)?;
        }
        nvme.device.stop_log()?;
    }
    Ok(())
}

/// More ranges than the card has descriptors: nothing is missing.
fn fallback_many_ranges(nvme: &mut Nvme<'_>) -> Outcome {
    let ranges: Vec<Range> = (0..256)
        .map(|n| range(DATA.iova + 4 * n * PAGE, PAGE))
        .collect();
    nvme.device.start_log(PAGE, &ranges)?;
    nvme.take_written();
    for seed in 0..5 {
        let pages = scatter(seed, 40);
        nvme.write_pages(&pages)?;
        let reported = nvme.device.report(DATA)?;
        let tracked = |page: &&u64| ranges.iter().any(|range| range.iova == **page);
        let missing: Vec<_> = pages
            .iter()
            .filter(tracked)
            .filter(|page| !reported.contains(page))
            .collect();
        check!(missing.is_empty(), "not reported: {missing:x?}");
        let again = nvme.device.report(DATA)?;
        check_eq!(again, Pages::new(), "reported again");
    }
    Ok(())
}

/// Little memory in a span of terabytes, on a card with few descriptors.
fn fallback_whole_space(nvme: &mut Nvme<'_>) -> Outcome {
    let ranges = [
        range(0, 0xa_0000),
        range(0xc_0000, 0x4_0000),
        range(0x10_0000, 0x4000_0000),
        range(1 << 32, 1 << 32),
        range(1 << 40, 1 << 40),
    ];
    let granule = nvme.device.start_log(PAGE, &ranges)?;
    nvme.take_written();
    for seed in 0..3 {
        let pages = scatter(seed, 10);
        nvme.write_pages(&pages)?;
        let reported = nvme.device.report(DATA)?;
        check!(reported.is_superset(&pages), "pages are missing");
        let near = |page: &u64| pages.iter().any(|p| p.abs_diff(*page) < granule);
        check!(reported.iter().all(near), "too much, with {granule:#x}");
    }
    Ok(())
}
