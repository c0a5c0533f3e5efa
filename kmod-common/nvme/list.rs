// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The lists that Identify returns: Namespace List (CNS 02h and 07h; NVMe Base 2.1, section 4.6.2),
//! Controller List (CNS 12h and 13h; 4.6.1) and the Namespace Identification Descriptor list
//! (CNS 03h; 5.1.13.2.3).
//!
//! Encoders into one page of the caller, decoders over one. Does not choose what is listed: the
//! caller passes identifiers in ascending order, from the one that the command asks for.

use super::bytes;
use super::identify::SIZE;

/// Entries that a Namespace List has room for.
pub const NAMESPACES: usize = 1024;
/// Entries that a Controller List has room for.
pub const CONTROLLERS: usize = 2047;

/// Writes a Namespace List of the first 1024 of `namespaces`, which ascend, and returns how many
/// there are in it. The rest of the page is zero, which also ends the list.
pub fn encode_namespaces(
    page: &mut [u8; SIZE],
    namespaces: impl IntoIterator<Item = u32>,
) -> usize {
    page.fill(0);
    let mut count = 0;
    for nsid in namespaces.into_iter().take(NAMESPACES) {
        bytes::put(page, 4 * count, &nsid.to_le_bytes());
        count += 1;
    }
    count
}

/// The entries of a Namespace List, up to the first zero.
pub fn namespaces(page: &[u8; SIZE]) -> impl Iterator<Item = u32> + '_ {
    (0..NAMESPACES)
        .map(|index| bytes::u32_at(page, 4 * index))
        .take_while(|&nsid| nsid != 0)
}

/// Writes a Controller List of the first 2047 of `controllers`, which ascend, and returns how many
/// there are in it.
pub fn encode_controllers(
    page: &mut [u8; SIZE],
    controllers: impl IntoIterator<Item = u16>,
) -> usize {
    page.fill(0);
    let mut count = 0;
    for id in controllers.into_iter().take(CONTROLLERS) {
        bytes::put(page, 2 + 2 * count, &id.to_le_bytes());
        count += 1;
    }
    bytes::put(page, 0, &(count as u16).to_le_bytes());
    count
}

/// The entries of a Controller List; a count above 2047 is cut there.
pub fn controllers(page: &[u8; SIZE]) -> impl Iterator<Item = u16> + '_ {
    let count = usize::from(bytes::u16_at(page, 0)).min(CONTROLLERS);
    (0..count).map(|index| bytes::u16_at(page, 2 + 2 * index))
}

/// One Namespace Identification Descriptor, by its type (NIDT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceIdentifier {
    /// NIDT 1h: IEEE Extended Unique Identifier, most significant byte first, not zero.
    Eui64([u8; 8]),
    /// NIDT 2h: Namespace Globally Unique Identifier, most significant byte first, not zero.
    Nguid([u8; 16]),
    /// NIDT 3h: Namespace UUID, in the byte order of RFC 9562.
    Uuid([u8; 16]),
    /// NIDT 4h: Command Set Identifier (CSI); 0 is the NVM command set. Required when
    /// CAP.CSS.IOCSS is set.
    CommandSet(u8),
    /// A type that this file does not know, or a known one of another length.
    Other {
        /// Namespace Identifier Type (NIDT).
        kind: u8,
        /// Namespace Identifier Length (NIDL), in bytes.
        length: u8,
    },
}

/// Appends descriptors to a Namespace Identification Descriptor list.
pub struct DescriptorListMut<'a> {
    page: &'a mut [u8; SIZE],
    end: usize,
}

impl<'a> DescriptorListMut<'a> {
    /// An empty list over a zeroed page.
    pub fn new(page: &'a mut [u8; SIZE]) -> Self {
        page.fill(0);
        Self { page, end: 0 }
    }

    /// Appends `identifier`. The four known types together fit into a page; `Other` and what does
    /// not fit is left out.
    pub fn add(&mut self, identifier: NamespaceIdentifier) -> &mut Self {
        match identifier {
            NamespaceIdentifier::Eui64(id) => self.append(1, &id),
            NamespaceIdentifier::Nguid(id) => self.append(2, &id),
            NamespaceIdentifier::Uuid(id) => self.append(3, &id),
            NamespaceIdentifier::CommandSet(id) => self.append(4, &[id]),
            NamespaceIdentifier::Other { .. } => self,
        }
    }

    fn append(&mut self, kind: u8, identifier: &[u8]) -> &mut Self {
        let next = self.end + 4 + identifier.len();
        if next <= SIZE {
            bytes::put(self.page, self.end, &[kind, identifier.len() as u8, 0, 0]);
            bytes::put(self.page, self.end + 4, identifier);
            self.end = next;
        }
        self
    }
}

