// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ioctls: what is refused, and with which error.

use crate::rig::{attach_again, Rig, OFFSET, PAGE};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use vmfunc_uapi::{
    VmfuncWindow, FIRST_WINDOW, IOCTL_TYPE, MAX_ARGSZ, MAX_VIEWS, MAX_WINDOW, SLOT_SIZE,
    VMFUNC_ATTACH, VMFUNC_GET_VCPU, VMFUNC_GET_WINDOW, VMFUNC_QUERY, VMFUNC_SET_EVENTFD,
    VMFUNC_VIEW_CREATE, VMFUNC_VIEW_DESTROY, VMFUNC_WINDOW_ADD, VMFUNC_WINDOW_FILE,
    VMFUNC_WINDOW_OWNED, VMFUNC_WINDOW_REMOVE, VMFUNC_WINDOW_WRITE,
};
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::sys::{ioctl_on, Plain};
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::{attachment, eventfd, query, vcpu, view, window, Vmfunc};
use zeroshift_tests::vmm::{self, Program, Vm, GATE};
use zeroshift_tests::{check, check_eq};

pub(crate) fn attach() -> Outcome {
    let (vm, _vcpus) = Vm::new(2)?;
    let vmfunc = Vmfunc::open()?;
    check_eq!(vmfunc.attach(vm.raw_fd(), GATE), Ok(2), "attach");
    for i in 0..2 {
        let counters = vmfunc.counters(i)?;
        let all = [counters.arms, counters.loads, counters.bounces];
        check_eq!(all, [0; 3], "counters of vCPU {i}, which never ran");
    }
    check_eq!(vmfunc.counters(2).err(), Some(Errno::NOENT), "vCPU 2 of 2");
    check_eq!(
        vmfunc.counters(u32::MAX).err(),
        Some(Errno::NOENT),
        "last vCPU"
    );
    Ok(())
}

/// With `kvm_intel.nested=1` any VMFUNC of a guest makes KVM warn, so there is no attaching.
pub(crate) fn nested() -> Outcome {
    let (vm, _vcpus) = Vm::new(1)?;
    let vmfunc = Vmfunc::open()?;
    check_eq!(
        vmfunc.attach(vm.raw_fd(), GATE),
        Err(Errno::OPNOTSUPP),
        "attach"
    );
    // Nothing is left of it.
    check_eq!(vmfunc.create_view(), Err(Errno::NOTCONN), "view after it");
    Ok(())
}

pub(crate) fn attach_refused() -> Outcome {
    let (vm, _vcpus) = Vm::new(1)?;
    let vmfunc = Vmfunc::open()?;
    for fd in [-1, i32::MIN, 100_000] {
        check_eq!(vmfunc.attach(fd, GATE), Err(Errno::BADF), "file {fd}");
    }
    for path in [
        "/dev/null",
        "/dev/kvm",
        "/dev/vmfunc",
        "/proc/self/exe",
        "/",
    ] {
        let file = File::open(path)?;
        let result = vmfunc.attach(file.as_raw_fd(), GATE);
        check_eq!(result, Err(Errno::INVAL), "{path}");
    }
    let (read, _write) = rustix::pipe::pipe()?;
    let result = vmfunc.attach(read.as_raw_fd(), GATE);
    check_eq!(result, Err(Errno::INVAL), "a pipe");
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty())?;
    let result = vmfunc.attach(event.as_raw_fd(), GATE);
    check_eq!(result, Err(Errno::INVAL), "another anonymous file");

    let bad = [
        0,
        1,
        4096,
        GATE - 4096,
        GATE + 4096,
        GATE + (1 << 30),
        1 << 52,
        !(SLOT_SIZE - 1),
    ];
    for slot in bad {
        let result = vmfunc.attach(vm.raw_fd(), slot);
        check_eq!(result, Err(Errno::INVAL), "slot {slot:#x}");
    }
    check!(
        vmfunc.gate().is_err(),
        "there is a gate before there is a VM"
    );
    // None of it did harm.
    check_eq!(vmfunc.attach(vm.raw_fd(), GATE), Ok(1), "attach in the end");
    Ok(())
}

