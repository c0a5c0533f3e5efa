// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The unsafe ground of the VMM: memory that a guest gets, and an ioctl.

use super::stats::Stats;
use crate::sys::PAGE;
use crate::vfio::memory::Memory;
use anyhow::{ensure, Context as _, Result};
use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap,
    kvm_userspace_memory_region, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_X86_SMM,
};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::ioctl::{ioctl, opcode, Ioctl, IoctlOutput, Opcode};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A VM with the memory that its slots are of.
///
/// Invariant: what a slot is of is in `slots`, and goes after the VM's file. A vCPU runs only by
/// way of [`Vcpu`], which keeps this alive.
#[derive(Debug)]
pub(super) struct Machine {
    file: VmFd,
    slots: Mutex<BTreeMap<u32, Slot>>,
}

/// Where it is, and what it is of.
type Slot = (u64, Arc<Memory>);

impl Machine {
    pub(super) fn new(file: VmFd) -> Self {
        Self {
            file,
            slots: Mutex::default(),
        }
    }

    /// Shows `memory` to the guest at `address`; `flags` are KVM's. An error when the slot is in
    /// use.
    pub(super) fn set_slot(
        &self,
        slot: u32,
        address: u64,
        memory: &Arc<Memory>,
        flags: u32,
    ) -> Result<()> {
        let mut slots = self.slots();
        ensure!(!slots.contains_key(&slot), "memory slot {slot} is in use");
        slots.insert(slot, (address, Arc::clone(memory)));
        self.put(slot, address, memory, flags)
    }

    /// Changes KVM's flags of a slot.
    pub(super) fn change_slot(&self, slot: u32, flags: u32) -> Result<()> {
        let slots = self.slots();
        let (address, memory) = slots.get(&slot).context("an empty memory slot")?;
        self.put(slot, *address, memory, flags)
    }

    /// Moves a slot, in one call (KVM_MR_MOVE).
    pub(super) fn move_slot(&self, slot: u32, to: u64) -> Result<()> {
        let mut slots = self.slots();
        let (address, memory) = slots.get_mut(&slot).context("an empty memory slot")?;
        self.put(slot, to, memory, 0)?;
        *address = to;
        Ok(())
    }

    fn put(&self, slot: u32, address: u64, memory: &Memory, flags: u32) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: address,
            memory_size: memory.length() as u64,
            userspace_addr: memory.address(),
        };
        // SAFETY: the memory is mapped as long as the slot is, by the invariant. Nobody has a
        // reference into it: `Memory` copies.
        unsafe { self.file.set_user_memory_region(region) }
            .with_context(|| format!("cannot set memory slot {slot}"))
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<u32, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a slot.
    fn size(&self, slot: u32) -> Result<usize> {
        let slots = self.slots();
        let (_, memory) = slots.get(&slot).context("an empty memory slot")?;
        Ok(memory.length())
    }

    /// Empties a slot, and lets go of its memory.
    pub(super) fn clear_slot(&self, slot: u32) -> Result<()> {
        let mut slots = self.slots();
        let region = kvm_userspace_memory_region {
            slot,
            ..Default::default()
        };
        // SAFETY: a slot of no bytes needs no memory.
        unsafe { self.file.set_user_memory_region(region) }
            .with_context(|| format!("cannot empty memory slot {slot}"))?;
        slots.remove(&slot);
        Ok(())
    }

    pub(super) fn create_vcpu(self: &Arc<Self>, index: u64) -> Result<(VcpuFd, Arc<Self>)> {
        let vcpu = self.file.create_vcpu(index);
        Ok((vcpu.context("cannot make a vCPU")?, Arc::clone(self)))
    }

    pub(super) fn has_smm(&self) -> bool {
        self.file.check_extension_raw(KVM_CAP_X86_SMM.into()) > 0
    }

    /// Lets KVM_GET_DIRTY_LOG leave the log as it is, with KVM_DIRTY_LOG_*.
    pub(super) fn set_manual_dirty_log(&self, flags: u32) -> Result<()> {
        let capability = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [flags.into(), 0, 0, 0],
            ..Default::default()
        };
        self.file
            .enable_cap(&capability)
            .context("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")
    }

    /// The dirty log of a slot, a bit for each page.
    pub(super) fn dirty_log(&self, slot: u32) -> Result<Vec<u64>> {
        let size = self.size(slot)?;
        self.file
            .get_dirty_log(slot, size)
            .context("KVM_GET_DIRTY_LOG")
    }

    /// Clears what `log` has of the dirty log of a slot.
    pub(super) fn clear_dirty_log(&self, slot: u32, log: &mut [u64]) -> Result<()> {
        let pages = self.size(slot)? / PAGE;
        ensure!(log.len() == pages.div_ceil(64), "a log of another slot");
        let argument = kvm_clear_dirty_log {
            slot,
            num_pages: pages.try_into()?,
            first_page: 0,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: log.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the VM's file is open as long as it is borrowed.
        let file = unsafe { BorrowedFd::borrow_raw(self.file.as_raw_fd()) };
        // SAFETY: it is a VM of KVM, and the bitmap has a bit for each page.
        unsafe { ioctl(file, ClearLog(argument)) }.context("KVM_CLEAR_DIRTY_LOG")
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// KVM_CLEAR_DIRTY_LOG.
struct ClearLog(kvm_clear_dirty_log);

// SAFETY: an argument that the kernel reads, with a bitmap that it reads.
unsafe impl Ioctl for ClearLog {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        // _IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)
        opcode::read_write::<kvm_clear_dirty_log>(0xae, 0xc0)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::from_mut(&mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// KVM_GET_STATS_FD.
struct GetStats;

// SAFETY: no argument, and a file descriptor comes back.
unsafe impl Ioctl for GetStats {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        // _IO(KVMIO, 0xce)
        0xaece
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::null_mut()
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the ioctl succeeded, so this is a new descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// What KVM counts for a vCPU.
pub(super) fn stats(vcpu: &VcpuFd) -> Result<Stats> {
    // SAFETY: the vCPU's file is open as long as it is borrowed.
    let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    // SAFETY: it is a vCPU of KVM, so the ioctl is what `GetStats` says.
    let file = unsafe { ioctl(vcpu, GetStats) }.context("cannot get statistics")?;
    Ok(Stats(file.into()))
}
