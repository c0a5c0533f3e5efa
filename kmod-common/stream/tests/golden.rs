// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The format, byte by byte, in both directions; limits; what is refused and how it is said.

mod common;

use common::{golden, golden_identity, golden_values, read, record, seal, Came, RECORDS, STATE};
use zeroshift_stream::format::Format;
use zeroshift_stream::identity::{self, Builder, Namespace, Unwritable, View};
use zeroshift_stream::reader::{HeaderPart, Reader};
use zeroshift_stream::record::{Record, KIND_NVME, MAX_HEADER_PART};
use zeroshift_stream::registers::Registers;
use zeroshift_stream::writer::{self, header_part, header_part_size, Writer};

const REGISTERS: Registers = Registers {
    cap: 0x00f0_0020_0f01_0fff,
    version: 0x0002_0100,
    vectors: 17,
};
const FORMAT: Format = Format {
    version: 0,
    uuid: [
        0x9e, 0xdb, 0xdb, 0x91, 0x8d, 0x5f, 0x46, 0xfc, 0xb4, 0x82, 0x6c, 0x7d, 0x39, 0x3c, 0x7a,
        0x9b,
    ],
};

fn written(registers: Option<&Registers>, parts: &[&[u8]]) -> Vec<u8> {
    let identity = golden_identity();
    let size = header_part_size(identity.len(), registers.is_some());
    let mut stream = vec![0xff; size];
    let used = header_part(&mut stream, KIND_NVME, &identity, registers, &FORMAT);
    assert_eq!(used, Some(size));
    let mut short = vec![0; size - 1];
    assert_eq!(
        header_part(&mut short, KIND_NVME, &identity, registers, &FORMAT),
        None
    );
    let mut writer = Writer::new(&stream);
    for part in parts {
        stream.extend_from_slice(&writer.state(part).unwrap());
        stream.extend_from_slice(part);
    }
    stream.extend_from_slice(&writer.end().unwrap());
    stream
}

#[test]
fn a_stream_is_written_as_the_tables_say() {
    assert_eq!(written(Some(&REGISTERS), &STATE), golden());
    let ends: Vec<usize> = RECORDS[1..].to_vec();
    assert_eq!(*ends.last().unwrap(), golden().len());
    assert_eq!(writer::END, 32);
}

#[test]
fn a_stream_is_read_as_the_tables_say() {
    let mut expected = Came {
        identity: golden_identity(),
        header: Some(HeaderPart {
            minor: 0,
            kind: 1,
            identity_at: 48,
            registers: Some(REGISTERS),
            format: FORMAT,
        }),
        state: b"state of a card".to_vec(),
        ended: true,
    };
    assert_eq!(read([&golden()[..]]), (expected.clone(), Ok(())));
    let saved = written(None, &[b"state of a card"]);
    expected.header.as_mut().unwrap().registers = None;
    assert_eq!(read([&saved[..]]), (expected, Ok(())));
}

#[test]
fn an_identity_is_written_and_read_as_the_table_says() {
    let (values, namespaces) = golden_values();
    let golden = golden_identity();
    assert_eq!(identity::size(25, 2), golden.len());
    let mut buffer = vec![0xff; golden.len()];
    let mut builder = Builder::new(&mut buffer, &values).unwrap();
    for namespace in &namespaces {
        builder.namespace(namespace).unwrap();
    }
    assert_eq!(builder.finish(), golden.len());
    assert_eq!(buffer, golden);
    let view = View::decode(&golden).unwrap();
    assert_eq!(view.identity, values);
    assert_eq!(view.namespaces().unwrap().collect::<Vec<_>>(), namespaces);

    // Unknown, and known to be none.
    for known in [false, true] {
        let mut buffer = [0xff; 200];
        let mut builder = Builder::new(&mut buffer, &values).unwrap();
        if known {
            builder.namespaces_known();
        }
        let size = builder.finish();
        assert_eq!(size, identity::size(25, 0));
        assert_eq!(buffer[size - 6..size], [u8::from(known), 0, 0, 0, 0, 0]);
        let view = View::decode(&buffer[..size]).unwrap();
        assert_eq!(view.namespaces().map(|list| list.len()), known.then_some(0));
    }
}

