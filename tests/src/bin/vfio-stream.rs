// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Data files and the stream in them: whole, in pieces, changed in every field, cut off, of another
//! function.
//!
//! What is refused is refused with EINVAL, never half applied, and leaves a function that can be used
//! after a reset. Needs root, the driver loaded, its back end with all cards, two functions of one card
//! that share namespace 1, which may lose its content, and a function of another card.

use clap::Parser;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::process::ExitCode;
use zeroshift_tests::ktap::{skip, Outcome, Stop};
use zeroshift_tests::vfio::device::Device;
use zeroshift_tests::vfio::dma::DATA;
use zeroshift_tests::vfio::log::PAGE;
use zeroshift_tests::vfio::migration::{PrecopyInfo, State};
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig::{self, content, fill, with_pair, Options};
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::vfio::stream::{self, tag, Record};
use zeroshift_tests::vfio::walk::{go, save, works, STEP};
use zeroshift_tests::{check, check_eq};

/// Tests data files of a VFIO driver
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// PCI address of another function of the same card
    #[arg(long)]
    other: String,
    /// PCI address of a function of another card
    #[arg(long)]
    foreign: Option<String>,
    /// How many bits of a stream to flip, one at a time; all of them with 0
    #[arg(long, default_value_t = 200)]
    flips: usize,
}