/// A slot that the processor does not reach, and one that the guest does not.
pub(crate) fn out_of_reach() -> Outcome {
    let refused = Err(Errno::OPNOTSUPP);
    let (vm, _vcpus) = Vm::new(1)?;
    let vmfunc = Vmfunc::open()?;
    let bits = vmm::address_bits()?;
    if bits < 48 {
        let beyond = 1 << bits;
        check_eq!(vmfunc.attach(vm.raw_fd(), beyond), refused, "the processor");
        let last = beyond - SLOT_SIZE;
        check_eq!(vmfunc.attach(vm.raw_fd(), last), Ok(1), "the last slot");
    }
    for (bits, result) in [(36, refused), (39, refused), (40, Ok(1))] {
        let (vm, _vcpus) = Vm::narrow(1, bits)?;
        let vmfunc = Vmfunc::open()?;
        let attached = vmfunc.attach(vm.raw_fd(), GATE);
        check_eq!(attached, result, "a guest with {bits} bits");
    }
    Ok(())
}

pub(crate) fn attach_twice() -> Outcome {
    let (rig, _vcpus) = Rig::new(1)?;
    let (other, _other_vcpus) = Vm::new(1)?;
    let busy = Err(Errno::BUSY);
    check_eq!(
        rig.vmfunc.attach(rig.vm.raw_fd(), GATE),
        busy,
        "the same again"
    );
    check_eq!(
        rig.vmfunc.attach(other.raw_fd(), GATE),
        busy,
        "the same file, another VM"
    );
    let second = Vmfunc::open()?;
    check_eq!(
        second.attach(rig.vm.raw_fd(), GATE),
        busy,
        "another file, the same VM"
    );
    check_eq!(
        second.attach(other.raw_fd(), GATE),
        Ok(1),
        "another file, another VM"
    );
    check_eq!(
        rig.vmfunc.create_view(),
        Ok(1),
        "first view of the first VM"
    );
    check_eq!(second.create_view(), Ok(1), "first view of the second VM");
    // The file of the first goes, and its VM can be attached again.
    rig.vm.clear_gate()?;
    drop(rig.vmfunc);
    let third = Vmfunc::open()?;
    check_eq!(attach_again(&third, &rig.vm)?, 1, "vCPUs");
    Ok(())
}

pub(crate) fn not_attached() -> Outcome {
    let vmfunc = Vmfunc::open()?;
    let none = Err(Errno::NOTCONN);
    check_eq!(vmfunc.create_view(), none, "VIEW_CREATE");
    check_eq!(vmfunc.destroy_view(1), none.map(drop), "VIEW_DESTROY");
    let memory = Memory::new(PAGE)?;
    check_eq!(
        vmfunc.add_window(1, OFFSET, &memory),
        none.map(drop),
        "WINDOW_ADD"
    );
    check_eq!(
        vmfunc.remove_window(1, OFFSET),
        none.map(drop),
        "WINDOW_REMOVE"
    );
    check_eq!(vmfunc.counters(0).err(), Some(Errno::NOTCONN), "GET_VCPU");
    check_eq!(vmfunc.query().err(), Some(Errno::NOTCONN), "QUERY");
    check_eq!(vmfunc.set_eventfd(-1), none.map(drop), "SET_EVENTFD");
    let window = vmfunc.window_from(1, 0);
    check_eq!(window.err(), Some(Errno::NOTCONN), "GET_WINDOW");
    Ok(())
}

