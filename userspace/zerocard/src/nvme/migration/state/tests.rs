// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The records as section 10 of `docs/interfaces.md` lays them out, and what is not one.

use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::status::Status;

use super::*;

const BOTH: Parts = Parts {
    standard: true,
    vendor: true,
};

/// An image in which every field is something.
fn image() -> Image {
    let mut interrupts = [0; 32];
    interrupts[31] = 0x80;
    Image {
        identity: Identity {
            serial: *b"12345678901234567890",
            model: [b'm'; 40],
            subnqn: [b'n'; 256],
            mdts: 1,
            doorbell_stride: 2,
            submission_entry: 3,
            completion_entry: 4,
            max_queue: 0x0605,
            io_queues: 0x0807,
            vectors: 0x0a09,
        },
        namespaces: vec![Namespace {
            id: 0x0403_0201,
            block_shift: 5,
            blocks: 0x1817_1615_1413_1211,
            nguid: *b"0123456789abcdef",
        }],
        registers: Registers {
            cc: 0x0403_0201,
            csts: 0x1413_1211,
            aqa: 0x2423_2221,
            asq: 0x3837_3635_3433_3231,
            acq: 0x4847_4645_4443_4241,
        },
        admin_queues: Some(AdminQueues {
            submission: Ring {
                base: 0x0807_0605_0403_0201,
                size: 0x0a09,
                head: 0x0c0b,
                tail: 0x0e0d,
            },
            completion: Ring {
                base: 0x1817_1615_1413_1211,
                size: 0x1a19,
                head: 0x1c1b,
                tail: 0x1e1d,
            },
            slot_0_phase: true,
            page_shift: 13,
        }),
        features: Features {
            workload_hint: 1,
            write_cache: true,
            write_atomicity: true,
            over: 0x0302,
            under: 0x0504,
            error_recovery: 0x0706,
            events: 0x1312_1110,
            arbitration: 0x2322_2120,
            coalescing: 0x3130,
            host_identifier: *b"ABCDEFGHIJKLMNOP",
            uncoalesced: [1, 2, 3, 4],
        },
        events: Events {
            requests: vec![0x0201, 0x0403],
            pending: vec![[5, 6, 7]],
            reported: vec![[8, 9, 10], [11, 12, 13]],
        },
        completions: vec![Completion {
            dw0: 0x0403_0201,
            dw1: 0x1413_1211,
            sqhd: 0x2221,
            sqid: 0x3231,
            cid: 0x4241,
            phase: false,
            status: Status::ABORT_REQUESTED,
        }],
        doorbell_buffers: Some(DoorbellBuffers {
            doorbells: 0x0807_0605_0403_0201,
            event_indices: 0x1817_1615_1413_1211,
        }),
        interrupts,
        errors: ErrorLog {
            count: 9,
            entries: vec![[0xee; 64]],
        },
    }
}

