// SPDX-License-Identifier: GPL-2.0-only

//! A VM that a file is attached to.

use crate::{
    errno, gate,
    logic::place::Place,
    sys::{
        kvm::{invept_everywhere, Kvm},
        mm::{Mourner, Watch},
        module::Use,
        page::zeroed,
        registry::{self, Link},
        work,
    },
    uapi,
    vcpu::Prepared,
    view::{View, Window},
};
use core::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};
use kernel::{
    impl_has_work, new_mutex, new_work,
    page::Page,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex},
    workqueue::{Work, WorkItem},
};

/// Views and the default view.
// CAST: 63.
pub(crate) const VIEWS: usize = uapi::MAX_VIEWS as usize + 1;

/// What ioctls change.
struct Inner {
    /// By index; 0 is never there.
    views: [Option<View>; VIEWS],
    /// What keeps the module and the probes' entry to this VM; taken when it ends.
    life: Option<Life>,
}

/// What an attached VM has as long as probes may find it.
struct Life {
    _watch: Watch<Vm>,
    _module: Use,
}

/// See the module.
#[pin_data]
pub(crate) struct Vm {
    kvm: Kvm,
    /// Its place among the attached.
    pub(crate) link: Link,
    /// Index of the private slot in top tables.
    top_index: usize,
    vcpus: KVVec<Prepared>,
    /// Entries of top tables that lead to the views' slots; 0 where there never was one.
    slots: [AtomicU64; VIEWS],
    /// A bit for each view that is in use.
    live: AtomicU64,
    /// Moves with each change that the lists of the vCPUs have to follow.
    generation: AtomicU64,
    /// The file is closed, or the address space has ended: vCPUs are disarmed one by one, as they
    /// come.
    leaving: AtomicBool,
    /// Every probe has seen that: none arms a vCPU any more.
    settled: AtomicBool,
    gate: gate::Faces,
    scratch: Page,
    #[pin]
    inner: Mutex<Inner>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Vm { self.work }
}

impl Vm {
    /// Attaches to the VM behind `fd`, with its private slot at entry `top_index` of top tables.
    pub(crate) fn attach(fd: i32, top_index: usize) -> Result<Arc<Self>> {
        let kvm = Kvm::from_fd(fd)?;
        let mut vcpus = KVVec::new();
        for _ in 0..kvm.vcpus() {
            vcpus.push(Prepared::new()?, GFP_KERNEL)?;
        }
        let gate = gate::Faces::new()?;
        let scratch = zeroed()?;
        let module = Use::new()?;
        let vm = Arc::pin_init(
            pin_init!(Self {
                kvm,
                link: Link::new(),
                top_index,
                vcpus,
                slots: [const { AtomicU64::new(0) }; VIEWS],
                live: AtomicU64::new(0),
                generation: AtomicU64::new(1),
                leaving: AtomicBool::new(false),
                settled: AtomicBool::new(false),
                gate,
                scratch,
                inner <- new_mutex!(Inner {
                    views: [const { None }; VIEWS],
                    life: None,
                }),
                work <- new_work!("vmfunc_view::Vm"),
            }),
            GFP_KERNEL,
        )?;
        // Everything that can fail comes before probes may find the VM: once a vCPU is armed, only
        // its own next entry can take that back.
        let life = Life {
            _watch: Watch::new(&vm.kvm, vm.clone())?,
            _module: module,
        };
        vm.inner.lock().life = Some(life);
        if let Err(error) = registry::insert(vm.clone()) {
            vm.let_go();
            return Err(error);
        }
        if vm.is_leaving() {
            // The address space has ended meanwhile, perhaps before there was anything to take out.
            drop(registry::remove(&vm));
            vm.let_go();
            return Err(ESRCH);
        }
        Ok(vm)
    }

    /// The address of its structure in KVM, as a name.
    pub(crate) fn name(&self) -> usize {
        self.kvm.name()
    }

    /// Index of the private slot in top tables.
    pub(crate) fn slot(&self) -> usize {
        self.top_index
    }

    /// The vCPU of this index, when it is prepared.
    pub(crate) fn vcpu(&self, index: usize) -> Option<&Prepared> {
        self.vcpus.get(index)
    }

    /// How many are.
    pub(crate) fn prepared(&self) -> usize {
        self.vcpus.len()
    }

    /// Moves with each change that lists have to follow.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Whether vCPUs are to be disarmed.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Whether a view is in use.
    pub(crate) fn has_view(&self, view: usize) -> bool {
        // VIEWS is 64.
        view < VIEWS && self.live.load(Relaxed) & (1 << view) != 0
    }

    /// What leads to the private slot of a view.
    pub(crate) fn slot_entry(&self, view: usize) -> u64 {
        self.slots.get(view).map_or(0, |entry| entry.load(Relaxed))
    }

    /// The page that the guest has at the base of the slot in its default view.
    pub(crate) fn default_face(&self) -> &Page {
        self.gate.default_face()
    }

    fn set_live(&self, view: usize, live: bool) {
        let bit = 1u64 << (view % VIEWS);
        match live {
            true => self.live.fetch_or(bit, Relaxed),
            false => self.live.fetch_and(!bit, Relaxed),
        };
        self.generation.fetch_add(1, Release);
    }