/// `argsz`, flags, reserved fields and numbers of all ioctls.
pub(crate) fn arguments() -> Outcome {
    let (rig, _vcpus) = Rig::new(1)?;
    let (other, _other_vcpus) = Vm::new(1)?;
    let fresh = Vmfunc::open()?;
    check_eq!(rig.vmfunc.create_view(), Ok(1), "a view");
    common(
        &fresh,
        VMFUNC_ATTACH,
        attachment(other.raw_fd(), GATE),
        |a| (&mut a.argsz, &mut a.flags),
    )?;
    let file = &rig.vmfunc;
    common(file, VMFUNC_VIEW_CREATE, view(0), |a| {
        (&mut a.argsz, &mut a.flags)
    })?;
    common(file, VMFUNC_VIEW_DESTROY, view(1), |a| {
        (&mut a.argsz, &mut a.flags)
    })?;
    common(file, VMFUNC_WINDOW_REMOVE, window(1, OFFSET), |a| {
        (&mut a.argsz, &mut a.flags)
    })?;
    common(file, VMFUNC_GET_VCPU, vcpu(0), |a| {
        (&mut a.argsz, &mut a.flags)
    })?;
    common(file, VMFUNC_QUERY, query(), |a| {
        (&mut a.argsz, &mut a.flags)
    })?;
    common(file, VMFUNC_SET_EVENTFD, eventfd(-1), |a| {
        (&mut a.argsz, &mut a.flags)
    })?;
    common(file, VMFUNC_GET_WINDOW, window(1, 0), |a| {
        (&mut a.argsz, &mut a.flags)
    })?;
    let owned = VmfuncWindow {
        length: 4096,
        ..window(1, OFFSET)
    };
    common(file, VMFUNC_WINDOW_ADD, owned, |a| {
        (&mut a.argsz, &mut a.flags)
    })?;

    let inval = Err(Errno::INVAL);
    let mut bad = view(1);
    check_eq!(
        file.call(VMFUNC_VIEW_CREATE, &mut bad),
        inval,
        "VIEW_CREATE of a number"
    );
    for number in [VMFUNC_VIEW_CREATE, VMFUNC_VIEW_DESTROY] {
        let index = u32::from(number == VMFUNC_VIEW_DESTROY);
        let mut bad = view(index);
        bad.reserved = 1;
        check_eq!(file.call(number, &mut bad), inval, "{number:#x}, reserved");
    }
    let mut bad = vcpu(0);
    bad.reserved = 1;
    check_eq!(
        file.call(VMFUNC_GET_VCPU, &mut bad),
        inval,
        "GET_VCPU, reserved"
    );

    let unknown = u32::from(IOCTL_TYPE) << 8 | 0x7f;
    let others = [
        unknown,
        VMFUNC_ATTACH & 0xffff,
        VMFUNC_ATTACH ^ 1 << 8,
        0,
        u32::MAX,
    ];
    for number in others {
        let result = ioctl_on(file.file(), number, &mut [0; 64]);
        check_eq!(result, Err(Errno::NOTTY), "ioctl {number:#x}");
    }
    check_eq!(file.create_view(), Ok(2), "the next view");
    Ok(())
}

/// What is the same for each ioctl: sizes and flags.
fn common<T: Plain + Copy>(
    file: &Vmfunc,
    number: u32,
    good: T,
    header: impl Fn(&mut T) -> (&mut u32, &mut u32),
) -> Outcome {
    let size = *header(&mut { good }).0;
    let with = |argsz: u32, flags: u32| {
        let mut bad = good;
        let (a, f) = header(&mut bad);
        (*a, *f) = (argsz, flags);
        file.call(number, &mut bad)
    };
    for argsz in [0, 4, 8, size - 1] {
        check_eq!(
            with(argsz, 0),
            Err(Errno::INVAL),
            "{number:#x}, argsz {argsz}"
        );
    }
    for argsz in [MAX_ARGSZ + 1, u32::MAX] {
        check_eq!(
            with(argsz, 0),
            Err(Errno::TOOBIG),
            "{number:#x}, argsz {argsz}"
        );
    }
    for flags in [1 << 31, 1 << 8, u32::MAX] {
        check_eq!(
            with(size, flags),
            Err(Errno::INVAL),
            "{number:#x}, flags {flags:#x}"
        );
    }
    // The structure ends where nothing is mapped.
    let mut pages = zeroshift_tests::sys::Pages::new()?;
    pages.first().fill(0);
    let at = pages.end(8);
    let length = pages.first().len();
    pages.first()[length - 8..length - 4].copy_from_slice(&size.to_ne_bytes());
    // SAFETY: nothing in this process minds what is written to that page.
    let result = unsafe { zeroshift_tests::sys::ioctl_at(file.file(), number, at) };
    check_eq!(
        result,
        Err(Errno::FAULT),
        "{number:#x}, half of it not mapped"
    );
    Ok(())
}

