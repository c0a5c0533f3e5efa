// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What holds for every data pointer, whichever way it is written.

use proptest::prelude::*;

use super::*;
use crate::memory::tests::{memfd, request};
use crate::pci::tests::Bench;

/// Memory from address 0, with a hole in it if wanted.
#[derive(Debug)]
pub(super) struct Image {
    bytes: Vec<u8>,
    /// An address that is not mapped.
    pub(super) gone: Option<u64>,
}

impl Image {
    pub(super) fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            gone: None,
        }
    }

    pub(super) fn put(&mut self, iova: u64, data: &[u8]) {
        self.bytes[iova as usize..][..data.len()].copy_from_slice(data);
    }
}

impl Reader for Image {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        let end = iova.checked_add(data.len() as u64);
        let end = end.ok_or(DmaError::NotMapped)?;
        if self.gone.is_some_and(|gone| (iova..end).contains(&gone)) {
            return Err(DmaError::NotMapped);
        }
        let range = iova as usize..end as usize;
        data.copy_from_slice(self.bytes.get(range).ok_or(DmaError::NotMapped)?);
        Ok(())
    }
}

/// Address and length of each segment; there is no bit bucket among them.
pub(super) fn pieces(segments: &Segments) -> Vec<(u64, u32)> {
    segments.iter().map(|s| (s.iova.unwrap(), s.len)).collect()
}

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench
        .memory
        .map(request(0, 0x10_0000, 0), Some(&memfd(0x10_0000)))
        .unwrap();
    bench
}

const RULES: Rules = Rules {
    page: 4096,
    sgl: true,
    to_host: true,
};

#[test]
fn data_goes_where_the_entries_say_and_comes_back_from_there() {
    let mut bench = bench();
    let data: Vec<u8> = (0..4096u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
    let command = Command {
        prp1: 0x1804,
        prp2: 0x9000,
        ..Command::new(0x06)
    };
    write(&command, RULES, data.len() as u64, &data, &bench.bus()).unwrap();
    let mut tail = vec![0; 0x804];
    bench.memory.read(0x9000, &mut tail).unwrap();
    assert_eq!(tail, data[0x7fc..]);
    let mut back = vec![0; 4096];
    read(&command, RULES, &mut back, &bench.bus()).unwrap();
    assert_eq!(back, data);
}

#[test]
fn bit_buckets_skip_data() {
    let mut bench = bench();
    let mut list = [0; 48];
    // Data block of 2 bytes at 1000h, bit bucket of 3, data block of 2 at 2000h.
    (list[1], list[8]) = (0x10, 2);
    (list[24], list[31]) = (3, 0x10);
    (list[33], list[40]) = (0x20, 2);
    bench.memory.write(0x8000, &list).unwrap();
    let command = Command {
        flags: 0x80,
        prp1: 0x8000,
        prp2: 0x3000_0000_0000_0030,
        ..Command::new(0x02)
    };
    write(&command, RULES, 7, &[1, 2, 3, 4, 5, 6, 7], &bench.bus()).unwrap();
    for (iova, expected) in [(0x1000, [1, 2, 0]), (0x2000, [6, 7, 0])] {
        let mut found = [0; 3];
        bench.memory.read(iova, &mut found).unwrap();
        assert_eq!(found, expected);
    }
}

#[test]
fn sgls_are_refused_where_they_are_not_supported_and_11b_everywhere() {
    let image = Image::new(0);
    let mut out = Segments::default();
    let block = |flags| Command {
        flags,
        prp1: 0x1000,
        prp2: 0x200,
        ..Command::new(0x02)
    };
    let mut run = |flags, sgl| {
        resolve(
            &block(flags),
            0x200,
            Rules { sgl, ..RULES },
            &image,
            &mut out,
        )
    };
    for flags in [0x40, 0x80] {
        assert_eq!(run(flags, true), Ok(()));
        assert_eq!(run(flags, false), Err(Status::INVALID_FIELD));
    }
    assert_eq!(run(0xc0, true), Err(Status::INVALID_FIELD));
    assert_eq!(run(0, false), Ok(()));
}

#[test]
fn segments_are_forgotten_by_the_next_transfer_and_their_room_is_kept() {
    let image = Image::new(0);
    let mut out = Segments::default();
    let command = Command {
        prp1: 0x1000,
        prp2: 0x5000,
        ..Command::new(0x02)
    };
    resolve(&command, 0x2000, RULES, &image, &mut out).unwrap();
    let room = out.0.as_ptr();
    resolve(&command, 0x1800, RULES, &image, &mut out).unwrap();
    assert_eq!(pieces(&out), [(0x1000, 0x1000), (0x5000, 0x800)]);
    assert_eq!(out.0.as_ptr(), room);
    resolve(&command, 0, RULES, &image, &mut out).unwrap();
    assert!(out.iter().next().is_none());
}

/// Memory and commands in which lists are often valid, and often nearly so.
fn descriptor() -> impl Strategy<Value = [u8; 16]> {
    let identifier = prop_oneof![
        6 => Just(0x00u8),
        2 => Just(0x10),
        2 => Just(0x20),
        2 => Just(0x30),
        1 => any::<u8>(),
    ];
    let address = prop_oneof![8 => (0u64..0x800).prop_map(|i| i * 8), 1 => any::<u64>()];
    let len = prop_oneof![8 => (0u32..0x20).prop_map(|i| i * 16), 1 => any::<u32>()];
    (address, len, identifier).prop_map(|(address, len, identifier)| {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[15] = identifier;
        raw
    })
}

fn image() -> impl Strategy<Value = Image> {
    let entry = prop_oneof![
        descriptor(),
        any::<[u8; 16]>(),
        // Two PRP entries.
        any::<[u16; 2]>().prop_map(|pages| {
            let [one, two] = pages.map(|page| u64::from(page & 0x803) << 12);
            (u128::from(two) << 64 | u128::from(one)).to_le_bytes()
        }),
    ];
    (proptest::collection::vec(entry, 0x80), any::<bool>()).prop_map(|(entries, hole)| Image {
        // Lists that are longer than that come round again.
        bytes: entries.concat().repeat(8),
        gone: hole.then_some(0x2100),
    })
}

proptest! {
    #[test]
    fn whatever_the_guest_writes_the_data_is_covered_or_refused(
        mut entry in any::<[u8; 64]>(),
        pointer in proptest::option::weighted(0.9, descriptor()),
        psdt in 0u8..3,
        to_host in any::<bool>(),
        image in image(),
        len in prop_oneof![0u64..0x400, 0u64..0x10_0000],
    ) {
        if let Some(pointer) = pointer {
            entry[24..40].copy_from_slice(&pointer);
            entry[1] = psdt << 6;
        }
        let command = Command::from_bytes(&entry);
        let mut out = Segments::default();
        let rules = Rules { to_host, ..RULES };
        let result = resolve(&command, len, rules, &image, &mut out);
        let found: Vec<_> = out.iter().collect();
        let total: u64 = found.iter().map(|s| u64::from(s.len)).sum();
        prop_assert!(total <= len);
        if result.is_ok() {
            prop_assert_eq!(total, len);
        }
        for (i, segment) in found.iter().enumerate() {
            prop_assert!(segment.len > 0);
            prop_assert!(segment.iova.is_some() || to_host);
            if let Some(iova) = segment.iova {
                prop_assert!(iova.checked_add(u64::from(segment.len) - 1).is_some());
                // What could be one segment is one.
                let next = found.get(i + 1).and_then(|next| next.iova);
                let end = iova.checked_add(segment.len.into());
                prop_assert!(next.is_none() || next != end);
            }
        }
    }
}
