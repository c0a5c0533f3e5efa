// SPDX-License-Identifier: GPL-2.0-only

//! A migration data file: an anonymous file that its user reads or writes as a stream.
//!
//! It outlives the device that made it, so what is behind it must not point back; and it keeps the
//! module in memory.

use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    bindings,
    error::from_err_ptr,
    ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void},
    fs::File,
    prelude::*,
    sync::{aref::ARef, Arc, ArcBorrow},
    types::{ForeignOwnable, Opaque},
    uaccess::{UserPtr, UserSlice},
};

/// `POLLRDNORM` of asm-generic/poll.h.
const POLLRDNORM: u32 = 0x40;

/// `POLLWRNORM` of asm-generic/poll.h.
const POLLWRNORM: u32 = 0x100;

/// What a poll finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Nothing now, perhaps later.
    No,
    /// A read would not wait: there are bytes, or the end.
    Readable,
    /// A write would not wait.
    Writable,
    /// Nothing for ever.
    Dead,
}

/// Who waits in a poll for a data file to change.
///
/// `kernel::sync::poll::PollCondVar` would wait for an RCU grace period when it is dropped, in the
/// middle of an arc, for pollers that outlive it. Here there are none: only [`Table::poll`] adds
/// one, to what a file holds, and the VFS takes it away before the file is released.
#[pin_data]
pub(crate) struct Waiters {
    #[pin]
    queue: Opaque<bindings::wait_queue_head_t>,
}

// SAFETY: a wait queue has its own lock.
unsafe impl Send for Waiters {}

// SAFETY: a wait queue has its own lock.
unsafe impl Sync for Waiters {}

impl Waiters {
    /// Creates an initialiser for a queue with nobody in it.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queue <- Opaque::ffi_init(|slot: *mut bindings::wait_queue_head_t| {
                // SAFETY: `slot` is valid for a write, and pinned from here on; name and class are
                // static.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"zeroshift_data_file".as_char_ptr(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                }
            }),
        })
    }

    /// Lets all look again.
    pub(crate) fn notify(&self) {
        // SAFETY: initialised by `new`.
        unsafe {
            bindings::__wake_up(
                self.queue.get(),
                bindings::TASK_NORMAL,
                0,
                core::ptr::null_mut(),
            );
        }
    }
}

/// What is behind a data file. Calls come from any number of threads at a time.
pub(crate) trait DataFile: Send + Sync + 'static {
    /// Shown in `/proc/PID/fd`.
    const NAME: &'static CStr;

    /// `O_RDONLY` or `O_WRONLY`.
    const FLAGS: u32;

    /// Fills `out`, as far as there is something; returns the bytes.
    fn read(&self, out: UserSlice) -> Result<usize>;

    /// Takes from `input`, perhaps not all; returns the bytes.
    fn write(&self, input: UserSlice) -> Result<usize>;

    /// Who is to be notified when [`Self::ready`] changes.
    fn waiters(&self) -> &Waiters;

    /// What can be done now.
    fn ready(&self) -> Ready;

    /// `cmd` with `arg` as the caller gave them.
    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize>;
}

/// Makes a file over `data`.
pub(crate) fn open<T: DataFile>(data: Arc<T>) -> Result<ARef<File>> {
    let data = data.into_foreign();
    // SAFETY: the name is a string, the operations are constant and fit what is behind the file.
    let file = from_err_ptr(unsafe {
        super::sys::anon_inode_getfile(
            T::NAME.as_char_ptr(),
            &raw const *Table::<T>::operations(),
            data,
            // CAST: small constants.
            T::FLAGS as c_int,
        )
    });
    let file = match file {
        Ok(file) => file,
        Err(error) => {
            // SAFETY: comes from `into_foreign`, and no file took it.
            drop(unsafe { Arc::<T>::from_foreign(data) });
            return Err(error);
        }
    };
    // No seeking, and no position: reads and writes come without one.
    // SAFETY: a new file, whose inode it holds.
    unsafe { bindings::stream_open((*file).f_inode, file) };
    // SAFETY: a new file has one reference, which is ours, and no descriptor; `File` is transparent
    // over `struct file`.
    Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) })
}