type Test = fn(&Context, &mut Nvme<'_>, &Device) -> Outcome;

const TESTS: &[(&str, Test)] = &[
    ("layout", layout),
    ("same_state_same_stream", same_state_same_stream),
    ("sizes_of_reads", sizes_of_reads),
    ("sizes_of_writes", sizes_of_writes),
    ("wrong_direction", wrong_direction),
    ("end_of_stream", end_of_stream),
    ("precopy_info", precopy_info),
    ("precopy_info_v2", precopy_info_v2),
    ("precopy_info_refused", precopy_info_refused),
    ("end_of_precopy", end_of_precopy),
    ("left_early", left_early),
    ("cut_off", cut_off),
    ("half_and_the_rest", half_and_the_rest),
    ("overlong", overlong),
    ("headers", headers),
    ("orders", orders),
    ("sizes_of_values", sizes_of_values),
    ("identities", identities),
    ("registers", registers),
    ("formats", formats),
    ("states", states),
    ("ends", ends),
    ("unknown_records", unknown_records),
    ("later_version", later_version),
    ("too_much_state", too_much_state),
    ("flipped_bits", flipped_bits),
    ("of_another_card", of_another_card),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    ExitCode::from(rig::run(options, TESTS, |test, access| {
        let pair = [options.function.as_str(), arguments.other.as_str()];
        let context = Context {
            driver: options.driver.clone(),
            foreign: arguments.foreign.clone(),
            flips: arguments.flips,
            access,
        };
        with_pair(
            &options.driver,
            pair,
            access,
            Wish::default(),
            |nvme, other| {
                fill(nvme, 1, 1)?;
                test(&context, nvme, &other)
            },
        )
    }))
}

/// What a test may want to know.
struct Context {
    driver: String,
    foreign: Option<String>,
    flips: usize,
    access: Access,
}

/// The stream of a running function, which is left in STOP, taken apart.
fn records(nvme: &Nvme<'_>) -> Result<Vec<Record>, Stop> {
    Ok(stream::check(&save(nvme)?)?)
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A write was refused.
    AtWrite(Errno),
    /// RESUMING could not be left.
    AtEnd(Errno),
    /// It was taken.
    Taken,
}

/// Gives a stream to a device that is reset for it.
fn give(device: &Device, bytes: &[u8], step: usize) -> Result<Fate, Stop> {
    device.reset()?;
    let file = device.set_state(State::Resuming)?.ok_or("no file")?;
    if let Err(error) = file.write_all(bytes, step) {
        return Ok(Fate::AtWrite(error));
    }
    Ok(match device.set_state(State::Stop) {
        Ok(_) => Fate::Taken,
        Err(error) => Fate::AtEnd(error),
    })
}

/// A stream is refused with one of these errors, and the device is in the state that the document says.
fn refused_with(device: &Device, bytes: &[u8], with: &[Errno], what: &str) -> Outcome {
    let fate = give(device, bytes, STEP)?;
    let state = device.state()?;
    match fate {
        Fate::Taken => return Err(Stop::Fail(format!("{what}: was taken"))),
        Fate::AtWrite(error) => {
            check!(with.contains(&error), "{what}: write gives {error}");
            check_eq!(state, State::Error, "{what}: state after a refused write");
        }
        Fate::AtEnd(error) => {
            check!(with.contains(&error), "{what}: {error} at the end");
            check!(
                matches!(state, State::Error | State::Resuming),
                "{what}: {state:?} at the end"
            );
        }
    }
    if state == State::Error {
        let stuck = device.set_state(State::Running).err();
        check_eq!(stuck, Some(Errno::IO), "{what}: from ERROR to RUNNING");
    }
    Ok(())
}

fn refused(device: &Device, bytes: &[u8], what: &str) -> Outcome {
    refused_with(device, bytes, &[Errno::INVAL], what)
}

/// The other function is as after a reset, whatever was tried before: it takes the good stream.
fn unharmed(nvme: &mut Nvme<'_>, other: &Device, good: &[u8]) -> Outcome {
    other.reset()?;
    check_eq!(other.state()?, State::Running, "state after a reset");
    other.enable(true)?;
    const CC: u64 = 0x14;
    check_eq!(other.read_bar32(CC)? & 1, 0, "CC.EN after a reset");
    check_eq!(give(other, good, STEP)?, Fate::Taken, "the good stream");
    other.reset()?;
    check_eq!(nvme.device.state()?, State::Stop, "state of the source");
    go(nvme, State::Running)?;
    nvme.dma().write(DATA.iova, &[0; PAGE as usize]);
    works(nvme, DATA.iova)?;
    check!(nvme.dma().page(DATA.iova) == content(0, 1), "wrong data");
    Ok(())
}

/// What is changed, and how.
type Change<'a> = (&'a str, &'a dyn Fn(&mut Vec<Record>));

/// Tries changed streams; the function is unharmed in the end.
fn try_all(nvme: &mut Nvme<'_>, other: &Device, changes: &[Change<'_>]) -> Outcome {
    let records = records(nvme)?;
    for (what, change) in changes {
        let mut changed = records.clone();
        change(&mut changed);
        let bytes = stream::seal(&changed);
        check!(bytes != stream::seal(&records), "{what} changes nothing");
        refused(other, &bytes, what)?;
    }
    unharmed(nvme, other, &stream::seal(&records))
}

fn layout(_: &Context, nvme: &mut Nvme<'_>, _: &Device) -> Outcome {
    let records = records(nvme)?;
    let identity = &records[1].value;
    let (vendor, device) = nvme.device.ids()?;
    check_eq!(identity[..2], vendor.to_le_bytes(), "vendor");
    check_eq!(identity[2..4], device.to_le_bytes(), "device");
    check_eq!(identity[9..12], [0x02, 0x08, 0x01], "class");
    let registers = &records[2].value;
    let cap = nvme.bar.read64(0);
    check_eq!(registers[..8], cap.to_le_bytes(), "CAP");
    check_eq!(registers[8..12], nvme.bar.read32(8).to_le_bytes(), "VS");
    let vectors = nvme.device.vectors()?;
    check_eq!(registers[12..16], vectors.to_le_bytes(), "vectors");
    go(nvme, State::Running)?;
    Ok(())
}

