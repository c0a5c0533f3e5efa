// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Physical region pages (NVMe Base 2.1, section 4.3.1).
//!
//! Owned by `data_pointer`. A list is as long as the transfer makes it and every page of it holds
//! at least one entry of data, so no list of a guest can keep this busy.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::status::Status;

use super::{transfer_error, Cover, Reader};

const ENTRY: u64 = 8;
/// Entries that are read at once: a transfer of 256 KiB with pages of 4 KiB.
const CHUNK: usize = 64;

/// Covers the transfer with the pages that PRP1 and PRP2 name.
pub(super) fn resolve(
    command: &Command,
    page: u64,
    memory: &impl Reader,
    mut cover: Cover<'_>,
) -> Result<(), Status> {
    let offset = command.prp1 & (page - 1);
    if offset % 4 != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    cover.take(Some(command.prp1), page - offset);
    if cover.rest == 0 {
        return Ok(());
    }
    if cover.rest <= page {
        cover.take(Some(page_entry(command.prp2, page)?), page);
        return Ok(());
    }
    // PRP2 points to a list, which may start anywhere in a page on a qword.
    let mut list = command.prp2;
    if list % ENTRY != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let mut raw = [0; CHUNK * ENTRY as usize];
    while cover.rest > 0 {
        // Entries from here to the end of the list's page, and to the end of the transfer.
        let slots = (page - list % page) / ENTRY;
        let needed = cover.rest.div_ceil(page);
        let count = needed.min(slots).min(CHUNK as u64);
        let bytes = count * ENTRY;
        let raw = &mut raw[..bytes as usize];
        memory
            .read(list, raw)
            .map_err(|error| transfer_error(command, list, error))?;
        // The last slot of a full list page chains to the next one, which starts a page.
        let chained = count == slots && needed > slots;
        let mut next = list.wrapping_add(bytes);
        for (i, entry) in raw.chunks_exact(ENTRY as usize).enumerate() {
            let address = page_entry(decode(entry), page)?;
            if chained && i as u64 + 1 == count {
                next = address;
            } else {
                cover.take(Some(address), page);
            }
        }
        list = next;
    }
    Ok(())
}

fn decode(entry: &[u8]) -> u64 {
    let mut value = [0; ENTRY as usize];
    value.copy_from_slice(entry);
    u64::from_le_bytes(value)
}

