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
    vm::{Vm, VIEWS},
};
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use kernel::{
    prelude::*,
    sync::{ArcBorrow, SetOnce},
};

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
        // With the store in `disarm` in one order that all agree on: of several vCPUs that are
        // disarmed at once, the last one sees that it is.
        self.armed.load(SeqCst)
    }

    /// The view whose top `eptp` points to.
    fn view_of(&self, eptp: Eptp) -> Option<usize> {
        let is_it =
            |top: &SetOnce<Table>| top.as_ref().is_some_and(|t| t.physical() == eptp.root());
        self.tops.iter().position(is_it)
    }

    /// Whether `eptp` points to one of its tops.
    fn is_ours(&self, eptp: Eptp) -> bool {
        self.is_mirror(eptp) || self.view_of(eptp).is_some()
    }

    /// Whether `eptp` is the default view.
    fn is_mirror(&self, eptp: Eptp) -> bool {
        eptp.0 == self.mirror.load(Relaxed)
    }

    /// Copies KVM's top entries to where they changed, and writes the list. True when something
    /// changed that a processor may have cached.
    fn copy(&self, vm: ArcBorrow<'_, Vm>, root: Eptp) -> bool {
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
    fn look(&self, vm: ArcBorrow<'_, Vm>, vcpu: &Vcpu<'_>, vmcs: &Current, eptp: Eptp) -> bool {
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
        // An index is used again: who is still inside shall not find himself in another view.
        let ended = self
            .view_of(eptp)
            .is_some_and(|view| view != 0 && !vm.has_view(view));
        if let (true, Some(Some(mirror))) = (
            loaded || ended || pending & BOUNCE != 0,
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
        self.armed.store(true, SeqCst);
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
        if self.is_ours(Eptp(vmcs.read(Field::EptPointer))) {
            vmcs.write(Field::EptPointer, self.root.load(Relaxed));
        }
        self.armed.store(false, SeqCst);
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
pub(crate) fn entry(vm: ArcBorrow<'_, Vm>, vcpu: &Vcpu<'_>, vmcs: &Current) {
    let Some(prepared) = vm.vcpu(vcpu.index()) else {
        return;
    };
    if vm.is_leaving() || vcpu.is_elsewhere() {
        prepared.disarm(vm, vmcs);
        return;
    }
    let eptp = Eptp(vmcs.read(Field::EptPointer));
    let ours = prepared.is_ours(eptp);
    // KVM emulates by what the default view has at RIP, and that is a NOP of the gate: in the view
    // the guest would go on in mid-instruction, and take its copy for done. In the default view it
    // aborts.
    if ours && !prepared.is_mirror(eptp) && vcpu.was_moved() {
        let pending = prepared.pending.load(Relaxed);
        prepared.pending.store(pending | BOUNCE, Relaxed);
    }
    let quiet = ours
        && prepared.pending.load(Relaxed) == 0
        && prepared.generation.load(Relaxed) == vm.generation()
        && prepared.flushes.load(Relaxed) == vcpu.flushes();
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
pub(crate) fn exit(vm: ArcBorrow<'_, Vm>, vcpu: &Vcpu<'_>, vmcs: &Current) {
    let reason = vmcs.read(Field::ExitReason) & BASIC_REASON;
    if reason != EPT_VIOLATION && reason != EPT_MISCONFIGURATION {
        return;
    }
    let Some(prepared) = vm.vcpu(vcpu.index()) else {
        return;
    };
    // In SMM KVM has a root of its own.
    if !prepared.is_armed() {
        return;
    }
    let mut pending = LOOK;
    // KVM's tables allow the fetch, so for it there is nothing to mend: it would enter the view
    // again, for ever. What it takes for MMIO it emulates, see `entry`.
    if (reason == EPT_MISCONFIGURATION || vmcs.read(Field::ExitQualification) & FETCH != 0)
        && !prepared.is_mirror(Eptp(vmcs.read(Field::EptPointer)))
    {
        pending |= BOUNCE;
    }
    prepared.pending.store(pending, Relaxed);
}
