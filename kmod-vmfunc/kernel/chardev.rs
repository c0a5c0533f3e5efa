// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/vmfunc`: attaching to a VM, its views and windows.
//!
//! An open file has at most one VM. Everything that comes in is outside data. Must never hold a lock
//! over a copy from or to the caller.

use crate::{
    common::{argument, misc_device::FileOperations},
    errno,
    logic::place::{Bad, Place, PAGE},
    sys::{eventfd::Eventfd, mm::Pinned, page::zeroed},
    uapi::{
        VmfuncAttach, VmfuncEventfd, VmfuncQuery, VmfuncVcpu, VmfuncView, VmfuncWindow,
        FIRST_WINDOW, MAX_ARGSZ, MAX_VIEWS, MAX_WINDOW, MAX_WINDOWS, SLOT_SIZE, VMFUNC_ATTACH,
        VMFUNC_GET_VCPU, VMFUNC_GET_WINDOW, VMFUNC_QUERY, VMFUNC_QUERY_ENDED, VMFUNC_SET_EVENTFD,
        VMFUNC_VCPU_ARMED, VMFUNC_VCPU_UNABLE, VMFUNC_VIEW_CREATE, VMFUNC_VIEW_DESTROY,
        VMFUNC_WINDOW_ADD, VMFUNC_WINDOW_FILE, VMFUNC_WINDOW_OWNED, VMFUNC_WINDOW_REMOVE,
        VMFUNC_WINDOW_WRITE,
    },
    view::{Backing, Told, Window},
    vm::{pages, Vm},
};
use core::sync::atomic::Ordering::Relaxed;
use kernel::{
    mm::virt::{flags, VmaNew},
    new_mutex,
    page::Page,
    prelude::*,
    sync::{Arc, Mutex, SetOnce},
    transmute::{AsBytes, FromBytes},
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
        match cmd {
            VMFUNC_ATTACH => call(arg, |question| attach(&file, question)),
            VMFUNC_VIEW_CREATE => call(arg, |question| view_create(file.vm()?, question)),
            VMFUNC_VIEW_DESTROY => call(arg, |question| view_destroy(file.vm()?, question)),
            VMFUNC_WINDOW_ADD => call(arg, |question| window_add(file.vm()?, question)),
            VMFUNC_WINDOW_REMOVE => call(arg, |question| window_remove(file.vm()?, question)),
            VMFUNC_GET_VCPU => call(arg, |question| get_vcpu(file.vm()?, question)),
            VMFUNC_QUERY => call(arg, |question| query(file.vm()?, question)),
            VMFUNC_SET_EVENTFD => call(arg, |question| set_eventfd(file.vm()?, question)),
            VMFUNC_GET_WINDOW => call(arg, |question| get_window(file.vm()?, question)),
            _ => Err(ENOTTY),
        }
    }

    fn mmap(file: Pin<&Open>, vma: &VmaNew, offset: u64) -> Result {
        let vm = file.vm()?;
        // A private copy of the gate or of a window is neither. (SHARED itself is for files that
        // are open for writing.)
        if vma.flags() & flags::MAYSHARE == 0 {
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

/// As [`argument::call`], and an error has no answer.
fn call<T: AsBytes + FromBytes>(arg: usize, perform: impl FnOnce(T) -> Result<T>) -> Result<isize> {
    argument::call(arg, MAX_ARGSZ, |question| Ok((perform(question)?, Ok(()))))
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

/// What is behind a window, by its flags.
enum Memory {
    /// At an address of the caller.
    Caller,
    /// Of a file.
    File,
    /// Made here.
    Owned,
}

fn window_add(vm: &Vm, question: VmfuncWindow) -> Result<VmfuncWindow> {
    let flags = question.flags;
    let writable = flags & VMFUNC_WINDOW_WRITE != 0;
    // Peer RAM is only read: a write would miss its dirty log.
    let memory = match flags & !VMFUNC_WINDOW_WRITE {
        0 if !writable => Memory::Caller,
        VMFUNC_WINDOW_FILE if !writable => Memory::File,
        VMFUNC_WINDOW_OWNED => Memory::Owned,
        _ => return Err(EINVAL),
    };
    let wrong = match memory {
        Memory::Caller => question.address % PAGE != 0 || question.fd != 0,
        Memory::File => question.address % PAGE != 0,
        Memory::Owned => question.address != 0 || question.fd != 0,
    };
    if wrong {
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
    let backing = match memory {
        Memory::Caller => {
            let address = usize::try_from(question.address).map_err(|_| EFAULT)?;
            Backing::Pinned(Pinned::new(address, count)?)
        }
        Memory::File => Backing::Pinned(Pinned::of_file(question.fd, question.address, count)?),
        Memory::Owned => {
            let mut own = KVVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                own.push(zeroed()?, GFP_KERNEL)?;
            }
            Backing::Owned(own)
        }
    };
    let address = match memory {
        // The place was checked: the slot's bits are its own.
        Memory::Owned => u64::from(question.view) << SLOT_BITS | question.offset,
        Memory::Caller | Memory::File => question.address,
    };
    let window = Window {
        place,
        backing,
        writable,
        told: Told { flags, address },
    };
    vm.add_window(index(question.view)?, window)?;
    Ok(VmfuncWindow {
        address,
        ..question
    })
}

/// The page of the slot at which a window is meant, by a caller who gives nothing else.
fn first_page(question: &VmfuncWindow) -> Result<u64> {
    let rest = question.length | question.address | question.offset % PAGE;
    if question.flags != 0 || question.fd != 0 || rest != 0 {
        return Err(EINVAL);
    }
    Ok(question.offset / PAGE)
}

fn window_remove(vm: &Vm, question: VmfuncWindow) -> Result<VmfuncWindow> {
    let first = first_page(&question)?;
    vm.remove_window(index(question.view)?, first)?;
    Ok(question)
}

fn get_window(vm: &Vm, question: VmfuncWindow) -> Result<VmfuncWindow> {
    let first = first_page(&question)?;
    let (place, told) = vm.window(index(question.view)?, first)?;
    Ok(VmfuncWindow {
        flags: told.flags,
        // What was counted in pages was given in bytes.
        offset: place.first.wrapping_mul(PAGE),
        length: place.count.wrapping_mul(PAGE),
        address: told.address,
        ..question
    })
}

fn query(vm: &Vm, question: VmfuncQuery) -> Result<VmfuncQuery> {
    if question.flags != 0 {
        return Err(EINVAL);
    }
    Ok(VmfuncQuery {
        argsz: question.argsz,
        flags: match vm.has_ended() {
            true => VMFUNC_QUERY_ENDED,
            false => 0,
        },
        vcpus: u32::try_from(vm.prepared()).unwrap_or(u32::MAX),
        windows: u32::try_from(vm.windows()).unwrap_or(u32::MAX),
        views: vm.views(),
        // CAST: widens. Below 512 slots.
        slot: (vm.slot() as u64).wrapping_mul(SLOT_SIZE),
        max_views: MAX_VIEWS,
        max_windows: MAX_WINDOWS,
        first_window: FIRST_WINDOW,
        max_window: MAX_WINDOW,
    })
}

fn set_eventfd(vm: &Vm, question: VmfuncEventfd) -> Result<VmfuncEventfd> {
    if question.flags != 0 || question.reserved != 0 {
        return Err(EINVAL);
    }
    vm.set_event(match question.fd {
        -1 => None,
        fd => Some(Eventfd::from_fd(fd)?),
    });
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
    let flag = |is, flag| if is { flag } else { 0 };
    Ok(VmfuncVcpu {
        argsz,
        flags: flag(prepared.is_armed(), VMFUNC_VCPU_ARMED)
            | flag(prepared.is_unable(), VMFUNC_VCPU_UNABLE),
        vcpu,
        reserved,
        arms: counters.arms.load(Relaxed),
        loads: counters.loads.load(Relaxed),
        resyncs: counters.resyncs.load(Relaxed),
        bounces: counters.bounces.load(Relaxed),
        invepts: counters.invepts.load(Relaxed),
    })
}