    /// Makes a view, and tells its index.
    pub(crate) fn create_view(&self) -> Result<usize> {
        let mut inner = self.inner.lock();
        let free = |view: &Option<View>| !view.as_ref().is_some_and(|view| view.live);
        let found = inner.views.iter().skip(1).position(free);
        let index = found.ok_or(ENOSPC)?.saturating_add(1);
        let place = inner.views.get_mut(index).ok_or(ENOSPC)?;
        for vcpu in &self.vcpus {
            vcpu.add_top(index)?;
        }
        match place {
            Some(view) => view.live = true,
            None => {
                let view = View::new(self.gate.view_face())?;
                if let Some(entry) = self.slots.get(index) {
                    entry.store(view.entry(), Relaxed);
                }
                *place = Some(view);
            }
        }
        self.set_live(index, true);
        Ok(index)
    }

    /// Ends a view and its windows. A vCPU that is inside has the scratch page instead, and the
    /// default view from its next entry on.
    pub(crate) fn destroy_view(&self, index: usize) -> Result {
        let mut inner = self.inner.lock();
        let view = live_view(&mut inner.views, index)?;
        view.live = false;
        let windows = view.clear(&self.scratch);
        self.set_live(index, false);
        // Probes that saw it alive may still write it into lists.
        registry::wait_for_probes();
        for vcpu in &self.vcpus {
            vcpu.forget(index);
        }
        // Takes every vCPU out of the guest, and so by its probe.
        invept_everywhere();
        drop(inner);
        drop(windows);
        Ok(())
    }

    /// Opens a window.
    pub(crate) fn add_window(&self, index: usize, window: Window) -> Result {
        let mut inner = self.inner.lock();
        if self.is_leaving() {
            return Err(errno::not_attached());
        }
        // Not to be dropped under the lock.
        let mut window = Some(window);
        let result = live_view(&mut inner.views, index).and_then(|view| view.add(&mut window));
        drop(inner);
        drop(window);
        result
    }

    /// Closes the window at page `first` of the slot.
    pub(crate) fn remove_window(&self, index: usize, first: u64) -> Result {
        let mut inner = self.inner.lock();
        let view = live_view(&mut inner.views, index)?;
        let window = view.remove(first, &self.scratch);
        drop(inner);
        window.map(drop)
    }

    /// Shows the pages of the window of ours at `place` to `look`.
    pub(crate) fn with_owned<R>(
        &self,
        index: usize,
        place: u64,
        look: impl FnOnce(&[Page]) -> Result<R>,
    ) -> Result<R> {
        let mut inner = self.inner.lock();
        let view = live_view(&mut inner.views, index)?;
        look(view.owned(place).ok_or(ENXIO)?)
    }

    /// The file is closed. Windows close at once; the rest goes when no vCPU can enter with it.
    pub(crate) fn leave(self: Arc<Self>) {
        self.leaving.store(true, SeqCst);
        for index in 1..VIEWS {
            let mut inner = self.inner.lock();
            let view = inner.views.get_mut(index).and_then(Option::as_mut);
            let windows = view.map(|view| {
                view.live = false;
                view.clear(&self.scratch)
            });
            drop(inner);
            drop(windows);
        }
        registry::wait_for_probes();
        self.settled.store(true, SeqCst);
        if self.is_unarmed() || self.kvm.is_only_ours() {
            Self::finish(&self);
        }
        // When the process ends, its address space did so before its files: what that began is over
        // with it.
        work::flush(&self.work);
    }

    /// No vCPU enters with anything of ours any more.
    fn finish(this: &Arc<Self>) {
        if this.inner.lock().life.is_none() {
            return;
        }
        let known = registry::remove(this);
        // Pages that served as tables of ours may be anything in a moment.
        invept_everywhere();
        drop(known);
        this.let_go();
    }

    /// Gives back what it has for as long as probes may find it.
    fn let_go(&self) {
        let life = self.inner.lock().life.take();
        // Waits for the watch, so not under the lock.
        drop(life);
    }

    fn is_unarmed(&self) -> bool {
        !self.vcpus.iter().any(Prepared::is_armed)
    }

    /// A vCPU was disarmed; in its probe.
    pub(crate) fn disarmed(self: ArcBorrow<'_, Self>) {
        if self.settled.load(SeqCst) && self.is_unarmed() {
            work::enqueue::<Arc<Self>, 0>(self.into());
        }
    }
}

fn live_view(views: &mut [Option<View>], index: usize) -> Result<&mut View> {
    let view = views.get_mut(index).and_then(Option::as_mut);
    view.filter(|view| view.live).ok_or(ENOENT)
}

impl Mourner for Vm {
    fn ended(self: Arc<Self>) {
        self.leaving.store(true, SeqCst);
        work::enqueue(self);
    }
}

impl WorkItem for Vm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::finish(&this);
    }
}

/// The pages of a window, as `Place` counts them.
pub(crate) fn pages(place: &Place) -> Result<usize> {
    usize::try_from(place.count).map_err(|_| EINVAL)
}
