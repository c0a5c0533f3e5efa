// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! What holds for every stream: pieces do not matter, a damaged or short one is refused, noise does
//! no harm. `PROPTEST_CASES` makes all of it longer.

mod common;

use common::{fuzz, golden, read, rebuild, seal, Came, RECORDS};
use proptest::prelude::*;
use zeroshift_stream::format::Format;
use zeroshift_stream::identity::{self, Builder, Identity, Namespace, View};
use zeroshift_stream::reader::HeaderPart;
use zeroshift_stream::record::KIND_NVME;
use zeroshift_stream::registers::Registers;
use zeroshift_stream::writer::{header_part, Writer};

/// Everything that goes into a stream.
#[derive(Clone, Debug)]
struct Made {
    numbers: [u16; 4],
    class_revision: u32,
    serial: [u8; 20],
    model: [u8; 40],
    subnqn: Vec<u8>,
    namespaces: Option<Vec<Namespace>>,
    registers: Option<Registers>,
    format: Format,
    state: Vec<Vec<u8>>,
}

prop_compose! {
    fn namespace()(
        step in 1u32..5, block_shift: u8, blocks: u64, eui64: [u8; 8], nguid: [u8; 16],
    ) -> Namespace {
        Namespace { nsid: step, block_shift, blocks, eui64, nguid }
    }
}

prop_compose! {
    fn made()(
        numbers: [u16; 4],
        class_revision: u32,
        serial: [u8; 20],
        model in proptest::collection::vec(any::<u8>(), 40),
        subnqn in proptest::collection::vec(any::<u8>(), 1..224),
        mut namespaces in proptest::option::of(proptest::collection::vec(namespace(), 0..20)),
        registers in proptest::option::of(any::<(u64, u32, u32)>()),
        format: (u16, [u8; 16]),
        state in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 1..5),
    ) -> Made {
        let mut nsid = 0;
        for namespace in namespaces.iter_mut().flatten() {
            nsid += namespace.nsid;
            namespace.nsid = nsid;
        }
        Made {
            numbers, class_revision, serial, subnqn, namespaces, state,
            model: model.try_into().unwrap(),
            registers: registers.map(|(cap, version, vectors)| Registers { cap, version, vectors }),
            format: Format { version: format.0, uuid: format.1 },
        }
    }
}

impl Made {
    fn identity(&self) -> Vec<u8> {
        let mut buffer = vec![0; identity::MAX_SIZE];
        let [vendor, device, subsystem_vendor, subsystem] = self.numbers;
        let values = Identity {
            vendor,
            device,
            subsystem_vendor,
            subsystem,
            class_revision: self.class_revision,
            serial: &self.serial,
            model: &self.model,
            subnqn: &self.subnqn,
        };
        let mut builder = Builder::new(&mut buffer, &values).unwrap();
        if let Some(namespaces) = &self.namespaces {
            builder.namespaces_known();
            for namespace in namespaces {
                builder.namespace(namespace).unwrap();
            }
        }
        let size = builder.finish();
        buffer.truncate(size);
        buffer
    }

    fn stream(&self) -> Vec<u8> {
        let mut stream = vec![0; 64 << 10];
        let registers = self.registers.as_ref();
        let identity = self.identity();
        let size = header_part(&mut stream, KIND_NVME, &identity, registers, &self.format);
        stream.truncate(size.unwrap());
        let mut writer = Writer::new(&stream);
        for part in &self.state {
            stream.extend_from_slice(&writer.state(part).unwrap());
            stream.extend_from_slice(part);
        }
        stream.extend_from_slice(&writer.end().unwrap());
        stream
    }

    fn expected(&self) -> Came {
        Came {
            identity: self.identity(),
            header: Some(HeaderPart {
                minor: 0,
                kind: 1,
                identity_at: 48,
                registers: self.registers,
                format: self.format,
            }),
            state: self.state.concat(),
            ended: true,
        }
    }
}

/// `bytes`, cut where `cuts` say.
fn pieces<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.push(bytes.len());
    at.sort_unstable();
    let mut begin = 0;
    at.iter()
        .map(|&end| &bytes[std::mem::replace(&mut begin, end)..end])
        .collect()
}

