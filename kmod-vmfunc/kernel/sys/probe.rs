// SPDX-License-Identifier: GPL-2.0-only

//! The probe of KVM's tracepoint `kvm_entry`; the function itself is in `helpers.c`.
//!
//! It is hit in `vmx_vcpu_run` (arch/x86/kvm/vmx/vmx.c) with the vCPU's VMCS current, interrupts off
//! and the vCPU's mutex held, after everything that KVM writes to the fields of `sys::vmx`. SVM and
//! TDX hit it too, for VMs that nobody can attach to.

use super::{kvm::Vcpu, registry, vmx::Current};
use crate::vcpu::entry;
use core::ffi::{c_int, c_void};
use kernel::{error::to_result, prelude::*};

extern "C" {
    fn zs_probe_register() -> c_int;
    fn zs_probe_unregister();
}

/// The registered probe.
pub(crate) struct Probe;

impl Probe {
    /// Registers it.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: what the probe calls stays until `drop`.
        to_result(unsafe { zs_probe_register() })?;
        Ok(Self)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: registered by `new`. Waits until it does not run.
        unsafe { zs_probe_unregister() }
    }
}

/// # Safety
///
/// Called by the probe, with the first VM of the vCPU's list, and what it knows of the vCPU.
#[no_mangle]
unsafe extern "C" fn zs_vmfunc_entry(first: *const c_void, vcpu: *const Vcpu) {
    // SAFETY: the probe's promise.
    let vcpu = unsafe { &*vcpu };
    // SAFETY: as above; interrupts are off.
    if let Some(vm) = unsafe { registry::find(first, vcpu.vm()) } {
        // SAFETY: an attached VM is one of kvm_intel, so its VMCS is current until this returns.
        entry(vm, vcpu, &unsafe { Current::new() });
    }
}