fn same_state_same_stream(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let first = save(nvme)?;
    let second = save(nvme)?;
    check!(first == second, "two streams of one state differ");
    // And what was loaded is what is saved.
    check_eq!(give(other, &first, STEP)?, Fate::Taken, "the stream");
    let file = other.set_state(State::StopCopy)?.ok_or("no file")?;
    let third = stream::check(&file.read_all(STEP)?)?;
    let states = |records: &[Record]| -> Vec<u8> {
        let states = records.iter().filter(|r| r.tag == tag::STATE);
        states.flat_map(|r| r.value.clone()).collect()
    };
    let first = stream::check(&first)?;
    check_eq!(
        states(&first).len(),
        states(&third).len(),
        "bytes of state after loading"
    );
    go(nvme, State::Running)?;
    Ok(())
}

fn sizes_of_reads(_: &Context, nvme: &mut Nvme<'_>, _: &Device) -> Outcome {
    let whole = save(nvme)?;
    for step in [1, 3, 7, 16, 100, 1000, 4097, 1 << 20] {
        let file = go(nvme, State::StopCopy)?.ok_or("no file")?;
        check!(file.read_all(step)? == whole, "read in steps of {step}");
        check_eq!(file.read(&mut []), Ok(0), "a read of nothing");
        drop(file);
        go(nvme, State::Stop)?;
    }
    go(nvme, State::Running)?;
    Ok(())
}

fn sizes_of_writes(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let whole = save(nvme)?;
    for step in [1, 3, 7, 16, 100, 1000, 4097, 1 << 20] {
        check_eq!(give(other, &whole, step)?, Fate::Taken, "steps of {step}");
    }
    // Writes of nothing in between.
    other.reset()?;
    let file = other.set_state(State::Resuming)?.ok_or("no file")?;
    for chunk in whole.chunks(333) {
        check_eq!(file.write(&[]), Ok(0), "a write of nothing");
        file.write_all(chunk, STEP)?;
    }
    other.set_state(State::Stop)?;
    unharmed(nvme, other, &whole)
}

fn wrong_direction(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let source = go(nvme, State::StopCopy)?.ok_or("no file")?;
    check_eq!(source.write(&[0]), Err(Errno::BADF), "write to a source");
    let target = other.set_state(State::Resuming)?.ok_or("no file")?;
    let result = target.read(&mut [0]);
    check_eq!(result, Err(Errno::BADF), "read of a destination");
    check!(source.seek().is_err(), "a source can be sought");
    check!(target.seek().is_err(), "a destination can be sought");
    let poll = target.poll()?;
    check!(
        poll.contains(PollFlags::OUT),
        "poll of a destination: {poll:?}"
    );
    other.reset()?;
    go(nvme, State::Running)?;
    Ok(())
}

fn end_of_stream(_: &Context, nvme: &mut Nvme<'_>, _: &Device) -> Outcome {
    let file = go(nvme, State::StopCopy)?.ok_or("no file")?;
    let poll = file.poll()?;
    check!(poll.contains(PollFlags::IN), "poll with data: {poll:?}");
    file.read_all(STEP)?;
    for _ in 0..3 {
        check_eq!(file.read(&mut [0; 10]), Ok(0), "read at the end");
    }
    let poll = file.poll()?;
    check!(poll.contains(PollFlags::IN), "poll at the end: {poll:?}");
    go(nvme, State::Stop)?;
    check_eq!(file.read(&mut [0]), Err(Errno::NODEV), "read in STOP");
    let poll = file.poll()?;
    check!(poll.contains(PollFlags::ERR), "poll in STOP: {poll:?}");
    go(nvme, State::Running)?;
    Ok(())
}

/// What is said to come in PRE_COPY is what comes.
fn precopy_info(_: &Context, nvme: &mut Nvme<'_>, _: &Device) -> Outcome {
    let header = stream::header_part(&records(nvme)?) as u64;
    go(nvme, State::Running)?;
    for state in [State::PreCopy, State::PreCopyP2p] {
        let file = go(nvme, state)?.ok_or("no file")?;
        let mut left = header;
        loop {
            let info = file.precopy_info()?;
            let expected = PrecopyInfo {
                flags: 0,
                initial_bytes: left,
                dirty_bytes: 0,
            };
            check_eq!(info, expected, "in {state:?}");
            if left == 0 {
                break;
            }
            let mut part = [0; 77];
            let count = file.read(&mut part)?;
            check!(count > 0 && count as u64 <= left, "read {count} of {left}");
            left -= count as u64;
        }
        go(nvme, State::Running)?;
    }
    Ok(())
}

