// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Windows onto memory of files.

use crate::rig::{copy, guest_page, pattern, Rig, OFFSET, PAGE, WINDOW};
use anyhow::{Context as _, Result};
use rustix::fs::{fcntl_add_seals, memfd_create, MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use vmfunc_uapi::VMFUNC_WINDOW_FILE;
use zeroshift_tests::ktap::{skip, Outcome, Stop};
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmm::{Vcpu, Vm};
use zeroshift_tests::{check, check_eq};

const PAGE_BYTES: u64 = PAGE as u64;

/// A memory file whose pages show their number.
fn file(pages: u64) -> Result<File> {
    let file = File::from(memfd_create("window", MemfdFlags::ALLOW_SEALING)?);
    file.set_len(pages * PAGE_BYTES)?;
    for page in 0..pages {
        file.write_all_at(&pattern(page), page * PAGE_BYTES)?;
    }
    Ok(file)
}

/// The guest has a pattern in a page of the window.
fn check_page(rig: &Rig, vcpu: Vcpu, page: u64, data: &[u8]) -> Result<Vcpu, Stop> {
    let buffer = Vm::buffer(0);
    let from = WINDOW + page * PAGE_BYTES;
    let (vcpu, result) = copy(vcpu, 1, buffer, from, PAGE)?;
    check_eq!(result, 0, "copy of page {page}");
    let same = guest_page(&rig.vm, buffer) == data;
    check_eq!(same, true, "page {page} is what it should be");
    Ok(vcpu)
}

/// What is in the file is in the window, the file being closed or not.
pub(crate) fn memory() -> Outcome {
    let (rig, mut vcpu) = Rig::small()?;
    let file = file(6)?;
    let number = file.as_raw_fd();
    let length = 4 * PAGE_BYTES;
    // A hole, too.
    file.set_len(8 * PAGE_BYTES)?;
    rig.vmfunc.add_file(1, OFFSET, number, PAGE_BYTES, length)?;
    let hole = OFFSET + length;
    rig.vmfunc
        .add_file(1, hole, number, 6 * PAGE_BYTES, 2 * PAGE_BYTES)?;
    let told = rig.vmfunc.window_from(1, OFFSET)?;
    let told = (told.flags, told.fd, told.address);
    check_eq!(told, (VMFUNC_WINDOW_FILE, 0, PAGE_BYTES), "what is told");
    for page in 0..4 {
        vcpu = check_page(&rig, vcpu, page, &pattern(page + 1))?;
    }
    for page in 4..6 {
        vcpu = check_page(&rig, vcpu, page, &[0; PAGE])?;
    }
    for page in [0, 3, 5] {
        let place = if page < 4 { page + 1 } else { page + 2 };
        file.write_all_at(&pattern(page + 100), place * PAGE_BYTES)?;
        vcpu = check_page(&rig, vcpu, page, &pattern(page + 100))?;
    }
    drop(file);
    vcpu = check_page(&rig, vcpu, 0, &pattern(100))?;
    rig.vmfunc.remove_window(1, OFFSET)?;
    check_page(&rig, vcpu, 5, &pattern(105))?;
    Ok(())
}

/// The file loses what a window has: it stays in the window.
pub(crate) fn cut() -> Outcome {
    let (rig, mut vcpu) = Rig::small()?;
    let file = file(3)?;
    let number = file.as_raw_fd();
    rig.vmfunc.add_file(1, OFFSET, number, 0, 3 * PAGE_BYTES)?;
    file.set_len(PAGE_BYTES)?;
    file.set_len(3 * PAGE_BYTES)?;
    file.write_all_at(&pattern(50), PAGE_BYTES)?;
    file.write_all_at(&pattern(51), 0)?;
    for (page, seed) in [(0, 51), (1, 1), (2, 2)] {
        vcpu = check_page(&rig, vcpu, page, &pattern(seed))?;
    }
    // A new window has what the file has now.
    rig.vmfunc.remove_window(1, OFFSET)?;
    rig.vmfunc.add_file(1, OFFSET, number, 0, 3 * PAGE_BYTES)?;
    for (page, data) in [(0, pattern(51)), (1, pattern(50)), (2, vec![0; PAGE])] {
        vcpu = check_page(&rig, vcpu, page, &data)?;
    }
    Ok(())
}

pub(crate) fn seals() -> Outcome {
    let (rig, vcpu) = Rig::small()?;
    let file = file(1)?;
    let number = file.as_raw_fd();
    rig.vmfunc.add_file(1, OFFSET, number, 0, PAGE_BYTES)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    let busy = fcntl_add_seals(&file, SealFlags::WRITE);
    check_eq!(busy, Err(Errno::BUSY), "against writing, with a window");
    rig.vmfunc.remove_window(1, OFFSET)?;
    let sealed = fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SEAL);
    check_eq!(sealed, Ok(()), "against writing, without one");
    rig.vmfunc.add_file(1, OFFSET, number, 0, PAGE_BYTES)?;
    check_page(&rig, vcpu, 0, &pattern(0))?;
    Ok(())
}

