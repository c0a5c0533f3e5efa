// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/migdirty` with at least one card: what it tells, what it refuses, and that binding,
//! unbinding, loading and unloading leave nothing behind.
//!
//! Needs root. Loads the module when it is given one (`--module`), and then unloads it too.

use clap::Parser;
use migdirty_uapi::{MigdirtyCard, MAX_ARGSZ, MIGDIRTY_GET_CARD, MIN_ARGSZ};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::mem::offset_of;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use zeroshift_tests::ktap::{skip, Ktap, Outcome, Stop};
use zeroshift_tests::migdirty::{
    bytes_of, get, gone, is_quiet, open, Answer, DEVICE, DRIVER, KNOWN,
};
use zeroshift_tests::sys::{ioctl_at, ioctl_on, Pages, PAGE};
use zeroshift_tests::sysfs::{self, Function};
use zeroshift_tests::{check, check_eq, module};

/// Tests /dev/migdirty with at least one card
#[derive(Parser)]
struct Arguments {
    /// Module file to load and unload
    #[arg(long)]
    module: Option<PathBuf>,
    /// Arguments for the module
    #[arg(long, default_value = "")]
    module_arguments: String,
    /// Times to load and unload the module at the end
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Ids ("vendor device") of a controller of another class to bind as well
    #[arg(long)]
    new_id: Option<String>,
    /// Number of cards
    #[arg(long)]
    expect_cards: Option<usize>,
    /// Serial number of the first card
    #[arg(long)]
    expect_serial: Option<String>,
    /// Model number of the first card
    #[arg(long)]
    expect_model: Option<String>,
    /// Firmware revision of the first card
    #[arg(long)]
    expect_firmware: Option<String>,
    /// Beginning of the subsystem name of the first card
    #[arg(long)]
    expect_subnqn: Option<String>,
    /// Controller type of the first card
    #[arg(long)]
    expect_type: Option<u8>,
    /// VS register of the first card, for example 2.1.0
    #[arg(long)]
    expect_version: Option<String>,
    /// Granules of the first card, for example 0..9
    #[arg(long)]
    expect_granules: Option<String>,
    /// Range limits of the first card, controller/subsystem, for example 256/1024
    #[arg(long)]
    expect_ranges: Option<String>,
}

