// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory over real files: what is reachable, what is marked, and what happens at the edges.

use super::*;
use crate::tracking::{Limits, Range};

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
    memory.maps.limit(3);
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
fn a_client_has_so_many_files_and_no_more() {
    let files: Vec<_> = (0..65).map(|_| memfd(0x1000)).collect();
    let mut memory = GuestMemory::default();
    let at = |i: usize| request(i as u64 * 0x1000, 0x1000, 0);
    for (i, file) in files[..64].iter().enumerate() {
        memory.map(at(i), Some(file)).unwrap();
    }
    let error = memory.map(at(64), Some(&files[64])).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    assert!(error.to_string().contains("64 RAM files"), "{error}");
    // Those that are mapped can be mapped again, and one that goes makes room.
    memory.map(at(64), Some(&files[0])).unwrap();
    memory.unmap(0x5000, 0x1000);
    memory.map(at(5), Some(&files[64])).unwrap();
    // What has grown is another mapping, however often it grows.
    memory.unmap(0x5000, 0x1000);
    rustix::fs::ftruncate(&files[1], 0x2000).unwrap();
    let longer = |iova| request(iova, 0x2000, 0);
    memory.map(longer(0x10_0000), Some(&files[1])).unwrap();
    rustix::fs::ftruncate(&files[1], 0x3000).unwrap();
    let grown = MapRequest {
        offset: 0x1000,
        ..longer(0x20_0000)
    };
    let error = memory.map(grown, Some(&files[1])).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
}

