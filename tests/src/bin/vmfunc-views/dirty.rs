// SPDX-License-Identifier: Apache-2.0 OR MIT

//! KVM's dirty log of what a guest writes to its RAM while it is in a view.

use crate::rig::{
    call, check_rounds, page_of, pattern, some_rounds, start_both, stop_all, Rig, OFFSET, PAGE,
    WINDOW,
};
use anyhow::Result;
use rustix::thread::disable_transparent_huge_pages;
use std::collections::BTreeSet;
use std::sync::Arc;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmm::{Area, Vcpu, Vm, RAM_SIZE, SPARE, SPARE_SIZE};
use zeroshift_tests::{check, check_eq};

/// Guest pages in several regions of 2 MiB, on both sides of their borders.
const WRITTEN: [usize; 11] = [0, 1, 511, 512, 513, 1023, 1024, 2047, 2048, 3000, 4095];
/// The same, others.
const WRITTEN_NEXT: [usize; 5] = [2, 512, 1025, 3001, 4094];
/// Pages that are only read.
const READ: [usize; 4] = [5, 600, 1500, 4000];
const NONE: [usize; 0] = [];
/// Where the guest's code is.
const CODE_PAGE: usize = 1;
/// Where this process writes as well, to stop it.
const REPORTS: std::ops::Range<usize> = 0x30..0x38;
/// Where a copy goes over the border between two pages.
const CROSSED: usize = 700;

/// What copies into RAM and out of it.
struct Copier {
    rig: Rig,
    vcpu: Option<Vcpu>,
    ram: Arc<Memory>,
    owned: Memory,
}

impl Copier {
    fn new(ram: Memory) -> Result<Self, zeroshift_tests::ktap::Stop> {
        let (rig, vcpu) = Rig::small()?;
        let owned = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
        let ram = Arc::new(ram);
        rig.vm.set_spare(&ram)?;
        Ok(Self {
            rig,
            vcpu: Some(vcpu),
            ram,
            owned,
        })
    }

    /// One call of the gate. Nothing in KVM's log is a reason to abort.
    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Outcome {
        let vcpu = self.vcpu.take().ok_or("no vCPU")?;
        let (vcpu, result) = call(vcpu, 1, to, from, bytes)?;
        self.vcpu = Some(vcpu);
        check_eq!(result, 0, "copy from {from:#x} to {to:#x}");
        Ok(())
    }

    /// Copies the window to pages of RAM.
    fn write(&mut self, pages: &[usize]) -> Outcome {
        for page in pages {
            let what = pattern(*page as u64 + 1);
            self.owned.write(0, &what);
            self.copy(address(*page), WINDOW, PAGE)?;
            check!(page_of(&self.ram, *page) == what, "page {page}");
        }
        Ok(())
    }

    /// Copies pages of RAM to the window.
    fn read(&mut self) -> Outcome {
        for page in READ {
            self.copy(WINDOW, address(page), PAGE)?;
            let right = page_of(&self.owned, 0) == page_of(&self.ram, page);
            check!(right, "from page {page}");
        }
        Ok(())
    }

    fn log(&self) -> Result<Vec<usize>> {
        Ok(self.rig.vm.log(Area::Spare)?.pages())
    }
}

/// Guest address of a page.
fn address(page: usize) -> u64 {
    SPARE + (page * PAGE) as u64
}

fn both(log: &[usize], other: &[usize]) -> Vec<usize> {
    let all: BTreeSet<_> = log.iter().chain(other).copied().collect();
    all.into_iter().collect()
}

/// What is written in a view is in the log, page by page, and nothing else is; with large pages of
/// the host and with small ones.
pub(crate) fn dirty_log() -> Outcome {
    for ram in [
        Memory::private(SPARE_SIZE as usize)?,
        Memory::new(SPARE_SIZE as usize)?,
    ] {
        let mut guest = Copier::new(ram)?;
        // Mapped for writing, in large pages if there are any.
        guest.write(&WRITTEN)?;
        guest.read()?;
        // It stays mapped as it is. What the host maps anew for a read KVM takes for dirty.
        disable_transparent_huge_pages(true)?;
        for on in [true, false, true] {
            guest.rig.vm.set_logging(Area::Spare, on)?;
            // Logged or not.
            guest.copy(address(9), WINDOW, PAGE)?;
        }
        check_eq!(guest.log()?, [9], "dirty");
        check_eq!(guest.log()?, NONE, "dirty when nothing ran");
        for _ in 0..2 {
            guest.read()?;
            check_eq!(guest.log()?, NONE, "dirty after reads");
            guest.write(&WRITTEN)?;
            guest.read()?;
            guest.copy(address(CROSSED + 1) - 16, WINDOW, 64)?;
            let expected = both(&WRITTEN, &[CROSSED, CROSSED + 1]);
            check_eq!(guest.log()?, expected, "dirty");
            guest.write(&WRITTEN_NEXT)?;
            check_eq!(guest.log()?, WRITTEN_NEXT, "dirty after that");
        }
        let bounces = guest.rig.bounces(0)?;
        check_eq!(bounces, 0, "bounces");
    }
    Ok(())
}

