// SPDX-License-Identifier: GPL-2.0-only

//! A VM that a file is attached to.

use crate::{
    common::work,
    errno, gate,
    logic::{ept::EMPTY, place::Place},
    sys::{
        eventfd::Eventfd,
        kvm::{invept_everywhere, Kvm},
        mm::{Mourner, Watch},
        module::Use,
        registry::{self, Link},
    },
    uapi,
    vcpu::Prepared,
    vcpus::Vcpus,
    view::{Told, View, Window},
};
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};
use kernel::{
    impl_has_delayed_work, new_delayed_work, new_mutex,
    page::Page,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex},
    time::{msecs_to_jiffies, Msecs},
    workqueue::{DelayedWork, WorkItem},
};

/// Views and the default view.
// CAST: 63.
pub(crate) const VIEWS: usize = uapi::MAX_VIEWS as usize + 1;

/// [`Vm::wanted`]: every vCPU that has entered is prepared.
const NOT_WANTED: u32 = 0;
/// [`Vm::wanted`]: the work is on its way to prepare more.
const WANTED: u32 = 1;
/// [`Vm::wanted`]: it is there, and may not see who enters from now on.
const PREPARING: u32 = 2;

/// How long a while is.
const WHILE: Msecs = 1000;

/// What ioctls change.
struct Inner {
    /// By index; 0 is never there.
    views: [Option<KBox<View>>; VIEWS],
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
    vcpus: Vcpus,
    /// Whether vCPUs that are not prepared wait for that.
    wanted: AtomicU32,
    /// Whether a vCPU met a memory error in a view that nobody has looked for since.
    memory_error: AtomicBool,
    /// Entries of top tables that lead to the views' slots; empty where there never was one.
    slots: [AtomicU64; VIEWS],
    /// A bit for each view that is in use.
    live: AtomicU64,
    /// Moves with each change that the lists of the vCPUs have to follow, and with each eviction.
    generation: AtomicU64,
    /// By view: `generation` as it was after the last eviction.
    evicted: [AtomicU64; VIEWS],
    /// vCPUs that are armed.
    armed: AtomicUsize,
    /// The file is closed, or the address space has ended: vCPUs are disarmed one by one, as they
    /// come.
    leaving: AtomicBool,
    /// Every probe has seen that: none arms a vCPU any more.
    settled: AtomicBool,
    /// The address space has ended: none enters any more.
    ended: AtomicBool,
    gate: gate::Faces,
    #[pin]
    inner: Mutex<Inner>,
    /// Who wants to know of changes.
    #[pin]
    event: Mutex<Option<Eventfd>>,
    #[pin]
    work: DelayedWork<Self>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Vm { self.work }
}

