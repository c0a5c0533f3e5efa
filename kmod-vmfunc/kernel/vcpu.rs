// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that can switch views: its EPTP list, its top tables, and what happens to them at each VM
//! entry and exit.
//!
//! Everything but the counters and [`Prepared::is_armed`] belongs to the thread that runs the vCPU,
//! in the two probes; ioctls add top tables and clear entries of the list. So loads and stores are
//! relaxed where nothing else is said.
//!
//! Why copies of KVM's top entries stay true: KVM takes an entry out of a top table only when the
//! table itself goes. A root that it gives up (memslots, `nx_huge_pages`) is marked, every vCPU is
//! made to leave the guest and to load another one before it enters again
//! (`kvm_mmu_zap_all_fast`, `kvm_tdp_mmu_zap_invalidated_roots`), and a pointer that is not ours is
//! what [`entry`] looks for. A new entry appears when a vCPU faults; the fault of one that has not
//! got it yet brings it here.

use crate::{
    logic::{
        ept::{self, ENTRIES},
        eptp::Eptp,
    },
    sys::{
        kvm::Vcpu,
        page::{with_table, Table},
        vmx::{
            Current, Field, BASIC_REASON, ENABLE_VM_FUNCTIONS, EPTP_SWITCHING,
            EPT_MISCONFIGURATION, EPT_VIOLATION, FETCH,
        },
    },
    uapi,
    vm::{Vm, VIEWS},
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use kernel::{prelude::*, sync::SetOnce};

/// [`Prepared::pending`]: KVM may have changed its top table.
const LOOK: u32 = 1 << 0;
/// [`Prepared::pending`]: only the default view gets over what stopped the guest.
const BOUNCE: u32 = 1 << 1;

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
    /// The pointer to the mirror; 0 before the first entry.
    mirror: AtomicU64,
    pending: AtomicU32,
    /// [`Vm::generation`] when the list was written.
    generation: AtomicU64,
    /// [`Vcpu::flushes`] when our contexts were flushed.
    flushes: AtomicU64,
    armed: AtomicBool,
    /// For people.
    pub(crate) counters: Counters,
}

impl Prepared {
    /// With a mirror, and no view.
    pub(crate) fn new() -> Result<Self> {
        let new = Self {
            list: Table::new()?,
            tops: [const { SetOnce::new() }; VIEWS],
            root: AtomicU64::new(0),
            mirror: AtomicU64::new(0),
            pending: AtomicU32::new(0),
            generation: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            armed: AtomicBool::new(false),
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
            place.populate(Table::new()?);
        }
        Ok(())
    }

    /// Takes a view out of the list. No probe writes it there any more.
    pub(crate) fn forget(&self, view: usize) {
        self.list.set(view, 0);
    }

