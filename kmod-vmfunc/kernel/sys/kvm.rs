// SPDX-License-Identifier: GPL-2.0-only

//! What the module knows of KVM's VMs and vCPUs.

use core::{
    ffi::c_void,
    ptr::{self, NonNull},
};
use kernel::{
    error::to_result,
    ffi::{c_char, c_int},
    prelude::*,
};

extern "C" {
    fn zs_kvm_get(
        fd: c_int,
        end: u64,
        owner: *mut *mut c_void,
        error: *mut c_int,
        why: *mut *const c_char,
    ) -> *mut c_void;
    fn zs_kvm_put(kvm: *mut c_void, owner: *mut c_void);
    fn zs_kvm_vcpus(kvm: *mut c_void) -> u32;
    fn zs_kvm_max_vcpus(kvm: *mut c_void) -> u32;
    fn zs_kvm_is_only_ours(kvm: *mut c_void) -> bool;
    fn zs_invept_everywhere();
}

/// A vCPU that is about to enter its guest: `struct zs_vcpu` of `helpers.c`.
#[repr(C)]
pub(crate) struct Vcpu {
    kvm: *const c_void,
    flushes: u64,
    index: u32,
    elsewhere: bool,
    moved: bool,
}

impl Vcpu {
    /// The address of its VM's structure, as a name.
    pub(crate) fn vm(&self) -> usize {
        self.kvm.addr()
    }

    /// Its index among the VM's vCPUs.
    pub(crate) fn index(&self) -> usize {
        // CAST: widens.
        self.index as usize
    }

    /// Whether it is about to run in SMM or a guest of its own, for which KVM has other tables.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// Whether KVM has written RIP since the last exit.
    pub(crate) fn was_moved(&self) -> bool {
        self.moved
    }

    /// A number that moves with each flush of this vCPU's translations by KVM.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes
    }
}

/// A reference to a VM, and to the module that it is of.
pub(crate) struct Kvm {
    raw: NonNull<c_void>,
    owner: *mut c_void,
}

// SAFETY: `struct kvm` is counted, and what is used of it here is for any thread.
unsafe impl Send for Kvm {}
// SAFETY: as above.
unsafe impl Sync for Kvm {}

impl Kvm {
    /// The VM with the file descriptor `fd` of the caller, whose private slot is to end at the
    /// guest-physical address `end`. EBADF no file, EINVAL another kind of file, EOPNOTSUPP this VM
    /// cannot, and the log says why.
    pub(crate) fn from_fd(fd: i32, end: u64) -> Result<Self> {
        let (mut owner, mut error, mut why) = (ptr::null_mut(), 0, ptr::null());
        // SAFETY: all pointers are valid for a write.
        let kvm = unsafe { zs_kvm_get(fd, end, &mut owner, &mut error, &mut why) };
        if !why.is_null() {
            // SAFETY: a string literal of helpers.c.
            let why = unsafe { CStr::from_char_ptr(why) };
            pr_warn!("cannot attach: {why:?}\n");
        }
        match NonNull::new(kvm) {
            Some(raw) => Ok(Self { raw, owner }),
            None => Err(to_result(error).err().unwrap_or(EINVAL)),
        }
    }

    /// The address of its structure, as a name.
    pub(crate) fn name(&self) -> usize {
        self.raw.as_ptr().addr()
    }

    /// The pointer, for `sys::mm`.
    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.raw.as_ptr()
    }

    /// How many vCPUs it has now.
    pub(crate) fn vcpus(&self) -> usize {
        // SAFETY: we have a reference.
        // CAST: widens.
        unsafe { zs_kvm_vcpus(self.raw.as_ptr()) as usize }
    }

    /// How many it can have.
    pub(crate) fn max_vcpus(&self) -> usize {
        // SAFETY: we have a reference.
        // CAST: widens.
        unsafe { zs_kvm_max_vcpus(self.raw.as_ptr()) as usize }
    }

    /// Whether nobody but us has it, so that none of its vCPUs can run any more.
    pub(crate) fn is_only_ours(&self) -> bool {
        // SAFETY: we have a reference.
        unsafe { zs_kvm_is_only_ours(self.raw.as_ptr()) }
    }
}

impl Drop for Kvm {
    fn drop(&mut self) {
        // SAFETY: our references, given back once. May sleep: nobody drops this in a probe.
        unsafe { zs_kvm_put(self.raw.as_ptr(), self.owner) }
    }
}

/// INVEPT of all contexts on all CPUs; waits for them. After it no CPU has cached anything of tables
/// that were changed before. Sleeps not, but wants interrupts on.
pub(crate) fn invept_everywhere() {
    // SAFETY: no preconditions but the context.
    unsafe { zs_invept_everywhere() }
}
