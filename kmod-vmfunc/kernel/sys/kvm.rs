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

/// `struct kvm_vcpu`; only ever behind a pointer.
#[repr(C)]
pub(crate) struct KvmVcpu {
    _opaque: [u8; 0],
}

extern "C" {
    fn zs_vcpu_kvm(vcpu: *const KvmVcpu) -> *const c_void;
    fn zs_vcpu_index(vcpu: *const KvmVcpu) -> u32;
    fn zs_vcpu_is_elsewhere(vcpu: *const KvmVcpu) -> bool;
    fn zs_vcpu_flushes(vcpu: *const KvmVcpu) -> u64;
    fn zs_vcpu_was_moved(vcpu: *const KvmVcpu) -> bool;
    fn zs_kvm_get(fd: c_int, error: *mut c_int, why: *mut *const c_char) -> *mut c_void;
    fn zs_kvm_put(kvm: *mut c_void);
    fn zs_kvm_vcpus(kvm: *mut c_void) -> u32;
    fn zs_kvm_is_only_ours(kvm: *mut c_void) -> bool;
    fn zs_invept_everywhere();
}

/// A vCPU in a probe.
pub(crate) struct Vcpu<'a>(&'a KvmVcpu);

impl<'a> Vcpu<'a> {
    /// # Safety
    ///
    /// `vcpu` is a live `struct kvm_vcpu`, whose mutex the current thread holds.
    pub(crate) unsafe fn new(vcpu: *const KvmVcpu) -> Self {
        // SAFETY: the caller's promise; the type has no size, so nothing is said of its memory.
        Self(unsafe { &*vcpu })
    }

    /// The address of its VM's structure, as a name.
    pub(crate) fn vm(&self) -> usize {
        // SAFETY: live by `new`; never changes.
        unsafe { zs_vcpu_kvm(self.0) }.addr()
    }

    /// Its index among the VM's vCPUs.
    pub(crate) fn index(&self) -> usize {
        // SAFETY: live by `new`; never changes.
        // CAST: widens.
        unsafe { zs_vcpu_index(self.0) as usize }
    }

    /// Whether it is about to run in SMM or a guest of its own, for which KVM has other tables.
    pub(crate) fn is_elsewhere(&self) -> bool {
        // SAFETY: live by `new`; changed by this thread only, as it holds the vCPU.
        unsafe { zs_vcpu_is_elsewhere(self.0) }
    }

    /// Whether KVM has written RIP since the last exit.
    pub(crate) fn was_moved(&self) -> bool {
        // SAFETY: as above.
        unsafe { zs_vcpu_was_moved(self.0) }
    }

    /// A number that moves with each flush of this vCPU's translations by KVM.
    pub(crate) fn flushes(&self) -> u64 {
        // SAFETY: as above.
        unsafe { zs_vcpu_flushes(self.0) }
    }
}

/// A reference to a VM.
pub(crate) struct Kvm(NonNull<c_void>);

// SAFETY: `struct kvm` is counted, and what is used of it here is for any thread.
unsafe impl Send for Kvm {}
// SAFETY: as above.
unsafe impl Sync for Kvm {}

impl Kvm {
    /// The VM with the file descriptor `fd` of the caller. EBADF no file, EINVAL another kind of
    /// file, EOPNOTSUPP this VM cannot, and the log says why.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        let (mut error, mut why) = (0, ptr::null());
        // SAFETY: both pointers are valid for a write.
        let kvm = unsafe { zs_kvm_get(fd, &mut error, &mut why) };
        if !why.is_null() {
            // SAFETY: a string literal of helpers.c.
            let why = unsafe { CStr::from_char_ptr(why) };
            pr_warn!("cannot attach: {why:?}\n");
        }
        match NonNull::new(kvm) {
            Some(kvm) => Ok(Self(kvm)),
            None => Err(to_result(error).err().unwrap_or(EINVAL)),
        }
    }

    /// The address of its structure, as a name.
    pub(crate) fn name(&self) -> usize {
        self.0.as_ptr().addr()
    }

    /// The pointer, for `sys::mm`.
    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// How many vCPUs it has now.
    pub(crate) fn vcpus(&self) -> usize {
        // SAFETY: we have a reference.
        // CAST: widens.
        unsafe { zs_kvm_vcpus(self.0.as_ptr()) as usize }
    }
}

impl Kvm {
    /// Whether nobody but us has it, so that none of its vCPUs can run any more.
    pub(crate) fn is_only_ours(&self) -> bool {
        // SAFETY: we have a reference.
        unsafe { zs_kvm_is_only_ours(self.0.as_ptr()) }
    }
}

impl Drop for Kvm {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once. May sleep: nobody drops this in a probe.
        unsafe { zs_kvm_put(self.0.as_ptr()) }
    }
}

/// INVEPT of all contexts on all CPUs; waits for them. After it no CPU has cached anything of tables
/// that were changed before. Sleeps not, but wants interrupts on.
pub(crate) fn invept_everywhere() {
    // SAFETY: no preconditions but the context.
    unsafe { zs_invept_everywhere() }
}
