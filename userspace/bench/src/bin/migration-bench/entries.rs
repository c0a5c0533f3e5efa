// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `passthrough.entries_per_io`: how often the kernel enters our modules for an I/O of a function that runs, and,
//! for information, its I/Os per second beside those with plain vfio-pci.

use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{ensure, Result};
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use serde_json::{json, Value};
use zeroshift_bench::report::{Figure, Goal, Spread};
use zeroshift_tests::vfio::dma::DATA;
use zeroshift_tests::vfio::log::PAGE;
use zeroshift_tests::vfio::nvme::{succeeded, Nvme, Wish};
use zeroshift_tests::vfio::rig::{function, open, Setup};

use crate::probes::Probes;
use crate::{ACCESS, DRIVER, PLAIN};

/// The figure.
pub(crate) const FIGURE: Figure = Figure {
    name: "passthrough.entries_per_io",
    unit: "entries",
    goal: Goal::AtMost(0.0),
};

/// How long an interrupt may take.
const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};
/// I/Os of one repeat.
const IOS: u64 = 1000;
/// Repeats of which the fastest counts: whatever else the machine does only makes one slower.
const TRIES: u32 = 3;
/// The modules that should not notice.
const MODULES: [&str; 2] = ["zeroshift_vfio_pci", "migdirty"];

/// Entries per I/O, each I/O with its interrupt.
pub(crate) fn measure(address: &str, pairs: u32) -> Result<Value> {
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for turn in 0..=pairs {
        let order = if turn % 2 == 0 {
            [DRIVER, PLAIN]
        } else {
            [PLAIN, DRIVER]
        };
        for driver in order {
            let rate = with_function(address, driver, |nvme, event| {
                let mut best = 0.0f64;
                for _ in 0..TRIES {
                    let begin = Instant::now();
                    run(nvme, event)?;
                    best = best.max(IOS as f64 / begin.elapsed().as_secs_f64());
                }
                Ok(best)
            })?;
            match driver {
                // The first pair warms both sides up.
                _ if turn == 0 => {}
                DRIVER => ours.push(rate),
                _ => plain.push(rate),
            }
        }
    }
    // Apart from the rates, which probes would spoil.
    let (entries, control, probed) = with_function(address, DRIVER, |nvme, event| {
        let probes = Probes::new(&MODULES)?;
        let begin = probes.hits()?;
        run(nvme, event)?;
        let end = probes.hits()?;
        // Counting nothing has to be different from not counting.
        nvme.device.state()?;
        let control = probes.hits()? - end;
        ensure!(
            control > 0,
            "the probes do not see an ioctl that the driver answers"
        );
        Ok((end - begin, control, probes.probed))
    })?;
    let ratio = Spread::of(ours.iter().zip(&plain).map(|(ours, plain)| ours / plain));
    let (ours, plain) = (Spread::of(ours), Spread::of(plain));
    let raw = json!({
        "entries": entries, "ios": IOS, "functions_probed": probed,
        "entries_of_one_ioctl": control,
        "iops": ours, "iops_of_vfio_pci": plain, "iops_ratio": ratio, "iops_ratio_of_best": ours.max / plain.max, "pairs": pairs,
        "tries": TRIES,
    });
    let value = Spread::of([entries as f64 / IOS as f64]);
    Ok(FIGURE.measured(&value, &raw))
}

/// Starts the function with `driver` and an interrupt for its I/O queue.
fn with_function<T>(
    address: &str,
    driver: &str,
    measure: impl FnOnce(&mut Nvme<'_>, &OwnedFd) -> Result<T>,
) -> Result<T> {
    let Setup { dma, mut devices } = open(driver, &[&function(address)], ACCESS)?;
    let wish = Wish {
        entries: 64,
        vector: Some(1),
    };
    let mut nvme = Nvme::start(devices.remove(0), &dma, wish)?;
    let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let events = [event()?, event()?];
    nvme.device.set_vectors(&events)?;
    let result = measure(&mut nvme, &events[1])?;
    nvme.device.clear_vectors()?;
    Ok(result)
}

/// Reads of a page one after another, each waited for by its interrupt, as a guest does with a queue depth of one.
fn run(nvme: &mut Nvme<'_>, event: &OwnedFd) -> Result<()> {
    for _ in 0..IOS {
        let cid = nvme.put_read(0, DATA.iova, PAGE);
        nvme.ring_io();
        let came = poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&LIMIT))?;
        ensure!(came == 1, "no interrupt for a read in {} s", LIMIT.tv_sec);
        rustix::io::read(event, &mut [0; 8])?;
        let completion = nvme.next_completion()?;
        succeeded(&completion, cid)?;
    }
    Ok(())
}