    /// Whether its VMCS leads to memory of ours. True is stored before the first entry with it.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Relaxed)
    }

    /// Whether `eptp` points to one of its tops.
    fn is_ours(&self, eptp: Eptp) -> bool {
        let tops = self.tops.iter().filter_map(SetOnce::as_ref);
        eptp.0 == self.mirror.load(Relaxed)
            || tops.into_iter().any(|top| top.physical() == eptp.root())
    }

    /// Copies KVM's top entries to where they changed, and writes the list. True when something
    /// changed that a processor may have cached.
    fn copy(&self, vm: &Vm, root: Eptp) -> bool {
        let mut changed = false;
        // SAFETY: KVM has loaded this root for this vCPU and drops it only on this thread, which is
        // about to enter the guest with it.
        unsafe {
            with_table(root.root(), |kvm| {
                for (view, top) in self.tops.iter().enumerate() {
                    let Some(top) = top.as_ref() else { continue };
                    changed |= copy_top(vm, view, top, kvm);
                }
            });
        }
        for (view, top) in self.tops.iter().enumerate() {
            let pointer = match top.as_ref() {
                Some(top) if view == 0 || vm.has_view(view) => root.with_root(top.physical()).0,
                _ => 0,
            };
            self.list.set(view, pointer);
        }
        changed
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
    fn look(&self, vm: &Vm, vcpu: &Vcpu<'_>, vmcs: &Current, eptp: Eptp) -> bool {
        let loaded = !self.is_ours(eptp);
        if loaded {
            if !eptp.has_four_levels() {
                self.disarm(vm, vmcs);
                return false;
            }
            self.root.store(eptp.0, Relaxed);
            count(&self.counters.loads);
        }
        let root = Eptp(self.root.load(Relaxed));
        let pending = self.pending.swap(0, Relaxed);
        // Read before what it stands for, so that a change meanwhile is seen next time.
        let generation = vm.generation();
        let flushes = vcpu.flushes();
        let changed = self.copy(vm, root);
        if changed {
            count(&self.counters.resyncs);
        }
        let stale = generation != self.generation.swap(generation, Relaxed)
            || flushes != self.flushes.swap(flushes, Relaxed);
        if loaded || changed || stale {
            self.flush(root, vmcs);
        }
        if let (true, Some(Some(mirror))) = (
            loaded || pending & BOUNCE != 0,
            self.tops.first().map(SetOnce::as_ref),
        ) {
            let mirror = root.with_root(mirror.physical()).0;
            self.mirror.store(mirror, Relaxed);
            vmcs.write(Field::EptPointer, mirror);
        }
        if pending & BOUNCE != 0 {
            count(&self.counters.bounces);
        }
        true
    }

    /// Lets the guest use VMFUNC.
    #[cold]
    fn arm(&self, vmcs: &Current, controls: u64) {
        self.armed.store(true, Relaxed);
        vmcs.write(Field::VmFunctionControl, EPTP_SWITCHING);
        vmcs.write(Field::EptpListAddress, self.list.physical());
        vmcs.write(Field::SecondaryControls, controls | ENABLE_VM_FUNCTIONS);
        count(&self.counters.arms);
    }

    /// Lets it no more, and gives KVM's root back.
    fn disarm(&self, vm: &Vm, vmcs: &Current) {
        if !self.is_armed() {
            return;
        }
        let controls = vmcs.read(Field::SecondaryControls);
        vmcs.write(Field::SecondaryControls, controls & !ENABLE_VM_FUNCTIONS);
        if self.is_ours(Eptp(vmcs.read(Field::EptPointer))) {
            vmcs.write(Field::EptPointer, self.root.load(Relaxed));
        }
        self.armed.store(false, Relaxed);
        vm.disarmed();
    }
}

/// [`Prepared::copy`] for one top.
fn copy_top(vm: &Vm, view: usize, top: &Table, kvm: &[AtomicU64; ENTRIES]) -> bool {
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
pub(crate) fn entry(vm: &Vm, vcpu: &Vcpu<'_>, vmcs: &Current) {
    let Some(prepared) = vm.vcpu(vcpu.index()) else {
        return;
    };
    if vm.is_leaving() || vcpu.is_elsewhere() {
        prepared.disarm(vm, vmcs);
        return;
    }
    let eptp = Eptp(vmcs.read(Field::EptPointer));
    let quiet = prepared.pending.load(Relaxed) == 0
        && prepared.generation.load(Relaxed) == vm.generation()
        && prepared.flushes.load(Relaxed) == vcpu.flushes()
        && prepared.is_ours(eptp);
    if !quiet && !prepared.look(vm, vcpu, vmcs, eptp) {
        return;
    }
    // KVM knows nothing of the bit: whenever it changes something else of this field, it is gone.
    let controls = vmcs.read(Field::SecondaryControls);
    if controls & ENABLE_VM_FUNCTIONS == 0 || !prepared.is_armed() {
        prepared.arm(vmcs, controls);
    }
}

/// The vCPU has left the guest.
pub(crate) fn exit(vm: &Vm, vcpu: &Vcpu<'_>, vmcs: &Current) {
    let reason = vmcs.read(Field::ExitReason) & BASIC_REASON;
    if reason != EPT_VIOLATION && reason != EPT_MISCONFIGURATION {
        return;
    }
    let Some(prepared) = vm.vcpu(vcpu.index()) else {
        return;
    };
    let mut pending = LOOK;
    if reason == EPT_VIOLATION
        && vmcs.read(Field::EptPointer) != prepared.mirror.load(Relaxed)
        && (vmcs.read(Field::ExitQualification) & FETCH != 0 || is_private(vm, vmcs))
    {
        // KVM's tables allow the fetch, so for it there is nothing to mend: it would enter the view
        // again, for ever. And where no window is, it emulates what the default view has at RIP, a
        // NOP of the gate: in the view the guest would go on in mid-instruction, and take the copy
        // for done. In the default view it aborts.
        pending |= BOUNCE;
    }
    prepared.pending.store(pending, Relaxed);
}

/// Whether what the guest reached for is in the private slot.
fn is_private(vm: &Vm, vmcs: &Current) -> bool {
    let index = vmcs.read(Field::GuestPhysicalAddress) / uapi::SLOT_SIZE;
    usize::try_from(index).is_ok_and(|index| index == vm.slot())
}
