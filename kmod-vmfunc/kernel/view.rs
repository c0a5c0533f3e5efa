// SPDX-License-Identifier: GPL-2.0-only

//! A view: the tables below its private slot, and the windows in them.
//!
//! What is in no window is not present: because there never was one, or because it was taken away
//! under a vCPU. Whoever reaches for it exits; KVM finds no memory there either, and emulates; that
//! ends in the default view (`vcpu.rs`), where the gate aborts.

use crate::{
    logic::{
        ept::{self, Page as Kind, EMPTY},
        place::{path, Place},
    },
    sys::{
        mm::Pinned,
        page::{is_poisoned, physical, Table},
    },
    uapi,
};
use core::sync::atomic::Ordering::Relaxed;
use kernel::{page::Page, prelude::*, rbtree::RBTree};

/// The most windows of a view.
// CAST: 1024.
const MAX_WINDOWS: usize = uapi::MAX_WINDOWS as usize;

/// Memory behind a window. Dropping it takes the `mmap_lock` of who pinned it, so not under a lock
/// that an mmap of ours takes.
pub(crate) enum Backing {
    /// The caller's, pinned. Only to be read: what a guest writes by a window is in no dirty log.
    Pinned(Pinned),
    /// Ours.
    Owned(KVVec<Page>),
}

impl Backing {
    /// Physical address of its page `number`.
    fn physical(&self, number: usize) -> Option<u64> {
        match self {
            Self::Pinned(pages) => pages.physical(number),
            Self::Owned(pages) => pages.get(number).map(physical),
        }
    }

    /// Whether the kernel has given its page `number` up after a memory error.
    fn is_poisoned(&self, number: usize) -> bool {
        match self {
            Self::Pinned(pages) => pages.is_poisoned(number),
            Self::Owned(pages) => pages.get(number).is_some_and(is_poisoned),
        }
    }
}

/// A window.
pub(crate) struct Window {
    /// Where it is.
    pub(crate) place: Place,
    /// What is behind it.
    pub(crate) backing: Backing,
    /// Whether the guest may write.
    pub(crate) writable: bool,
    /// What the caller knows of it: flags and address.
    pub(crate) told: Told,
}

/// What a caller is told of a window.
#[derive(Clone, Copy)]
pub(crate) struct Told {
    /// `VMFUNC_WINDOW_*`.
    pub(crate) flags: u32,
    /// As the answer to `VMFUNC_WINDOW_ADD` had it.
    pub(crate) address: u64,
}

impl Window {
    fn kind(&self) -> Kind {
        match self.writable {
            true => Kind::ReadWrite,
            false => Kind::ReadOnly,
        }
    }
}

/// A table of 4 KiB entries.
struct Last {
    table: Table,
    /// Entries that are present. Without any it goes.
    used: usize,
}

impl Last {
    /// Writes a leaf where none is.
    fn put(&mut self, entry: usize, leaf: u64) {
        self.table.set(entry, leaf);
        self.used = self.used.saturating_add(1);
    }

    /// Clears a leaf. False when there was none.
    fn take(&mut self, entry: usize) -> bool {
        let old = self.table.entries().get(entry).map(|e| e.load(Relaxed));
        let there = old.is_some_and(|old| old != EMPTY);
        if there {
            self.table.set(entry, EMPTY);
            self.used = self.used.saturating_sub(1);
        }
        there
    }
}

/// See the module. Under the VM's lock.
pub(crate) struct View {
    /// Whether it is in use: an index is used again.
    pub(crate) live: bool,
    /// The table of 1 GiB entries.
    slot: Table,
    /// Tables of 2 MiB entries, by their index in `slot`. They stay.
    middle: RBTree<usize, Table>,
    /// Tables of 4 KiB entries, by their number.
    last: RBTree<u64, Last>,
    windows: KVec<Window>,
}

impl View {
    /// One with the gate and no windows.
    pub(crate) fn new(gate: &Page) -> Result<Self> {
        let mut view = Self {
            live: true,
            slot: Table::new(EMPTY)?,
            middle: RBTree::new(),
            last: RBTree::new(),
            windows: KVec::new(),
        };
        view.reach(0)?.put(0, ept::leaf(physical(gate), Kind::Gate));
        Ok(view)
    }

    /// The entry of a top table that leads here.
    pub(crate) fn entry(&self) -> u64 {
        ept::table(self.slot.physical())
    }

    /// The last-level table `number`, made unless it is there.
    fn reach(&mut self, number: u64) -> Result<&mut Last> {
        let [first, second] = path(number);
        if self.middle.get(&first).is_none() {
            let table = Table::new(EMPTY)?;
            let entry = ept::table(table.physical());
            self.middle
                .try_create_and_insert(first, table, GFP_KERNEL_ACCOUNT)?;
            self.slot.set(first, entry);
        }
        if self.last.get(&number).is_none() {
            let table = Table::new(EMPTY)?;
            let entry = ept::table(table.physical());
            let last = Last { table, used: 0 };
            self.last
                .try_create_and_insert(number, last, GFP_KERNEL_ACCOUNT)?;
            self.link(first, second, entry);
        }
        self.last.get_mut(&number).ok_or(EINVAL)
    }

