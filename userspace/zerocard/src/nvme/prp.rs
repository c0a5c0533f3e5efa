// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Physical region pages: where a command's data lies (NVMe Base 2.1, section 4.3.1).
//!
//! Used by commands that transfer data. Entries come from the guest: a list is read once, page by
//! page, into a copy, and every entry is checked before any data moves.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::status::Status;

use crate::pci::Bus;

const ENTRY: u64 = 8;

/// Copies `data` to where the command's PRP entries point.
pub(super) fn write(
    command: &Command,
    page: u64,
    data: &[u8],
    bus: &Bus<'_>,
) -> Result<(), Status> {
    let mut rest = data;
    for (address, count) in segments(command, page, data.len(), bus)? {
        let (now, later) = rest.split_at(count);
        bus.write(address, now)
            .map_err(|error| transfer_error(command, address, error))?;
        rest = later;
    }
    Ok(())
}

fn transfer_error(command: &Command, address: u64, error: crate::memory::DmaError) -> Status {
    tracing::debug!(
        "command {:#06x} (opcode {:#04x}): memory at {address:#x}: {error}",
        command.cid,
        command.opcode
    );
    Status::DATA_TRANSFER_ERROR
}

/// Address and length of each piece of `len` bytes of data.
fn segments(
    command: &Command,
    page: u64,
    len: usize,
    bus: &Bus<'_>,
) -> Result<Vec<(u64, usize)>, Status> {
    let offset = command.prp1 & (page - 1);
    if offset % 4 != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let mut rest = len as u64;
    let mut pieces = Vec::new();
    let mut push = |address: u64, room: u64, rest: &mut u64| {
        let count = room.min(*rest);
        *rest -= count;
        // The count is at most len, which came from a usize.
        pieces.push((address, count as usize));
    };
    push(command.prp1, page - offset, &mut rest);
    if rest == 0 {
        return Ok(pieces);
    }
    if rest <= page {
        push(page_entry(command.prp2, page)?, page, &mut rest);
        return Ok(pieces);
    }
    // PRP2 points to a list, which may start anywhere in a page on a qword.
    let mut list = command.prp2;
    if list % ENTRY != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    while rest > 0 {
        let slots = (page - list % page) / ENTRY;
        let needed = rest.div_ceil(page);
        let count = needed.min(slots);
        let mut raw = vec![0; (count * ENTRY) as usize];
        bus.read(list, &mut raw)
            .map_err(|error| transfer_error(command, list, error))?;
        let mut entries = raw.chunks_exact(ENTRY as usize).map(entry).peekable();
        while let Some(value) = entries.next() {
            if entries.peek().is_none() && needed > slots {
                // The last slot of a full list page chains to the next one, which starts a page.
                list = page_entry(value, page)?;
            } else {
                push(page_entry(value, page)?, page, &mut rest);
            }
        }
    }
    Ok(pieces)
}

fn entry(bytes: &[u8]) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(bytes);
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
    use super::*;
    use crate::memory::tests::{memfd, request};
    use crate::pci::tests::Bench;

    const PAGE: u64 = 4096;

    fn bench() -> Bench {
        let mut bench = Bench::new();
        bench
            .memory
            .map(request(0, 0x80_0000, 0), Some(&memfd(0x80_0000)))
            .unwrap();
        bench
    }

    fn command(prp1: u64, prp2: u64) -> Command {
        Command {
            prp1,
            prp2,
            ..Command::new(0x06)
        }
    }

    fn put(bench: &Bench, address: u64, entries: &[u64]) {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect();
        bench.memory.write(address, &bytes).unwrap();
    }

    #[test]
    fn one_page_needs_no_second_entry() {
        let mut bench = bench();
        let pieces = segments(&command(0x1000, 0xbad), PAGE, 4096, &bench.bus()).unwrap();
        assert_eq!(pieces, [(0x1000, 4096)]);
        let pieces = segments(&command(0x1ffc, 0xbad), PAGE, 4, &bench.bus()).unwrap();
        assert_eq!(pieces, [(0x1ffc, 4)]);
    }

    #[test]
    fn an_offset_moves_the_rest_to_the_second_page() {
        let mut bench = bench();
        let pieces = segments(&command(0x1804, 0x9000), PAGE, 4096, &bench.bus()).unwrap();
        assert_eq!(pieces, [(0x1804, 0x7fc), (0x9000, 0x804)]);
        let data: Vec<u8> = (0..4096u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
        write(&command(0x1804, 0x9000), PAGE, &data, &bench.bus()).unwrap();
        let mut back = vec![0; 0x804];
        bench.memory.read(0x9000, &mut back).unwrap();
        assert_eq!(back, data[0x7fc..]);
    }

    #[test]
    fn offsets_that_are_not_allowed_are_refused() {
        let mut bench = bench();
        let bus = bench.bus();
        let refused = Err(Status::PRP_OFFSET_INVALID);
        assert_eq!(segments(&command(0x1002, 0), PAGE, 16, &bus), refused);
        assert_eq!(
            segments(&command(0x1004, 0x9008), PAGE, 4096, &bus),
            refused
        );
        assert_eq!(
            segments(&command(0x1000, 0x9004), PAGE, 3 * 4096, &bus),
            refused
        );
    }

    #[test]
    fn lists_may_start_inside_a_page_and_chain() {
        let mut bench = bench();
        // Room for three entries in the first list page: two pages of data and the chain.
        let list = 0x10_0fe8;
        put(&bench, list, &[0x20_0000, 0x21_0000, 0x11_0000]);
        put(&bench, 0x11_0000, &[0x22_0000, 0x23_0000]);
        let pieces = segments(
            &command(0x1800, list),
            PAGE,
            0x800 + 3 * 4096 + 8,
            &bench.bus(),
        );
        let expected = [
            (0x1800, 0x800),
            (0x20_0000, 4096),
            (0x21_0000, 4096),
            (0x22_0000, 4096),
            (0x23_0000, 8),
        ];
        assert_eq!(pieces.unwrap(), expected);
        // Exactly as many as fit: the last slot is data, not a chain.
        let pieces = segments(&command(0x1800, list), PAGE, 0x800 + 3 * 4096, &bench.bus());
        assert_eq!(pieces.unwrap()[3], (0x11_0000, 4096));
    }

    #[test]
    fn bad_list_entries_are_refused_and_missing_lists_fail() {
        let mut bench = bench();
        put(&bench, 0x10_0000, &[0x20_0000, 0x21_0008]);
        let bad = command(0x1000, 0x10_0000);
        assert_eq!(
            segments(&bad, PAGE, 3 * 4096, &bench.bus()),
            Err(Status::PRP_OFFSET_INVALID)
        );
        let gone = command(0x1000, 0x8000_0000);
        assert_eq!(
            segments(&gone, PAGE, 3 * 4096, &bench.bus()),
            Err(Status::DATA_TRANSFER_ERROR)
        );
    }

    #[test]
    fn larger_pages_follow_cc_mps() {
        let mut bench = bench();
        let pieces = segments(&command(0x1_1000, 0), 0x1_0000, 0x8000, &bench.bus()).unwrap();
        assert_eq!(pieces, [(0x1_1000, 0x8000)]);
    }
}
