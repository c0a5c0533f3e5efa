// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that can switch views: its EPTP list, its top tables, and what happens to them at each VM
//! entry.
//!
//! Everything but the counters and [`Prepared::is_armed`] belongs to the thread that runs the vCPU,
//! in the probe; ioctls only add top tables. So loads and stores are relaxed where nothing else
//! is said. In particular the list changes only while its vCPU is not in the guest.
//!
//! Why copies of KVM's top entries stay true: KVM takes an entry out of a top table only when the
//! table itself goes. A root that it gives up (memslots, `nx_huge_pages`) is marked, every vCPU is
//! made to leave the guest and to load another one before it enters again
//! (`kvm_mmu_zap_all_fast`, `kvm_tdp_mmu_zap_invalidated_roots`), and a pointer that is not ours is
//! what [`entry`] looks for. A new entry appears when a vCPU faults; the fault of one that has not
//! got it yet brings it here.
//!
//! What an exit was for is still in the VMCS at the entry after it, so exits need no probe.

use crate::{
    logic::{
        ept::{self, top_index, EMPTY, ENTRIES},
        eptp::Eptp,
    },
    sys::{
        kvm::Vcpu,
        page::{with_table, Table},
        vmx::{
            Current, Field, BASIC_REASON, ENABLE_VM_FUNCTIONS, EPTP_SWITCHING,
            EPT_MISCONFIGURATION, EPT_VIOLATION, EXCEPTION_OR_NMI, FETCH, INTERRUPTION,
            MACHINE_CHECK,
        },
    },
    vm::{Vm, VIEWS},
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use kernel::{
    prelude::*,
    sync::{ArcBorrow, SetOnce},
};

/// [`Prepared::mirror`] before there is one: no pointer, and not the 0 that is read when the processor
/// has left VMX operation.
const NO_MIRROR: u64 = u64::MAX;

/// What a vCPU did since its VM was attached.
#[derive(Default)]
pub(crate) struct Counters {
    /// Entries at which "enable VM functions" was set.
    pub(crate) arms: AtomicU64,
    /// Entries with a root that KVM had loaded.
    pub(crate) loads: AtomicU64,
    /// Entries at which a top entry changed.
    pub(crate) resyncs: AtomicU64,
    /// Exits in a view that end in the default view.
    pub(crate) bounces: AtomicU64,
    /// Single-context INVEPTs.
    pub(crate) invepts: AtomicU64,
}

/// Only one thread counts, so this need not be one step.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// See the module.
pub(crate) struct Prepared {
    /// The EPTP list. Index 0 is the mirror of KVM's root.
    list: Table,
    /// The top tables, by view. They stay as long as the VM is attached: a vCPU may be in a view
    /// that has ended.
    tops: [SetOnce<Table>; VIEWS],
    /// KVM's pointer, of which the tops are copies; 0 before the first entry.
    root: AtomicU64,
    /// The pointer to the mirror; [`NO_MIRROR`] before the first entry.
    mirror: AtomicU64,
    /// [`Vm::generation`] when the list was written.
    generation: AtomicU64,
    /// [`Vcpu::flushes`] when our contexts were flushed.
    flushes: AtomicU64,
    armed: AtomicBool,
    /// KVM's tables had five levels when it last entered.
    unable: AtomicBool,
    /// For people.
    pub(crate) counters: Counters,
}

impl Prepared {
    /// With a mirror, and no view.
    pub(crate) fn new() -> Result<Self> {
        let new = Self {
            list: Table::new(0)?,
            tops: [const { SetOnce::new() }; VIEWS],
            root: AtomicU64::new(0),
            mirror: AtomicU64::new(NO_MIRROR),
            generation: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            unable: AtomicBool::new(false),
            counters: Counters::default(),
        };
        new.add_top(0)?;
        Ok(new)
    }

    /// Makes the top table of a view, unless there is one. Before the view is known to probes.
    pub(crate) fn add_top(&self, view: usize) -> Result {
        let place = self.tops.get(view).ok_or(EINVAL)?;
        if place.as_ref().is_none() {
            // One caller at a time, so it is still empty.
            place.populate(Table::new(EMPTY)?);
        }
        Ok(())
    }

    /// Whether its VMCS leads to memory of ours. True is stored before the first entry with it.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Relaxed)
    }

    /// Whether it could not be armed when it last entered.
    pub(crate) fn is_unable(&self) -> bool {
        self.unable.load(Relaxed)
    }

    /// The view whose top `eptp` points to.
    fn view_of(&self, eptp: Eptp) -> Option<usize> {
        let is_it =
            |top: &SetOnce<Table>| top.as_ref().is_some_and(|t| t.physical() == eptp.root());
        self.tops.iter().position(is_it)
    }

    /// Whether `eptp` points to one of its tops, and the vCPU can go on there. Not inlined: the
    /// default view, in which vCPUs are at nearly every entry, is known without.
    #[cold]
    fn stays(&self, vm: ArcBorrow<'_, Vm>, eptp: Eptp, vcpu: &Vcpu, vmcs: &Current) -> bool {
        self.view_of(eptp).is_some() && !is_stuck(vm, vcpu, vmcs)
    }

    /// Whether `eptp` is the default view.
    fn is_mirror(&self, eptp: Eptp) -> bool {
        eptp.0 == self.mirror.load(Relaxed)
    }

    /// Copies KVM's top entries to where they changed. True when one did, which a processor may have
    /// cached. When none of the mirror's did the views are looked at only if it is `all` that may have
    /// changed.
    fn copy(&self, vm: ArcBorrow<'_, Vm>, root: Eptp, all: bool) -> bool {
        let mut changed = false;
        // SAFETY: KVM has loaded this root for this vCPU and drops it only on this thread, which is
        // about to enter the guest with it.
        unsafe {
            with_table(root.root(), |kvm| {
                for (view, top) in self.tops.iter().enumerate() {
                    if view != 0 && !all && !changed {
                        break;
                    }
                    let Some(top) = top.as_ref() else { continue };
                    changed |= copy_top(vm, view, top, kvm);
                }
            });
        }
        changed
    }

    /// Writes the list.
    fn write_list(&self, vm: ArcBorrow<'_, Vm>, root: Eptp) {
        for (view, top) in self.tops.iter().enumerate() {
            let pointer = match top.as_ref() {
                Some(top) if view == 0 || vm.has_view(view) => root.with_root(top.physical()).0,
                _ => 0,
            };
            self.list.set(view, pointer);
        }
    }

    /// INVEPT of each of its contexts.
    fn flush(&self, root: Eptp, vmcs: &Current) {
        for top in self.tops.iter().filter_map(SetOnce::as_ref) {
            vmcs.invept(root.with_root(top.physical()).0);
            count(&self.counters.invepts);
        }
    }

    /// What [`entry`] does when something may have changed. False when the vCPU cannot have views
    /// now.
    #[cold]
    fn look(&self, vm: ArcBorrow<'_, Vm>, vcpu: &Vcpu, vmcs: &Current, eptp: Eptp) -> bool {
        let view = self.view_of(eptp);
        let loaded = view.is_none();
        if loaded {
            if !eptp.has_four_levels() {
                self.unable.store(true, Relaxed);
                self.disarm(vm, vmcs);
                return false;
            }
            self.root.store(eptp.0, Relaxed);
            count(&self.counters.loads);
        }
        let stuck = view.is_some_and(|view| view != 0) && is_stuck(vm, vcpu, vmcs);
        // When KVM has loaded a root since, it may have been in a view.
        if (stuck || loaded) && is_machine_check(vmcs) {
            vm.memory_error();
        }
        let root = Eptp(self.root.load(Relaxed));
        // Read before what it stands for, so that a change meanwhile is seen next time.
        let generation = vm.generation();
        let seen = self.generation.swap(generation, Relaxed);
        let flushes = vcpu.flushes();
        let flushed = flushes != self.flushes.swap(flushes, Relaxed);
        let all = loaded || generation != seen;
        let changed = self.copy(vm, root, all);
        if changed {
            count(&self.counters.resyncs);
        }
        if all {
            self.write_list(vm, root);
        }
        if all || changed || flushed {
            self.flush(root, vmcs);
        }
        // What it was about to read or write is no longer there, and may soon be another's.
        let evicted = view.is_some_and(|view| view != 0 && vm.evicted(view) > seen);
        if let (true, Some(Some(mirror))) = (
            loaded || evicted || stuck,
            self.tops.first().map(SetOnce::as_ref),
        ) {
            let mirror = root.with_root(mirror.physical()).0;
            self.mirror.store(mirror, Relaxed);
            vmcs.write(Field::EptPointer, mirror);
        }
        if stuck {
            count(&self.counters.bounces);
        }
        true
    }

    /// Lets the guest use VMFUNC.
    #[cold]
    fn arm(&self, vm: ArcBorrow<'_, Vm>, vmcs: &Current, controls: u64) {
        if !self.is_armed() {
            self.armed.store(true, Relaxed);
            self.unable.store(false, Relaxed);
            vm.armed();
        }
        vmcs.write(Field::VmFunctionControl, EPTP_SWITCHING);
        vmcs.write(Field::EptpListAddress, self.list.physical());
        vmcs.write(Field::SecondaryControls, controls | ENABLE_VM_FUNCTIONS);
        count(&self.counters.arms);
    }

    /// Lets it no more, and gives KVM's root back.
    fn disarm(&self, vm: ArcBorrow<'_, Vm>, vmcs: &Current) {
        if !self.is_armed() {
            return;
        }
        let controls = vmcs.read(Field::SecondaryControls);
        vmcs.write(Field::SecondaryControls, controls & !ENABLE_VM_FUNCTIONS);
        if self.view_of(Eptp(vmcs.read(Field::EptPointer))).is_some() {
            vmcs.write(Field::EptPointer, self.root.load(Relaxed));
        }
        self.armed.store(false, Relaxed);
        vm.disarmed();
    }
}