fn page_entry(value: u64, page: u64) -> Result<u64, Status> {
    if value % page != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pieces, Image};
    use super::super::{resolve, Rules, Segments};
    use super::*;

    const PAGE: u64 = 4096;

    fn command(prp1: u64, prp2: u64) -> Command {
        Command {
            prp1,
            prp2,
            ..Command::new(0x06)
        }
    }

    fn image() -> Image {
        Image::new(0x80_0000)
    }

    fn put(image: &mut Image, address: u64, entries: &[u64]) {
        for (i, entry) in entries.iter().enumerate() {
            image.put(address + i as u64 * 8, &entry.to_le_bytes());
        }
    }

    fn with_pages(
        command: &Command,
        page: u64,
        len: u64,
        image: &Image,
    ) -> Result<Vec<(u64, u32)>, Status> {
        let mut out = Segments::default();
        let rules = Rules {
            page,
            sgl: false,
            to_host: true,
        };
        resolve(command, len, rules, image, &mut out).map(|()| pieces(&out))
    }

    fn segments(command: &Command, len: u64, image: &Image) -> Result<Vec<(u64, u32)>, Status> {
        with_pages(command, PAGE, len, image)
    }

    #[test]
    fn one_page_needs_no_second_entry() {
        let image = image();
        let one = segments(&command(0x1000, 0xbad), 4096, &image).unwrap();
        assert_eq!(one, [(0x1000, 4096)]);
        let one = segments(&command(0x1ffc, 0xbad), 4, &image).unwrap();
        assert_eq!(one, [(0x1ffc, 4)]);
    }

    #[test]
    fn an_offset_moves_the_rest_to_the_second_page() {
        let two = segments(&command(0x1804, 0x9000), 4096, &image()).unwrap();
        assert_eq!(two, [(0x1804, 0x7fc), (0x9000, 0x804)]);
    }

    #[test]
    fn pages_that_follow_each_other_are_one_segment() {
        let mut image = image();
        put(&mut image, 0x10_0000, &[0x3000, 0x4000, 0x6000]);
        let merged = segments(&command(0x2800, 0x10_0000), 0x3800, &image).unwrap();
        assert_eq!(merged, [(0x2800, 0x2800), (0x6000, 0x1000)]);
    }

    #[test]
    fn offsets_that_are_not_allowed_are_refused() {
        let image = image();
        let refused = Err(Status::PRP_OFFSET_INVALID);
        assert_eq!(segments(&command(0x1002, 0), 16, &image), refused);
        assert_eq!(segments(&command(0x1004, 0x9008), 4096, &image), refused);
        assert_eq!(
            segments(&command(0x1000, 0x9004), 3 * 4096, &image),
            refused
        );
    }

    #[test]
    fn lists_may_start_inside_a_page_and_chain() {
        let mut image = image();
        // Room for three entries in the first list page: two pages of data and the chain.
        let list = 0x10_0fe8;
        put(&mut image, list, &[0x20_0000, 0x21_0000, 0x11_0000]);
        put(&mut image, 0x11_0000, &[0x22_0000, 0x23_0000]);
        let found = segments(&command(0x1800, list), 0x800 + 3 * 4096 + 8, &image);
        let expected = [
            (0x1800, 0x800),
            (0x20_0000, 4096),
            (0x21_0000, 4096),
            (0x22_0000, 4096),
            (0x23_0000, 8),
        ];
        assert_eq!(found.unwrap(), expected);
        // Exactly as many as fit: the last slot is data, not a chain.
        let found = segments(&command(0x1800, list), 0x800 + 3 * 4096, &image);
        assert_eq!(found.unwrap()[3], (0x11_0000, 4096));
    }

    #[test]
    fn a_list_that_only_chains_makes_progress() {
        let mut image = image();
        put(&mut image, 0x10_0ff8, &[0x11_0000]);
        put(&mut image, 0x11_0000, &[0x20_0000, 0x22_0000]);
        let found = segments(&command(0x1000, 0x10_0ff8), 3 * 4096, &image);
        let expected = [(0x1000, 4096), (0x20_0000, 4096), (0x22_0000, 4096)];
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn long_lists_are_read_in_chunks_to_the_last_entry() {
        let mut image = image();
        // Every other page, so that none merge: 511 in the first list page, the rest in a second.
        let data = |i: u64| 0x1_0000_0000 + i * 0x2000;
        let first: Vec<u64> = (0..511).map(data).chain([0x11_0000]).collect();
        put(&mut image, 0x10_0000, &first);
        let second: Vec<u64> = (511..700).map(data).collect();
        put(&mut image, 0x11_0000, &second);
        let found = segments(&command(0x1000, 0x10_0000), 701 * 4096, &image).unwrap();
        let expected: Vec<_> = [(0x1000, 4096)]
            .into_iter()
            .chain((0..700).map(|i| (data(i), 4096)))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn bad_list_entries_are_refused_and_missing_lists_fail() {
        let mut image = image();
        put(&mut image, 0x10_0000, &[0x20_0000, 0x21_0008]);
        let bad = command(0x1000, 0x10_0000);
        assert_eq!(
            segments(&bad, 3 * 4096, &image),
            Err(Status::PRP_OFFSET_INVALID)
        );
        for gone in [0x8000_0000, u64::MAX - 7] {
            assert_eq!(
                segments(&command(0x1000, gone), 3 * 4096, &image),
                Err(Status::DATA_TRANSFER_ERROR)
            );
        }
    }

    #[test]
    fn larger_pages_follow_cc_mps() {
        let found = with_pages(&command(0x1_1000, 0), 0x1_0000, 0x8000, &image()).unwrap();
        assert_eq!(found, [(0x1_1000, 0x8000)]);
    }
}
