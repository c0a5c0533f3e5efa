// SPDX-License-Identifier: Apache-2.0 OR MIT

//! I/O commands of the NVM command set: from a fetched entry to a status.
//!
//! Owned by the controller. A command is checked, its data found in guest memory, and the work
//! handed to the medium: to the kernel for a file, done at once for memory. Nothing here knows
//! queues or registers. Requests have slots that are made once; their buffers are used again, so
//! nothing is allocated once every slot has seen its largest request, but for Dataset Management.

mod requests;
#[cfg(test)]
mod tests;
mod work;

use std::sync::Arc;

use zeroshift_nvme::command::Command;
use zeroshift_nvme::nvm::{self, io as opcode, BlockCommand, DatasetRange};
use zeroshift_nvme::status::Status;

use super::data_pointer::{self, Rules};
use super::namespace::Namespace;
use crate::backing::Medium;
use crate::memory::DmaError;
use crate::pci::Bus;
use crate::poller::Io;
use crate::sys::Full;
pub(crate) use requests::{Request, Requests};
use work::Work;

/// Maximum Data Transfer Size: 2^7 pages of 4 KiB.
pub(super) const MDTS: u8 = 7;
/// The same in bytes.
pub(super) const MAX_TRANSFER: u64 = 0x1000 << MDTS;

/// Opcodes that exist, for the Commands Supported and Effects log page.
pub(super) const SUPPORTED: [u8; 6] = [
    opcode::FLUSH,
    opcode::WRITE,
    opcode::READ,
    opcode::COMPARE,
    opcode::WRITE_ZEROES,
    opcode::DATASET_MANAGEMENT,
];

/// Whether a command changes what is on the medium.
pub(super) fn changes_data(code: u8) -> bool {
    matches!(
        code,
        opcode::WRITE | opcode::WRITE_ZEROES | opcode::DATASET_MANAGEMENT
    )
}

/// What became of a step of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is over.
    Done(Status),
    /// The kernel works on it.
    InFlight,
}

/// Number of Namespaces (NN): the highest identifier that is valid.
pub(super) fn highest(namespaces: &[Arc<Namespace>]) -> u32 {
    namespaces.last().map_or(1, |namespace| namespace.id)
}

/// What a command needs of its surroundings.
pub(super) struct Surroundings<'a, 'b> {
    /// Namespaces that are attached to the controller.
    pub(super) namespaces: &'a [Arc<Namespace>],
    /// Memory page size in bytes.
    pub(super) page_size: u64,
    /// Whether writes have to reach the medium before they complete (no volatile write cache).
    pub(super) durable: bool,
    /// The way to guest memory.
    pub(super) bus: &'a Bus<'b>,
}

impl Surroundings<'_, '_> {
    fn namespace(&self, id: u32) -> Result<usize, Status> {
        let mut namespaces = self.namespaces.iter();
        namespaces
            .position(|namespace| namespace.id == id)
            .ok_or(match id {
                // An identifier that could be attached, and is not.
                1.. if id <= highest(self.namespaces) => Status::INVALID_FIELD,
                _ => Status::INVALID_NAMESPACE,
            })
    }
}

/// Starts the command in a slot.
pub(super) fn start(
    request: &mut Request,
    slot: u32,
    around: &Surroundings<'_, '_>,
    io: &mut Io<'_>,
) -> Step {
    match prepare(request, around) {
        Ok(()) => go_on(request, slot, around, io),
        Err(status) => Step::Done(status),
    }
}

/// The kernel has finished a piece of work of a request: `result` is a number of bytes, or a
/// negated errno.
pub(super) fn finish(
    request: &mut Request,
    slot: u32,
    result: i32,
    around: &Surroundings<'_, '_>,
    io: &mut Io<'_>,
) -> Step {
    let medium = &around.namespaces[request.namespace].medium;
    match work::account(request, result, medium) {
        Ok(()) => go_on(request, slot, around, io),
        Err(status) => Step::Done(status),
    }
}