fn precopy_info_v2(_: &Context, nvme: &mut Nvme<'_>, _: &Device) -> Outcome {
    nvme.device.use_precopy_info_v2()?;
    let file = go(nvme, State::PreCopy)?.ok_or("no file")?;
    let info = file.precopy_info()?;
    check!(info.initial_bytes > 0, "nothing to come");
    check_eq!(info.dirty_bytes, 0, "dirty bytes");
    // Bit 0, REINIT, is the only flag, and the first data is not new.
    check_eq!(info.flags, 0, "flags");
    file.read_all(STEP)?;
    check_eq!(file.precopy_info()?.initial_bytes, 0, "left");
    go(nvme, State::Running)?;
    Ok(())
}

fn precopy_info_refused(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let file = go(nvme, State::PreCopy)?.ok_or("no file")?;
    for argsz in [0, 8, 23] {
        let result = file.precopy_info_with(argsz, 0);
        check_eq!(result, Err(Errno::INVAL), "argsz {argsz}");
    }
    check!(file.precopy_info_with(64, 0).is_ok(), "a larger argsz");
    for number in [0x3b64, 0x3b7a, 0x5401, 0x8008_3b79] {
        let result = file.ioctl(number, &mut [0; 64]);
        check_eq!(result, Err(Errno::NOTTY), "ioctl {number:#x}");
    }
    go(nvme, State::StopCopy)?;
    check_eq!(file.precopy_info(), Err(Errno::INVAL), "in STOP_COPY");
    go(nvme, State::Running)?;
    let result = file.precopy_info();
    check!(
        matches!(result, Err(Errno::INVAL | Errno::NODEV)),
        "of a dead file: {result:?}"
    );
    let target = other.set_state(State::Resuming)?.ok_or("no file")?;
    let result = target.precopy_info();
    check!(
        matches!(result, Err(Errno::INVAL | Errno::NOTTY)),
        "of a destination: {result:?}"
    );
    other.reset()?;
    Ok(())
}

/// Nothing now is not the end.
fn end_of_precopy(_: &Context, nvme: &mut Nvme<'_>, _: &Device) -> Outcome {
    let file = go(nvme, State::PreCopy)?.ok_or("no file")?;
    let poll = file.poll()?;
    check!(poll.contains(PollFlags::IN), "poll with data: {poll:?}");
    let first = file.read_all(STEP)?;
    for _ in 0..3 {
        check_eq!(file.read(&mut [0]), Err(Errno::NOMSG), "read in PRE_COPY");
    }
    let poll = file.poll()?;
    check!(!poll.contains(PollFlags::IN), "poll without data: {poll:?}");
    go(nvme, State::PreCopyP2p)?;
    check_eq!(file.read(&mut [0]), Err(Errno::NOMSG), "in PRE_COPY_P2P");
    go(nvme, State::PreCopy)?;
    works(nvme, DATA.iova)?;
    go(nvme, State::StopCopy)?;
    let poll = file.poll()?;
    check!(poll.contains(PollFlags::IN), "poll in STOP_COPY: {poll:?}");
    let rest = file.read_all(STEP)?;
    check_eq!(file.read(&mut [0]), Ok(0), "read at the end");
    stream::check(&[first, rest].concat())?;
    go(nvme, State::Running)?;
    Ok(())
}

