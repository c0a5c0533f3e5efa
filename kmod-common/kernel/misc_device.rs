// SPDX-License-Identifier: GPL-2.0-only

//! A misc character device whose open files keep the module in memory.
//!
//! `kernel::miscdevice` leaves `file_operations.owner` empty, so the module could go away under an
//! open file. Here the operations are filled in when the device is registered and carry the
//! module's own address. The registration belongs to the module structure; since an open file pins
//! the module, the operations outlive every file.

use core::marker::PhantomData;
use kernel::{
    bindings,
    error::to_result,
    ffi::{c_int, c_long, c_uint, c_ulong, c_void},
    mm::virt::VmaNew,
    page::PAGE_SIZE,
    prelude::*,
    types::{ForeignOwnable, Opaque},
};

/// What a misc device does.
pub(crate) trait FileOperations: 'static {
    /// Name below `/dev`.
    const NAME: &'static CStr;

    /// Mode of the node, for example `0o600`.
    const MODE: u16;

    /// What belongs to one open file.
    type File: ForeignOwnable + Send + Sync;

    /// A file is being opened.
    fn open() -> Result<Self::File>;

    /// `cmd` with `arg` as the caller gave them; nothing is checked yet.
    fn ioctl(
        file: <Self::File as ForeignOwnable>::Borrowed<'_>,
        cmd: u32,
        arg: usize,
    ) -> Result<isize>;

    /// The file is to be mapped at `vma`, from `offset` bytes on.
    fn mmap(
        _file: <Self::File as ForeignOwnable>::Borrowed<'_>,
        _vma: &VmaNew,
        _offset: u64,
    ) -> Result {
        Err(ENODEV)
    }
}

/// A registered misc device.
///
/// # Invariants
///
/// `misc` is registered and points to `operations`; both stay where they are until it is
/// deregistered when this is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: FileOperations> {
    #[pin]
    operations: Opaque<bindings::file_operations>,
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    _operations: PhantomData<T>,
}

// SAFETY: deregistration may happen on any thread.
unsafe impl<T: FileOperations> Send for Registration<T> {}

// SAFETY: a shared reference offers nothing.
unsafe impl<T: FileOperations> Sync for Registration<T> {}

impl<T: FileOperations> Registration<T> {
    /// Registers the device; the node appears at once.
    ///
    /// # Safety
    ///
    /// The value lives as long as the module: open files use what is in it, and what they hold is
    /// the module.
    pub(crate) unsafe fn new(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            operations <- Opaque::ffi_init(|slot: *mut bindings::file_operations| {
                // SAFETY: `slot` is valid for a write.
                unsafe { slot.write(Self::operations(module)) }
            }),
            misc <- Opaque::try_ffi_init(|slot: *mut bindings::miscdevice| {
                let mut misc: bindings::miscdevice = pin_init::zeroed();
                // CAST: the constant is 255.
                misc.minor = bindings::MISC_DYNAMIC_MINOR as c_int;
                misc.name = T::NAME.as_char_ptr();
                misc.mode = T::MODE;
                // SAFETY: `this` points to the structure under construction, of which
                // `operations` is initialised.
                misc.fops = unsafe { Opaque::cast_into(&raw const (*this.as_ptr()).operations) };
                // SAFETY: `slot` is valid for a write.
                unsafe { slot.write(misc) };
                // INVARIANT: registered when this succeeds.
                // SAFETY: name and operations live until the structure is dropped, which
                // deregisters first.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
            _operations: PhantomData,
        })
    }

    fn operations(module: &'static ThisModule) -> bindings::file_operations {
        bindings::file_operations {
            owner: module.as_ptr(),
            open: Some(Self::open),
            release: Some(Self::release),
            mmap: Some(Self::mmap),
            unlocked_ioctl: Some(Self::ioctl),
            #[cfg(CONFIG_COMPAT)]
            compat_ioctl: bindings::compat_ptr_ioctl,
            ..pin_init::zeroed()
        }
    }

    /// # Safety
    ///
    /// Called by the VFS with a file of this device that is being opened.
    unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        match T::open() {
            Ok(data) => {
                // SAFETY: the file is being opened, its private data is ours to set.
                unsafe { (*file).private_data = data.into_foreign() };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the VFS with a file that [`Self::open`] opened, once, as the last call for it.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `open` put it there, and nobody uses the file any more.
        let data: *mut c_void = unsafe { (*file).private_data };
        // SAFETY: comes from `into_foreign` in `open`, and is taken back only here.
        drop(unsafe { T::File::from_foreign(data) });
        0
    }

    /// # Safety
    ///
    /// Called by the VFS with a file that [`Self::open`] opened, before [`Self::release`], and a
    /// mapping that is being made.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: `open` put it there.
        let data: *mut c_void = unsafe { (*file).private_data };
        // SAFETY: comes from `into_foreign` in `open`; `release` does not run before this returns.
        let data = unsafe { T::File::borrow(data) };
        // SAFETY: being made, so nobody else has it.
        let (vma, first) = unsafe { (VmaNew::from_raw(vma), (*vma).vm_pgoff) };
        // CAST: the same width.
        match T::mmap(data, vma, (first as u64).wrapping_mul(PAGE_SIZE as u64)) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the VFS with a file that [`Self::open`] opened, before [`Self::release`].
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: `open` put it there.
        let data: *mut c_void = unsafe { (*file).private_data };
        // SAFETY: comes from `into_foreign` in `open`; `release` does not run before this returns.
        let data = unsafe { T::File::borrow(data) };
        match T::ioctl(data, cmd, arg) {
            Ok(value) => value,
            // CAST: widens.
            Err(error) => error.to_errno() as c_long,
        }
    }
}

#[pinned_drop]
impl<T: FileOperations> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: registered by the type invariant.
        unsafe { bindings::misc_deregister(self.misc.get()) }
    }
}
