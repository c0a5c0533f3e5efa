// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What every VFIO driver of an NVMe function has to do: regions, configuration space, DMA,
//! interrupts, resets, by its group and by its character device.
//!
//! Run with vfio-pci it tests this layer; run with another driver, that the driver takes nothing
//! away. Needs root, the driver loaded, and a function whose namespace 1 may lose its content.

use clap::Parser;
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, VFIO_DEVICE_FEATURE_MIGRATION,
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FLAGS_PCI,
    VFIO_DEVICE_FLAGS_RESET,
};
use zeroshift_nvme::identify::IdentifyController;
use zeroshift_tests::ktap::{Outcome, Stop};
use zeroshift_tests::vfio::dma::{DATA, LOW, QUEUES};
use zeroshift_tests::vfio::log::PAGE;
use zeroshift_tests::vfio::nvme::{Nvme, Wish, BLOCKS_OF_PAGE};
use zeroshift_tests::vfio::rig::{self, content, fill, open, with_nvme, Options};
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::{check, check_eq};

/// Tests a VFIO driver with an NVMe function, as far as plain vfio-pci goes
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// The function has the features of migration and logging
    #[arg(long)]
    migratable: bool,
    /// The kernel has no IOMMUFD, so the function has those of migration only
    #[arg(long)]
    no_log: bool,
}

