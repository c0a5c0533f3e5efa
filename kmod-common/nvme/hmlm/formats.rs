// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Supported Controller State Formats, Identify CNS 20h: NVMe Base 2.1, section 5.1.13.2.21, figure
//! 329.
//!
//! Two lists whose positions, counted from 1, are the indices CSVI and CSUUIDI of Migration Send
//! and Receive. Only the managing controller reports them.

use super::super::bytes;
use super::super::identify::SIZE;
use super::Malformed;

const HEADER: usize = 2;
const UUID: usize = 16;

/// Writes the data structure into `page`; `None` when the lists are too long for it (255 entries
/// each, 4096 bytes together). UUIDs are in the byte order of RFC 9562.
pub fn encode(page: &mut [u8; SIZE], versions: &[u16], uuids: &[[u8; UUID]]) -> Option<()> {
    let counts = [
        u8::try_from(versions.len()).ok()?,
        u8::try_from(uuids.len()).ok()?,
    ];
    let first_uuid = HEADER + 2 * versions.len();
    if first_uuid + UUID * uuids.len() > SIZE {
        return None;
    }
    page.fill(0);
    bytes::put(page, 0, &counts);
    for (index, version) in versions.iter().enumerate() {
        bytes::put(page, HEADER + 2 * index, &version.to_le_bytes());
    }
    for (index, uuid) in uuids.iter().enumerate() {
        bytes::put(page, first_uuid + UUID * index, uuid);
    }
    Some(())
}

/// The formats that a controller supports.
#[derive(Clone, Copy, Debug)]
pub struct Formats<'a> {
    versions: &'a [u8],
    uuids: &'a [u8],
}

impl<'a> Formats<'a> {
    /// Decodes the data structure.
    ///
    /// # Errors
    ///
    /// Lists that are longer than the page.
    pub fn decode(page: &'a [u8; SIZE]) -> Result<Self, Malformed> {
        let versions = 2 * usize::from(bytes::u8_at(page, 0));
        let uuids = UUID * usize::from(bytes::u8_at(page, 1));
        let lists = page
            .get(HEADER..)
            .and_then(|rest| rest.split_at_checked(versions))
            .and_then(|(versions, rest)| Some((versions, rest.get(..uuids)?)));
        match lists {
            Some((versions, uuids)) => Ok(Self { versions, uuids }),
            None => Err(Malformed::new(1, "lists longer than the page")),
        }
    }

    /// Versions of the NVMe Controller State data structure, in the order of their indices.
    pub fn versions(&self) -> impl Iterator<Item = u16> + 'a {
        self.versions
            .chunks_exact(2)
            .map(|entry| bytes::u16_at(entry, 0))
    }

    /// UUIDs of vendor specific formats, in the order of their indices.
    pub fn uuids(&self) -> impl Iterator<Item = [u8; UUID]> + 'a {
        self.uuids
            .chunks_exact(UUID)
            .map(|entry| bytes::array(entry, 0))
    }

    /// The index (CSVI) of `version`: 1 or more, `None` when it is not supported.
    pub fn version_index(&self, version: u16) -> Option<u8> {
        index(self.versions().position(|entry| entry == version))
    }

    /// The index (CSUUIDI) of `uuid`: 1 or more, `None` when it is not supported.
    pub fn uuid_index(&self, uuid: &[u8; UUID]) -> Option<u8> {
        index(self.uuids().position(|entry| entry == *uuid))
    }
}

fn index(position: Option<usize>) -> Option<u8> {
    u8::try_from(position?).ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::super::random::Random;
    use super::*;
    use std::vec;

    const FIRST: [u8; 16] = *b"0123456789abcdef";
    const SECOND: [u8; 16] = *b"ABCDEFGHIJKLMNOP";

    #[test]
    fn structure_has_the_layout_of_the_specification() {
        let mut page = [0xff; SIZE];
        assert_eq!(encode(&mut page, &[0, 0x0102], &[FIRST, SECOND]), Some(()));
        let mut expected = [0; SIZE];
        expected[..6].copy_from_slice(&[2, 2, 0, 0, 2, 1]);
        expected[6..22].copy_from_slice(&FIRST);
        expected[22..38].copy_from_slice(&SECOND);
        assert_eq!(page, expected);

        let formats = Formats::decode(&page).unwrap();
        assert!(formats.versions().eq([0, 0x0102]));
        assert!(formats.uuids().eq([FIRST, SECOND]));
        assert_eq!(formats.version_index(0x0102), Some(2));
        assert_eq!(formats.version_index(1), None);
        assert_eq!(formats.uuid_index(&SECOND), Some(2));
        assert_eq!(formats.uuid_index(&[0; 16]), None);
    }

    #[test]
    fn lists_must_fit_into_the_page() {
        let mut page = [0; SIZE];
        assert_eq!(encode(&mut page, &[0; 255], &vec![FIRST; 224]), Some(()));
        assert_eq!(encode(&mut page, &[0; 255], &vec![FIRST; 225]), None);
        assert_eq!(encode(&mut page, &[0; 256], &[]), None);
        assert_eq!(encode(&mut page, &[7; 255], &vec![FIRST; 224]), Some(()));
        page[2 + 2 * 254] = 8;
        let formats = Formats::decode(&page).unwrap();
        assert_eq!(formats.version_index(8), Some(255));
        page[1] = 225;
        assert!(Formats::decode(&page).is_err());
    }

    #[test]
    fn any_page_decodes_without_panic() {
        let mut random = Random::new(19);
        let mut page = [0; SIZE];
        for _ in 0..500 {
            random.fill(&mut page);
            if let Ok(formats) = Formats::decode(&page) {
                assert_eq!(formats.versions().count(), usize::from(page[0]));
                assert_eq!(formats.uuids().count(), usize::from(page[1]));
                assert_eq!(formats.uuid_index(&FIRST), None);
            }
        }
    }
}
