// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The data pointer of a command: where in guest memory its data lies (NVMe Base 2.1, section 4.3).
//!
//! Used by every command that transfers data. Lists come from the guest, which may change them at
//! any time: each entry is read once, into a copy, and all of them are checked before any data
//! moves. Resolving allocates nothing once [`Segments`] has grown to the size of the transfers.

mod prp;
mod sgl;

use zeroshift_nvme::command::Command;
use zeroshift_nvme::status::Status;

use crate::memory::{DmaError, GuestMemory};
use crate::pci::Bus;

/// What can be read to follow lists of entries.
pub(crate) trait Reader {
    /// Copies guest memory out. All of it or nothing.
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError>;
}

impl Reader for GuestMemory {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        GuestMemory::read(self, iova, data)
    }
}

impl Reader for Bus<'_> {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        Bus::read(self, iova, data)
    }
}

/// SGL Support (SGLS) of Identify Controller for a controller that resolves with [`Rules::sgl`]:
/// data blocks without alignment (bits 1:0 01b), bit buckets (16), and lists that describe more
/// than the transfer needs (18). MPTR never points to an SGL, as there is no metadata.
pub(crate) const SGLS: u32 = 1 << 18 | 1 << 16 | 0b01;

/// What the controller accepts in a data pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Memory page size in bytes (CC.MPS), a power of two from 4 KiB to 128 MiB.
    pub(crate) page: u64,
    /// Whether the queue takes SGLs besides PRP entries. Admin queues of PCIe controllers do not.
    pub(crate) sgl: bool,
    /// Whether the data goes to the host; bit buckets mean something only then.
    pub(crate) to_host: bool,
}

/// A contiguous part of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where the bytes lie. `None` is a bit bucket: the next `len` bytes of what would be sent to
    /// the host are dropped. It occurs only in transfers to the host.
    pub(crate) iova: Option<u64>,
    /// Bytes, not zero.
    pub(crate) len: u32,
}

/// The segments of one transfer in the order of its data. Kept and reused for the next one.
#[derive(Debug, Default)]
pub(crate) struct Segments(Vec<Segment>);

impl Segments {
    /// The segments that the last [`resolve`] found; nothing useful when it failed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        self.0.iter().copied()
    }

    /// Forgets the segments and keeps their room.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Appends, or makes the last segment longer where the new one continues it.
    fn push(&mut self, iova: Option<u64>, len: u32) {
        if let Some(last) = self.0.last_mut() {
            let continues = match (last.iova, iova) {
                (None, None) => true,
                (Some(before), Some(iova)) => before.checked_add(last.len.into()) == Some(iova),
                _ => false,
            };
            if let Some(sum) = last.len.checked_add(len).filter(|_| continues) {
                last.len = sum;
                return;
            }
        }
        self.0.push(Segment { iova, len });
    }
}

/// A transfer that is being covered with segments.
struct Cover<'a> {
    rest: u64,
    out: &'a mut Segments,
}

impl Cover<'_> {
    /// Uses as much of the next `room` bytes as is still needed. Pages and descriptors are shorter
    /// than 4 GiB, so nothing is cut by the type.
    fn take(&mut self, iova: Option<u64>, room: u64) {
        let count = u32::try_from(room.min(self.rest)).unwrap_or(u32::MAX);
        if count > 0 {
            self.rest -= u64::from(count);
            self.out.push(iova, count);
        }
    }
}

/// Finds the segments of the `len` bytes that `command` transfers, which the caller has bounded
/// (MDTS). The segments together have exactly that many bytes, bit buckets included.
pub(crate) fn resolve(
    command: &Command,
    len: u64,
    rules: Rules,
    memory: &impl Reader,
    out: &mut Segments,
) -> Result<(), Status> {
    out.clear();
    if len == 0 {
        return Ok(());
    }
    let cover = Cover { rest: len, out };
    match command.psdt() {
        0b00 => prp::resolve(command, rules.page, memory, cover),
        // They differ in what MPTR means, and it means nothing without metadata.
        0b01 | 0b10 if rules.sgl => sgl::resolve(command, rules.to_host, memory, cover),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// Copies `data` to where the command wants it; it may be less than the `len` bytes that the command
/// asks for, which say what PRP2 means. Not for the I/O path: it allocates.
pub(crate) fn write(
    command: &Command,
    rules: Rules,
    len: u64,
    data: &[u8],
    bus: &Bus<'_>,
) -> Result<(), Status> {
    let mut segments = Segments::default();
    let rules = Rules {
        to_host: true,
        ..rules
    };
    resolve(command, len, rules, bus, &mut segments)?;
    let mut rest = data;
    for Segment { iova, len } in segments.iter() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at(rest.len().min(len as usize));
        if let Some(iova) = iova {
            bus.write(iova, now)
                .map_err(|error| transfer_error(command, iova, error))?;
        }
        rest = later;
    }
    Ok(())
}

/// Fills `data` from where the command has it. Not for the I/O path: it allocates.
pub(crate) fn read(
    command: &Command,
    rules: Rules,
    data: &mut [u8],
    bus: &Bus<'_>,
) -> Result<(), Status> {
    let mut segments = Segments::default();
    let rules = Rules {
        to_host: false,
        ..rules
    };
    resolve(command, data.len() as u64, rules, bus, &mut segments)?;
    let mut rest = data;
    for Segment { iova, len } in segments.iter() {
        let (now, later) = rest.split_at_mut(len as usize);
        match iova {
            Some(iova) => bus
                .read(iova, now)
                .map_err(|error| transfer_error(command, iova, error))?,
            // A bit bucket, which data from the host has not.
            None => return Err(Status::INTERNAL_ERROR),
        }
        rest = later;
    }
    Ok(())
}

fn transfer_error(command: &Command, address: u64, error: DmaError) -> Status {
    tracing::debug!(
        "command {:#06x} (opcode {:#04x}): memory at {address:#x}: {error}",
        command.cid,
        command.opcode
    );
    Status::DATA_TRANSFER_ERROR
}

#[cfg(test)]
mod tests;