/// The structure is there, but not all that the caller says it knows: nothing is done.
pub(crate) fn no_room_for_answer() -> Outcome {
    let (rig, _vcpus) = Rig::new(1)?;
    let mut pages = zeroshift_tests::sys::Pages::new()?;
    let (at, length) = (pages.end(16), pages.first().len());
    for (argsz, result, views) in [
        (4096_u32, Err(Errno::FAULT), 0),
        (17, Err(Errno::FAULT), 0),
        (16, Ok(()), 2),
    ] {
        let structure = &mut pages.first()[length - 16..];
        structure.fill(0);
        structure[..4].copy_from_slice(&argsz.to_ne_bytes());
        let before = structure.to_vec();
        // SAFETY: nothing in this process minds what is written to that page.
        let called =
            unsafe { zeroshift_tests::sys::ioctl_at(rig.vmfunc.file(), VMFUNC_VIEW_CREATE, at) };
        check_eq!(called, result, "argsz {argsz}");
        check_eq!(rig.vmfunc.query()?.views, views, "views, argsz {argsz}");
        let same = pages.first()[length - 16..] == before;
        check_eq!(same, result.is_err(), "argument as it was, argsz {argsz}");
    }
    Ok(())
}

pub(crate) fn views_come_and_go() -> Outcome {
    let (rig, _vcpus) = Rig::new(2)?;
    let file = &rig.vmfunc;
    for i in 1..=MAX_VIEWS {
        check_eq!(file.create_view(), Ok(i), "view {i}");
    }
    check_eq!(file.create_view(), Err(Errno::NOSPC), "one too many");
    for none in [0, MAX_VIEWS + 1, 511, 512, u32::MAX] {
        check_eq!(
            file.destroy_view(none),
            Err(Errno::NOENT),
            "end of view {none}"
        );
    }
    check_eq!(file.destroy_view(7), Ok(()), "end of view 7");
    check_eq!(
        file.destroy_view(7),
        Err(Errno::NOENT),
        "end of view 7 again"
    );
    check_eq!(file.create_view(), Ok(7), "the place is free");
    for i in 1..=MAX_VIEWS {
        check_eq!(file.destroy_view(i), Ok(()), "end of view {i}");
    }
    check_eq!(file.create_view(), Ok(1), "the first again");
    Ok(())
}

