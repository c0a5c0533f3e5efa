// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory as a function sees it: DMA maps, and the one place every access goes through.
//!
//! Owned by the PCI function. Addresses are IOVAs. Whatever a function reads is a copy, because the
//! guest may change the original at any time; whatever it writes passes [`GuestMemory::write`] or
//! [`GuestMemory::publish_u32`], or is written by the kernel into [`GuestMemory::buffers`] and
//! reported with [`GuestMemory::wrote`]: dirty tracking and faults have one place to sit in.
//! Nothing outside may hold a pointer into a mapping; a [`Buffer`] keeps its mapping alive.

mod maps;
mod ram;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use crate::faults::SharedStage;
use crate::sys::{Buffer, Mapping};
use crate::tracking::DirtyLog;
use maps::{Map, Maps, Refused};
use ram::RamFiles;

/// Why an access to guest memory did not happen. Except for [`DmaError::Revoked`], nothing was read
/// or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DmaError {
    /// Some part of the range is not mapped, or the range wraps.
    NotMapped,
    /// Mapped, but not for this direction.
    Permission,
    /// Mapped without a file descriptor: the client wants messages, which we do not send.
    NoFile,
    /// Bus Master Enable is off.
    BusMasterOff,
    /// The VMM's file shrank, or the mapping was let go of. What was read is nothing, and whether
    /// what was written is anywhere is unknown.
    Revoked,
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMapped => "not mapped",
            Self::Permission => "mapped without the needed permission",
            Self::NoFile => "mapped without a file descriptor",
            Self::BusMasterOff => "bus master is disabled",
            Self::Revoked => "the VMM has taken the memory away",
        })
    }
}

/// What a DMA map asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapRequest {
    /// First IOVA.
    pub(crate) iova: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Offset of the first byte in the file.
    pub(crate) offset: u64,
    /// Whether the function may read.
    pub(crate) readable: bool,
    /// Whether the function may write.
    pub(crate) writable: bool,
}

/// What a function does to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Data moves from guest memory to the function.
    Read,
    /// Data moves from the function to guest memory.
    Write,
}

/// A part of an access that lies in one map.
struct Piece<'a> {
    mapping: &'a Arc<Mapping>,
    offset: usize,
    len: usize,
}

/// The DMA maps of one client.
#[derive(Default)]
pub(crate) struct GuestMemory {
    maps: Maps,
    files: RamFiles,
    log: Option<Arc<DirtyLog>>,
    accesses: AtomicU64,
    dirtied: AtomicU64,
    stage: Option<Arc<SharedStage>>,
    warned_no_file: AtomicBool,
}