type Test = (&'static str, fn(&Arguments, Access) -> Outcome);

const TESTS: &[Test] = &[
    ("device", device),
    ("config_space", config_space),
    ("identify", identify),
    ("data", data),
    ("many_at_once", many_at_once),
    ("interrupts", interrupts),
    ("maps", maps),
    ("reset", reset),
    ("reset_by_guest", reset_by_guest),
    ("close_while_running", close_while_running),
    ("features", features),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ExitCode::from(rig::run(&arguments.options, TESTS, |test, access| {
        test(&arguments, access)
    }))
}

/// A started function.
fn running(
    arguments: &Arguments,
    access: Access,
    wish: Wish,
    test: impl FnOnce(&mut Nvme<'_>) -> Outcome,
) -> Outcome {
    let Options {
        driver, function, ..
    } = &arguments.options;
    with_nvme(driver, function, access, wish, test)
}

fn device(arguments: &Arguments, access: Access) -> Outcome {
    let function = rig::function(&arguments.options.function);
    let setup = open(&arguments.options.driver, &[&function], access)?;
    let device = &setup.devices[0];
    let (flags, regions, interrupts) = device.info()?;
    let wanted = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
    check_eq!(flags & wanted, wanted, "flags of the device");
    check!(regions >= 9 && interrupts >= 5, "{regions}, {interrupts}");
    check!(
        device.bar_size() >= 8192,
        "BAR0 has {} bytes",
        device.bar_size()
    );
    check!(device.vectors()? > 0, "no MSI-X");
    Ok(())
}

fn config_space(arguments: &Arguments, access: Access) -> Outcome {
    let function = rig::function(&arguments.options.function);
    let setup = open(&arguments.options.driver, &[&function], access)?;
    let device = &setup.devices[0];
    let of_sysfs = |name: &str| -> Result<u16, Stop> {
        let path = format!("/sys/bus/pci/devices/{}/{name}", function.address);
        let text = fs::read_to_string(path)?;
        Ok(u16::from_str_radix(
            text.trim().trim_start_matches("0x"),
            16,
        )?)
    };
    let ids = (of_sysfs("vendor")?, of_sysfs("device")?);
    check_eq!(device.ids()?, ids, "vendor and device");
    check!(!device.is_master()?, "bus master of a device just opened");
    device.enable(true)?;
    check!(device.is_master()?, "bus master is not set");
    device.enable(false)?;
    check!(!device.is_master()?, "bus master is not cleared");
    check_eq!(
        device.read_bar32(0),
        Err(Errno::IO),
        "BAR0 with memory space off"
    );
    check!(device.capability(0x11)?.is_some(), "no MSI-X capability");
    check!(device.capability(0x10)?.is_some(), "no Express capability");
    Ok(())
}

fn identify(arguments: &Arguments, access: Access) -> Outcome {
    running(arguments, access, Wish::default(), |nvme| {
        let page = DATA.iova;
        nvme.identify(page)?;
        let page: [u8; PAGE as usize] = nvme.dma().page(page).try_into().unwrap();
        let identify = IdentifyController::new(&page);
        check_eq!(identify.cntrltype(), 1, "type of controller");
        check!(identify.nn() >= 1, "no namespace");
        check!(nvme.is_ready(), "not ready");
        Ok(())
    })
}

/// Reads into pages of every window, single ones and lists.
fn data(arguments: &Arguments, access: Access) -> Outcome {
    running(arguments, access, Wish::default(), |nvme| {
        const PAGES: u64 = 32;
        fill(nvme, PAGES, 1)?;
        let dma = nvme.dma();
        for window in LOW.into_iter().chain([DATA]) {
            let pages = PAGES.min(window.length / PAGE);
            for length in [1, 2, pages] {
                for page in 0..length {
                    dma.write(window.iova + page * PAGE, &[0xee; PAGE as usize]);
                }
                let first = PAGES - length;
                nvme.read(first * BLOCKS_OF_PAGE, window.iova, length * PAGE)?;
                for page in 0..length {
                    let read = dma.page(window.iova + page * PAGE);
                    check!(
                        read == content(first + page, 1),
                        "page {page} of {length} at {:#x} is not what was written",
                        window.iova
                    );
                }
            }
        }
        Ok(())
    })
}

/// More commands than the queue has entries, so that it turns over and the phase changes.
fn many_at_once(arguments: &Arguments, access: Access) -> Outcome {
    let wish = Wish {
        entries: 8,
        ..Wish::default()
    };
    running(arguments, access, wish, |nvme| {
        fill(nvme, 1, 2)?;
        let pages = (0..50).map(|i| DATA.iova + 2 * i * PAGE).collect();
        nvme.take_written();
        nvme.write_pages(&pages)?;
        for page in &pages {
            check!(
                nvme.dma().page(*page) == content(0, 2),
                "{page:#x} was not read"
            );
        }
        let queue = nvme.queues.io.completion;
        let mut expected = pages;
        expected.insert(queue);
        check_eq!(nvme.take_written(), expected, "pages that it wrote");
        Ok(())
    })
}

fn interrupts(arguments: &Arguments, access: Access) -> Outcome {
    let wish = Wish {
        vector: Some(1),
        ..Wish::default()
    };
    running(arguments, access, wish, |nvme| {
        let events: Vec<OwnedFd> = (0..2)
            .map(|_| eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC))
            .collect::<Result<_, _>>()?;
        nvme.device.set_vectors(&events)?;
        nvme.device.trigger_vector(0)?;
        check_eq!(count(&events[0])?, 1, "events of a vector that we signal");

        nvme.read(0, DATA.iova, PAGE)?;
        let limit = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let mut wait = [PollFd::new(&events[1], PollFlags::IN)];
        check_eq!(poll(&mut wait, Some(&limit))?, 1, "interrupts of a read");
        check_eq!(count(&events[1])?, 1, "interrupts of a read");
        nvme.device.clear_vectors()?;
        Ok(())
    })
}

fn count(event: &OwnedFd) -> Result<u64, Stop> {
    let mut bytes = [0; 8];
    rustix::io::read(event, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A window can be unmapped, mapped again and used.
fn maps(arguments: &Arguments, access: Access) -> Outcome {
    running(arguments, access, Wish::default(), |nvme| {
        let space = &nvme.dma().space;
        let [low, ..] = LOW;
        space.unmap(low.iova, low.length)?;
        let other = zeroshift_tests::vfio::memory::Memory::new(PAGE as usize)?;
        space.map(low.iova, &other, 0, PAGE as usize)?;
        fill(nvme, 1, 3)?;
        nvme.read(0, low.iova, PAGE)?;
        let mut page = vec![0; PAGE as usize];
        other.read(0, &mut page);
        check!(page == content(0, 3), "the new memory was not written");
        check!(
            space.map(QUEUES.iova, &other, 0, PAGE as usize).is_err(),
            "mapped where something is"
        );
        Ok(())
    })
}

fn reset(arguments: &Arguments, access: Access) -> Outcome {
    reset_by(arguments, access, |nvme| Ok(nvme.device.reset()?))
}

fn reset_by_guest(arguments: &Arguments, access: Access) -> Outcome {
    reset_by(arguments, access, |nvme| {
        Ok(nvme.device.reset_by_guest()?)
    })
}

/// After a reset the controller is disabled, and can be used again.
fn reset_by(
    arguments: &Arguments,
    access: Access,
    reset: impl Fn(&Nvme<'_>) -> Outcome,
) -> Outcome {
    running(arguments, access, Wish::default(), |nvme| {
        fill(nvme, 1, 4)?;
        for _ in 0..3 {
            reset(nvme)?;
            nvme.device.enable(true)?;
            check!(!nvme.is_ready(), "ready after a reset");
            nvme.start_again(Wish::default())?;
            nvme.dma().write(DATA.iova, &[0; PAGE as usize]);
            nvme.read(0, DATA.iova, PAGE)?;
            check!(
                nvme.dma().page(DATA.iova) == content(0, 4),
                "wrong data after a reset"
            );
        }
        Ok(())
    })
}

/// A device that is closed while it runs cannot reach memory any more, and can be opened again.
fn close_while_running(arguments: &Arguments, access: Access) -> Outcome {
    running(arguments, access, Wish::default(), |nvme| {
        nvme.put_read(0, DATA.iova, PAGE);
        nvme.ring_io();
        Ok(())
    })?;
    identify(arguments, access)
}

/// The features of migration are all there, or none is.
fn features(arguments: &Arguments, access: Access) -> Outcome {
    let function = rig::function(&arguments.options.function);
    let setup = open(&arguments.options.driver, &[&function], access)?;
    let device = &setup.devices[0];
    let logs = arguments.migratable && !arguments.no_log;
    for (feature, has) in [
        (VFIO_DEVICE_FEATURE_MIGRATION, arguments.migratable),
        (VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, arguments.migratable),
        (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, arguments.migratable),
        (VFIO_DEVICE_FEATURE_DMA_LOGGING_START, logs),
        (VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, logs),
        (VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, logs),
    ] {
        let expected = match has {
            true => Ok(()),
            false => Err(Errno::NOTTY),
        };
        let probed = device.probe_feature(feature, 0);
        check_eq!(probed, expected, "probe of feature {feature}");
    }
    if !arguments.migratable {
        check_eq!(device.state(), Err(Errno::NOTTY), "state");
    }
    if !logs {
        check_eq!(device.start_log(PAGE, &[DATA]), Err(Errno::NOTTY), "start");
    }
    Ok(())
}
