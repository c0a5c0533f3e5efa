// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The work of a command as pieces that a medium can do: what comes next, what a result means,
//! and the status at the end.
//!
//! Pure bookkeeping on a [`Request`]. The kernel may do less than it was asked for; the rest is the
//! next piece.

use std::sync::Arc;

use rustix::io::Errno;
use zeroshift_nvme::status::Status;

use super::requests::Request;
use super::{transfer_error, Surroundings, MAX_TRANSFER};
use crate::backing::{FileMedium, Medium, MemoryMedium};
use crate::memory::Access;
use crate::nvme::namespace::Namespace;
use crate::sys::{Buffer, Mapping, Operation, MAX_VECTORS};

/// Data that was written may be lost, and trying again would only hide it ([`Medium::sync_failed`]).
const LOST: Status = Status::WRITE_FAULT.with_do_not_retry();

/// What a command wants of the medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Work {
    /// Medium to guest memory.
    #[default]
    Read,
    /// Guest memory to medium.
    Write,
    /// Medium to memory of ours, then compare with guest memory.
    Compare,
    /// Zeroes to the medium.
    Zero,
    /// Give back the space of some ranges.
    Deallocate,
    /// Everything written so far has to survive a power failure.
    Flush,
}

/// A piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Read { offset: u64 },
    Write { offset: u64, durable: bool },
    Zero { offset: u64, len: u64 },
    Deallocate { offset: u64, len: u64 },
    Sync,
}

impl Piece {
    /// The piece as a request to the kernel.
    /// `None` when the file has nothing that does it; [`next`] asks for nothing of the kind.
    pub(super) fn on_file(self, medium: &FileMedium) -> Option<Operation<'_>> {
        let file = medium.file();
        match self {
            Self::Read { offset } => Some(Operation::Read { file, offset }),
            Self::Write { offset, durable } => Some(Operation::Write {
                file,
                offset,
                durable,
            }),
            Self::Zero { offset, len } => medium.zero(offset, len),
            Self::Deallocate { offset, len } => medium.deallocate(offset, len),
            Self::Sync => Some(Operation::Sync { file }),
        }
    }

    /// Does the piece on memory: the result as the kernel would give it.
    pub(super) fn on_memory(self, medium: &MemoryMedium, buffers: &[Buffer]) -> i32 {
        let total: usize = buffers.iter().map(|buffer| buffer.len).sum();
        let done = match self {
            Self::Read { offset } => medium.read_into(offset, buffers),
            Self::Write { offset, .. } => medium.write_from(offset, buffers),
            Self::Zero { offset, len } | Self::Deallocate { offset, len } => {
                medium.zero(offset, len)
            }
            Self::Sync => Ok(()),
        };
        match done {
            // A transfer is at most MAX_TRANSFER.
            Ok(()) => total as i32,
            Err(error) => -error.raw_os_error(),
        }
    }
}

/// The next piece of work of a request; its memory is in `request.buffers`. `None` when everything
/// is done.
pub(super) fn next(
    request: &mut Request,
    namespace: &Namespace,
    around: &Surroundings<'_, '_>,
) -> Result<Option<Piece>, Status> {
    request.buffers.clear();
    // Also after success: another request may have taken the one report of the failure.
    let promises = request.durable || request.work == Work::Flush;
    if promises && namespace.medium.sync_failed() {
        return Err(LOST);
    }
    let left = request.len - request.done;
    let offset = request.offset + request.done;
    let piece = match request.work {
        Work::Read | Work::Write | Work::Compare | Work::Zero if left == 0 => {
            let sync = request.durable && request.work == Work::Zero && !request.synced;
            return Ok(sync
                .then_some(Piece::Sync)
                .inspect(|_| request.piece = Some(Piece::Sync)));
        }
        Work::Read | Work::Compare if request.durable && !request.synced => Piece::Sync,
        Work::Read => {
            guest_buffers(request, Access::Write, around)?;
            Piece::Read { offset }
        }
        Work::Write => {
            guest_buffers(request, Access::Read, around)?;
            Piece::Write {
                offset,
                durable: request.durable,
            }
        }
        Work::Compare => {
            let mapping = own_memory(&mut request.own)?;
            request.buffers.push(Buffer {
                mapping,
                offset: request.done as usize,
                len: left as usize,
            });
            Piece::Read { offset }
        }
        Work::Zero if namespace.medium.can_zero() => Piece::Zero { offset, len: left },
        Work::Zero => {
            let mapping = own_memory(&mut request.own)?;
            let len = left.min(MAX_TRANSFER);
            mapping
                .fill_zero(0, len as usize)
                .ok_or(Status::INTERNAL_ERROR)?;
            request.buffers.push(Buffer {
                mapping,
                offset: 0,
                len: len as usize,
            });
            Piece::Write {
                offset,
                durable: request.durable,
            }
        }
        Work::Deallocate => match request.ranges.pop() {
            Some((offset, len)) => Piece::Deallocate { offset, len },
            None => return Ok(None),
        },
        Work::Flush if request.synced => return Ok(None),
        Work::Flush => Piece::Sync,
    };
    request.piece = Some(piece);
    Ok(Some(piece))
}

/// Memory of the request's own for a whole transfer.
fn own_memory(own: &mut Option<Arc<Mapping>>) -> Result<Arc<Mapping>, Status> {
    if let Some(mapping) = own {
        return Ok(Arc::clone(mapping));
    }
    let mapping = Mapping::anonymous(MAX_TRANSFER as usize).map_err(|error| {
        tracing::warn!("memory for a command: {error}");
        Status::INTERNAL_ERROR
    })?;
    let mapping = Arc::new(mapping);
    *own = Some(Arc::clone(&mapping));
    Ok(mapping)
}