#[test]
fn what_is_no_identity_is_not_written() {
    let (values, [first, _]) = golden_values();
    let mut buffer = vec![0; identity::MAX_SIZE];
    let long = [b'n'; 224];
    for subnqn in [&[][..], &long] {
        let values = identity::Identity { subnqn, ..values };
        let refused = Builder::new(&mut buffer, &values).err();
        assert_eq!(refused, Some(Unwritable::Subnqn));
    }
    for room in 0..identity::size(25, 0) {
        let refused = Builder::new(&mut buffer[..room], &values).err();
        assert_eq!(refused, Some(Unwritable::NoRoom));
    }
    let mut builder = Builder::new(&mut buffer, &values).unwrap();
    let nsid = |nsid| Namespace { nsid, ..first };
    assert_eq!(builder.namespace(&nsid(0)), Err(Unwritable::Nsid));
    assert_eq!(builder.namespace(&nsid(u32::MAX)), Err(Unwritable::Nsid));
    for n in 1..=1024 {
        builder.namespace(&nsid(n * 3)).unwrap();
        assert_eq!(builder.namespace(&nsid(n * 3)), Err(Unwritable::Nsid));
    }
    let refused = builder.namespace(&nsid(4000));
    assert_eq!(refused, Err(Unwritable::TooManyNamespaces));
    let size = builder.finish();
    assert_eq!(size, identity::size(25, 1024));
    let view = View::decode(&buffer[..size]).unwrap();
    assert_eq!(view.namespaces().unwrap().len(), 1024);
    // The largest identity that there is fits into a header part.
    assert!(header_part_size(identity::MAX_SIZE, true) <= MAX_HEADER_PART);
}

/// What is said of `stream`.
fn refused(stream: &[u8]) -> String {
    read([stream]).1.unwrap_err().to_string()
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut stream = golden();
    stream[at..at + bytes.len()].copy_from_slice(bytes);
    seal(&mut stream);
    stream
}

#[test]
fn errors_say_record_place_and_cause() {
    for (stream, error) in [
        (vec![], "stream at byte 0: the stream is cut short"),
        (
            b"QEVM, and many more bytes of it".to_vec(),
            "stream at byte 8: unknown flags",
        ),
        (
            record(77, 1, b""),
            "stream at byte 12: no migration stream: HEADER has to come first",
        ),
        (
            with(17, b"x"),
            "HEADER at byte 16: no migration stream of Zeroshift",
        ),
        (with(24, &[2]), "HEADER at byte 24: unknown major version"),
        (
            with(31, &[1]),
            "HEADER at byte 30: reserved bytes are not zero",
        ),
        (with(0, &[17]), "HEADER at byte 0: wrong size"),
        (
            with(8, &[0]),
            "HEADER at byte 8: record has to be mandatory",
        ),
        (with(8, &[3]), "HEADER at byte 8: unknown flags"),
        (with(32, &[80]), "IDENTITY at byte 32: wrong size"),
        (
            with(34, &[1]),
            "IDENTITY at byte 32: header part longer than 64 KiB",
        ),
        (
            with(39, &[0xff]),
            "IDENTITY at byte 32: header part longer than 64 KiB",
        ),
        (
            with(44, &[3]),
            "REGISTERS at byte 44: record in the wrong place",
        ),
        (with(233, &[24]), "REGISTERS at byte 233: wrong size"),
        (
            with(245, &[9]),
            "stream at byte 245: unknown record that is mandatory",
        ),
        (with(265, &[23]), "FORMAT at byte 265: wrong size"),
        (
            with(283, &[1]),
            "FORMAT at byte 283: reserved bytes are not zero",
        ),
        (with(305, &[0]), "STATE at byte 305: empty"),
        (
            with(308, &[4]),
            "STATE at byte 305: state longer than 64 MiB",
        ),
        (
            with(312, &[0xff]),
            "STATE at byte 305: state longer than 64 MiB",
        ),
        (with(341, &[6]), "END at byte 329: wrong size"),
        (
            with(368, &[16]),
            "END at byte 368: not the number of bytes that came",
        ),
        (
            [golden(), vec![0]].concat(),
            "END at byte 384: bytes behind the end",
        ),
    ] {
        let stream_error = match read([&stream[..]]) {
            (_, Err(error)) => error.to_string(),
            (_, Ok(())) => panic!("taken, instead of: {error}"),
        };
        assert_eq!(stream_error, error);
    }
    let mut broken = golden();
    broken[323] ^= 1;
    assert_eq!(refused(&broken), "END at byte 376: wrong checksum");
    let mut reserved = golden();
    reserved[380] = 1;
    let error = refused(&reserved);
    assert_eq!(error, "END at byte 380: reserved bytes are not zero");
    let mut reader = Reader::new();
    assert_eq!(reader.next(&mut &golden()[..305]).map(|_| ()), Ok(()));
}

