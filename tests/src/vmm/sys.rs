// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The unsafe ground of the VMM: memory that a guest gets, and an ioctl.

use super::stats::Stats;
use crate::vfio::memory::Memory;
use anyhow::{ensure, Context as _, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

/// A VM with the memory that its slots are of.
///
/// Invariant: what a slot is of is in `slots`, and goes after the VM's file. A vCPU runs only by
/// way of [`Vcpu`], which keeps this alive.
#[derive(Debug)]
pub(super) struct Machine {
    file: VmFd,
    slots: Mutex<BTreeMap<u32, Arc<Memory>>>,
}

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
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!slots.contains_key(&slot), "memory slot {slot} is in use");
        slots.insert(slot, Arc::clone(memory));
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

    /// Empties a slot, and lets go of its memory.
    pub(super) fn clear_slot(&self, slot: u32) -> Result<()> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
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

    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
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
