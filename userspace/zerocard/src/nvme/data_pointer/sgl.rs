// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Scatter gather lists (NVMe Base 2.1, section 4.3.2).
//!
//! Owned by `data_pointer`. The whole list is checked, also what lies behind the data that the
//! command needs; the number of descriptors is bounded, so a list that chains to itself ends.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::sgl::{Descriptor, Kind, Place};
use zeroshift_nvme::status::Status;

use super::{transfer_error, Cover, Reader};

/// Descriptors that are read at once.
const CHUNK: usize = 64;
/// Descriptors that one command may have. Linux uses at most 256; the specification has no limit
/// for PCIe, where a list of any length is thinkable and must not hold up other queues.
const MAX_DESCRIPTORS: usize = 4096;

/// Covers the transfer with what the command's SGL describes.
pub(super) fn resolve(
    command: &Command,
    to_host: bool,
    memory: &impl Reader,
    mut cover: Cover<'_>,
) -> Result<(), Status> {
    // SGL Entry 1 takes the place of the two PRP entries.
    let mut link = Descriptor::from_data_pointer(command.prp1, command.prp2);
    link.check(Place::Command)?;
    take(&link, to_host, &mut cover);
    let mut budget = MAX_DESCRIPTORS;
    let mut raw = [[0; Descriptor::SIZE]; CHUNK];
    while link.is_link() {
        let last_segment = link.kind == Kind::LastSegment;
        let mut iova = link.address;
        let mut left = link.linked_descriptors();
        budget = budget.checked_sub(left).ok_or(Status::INVALID_SGL_COUNT)?;
        // check() saw that there is at least one, so the link below is another one.
        while left > 0 {
            let chunk = &mut raw[..left.min(CHUNK)];
            let bytes = chunk.as_flattened_mut();
            memory
                .read(iova, bytes)
                .map_err(|error| transfer_error(command, iova, error))?;
            // check() saw that the segment ends within the address space.
            iova = iova.wrapping_add(bytes.len() as u64);
            for descriptor in chunk.iter().map(Descriptor::from_bytes) {
                left -= 1;
                descriptor.check(if last_segment {
                    Place::LastSegment
                } else {
                    Place::Segment { end: left == 0 }
                })?;
                take(&descriptor, to_host, &mut cover);
                link = descriptor;
            }
        }
    }
    if cover.rest > 0 {
        return Err(Status::DATA_SGL_LENGTH_INVALID);
    }
    Ok(())
}

/// Takes the data of a descriptor that has any.
fn take(descriptor: &Descriptor, to_host: bool, cover: &mut Cover<'_>) {
    let iova = match descriptor.kind {
        Kind::DataBlock => Some(descriptor.address),
        // Has no effect on data that comes from the host.
        Kind::BitBucket if to_host => None,
        _ => return,
    };
    cover.take(iova, descriptor.length.into());
}

#[cfg(test)]
mod tests {
    use super::super::tests::Image;
    use super::super::{resolve, Rules, Segment, Segments};
    use super::*;

    /// Opcodes of the NVM Command Set: Write and Read.
    const WRITE: u8 = 0x01;
    const READ: u8 = 0x02;

