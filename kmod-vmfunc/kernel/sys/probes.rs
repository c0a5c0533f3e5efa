// SPDX-License-Identifier: GPL-2.0-only

//! The probes of KVM's tracepoints `kvm_entry` and `kvm_exit`.
//!
//! Both are hit in `vmx_vcpu_run` (arch/x86/kvm/vmx/vmx.c) with the vCPU's VMCS current, interrupts
//! off and the vCPU's mutex held: the first one after everything that KVM writes to the fields of
//! `sys::vmx`, the second one before anything that it writes. SVM and TDX hit them too, for VMs that
//! nobody can attach to.

use super::{
    kvm::{KvmVcpu, Vcpu},
    registry,
    vmx::Current,
};
use crate::vcpu::{entry, exit};
use core::ffi::{c_int, c_void};
use kernel::{error::to_result, prelude::*};

extern "C" {
    fn zs_probes_register(entry: *mut c_void, exit: *mut c_void) -> c_int;
    fn zs_probes_unregister(entry: *mut c_void, exit: *mut c_void);
}

/// Prototype of `kvm_entry`, behind the data of the registration.
type Entry = unsafe extern "C" fn(*mut c_void, *const KvmVcpu, bool);
/// The same of `kvm_exit`.
type Exit = unsafe extern "C" fn(*mut c_void, *const KvmVcpu, u32);

/// Registered probes.
pub(crate) struct Probes;

impl Probes {
    /// Registers them.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: the functions have the tracepoints' prototypes, and stay until `drop`.
        to_result(unsafe { zs_probes_register(ENTRY as *mut c_void, EXIT as *mut c_void) })?;
        Ok(Self)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        // SAFETY: registered by `new`. Waits until neither runs.
        unsafe { zs_probes_unregister(ENTRY as *mut c_void, EXIT as *mut c_void) }
    }
}

const ENTRY: Entry = on_entry;
const EXIT: Exit = on_exit;

/// # Safety
///
/// Called by the tracepoint.
unsafe extern "C" fn on_entry(_data: *mut c_void, vcpu: *const KvmVcpu, _immediate_exit: bool) {
    // SAFETY: the tracepoint's promise, as the module says.
    let vcpu = unsafe { Vcpu::new(vcpu) };
    registry::with(vcpu.vm(), |vm| {
        // SAFETY: an attached VM is one of kvm_intel, so its VMCS is current until this returns.
        entry(vm, &vcpu, &unsafe { Current::new() });
    });
}

/// # Safety
///
/// Called by the tracepoint.
unsafe extern "C" fn on_exit(_data: *mut c_void, vcpu: *const KvmVcpu, _isa: u32) {
    // SAFETY: the tracepoint's promise, as the module says.
    let vcpu = unsafe { Vcpu::new(vcpu) };
    registry::with(vcpu.vm(), |vm| {
        // SAFETY: as above.
        exit(vm, &vcpu, &unsafe { Current::new() });
    });
}
