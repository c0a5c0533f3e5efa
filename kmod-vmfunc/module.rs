// SPDX-License-Identifier: GPL-2.0-only

//! vmfunc_view: alternate views of a guest's memory, which it opens and closes by VMFUNC.
//!
//! This file only puts the parts together. `kernel/vm.rs` is an attached VM, `vcpu.rs` what happens
//! at each of its VM entries, `vcpus.rs` all of them, `view.rs` a view and its windows, `gate.rs` the
//! code by which the guest goes there and back, `chardev.rs` is `/dev/vmfunc`.
//!
//! # Locks
//!
//! From the outside in; a lock is never taken while one below it is held.
//!
//! 1. `Open::attaching` (mutex): held over attaching;
//! 2. the `mmap_lock` of an address space: held by the callers of `mmap`, taken to watch one and to
//!    pin memory and let go of it. So windows are dropped, and watches too, with no lock held;
//! 3. `Vm::inner` (mutex): views, windows, tables. Held over INVEPT on all CPUs; never over a copy
//!    from or to the caller, nor while anything waits for a vCPU;
//! 4. `registry::WRITERS` (mutex): the lists of attached VMs, for those who change them;
//! 5. `Vm::event` (mutex): held over a signal, which wakes who waits, and nothing else.
//!
//! The probe runs with interrupts off and takes no lock. What it reads of a VM is atomic or never
//! changes; what it writes of a vCPU belongs to the thread that runs it (`vcpu.rs`). Taking
//! something from it: make it unfindable, wait for a grace period of RCU (`wait_for_probes`), then
//! use or free it. Taking memory from guests: change the entry, then INVEPT on all CPUs, then free it.
//!
//! # Who frees what when
//!
//! | what | owner | gone when |
//! |---|---|---|
//! | memory of a window | the window | after its removal, or the file's end, has flushed all CPUs |
//! | last tables of a view | the view | with the last window in them, in the same way |
//! | its other tables, top tables, EPTP lists, both faces of the gate | the VM | the last reference to it |
//! | `Vm` | its file, its registry entry, its watch, work under way (`Arc`) | the last of them |
//! | registry entry, watch over the VM's address space, reference to the module | the VM | its work, once: no vCPU is armed after the file's end, or nobody else has KVM's VM, or the address space has ended |
//! | references to KVM's VM and to kvm_intel | `Vm` | with it |
//! | probe, workqueue | this module structure | module exit, which attached VMs and open files hold off |

use kernel::prelude::*;

#[path = "../kmod-common/kernel/mod.rs"]
// It serves more than this module.
#[allow(dead_code, unused_imports, unused_macros)]
mod common;

#[path = "logic/lib.rs"]
#[allow(dead_code, unreachable_pub, unused_attributes)]
mod logic;

#[path = "uapi/lib.rs"]
#[allow(dead_code, unreachable_pub, unused_attributes)]
mod uapi;

#[path = "kernel/chardev.rs"]
mod chardev;
#[path = "kernel/errno.rs"]
mod errno;
#[path = "kernel/faces.rs"]
// Guests and tests want more of it.
#[allow(dead_code)]
mod faces;
#[path = "kernel/gate.rs"]
mod gate;
#[path = "kernel/sys/mod.rs"]
mod sys;
#[path = "kernel/vcpu.rs"]
mod vcpu;
#[path = "kernel/vcpus.rs"]
mod vcpus;
#[path = "kernel/view.rs"]
mod view;
#[path = "kernel/vm.rs"]
mod vm;

/// What lives as long as the module. Dropped in this order: no new file, no probe, then the work that
/// is still under way.
#[pin_data]
struct VmfuncView {
    #[pin]
    device: common::misc_device::Registration<chardev::Chardev>,
    probe: sys::probe::Probe,
    work: common::work::WorkQueue,
}

impl kernel::InPlaceModule for VmfuncView {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _: {
                common::layout::check(sys::LAYOUT)?;
                // SAFETY: module init runs once, and the users are registered below.
                unsafe { sys::registry::WRITERS.init() };
            },
            // SAFETY: as above; dropped behind the users. A work that waits for its time is of a VM
            // that holds the module.
            work: unsafe { common::work::WorkQueue::new(c"vmfunc_view") }?,
            probe: sys::probe::Probe::new()?,
            // SAFETY: part of the module's structure, which goes at module exit.
            device <- unsafe { common::misc_device::Registration::new(module) },
        })
    }
}

module! {
    type: VmfuncView,
    name: "vmfunc_view",
    authors: ["The Zeroshift authors"],
    description: "Alternate views of a guest's memory by EPTP switching",
    license: "GPL v2",
}
