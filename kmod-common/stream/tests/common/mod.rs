// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! What the tests of the stream share: a stream written down byte by byte, a caller that keeps what
//! a reader gives, and the driver that takes any bytes.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc
)]

use zeroshift_stream::crc::crc32;
use zeroshift_stream::error::Error;
use zeroshift_stream::identity::{self, Identity, Malformed, Namespace, View};
use zeroshift_stream::reader::{Event, HeaderPart, Reader};

/// Byte offset of each record of [`golden`], and its end.
pub const RECORDS: [usize; 8] = [0, 32, 233, 265, 305, 329, 352, 384];

/// Parts of the state in [`golden`].
pub const STATE: [&[u8]; 2] = [b"state of", b" a card"];

/// The identity record of [`golden`], from the table of section 13.
pub fn golden_identity() -> Vec<u8> {
    let parts: [&[u8]; 13] = [
        // PCI vendor, device, subsystem vendor, subsystem; class << 8 | revision.
        &[0x53, 0x5a, 0x02, 0x00, 0x53, 0x5a, 0x02, 0x00],
        &[0x00, 0x02, 0x08, 0x01],
        b"ZS00000001          ",
        b"Zeroshift zerocard                      ",
        &[25, 0],
        b"nqn.2026-01.org.example:1",
        // Namespaces are known, two of them.
        &[1, 0],
        &[2, 0, 0, 0],
        // NSID 1, blocks of 512 bytes, 2^20 of them, no EUI64.
        &[1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0],
        &[0; 8],
        &[
            0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad,
            0xae, 0xaf,
        ],
        // NSID 7, blocks of 4096 bytes, 2^17 of them, no NGUID.
        &[7, 0, 0, 0, 12, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0],
        &[
            0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0,
        ],
    ];
    parts.concat()
}

/// A whole stream, from the tables of section 13.
pub fn golden() -> Vec<u8> {
    let identity = golden_identity();
    let parts: [&[u8]; 14] = [
        &[16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
        &[
            0x5a, 0x53, 0x4d, 0x49, 0x47, 0x52, 0x54, 0x31, 1, 0, 0, 0, 1, 0, 0, 0,
        ],
        &[185, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0],
        &identity,
        &[16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0],
        // CAP, VS 2.1.0, 17 vectors.
        &[
            0xff, 0x0f, 0x01, 0x0f, 0x20, 0x00, 0xf0, 0x00, 0x00, 0x01, 0x02, 0x00, 17, 0, 0, 0,
        ],
        &[24, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0],
        &[
            0, 0, 0, 0, 0, 0, 0, 0, 0x9e, 0xdb, 0xdb, 0x91, 0x8d, 0x5f, 0x46, 0xfc, 0xb4, 0x82,
            0x6c, 0x7d, 0x39, 0x3c, 0x7a, 0x9b,
        ],
        &[8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0],
        STATE[0],
        &[7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0],
        STATE[1],
        &[16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0, 0, 0],
        // 15 bytes, their CRC-32 (computed by another program), reserved.
        &[15, 0, 0, 0, 0, 0, 0, 0, 0x5f, 0xde, 0x9e, 0xf0, 0, 0, 0, 0],
    ];
    parts.concat()
}

/// A record as it travels.
pub fn record(tag: u32, flags: u32, value: &[u8]) -> Vec<u8> {
    let size = (value.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [&size, &flags.to_le_bytes(), &tag.to_le_bytes(), value];
    parts.concat()
}

/// Makes the checksum at the end right again.
pub fn seal(stream: &mut [u8]) {
    let at = stream.len() - 8;
    let sum = crc32(&stream[..at]);
    stream[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// What came of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Came {
    pub identity: Vec<u8>,
    pub header: Option<HeaderPart>,
    pub state: Vec<u8>,
    pub ended: bool,
}

impl Came {
    /// Keeps an event, and checks that it may come now.
    pub fn keep(&mut self, event: Event<'_>) {
        assert!(!self.ended, "{event:?} behind the end");
        match event {
            Event::Identity(bytes) => {
                assert!(!bytes.is_empty() && self.header.is_none());
                self.identity.extend_from_slice(bytes);
            }
            Event::Header(header) => {
                assert!(self.header.is_none());
                self.header = Some(header);
            }
            Event::State(bytes) => {
                assert!(!bytes.is_empty() && self.header.is_some());
                self.state.extend_from_slice(bytes);
            }
            Event::End => self.ended = true,
        }
    }
}

/// Reads a stream that comes in `pieces`, to its end or to the error.
pub fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Came, Result<(), Error>) {
    let mut reader = Reader::new();
    let mut came = Came::default();
    for mut piece in pieces {
        loop {
            match reader.next(&mut piece) {
                Ok(Some(event)) => came.keep(event),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.next(&mut piece), Err(error), "an error stays");
                    assert_eq!(reader.finish(), Err(error));
                    return (came, Err(error));
                }
            }
        }
        assert!(piece.is_empty(), "{} bytes were not taken", piece.len());
    }
    let result = reader.finish();
    assert_eq!(result.is_ok(), came.ended);
    (came, result)
}

/// An identity and its namespaces, for building it again.
pub fn rebuild(view: &View<'_>) -> Vec<u8> {
    let mut buffer = vec![0xff; identity::MAX_SIZE];
    let mut builder = identity::Builder::new(&mut buffer, &view.identity).unwrap();
    if let Some(namespaces) = view.namespaces() {
        builder.namespaces_known();
        for namespace in namespaces {
            builder.namespace(&namespace).unwrap();
        }
    }
    let size = builder.finish();
    buffer.truncate(size);
    buffer
}

/// Takes any bytes; panics when the parsers do, or when they contradict themselves.
pub fn fuzz(bytes: &[u8]) {
    let (whole, result) = read([bytes]);
    // Cut differently, it is the same stream.
    let cut = usize::from(bytes.first().copied().unwrap_or(0)) % 61 + 1;
    assert_eq!(read(bytes.chunks(cut)), (whole.clone(), result));
    if let Err(error) = result {
        assert!(error.offset <= bytes.len() as u64, "{error}");
        assert!(!error.to_string().is_empty());
    }
    for identity in [bytes, &whole.identity] {
        match View::decode(identity) {
            Ok(view) => {
                assert_eq!(rebuild(&view), identity);
                assert_eq!(identity::compare(&view, &view), Ok(()));
            }
            Err(Malformed { offset, .. }) => assert!(offset <= identity.len()),
        }
    }
}

/// The identity of [`golden_identity`] as values.
pub fn golden_values() -> (Identity<'static>, [Namespace; 2]) {
    let identity = Identity {
        vendor: 0x5a53,
        device: 2,
        subsystem_vendor: 0x5a53,
        subsystem: 2,
        class_revision: 0x0108_0200,
        serial: b"ZS00000001          ",
        model: b"Zeroshift zerocard                      ",
        subnqn: b"nqn.2026-01.org.example:1",
    };
    let namespaces = [
        Namespace {
            nsid: 1,
            block_shift: 9,
            blocks: 1 << 20,
            eui64: [0; 8],
            nguid: std::array::from_fn(|n| 0xa0 + n as u8),
        },
        Namespace {
            nsid: 7,
            block_shift: 12,
            blocks: 1 << 17,
            eui64: std::array::from_fn(|n| 0xc0 + n as u8),
            nguid: [0; 16],
        },
    ];
    (identity, namespaces)
}