#[test]
fn only_files_in_memory_are_taken_for_ram() {
    use rustix::fs::{Mode, OFlags};

    let mut memory = GuestMemory::default();
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let open = |path| rustix::fs::open(path, OFlags::RDWR, Mode::empty()).unwrap();
    // Neither is on tmpfs, though its inode may be; /proc is on a filesystem of its own.
    let status = rustix::fs::open("/proc/self/stat", OFlags::RDONLY, Mode::empty()).unwrap();
    for (file, name) in [
        (pipe, "pipe"),
        (open("/dev/zero"), "device"),
        (status, "proc"),
    ] {
        let error = memory.map(request(0, 1, 0), Some(&file)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        assert!(error.to_string().contains("memfd"), "{name}: {error}");
    }
    let shared = std::path::Path::new("/dev/shm");
    if shared.is_dir() {
        let file = tempfile::tempfile_in(shared).unwrap();
        file.set_len(0x1000).unwrap();
        memory
            .map(request(0, 0x1000, 0), Some(&file.into()))
            .unwrap();
    }
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

fn buffers(
    memory: &GuestMemory,
    iova: u64,
    len: u64,
    access: Access,
) -> Result<Vec<(usize, usize)>, DmaError> {
    let mut out = Vec::new();
    memory.buffers(iova, len, access, &mut out)?;
    Ok(out.iter().map(|b| (b.offset, b.len)).collect())
}

#[test]
fn buffers_are_the_host_memory_of_a_range() {
    let (one, other) = (memfd(0x4000), memfd(0x4000));
    let mut memory = GuestMemory::default();
    let mut map = |iova, offset, file| memory.map(request(iova, 0x1000, offset), Some(file));
    map(0x1000, 0x2000, &one).unwrap();
    map(0x2000, 0x3000, &one).unwrap();
    map(0x3000, 0x0000, &one).unwrap();
    map(0x4000, 0x1000, &other).unwrap();
    let all = buffers(&memory, 0x1800, 0x3000, Access::Write).unwrap();
    assert_eq!(all, [(0x2800, 0x1800), (0, 0x1000), (0x1000, 0x800)]);
    // Also with what is there already.
    let mut out = Vec::new();
    memory
        .buffers(0x1000, 0x10, Access::Read, &mut out)
        .unwrap();
    memory
        .buffers(0x1010, 0x10, Access::Read, &mut out)
        .unwrap();
    assert_eq!((out.len(), out[0].len), (1, 0x20));
    // All or none.
    assert_eq!(
        memory.buffers(0x4800, 0x1000, Access::Read, &mut out),
        Err(DmaError::NotMapped)
    );
    assert_eq!(out.len(), 1);
    // What the kernel works on survives the map.
    memory.unmap_all();
    out[0].mapping.write(out[0].offset, &[7]).unwrap();
    let mut raw = [0u8];
    rustix::io::pread(&one, &mut raw[..], 0x2000).unwrap();
    assert_eq!(raw, [7]);
}

#[test]
fn buffers_need_the_permission_for_their_direction() {
    let file = memfd(0x1000);
    let mut memory = GuestMemory::default();
    let read_only = MapRequest {
        writable: false,
        ..request(0, 0x1000, 0)
    };
    memory.map(read_only, Some(&file)).unwrap();
    let buffer = vec![(0, 16)];
    assert_eq!(buffers(&memory, 0, 16, Access::Read), Ok(buffer));
    let refused = Err(DmaError::Permission);
    assert_eq!(buffers(&memory, 0, 16, Access::Write), refused);
    assert_eq!(
        buffers(&memory, 0, u64::MAX, Access::Read),
        Err(DmaError::NotMapped)
    );
}

/// Starts a log over pages 0 to 15.
fn track(memory: &mut GuestMemory) -> Arc<DirtyLog> {
    let range = Range {
        start: 0,
        granules: 16,
    };
    let log = Arc::new(DirtyLog::start(&[range], 12, Limits::default()).unwrap());
    memory.set_log(Some(Arc::clone(&log)));
    log
}

/// Takes the dirty pages out of a log.
fn dirty(log: &DirtyLog) -> Vec<u64> {
    let mut pages = Vec::new();
    let more = log.harvest(usize::MAX, &mut |start, count| {
        pages.extend((start >> 12)..(start >> 12) + u64::from(count));
    });
    assert!(!more);
    pages
}

#[test]
fn every_write_marks_what_it_wrote_and_nothing_else() {
    let file = memfd(0x1_0000);
    let mut memory = GuestMemory::default();
    memory.map(request(0, 0x8000, 0), Some(&file)).unwrap();
    memory
        .map(request(0x8000, 0x8000, 0x8000), Some(&file))
        .unwrap();
    let log = track(&mut memory);
    memory.write(0x1fff, &[1]).unwrap();
    assert_eq!(dirty(&log), [1]);
    memory.write(0x7fff, &[1, 2]).unwrap();
    assert_eq!(dirty(&log), [7, 8]);
    memory.write(0x4fff, &[1; 0x1002]).unwrap();
    assert_eq!(dirty(&log), [4, 5, 6]);
    memory.publish_u32(0x3ffc, 1).unwrap();
    assert_eq!(dirty(&log), [3]);
    memory.wrote(0x9fff, 0x1002);
    assert_eq!(dirty(&log), [9, 10, 11]);
    reads(&memory, 0, 0x1_0000).unwrap();
    memory.write(0xffff, &[1, 2]).unwrap_err();
    memory.publish_u32(0x1_0000, 0).unwrap_err();
    memory.publish_u32(2, 0).unwrap_err();
    buffers(&memory, 0, 0x1000, Access::Write).unwrap();
    assert_eq!(dirty(&log), [0; 0]);
}

#[test]
fn the_log_outlives_maps_and_ends_with_the_client() {
    let file = memfd(0x1_0000);
    let mut memory = GuestMemory::default();
    let log = track(&mut memory);
    for _ in 0..2 {
        memory.map(request(0, 0x1_0000, 0), Some(&file)).unwrap();
        memory.write(0, &[1]).unwrap();
        assert_eq!(dirty(&log), [0]);
        memory.unmap_all();
    }
    let accesses = memory.accesses();
    memory.reset();
    assert_eq!(memory.accesses(), accesses);
    memory.map(request(0, 0x1_0000, 0), Some(&file)).unwrap();
    memory.write(0, &[1]).unwrap();
    assert_eq!(dirty(&log), [0; 0]);
}

#[test]
fn an_access_of_no_bytes_is_always_possible() {
    let memory = GuestMemory::default();
    assert_eq!(memory.read(7, &mut []), Ok(()));
    assert_eq!(memory.write(u64::MAX, &[]), Ok(()));
    assert_eq!(memory.accesses(), 0);
}

#[test]
fn accesses_are_counted_by_contiguous_part() {
    let file = memfd(0x2000);
    let mut memory = GuestMemory::default();
    memory.map(request(0, 0x1000, 0), Some(&file)).unwrap();
    memory
        .map(request(0x1000, 0x1000, 0x1000), Some(&file))
        .unwrap();
    reads(&memory, 0, 8).unwrap();
    reads(&memory, 0xfff, 2).unwrap();
    memory.write(0xfff, &[1, 2]).unwrap();
    memory.publish_u32(0, 1).unwrap();
    reads(&memory, 0x1fff, 2).unwrap_err();
    assert_eq!(memory.accesses(), 6);
}

#[test]
fn memory_that_was_taken_away_is_not_accessed_and_can_be_mapped_anew() {
    let file = memfd(0x1000);
    let mut memory = GuestMemory::default();
    memory.map(request(0, 0x1000, 0), Some(&file)).unwrap();
    let mut out = Vec::new();
    memory.buffers(0, 16, Access::Read, &mut out).unwrap();
    out[0].mapping.revoke();
    let gone = Err(DmaError::Revoked);
    assert_eq!(reads(&memory, 0, 1), gone);
    assert_eq!(memory.write(0, &[1]), gone);
    assert_eq!(memory.publish_u32(0, 1), gone);
    assert_eq!(memory.buffers(0, 16, Access::Read, &mut out), gone);
    memory.unmap_all();
    memory.map(request(0, 0x1000, 0), Some(&file)).unwrap();
    assert_eq!(memory.write(0, &[1]), Ok(()));
}
