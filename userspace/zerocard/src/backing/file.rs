// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A medium in a regular file or a block device.
//!
//! The descriptor holds an advisory lock (flock) as long as the medium lives: exclusive, or shared
//! when it is read-only, so that two cards do not serve one file. Inside one process, a namespace is
//! shared by sharing the medium. What the filesystem can do is found out once, when it is opened.
//!
//! All transfers go through the page cache. O_DIRECT beside it would show old blocks to one of the
//! two, and pages that a device writes to by itself cannot be taken away from it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::{bail, Context as _, Result};
use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::check_size;
use crate::sys::Operation;

/// How to open a file.
#[derive(Clone, Copy)]
pub(crate) struct FileOptions {
    /// Bytes: the file is made when it does not exist, and has to have this size when it does.
    pub(crate) size: Option<u64>,
    /// Bytes of a block; the size has to be a multiple.
    pub(crate) block_size: u32,
    /// Refuse writes, and let others read it too.
    pub(crate) read_only: bool,
}

/// See the module.
pub(crate) struct FileMedium {
    file: Arc<OwnedFd>,
    /// For messages.
    path: PathBuf,
    /// What was written may be lost; never false again.
    sync_failed: AtomicBool,
    size: u64,
    read_only: bool,
    zero_range: bool,
    punch_hole: bool,
}

impl FileMedium {
    /// Opens or makes the file. Errors name the path, the cause, and what to do.
    pub(crate) fn open(path: &Path, options: FileOptions) -> Result<Self> {
        Self::prepare(path, options).with_context(|| format!("namespace file {}", path.display()))
    }

    fn prepare(path: &Path, options: FileOptions) -> Result<Self> {
        let (file, size) = match rustix::fs::stat(path) {
            Ok(status) => open_existing(path, &status, options)?,
            Err(Errno::NOENT) => match options.size {
                Some(size) if !options.read_only => (create(path, size, options)?, size),
                _ => bail!("it does not exist; give a size to have it made"),
            },
            Err(error) => return Err(error.into()),
        };
        let (zero_range, punch_hole) = if options.read_only {
            (false, false)
        } else {
            probe(&file, size, options.block_size)
        };
        Ok(Self {
            file: Arc::new(file),
            path: path.to_owned(),
            sync_failed: AtomicBool::new(false),
            size,
            read_only: options.read_only,
            zero_range,
            punch_hole,
        })
    }

    /// Bytes, when it was opened.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether writes are refused.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// The file, for transfers and for [`Operation::Sync`].
    pub(crate) fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Whether bringing data to stable storage has ever failed. Nothing that was written and not yet
    /// safe can be promised any more: Linux reports a failed write-back once for each open file and
    /// then takes the pages for clean, so the next sync would succeed without the data.
    pub(crate) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    /// Bringing data to stable storage has failed.
    pub(crate) fn note_sync_failure(&self, error: Errno) {
        if !self.sync_failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "namespace file {}: what was written may be lost ({error}); flushes and durable \
                 writes fail until the card is started anew. Check the storage and the data",
                self.path.display()
            );
        }
    }

    /// Whether [`FileMedium::zero`] gives an operation.
    pub(crate) fn can_zero(&self) -> bool {
        self.zero_range || self.punch_hole
    }

    /// Whether [`FileMedium::deallocate`] gives an operation.
    pub(crate) fn can_deallocate(&self) -> bool {
        self.punch_hole
    }

    /// What zeroes a range; `None` when zeroes have to be written.
    pub(crate) fn zero(&self, offset: u64, len: u64) -> Option<Operation<'_>> {
        if self.zero_range {
            let file = &self.file;
            Some(Operation::Zero { file, offset, len })
        } else {
            // A hole reads as zeroes.
            self.deallocate(offset, len)
        }
    }

    /// What gives a range's storage back; `None` when the filesystem or device cannot.
    pub(crate) fn deallocate(&self, offset: u64, len: u64) -> Option<Operation<'_>> {
        let file = &self.file;
        self.punch_hole
            .then_some(Operation::Deallocate { file, offset, len })
    }
}