impl Vm {
    /// Attaches to the VM behind `fd`, with its private slot at entry `top_index` of top tables.
    pub(crate) fn attach(fd: i32, top_index: usize) -> Result<Arc<Self>> {
        // CAST: widens. Below 512 slots.
        let end = (top_index as u64 + 1).saturating_mul(uapi::SLOT_SIZE);
        let kvm = Kvm::from_fd(fd, end)?;
        let vcpus = Vcpus::new(kvm.max_vcpus())?;
        vcpus.prepare(kvm.vcpus(), core::iter::empty())?;
        let gate = gate::Faces::new()?;
        let module = Use::new()?;
        let vm = Arc::pin_init(
            pin_init!(Self {
                kvm,
                link: Link::new(),
                top_index,
                vcpus,
                wanted: AtomicU32::new(NOT_WANTED),
                memory_error: AtomicBool::new(false),
                slots: [const { AtomicU64::new(EMPTY) }; VIEWS],
                live: AtomicU64::new(0),
                generation: AtomicU64::new(1),
                evicted: [const { AtomicU64::new(0) }; VIEWS],
                armed: AtomicUsize::new(0),
                leaving: AtomicBool::new(false),
                settled: AtomicBool::new(false),
                ended: AtomicBool::new(false),
                gate,
                inner <- new_mutex!(Inner {
                    views: [const { None }; VIEWS],
                    life: None,
                }),
                event <- new_mutex!(None),
                work <- new_delayed_work!("vmfunc_view::Vm"),
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
            let known = registry::remove(&vm);
            invept_everywhere();
            drop(known);
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
        self.vcpus.iter().count()
    }

    /// Moves with each change that lists have to follow, and with each eviction.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// [`Self::generation`] as it was after the last eviction from a view. A vCPU that was in the
    /// view when it had seen less is to be in the default view.
    pub(crate) fn evicted(&self, view: usize) -> u64 {
        self.evicted.get(view).map_or(0, |at| at.load(Relaxed))
    }

    /// Whether vCPUs are to be disarmed.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Whether no vCPU can enter any more, as long as the file is open: the address space has ended, or
    /// nobody else has the VM.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_leaving() || self.kvm.is_only_ours()
    }

    /// Whether a view is in use.
    pub(crate) fn has_view(&self, view: usize) -> bool {
        // VIEWS is 64.
        view < VIEWS && self.live.load(Relaxed) & (1 << view) != 0
    }

    /// A bit for each view that is in use.
    pub(crate) fn views(&self) -> u64 {
        self.live.load(Relaxed)
    }

    /// What leads to the private slot of a view.
    pub(crate) fn slot_entry(&self, view: usize) -> u64 {
        self.slots
            .get(view)
            .map_or(EMPTY, |entry| entry.load(Relaxed))
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

    /// Takes every vCPU out of a view: those that are in the guest now, the others before they enter.
    /// Nobody has cached anything of it that was changed before. Under the lock.
    fn evict(&self, view: usize) {
        let generation = self.generation.load(Relaxed).saturating_add(1);
        if let Some(at) = self.evicted.get(view) {
            at.store(generation, Relaxed);
        }
        self.generation.store(generation, Release);
        // An interrupt, so that they come by their probes.
        invept_everywhere();
    }

    /// Makes a view, and tells its index.
    pub(crate) fn create_view(&self) -> Result<usize> {
        let mut inner = self.inner.lock();
        if self.is_leaving() {
            return Err(errno::not_attached());
        }
        let free = |view: &Option<KBox<View>>| !view.as_ref().is_some_and(|view| view.live);
        let found = inner.views.iter().skip(1).position(free);
        let index = found.ok_or(ENOSPC)?.saturating_add(1);
        let place = inner.views.get_mut(index).ok_or(ENOSPC)?;
        for vcpu in self.vcpus.iter() {
            vcpu.add_top(index)?;
        }
        match place {
            Some(view) => view.live = true,
            None => {
                let view = KBox::new(View::new(self.gate.view_face())?, GFP_KERNEL)?;
                if let Some(entry) = self.slots.get(index) {
                    entry.store(view.entry(), Relaxed);
                }
                *place = Some(view);
            }
        }
        self.set_live(index, true);
        drop(inner);
        self.changed();
        Ok(index)
    }

    /// Ends a view and its windows. Whoever is inside is in the default view before this returns.
    pub(crate) fn destroy_view(&self, index: usize) -> Result {
        let mut inner = self.inner.lock();
        let view = live_view(&mut inner.views, index)?;
        view.live = false;
        // What a probe that has not seen this writes into its list does not get into the guest: the
        // interrupt waits for it.
        self.set_live(index, false);
        let windows = view.clear(|| self.evict(index));
        drop(inner);
        drop(windows);
        self.changed();
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
        let view = live_view(&mut inner.views, index);
        let result = view.and_then(|view| view.add(&mut window, invept_everywhere));
        drop(inner);
        drop(window);
        if result.is_ok() {
            self.changed();
        }
        result
    }

    /// Closes the window at page `first` of the slot.
    pub(crate) fn remove_window(&self, index: usize, first: u64) -> Result {
        let mut inner = self.inner.lock();
        let view = live_view(&mut inner.views, index)?;
        let window = view.remove(first, || self.evict(index));
        drop(inner);
        drop(window?);
        self.changed();
        Ok(())
    }

    /// Windows of all views.
    pub(crate) fn windows(&self) -> usize {
        let inner = self.inner.lock();
        let views = inner.views.iter().flatten();
        views
            .map(|view| view.windows())
            .fold(0, usize::saturating_add)
    }

    /// The first window of a view at or behind page `first`: where it is, and what a caller is told
    /// of it.
    pub(crate) fn window(&self, index: usize, first: u64) -> Result<(Place, Told)> {
        let mut inner = self.inner.lock();
        let view = live_view(&mut inner.views, index)?;
        let window = view.at_or_after(first).ok_or(ENOENT)?;
        Ok((window.place, window.told))
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

    /// Sets, or takes away, the eventfd that is signalled at each change.
    pub(crate) fn set_event(&self, event: Option<Eventfd>) {
        let old = core::mem::replace(&mut *self.event.lock(), event);
        drop(old);
    }

    /// Says so who wants to know. After the change, so that he finds it.
    fn changed(&self) {
        if let Some(event) = &*self.event.lock() {
            event.signal();
        }
    }

    /// The file is closed. Windows close at once; the rest goes when no vCPU can enter with it.
    pub(crate) fn leave(self: Arc<Self>) {
        self.set_event(None);
        self.leaving.store(true, SeqCst);
        for index in 1..VIEWS {
            let mut inner = self.inner.lock();
            let view = inner.views.get_mut(index).and_then(Option::as_mut);
            let windows = view.map(|view| {
                view.live = false;
                view.clear(|| self.evict(index))
            });
            drop(inner);
            drop(windows);
        }
        registry::wait_for_probes();
        self.settled.store(true, SeqCst);
        work::soon(self.clone());
        // When the process ends, its address space did so before its files, and all of this is over
        // with it.
        work::flush_delayed(&self.work);
    }

    /// No vCPU enters with anything of ours any more.
    fn finish(&self) {
        let known = registry::remove(self);
        // Pages that served as tables of ours may be anything in a moment.
        invept_everywhere();
        drop(known);
        self.let_go();
    }

    /// Does what is to be done, and comes back when that may change. The only place that finishes, so
    /// nothing waits for its time when the module has gone.
    fn attend(self: Arc<Self>) {
        if self.inner.lock().life.is_none() {
            return;
        }
        if self.ended.load(SeqCst) {
            self.finish();
            return self.changed();
        }
        if self.leaving.load(SeqCst) {
            if self.settled.load(SeqCst) && self.is_unarmed() || self.kvm.is_only_ours() {
                return self.finish();
            }
            // vCPUs that never enter again: nobody tells when the last file of theirs goes.
            return work::later(self, msecs_to_jiffies(WHILE));
        }
        if self.memory_error.swap(false, Relaxed) {
            self.blind();
        }
        if self.wanted.load(Relaxed) == NOT_WANTED {
            return;
        }
        loop {
            self.wanted.store(PREPARING, SeqCst);
            if self.prepare().is_err() {
                // There was no memory. Nobody asks again until then.
                self.wanted.store(WANTED, SeqCst);
                return work::later(self, msecs_to_jiffies(WHILE));
            }
            // Once more for who asked meanwhile: he may halt, and no interrupt brings him here.
            let done = (PREPARING, NOT_WANTED);
            let result = self.wanted.compare_exchange(done.0, done.1, SeqCst, SeqCst);
            if result.is_ok() {
                break;
            }
        }
        // They may be in the guest, for as long as it likes. By an interrupt each comes by its probe,
        // and says so when it is not prepared yet.
        invept_everywhere();
        self.changed();
    }

    /// Takes what the kernel has given up after memory errors out of the views.
    fn blind(&self) {
        let mut inner = self.inner.lock();
        for (index, view) in inner.views.iter_mut().enumerate() {
            if view.as_mut().is_some_and(|view| view.blind()) {
                self.evict(index);
            }
        }
    }

    /// A vCPU met a memory error in a view; in its probe.
    #[cold]
    pub(crate) fn memory_error(self: ArcBorrow<'_, Self>) {
        self.memory_error.store(true, Relaxed);
        work::soon::<Arc<Self>, 0>(self.into());
    }

    /// Prepares the vCPUs that there are now.
    fn prepare(&self) -> Result {
        let inner = self.inner.lock();
        let made = inner
            .views
            .iter()
            .enumerate()
            .filter(|(_, view)| view.is_some());
        let views = made.map(|(index, _)| index);
        self.vcpus.prepare(self.kvm.vcpus(), views).map(drop)
    }

    /// A vCPU of this index is not prepared; in its probe.
    #[cold]
    pub(crate) fn unprepared(self: ArcBorrow<'_, Self>, index: usize) {
        if !self.vcpus.has_room(index) || self.is_leaving() {
            return;
        }
        let ask = |wanted| (wanted != WANTED).then_some(WANTED);
        // Whoever prepares sees that he was asked again.
        if self.wanted.fetch_update(SeqCst, SeqCst, ask) == Ok(NOT_WANTED) {
            work::soon::<Arc<Self>, 0>(self.into());
        }
    }

    /// Gives back what it has for as long as probes may find it.
    fn let_go(&self) {
        let life = self.inner.lock().life.take();
        // Waits for the watch, so not under the lock.
        drop(life);
    }

    fn is_unarmed(&self) -> bool {
        self.armed.load(SeqCst) == 0
    }

    /// A vCPU is armed; in its probe.
    pub(crate) fn armed(&self) {
        self.armed.fetch_add(1, SeqCst);
    }

    /// A vCPU was disarmed; in its probe.
    pub(crate) fn disarmed(self: ArcBorrow<'_, Self>) {
        // The last one, or `attend`, sees that it was.
        if self.armed.fetch_sub(1, SeqCst) == 1 && self.settled.load(SeqCst) {
            work::soon::<Arc<Self>, 0>(self.into());
        }
    }
}

fn live_view(views: &mut [Option<KBox<View>>], index: usize) -> Result<&mut View> {
    let view = views.get_mut(index).and_then(Option::as_deref_mut);
    view.filter(|view| view.live).ok_or(ENOENT)
}

impl Mourner for Vm {
    fn ended(self: Arc<Self>) {
        // In this order: who sees that it leaves sees why.
        self.ended.store(true, SeqCst);
        self.leaving.store(true, SeqCst);
        work::soon(self);
    }
}

impl WorkItem for Vm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.attend();
    }
}

/// The pages of a window, as `Place` counts them.
pub(crate) fn pages(place: &Place) -> Result<usize> {
    usize::try_from(place.count).map_err(|_| EINVAL)
}