impl GuestMemory {
    /// Adds a map. A map equal to an existing one replaces it; any other overlap is refused, as the
    /// kernel's VFIO refuses it.
    pub(crate) fn map(&mut self, request: MapRequest, file: Option<&OwnedFd>) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let last = request
            .size
            .checked_sub(1)
            .and_then(|rest| request.iova.checked_add(rest))
            .ok_or_else(invalid)?;
        let end = request
            .offset
            .checked_add(request.size)
            .ok_or_else(invalid)?;
        if !request.readable && !request.writable {
            return Err(invalid());
        }
        self.maps
            .check(request.iova, last)
            .map_err(|refused| match refused {
                Refused::Overlap => io::ErrorKind::AlreadyExists.into(),
                Refused::Full => io::Error::from(rustix::io::Errno::NOSPC),
            })?;
        let file = match file {
            Some(file) => Some(self.files.open(file, end)?),
            // A VMM maps its ROMs like that, so it says nothing about its RAM yet.
            None => None,
        };
        self.maps.insert(Map {
            first: request.iova,
            last,
            offset: request.offset,
            file,
            readable: request.readable,
            writable: request.writable,
        });
        Ok(())
    }

    /// Removes whatever is mapped in a range: several maps, parts of maps, or nothing. At the limit
    /// of maps, what lies above a hole in a map goes with the hole.
    pub(crate) fn unmap(&mut self, iova: u64, size: u64) {
        if let Some(rest) = size.checked_sub(1) {
            // A range beyond 2^64 names nothing there, so cutting it there removes what it names.
            self.maps.remove(iova, iova.saturating_add(rest));
        }
    }

    /// Removes every map, and with them every mapping of a file that no [`Buffer`] needs. The dirty
    /// log stays: it is about IOVAs, whatever is mapped there.
    pub(crate) fn unmap_all(&mut self) {
        self.maps.clear();
    }

    /// The client is gone: removes its maps and ends dirty tracking. The counter goes on.
    pub(crate) fn reset(&mut self) {
        self.maps.clear();
        self.log = None;
        self.warned_no_file = AtomicBool::new(false);
    }

    /// Takes guest memory out of everybody's reach, also of requests that the kernel still works on.
    /// Only new maps bring it back.
    ///
    /// Nobody is in the middle of an access: all of them go through `self`, or through buffers of
    /// `self` that are copied at once (`MemoryMedium`), under the lock that gives this `&mut`. Other
    /// buffers only go to the kernel, which is told by EFAULT.
    pub(crate) fn revoke(&mut self) {
        self.files.revoke();
        self.maps.clear();
    }

    /// Begins, replaces or ends dirty tracking.
    pub(crate) fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
    }

    /// Accesses to guest memory so far, one for each contiguous part; what the kernel did with
    /// [`GuestMemory::buffers`] is not among them.
    pub(crate) fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::Relaxed)
    }

    /// Granules that became dirty so far.
    pub(crate) fn dirtied(&self) -> u64 {
        self.dirtied.load(Ordering::Relaxed)
    }

    /// What may make it forget dirty marks, so that a test can prove that a checker finds it.
    pub(crate) fn set_stage(&mut self, stage: Arc<SharedStage>) {
        self.stage = Some(stage);
    }

    /// The dirty log, while there is one.
    pub(crate) fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// Copies guest memory out. All of it or nothing.
    pub(crate) fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.for_pieces(iova, data.len(), Access::Read, |piece, done| {
            self.count();
            piece
                .mapping
                .read(piece.offset, &mut data[done..done + piece.len])
                .ok_or_else(|| refusal(piece.mapping))?;
            // Before anybody takes zeroes for a command or for data.
            still_there(piece.mapping)
        })
    }

    /// Copies into guest memory. All of it or nothing.
    pub(crate) fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        self.for_pieces(iova, data.len(), Access::Write, |piece, done| {
            self.count();
            piece
                .mapping
                .write(piece.offset, &data[done..done + piece.len])
                .ok_or_else(|| refusal(piece.mapping))?;
            self.mark(iova + done as u64, piece.len as u64);
            still_there(piece.mapping)
        })
    }

    /// Stores one aligned dword after everything written before, for an observer that polls it.
    pub(crate) fn publish_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        let piece = self.piece(iova, 4, Access::Write)?;
        if piece.len < 4 {
            return Err(DmaError::NotMapped);
        }
        self.count();
        piece
            .mapping
            .publish_u32(piece.offset, value)
            .ok_or_else(|| refusal(piece.mapping))?;
        self.mark(iova, 4);
        still_there(piece.mapping)
    }

    /// Appends the host's buffers of a range, for the kernel to work on. All of them or none.
    /// Neighbours in one mapping become one, also with what is in `out` already.
    ///
    /// Whoever lets the kernel write to them has to call [`GuestMemory::wrote`] afterwards.
    pub(crate) fn buffers(
        &self,
        iova: u64,
        len: u64,
        access: Access,
        out: &mut Vec<Buffer>,
    ) -> Result<(), DmaError> {
        let len = usize::try_from(len).map_err(|_| DmaError::NotMapped)?;
        self.for_pieces(iova, len, access, |piece, _| {
            match out.last_mut() {
                Some(last)
                    if Arc::ptr_eq(&last.mapping, piece.mapping)
                        && last.offset + last.len == piece.offset =>
                {
                    last.len += piece.len;
                }
                _ => out.push(Buffer {
                    mapping: Arc::clone(piece.mapping),
                    offset: piece.offset,
                    len: piece.len,
                }),
            }
            Ok(())
        })
    }

    /// The kernel has written to the range, or may have.
    pub(crate) fn wrote(&self, iova: u64, len: u64) {
        self.mark(iova, len);
    }

    /// The one place where written memory becomes dirty. After the bytes: a mark that is harvested
    /// before its bytes are there would lose them.
    fn mark(&self, iova: u64, len: u64) {
        let Some(log) = &self.log else {
            return;
        };
        if self.stage.as_ref().is_some_and(|stage| stage.loses_mark()) {
            return;
        }
        let new = log.mark(iova, len);
        let dirtied = self.dirtied.load(Ordering::Relaxed);
        self.dirtied
            .store(dirtied.wrapping_add(new), Ordering::Relaxed);
    }

    /// Only the function's own thread of the moment gets here, so nothing is lost between load and
    /// store; the type lets others read.
    fn count(&self) {
        let accesses = self.accesses.load(Ordering::Relaxed);
        self.accesses
            .store(accesses.wrapping_add(1), Ordering::Relaxed);
    }

    /// Does `work` for each piece of a range, with the bytes before it, when all of the range can be
    /// accessed; else for none.
    #[inline]
    fn for_pieces(
        &self,
        iova: u64,
        len: usize,
        access: Access,
        mut work: impl FnMut(&Piece<'_>, usize) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        let mut done = 0;
        if len > 0 {
            let first = self.piece(iova, len, access)?;
            still_there(first.mapping)?;
            // Nearly every access lies in one map and is looked up once.
            if first.len == len {
                return work(&first, 0);
            }
            done = first.len;
        }
        while done < len {
            let at = iova.checked_add(done as u64).ok_or(DmaError::NotMapped)?;
            let piece = self.piece(at, len - done, access)?;
            still_there(piece.mapping)?;
            done += piece.len;
        }
        done = 0;
        while done < len {
            // The range does not wrap, as the first round has seen.
            let piece = self.piece(iova + done as u64, len - done, access)?;
            work(&piece, done)?;
            done += piece.len;
        }
        Ok(())
    }

    /// The mapping that `iova` lies in, the offset there, and how many of `len` bytes follow.
    #[inline]
    fn piece(&self, iova: u64, len: usize, access: Access) -> Result<Piece<'_>, DmaError> {
        let map = self.maps.find(iova).ok_or(DmaError::NotMapped)?;
        let Some(mapping) = &map.file else {
            return Err(self.no_file(iova));
        };
        let allowed = match access {
            Access::Read => map.readable,
            Access::Write => map.writable && mapping.writable(),
        };
        if !allowed {
            return Err(DmaError::Permission);
        }
        // map() checked that offset plus size fits, and that it lies within the file.
        let offset = map.offset + (iova - map.first);
        let beyond_first = usize::try_from(map.last - iova).unwrap_or(usize::MAX);
        Ok(Piece {
            mapping,
            offset: usize::try_from(offset).map_err(|_| DmaError::NotMapped)?,
            len: len.min(beyond_first.saturating_add(1)),
        })
    }

    #[cold]
    fn no_file(&self, iova: u64) -> DmaError {
        if !self.warned_no_file.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "access to {iova:#x}: the VMM mapped this memory without a file descriptor; \
                 give it shared memory (QEMU: memory-backend-memfd with share=on)"
            );
        }
        DmaError::NoFile
    }
}

/// What was accessed was guest memory if it still is after the access.
#[inline]
fn still_there(mapping: &Mapping) -> Result<(), DmaError> {
    if mapping.revoked() {
        return Err(DmaError::Revoked);
    }
    Ok(())
}

/// Why a mapping refused an access. That it is inside and permitted was seen before.
#[cold]
fn refusal(mapping: &Mapping) -> DmaError {
    still_there(mapping).err().unwrap_or(DmaError::Permission)
}

#[cfg(test)]
pub(crate) mod tests;
