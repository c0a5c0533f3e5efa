// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Windows: what the guest reads and writes by them.

use crate::rig::{
    call, check_rounds, copy, guest_page, page_of, pattern, start_all, Rig, Rounds, OFFSET, PAGE,
    WINDOW,
};
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmm::{Running, Vm, ABORTED, SMALL};
use zeroshift_tests::{check, check_eq};

/// Most bytes of one copy, and what the gate answers when they are more.
const MAX_COPY: usize = 8191;
const TOO_LONG: u8 = 2;

/// Onto memory of this process: by large pages of the guest and by small ones, each page, parts.
pub(crate) fn read_window() -> Outcome {
    const PAGES: usize = 3;
    let (rig, mut vcpu) = Rig::small()?;
    let memory = Memory::new(PAGES * PAGE)?;
    for page in 0..PAGES {
        memory.write(page * PAGE, &pattern(page as u64));
    }
    rig.vmfunc.add_window(1, OFFSET, &memory)?;
    let to = Vm::buffer(0);
    let mut result;
    for base in [WINDOW, SMALL + OFFSET] {
        for page in 0..PAGES {
            rig.vm.write(to, &[0; PAGE]);
            let from = base + (page * PAGE) as u64;
            (vcpu, result) = copy(vcpu, 1, to, from, PAGE)?;
            check_eq!(result, 0, "copy from {from:#x}");
            let right = guest_page(&rig.vm, to) == pattern(page as u64);
            check!(right, "wrong data from {from:#x}");
        }
    }
    // Not a byte more than was asked for; the memory as it is now.
    memory.write(PAGE, &pattern(77));
    for bytes in [0, 1, 64, 1500, PAGE - 1] {
        rig.vm.write(to, &[0xaa; PAGE]);
        (vcpu, result) = copy(vcpu, 1, to, WINDOW + PAGE as u64, bytes)?;
        check_eq!(result, 0, "copy of {bytes} bytes");
        let mut expected = pattern(77);
        expected[bytes..].fill(0xaa);
        check!(
            guest_page(&rig.vm, to) == expected,
            "wrong data, {bytes} bytes"
        );
    }
    for bytes in [MAX_COPY + 1, usize::MAX, 1 << 32, 1 << 63] {
        (vcpu, result) = copy(vcpu, 1, to, WINDOW, bytes)?;
        check_eq!(result, TOO_LONG, "copy of {bytes} bytes");
    }
    Ok(())
}

/// Memory of the module: what the guest writes is seen here, and the other way round.
pub(crate) fn owned_window() -> Outcome {
    const PAGES: usize = 2;
    let (rig, mut vcpu) = Rig::small()?;
    let memory = rig.vmfunc.add_owned(1, OFFSET, PAGES * PAGE)?;
    let buffer = Vm::buffer(0);
    let mut result;
    for page in 0..PAGES {
        check!(
            page_of(&memory, page) == [0; PAGE],
            "page {page} is not zeroed"
        );
        let at = WINDOW + (page * PAGE) as u64;
        rig.vm.write(buffer, &pattern(page as u64 + 5));
        (vcpu, result) = copy(vcpu, 1, at, buffer, PAGE)?;
        check_eq!(result, 0, "copy to page {page}");
        let right = page_of(&memory, page) == pattern(page as u64 + 5);
        check!(right, "page {page} is not what the guest wrote");
        memory.write(page * PAGE, &pattern(page as u64 + 9));
        (vcpu, result) = copy(vcpu, 1, buffer, at, PAGE)?;
        check_eq!(result, 0, "copy from page {page}");
        let right = guest_page(&rig.vm, buffer) == pattern(page as u64 + 9);
        check!(
            right,
            "the guest does not see what was written to page {page}"
        );
    }
    // Closed, its memory is still what it was.
    rig.vmfunc.remove_window(1, OFFSET)?;
    check!(page_of(&memory, 1) == pattern(10), "page 1 after removal");
    Ok(())
}

/// Behind a window that was closed there is nothing of it any more.
pub(crate) fn removed_window() -> Outcome {
    let (rig, mut vcpu) = Rig::small()?;
    let memory = Memory::new(PAGE)?;
    memory.write(0, &pattern(3));
    let buffer = Vm::buffer(0);
    for round in 0..3 {
        rig.vmfunc.add_window(1, OFFSET, &memory)?;
        let mut result;
        (vcpu, result) = copy(vcpu, 1, buffer, WINDOW, PAGE)?;
        check_eq!(result, 0, "copy {round}");
        check!(
            guest_page(&rig.vm, buffer) == pattern(3),
            "wrong data, round {round}"
        );
        rig.vmfunc.remove_window(1, OFFSET)?;
        rig.vm.write(buffer, &pattern(4));
        (vcpu, result) = call(vcpu, 1, buffer, WINDOW, PAGE)?;
        check_eq!(result, ABORTED, "copy {round} after removal");
        let same = guest_page(&rig.vm, buffer) == pattern(4);
        check!(same, "the guest still reads something, round {round}");
    }
    check!(page_of(&memory, 0) == pattern(3), "the memory changed");
    Ok(())
}

/// Two vCPUs at the same time, each with a view of its own, windows at the same place: right data
/// always, and no exit but those of the host's interrupts.
pub(crate) fn two_views() -> Outcome {
    const COUNT: u64 = 1000;
    let (rig, mut vcpus) = Rig::new(2)?;
    let mut memories = Vec::new();
    for view in 1..=2 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
        memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
    }
    // CAST: 0 and 1.
    let rounds = |count| move |vcpu: u64| Rounds::new(vcpu as u32 + 1, count);
    // First touches exit, so a few rounds are not counted.
    let mut before = Vec::new();
    for count in [10, COUNT] {
        before = exits(&rig)?;
        let running = start_all(vcpus, rounds(count))?;
        vcpus = Vec::new();
        let ends: Vec<_> = running.into_iter().map(Running::wait_for_halt).collect();
        for (i, end) in (0..).zip(ends) {
            let (vcpu, end) = end?;
            check_rounds(&rig.vm, i, count)?;
            check_eq!(end.runs, 1, "returns of KVM_RUN of vCPU {i}");
            vcpus.push(vcpu);
        }
    }
    let after = exits(&rig)?;
    let buffers = [0, 1].map(|i| guest_page(&rig.vm, Vm::buffer(i)));
    for (i, memory) in memories.iter().enumerate() {
        check!(
            page_of(memory, 0) == buffers[i],
            "window {i} is not its vCPU's"
        );
    }
    check!(buffers[0] != buffers[1], "both wrote the same");
    for (i, (before, after)) in before.into_iter().zip(after).enumerate() {
        // CAST: 0 and 1.
        let counters = rig.vmfunc.counters(i as u32)?;
        // The one for HLT is always there.
        let exits = after - before;
        println!(
            "# vCPU {i}: {exits} exits in {} round trips, {counters:?}",
            2 * COUNT
        );
        check!((1..COUNT / 20).contains(&exits), "vCPU {i}: {exits} exits");
        check!(counters.arms >= 1, "vCPU {i} was never armed");
        check!(counters.loads >= 1, "vCPU {i} never had a root");
    }
    Ok(())
}

/// Exits of the two vCPUs but for interrupts.
fn exits(rig: &Rig) -> anyhow::Result<Vec<u64>> {
    (0..2).map(|vcpu| rig.vm.exits(vcpu)).collect()
}