proptest! {
    #[test]
    fn what_is_written_is_read_whatever_the_pieces(
        made in made(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let stream = made.stream();
        let expected = (made.expected(), Ok(()));
        prop_assert_eq!(&read([&stream[..]]), &expected);
        prop_assert_eq!(&read(pieces(&stream, &cuts)), &expected);
        prop_assert_eq!(&read(stream.chunks(1)), &expected);
        let view = View::decode(&expected.0.identity).unwrap();
        prop_assert_eq!(&rebuild(&view), &expected.0.identity);
    }

    #[test]
    fn identities_that_differ_are_told_apart(one in made(), other in made()) {
        let (a, b) = (one.identity(), other.identity());
        let (a, b) = (View::decode(&a).unwrap(), View::decode(&b).unwrap());
        let known = one.namespaces.is_some() && other.namespaces.is_some();
        let equal = a.identity == b.identity && (!known || one.namespaces == other.namespaces);
        prop_assert_eq!(identity::compare(&a, &b).is_ok(), equal);
        // Only the namespaces differ.
        let mut close = one.clone();
        close.namespaces.clone_from(&other.namespaces);
        let c = close.identity();
        let c = View::decode(&c).unwrap();
        let equal = !known || one.namespaces == other.namespaces;
        prop_assert_eq!(identity::compare(&a, &c).is_ok(), equal);
    }

    #[test]
    fn damage_is_refused_and_says_the_same_in_all_pieces(
        made in made(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let stream = made.stream();
        let mut broken = stream.clone();
        for (at, change) in damage {
            broken[at.index(stream.len())] ^= change;
        }
        prop_assume!(broken != stream);
        let whole = read([&broken[..]]);
        prop_assert!(whole.1.is_err());
        prop_assert_eq!(read(pieces(&broken, &cuts)), whole);
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let golden = golden();
    for bit in 0..golden.len() * 8 {
        let mut stream = golden.clone();
        stream[bit / 8] ^= 1 << (bit % 8);
        let (came, result) = read([&stream[..]]);
        assert!(result.is_err() && !came.ended, "bit {bit}");
    }
}

/// With a checksum that fits, a bit counts for what it says: most of the structure is refused, and
/// of values exactly the one that the bit is in changes.
#[test]
fn every_flipped_bit_under_a_good_checksum_has_its_own_effect_only() {
    let golden = golden();
    let (expected, _) = read([&golden[..]]);
    let mut taken = vec![0; golden.len()];
    for bit in 0..(golden.len() - 8) * 8 {
        let mut stream = golden.clone();
        stream[bit / 8] ^= 1 << (bit % 8);
        seal(&mut stream);
        let (came, result) = read([&stream[..]]);
        if result.is_err() {
            continue;
        }
        taken[bit / 8] += 1;
        let mut other = came.clone();
        let changed = match bit / 8 {
            26..=29 => {
                let header = other.header.as_mut().unwrap();
                header.minor = 0;
                header.kind = 1;
                came.header != expected.header
            }
            48..=232 => {
                other.identity.clone_from(&expected.identity);
                came.identity != expected.identity
            }
            249..=264 | 281..=282 | 289..=304 => {
                other.header = expected.header;
                came.header != expected.header
            }
            321..=328 | 345..=351 => {
                other.state.clone_from(&expected.state);
                came.state != expected.state
            }
            at => panic!("byte {at} was changed and taken"),
        };
        assert!(changed, "bit {bit} without effect");
        assert_eq!(other, expected, "bit {bit} with another effect");
    }
    // All bits of all values, and no other.
    let values = (26..30)
        .chain(48..233)
        .chain(249..265)
        .chain(281..283)
        .chain(289..305)
        .chain(321..329)
        .chain(345..352);
    let all: Vec<usize> = values.collect();
    for (at, bits) in taken.iter().enumerate() {
        assert_eq!(*bits, if all.contains(&at) { 8 } else { 0 }, "byte {at}");
    }
}

#[test]
fn every_short_stream_is_refused_with_its_length() {
    let golden = golden();
    for length in 0..golden.len() {
        let (came, result) = read([&golden[..length]]);
        let error = result.unwrap_err();
        assert_eq!(error.offset, length as u64);
        assert_eq!(error.what, "the stream is cut short");
        assert!(!came.ended);
        // With its end in place, and the checksum to go with it, the length gives it away.
        if (RECORDS[4]..RECORDS[6]).contains(&length) {
            let mut stream = [&golden[..length], &golden[RECORDS[6]..]].concat();
            seal(&mut stream);
            assert!(read([&stream[..]]).1.is_err(), "{length}");
        }
    }
}

#[test]
fn records_in_any_other_order_are_refused() {
    let golden = golden();
    let records: Vec<&[u8]> = RECORDS.windows(2).map(|r| &golden[r[0]..r[1]]).collect();
    for from in 0..records.len() {
        // Left out; twice.
        let mut without = records.clone();
        without.remove(from);
        let mut twice = records.clone();
        twice.insert(from, records[from]);
        for changed in [without, twice] {
            let mut stream = changed.concat();
            seal(&mut stream);
            // REGISTERS may be missing.
            let fine = from == 2 && changed.len() < records.len();
            assert_eq!(read([&stream[..]]).1.is_ok(), fine, "{from}");
        }
        for to in 0..records.len() {
            let mut swapped = records.clone();
            swapped.swap(from, to);
            let mut stream = swapped.concat();
            seal(&mut stream);
            // Two parts of the state.
            let fine = from == to || [from, to] == [4, 5] || [from, to] == [5, 4];
            assert_eq!(read([&stream[..]]).1.is_ok(), fine, "{from} {to}");
        }
    }
}

/// Fifty inputs for each case of a property, a million in the soak run.
#[test]
fn noise_does_no_harm() {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases: u64 = cases.map_or(256, |cases| cases.parse().unwrap());
    let mut random = 0x5a53_4d49_4752_5431_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let golden = golden();
    let mut ended = 0;
    for _ in 0..cases * 50 {
        let mut bytes = golden.clone();
        match next() % 4 {
            // Nothing but noise.
            0 => bytes.iter_mut().for_each(|byte| *byte = next() as u8),
            // A few bytes changed.
            1 => {
                for _ in 0..=next() % 4 {
                    let at = next() as usize % bytes.len();
                    bytes[at] = next() as u8;
                }
            }
            // A piece left out, or somewhere else.
            2 => {
                let from = next() as usize % bytes.len();
                let piece: Vec<u8> = bytes.drain(from..).take(next() as usize % 64).collect();
                bytes.extend_from_slice(&golden[from..]);
                let at = next() as usize % bytes.len();
                bytes.splice(at..at, piece);
            }
            // Sizes, flags and tags changed.
            _ => {
                let record = RECORDS[next() as usize % 7];
                bytes[record + next() as usize % 16] = next() as u8 & 0x7;
            }
        }
        if next() % 2 == 0 {
            seal(&mut bytes);
        }
        bytes.truncate(bytes.len() - (next() % 4) as usize % 3);
        ended += u64::from(read([&bytes[..]]).0.ended);
        fuzz(&bytes);
    }
    assert!(ended > cases, "the noise is too loud: {ended} good streams");
}