/// Operations that nobody writes to.
#[repr(transparent)]
struct Constant(bindings::file_operations);

// SAFETY: constant, so the pointer in it can be read from anywhere.
unsafe impl Sync for Constant {}

/// The table of the callbacks of a kind of file.
struct Table<T>(PhantomData<T>);

impl<T: DataFile> Table<T> {
    const OPERATIONS: &'static Constant = &Constant(bindings::file_operations {
        owner: crate::THIS_MODULE.as_ptr(),
        read: Some(Self::read),
        write: Some(Self::write),
        poll: Some(Self::poll),
        unlocked_ioctl: Some(Self::ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: bindings::compat_ptr_ioctl,
        release: Some(Self::release),
        llseek: Some(bindings::noop_llseek),
        ..pin_init::zeroed()
    });

    fn operations() -> &'static bindings::file_operations {
        &Self::OPERATIONS.0
    }

    /// # Safety
    ///
    /// `file` was made by [`open`] with this type, and is not released during `'a`.
    unsafe fn data<'a>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
        // SAFETY: `open` put it there.
        let data: *mut c_void = unsafe { (*file).private_data };
        // SAFETY: comes from `into_foreign`; only `release` takes it back.
        unsafe { Arc::<T>::borrow(data) }
    }

    /// # Safety
    ///
    /// Called by the VFS with a file of this kind, once, as the last call for it.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `open` put it there, and nobody uses the file any more.
        let data: *mut c_void = unsafe { (*file).private_data };
        // SAFETY: comes from `into_foreign`, and is taken back only here.
        drop(unsafe { Arc::<T>::from_foreign(data) });
        0
    }

    /// # Safety
    ///
    /// Called by the VFS with a file of this kind.
    unsafe extern "C" fn read(
        file: *mut bindings::file,
        buffer: *mut c_char,
        length: usize,
        position: *mut bindings::loff_t,
    ) -> isize {
        if !position.is_null() {
            return ESPIPE.to_errno() as isize;
        }
        // SAFETY: the caller's promise.
        let data = unsafe { Self::data(file) };
        result(data.read(UserSlice::new(UserPtr::from_ptr(buffer.cast()), length)))
    }

    /// # Safety
    ///
    /// Called by the VFS with a file of this kind.
    unsafe extern "C" fn write(
        file: *mut bindings::file,
        buffer: *const c_char,
        length: usize,
        position: *mut bindings::loff_t,
    ) -> isize {
        if !position.is_null() {
            return ESPIPE.to_errno() as isize;
        }
        // SAFETY: the caller's promise.
        let data = unsafe { Self::data(file) };
        let buffer = UserPtr::from_ptr(buffer.cast_mut().cast());
        result(data.write(UserSlice::new(buffer, length)))
    }

    /// # Safety
    ///
    /// Called by the VFS with a file of this kind and, or not, a table.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: the caller's promise.
        let data = unsafe { Self::data(file) };
        // SAFETY: the file and the table live during the call; the queue lives as long as the file,
        // which holds it.
        unsafe { bindings::poll_wait(file, data.waiters().queue.get(), table) };
        match data.ready() {
            Ready::No => 0,
            Ready::Readable => bindings::POLLIN | POLLRDNORM,
            Ready::Writable => bindings::POLLOUT | POLLWRNORM,
            Ready::Dead => bindings::POLLERR,
        }
    }

    /// # Safety
    ///
    /// Called by the VFS with a file of this kind.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: the caller's promise.
        let data = unsafe { Self::data(file) };
        match data.ioctl(cmd, arg) {
            Ok(value) => value,
            Err(error) => error.to_errno() as c_long,
        }
    }
}

/// What a read or write returns.
fn result(bytes: Result<usize>) -> isize {
    match bytes.and_then(|bytes| Ok(isize::try_from(bytes)?)) {
        Ok(bytes) => bytes,
        Err(error) => error.to_errno() as isize,
    }
}