#[test]
fn an_identity_that_is_none_is_refused_where_it_is_wrong() {
    for (at, byte, offset, what) in [
        (72, 0, 72, "SUBNQN has to have 1 to 223 bytes"),
        (72, 224, 72, "SUBNQN has to have 1 to 223 bytes"),
        (73, 1, 72, "SUBNQN has to have 1 to 223 bytes"),
        (99, 2, 99, "namespaces neither known nor unknown"),
        (99, 0, 101, "namespaces that are not known"),
        (102, 5, 101, "more than 1024 namespaces"),
        (101, 1, 145, "bytes behind the last namespace"),
        (101, 3, 185, "cut short"),
        (105, 0, 105, "NSIDs do not ascend"),
        (145, 1, 145, "NSIDs do not ascend"),
        (150, 1, 150, "reserved bytes are not zero"),
    ] {
        let mut identity = golden_identity();
        identity[at] = byte;
        let error = View::decode(&identity).unwrap_err();
        assert_eq!((error.offset, error.what), (offset, what), "{at}: {byte}");
        // The same in terms of the stream.
        let (came, result) = read([&with(48 + at, &[byte])[..]]);
        assert_eq!(result, Ok(()), "the reader leaves it to its caller");
        let error = came.header.unwrap().refused(&error);
        assert_eq!(
            error.to_string(),
            format!("IDENTITY at byte {}: {what}", 48 + offset)
        );
    }
    let golden = golden_identity();
    for length in 0..golden.len() {
        assert!(View::decode(&golden[..length]).is_err());
    }
}

#[test]
fn differences_name_the_field_and_both_values() {
    let golden = golden_identity();
    let mine = View::decode(&golden).unwrap();
    assert_eq!(identity::compare(&mine, &mine), Ok(()));
    let differs = |at: usize, byte: u8| {
        let mut changed = golden.clone();
        changed[at] = byte;
        let theirs = View::decode(&changed).unwrap();
        identity::compare(&mine, &theirs).unwrap_err().to_string()
    };
    for (at, byte, text) in [
        (
            0,
            0x54,
            "PCI vendor is 0x5a53 here and 0x5a54 in the stream",
        ),
        (2, 3, "PCI device is 0x2 here and 0x3 in the stream"),
        (
            5,
            0,
            "PCI subsystem vendor is 0x5a53 here and 0x53 in the stream",
        ),
        (6, 9, "PCI subsystem is 0x2 here and 0x9 in the stream"),
        (
            8,
            1,
            "PCI class and revision is 0x1080200 here and 0x1080201 in the stream",
        ),
        (
            21,
            b'2',
            "serial number is \"ZS00000001\" here and \"ZS00000002\" in the stream",
        ),
        (
            32,
            0x1b,
            "model is \"Zeroshift zerocard\" here and \"\\x1beroshift zerocard\" in the stream",
        ),
        (
            98,
            b'2',
            "SUBNQN is \"nqn.2026-01.org.example:1\" here and \"nqn.2026-01.org.example:2\" \
             in the stream",
        ),
        (105, 2, "NSID is 1 here and 2 in the stream"),
        (
            109,
            12,
            "namespace 1: block size as a power of two is 9 here and 12 in the stream",
        ),
        (
            153,
            1,
            "namespace 7: blocks is 131072 here and 131073 in the stream",
        ),
        (
            168,
            0xff,
            "namespace 7: EUI64 is c0c1c2c3c4c5c6c7 here and c0c1c2c3c4c5c6ff in the stream",
        ),
        (
            129,
            0,
            "namespace 1: NGUID is a0a1a2a3a4a5a6a7a8a9aaabacadaeaf here and \
             00a1a2a3a4a5a6a7a8a9aaabacadaeaf in the stream",
        ),
    ] {
        assert_eq!(differs(at, byte), text);
    }
    // One namespace less; and not known, on either side or both.
    let mut fewer = golden[..145].to_vec();
    fewer[101] = 1;
    let theirs = View::decode(&fewer).unwrap();
    assert_eq!(
        identity::compare(&mine, &theirs).unwrap_err().to_string(),
        "number of namespaces is 2 here and 1 in the stream"
    );
    let mut unknown = golden[..105].to_vec();
    unknown[99] = 0;
    unknown[101] = 0;
    let unknown = View::decode(&unknown).unwrap();
    assert_eq!(identity::compare(&mine, &unknown), Ok(()));
    assert_eq!(identity::compare(&unknown, &mine), Ok(()));
    assert_eq!(identity::compare(&unknown, &unknown), Ok(()));
}

