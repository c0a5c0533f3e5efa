// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that stays where it is: own pages, locked, and where they are in this machine's memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr;

use anyhow::{ensure, Context as _, Result};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::pattern::{Page, PAGE};

/// `count` pages of zeroes that are never given back. Locked and small: what shares a huge page could be moved, and
/// carried over, together.
pub(crate) fn pages(count: usize) -> Result<&'static mut [Page]> {
    let length = count.checked_mul(PAGE).context("too many pages")?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
    let address =
        unsafe { mm::mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE) }
            .with_context(|| format!("map {count} pages"))?;
    // SAFETY: the range is the mapping from above; the advice does not change what it holds.
    unsafe { mm::madvise(address, length, Advice::LinuxNoHugepage) }.ok();
    // SAFETY: as above. Locking brings every page in.
    unsafe { mm::mlock(address, length) }.with_context(|| {
        format!("lock {count} pages in memory\n=> run it as root, or raise RLIMIT_MEMLOCK")
    })?;
    // SAFETY: the mapping is `count` pages long, page aligned, readable and writable, initialised with zeroes, never
    // unmapped, and nothing else refers to it. `Page` is an array of bytes.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast::<Page>(), count) })
}

/// The page frame numbers of `pages`. Needs root, else all are 0.
pub(crate) fn frames(pages: &[Page]) -> Result<Vec<u64>> {
    /// Bits 54:0 of an entry of /proc/self/pagemap, and bit 63, "present".
    const FRAME: u64 = (1 << 55) - 1;
    const PRESENT: u64 = 1 << 63;
    let map = File::open("/proc/self/pagemap").context("open /proc/self/pagemap")?;
    let mut entries = vec![0u8; pages.len() * size_of::<u64>()];
    let first = pages.as_ptr().addr() / PAGE;
    map.read_exact_at(&mut entries, (first * size_of::<u64>()) as u64)
        .context("read /proc/self/pagemap")?;
    let entries = entries.chunks_exact(size_of::<u64>());
    let entries = entries.map(|e| e.try_into().map_or(0, u64::from_le_bytes));
    let frames: Vec<u64> = entries
        .map(|e| {
            if e & PRESENT != 0 {
                e & FRAME
            } else {
                u64::MAX
            }
        })
        .collect();
    ensure!(
        !frames.contains(&u64::MAX),
        "a locked page is not in memory"
    );
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_and_stay() {
        let ring = pages(3).unwrap();
        assert!(ring.as_flattened().iter().all(|b| *b == 0));
        assert_eq!(ring.as_ptr().addr() % PAGE, 0);
        let before = frames(ring).unwrap();
        ring[2][7] = 9;
        assert_eq!(frames(ring).unwrap(), before);
    }
}