/// [`Prepared::copy`] for one top.
fn copy_top(vm: ArcBorrow<'_, Vm>, view: usize, top: &Table, kvm: &[AtomicU64; ENTRIES]) -> bool {
    let mut changed = false;
    for (index, (ours, theirs)) in top.entries().iter().zip(kvm).enumerate() {
        let theirs = theirs.load(Relaxed);
        let wanted = match view {
            0 => theirs,
            _ if index == vm.slot() => vm.slot_entry(view),
            _ => ept::without_execute(theirs),
        };
        if ours.load(Relaxed) != wanted {
            top.set(index, wanted);
            changed = true;
        }
    }
    changed
}

/// The vCPU is about to enter the guest.
pub(crate) fn entry(vm: ArcBorrow<'_, Vm>, vcpu: &Vcpu, vmcs: &Current) {
    let Some(prepared) = vm.vcpu(vcpu.index()) else {
        return vm.unprepared(vcpu.index());
    };
    if vm.is_leaving() || vcpu.is_elsewhere() {
        prepared.disarm(vm, vmcs);
        return;
    }
    let eptp = Eptp(vmcs.read(Field::EptPointer));
    // The last exit's: KVM may have added to its top table.
    let violated = vmcs.read(Field::ExitReason) & BASIC_REASON == EPT_VIOLATION;
    let same = !violated
        && prepared.generation.load(Relaxed) == vm.generation()
        && prepared.flushes.load(Relaxed) == vcpu.flushes();
    let quiet = same && (prepared.is_mirror(eptp) || prepared.stays(vm, eptp, vcpu, vmcs));
    if !quiet && !prepared.look(vm, vcpu, vmcs, eptp) {
        return;
    }
    // KVM knows nothing of the bit: whenever it changes something else of this field, it is gone.
    let controls = vmcs.read(Field::SecondaryControls);
    if controls & ENABLE_VM_FUNCTIONS == 0 || !prepared.is_armed() {
        prepared.arm(vm, vmcs, controls);
    }
}