/// The same when reading the log and clearing it are two steps.
pub(crate) fn dirty_log_manual() -> Outcome {
    for initially_set in [false, true] {
        let mut guest = Copier::new(Memory::private(SPARE_SIZE as usize)?)?;
        guest.write(&WRITTEN)?;
        let vm = &guest.rig.vm;
        vm.set_manual_log(initially_set)?;
        vm.set_logging(Area::Spare, true)?;
        let mut log = vm.log(Area::Spare)?;
        let all: Vec<_> = (0..SPARE_SIZE as usize / PAGE).collect();
        let expected = if initially_set { all } else { Vec::new() };
        check_eq!(log.pages(), expected, "dirty at first");
        vm.clear_log(Area::Spare, &mut log)?;
        guest.read()?;
        check_eq!(guest.log()?, NONE, "dirty after reads");
        guest.write(&WRITTEN)?;
        let mut log = guest.rig.vm.log(Area::Spare)?;
        check_eq!(log.pages(), WRITTEN, "dirty");
        check_eq!(guest.log()?, WRITTEN, "still dirty");
        // Between reading and clearing: what was dirty is cleared, what was not stays.
        guest.write(&WRITTEN_NEXT)?;
        guest.rig.vm.clear_log(Area::Spare, &mut log)?;
        let left: Vec<_> = WRITTEN_NEXT
            .into_iter()
            .filter(|page| !WRITTEN.contains(page))
            .collect();
        check_eq!(guest.log()?, left, "dirty after clearing");
        // And what was cleared is noticed again.
        guest.write(&WRITTEN)?;
        check_eq!(guest.log()?, both(&left, &WRITTEN), "dirty again");
        check_eq!(guest.rig.bounces(0)?, 0, "bounces");
    }
    Ok(())
}

/// Logging is switched on and off, and the log read, while two guests write in their views. A copy
/// of their memory that follows the log is in the end what their memory is.
pub(crate) fn dirty_log_under_use() -> Outcome {
    const TIMES: u64 = 4;
    const HARVESTS: u64 = 5;
    let (rig, mut vcpus) = Rig::new(2)?;
    let mut memories = Vec::new();
    for view in 1..=2 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
        memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
    }
    let mut page = vec![0; PAGE];
    for time in 0..TIMES {
        let running = start_both(vcpus)?;
        some_rounds(&rig.vm, 2)?;
        rig.vm.set_logging(Area::Ram, true)?;
        let mut copy = vec![0; RAM_SIZE as usize];
        rig.vm.read(0, &mut copy);
        let mut dirty = BTreeSet::new();
        let mut follow = |pages: Vec<usize>| {
            for at in pages.iter().map(|page| page * PAGE) {
                rig.vm.read(at as u64, &mut page);
                copy[at..at + PAGE].copy_from_slice(&page);
            }
            dirty.extend(pages);
        };
        // A harvest may miss what a vCPU has just written (it is preempted behind its exit, before
        // KVM has looked at its page-modification log). The last one does not.
        for _ in 0..HARVESTS {
            some_rounds(&rig.vm, 2)?;
            follow(rig.vm.log(Area::Ram)?.pages());
        }
        let ends = stop_all(&rig.vm, running)?;
        follow(rig.vm.log(Area::Ram)?.pages());
        for vcpu in 0..2 {
            // CAST: an address in 2 MiB.
            let first = Vm::buffer(vcpu) as usize / PAGE;
            let right = dirty.contains(&first) && dirty.contains(&(first + 1));
            check!(right, "vCPU {vcpu}: not dirty in {dirty:?}");
        }
        check!(!dirty.contains(&CODE_PAGE), "the code is dirty");
        let mut now = vec![0; RAM_SIZE as usize];
        rig.vm.read(0, &mut now);
        let differs = |p: &usize| now[p * PAGE..][..PAGE] != copy[p * PAGE..][..PAGE];
        let missed: Vec<_> = (0..now.len() / PAGE)
            .filter(|p| !REPORTS.contains(p) && differs(p))
            .collect();
        check_eq!(missed, NONE, "pages that the log missed, time {time}");
        rig.vm.set_logging(Area::Ram, false)?;
        vcpus = ends.into_iter().map(|(vcpu, _)| vcpu).collect();
        for i in 0..2 {
            check_rounds(&rig.vm, i, 2)?;
        }
    }
    for i in 0..2 {
        let counters = rig.vmfunc.counters(i)?;
        println!("# vCPU {i}: {counters:?}");
        check_eq!(counters.bounces, 0, "bounces of vCPU {i}");
    }
    Ok(())
}