fn access(options: FileOptions) -> OFlags {
    let mode = if options.read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    mode | OFlags::CLOEXEC
}

/// Opens and locks what is there; its size.
fn open_existing(path: &Path, status: &Stat, options: FileOptions) -> Result<(OwnedFd, u64)> {
    let mut flags = access(options);
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => {}
        // Exclusive: not while it is mounted or part of something else.
        FileType::BlockDevice => flags.set(OFlags::EXCL, !options.read_only),
        _ => bail!("it is neither a regular file nor a block device; choose another path"),
    }
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::BUSY) => bail!("the system uses this device; unmount it or stop what has it"),
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if !options.read_only => {
            bail!("it may not be written; change its permissions or make the namespace read-only")
        }
        result => result?,
    };
    lock(&file, options.read_only)?;
    // Works for devices too.
    let size = rustix::fs::seek(&file, SeekFrom::End(0))?;
    match options.size {
        Some(wanted) if wanted != size => bail!(
            "it exists and has {size} bytes, not {wanted}; leave the size away to use it as it \
             is, or choose another path"
        ),
        _ => {}
    }
    check_size(size, options.block_size)?;
    Ok((file, size))
}

/// Makes a file of zeroes that takes no space yet.
fn create(path: &Path, size: u64, options: FileOptions) -> Result<OwnedFd> {
    check_size(size, options.block_size)?;
    let flags = access(options) | OFlags::CREATE | OFlags::EXCL;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .context("it cannot be made; the directory has to exist and be writable")?;
    let made = lock(&file, false).and_then(|()| {
        rustix::fs::ftruncate(&file, size)
            .with_context(|| format!("{size} bytes do not fit its filesystem; choose fewer"))
    });
    if made.is_err() {
        let _ = rustix::fs::unlink(path);
    }
    made.map(|()| file)
}

fn lock(file: &OwnedFd, shared: bool) -> Result<()> {
    let operation = if shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(file, operation) {
        Err(Errno::AGAIN) => bail!(
            "another process or another namespace of this card has it; end that, or attach one \
             namespace to several controllers"
        ),
        result => result.context("it cannot be locked (flock); put it on another filesystem"),
    }
}

/// Whether ranges can be zeroed, and whether storage can be given back, without a trace of the try.
fn probe(file: &OwnedFd, size: u64, block_size: u32) -> (bool, bool) {
    let Ok(status) = rustix::fs::fstat(file) else {
        return (false, false);
    };
    if FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice {
        // Every Linux block device can zero; by writing, if need be. Both go by its own blocks.
        let suits = rustix::fs::ioctl_blksszget(file).is_ok_and(|own| block_size % own == 0);
        return (suits, suits && offloads_zeroes(&status));
    }
    // Behind the end, where there is nothing to lose.
    const UNIT: u64 = 64 << 10;
    let Some(behind) = size.checked_next_multiple_of(UNIT) else {
        return (false, false);
    };
    let works = |mode| {
        let mode = mode | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, mode, behind, UNIT).is_ok()
    };
    let punch_hole = works(FallocateFlags::PUNCH_HOLE);
    let zero_range = works(FallocateFlags::ZERO_RANGE);
    if zero_range {
        // Space may have been set aside behind the end; cutting the file where it ends frees it.
        let _ = rustix::fs::ftruncate(file, size);
    }
    (zero_range, punch_hole)
}

/// Whether a block device zeroes by itself, which is what makes holes in one.
fn offloads_zeroes(status: &Stat) -> bool {
    let (major, minor) = (
        rustix::fs::major(status.st_rdev),
        rustix::fs::minor(status.st_rdev),
    );
    // A partition has its queue in the disk's folder, which is its parent.
    ["", "/.."].iter().any(|up| {
        let path = format!("/sys/dev/block/{major}:{minor}{up}/queue/write_zeroes_max_bytes");
        std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
    })
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