#[test]
fn later_minor_versions_and_records_that_are_not_mandatory_are_taken() {
    let (came, result) = read([&with(26, &[0xff, 0xff])[..]]);
    assert_eq!(result, Ok(()));
    assert_eq!(came.header.unwrap().minor, u16::MAX);

    let golden = golden();
    let extra = [
        record(99, 0, b""),
        record(7, 0, b"of a later version"),
        record(u32::MAX, 0, &[7; 1000]),
    ]
    .concat();
    let mut longer = vec![];
    for pair in RECORDS.windows(2) {
        // Between any two records, but neither first nor last.
        if pair[0] != 0 {
            longer.extend_from_slice(&extra);
        }
        longer.extend_from_slice(&golden[pair[0]..pair[1]]);
    }
    seal(&mut longer);
    let (expected, _) = read([&golden[..]]);
    let (mut came, result) = read([&longer[..]]);
    assert_eq!(result, Ok(()));
    let at = &mut came.header.as_mut().unwrap().identity_at;
    *at -= extra.len() as u64;
    assert_eq!(came, expected);

    let behind = [golden.clone(), record(99, 0, b"")].concat();
    assert_eq!(refused(&behind), "END at byte 384: bytes behind the end");
    let zeroes = [&golden[..32], &[0; 16], &golden[32..]].concat();
    assert_eq!(refused(&zeroes), "stream at byte 44: no record: tag 0");
    let first = [record(99, 0, b""), golden].concat();
    assert!(refused(&first).contains("HEADER has to come first"));
}

#[test]
fn limits_hold() {
    // A header part of 64 KiB exactly, and of one byte more.
    let golden = golden();
    let room = MAX_HEADER_PART - 305;
    for (size, taken) in [(room - 16, true), (room - 15, false)] {
        let filler = record(99, 0, &vec![1; size]);
        let mut stream = [&golden[..32], &filler, &golden[32..]].concat();
        seal(&mut stream);
        let (_, result) = read([&stream[..]]);
        match result {
            Ok(()) => assert!(taken),
            Err(error) => {
                assert!(!taken);
                assert_eq!(error.what, "header part longer than 64 KiB");
                assert_eq!(error.record, Some(Record::Format));
            }
        }
    }
    // Behind it such a record has 64 KiB.
    for (size, taken) in [(64 << 10, true), ((64 << 10) + 1, false)] {
        let filler = record(99, 0, &vec![1; size]);
        let mut stream = [&golden[..305], &filler, &golden[305..]].concat();
        seal(&mut stream);
        assert_eq!(read([&stream[..]]).1.is_ok(), taken);
    }
    // 64 MiB of state in two parts, and one byte more.
    let half = vec![0xa5; 32 << 20];
    let most = written(None, &[&half, &half]);
    let (came, result) = read(most.chunks(1 << 20));
    assert_eq!(result, Ok(()));
    assert_eq!(came.state.len(), 64 << 20);
    let header = Record::State.header(1);
    let more = [&most[..most.len() - 32], &header, &[0]].concat();
    let error = read([&more[..]]).1.unwrap_err();
    assert_eq!(error.what, "state longer than 64 MiB");
    let mut writer = Writer::new(&[]);
    assert!(writer.end().is_none());
    assert!(writer.state(&[]).is_none());
    assert!(writer.state(&half).is_some());
    assert!(writer.state(&half).is_some());
    assert!(writer.state(&[0]).is_none());
    assert!(writer.end().is_some());
    let mut large = vec![0; 1 << 17];
    let identity = vec![0; MAX_HEADER_PART];
    assert!(header_part(&mut large, KIND_NVME, &identity, None, &FORMAT).is_none());
}
