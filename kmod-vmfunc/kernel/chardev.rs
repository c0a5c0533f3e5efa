// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/vmfunc`: attaching to a VM, its views and windows.
//!
//! An open file has at most one VM. Everything that comes in is outside data. Must never hold a lock
//! over a copy from or to the caller.

use crate::{
    common::misc_device::FileOperations,
    errno,
    logic::place::{Bad, Place, PAGE},
    sys::{mm::Pinned, page::zeroed},
    uapi::{
        VmfuncAttach, VmfuncVcpu, VmfuncView, VmfuncWindow, FIRST_WINDOW, MAX_ARGSZ, MAX_WINDOW,
        SLOT_SIZE, VMFUNC_ATTACH, VMFUNC_GET_VCPU, VMFUNC_VCPU_ARMED, VMFUNC_VIEW_CREATE,
        VMFUNC_VIEW_DESTROY, VMFUNC_WINDOW_ADD, VMFUNC_WINDOW_OWNED, VMFUNC_WINDOW_REMOVE,
        VMFUNC_WINDOW_WRITE,
    },
    view::{Backing, Window},
    vm::{pages, Vm},
};
use core::{mem::size_of, sync::atomic::Ordering::Relaxed};
use kernel::{
    mm::virt::{flags, VmaNew},
    new_mutex,
    page::Page,
    prelude::*,
    sync::{Arc, Mutex, SetOnce},
    transmute::{AsBytes, FromBytes},
    uaccess::{UserPtr, UserSlice},
};

/// Entries of the top table that a guest-physical address can lead to.
const TOP_ENTRIES: u64 = 512;
/// Bits of an offset for mmap that are the window's offset in the slot; above them is its view.
const SLOT_BITS: u32 = SLOT_SIZE.trailing_zeros();

/// The device.
pub(crate) struct Chardev;

/// An open file.
#[pin_data(PinnedDrop)]
pub(crate) struct Open {
    /// Who attaches. An mmap does not take it, because attaching takes `mmap_lock`.
    #[pin]
    attaching: Mutex<()>,
    /// Never changes again.
    vm: SetOnce<Arc<Vm>>,
}

impl Open {
    fn vm(&self) -> Result<&Arc<Vm>> {
        self.vm.as_ref().ok_or_else(errno::not_attached)
    }
}

#[pinned_drop]
impl PinnedDrop for Open {
    fn drop(self: Pin<&mut Self>) {
        if let Some(vm) = self.vm.as_ref() {
            vm.clone().leave();
        }
    }
}

impl FileOperations for Chardev {
    const NAME: &'static CStr = c"vmfunc";
    const MODE: u16 = 0o600;
    type File = Pin<KBox<Open>>;

    fn open() -> Result<Self::File> {
        let open = pin_init!(Open {
            attaching <- new_mutex!(()),
            vm: SetOnce::new(),
        });
        KBox::pin_init(open, GFP_KERNEL)
    }

    fn ioctl(file: Pin<&Open>, cmd: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);
        match cmd {
            VMFUNC_ATTACH => call(arg, |question| attach(&file, question)),
            VMFUNC_VIEW_CREATE => call(arg, |question| view_create(file.vm()?, question)),
            VMFUNC_VIEW_DESTROY => call(arg, |question| view_destroy(file.vm()?, question)),
            VMFUNC_WINDOW_ADD => call(arg, |question| window_add(file.vm()?, question)),
            VMFUNC_WINDOW_REMOVE => call(arg, |question| window_remove(file.vm()?, question)),
            VMFUNC_GET_VCPU => call(arg, |question| get_vcpu(file.vm()?, question)),
            _ => Err(ENOTTY),
        }
    }

    fn mmap(file: Pin<&Open>, vma: &VmaNew, offset: u64) -> Result {
        let vm = file.vm()?;
        // A private copy of the gate or of a window is neither.
        if vma.flags() & flags::SHARED == 0 {
            return Err(EINVAL);
        }
        if offset == 0 {
            if vma.writable() {
                return Err(EACCES);
            }
            vma.try_clear_maywrite()?;
            return insert(vma, core::slice::from_ref(vm.default_face()));
        }
        let view = usize::try_from(offset >> SLOT_BITS).map_err(|_| ENXIO)?;
        let first = offset % SLOT_SIZE / PAGE;
        vm.with_owned(view, first, |pages| insert(vma, pages))
    }
}

/// Puts pages into a mapping that is as long as they are.
fn insert(vma: &VmaNew, pages: &[Page]) -> Result {
    let length = vma.end().checked_sub(vma.start()).ok_or(EINVAL)?;
    // CAST: 4096.
    let step = PAGE as usize;
    if pages.len().checked_mul(step) != Some(length) {
        return Err(EINVAL);
    }
    vma.set_dontexpand();
    // A child has no VM of its own, and its parent's windows are not its business.
    vma.set_dontcopy();
    let mixed = vma.set_mixedmap();
    for (address, page) in (vma.start()..vma.end()).step_by(step).zip(pages) {
        mixed.vm_insert_page(address, page)?;
    }
    Ok(())
}