/// The descriptors of a Namespace Identification Descriptor list, up to length 0, or to one that
/// would leave the page.
pub fn identifiers(page: &[u8; SIZE]) -> impl Iterator<Item = NamespaceIdentifier> + '_ {
    let mut at = 0;
    core::iter::from_fn(move || {
        let kind = bytes::u8_at(page, at);
        let length = bytes::u8_at(page, at + 1);
        let start = at + 4;
        let next = start + usize::from(length);
        if length == 0 || next > SIZE {
            return None;
        }
        at = next;
        Some(match (kind, length) {
            (1, 8) => NamespaceIdentifier::Eui64(bytes::array(page, start)),
            (2, 16) => NamespaceIdentifier::Nguid(bytes::array(page, start)),
            (3, 16) => NamespaceIdentifier::Uuid(bytes::array(page, start)),
            (4, 1) => NamespaceIdentifier::CommandSet(bytes::u8_at(page, start)),
            _ => NamespaceIdentifier::Other { kind, length },
        })
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::random::Random;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn namespace_list_has_dwords_and_ends_with_zero() {
        let mut page = [0xff; SIZE];
        assert_eq!(encode_namespaces(&mut page, [1, 0x0102_0304]), 2);
        let mut expected = [0; SIZE];
        expected[0] = 1;
        expected[4..8].copy_from_slice(&[4, 3, 2, 1]);
        assert_eq!(page, expected);
        assert_eq!(namespaces(&page).collect::<Vec<_>>(), [1, 0x0102_0304]);
        assert_eq!(encode_namespaces(&mut page, 1..5000), 1024);
        assert_eq!(page[4092..], [0, 4, 0, 0]);
        assert_eq!(namespaces(&page).count(), 1024);
    }

    #[test]
    fn controller_list_starts_with_its_count() {
        let mut page = [0xff; SIZE];
        assert_eq!(encode_controllers(&mut page, [1, 2, 0x0304]), 3);
        let mut expected = [0; SIZE];
        expected[..8].copy_from_slice(&[3, 0, 1, 0, 2, 0, 4, 3]);
        assert_eq!(page, expected);
        assert_eq!(controllers(&page).collect::<Vec<_>>(), [1, 2, 0x0304]);
        assert_eq!(encode_controllers(&mut page, 0..5000), 2047);
        assert_eq!(page[..2], [0xff, 0x07]);
        assert_eq!(page[4094..], [0xfe, 0x07]);
        page[..2].fill(0xff);
        assert_eq!(controllers(&page).count(), 2047);
    }

    #[test]
    fn descriptors_follow_each_other() {
        let mut page = [0xff; SIZE];
        DescriptorListMut::new(&mut page)
            .add(NamespaceIdentifier::Eui64(*b"01234567"))
            .add(NamespaceIdentifier::Nguid(*b"0123456789abcdef"))
            .add(NamespaceIdentifier::Uuid(*b"ABCDEFGHIJKLMNOP"))
            .add(NamespaceIdentifier::CommandSet(2));
        let mut expected = [0; SIZE];
        expected[..12].copy_from_slice(b"\x01\x08\0\x0001234567");
        expected[12..32].copy_from_slice(b"\x02\x10\0\x000123456789abcdef");
        expected[32..52].copy_from_slice(b"\x03\x10\0\0ABCDEFGHIJKLMNOP");
        expected[52..57].copy_from_slice(b"\x04\x01\0\0\x02");
        assert_eq!(page, expected);
        assert_eq!(
            identifiers(&page).collect::<Vec<_>>(),
            [
                NamespaceIdentifier::Eui64(*b"01234567"),
                NamespaceIdentifier::Nguid(*b"0123456789abcdef"),
                NamespaceIdentifier::Uuid(*b"ABCDEFGHIJKLMNOP"),
                NamespaceIdentifier::CommandSet(2),
            ]
        );
        page[1] = 9;
        assert_eq!(
            identifiers(&page).next(),
            Some(NamespaceIdentifier::Other { kind: 1, length: 9 })
        );
    }

    #[test]
    fn a_descriptor_that_leaves_the_page_ends_the_list() {
        // 15 descriptors of 259 bytes and a part of one more.
        let page = [0xff; SIZE];
        assert_eq!(identifiers(&page).count(), 15);
    }

    #[test]
    fn any_page_decodes_without_panic() {
        let mut random = Random::new(3);
        let mut page = [0; SIZE];
        for _ in 0..200 {
            random.fill(&mut page);
            assert!(identifiers(&page).count() <= SIZE / 5);
            assert!(controllers(&page).count() <= CONTROLLERS);
            assert!(namespaces(&page).count() <= NAMESPACES);
        }
    }
}