/// The host's view of the guest memory that is left to transfer, or of as much from its start as the
/// kernel takes at once; the rest comes in another piece.
fn guest_buffers(
    request: &mut Request,
    access: Access,
    around: &Surroundings<'_, '_>,
) -> Result<(), Status> {
    let command = request.command;
    let mut skip = request.done;
    for segment in request.segments.iter() {
        let len = u64::from(segment.len);
        let here = skip.min(len);
        skip -= here;
        if here == len {
            continue;
        }
        if request.buffers.len() >= MAX_VECTORS {
            break;
        }
        let Some(iova) = segment.iova.map(|iova| iova + here) else {
            // A bit bucket: what is read goes where nobody looks.
            let mapping = own_memory(&mut request.own)?;
            let len = (len - here) as usize;
            request.buffers.push(Buffer {
                mapping,
                offset: 0,
                len,
            });
            continue;
        };
        let memory = around.bus.memory();
        memory
            .and_then(|memory| memory.buffers(iova, len - here, access, &mut request.buffers))
            .map_err(|error| transfer_error(&command, iova, error))?;
    }
    // The last segment may lie in several maps.
    request.buffers.truncate(MAX_VECTORS);
    Ok(())
}

/// Takes in the result of the last piece: bytes, or a negated errno.
pub(super) fn account(request: &mut Request, result: i32, medium: &Medium) -> Result<(), Status> {
    let Some(piece) = request.piece.take() else {
        return Err(Status::INTERNAL_ERROR);
    };
    let failed = errno(result);
    if matches!(failed, Some(Errno::AGAIN | Errno::INTR)) {
        again(request, piece);
        return Ok(());
    }
    match piece {
        Piece::Read { .. } | Piece::Write { .. } if result > 0 => {
            // The kernel does at most what it was asked for.
            request.done = (request.done + u64::from(result.unsigned_abs())).min(request.len);
            Ok(())
        }
        Piece::Zero { len, .. } if result >= 0 => {
            request.done += len;
            Ok(())
        }
        Piece::Sync if result >= 0 => {
            request.synced = true;
            Ok(())
        }
        // A hint; what the medium does with it is its business.
        Piece::Deallocate { .. } if result >= 0 || failed == Some(Errno::OPNOTSUPP) => Ok(()),
        _ => {
            let status = failure(request, piece, failed);
            match (medium, failed) {
                (Medium::File(file), Some(error)) if is_lost(piece, error) => {
                    file.note_sync_failure(error);
                    Err(LOST)
                }
                _ => Err(status),
            }
        }
    }
}

/// Whether the error of a piece may be the report of lost data. A write says the same for its own
/// failure as for that of the sync after it.
fn is_lost(piece: Piece, error: Errno) -> bool {
    let promises = matches!(piece, Piece::Sync | Piece::Write { durable: true, .. });
    // Given up before it began, or guest memory that is gone: nothing about the storage.
    promises && !matches!(error, Errno::CANCELED | Errno::FAULT)
}

/// The error that a result stands for. Numbers that no kernel gives would make rustix panic.
fn errno(result: i32) -> Option<Errno> {
    let number = result.checked_neg().filter(|number| *number > 0)?;
    Some(Errno::from_raw_os_error(number.min(4095)))
}

/// The same piece has to be done again.
fn again(request: &mut Request, piece: Piece) {
    if let Piece::Deallocate { offset, len } = piece {
        request.ranges.push((offset, len));
    }
}

fn failure(request: &Request, piece: Piece, failed: Option<Errno>) -> Status {
    let status = match (failed, piece) {
        (Some(Errno::CANCELED), _) => return Status::ABORT_REQUESTED,
        (Some(Errno::FAULT), _) => Status::DATA_TRANSFER_ERROR,
        (_, Piece::Read { .. }) => Status::UNRECOVERED_READ_ERROR,
        _ => Status::WRITE_FAULT,
    };
    let reason = match failed {
        None => "the file has become shorter".to_owned(),
        Some(error) => error.to_string(),
    };
    tracing::debug!(
        "command {:#06x} (opcode {:#04x}): {piece:?}: {reason}",
        request.command.cid,
        request.command.opcode
    );
    status
}

/// The status of a request whose work is done.
pub(super) fn verdict(request: &Request, around: &Surroundings<'_, '_>) -> Status {
    if request.work != Work::Compare {
        return Status::SUCCESS;
    }
    let Some(own) = &request.own else {
        return Status::INTERNAL_ERROR;
    };
    const CHUNK: usize = 4096;
    let (mut mine, mut theirs) = ([0; CHUNK], [0; CHUNK]);
    let mut at = 0;
    for segment in request.segments.iter() {
        let Some(first) = segment.iova else {
            return Status::INVALID_FIELD;
        };
        let mut done = 0;
        while done < segment.len {
            let count = (segment.len - done).min(CHUNK as u32);
            let iova = first + u64::from(done);
            let (mine, theirs) = (&mut mine[..count as usize], &mut theirs[..count as usize]);
            if let Err(error) = around.bus.read(iova, theirs) {
                return transfer_error(&request.command, iova, error);
            }
            if own.read(at, mine).is_none() {
                return Status::INTERNAL_ERROR;
            }
            if mine != theirs {
                return Status::COMPARE_FAILURE;
            }
            at += count as usize;
            done += count;
        }
    }
    Status::SUCCESS
}