/// Checks a command and decides what has to be done for it.
fn prepare(request: &mut Request, around: &Surroundings<'_, '_>) -> Result<(), Status> {
    let command = request.command;
    if !SUPPORTED.contains(&command.opcode) {
        return Err(Status::INVALID_COMMAND_OPCODE);
    }
    // Fused operations are not offered (FUSES), and there is no metadata.
    if command.fuse() != 0 || command.psdt() == 3 {
        return Err(Status::INVALID_FIELD);
    }
    request.namespace = around.namespace(command.nsid)?;
    let namespace = &around.namespaces[request.namespace];
    match command.opcode {
        opcode::FLUSH => {
            request.work = Work::Flush;
            return Ok(());
        }
        opcode::DATASET_MANAGEMENT => return dataset_management(request, namespace, around),
        _ => {}
    }
    let fields = BlockCommand::from_command(&command);
    let zeroes = command.opcode == opcode::WRITE_ZEROES;
    if !zeroes && u64::from(fields.blocks) << namespace.block_shift > MAX_TRANSFER {
        return Err(Status::INVALID_FIELD);
    }
    let extent = namespace.extent(fields.slba, fields.blocks.into());
    (request.offset, request.len) = extent.ok_or(Status::LBA_OUT_OF_RANGE)?;
    let writes = changes_data(command.opcode);
    if writes && namespace.medium.read_only() {
        return Err(Status::NAMESPACE_WRITE_PROTECTED);
    }
    let forced = fields.has(nvm::FORCE_UNIT_ACCESS);
    request.durable = match writes {
        true => around.durable || forced,
        // What is read shall be on the medium; without a cache it is.
        false => forced && !around.durable,
    };
    request.work = match command.opcode {
        opcode::READ => Work::Read,
        opcode::WRITE => Work::Write,
        opcode::COMPARE => Work::Compare,
        _ => Work::Zero,
    };
    if zeroes {
        return Ok(());
    }
    let rules = Rules {
        page: around.page_size,
        sgl: true,
        to_host: request.work == Work::Read,
    };
    let segments = &mut request.segments;
    data_pointer::resolve(&command, request.len, rules, around.bus, segments)
}

/// Dataset Management: only deallocation is more than a hint.
fn dataset_management(
    request: &mut Request,
    namespace: &Namespace,
    around: &Surroundings<'_, '_>,
) -> Result<(), Status> {
    let command = request.command;
    let mut raw = [[0; DatasetRange::SIZE]; 256];
    let raw = &mut raw[..nvm::dataset_ranges(&command)];
    let rules = Rules {
        page: around.page_size,
        sgl: true,
        to_host: false,
    };
    data_pointer::read(&command, rules, raw.as_flattened_mut(), around.bus)?;
    request.ranges.clear();
    for range in raw.iter().map(DatasetRange::from_bytes) {
        let extent = namespace.extent(range.slba, range.blocks.into());
        let (offset, len) = extent.ok_or(Status::LBA_OUT_OF_RANGE)?;
        if len > 0 {
            request.ranges.push((offset, len));
        }
    }
    let deallocate = command.cdw11 & nvm::DATASET_DEALLOCATE != 0;
    if deallocate && namespace.medium.read_only() {
        return Err(Status::NAMESPACE_WRITE_PROTECTED);
    }
    if !deallocate || !namespace.medium.can_deallocate() {
        request.ranges.clear();
    }
    request.work = Work::Deallocate;
    Ok(())
}

/// Does the next pieces of work of a request, as long as they can be done at once.
fn go_on(request: &mut Request, slot: u32, around: &Surroundings<'_, '_>, io: &mut Io<'_>) -> Step {
    let namespace = &around.namespaces[request.namespace];
    loop {
        let piece = match work::next(request, namespace, around) {
            Ok(Some(piece)) => piece,
            Ok(None) => return Step::Done(work::verdict(request, around)),
            Err(status) => return Step::Done(status),
        };
        let result = match &namespace.medium {
            Medium::File(file) => {
                let Some(operation) = piece.on_file(file) else {
                    return Step::Done(Status::INTERNAL_ERROR);
                };
                return match io.push(slot, operation, &mut request.buffers) {
                    Ok(()) => Step::InFlight,
                    // The kernel is short of something; the host may try again.
                    Err(Full) => Step::Done(Status::COMMAND_INTERRUPTED),
                };
            }
            Medium::Memory(memory) => {
                let result = piece.on_memory(memory, &request.buffers);
                // They would keep the guest's memory for as long as the slot is not used again.
                request.buffers.clear();
                request.mark(around.bus);
                result
            }
        };
        if let Err(status) = work::account(request, result, &namespace.medium) {
            return Step::Done(status);
        }
    }
}

fn transfer_error(command: &Command, iova: u64, error: DmaError) -> Status {
    tracing::debug!(
        "command {:#06x} (opcode {:#04x}): memory at {iova:#x}: {error}",
        command.cid,
        command.opcode
    );
    Status::DATA_TRANSFER_ERROR
}
