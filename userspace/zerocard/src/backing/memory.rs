// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A medium in memory: a memfd, mapped, so that copies are direct and holes can be given back.
//!
//! Shared by threads. Concurrent requests to the same blocks mix, as on a disk without atomic writes.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context as _, Result};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::check_size;
use crate::sys::{Buffer, Mapping};

/// From this many bytes on, giving pages back costs less than clearing them.
const HOLE: usize = 64 << 10;

/// See the module.
pub(crate) struct MemoryMedium {
    file: OwnedFd,
    mapping: Mapping,
}

impl MemoryMedium {
    /// Zeroes, `size` bytes. Memory is taken page by page, when a block is first
    /// touched, also by a read.
    pub(crate) fn new(size: u64, block_size: u32) -> Result<Self> {
        Self::make(size, block_size).with_context(|| format!("namespace of {size} bytes in memory"))
    }

    fn make(size: u64, block_size: u32) -> Result<Self> {
        check_size(size, block_size)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("zerocard-medium", flags)?;
        rustix::fs::ftruncate(&file, size).context("choose a smaller size")?;
        // Nobody can make it shorter, also not through /proc.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let mapping = Mapping::new(file.as_fd(), usize::try_from(size)?, true)
            .context("choose a smaller size")?;
        Ok(Self { file, mapping })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Copies blocks from `offset` on into the buffers, one after the other.
    ///
    /// EINVAL: beyond the end. EFAULT: a buffer is outside its mapping, read-only, or was taken away,
    /// perhaps in the middle. EIO: the host had no memory for the medium, which is lost.
    ///
    /// Like every access to guest memory, under the lock of the function: see [`Mapping::revoke`].
    pub(crate) fn read_into(&self, offset: u64, buffers: &[Buffer]) -> Result<(), Errno> {
        let mut at = self.range(offset, buffers)?;
        for buffer in buffers {
            let Buffer {
                mapping,
                offset,
                len,
            } = buffer;
            let copied = Mapping::copy(&self.mapping, at, mapping, *offset, *len);
            self.intact()?;
            still_there(mapping, copied)?;
            at += len;
        }
        Ok(())
    }

    /// Copies the buffers, one after the other, to the blocks from `offset` on. Errors as in
    /// [`MemoryMedium::read_into`]; buffers up to the one with an error may have been written.
    pub(crate) fn write_from(&self, offset: u64, buffers: &[Buffer]) -> Result<(), Errno> {
        let mut at = self.range(offset, buffers)?;
        for buffer in buffers {
            let Buffer {
                mapping,
                offset,
                len,
            } = buffer;
            let copied = Mapping::copy(mapping, *offset, &self.mapping, at, *len);
            self.intact()?;
            // What was stored may be zeroes that never were the guest's.
            still_there(mapping, copied)?;
            at += len;
        }
        Ok(())
    }

    /// Zeroes `len` bytes from `offset` on; large ranges give their memory back.
    pub(crate) fn zero(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let count = usize::try_from(len).map_err(|_| Errno::INVAL)?;
        if start.checked_add(count).ok_or(Errno::INVAL)? > self.mapping.len() {
            return Err(Errno::INVAL);
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if count < HOLE || rustix::fs::fallocate(&self.file, mode, offset, len).is_err() {
            let filled = self.mapping.fill_zero(start, count);
            self.intact()?;
            filled.ok_or(Errno::INVAL)?;
        }
        self.intact()
    }

    /// The first byte in the mapping of a transfer that is inside.
    fn range(&self, offset: u64, buffers: &[Buffer]) -> Result<usize, Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let end = buffers
            .iter()
            .try_fold(start, |end, buffer| end.checked_add(buffer.len))
            .ok_or(Errno::INVAL)?;
        if end > self.mapping.len() {
            return Err(Errno::INVAL);
        }
        Ok(start)
    }

    /// A page that the host could not provide made the mapping private zeroes.
    fn intact(&self) -> Result<(), Errno> {
        if self.mapping.revoked() {
            Err(Errno::IO)
        } else {
            Ok(())
        }
    }
}

/// Whether a copy from or to guest memory happened, and with guest memory all the time.
fn still_there(mapping: &Mapping, copied: Option<()>) -> Result<(), Errno> {
    copied.filter(|()| !mapping.revoked()).ok_or(Errno::FAULT)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn buffer(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Buffer {
        Buffer {
            mapping: Arc::clone(mapping),
            offset,
            len,
        }
    }

    #[test]
    fn keeps_what_is_written_and_stays_inside() {
        let medium = MemoryMedium::new(1 << 20, 512).unwrap();
        assert_eq!(medium.size(), 1 << 20);
        let ram = Arc::new(Mapping::anonymous(8192).unwrap());
        ram.write(0, &[1; 4096]).unwrap();
        ram.write(4096, &[2; 4096]).unwrap();
        let write = [buffer(&ram, 4096, 512), buffer(&ram, 0, 1024)];
        medium.write_from(512, &write).unwrap();
        let read = [buffer(&ram, 100, 1024), buffer(&ram, 3000, 1536)];
        medium.read_into(0, &read).unwrap();
        let mut found = [9; 8192];
        ram.read(0, &mut found).unwrap();
        assert_eq!(found[100..612], [0; 512]);
        assert_eq!(found[612..1124], [2; 512]);
        assert_eq!(found[3000..4024], [1; 1024]);
        assert_eq!(found[4024..4536], [0; 512]);
        assert_eq!(found[4536..], [2; 8192 - 4536]);

        let end = medium.size() - 512;
        let (over, outside) = ([buffer(&ram, 0, 1024)], [buffer(&ram, 8000, 512)]);
        assert_eq!(medium.read_into(end, &over), Err(Errno::INVAL));
        assert_eq!(medium.write_from(end, &over), Err(Errno::INVAL));
        assert_eq!(medium.read_into(u64::MAX, &over), Err(Errno::INVAL));
        assert_eq!(medium.read_into(0, &outside), Err(Errno::FAULT));
        assert_eq!(medium.write_from(0, &outside), Err(Errno::FAULT));
        assert_eq!(medium.zero(end, 513), Err(Errno::INVAL));
        assert_eq!(medium.zero(u64::MAX, u64::MAX), Err(Errno::INVAL));
        assert_eq!(medium.read_into(end, &write[..1]), Ok(()));
    }

    #[test]
    fn zeroes_small_and_large_ranges_exactly() {
        let size = 512 << 10;
        let medium = MemoryMedium::new(size as u64, 512).unwrap();
        let ram = Arc::new(Mapping::anonymous(size).unwrap());
        for (offset, len) in [(512, 512), (4096, 4096), (1536, 200 << 10), (0, size)] {
            let mut expected = vec![7; size];
            ram.write(0, &expected).unwrap();
            medium.write_from(0, &[buffer(&ram, 0, size)]).unwrap();
            medium.zero(offset as u64, len as u64).unwrap();
            // A large range gives its memory back; reading takes it again.
            let blocks = rustix::fs::fstat(&medium.file).unwrap().st_blocks as usize;
            assert_eq!(len == size, blocks == 0);
            assert_eq!(len >= HOLE, blocks * 512 < size);
            medium.read_into(0, &[buffer(&ram, 0, size)]).unwrap();
            expected[offset..offset + len].fill(0);
            let mut found = vec![1; size];
            ram.read(0, &mut found).unwrap();
            assert!(found == expected, "{len} at {offset}");
        }
    }

    /// The VMM's file shrinks under a transfer: the handler of SIGBUS lets it go on with zeroes.
    #[test]
    fn zeroes_in_place_of_guest_memory_are_no_data() {
        crate::sys::sigbus::install().unwrap();
        let medium = MemoryMedium::new(1 << 20, 512).unwrap();
        let ram = || {
            let flags = MemfdFlags::CLOEXEC;
            let file = rustix::fs::memfd_create("ram", flags).unwrap();
            rustix::fs::ftruncate(&file, 8192).unwrap();
            let mapping = Arc::new(Mapping::new(file.as_fd(), 8192, true).unwrap());
            mapping.write(0, &[7; 8192]).unwrap();
            (file, mapping)
        };
        for revoke in [false, true] {
            for write in [false, true] {
                let (file, mapping) = ram();
                let buffers = [buffer(&mapping, 0, 512), buffer(&mapping, 4096, 512)];
                medium.write_from(0, &buffers).unwrap();
                if revoke {
                    mapping.revoke();
                } else {
                    rustix::fs::ftruncate(&file, 4096).unwrap();
                }
                let result = if write {
                    medium.write_from(0, &buffers)
                } else {
                    medium.read_into(0, &buffers)
                };
                assert_eq!(result, Err(Errno::FAULT), "revoke {revoke} write {write}");
                assert!(mapping.revoked());
            }
        }
        assert_eq!(medium.zero(0, 512), Ok(()), "the medium itself is well");
    }

    #[test]
    fn refuses_sizes_that_make_no_sense() {
        assert!(MemoryMedium::new(0, 512).is_err());
        assert!(MemoryMedium::new(513, 512).is_err());
        assert!(MemoryMedium::new(512, 0).is_err());
        let error = MemoryMedium::new(1 << 62, 512).err().unwrap();
        assert!(format!("{error:#}").contains("smaller"), "{error:#}");
    }

    #[test]
    fn serves_several_threads() {
        let medium = Arc::new(MemoryMedium::new(8 << 12, 4096).unwrap());
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let medium = Arc::clone(&medium);
                scope.spawn(move || {
                    let ram = Arc::new(Mapping::anonymous(4096).unwrap());
                    for round in 0..500_u64 {
                        let offset = (u64::from(thread) * 2 + round % 2) << 12;
                        ram.write(0, &[thread + 1; 4096]).unwrap();
                        let block = [buffer(&ram, 0, 4096)];
                        medium.write_from(offset, &block).unwrap();
                        ram.fill_zero(0, 4096).unwrap();
                        medium.read_into(offset, &block).unwrap();
                        let mut found = [0; 4096];
                        ram.read(0, &mut found).unwrap();
                        assert_eq!(found, [thread + 1; 4096]);
                    }
                });
            }
        });
    }
}