/// Reads an argument, lets `perform` answer it, and writes the answer. An argument that is refused is
/// left as it was.
fn call<T: AsBytes + FromBytes>(
    arg: UserPtr,
    perform: impl FnOnce(T) -> Result<T>,
) -> Result<isize> {
    let argsz: u32 = UserSlice::new(arg, size_of::<u32>()).reader().read()?;
    if argsz > MAX_ARGSZ {
        return Err(E2BIG);
    }
    // CAST: widens.
    let argsz = argsz as usize;
    // Every structure is of its first version.
    if argsz < size_of::<T>() {
        return Err(EINVAL);
    }
    // The second read of `argsz` may find another value; only the first one counts.
    let question: T = UserSlice::new(arg, size_of::<T>()).reader().read()?;
    // Nothing is done whose answer nobody can get. What is written here is what stands there.
    UserSlice::new(arg, size_of::<T>())
        .writer()
        .write(&question)?;
    let answer = perform(question)?;
    // CAST: every structure is far smaller than 4 GiB.
    let known = size_of::<T>() as u32;
    let mut writer = UserSlice::new(arg, argsz).writer();
    writer.write(&known)?;
    let rest = answer.as_bytes().get(size_of::<u32>()..).unwrap_or(&[]);
    writer.write_slice(rest)?;
    let zeroes = [0u8; 64];
    while !writer.is_empty() {
        let part = writer.len().min(zeroes.len());
        writer.write_slice(zeroes.get(..part).unwrap_or(&[]))?;
    }
    Ok(0)
}

fn attach(file: &Open, question: VmfuncAttach) -> Result<VmfuncAttach> {
    let VmfuncAttach { flags, slot, .. } = question;
    let index = slot / SLOT_SIZE;
    if flags != 0 || question.vcpus != 0 || slot % SLOT_SIZE != 0 {
        return Err(EINVAL);
    }
    if index == 0 || index >= TOP_ENTRIES {
        return Err(EINVAL);
    }
    let index = usize::try_from(index).map_err(|_| EINVAL)?;
    let attaching = file.attaching.lock();
    if file.vm.as_ref().is_some() {
        return Err(EBUSY);
    }
    let vm = Vm::attach(question.vm_fd, index)?;
    // From here on only the file's end lets go of it, so nothing may fail. KVM's limit is 4096.
    let vcpus = u32::try_from(vm.prepared()).unwrap_or(u32::MAX);
    // Nobody else attaches, so it is empty.
    file.vm.populate(vm);
    drop(attaching);
    Ok(VmfuncAttach { vcpus, ..question })
}

fn view_create(vm: &Vm, question: VmfuncView) -> Result<VmfuncView> {
    if question.flags != 0 || question.reserved != 0 || question.view != 0 {
        return Err(EINVAL);
    }
    let view = u32::try_from(vm.create_view()?).map_err(|_| EINVAL)?;
    Ok(VmfuncView { view, ..question })
}

fn view_destroy(vm: &Vm, question: VmfuncView) -> Result<VmfuncView> {
    if question.flags != 0 || question.reserved != 0 {
        return Err(EINVAL);
    }
    vm.destroy_view(index(question.view)?)?;
    Ok(question)
}

/// The index of a view, as a caller gave it.
fn index(view: u32) -> Result<usize> {
    usize::try_from(view).map_err(|_| ENOENT)
}

fn window_add(vm: &Vm, question: VmfuncWindow) -> Result<VmfuncWindow> {
    let flags = question.flags;
    let owned = flags & VMFUNC_WINDOW_OWNED != 0;
    let writable = flags & VMFUNC_WINDOW_WRITE != 0;
    if flags & !(VMFUNC_WINDOW_OWNED | VMFUNC_WINDOW_WRITE) != 0 || question.reserved != 0 {
        return Err(EINVAL);
    }
    // Peer RAM is only read: a write would miss its dirty log.
    if (writable && !owned) || (owned && question.address != 0) {
        return Err(EINVAL);
    }
    let place = Place::new(
        question.offset,
        question.length,
        FIRST_WINDOW,
        MAX_WINDOW,
        SLOT_SIZE,
    )
    .map_err(|bad| match bad {
        Bad::Size | Bad::Place => EINVAL,
    })?;
    let count = pages(&place)?;
    let backing = match owned {
        true => {
            let mut own = KVVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                own.push(zeroed()?, GFP_KERNEL)?;
            }
            Backing::Owned(own)
        }
        false => {
            if question.address % PAGE != 0 {
                return Err(EINVAL);
            }
            let address = usize::try_from(question.address).map_err(|_| EFAULT)?;
            Backing::Pinned(Pinned::new(address, count)?)
        }
    };
    let window = Window {
        place,
        backing,
        writable,
    };
    vm.add_window(index(question.view)?, window)?;
    let address = match owned {
        // The place was checked: the slot's bits are its own.
        true => u64::from(question.view) << SLOT_BITS | question.offset,
        false => question.address,
    };
    Ok(VmfuncWindow {
        address,
        ..question
    })
}

fn window_remove(vm: &Vm, question: VmfuncWindow) -> Result<VmfuncWindow> {
    let rest = question.length | question.address;
    if question.flags != 0 || question.reserved != 0 || rest != 0 {
        return Err(EINVAL);
    }
    if question.offset % PAGE != 0 {
        return Err(EINVAL);
    }
    vm.remove_window(index(question.view)?, question.offset / PAGE)?;
    Ok(question)
}

fn get_vcpu(vm: &Vm, question: VmfuncVcpu) -> Result<VmfuncVcpu> {
    let VmfuncVcpu {
        argsz,
        flags,
        vcpu,
        reserved,
        ..
    } = question;
    if flags != 0 || reserved != 0 {
        return Err(EINVAL);
    }
    let prepared = vm.vcpu(index(vcpu)?).ok_or(ENOENT)?;
    let counters = &prepared.counters;
    Ok(VmfuncVcpu {
        argsz,
        flags: match prepared.is_armed() {
            true => VMFUNC_VCPU_ARMED,
            false => 0,
        },
        vcpu,
        reserved,
        arms: counters.arms.load(Relaxed),
        loads: counters.loads.load(Relaxed),
        resyncs: counters.resyncs.load(Relaxed),
        bounces: counters.bounces.load(Relaxed),
        invepts: counters.invepts.load(Relaxed),
    })
}