    /// A 16-byte descriptor, put together byte by byte.
    fn raw(identifier: u8, iova: u64, len: u32) -> [u8; 16] {
        let (a, l) = (iova.to_le_bytes(), len.to_le_bytes());
        [
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], l[0], l[1], l[2], l[3], 0, 0, 0,
            identifier,
        ]
    }

    /// A command whose entry 1 (bytes 24 to 39) is `descriptor`.
    fn command(opcode: u8, descriptor: [u8; 16]) -> Command {
        let mut entry = [0; 64];
        (entry[0], entry[1]) = (opcode, 0x40);
        entry[24..40].copy_from_slice(&descriptor);
        Command::from_bytes(&entry)
    }

    fn put(image: &mut Image, iova: u64, descriptors: &[[u8; 16]]) -> u32 {
        image.put(iova, &descriptors.concat());
        descriptors.len() as u32 * 16
    }

    fn run(command: &Command, len: u64, image: &Image) -> Result<Vec<Segment>, Status> {
        let mut out = Segments::default();
        let rules = Rules {
            page: 4096,
            sgl: true,
            to_host: command.opcode == READ,
        };
        resolve(command, len, rules, image, &mut out).map(|()| out.iter().collect())
    }

    fn at(iova: u64, len: u32) -> Segment {
        Segment {
            iova: Some(iova),
            len,
        }
    }

    fn dropped(len: u32) -> Segment {
        Segment { iova: None, len }
    }

    #[test]
    fn one_data_block_needs_no_list_and_no_alignment() {
        let image = Image::new(0);
        let command = command(WRITE, raw(0x00, 0x1003, 0x1001));
        assert_eq!(run(&command, 0x1001, &image), Ok(vec![at(0x1003, 0x1001)]));
        // More than needed is allowed, less is not.
        assert_eq!(run(&command, 0x1000, &image), Ok(vec![at(0x1003, 0x1000)]));
        let short = Err(Status::DATA_SGL_LENGTH_INVALID);
        assert_eq!(run(&command, 0x1002, &image), short);
    }

    #[test]
    fn nothing_reaches_beyond_the_address_space() {
        let image = Image::new(0);
        let top = command(WRITE, raw(0x00, u64::MAX - 511, 512));
        assert_eq!(run(&top, 512, &image), Ok(vec![at(u64::MAX - 511, 512)]));
        let beyond = Err(Status::DATA_SGL_LENGTH_INVALID);
        let data = command(WRITE, raw(0x00, u64::MAX - 510, 512));
        assert_eq!(run(&data, 512, &image), beyond);
        let list = command(WRITE, raw(0x30, u64::MAX - 7, 16));
        assert_eq!(run(&list, 512, &image), beyond);
    }

    #[test]
    fn a_last_segment_lists_the_data() {
        let mut image = Image::new(0x1_0000);
        let blocks = [
            raw(0x00, 0x1000, 0x1000),
            raw(0x00, 0x2000, 0x800),
            raw(0x00, 0, 0),
            raw(0x00, 0x9000, 0x800),
        ];
        let bytes = put(&mut image, 0x8008, &blocks);
        let command = command(READ, raw(0x30, 0x8008, bytes));
        let expected = vec![at(0x1000, 0x1800), at(0x9000, 0x800)];
        assert_eq!(run(&command, 0x2000, &image), Ok(expected));
    }

    #[test]
    fn segments_chain_and_long_ones_are_read_in_chunks() {
        let mut image = Image::new(0x1_0000);
        let data = |i: u64| 0x1_0000_0000 + i * 0x400;
        let block = |i: u64| raw(0x00, data(i), 0x200);
        let last: Vec<_> = (199..300).map(block).collect();
        let bytes = put(&mut image, 0x4000, &last);
        let link = raw(0x30, 0x4000, bytes);
        let first: Vec<_> = (0..199).map(block).chain([link]).collect();
        let bytes = put(&mut image, 0x1000, &first);
        let command = command(READ, raw(0x20, 0x1000, bytes));
        let expected: Vec<_> = (0..300).map(|i| at(data(i), 0x200)).collect();
        assert_eq!(run(&command, 300 * 0x200, &image), Ok(expected));
        image.gone = Some(0x4000);
        assert_eq!(
            run(&command, 300 * 0x200, &image),
            Err(Status::DATA_TRANSFER_ERROR)
        );
    }

    #[test]
    fn bit_buckets_drop_what_is_sent_and_do_nothing_to_what_is_fetched() {
        let mut image = Image::new(0x1_0000);
        let list = [
            raw(0x10, 0, 0x100),
            raw(0x10, 0, 0x100),
            raw(0x00, 0x1000, 0x200),
            raw(0x10, 0, 0x400),
            raw(0x00, 0x1200, 0x200),
        ];
        let bytes = put(&mut image, 0x8000, &list);
        let read = command(READ, raw(0x30, 0x8000, bytes));
        let expected = vec![
            dropped(0x200),
            at(0x1000, 0x200),
            dropped(0x400),
            at(0x1200, 0x200),
        ];
        assert_eq!(run(&read, 0xa00, &image), Ok(expected));
        let write = command(WRITE, raw(0x30, 0x8000, bytes));
        assert_eq!(run(&write, 0x400, &image), Ok(vec![at(0x1000, 0x400)]));
        assert_eq!(
            run(&write, 0xa00, &image),
            Err(Status::DATA_SGL_LENGTH_INVALID)
        );
        let only = command(READ, raw(0x10, 0, 0x200));
        assert_eq!(run(&only, 0x200, &image), Ok(vec![dropped(0x200)]));
    }

    #[test]
    fn links_stand_only_at_the_end_of_a_segment_that_is_not_the_last() {
        let mut image = Image::new(0x1_0000);
        put(&mut image, 0x4000, &[raw(0x00, 0x1000, 0x200)]);
        let block = raw(0x00, 0x2000, 0x200);
        for link in [raw(0x20, 0x4000, 16), raw(0x30, 0x4000, 16)] {
            put(&mut image, 0x8000, &[link, block]);
            put(&mut image, 0x9000, &[block, link]);
            let try_link =
                |identifier, iova| run(&command(READ, raw(identifier, iova, 32)), 0x200, &image);
            assert_eq!(try_link(0x20, 0x8000), Err(Status::INVALID_SGL_COUNT));
            assert_eq!(try_link(0x30, 0x8000), Err(Status::INVALID_SGL_SEGMENT));
            assert_eq!(try_link(0x30, 0x9000), Err(Status::INVALID_SGL_SEGMENT));
        }
        // A segment without a link is the last one, whatever led to it.
        let block_only = command(READ, raw(0x20, 0x4000, 16));
        let data = Ok(vec![at(0x1000, 0x200)]);
        assert_eq!(run(&block_only, 0x200, &image), data);
    }

    #[test]
    fn lengths_and_addresses_of_segments_are_checked() {
        let image = Image::new(0x1_0000);
        for bad in [
            raw(0x30, 0x1000, 0),
            raw(0x20, 0x1000, 0),
            raw(0x30, 0x1000, 24),
            raw(0x20, 0x1004, 16),
        ] {
            assert_eq!(
                run(&command(READ, bad), 0x200, &image),
                Err(Status::INVALID_SGL_SEGMENT)
            );
        }
    }

    #[test]
    fn types_that_are_not_supported_are_refused_wherever_they_stand() {
        let mut image = Image::new(0x1_0000);
        let refused = Err(Status::SGL_TYPE_INVALID);
        for identifier in [0x01, 0x21, 0x40, 0x5a, 0xf0] {
            let bad = raw(identifier, 0x1000, 0x200);
            assert_eq!(run(&command(READ, bad), 0x200, &image), refused);
            // Also behind the data.
            put(&mut image, 0x8000, &[raw(0x00, 0x1000, 0x200), bad]);
            let list = command(READ, raw(0x30, 0x8000, 32));
            assert_eq!(run(&list, 0x200, &image), refused);
        }
    }

    #[test]
    fn endless_lists_end() {
        let mut image = Image::new(0x1_0000);
        put(&mut image, 0x1000, &[raw(0x20, 0x1000, 16)]);
        let looped = command(READ, raw(0x20, 0x1000, 16));
        let refused = Err(Status::INVALID_SGL_COUNT);
        assert_eq!(run(&looped, 0x200, &image), refused);
        let huge = command(READ, raw(0x30, 0, !15));
        assert_eq!(run(&huge, 0x200, &image), refused);
        // The limit itself is fine.
        let most = command(READ, raw(0x30, 0, MAX_DESCRIPTORS as u32 * 16));
        let image = Image::new(MAX_DESCRIPTORS * 16);
        assert_eq!(
            run(&most, 0x200, &image),
            Err(Status::DATA_SGL_LENGTH_INVALID)
        );
    }
}