    /// Writes a 2 MiB entry.
    fn link(&self, first: usize, second: usize, entry: u64) {
        if let Some(middle) = self.middle.get(&first) {
            middle.set(second, entry);
        }
    }

    /// Opens the window, which is taken from its place. On an error it stays there, and nothing of it
    /// is to be seen. EEXIST it overlaps another one, ENOSPC there are too many. `flush` as for
    /// [`Self::remove`].
    pub(crate) fn add(&mut self, given: &mut Option<Window>, flush: impl FnOnce()) -> Result {
        let window = given.as_ref().ok_or(EINVAL)?;
        let place = window.place;
        if self
            .windows
            .iter()
            .any(|other| other.place.overlaps(&place))
        {
            return Err(EEXIST);
        }
        if self.windows.len() >= MAX_WINDOWS {
            return Err(ENOSPC);
        }
        self.windows.reserve(1, GFP_KERNEL)?;
        let reached = place
            .parts()
            .try_for_each(|(table, _)| self.reach(table).map(drop));
        if let Err(error) = reached {
            self.hide(&place);
            flush();
            self.sweep(&place);
            return Err(error);
        }
        let leaf = |number| Some(ept::leaf(window.backing.physical(number)?, window.kind()));
        let mut leaves = (0..).map_while(leaf);
        for (table, entries) in place.parts() {
            // What was not there before is cached nowhere.
            if let Some(last) = self.last.get_mut(&table) {
                entries
                    .zip(&mut leaves)
                    .for_each(|(entry, leaf)| last.put(entry, leaf));
            }
        }
        if let Some(window) = given.take() {
            // There is room.
            self.windows.push(window, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Closes the window at page `first`. `flush` takes its pages and tables out of all caches, and
    /// every vCPU out of the view. What this gives is to be dropped without locks.
    pub(crate) fn remove(&mut self, first: u64, flush: impl FnOnce()) -> Result<Window> {
        let found = self.windows.iter().position(|w| w.place.first == first);
        let at = found.ok_or(ENOENT)?;
        let window = self.windows.remove(at).map_err(|_| ENOENT)?;
        self.hide(&window.place);
        flush();
        self.sweep(&window.place);
        Ok(window)
    }

    /// The same with all of them.
    pub(crate) fn clear(&mut self, flush: impl FnOnce()) -> KVec<Window> {
        let windows = core::mem::take(&mut self.windows);
        windows.iter().for_each(|window| self.hide(&window.place));
        flush();
        windows.iter().for_each(|window| self.sweep(&window.place));
        windows
    }

    /// Takes pages, and tables that have none any more, out of the tables above them.
    fn hide(&mut self, place: &Place) {
        for (table, entries) in place.parts() {
            let Some(last) = self.last.get_mut(&table) else {
                continue;
            };
            entries.for_each(|entry| {
                last.take(entry);
            });
            if last.used == 0 {
                let [first, second] = path(table);
                self.link(first, second, EMPTY);
            }
        }
    }

    /// Frees the tables that [`Self::hide`] has taken out.
    fn sweep(&mut self, place: &Place) {
        for (table, _) in place.parts() {
            if self.last.get(&table).is_some_and(|last| last.used == 0) {
                self.last.remove(&table);
            }
        }
    }

    /// Takes pages away that the kernel has given up after a memory error; their windows stay. True
    /// when there was one.
    pub(crate) fn blind(&mut self) -> bool {
        let mut any = false;
        for window in &self.windows {
            let parts = window.place.parts();
            let entries = parts.flat_map(|(table, entries)| entries.map(move |e| (table, e)));
            for (number, (table, entry)) in entries.enumerate() {
                if window.backing.is_poisoned(number) {
                    // None when nothing else is left of the table.
                    let last = self.last.get_mut(&table);
                    any |= last.is_some_and(|last| last.take(entry));
                }
            }
        }
        any
    }

    /// How many windows there are.
    pub(crate) fn windows(&self) -> usize {
        self.windows.len()
    }

    /// The first window at or behind page `first`.
    pub(crate) fn at_or_after(&self, first: u64) -> Option<&Window> {
        let there = |window: &&Window| window.place.first >= first;
        let windows = self.windows.iter().filter(there);
        windows.min_by_key(|window| window.place.first)
    }

    /// The pages of the window of ours at page `first`.
    pub(crate) fn owned(&self, first: u64) -> Option<&[Page]> {
        let window = self.windows.iter().find(|w| w.place.first == first)?;
        match &window.backing {
            Backing::Owned(pages) => Some(pages),
            Backing::Pinned(_) => None,
        }
    }
}