/// Whatever was read in PRE_COPY, the whole is one stream.
fn left_early(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    for read in [0, 1, 15, 16, 17, 200] {
        let file = go(nvme, State::PreCopy)?.ok_or("no file")?;
        let mut bytes = vec![0; read];
        if read > 0 {
            let count = file.read(&mut bytes)?;
            bytes.truncate(count);
        }
        go(nvme, State::StopCopy)?;
        bytes.append(&mut file.read_all(STEP)?);
        stream::check(&bytes)?;
        check_eq!(
            give(other, &bytes, STEP)?,
            Fate::Taken,
            "after {read} bytes"
        );
        go(nvme, State::Running)?;
        works(nvme, DATA.iova)?;
    }
    Ok(())
}

/// A stream that ends too early, wherever.
fn cut_off(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let records = records(nvme)?;
    let whole = stream::join(&records);
    let mut ends = vec![0, 1, whole.len() - 1];
    for count in 0..records.len() {
        let end = stream::join(&records[..count]).len();
        ends.extend([end, end + 1, end + 8, end + 15, end + 16, end + 17]);
    }
    for end in ends {
        let what = format!("{end} of {} bytes", whole.len());
        let fate = give(other, &whole[..end], STEP)?;
        check_eq!(fate, Fate::AtEnd(Errno::INVAL), "{what}");
        check_eq!(other.state()?, State::Resuming, "state after {what}");
    }
    unharmed(nvme, other, &whole)
}

/// RESUMING that cannot be left yet goes on.
fn half_and_the_rest(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let whole = save(nvme)?;
    let file = other.set_state(State::Resuming)?.ok_or("no file")?;
    for part in whole.chunks(whole.len() / 5 + 1) {
        let early = other.set_state(State::Stop).err();
        check_eq!(early, Some(Errno::INVAL), "RESUMING to STOP too early");
        check_eq!(other.state()?, State::Resuming, "state after it");
        file.write_all(part, STEP)?;
    }
    other.set_state(State::Stop)?;
    check_eq!(file.write(&[0]), Err(Errno::NODEV), "write in STOP");
    unharmed(nvme, other, &whole)
}

fn overlong(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let whole = save(nvme)?;
    let twice = [whole.clone(), whole.clone()].concat();
    for (what, more) in [
        ("a byte", 1),
        ("a record", 16),
        ("another stream", whole.len()),
    ] {
        refused(other, &twice[..whole.len() + more], what)?;
    }
    unharmed(nvme, other, &whole)
}

/// The first record in every field.
fn headers(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    try_all(
        nvme,
        other,
        &[
            ("the first byte of the magic", &|r| r[0].value[0] ^= 1),
            ("the last byte of the magic", &|r| r[0].value[7] ^= 0x80),
            ("major version 0", &|r| r[0].value[8] = 0),
            ("major version 2", &|r| r[0].value[8] = 2),
            ("major version 257", &|r| r[0].value[9] = 1),
            ("kind 0", &|r| r[0].value[12] = 0),
            ("kind 2", &|r| r[0].value[12] = 2),
            ("a flag that nobody knows", &|r| r[0].flags |= 2),
            ("flags of ones", &|r| r[0].flags = u32::MAX),
        ],
    )
}

fn orders(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    try_all(
        nvme,
        other,
        &[
            ("IDENTITY before HEADER", &|r| r.swap(0, 1)),
            ("REGISTERS before IDENTITY", &|r| r.swap(1, 2)),
            ("STATE before FORMAT", &|r| r.swap(3, 4)),
            ("no HEADER", &|r| drop(r.remove(0))),
            ("no IDENTITY", &|r| drop(r.remove(1))),
            ("no FORMAT", &|r| drop(r.remove(3))),
            ("no STATE", &|r| r.retain(|r| r.tag != tag::STATE)),
            ("no END", &|r| drop(r.pop())),
            ("HEADER twice", &|r| r.insert(1, r[0].clone())),
            ("IDENTITY twice", &|r| r.insert(2, r[1].clone())),
            ("REGISTERS twice", &|r| r.insert(3, r[2].clone())),
            ("FORMAT twice", &|r| r.insert(4, r[3].clone())),
            ("END twice", &|r| r.push(r[r.len() - 1].clone())),
            ("STATE after END", &|r| r.push(r[4].clone())),
            ("nothing but END", &|r| drop(r.drain(..r.len() - 1))),
        ],
    )
}