pub(crate) fn windows_refused() -> Outcome {
    const OWNED: u32 = VMFUNC_WINDOW_OWNED;
    const WRITE: u32 = VMFUNC_WINDOW_WRITE;
    const FILE: u32 = VMFUNC_WINDOW_FILE;
    let (rig, _vcpus) = Rig::new(1)?;
    let file = &rig.vmfunc;
    check_eq!(file.create_view(), Ok(1), "a view");
    let memory = Memory::new(4 * PAGE)?;
    let here = memory.address();
    // Flags, view, offset, length, address, error.
    let bad = [
        (0, 0, OFFSET, 4096, here, Errno::NOENT),
        (0, 2, OFFSET, 4096, here, Errno::NOENT),
        (0, 64, OFFSET, 4096, here, Errno::NOENT),
        (0, u32::MAX, OFFSET, 4096, here, Errno::NOENT),
        (0, 1, 0, 4096, here, Errno::INVAL),
        (0, 1, FIRST_WINDOW - 4096, 4096, here, Errno::INVAL),
        (0, 1, OFFSET + 1, 4096, here, Errno::INVAL),
        (0, 1, SLOT_SIZE, 4096, here, Errno::INVAL),
        (0, 1, SLOT_SIZE - 4096, 8192, here, Errno::INVAL),
        (0, 1, !4095, 4096, here, Errno::INVAL),
        (0, 1, !4095, 8192, here, Errno::INVAL),
        (0, 1, OFFSET, 0, here, Errno::INVAL),
        (0, 1, OFFSET, 4095, here, Errno::INVAL),
        (0, 1, OFFSET, MAX_WINDOW + 4096, here, Errno::INVAL),
        (0, 1, OFFSET, !4095, here, Errno::INVAL),
        (0, 1, OFFSET, 4096, here + 1, Errno::INVAL),
        (WRITE, 1, OFFSET, 4096, here, Errno::INVAL),
        (OWNED, 1, OFFSET, 4096, here, Errno::INVAL),
        (OWNED | FILE, 1, OFFSET, 4096, 0, Errno::INVAL),
        (WRITE | FILE, 1, OFFSET, 4096, 0, Errno::INVAL),
        (FILE | 1 << 3, 1, OFFSET, 4096, 0, Errno::INVAL),
        (0, 1, OFFSET, 4096, 4096, Errno::FAULT),
        (0, 1, OFFSET, 4096, 1 << 63, Errno::FAULT),
        (0, 1, OFFSET, 8192, !4095, Errno::FAULT),
    ];
    for (flags, view, offset, length, address, error) in bad {
        let mut argument = VmfuncWindow {
            flags,
            length,
            address,
            ..window(view, offset)
        };
        let what = format!("{argument:x?}");
        let result = file.call(VMFUNC_WINDOW_ADD, &mut argument);
        check_eq!(result, Err(error), "{what}");
    }
    check_eq!(
        file.add_window(1, OFFSET + 8192, &memory),
        Ok(()),
        "a good one"
    );
    for (offset, pages) in [(2, 1), (5, 1), (1, 2), (5, 2), (0, 8), (2, 4)] {
        let at = OFFSET + offset * 4096;
        let result = file.add_owned(1, at, pages * PAGE).map(drop);
        check_eq!(result, Err(Errno::EXIST), "{pages} pages at page {offset}");
    }
    for offset in [
        OFFSET,
        OFFSET + 4096,
        OFFSET + 12288,
        0,
        u64::MAX,
        OFFSET + 8193,
    ] {
        let result = file.remove_window(1, offset);
        let refused = matches!(result, Err(Errno::NOENT | Errno::INVAL));
        check!(refused, "removal at {offset:#x}: {result:?}");
    }
    check_eq!(
        file.remove_window(2, OFFSET + 8192),
        Err(Errno::NOENT),
        "of another view"
    );
    check_eq!(file.remove_window(1, OFFSET + 8192), Ok(()), "removal");
    check_eq!(
        file.remove_window(1, OFFSET + 8192),
        Err(Errno::NOENT),
        "again"
    );
    // The place is free, on both sides of a border of the page tables too.
    file.add_owned(1, OFFSET, 8 * PAGE)?;
    file.add_owned(1, OFFSET + (2 << 20) - 4096, 2 * PAGE)?;
    file.add_window(1, (1 << 30) - 4096, &memory)?;
    file.add_window(1, SLOT_SIZE - 4 * 4096, &memory)?;
    Ok(())
}

/// A VM beside an attached one gets nothing.
pub(crate) fn unattached_vm() -> Outcome {
    let (_rig, _vcpus) = Rig::new(1)?;
    crate::plain::guest_has_no_vmfunc()?;
    let (_vm, mut vcpus) = Vm::new(1)?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    let (_, end) = vcpu.start(Program::Add, |r| r.rdi = 5)?.wait_for_halt()?;
    check_eq!(end.registers.rax, 5, "sum");
    Ok(())
}