/// The same as bytes, written by hand.
fn golden() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0x80, 4, 0, 0, 0, 1, 0, 1, 0];
    bytes.extend([1, 0, 0, 0x80, 0x48, 1, 0, 0]);
    bytes.extend(b"12345678901234567890");
    bytes.extend([b'm'; 40]);
    bytes.extend([b'n'; 256]);
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0]);
    bytes.extend([2, 0, 0, 0x80, 32, 0, 0, 0]);
    bytes.extend([1, 2, 3, 4, 5, 0, 0, 0]);
    bytes.extend([0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
    bytes.extend(b"0123456789abcdef");
    bytes.extend([3, 0, 0, 0x80, 32, 0, 0, 0]);
    bytes.extend([1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14]);
    bytes.extend([0x21, 0x22, 0x23, 0x24, 0, 0, 0, 0]);
    bytes.extend([0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38]);
    bytes.extend([0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48]);
    bytes.extend([4, 0, 0, 0x80, 36, 0, 0, 0]);
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0, 0]);
    bytes.extend([0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
    bytes.extend([0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0, 0, 1, 13, 0, 0]);
    bytes.extend([5, 0, 0, 0x80, 72, 0, 0, 0]);
    bytes.extend([1, 3, 2, 3, 4, 5, 6, 7, 0x10, 0x11, 0x12, 0x13]);
    bytes.extend([0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"ABCDEFGHIJKLMNOP");
    for n in 1..=4 {
        bytes.extend([n, 0, 0, 0, 0, 0, 0, 0]);
    }
    bytes.extend([6, 0, 0, 0x80, 20, 0, 0, 0, 2, 1, 2, 0, 1, 2, 3, 4]);
    bytes.extend([5, 6, 7, 0, 8, 9, 10, 0, 11, 12, 13, 0]);
    bytes.extend([
        7, 0, 0, 0x80, 16, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14,
    ]);
    bytes.extend([0x21, 0x22, 0x31, 0x32, 0x41, 0x42, 0x0e, 0]);
    bytes.extend([8, 0, 0, 0x80, 16, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    bytes.extend([0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
    bytes.extend([9, 0, 0, 0x80, 32, 0, 0, 0]);
    bytes.extend([0; 31]);
    bytes.push(0x80);
    bytes.extend([10, 0, 0, 0, 72, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0xee; 64]);
    bytes
}

#[test]
fn records_have_the_layout_of_the_document() {
    assert_eq!(image().encode(), golden());
    assert_eq!(Image::decode(&golden()), Ok(image()));
}

#[test]
fn a_disabled_controller_needs_fewer_records() {
    let least = Image {
        admin_queues: None,
        completions: Vec::new(),
        doorbell_buffers: None,
        ..image()
    };
    let bytes = least.encode();
    assert_eq!(Image::decode(&bytes), Ok(least));
    // The error log is the optional one.
    let end = bytes.len() - 80;
    assert_eq!(
        Image::decode(&bytes[..end]).unwrap().errors,
        ErrorLog::default()
    );
}

#[test]
fn unknown_records_are_skipped_unless_they_are_mandatory() {
    let mut bytes = golden();
    bytes.extend([0x34, 0x12, 0, 0, 3, 0, 0, 0, 1, 2, 3, 0]);
    assert_eq!(Image::decode(&bytes), Ok(image()));
    let at = bytes.len() - 9;
    bytes[at] = 0x80;
    assert!(Image::decode(&bytes).is_err());
}

#[test]
fn every_cut_and_every_second_record_is_an_error() {
    let bytes = golden();
    // Without the optional last record it is whole as well.
    let whole = [bytes.len() - 80, bytes.len()];
    for end in 0..bytes.len() {
        let cut = Image::decode(&bytes[..end]);
        assert_eq!(cut.is_ok(), whole.contains(&end), "{end}");
    }
    for record in tlv::records(&bytes) {
        let (kind, value) = record.unwrap();
        let mut twice = bytes.clone();
        tlv::put(&mut twice, kind, value);
        assert!(Image::decode(&twice).is_err(), "{kind:#x}");
        // One byte more or less than the fields.
        let mut longer = Vec::new();
        for record in tlv::records(&bytes) {
            let (other, value) = record.unwrap();
            let more = [value, &[0]].concat();
            tlv::put(
                &mut longer,
                other,
                if other == kind { &more } else { value },
            );
        }
        assert!(Image::decode(&longer).is_err(), "{kind:#x}");
    }
    let other_version = [0, 0, 0, 0x80, 4, 0, 0, 0, 2, 0, 1, 0];
    let other_kind = [0, 0, 0, 0x80, 4, 0, 0, 0, 1, 0, 2, 0];
    for start in [other_version, other_kind] {
        let changed = [&start, &bytes[12..]].concat();
        assert!(Image::decode(&changed).is_err());
    }
    let late = [&bytes[12..], &bytes[..12]].concat();
    assert!(Image::decode(&late).is_err(), "the format comes first");
}

#[test]
fn the_checksum_is_the_usual_crc_and_covers_everything() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    let contents = Contents {
        queues: Some(IoQueues {
            submission: vec![SubmissionQueue {
                size: 1,
                id: 1,
                completion_queue: 1,
                ..SubmissionQueue::default()
            }],
            completion: vec![CompletionQueue {
                size: 1,
                id: 1,
                ..CompletionQueue::default()
            }],
        }),
        image: Some(image()),
    };
    let state = contents.encode(true);
    let records = state.len() - 12;
    assert_eq!(state[104..records], golden());
    assert_eq!(state[records..][..8], [0xff, 0, 0, 0x80, 4, 0, 0, 0]);
    assert_eq!(Contents::decode(&state, BOTH), Ok(contents));
    for at in 0..state.len() {
        for bit in [0, 7] {
            let mut flipped = state.clone();
            flipped[at] ^= 1 << bit;
            assert!(Contents::decode(&flipped, BOTH).is_err(), "byte {at}");
        }
        assert!(Contents::decode(&state[..at], BOTH).is_err(), "cut at {at}");
    }
    // What comes behind it does not count.
    let longer = [&state[..], &[1, 2, 3]].concat();
    assert!(Contents::decode(&longer, BOTH).is_ok());
}

#[test]
fn the_parts_are_those_that_the_command_names() {
    let contents = |queues, image| Contents { queues, image };
    let both = contents(Some(IoQueues::default()), Some(image()));
    let standard = contents(Some(IoQueues::default()), None);
    let vendor = contents(None, Some(image()));
    let parts = [(true, true), (true, false), (false, true)];
    for (n, state) in [both, standard, vendor].iter().enumerate() {
        let bytes = state.encode(true);
        for (m, (standard, vendor)) in parts.into_iter().enumerate() {
            let decoded = Contents::decode(&bytes, Parts { standard, vendor });
            assert_eq!(decoded.is_ok(), n == m, "{n} {m}");
        }
        let (standard, vendor) = parts[n];
        let running = state.encode(false);
        assert!(Contents::decode(&running, Parts { standard, vendor }).is_err());
    }
}