/// Values that are too short, too long, or of a size that no memory has.
fn sizes_of_values(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let records = records(nvme)?;
    let good = stream::seal(&records);
    for i in 0..records.len() {
        let name = records[i].tag;
        let mut changed = records.clone();
        changed[i].value.push(0);
        refused(other, &stream::seal(&changed), &format!("longer {name}"))?;
        let mut changed = records.clone();
        changed[i].value.pop();
        refused(other, &stream::seal(&changed), &format!("shorter {name}"))?;
        let mut changed = records.clone();
        changed[i].value.clear();
        refused(other, &stream::seal(&changed), &format!("empty {name}"))?;
        let at = stream::join(&records[..i]).len();
        for size in [1 << 31, 1 << 32, 1 << 63, u64::MAX - 15, u64::MAX] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&size.to_le_bytes());
            let with = [Errno::INVAL, Errno::FBIG];
            refused_with(other, &bytes, &with, &format!("{size:#x} bytes of {name}"))?;
        }
    }
    unharmed(nvme, other, &good)
}

/// The identity in every field.
fn identities(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    /// Behind PCI ids, class and revision, serial and model number.
    const NAME: usize = 12 + 20 + 40;
    let name =
        |r: &[Record]| usize::from(r[1].value[NAME]) + 256 * usize::from(r[1].value[NAME + 1]);
    let known = |r: &[Record]| NAME + 2 + name(r);
    let first = |r: &[Record]| known(r) + 2 + 4;
    try_all(
        nvme,
        other,
        &[
            ("vendor", &|r| r[1].value[0] ^= 1),
            ("device", &|r| r[1].value[2] ^= 1),
            ("subsystem vendor", &|r| r[1].value[4] ^= 1),
            ("subsystem", &|r| r[1].value[7] ^= 1),
            ("class", &|r| r[1].value[10] ^= 1),
            ("serial number", &|r| r[1].value[12] ^= 1),
            ("model number", &|r| r[1].value[NAME - 1] ^= 1),
            ("length of the name", &|r| r[1].value[NAME] -= 1),
            ("length of the name, 0", &|r| r[1].value[NAME] = 0),
            ("length of the name, 224", &|r| r[1].value[NAME] = 224),
            ("length of the name, 65535", &|r| {
                r[1].value[NAME..NAME + 2].fill(0xff);
            }),
            ("name", &|r| r[1].value[NAME + 2] ^= 1),
            ("known, 2", &|r| {
                let at = known(r);
                r[1].value[at] = 2;
            }),
            ("number of namespaces", &|r| {
                let at = known(r) + 2;
                r[1].value[at] += 1;
            }),
            ("number of namespaces, 2^32 - 1", &|r| {
                let at = known(r) + 2;
                r[1].value[at..at + 4].fill(0xff);
            }),
            ("NSID", &|r| {
                let at = first(r);
                r[1].value[at] ^= 2;
            }),
            ("block size", &|r| {
                let at = first(r) + 4;
                r[1].value[at] = 12;
            }),
            ("blocks", &|r| {
                let at = first(r) + 8;
                r[1].value[at] ^= 1;
            }),
            ("NGUID", &|r| {
                let at = r[1].value.len() - 1;
                r[1].value[at] ^= 1;
            }),
            ("a namespace more", &|r| {
                let (at, mut more) = (known(r) + 2, r[1].value[first(r)..].to_vec());
                more[0] += 1;
                r[1].value[at] += 1;
                r[1].value.append(&mut more);
            }),
            ("a namespace twice", &|r| {
                let (at, mut more) = (known(r) + 2, r[1].value[first(r)..].to_vec());
                r[1].value[at] += 1;
                r[1].value.append(&mut more);
            }),
            ("no namespace", &|r| {
                let (at, first) = (known(r) + 2, first(r));
                r[1].value[at] = 0;
                r[1].value.truncate(first);
            }),
        ],
    )
}

