// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The unsafe ground of the VMM: memory that a guest gets.

use crate::vfio::memory::Memory;
use anyhow::{ensure, Context as _, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, RawFd};
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