/// Parts of large pages, and across their borders.
pub(crate) fn large_pages() -> Outcome {
    const LARGE: u64 = 2 << 20;
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let (rig, mut vcpu) = Rig::small()?;
    let before = fs::read_to_string(POOL).unwrap_or_default();
    if fs::write(POOL, "3").is_err() {
        return skip("the kernel has no large pages");
    }
    let pages: u32 = fs::read_to_string(POOL)?.trim().parse()?;
    check!(
        pages >= 3,
        "the kernel found memory for {pages} large pages of 3"
    );
    let file = memfd_create("large", MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)?;
    let file = File::from(file);
    file.set_len(3 * LARGE)?;
    // hugetlbfs has no write().
    let memory = Memory::of_file(&file, 0, 3 * LARGE as usize, true)?;
    let places = [3, 4, 511, 512, 513, 1023, 1024, 1025].map(|page: u64| page * PAGE_BYTES);
    for place in places {
        // CAST: below 6 MiB.
        memory.write(place as usize, &pattern(place));
    }
    let number = file.as_raw_fd();
    for (place, pages) in [(3, 2), (511, 2), (512, 2), (511, 515), (4, 1022)] {
        let from = place * PAGE_BYTES;
        rig.vmfunc
            .add_file(1, OFFSET, number, from, pages * PAGE_BYTES)?;
        let inside = |at: &u64| (from..from + pages * PAGE_BYTES).contains(at);
        for at in places.into_iter().filter(inside) {
            let page = (at - from) / PAGE_BYTES;
            vcpu = check_page(&rig, vcpu, page, &pattern(at))?;
        }
        rig.vmfunc.remove_window(1, OFFSET)?;
    }
    drop((memory, file));
    fs::write(POOL, before.trim())?;
    // Given back in full: none is still pinned.
    check_eq!(fs::read_to_string(POOL)?, before, "large pages");
    Ok(())
}

pub(crate) fn refused() -> Outcome {
    let (rig, _vcpu) = Rig::small()?;
    let memory = file(2)?;
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let write_only = File::options().write(true).open(&path)?;
    let read_only = File::open(&path)?;
    let null = File::open("/dev/null")?;
    let maps = File::open("/proc/self/maps")?;
    let (pipe, _write) = rustix::pipe::pipe()?;
    let number = memory.as_raw_fd();
    let (inval, badf) = (Errno::INVAL, Errno::BADF);
    let bad = [
        (-1, 0, PAGE_BYTES, badf),
        (i32::MIN, 0, PAGE_BYTES, badf),
        (100_000, 0, PAGE_BYTES, badf),
        (write_only.as_raw_fd(), 0, PAGE_BYTES, Errno::ACCESS),
        (null.as_raw_fd(), 0, PAGE_BYTES, inval),
        (maps.as_raw_fd(), 0, PAGE_BYTES, inval),
        (pipe.as_raw_fd(), 0, PAGE_BYTES, inval),
        (rig.vm.raw_fd(), 0, PAGE_BYTES, inval),
        (rig.vmfunc.file().as_raw_fd(), 0, PAGE_BYTES, inval),
        (number, 1, PAGE_BYTES, inval),
        (number, 0, 3 * PAGE_BYTES, inval),
        (number, PAGE_BYTES, 2 * PAGE_BYTES, inval),
        (number, 2 * PAGE_BYTES, PAGE_BYTES, inval),
        (number, 1 << 63, PAGE_BYTES, inval),
        (number, (1 << 63) - PAGE_BYTES, PAGE_BYTES, inval),
        (number, !4095, PAGE_BYTES, inval),
    ];
    for (fd, from, length, error) in bad {
        let result = rig.vmfunc.add_file(1, OFFSET, fd, from, length);
        check_eq!(result, Err(error), "file {fd}, {length:#x} at {from:#x}");
    }
    check_eq!(rig.vmfunc.query()?.windows, 0, "windows");
    let number = read_only.as_raw_fd();
    let result = rig.vmfunc.add_file(1, OFFSET, number, 0, 2 * PAGE_BYTES);
    check_eq!(result, Ok(()), "for reading only");
    Ok(())
}

/// KiB that count as locked.
fn locked() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmLck")?.parse()?)
}

/// What is pinned counts as locked, exactly as long as it is.
pub(crate) fn locked_memory() -> Outcome {
    let (rig, _vcpu) = Rig::small()?;
    let file = file(4)?;
    let number = file.as_raw_fd();
    let memory = Memory::new(2 * PAGE)?;
    let before = locked()?;
    let add_file = |at, pages| {
        let at = OFFSET + at * PAGE_BYTES;
        rig.vmfunc.add_file(1, at, number, 0, pages * PAGE_BYTES)
    };
    add_file(0, 3)?;
    check_eq!(locked()? - before, 12, "a file");
    rig.vmfunc.add_window(1, OFFSET + 4 * PAGE_BYTES, &memory)?;
    check_eq!(locked()? - before, 20, "a file and memory");
    let refused = [
        add_file(1, 1),
        add_file(8, 5),
        rig.vmfunc.add_window(1, OFFSET + 4 * PAGE_BYTES, &memory),
        rig.vmfunc.add_window(2, OFFSET, &memory),
    ];
    check_eq!(refused.iter().all(Result::is_err), true, "{refused:?}");
    check_eq!(locked()? - before, 20, "what was refused");
    rig.vmfunc.add_owned(1, OFFSET + 8 * PAGE_BYTES, PAGE)?;
    check_eq!(locked()? - before, 20, "memory of the module");
    rig.vmfunc.remove_window(1, OFFSET)?;
    check_eq!(locked()? - before, 8, "without the file");
    add_file(0, 4)?;
    check_eq!(locked()? - before, 24, "with it again");
    rig.vmfunc.destroy_view(1)?;
    check_eq!(locked()?, before, "without the view");
    Ok(())
}