/// The registers that must be the destination's, bit by bit; another may differ.
fn registers(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let bit = |r: &mut Vec<Record>, n: usize| r[2].value[n / 8] ^= 1 << (n % 8);
    try_all(
        nvme,
        other,
        &[
            ("CAP.MQES", &|r| bit(r, 0)),
            ("CAP.CQR", &|r| bit(r, 16)),
            ("CAP.DSTRD", &|r| bit(r, 32)),
            ("CAP.CSS", &|r| bit(r, 44)),
            ("CAP.MPSMIN", &|r| bit(r, 48)),
            ("CAP.MPSMAX", &|r| bit(r, 52)),
            ("VS", &|r| bit(r, 64)),
            ("vectors", &|r| bit(r, 96)),
        ],
    )?;
    // CAP.TO says how long to wait, no more.
    let mut records = records(nvme)?;
    bit(&mut records, 24);
    let fate = give(other, &stream::seal(&records), STEP)?;
    check_eq!(fate, Fate::Taken, "another CAP.TO");
    // A stream without them is a file of a tool, and nobody could tell whether a guest can go on.
    records.remove(2);
    refused(other, &stream::seal(&records), "no registers")?;
    other.reset()?;
    go(nvme, State::Running)?;
    Ok(())
}

fn formats(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let records = records(nvme)?;
    for (what, at) in [
        ("version", 0),
        ("first byte of the UUID", 8),
        ("last byte", 23),
    ] {
        let mut changed = records.clone();
        changed[3].value[at] ^= 1;
        let with = [Errno::INVAL, Errno::OPNOTSUPP];
        refused_with(other, &stream::seal(&changed), &with, what)?;
    }
    unharmed(nvme, other, &stream::seal(&records))
}

/// State that the card does not take, in a stream that is right.
fn states(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let records = records(nvme)?;
    let good = stream::seal(&records);
    let length = records[4].value.len();
    for at in (0..length).step_by(length / 40 + 1) {
        let mut changed = records.clone();
        changed[4].value[at] ^= 0x10;
        let what = format!("byte {at} of the state");
        refused(other, &stream::seal(&changed), &what)?;
        check_eq!(other.state()?, State::Error, "state after {what}");
    }
    for keep in [1, 16, 100, length / 2, length - 1] {
        let mut changed = records.clone();
        changed[4].value.truncate(keep);
        changed.retain(|r| r.tag != tag::STATE || r.value.len() == keep);
        let what = format!("{keep} bytes of the state");
        refused(other, &stream::seal(&changed), &what)?;
    }
    // In many parts it is the same state.
    let mut parts = records.clone();
    let state = parts.remove(4);
    for (i, part) in state.value.chunks(length / 50 + 1).enumerate() {
        let value = part.to_vec();
        parts.insert(
            4 + i,
            Record {
                value,
                ..state.clone()
            },
        );
    }
    let fate = give(other, &stream::seal(&parts), STEP)?;
    check_eq!(fate, Fate::Taken, "the state in many parts");
    unharmed(nvme, other, &good)
}

fn ends(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let records = records(nvme)?;
    let good = stream::seal(&records);
    let end = good.len() - 16;
    for (what, at) in [
        ("count", end),
        ("high byte of the count", end + 7),
        ("checksum", end + 8),
        ("high byte of the checksum", end + 11),
    ] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        refused(other, &bytes, what)?;
    }
    unharmed(nvme, other, &good)
}

/// Records that nobody knows stop a stream when they say that they must be known.
fn unknown_records(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let records = records(nvme)?;
    let good = stream::seal(&records);
    for place in 1..records.len() {
        for (tag, length) in [(7, 0), (99, 5), (u32::MAX, 5000)] {
            let mut changed = records.clone();
            let record = Record {
                flags: 1,
                tag,
                value: vec![0xa5; length],
            };
            changed.insert(place, record);
            let what = format!("record {tag} at {place}");
            refused(other, &stream::seal(&changed), &what)?;
            changed[place].flags = 0;
            let fate = give(other, &stream::seal(&changed), STEP)?;
            check_eq!(fate, Fate::Taken, "{what}, not mandatory");
        }
    }
    unharmed(nvme, other, &good)
}

