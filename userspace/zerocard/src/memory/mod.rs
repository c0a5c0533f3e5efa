// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory as a function sees it: DMA maps, and the one place every access goes through.
//!
//! Owned by the PCI function. Addresses are IOVAs. Whatever a function reads is a copy, because the
//! guest may change the original at any time; whatever it writes passes [`GuestMemory::write`] or
//! [`GuestMemory::publish_u32`], so that dirty tracking and faults have one place to sit in.
//! Nothing outside may hold a pointer or an offset into a mapping.

mod ram;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crate::sys::Mapping;
use ram::RamFiles;

/// Maps that one client may have. Far above what we announce (`max_dma_maps`), because a guest with
/// an IOMMU and small pages has been seen to need 655,511, and a client does not always count.
const MAX_MAPS: usize = 1 << 20;

/// Why an access to guest memory did not happen. Nothing was read or written.
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
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMapped => "not mapped",
            Self::Permission => "mapped without the needed permission",
            Self::NoFile => "mapped without a file descriptor",
            Self::BusMasterOff => "bus master is disabled",
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

#[derive(Clone)]
struct Map {
    /// Last IOVA, inclusive: a map may end at 2^64.
    last: u64,
    offset: u64,
    file: Option<Arc<Mapping>>,
    readable: bool,
    writable: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Access {
    Read,
    Write,
}

/// The DMA maps of one client.
pub(crate) struct GuestMemory {
    maps: BTreeMap<u64, Map>,
    max_maps: usize,
    files: RamFiles,
    warned_no_file: AtomicBool,
}

impl Default for GuestMemory {
    fn default() -> Self {
        Self {
            maps: BTreeMap::new(),
            max_maps: MAX_MAPS,
            files: RamFiles::default(),
            warned_no_file: AtomicBool::new(false),
        }
    }
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
        let same = self
            .maps
            .get(&request.iova)
            .is_some_and(|map| map.last == last);
        if !same && self.overlapping(request.iova, last).next().is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !same && self.maps.len() >= self.max_maps {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        let file = match file {
            Some(file) => Some(self.files.open(file, end)?),
            // A VMM maps its ROMs like that, so it says nothing about its RAM yet.
            None => None,
        };
        let MapRequest {
            iova,
            offset,
            readable,
            writable,
            ..
        } = request;
        self.maps.insert(
            iova,
            Map {
                last,
                offset,
                file,
                readable,
                writable,
            },
        );
        Ok(())
    }

    /// Removes whatever is mapped in a range: several maps, parts of maps, or nothing. At the limit
    /// of maps, what lies above a hole in a map goes with the hole.
    pub(crate) fn unmap(&mut self, iova: u64, size: u64) {
        let Some(rest) = size.checked_sub(1) else {
            return;
        };
        // A range beyond 2^64 names nothing there, so cutting it there removes what it names.
        let last = iova.saturating_add(rest);
        let hit: Vec<u64> = self
            .overlapping(iova, last)
            .map(|(start, _)| start)
            .collect();
        for start in hit {
            let Some(map) = self.maps.remove(&start) else {
                continue;
            };
            // Cutting a hole makes two maps of one. An unmap never fails, so where there is no
            // room for both, the upper one goes as well.
            let room = start >= iova || self.maps.len() + 2 <= self.max_maps;
            if map.last > last && room {
                // last < map.last, so the next address exists and lies above start.
                let next = last + 1;
                let offset = map.offset + (next - start);
                self.maps.insert(
                    next,
                    Map {
                        offset,
                        ..map.clone()
                    },
                );
            }
            if start < iova {
                self.maps.insert(
                    start,
                    Map {
                        last: iova - 1,
                        ..map
                    },
                );
            }
        }
    }

    /// Removes every map, and with them every mapping of a file.
    pub(crate) fn unmap_all(&mut self) {
        self.maps.clear();
    }