type Test = (&'static str, fn(&Arguments) -> Outcome);

const TESTS: &[Test] = &[
    ("load", load),
    ("mode", mode),
    ("not_for_others", not_for_others),
    ("fields", fields),
    ("argsz_small", argsz_small),
    ("argsz_large", argsz_large),
    ("argsz_huge", argsz_huge),
    ("flags", flags),
    ("reserved", reserved),
    ("bad_pointer", bad_pointer),
    ("unknown_number", unknown_number),
    ("read_write", read_write),
    ("walk", walk),
    ("counters", counters),
    ("many_at_once", many_at_once),
    ("unbind", unbind),
    ("unbind_under_load", unbind_under_load),
    ("open_file_pins_module", open_file_pins_module),
    ("reset_card", reset_card),
    ("silent_card", silent_card),
    ("rounds", rounds),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut ktap = Ktap::new(TESTS.len());
    for (name, test) in TESTS {
        ktap.test(name, || {
            // The first test loads it; without it, the others have nothing to talk to.
            if *name != "load" && !Path::new(DEVICE).exists() {
                return skip("migdirty is not loaded");
            }
            test(&arguments)
        });
    }
    ExitCode::from(ktap.finish())
}

/// Sends a question that must be refused and must come back as it was.
fn refused(file: &File, question: &MigdirtyCard, with: Errno, what: &str) -> Outcome {
    let mut buffer = bytes_of(question);
    buffer[offset_of!(MigdirtyCard, serial)] = 0x5a;
    let before = buffer.clone();
    let result = ioctl_on(file, MIGDIRTY_GET_CARD, &mut buffer);
    check_eq!(result, Err(with), "{what}");
    check!(
        buffer == before,
        "{what}: refused, but the argument changed"
    );
    Ok(())
}

fn load_module(arguments: &Arguments) -> Outcome {
    load_module_with(arguments, "")
}

fn load_module_with(arguments: &Arguments, more: &str) -> Outcome {
    let Some(path) = &arguments.module else {
        return skip("no --module, and migdirty is not loaded");
    };
    let module_arguments = format!("{} {more}", arguments.module_arguments);
    if let Err(error) = module::load(path, module_arguments.trim()) {
        return Err(Stop::Fail(format!(
            "cannot load {}: {error}",
            path.display()
        )));
    }
    if let Some(ids) = &arguments.new_id {
        sysfs::add_id(DRIVER, ids)?;
    }
    Ok(())
}

fn load(arguments: &Arguments) -> Outcome {
    if !module::is_loaded(DRIVER) {
        load_module(arguments)?;
    }
    check!(Path::new(DEVICE).exists(), "{DEVICE} did not appear");
    check!(sysfs::has_driver(DRIVER), "no PCI driver {DRIVER}");
    Ok(())
}

fn mode(_: &Arguments) -> Outcome {
    let metadata = fs::metadata(DEVICE)?;
    check!(
        metadata.file_type().is_char_device(),
        "{DEVICE} is not a character device"
    );
    check_eq!(metadata.mode() & 0o7777, 0o600, "mode");
    check_eq!((metadata.uid(), metadata.gid()), (0, 0), "owner");
    Ok(())
}

fn not_for_others(_: &Arguments) -> Outcome {
    use rustix::thread::set_thread_res_uid;
    // Only this thread becomes somebody else.
    let result = thread::spawn(|| {
        let nobody = rustix::fs::Uid::from_raw(65534);
        set_thread_res_uid(nobody, nobody, nobody)?;
        Ok::<_, Errno>(open().err().map(|error| error.kind()))
    })
    .join()
    .map_err(|_| "the thread panicked")?;
    check_eq!(
        result?,
        Some(std::io::ErrorKind::PermissionDenied),
        "opening it as another user"
    );
    Ok(())
}

fn fields(arguments: &Arguments) -> Outcome {
    let answer = get(&open()?, 0)?;
    check_eq!(answer.u32(0), MIN_ARGSZ, "argsz");
    check!(answer.is_live(), "the card is not live");
    check_eq!(
        answer.u32(offset_of!(MigdirtyCard, flags)) & !7,
        0,
        "unknown flags"
    );
    check_eq!(
        Function::at(answer.address()).driver().as_deref(),
        Some(DRIVER),
        "driver of the function at the address it gives"
    );
    check_eq!(
        answer.array(offset_of!(MigdirtyCard, reserved)),
        [0u8; 3],
        "reserved"
    );
    check_eq!(
        answer.array(offset_of!(MigdirtyCard, reserved2)),
        [0u8; 100],
        "reserved2"
    );
    check_eq!(answer.u32(offset_of!(MigdirtyCard, vectors)), 1, "vectors");
    let texts = [
        (
            "serial",
            &arguments.expect_serial,
            answer.text(offset_of!(MigdirtyCard, serial), 20),
        ),
        (
            "model",
            &arguments.expect_model,
            answer.text(offset_of!(MigdirtyCard, model), 40),
        ),
        (
            "firmware",
            &arguments.expect_firmware,
            answer.text(offset_of!(MigdirtyCard, firmware), 8),
        ),
        (
            "version",
            &arguments.expect_version,
            version(answer.u32(offset_of!(MigdirtyCard, version))),
        ),
        (
            "granules",
            &arguments.expect_granules,
            format!(
                "{}..{}",
                answer.0[offset_of!(MigdirtyCard, min_granule)],
                answer.0[offset_of!(MigdirtyCard, max_granule)]
            ),
        ),
        (
            "ranges",
            &arguments.expect_ranges,
            format!(
                "{}/{}",
                u16::from_ne_bytes(answer.array(offset_of!(MigdirtyCard, max_ranges))),
                u16::from_ne_bytes(answer.array(offset_of!(MigdirtyCard, max_ranges_subsystem))),
            ),
        ),
        (
            "controller type",
            &arguments.expect_type.map(|number| number.to_string()),
            answer.0[offset_of!(MigdirtyCard, controller_type)].to_string(),
        ),
    ];
    for (name, expected, is) in texts {
        if let Some(expected) = expected {
            check_eq!(&is, expected, "{name}");
        }
    }
    if let Some(expected) = &arguments.expect_subnqn {
        let subnqn = answer.text(offset_of!(MigdirtyCard, subnqn), 256);
        check!(
            subnqn.starts_with(expected.as_str()),
            "subnqn is {subnqn}, expected {expected}..."
        );
    }
    Ok(())
}

fn version(register: u32) -> String {
    format!(
        "{}.{}.{}",
        register >> 16,
        (register >> 8) & 0xff,
        register & 0xff
    )
}

fn argsz_small(_: &Arguments) -> Outcome {
    let file = open()?;
    for argsz in [0, 1, 4, 11, MIN_ARGSZ - 1] {
        let question = MigdirtyCard {
            argsz,
            ..MigdirtyCard::ZERO
        };
        refused(&file, &question, Errno::INVAL, &format!("argsz {argsz}"))?;
    }
    Ok(())
}

fn argsz_large(_: &Arguments) -> Outcome {
    let file = open()?;
    let plain = get(&file, 0)?;
    for argsz in [
        KNOWN + 1,
        KNOWN + 63,
        KNOWN + 64,
        KNOWN + 65,
        1000,
        MAX_ARGSZ as usize,
    ] {
        // At the end of a page that nothing may be written behind, and with a mark in front.
        let mut pages = Pages::new()?;
        let room = PAGE.min(argsz + 8);
        let first = pages.first();
        first.fill(0xa5);
        let start = PAGE - room;
        let question = MigdirtyCard {
            argsz: argsz as u32,
            ..MigdirtyCard::ZERO
        };
        first[start..start + KNOWN].copy_from_slice(&bytes_of(&question));
        ioctl_on(&file, MIGDIRTY_GET_CARD, &mut first[start..])?;
        let answer = Answer(first[start..start + KNOWN].to_vec());
        check_eq!(
            answer.address(),
            plain.address(),
            "address for argsz {argsz}"
        );
        check!(
            first[start + KNOWN..start + argsz]
                .iter()
                .all(|byte| *byte == 0),
            "argsz {argsz}: what the module does not know is not zero"
        );
        check!(
            first[..start].iter().all(|byte| *byte == 0xa5)
                && first[start + argsz..].iter().all(|byte| *byte == 0xa5),
            "argsz {argsz}: written outside of the structure"
        );
    }
    Ok(())
}

fn argsz_huge(_: &Arguments) -> Outcome {
    let file = open()?;
    for argsz in [MAX_ARGSZ + 1, 1 << 31, u32::MAX] {
        let question = MigdirtyCard {
            argsz,
            ..MigdirtyCard::ZERO
        };
        refused(&file, &question, Errno::TOOBIG, &format!("argsz {argsz}"))?;
    }
    Ok(())
}

fn flags(_: &Arguments) -> Outcome {
    let file = open()?;
    for bit in 0..32 {
        let question = MigdirtyCard {
            flags: 1 << bit,
            ..MigdirtyCard::question(0)
        };
        refused(&file, &question, Errno::INVAL, &format!("flag {bit}"))?;
    }
    Ok(())
}

fn reserved(_: &Arguments) -> Outcome {
    let file = open()?;
    let places = (offset_of!(MigdirtyCard, reserved)..)
        .take(3)
        .chain((offset_of!(MigdirtyCard, reserved2)..).take(100));
    for place in places {
        let mut buffer = bytes_of(&MigdirtyCard::question(0));
        buffer[place] = 1;
        let result = ioctl_on(&file, MIGDIRTY_GET_CARD, &mut buffer);
        check_eq!(result, Err(Errno::INVAL), "byte {place} set");
    }
    Ok(())
}

fn bad_pointer(_: &Arguments) -> Outcome {
    let file = open()?;
    let question = bytes_of(&MigdirtyCard::question(0));
    let mut pages = Pages::new()?;

    // One byte of the structure is behind the page.
    let first = pages.first();
    let start = PAGE - (KNOWN - 1);
    first[start..].copy_from_slice(&question[..KNOWN - 1]);
    let cut = pages.end(KNOWN - 1);
    // And only a part of `argsz` is there.
    let stump = pages.end(3);

    let mut constant = Pages::new()?;
    constant.first()[..KNOWN].copy_from_slice(&question);
    constant.make_read_only()?;

    for (what, argument) in [
        ("null", 0),
        ("a kernel address", 0xffff_8880_0000_0000),
        ("a non-canonical address", 0x8000_0000_0000_0000),
        ("the end of the address space", usize::MAX - 3),
        ("a structure that is cut off", cut),
        ("a size that is cut off", stump),
        ("memory that is read-only", constant.end(PAGE)),
    ] {
        // SAFETY: the only good memory among these belongs to `pages` and `constant`.
        let result = unsafe { ioctl_at(&file, MIGDIRTY_GET_CARD, argument) };
        check_eq!(result, Err(Errno::FAULT), "{what}");
    }
    Ok(())
}

fn unknown_number(_: &Arguments) -> Outcome {
    let file = open()?;
    let size = 0x01e0_0000;
    for number in [
        MIGDIRTY_GET_CARD + 1,
        MIGDIRTY_GET_CARD + 0xff,
        MIGDIRTY_GET_CARD ^ 0x0100,
        MIGDIRTY_GET_CARD - size + 0x01d0_0000,
        MIGDIRTY_GET_CARD - size + 0x01f0_0000,
        MIGDIRTY_GET_CARD & !0x8000_0000,
        MIGDIRTY_GET_CARD & !0xc000_0000,
        0,
        u32::MAX,
    ] {
        let mut buffer = bytes_of(&MigdirtyCard::question(0));
        buffer.resize(PAGE, 0);
        let result = ioctl_on(&file, number, &mut buffer);
        check_eq!(result, Err(Errno::NOTTY), "number {number:#010x}");
    }
    Ok(())
}

fn read_write(_: &Arguments) -> Outcome {
    let mut file = open()?;
    let result = file
        .read(&mut [0; 16])
        .map_err(|error| error.raw_os_error());
    check_eq!(result, Err(Some(Errno::INVAL.raw_os_error())), "read");
    let result = file.write(&[0; 16]).map_err(|error| error.raw_os_error());
    check_eq!(result, Err(Some(Errno::INVAL.raw_os_error())), "write");
    Ok(())
}

fn walk(arguments: &Arguments) -> Outcome {
    let file = open()?;
    let mut found = 0;
    let mut next = 0;
    loop {
        match get(&file, next) {
            Ok(answer) => {
                let address = answer.address();
                check!(address >= next, "asked from {next:#x}, got {address:#x}");
                check_eq!(
                    get(&file, address)?.address(),
                    address,
                    "asked for exactly that one"
                );
                found += 1;
                next = address + 1;
            }
            Err(Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    check!(found > 0, "no card");
    if let Some(expected) = arguments.expect_cards {
        check_eq!(found, expected, "number of cards");
    }
    check_eq!(
        get(&file, u32::MAX).err(),
        Some(Errno::NOENT),
        "the last address"
    );
    Ok(())
}

fn counters(_: &Arguments) -> Outcome {
    let file = open()?;
    let first = get(&file, 0)?;
    let second = get(&file, 0)?;
    check!(
        first.commands() >= 2,
        "probe and one question are two commands"
    );
    check_eq!(second.commands(), first.commands() + 1, "commands");
    check!(
        second.interrupts() > first.interrupts(),
        "interrupts stay at {}",
        first.interrupts()
    );
    check_eq!(second.failures(), first.failures(), "failures");
    Ok(())
}

fn many_at_once(_: &Arguments) -> Outcome {
    // More threads than the queue has slots, so that some wait for one.
    const THREADS: u64 = 48;
    const QUESTIONS: u64 = 20;
    let file = open()?;
    let before = get(&file, 0)?.commands();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> Outcome {
                    let file = open()?;
                    for _ in 0..QUESTIONS {
                        check!(get(&file, 0)?.is_live(), "not live");
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    let after = get(&file, 0)?.commands();
    check_eq!(after - before, THREADS * QUESTIONS + 1, "commands");
    Ok(())
}

fn unbind(_: &Arguments) -> Outcome {
    let file = open()?;
    let address = get(&file, 0)?.address();
    let function = Function::at(address);
    check_eq!(function.command()? & 4, 4, "bus master of a bound card");
    for _ in 0..3 {
        function.unbind(DRIVER)?;
        let result = get(&file, address).map(|answer| answer.address());
        check!(
            result != Ok(address),
            "the card is still there after it was unbound"
        );
        is_quiet(&function)?;
        function.bind(DRIVER)?;
        let answer = get(&file, address)?;
        check_eq!(
            answer.address(),
            address,
            "address after it was bound again"
        );
        check!(answer.is_live(), "not live after it was bound again");
        check_eq!(answer.commands(), 2, "commands since it was bound again");
    }
    Ok(())
}

fn unbind_under_load(_: &Arguments) -> Outcome {
    let file = open()?;
    let address = get(&file, 0)?.address();
    let function = Function::at(address);
    let over = AtomicBool::new(false);
    let answers = AtomicU64::new(0);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| -> Outcome {
                    let file = open()?;
                    while !over.load(Ordering::Relaxed) {
                        match get(&file, address) {
                            Ok(answer) => {
                                check!(answer.is_live(), "a card died");
                                answers.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(Errno::NOENT) => thread::yield_now(),
                            Err(error) => return Err(error.into()),
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let result = (0..10).try_for_each(|_| -> Outcome {
            let before = answers.load(Ordering::Relaxed);
            while answers.load(Ordering::Relaxed) < before + 16
                && !threads.iter().any(|thread| thread.is_finished())
            {
                thread::yield_now();
            }
            function.unbind(DRIVER)?;
            function.bind(DRIVER)?;
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        result
    })?;
    check!(get(&file, address)?.is_live(), "not live afterwards");
    Ok(())
}

fn open_file_pins_module(arguments: &Arguments) -> Outcome {
    if arguments.module.is_none() {
        return skip("no --module to load again");
    }
    let file = open()?;
    check_eq!(
        module::unload(DRIVER),
        Err(Errno::WOULDBLOCK),
        "unloading under an open file"
    );
    check!(get(&file, 0)?.is_live(), "not live after a refused unload");
    drop(file);
    module::unload(DRIVER)?;
    gone()?;
    load_module(arguments)
}

/// A card that somebody resets under the driver has lost its queues: that has to be noticed long
/// before a command's time is over.
fn reset_card(_: &Arguments) -> Outcome {
    let file = open()?;
    let address = get(&file, 0)?.address();
    let function = Function::at(address);
    if !function.reset()? {
        return skip("the card cannot be reset through sysfs");
    }
    let start = Instant::now();
    check!(!get(&file, address)?.is_live(), "a reset card is live");
    check!(
        start.elapsed() < Duration::from_secs(29),
        "noticed after {:?} only",
        start.elapsed()
    );
    function.unbind(DRIVER)?;
    function.bind(DRIVER)?;
    check!(get(&file, address)?.is_live(), "not live when bound again");
    Ok(())
}

/// A card that cannot reach memory takes no command: it has to be declared dead, once, for
/// everybody who waits, and to live again when it is bound again.
fn silent_card(arguments: &Arguments) -> Outcome {
    // More than the queue has slots, so that some wait for one.
    const THREADS: usize = 40;
    const LIMIT: Duration = Duration::from_secs(10);
    if arguments.module.is_none() {
        return skip("no --module to load with another time limit");
    }
    module::unload(DRIVER)?;
    load_module_with(
        arguments,
        &format!("command_timeout_ms={}", LIMIT.as_millis()),
    )?;
    let file = open()?;
    let before = get(&file, 0)?;
    check!(before.is_live(), "not live before");
    let address = before.address();
    let function = Function::at(address);

    function.clear_bus_master()?;
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> Outcome {
                    let answer = get(&open()?, address)?;
                    check_eq!(answer.address(), address, "address of the silent card");
                    check!(!answer.is_live(), "a silent card is live");
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    // The kernel counts in ticks, so not to the millisecond.
    check!(
        start.elapsed() >= LIMIT / 2,
        "dead long before the time was over"
    );
    let dead = get(&file, address)?;
    check!(!dead.is_live(), "a dead card is live");
    check_eq!(
        dead.commands(),
        before.commands(),
        "commands of a dead card"
    );
    check_eq!(dead.failures(), before.failures() + 1, "failures");

    function.unbind(DRIVER)?;
    is_quiet(&function)?;
    function.bind(DRIVER)?;
    check!(get(&file, address)?.is_live(), "not live when bound again");
    drop(file);
    module::unload(DRIVER)?;
    load_module(arguments)
}

fn rounds(arguments: &Arguments) -> Outcome {
    if arguments.module.is_none() {
        return skip("no --module to load again");
    }
    let mut address = get(&open()?, 0)?.address();
    module::unload(DRIVER)?;
    for round in 1..=arguments.rounds {
        gone()?;
        is_quiet(&Function::at(address))?;
        load_module(arguments)?;
        let answer = get(&open()?, 0)?;
        check!(answer.is_live(), "not live in round {round}");
        address = answer.address();
        module::unload(DRIVER)?;
    }
    gone()
}