fn later_version(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let mut records = records(nvme)?;
    let good = stream::seal(&records);
    for minor in [1, 2, 0xffff_u16] {
        records[0].value[10..12].copy_from_slice(&minor.to_le_bytes());
        let fate = give(other, &stream::seal(&records), STEP)?;
        check_eq!(fate, Fate::Taken, "minor version {minor}");
    }
    unharmed(nvme, other, &good)
}

fn too_much_state(_: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    const LIMIT: u64 = 64 << 20;
    let records = records(nvme)?;
    let good = stream::seal(&records);
    let mut bytes = stream::join(&records[..4]);
    let start = bytes.len();
    bytes.extend_from_slice(&good[start..]);
    bytes[start..start + 8].copy_from_slice(&(LIMIT + 1).to_le_bytes());
    let with = [Errno::FBIG];
    // What comes is less than what is announced: it may be told at the end only.
    let announced = [with[0], Errno::INVAL];
    refused_with(other, &bytes, &announced, "64 MiB and a byte announced")?;

    // And really sent, in parts of a MiB.
    other.reset()?;
    let file = other.set_state(State::Resuming)?.ok_or("no file")?;
    file.write_all(&good[..start], STEP)?;
    let part = Record {
        flags: 1,
        tag: tag::STATE,
        value: vec![0x5a; 1 << 20],
    };
    let part = stream::join(&[part]);
    let mut result = Ok(());
    for _ in 0..=LIMIT >> 20 {
        result = file.write_all(&part, STEP);
        if result.is_err() {
            break;
        }
    }
    check_eq!(result, Err(Errno::FBIG), "65 MiB of state");
    check_eq!(other.state()?, State::Error, "state after them");
    drop(file);
    unharmed(nvme, other, &good)
}

/// No bit of a stream can change without being noticed.
fn flipped_bits(context: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let good = save(nvme)?;
    let bits = good.len() * 8;
    let step = match context.flips {
        0 => 1,
        flips => (bits / flips).max(1),
    };
    // An odd number of bits: every bit of a byte has its turn.
    let step = step | 1;
    for bit in (0..bits).step_by(step) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let with = [Errno::INVAL, Errno::FBIG, Errno::OPNOTSUPP];
        refused_with(other, &bytes, &with, &format!("bit {bit} of {bits}"))?;
    }
    unharmed(nvme, other, &good)
}

/// A stream of a function that is another one, and of nobody.
fn of_another_card(context: &Context, nvme: &mut Nvme<'_>, other: &Device) -> Outcome {
    let Some(foreign) = &context.foreign else {
        return skip("no --foreign");
    };
    let foreign = rig::function(foreign);
    let setup = rig::open(&context.driver, &[&foreign], context.access)?;
    let file = setup.devices[0]
        .set_state(State::StopCopy)?
        .ok_or("no file")?;
    let strange = file.read_all(STEP)?;
    let records = stream::check(&strange)?;
    let good = save(nvme)?;
    refused(other, &strange, "a stream of another card")?;
    // It is noticed as soon as the header part is there.
    let header = &strange[..stream::header_part(&records)];
    let fate = give(other, header, STEP)?;
    check_eq!(fate, Fate::AtWrite(Errno::INVAL), "its header part");
    for (what, bytes) in [("zeroes", vec![0; 5000]), ("ones", vec![0xff; 5000])] {
        refused(other, &bytes, what)?;
    }
    // And the other way.
    refused(&setup.devices[0], &good, "our stream in another card")?;
    setup.devices[0].reset()?;
    unharmed(nvme, other, &good)
}