/// Whether only the default view gets over what stopped the guest in a view.
fn is_stuck(vm: ArcBorrow<'_, Vm>, vcpu: &Vcpu, vmcs: &Current) -> bool {
    // KVM emulates by what the default view has at RIP, and that is a NOP of the gate: in the view
    // the guest would go on in mid-instruction, and take its copy for done. In the default view it
    // aborts.
    if vcpu.was_moved() {
        return true;
    }
    match vmcs.read(Field::ExitReason) & BASIC_REASON {
        // MMIO of the default view.
        EPT_MISCONFIGURATION => true,
        // KVM's tables allow the fetch, so for it there is nothing to mend: it would enter the view
        // again, for ever. The slot is ours, whatever KVM may have there.
        EPT_VIOLATION => {
            vmcs.read(Field::ExitQualification) & FETCH != 0
                || top_index(vmcs.read(Field::GuestPhysical)) == vm.slot()
        }
        // A memory error under a window, which is in no table that the kernel knows. When it has seen
        // the error before it does nothing more, and the guest would read there again, for ever.
        _ => is_machine_check(vmcs),
    }
}

/// Whether the last exit was by a machine check.
fn is_machine_check(vmcs: &Current) -> bool {
    vmcs.read(Field::ExitReason) & BASIC_REASON == EXCEPTION_OR_NMI
        && vmcs.read(Field::ExitInterruption) & INTERRUPTION == MACHINE_CHECK
}