    /// Copies guest memory out. All of it or nothing.
    pub(crate) fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.check(iova, data.len(), Access::Read)?;
        let mut done = 0;
        while done < data.len() {
            let at = iova + done as u64;
            let (mapping, offset, count) = self.piece(at, data.len() - done, Access::Read)?;
            mapping
                .read(offset, &mut data[done..done + count])
                .ok_or(DmaError::NotMapped)?;
            done += count;
        }
        Ok(())
    }

    /// Copies into guest memory. All of it or nothing.
    pub(crate) fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        self.check(iova, data.len(), Access::Write)?;
        let mut done = 0;
        while done < data.len() {
            let at = iova + done as u64;
            let (mapping, offset, count) = self.piece(at, data.len() - done, Access::Write)?;
            mapping
                .write(offset, &data[done..done + count])
                .ok_or(DmaError::Permission)?;
            done += count;
        }
        Ok(())
    }

    /// Stores one aligned dword after everything written before, for an observer that polls it.
    pub(crate) fn publish_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        let (mapping, offset, count) = self.piece(iova, 4, Access::Write)?;
        if count < 4 {
            return Err(DmaError::NotMapped);
        }
        mapping
            .publish_u32(offset, value)
            .ok_or(DmaError::Permission)
    }

    fn check(&self, iova: u64, len: usize, access: Access) -> Result<(), DmaError> {
        let mut done = 0;
        while done < len {
            let at = iova.checked_add(done as u64).ok_or(DmaError::NotMapped)?;
            done += self.piece(at, len - done, access)?.2;
        }
        Ok(())
    }

    /// The mapping that `iova` lies in, the offset there, and how many of `len` bytes follow.
    fn piece(
        &self,
        iova: u64,
        len: usize,
        access: Access,
    ) -> Result<(&Mapping, usize, usize), DmaError> {
        let (start, map) = self
            .maps
            .range(..=iova)
            .next_back()
            .filter(|(_, map)| map.last >= iova)
            .ok_or(DmaError::NotMapped)?;
        let allowed = match access {
            Access::Read => map.readable,
            Access::Write => map.writable,
        };
        let Some(mapping) = map.file.as_deref() else {
            if !self.warned_no_file.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "access to {iova:#x}: the VMM mapped this memory without a file descriptor; \
                     give it shared memory (QEMU: memory-backend-memfd with share=on)"
                );
            }
            return Err(DmaError::NoFile);
        };
        if !allowed || (access == Access::Write && !mapping.writable()) {
            return Err(DmaError::Permission);
        }
        // map() checked that offset plus size fits, and that it lies within the file.
        let offset = map.offset + (iova - start);
        let beyond_first = usize::try_from(map.last - iova).unwrap_or(usize::MAX);
        let count = len.min(beyond_first.saturating_add(1));
        let offset = usize::try_from(offset).map_err(|_| DmaError::NotMapped)?;
        Ok((mapping, offset, count))
    }

    fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &Map)> {
        let before = self.maps.range(..first).next_back();
        before
            .into_iter()
            .filter(move |(_, map)| map.last >= first)
            .chain(self.maps.range(first..=last))
            .map(|(start, map)| (*start, map))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn memfd(len: u64) -> OwnedFd {
        let file = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, len).unwrap();
        file
    }

    pub(crate) fn request(iova: u64, size: u64, offset: u64) -> MapRequest {
        MapRequest {
            iova,
            size,
            offset,
            readable: true,
            writable: true,
        }
    }

    fn reads(memory: &GuestMemory, iova: u64, len: usize) -> Result<(), DmaError> {
        memory.read(iova, &mut vec![0; len])
    }

    #[test]
    fn access_crosses_neighbouring_maps_with_different_offsets() {
        let file = memfd(0x4000);
        let mut memory = GuestMemory::default();
        memory
            .map(request(0x1000, 0x1000, 0x3000), Some(&file))
            .unwrap();
        memory
            .map(request(0x2000, 0x1000, 0x0000), Some(&file))
            .unwrap();
        assert_eq!(memory.files.count(), 1);
        memory.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
        let mut raw = [0u8; 2];
        rustix::io::pread(&file, &mut raw[..], 0x3ffe).unwrap();
        assert_eq!(raw, [1, 2]);
        rustix::io::pread(&file, &mut raw[..], 0).unwrap();
        assert_eq!(raw, [3, 4]);
        let mut back = [0u8; 4];
        memory.read(0x1ffe, &mut back).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
    }

    #[test]
    fn an_access_that_is_not_wholly_mapped_changes_nothing() {
        let file = memfd(0x1000);
        let mut memory = GuestMemory::default();
        memory.map(request(0, 0x1000, 0), Some(&file)).unwrap();
        assert_eq!(memory.write(0xffe, &[9; 4]), Err(DmaError::NotMapped));
        let mut raw = [0u8; 2];
        rustix::io::pread(&file, &mut raw[..], 0xffe).unwrap();
        assert_eq!(raw, [0, 0]);
    }

    #[test]
    fn a_map_may_end_at_the_top_and_never_wraps() {
        let file = memfd(0x2000);
        let mut memory = GuestMemory::default();
        let top = u64::MAX - 0xfff;
        memory.map(request(top, 0x1000, 0), Some(&file)).unwrap();
        memory.map(request(0, 0x1000, 0x1000), Some(&file)).unwrap();
        assert_eq!(reads(&memory, u64::MAX, 1), Ok(()));
        assert_eq!(reads(&memory, u64::MAX, 2), Err(DmaError::NotMapped));
        assert!(memory.map(request(top, 0x1001, 0), Some(&file)).is_err());
        assert!(memory
            .map(request(0x5000, 0x1000, u64::MAX - 1), Some(&file))
            .is_err());
        memory.unmap(top, 0x1000);
        assert_eq!(reads(&memory, u64::MAX, 1), Err(DmaError::NotMapped));
        memory.unmap(0, u64::MAX);
        assert_eq!(reads(&memory, 0, 1), Err(DmaError::NotMapped));
    }

    #[test]
    fn unmap_takes_several_maps_and_parts_of_maps() {
        let file = memfd(0x10000);
        let mut memory = GuestMemory::default();
        memory.map(request(0x0000, 0x4000, 0), Some(&file)).unwrap();
        memory
            .map(request(0x5000, 0x1000, 0x5000), Some(&file))
            .unwrap();
        memory
            .map(request(0x8000, 0x4000, 0x8000), Some(&file))
            .unwrap();
        rustix::io::pwrite(&file, &[0xab], 0xa123).unwrap();
        memory.unmap(0x3000, 0x7000);
        assert_eq!(reads(&memory, 0x2fff, 1), Ok(()));
        for gone in [0x3000, 0x5000, 0x8000, 0x9fff] {
            assert_eq!(
                reads(&memory, gone, 1),
                Err(DmaError::NotMapped),
                "{gone:x}"
            );
        }
        let mut byte = [0u8];
        memory.read(0xa123, &mut byte).unwrap();
        assert_eq!(byte, [0xab]);
        memory.unmap(0x1000, 0x1000);
        assert_eq!(reads(&memory, 0x0fff, 1), Ok(()));
        assert_eq!(reads(&memory, 0x1000, 1), Err(DmaError::NotMapped));
        assert_eq!(reads(&memory, 0x2000, 0x1000), Ok(()));
        memory.unmap(0x77_0000, 0x1000);
        memory.unmap(0, 0);
    }

    #[test]
    fn unmapping_holes_makes_no_more_maps_than_there_may_be() {
        let file = memfd(0x1000);
        let mut memory = GuestMemory::default();
        memory.map(request(0, 0x1000, 0), Some(&file)).unwrap();
        memory.max_maps = 3;
        for hole in [0xe00, 0xc00, 0xa00] {
            memory.unmap(hole, 1);
        }
        assert_eq!(memory.maps.len(), 3);
        assert_eq!(reads(&memory, 0x9ff, 1), Ok(()));
        assert_eq!(reads(&memory, 0xc01, 0x1ff), Ok(()));
        assert_eq!(reads(&memory, 0xe01, 0x1ff), Ok(()));
        for gone in [0xa00, 0xa01, 0xc00, 0xe00] {
            assert_eq!(
                reads(&memory, gone, 1),
                Err(DmaError::NotMapped),
                "{gone:x}"
            );
        }
        assert!(memory.map(request(0x8000, 0x1000, 0), Some(&file)).is_err());
    }

    #[test]
    fn overlap_is_refused_and_repetition_is_not() {
        let file = memfd(0x4000);
        let mut memory = GuestMemory::default();
        memory.map(request(0x1000, 0x2000, 0), Some(&file)).unwrap();
        memory
            .map(request(0x1000, 0x2000, 0x1000), Some(&file))
            .unwrap();
        for bad in [
            request(0, 0x1001, 0),
            request(0x2fff, 1, 0),
            request(0x1000, 0x1000, 0),
        ] {
            let error = memory.map(bad, Some(&file)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
    }

    #[test]
    fn maps_have_to_lie_within_their_file() {
        let file = memfd(0x1000);
        let mut memory = GuestMemory::default();
        assert!(memory.map(request(0, 0x1000, 1), Some(&file)).is_err());
        assert!(memory.map(request(0, 0, 0), Some(&file)).is_err());
        rustix::fs::ftruncate(&file, 0x2000).unwrap();
        memory.map(request(0, 0x1000, 0), Some(&file)).unwrap();
        rustix::fs::ftruncate(&file, 0x3000).unwrap();
        memory
            .map(request(0x1000, 0x1000, 0x2000), Some(&file))
            .unwrap();
        assert_eq!(reads(&memory, 0, 0x2000), Ok(()));
    }

    #[test]
    fn permissions_and_missing_descriptors_fail_the_access_only() {
        let file = memfd(0x1000);
        let mut memory = GuestMemory::default();
        memory
            .map(
                MapRequest {
                    writable: false,
                    ..request(0, 0x1000, 0)
                },
                Some(&file),
            )
            .unwrap();
        memory.map(request(0x1000, 0x1000, 0), None).unwrap();
        assert_eq!(memory.write(0, &[1]), Err(DmaError::Permission));
        assert_eq!(memory.publish_u32(0, 1), Err(DmaError::Permission));
        assert_eq!(reads(&memory, 0, 1), Ok(()));
        assert_eq!(reads(&memory, 0x1000, 1), Err(DmaError::NoFile));
    }

    #[test]
    fn the_last_unmap_drops_the_file() {
        let file = memfd(0x2000);
        let mut memory = GuestMemory::default();
        memory.map(request(0, 0x1000, 0), Some(&file)).unwrap();
        memory
            .map(request(0x1000, 0x1000, 0x1000), Some(&file))
            .unwrap();
        memory.unmap(0, 0x1000);
        assert_eq!(memory.files.count(), 1);
        memory.unmap_all();
        assert_eq!(memory.files.count(), 0);
    }

    #[test]
    fn a_file_opened_for_reading_is_read_only_memory() {
        use rustix::fs::{Mode, OFlags};
        use std::os::fd::AsRawFd;

        let file = memfd(0x1000);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let reader = rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
        let mut memory = GuestMemory::default();
        memory.map(request(0, 0x1000, 0), Some(&reader)).unwrap();
        memory.map(request(0x1000, 0x1000, 0), Some(&file)).unwrap();
        assert_eq!(reads(&memory, 0, 1), Ok(()));
        assert_eq!(memory.write(0, &[1]), Err(DmaError::Permission));
        assert_eq!(memory.write(0x1000, &[1]), Ok(()));
    }
}
