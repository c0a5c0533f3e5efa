// SPDX-License-Identifier: GPL-2.0-only

//! A view: the tables below its private slot, and the windows in them.
//!
//! A page that was once in a window stays present for as long as the VM is attached: what is removed
//! leads to a scratch page instead. So a vCPU that is still inside meets no violation that KVM could
//! only answer by emulation.

use crate::{
    logic::{
        ept::{self, Page as Kind, ENTRIES},
        place::{path, Place},
    },
    sys::{
        kvm::invept_everywhere,
        mm::Pinned,
        page::{physical, Table},
    },
    uapi,
};
use core::sync::atomic::Ordering::Relaxed;
use kernel::{page::Page, prelude::*};

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

/// A window.
pub(crate) struct Window {
    /// Where it is.
    pub(crate) place: Place,
    /// What is behind it.
    pub(crate) backing: Backing,
    /// Whether the guest may write.
    pub(crate) writable: bool,
}

impl Window {
    fn kind(&self) -> Kind {
        match self.writable {
            true => Kind::ReadWrite,
            false => Kind::ReadOnly,
        }
    }
}

/// See the module. Under the VM's lock.
pub(crate) struct View {
    /// Whether it is in use: an index is used again.
    pub(crate) live: bool,
    /// The table of 1 GiB entries.
    slot: Table,
    /// Tables of 2 MiB entries, by their index in `slot`.
    middle: KVec<(usize, Table)>,
    /// Tables of 4 KiB entries, by the two indexes.
    last: KVec<([usize; 2], Table)>,
    windows: KVec<Window>,
}

impl View {
    /// One with the gate and no windows.
    pub(crate) fn new(gate: &Page) -> Result<Self> {
        let mut view = Self {
            live: true,
            slot: Table::new()?,
            middle: KVec::new(),
            last: KVec::new(),
            windows: KVec::new(),
        };
        view.reach(0)?;
        view.set(0, ept::leaf(physical(gate), Kind::Gate));
        Ok(view)
    }

    /// The entry of a top table that leads here.
    pub(crate) fn entry(&self) -> u64 {
        ept::table(self.slot.physical())
    }

    /// Makes the tables that lead to page `number`.
    fn reach(&mut self, number: u64) -> Result {
        let [first, second, _] = path(number);
        if !self.middle.iter().any(|(index, _)| *index == first) {
            let table = Table::new()?;
            let entry = ept::table(table.physical());
            self.middle.push((first, table), GFP_KERNEL)?;
            self.slot.set(first, entry);
        }
        if !self
            .last
            .iter()
            .any(|(indexes, _)| *indexes == [first, second])
        {
            let table = Table::new()?;
            let entry = ept::table(table.physical());
            self.last.push(([first, second], table), GFP_KERNEL)?;
            if let Some((_, middle)) = self.middle.iter().find(|(index, _)| *index == first) {
                middle.set(second, entry);
            }
        }
        Ok(())
    }

    /// Writes the leaf of page `number`, to which tables lead. True when there was another one.
    fn set(&self, number: u64, leaf: u64) -> bool {
        let [first, second, third] = path(number);
        let found = self.last.iter().find(|(at, _)| *at == [first, second]);
        let Some((_, table)) = found else {
            return false;
        };
        let old = table.entries().get(third).map_or(0, |e| e.load(Relaxed));
        table.set(third, leaf);
        old != 0 && old != leaf
    }

    /// Opens the window, which is taken from its place. On an error it stays there, and nothing of it
    /// is to be seen. EEXIST it overlaps another one, ENOSPC there are too many.
    pub(crate) fn add(&mut self, given: &mut Option<Window>) -> Result {
        let window = given.as_ref().ok_or(EINVAL)?;
        let (place, kind) = (window.place, window.kind());
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
        let last = place.first.saturating_add(place.count);
        let mut number = place.first;
        while number < last {
            self.reach(number)?;
            // CAST: 512.
            number = (number | (ENTRIES as u64 - 1)).saturating_add(1);
        }
        self.windows.reserve(1, GFP_KERNEL)?;
        let mut replaced = false;
        let mut put = |(number, page)| replaced |= self.set(number, ept::leaf(page, kind));
        let numbers = place.first..last;
        match &window.backing {
            Backing::Pinned(pages) => numbers.zip(pages.physical()).for_each(&mut put),
            Backing::Owned(pages) => numbers.zip(pages.iter().map(physical)).for_each(&mut put),
        }
        if let Some(window) = given.take() {
            // There is room.
            self.windows.push(window, GFP_KERNEL)?;
        }
        // What was there before, the scratch page, may be cached.
        if replaced {
            invept_everywhere();
        }
        Ok(())
    }

    /// Closes the window at page `first`: its pages become the scratch page, and no CPU knows them
    /// when this returns. It never waits for a vCPU. What it gives is to be dropped without locks.
    pub(crate) fn remove(&mut self, first: u64, scratch: &Page) -> Result<Window> {
        let found = self.windows.iter().position(|w| w.place.first == first);
        let at = found.ok_or(ENOENT)?;
        if let Some(window) = self.windows.get(at) {
            self.hide(window, scratch);
        }
        invept_everywhere();
        self.windows.remove(at).map_err(|_| ENOENT)
    }

    /// The same with all of them.
    pub(crate) fn clear(&mut self, scratch: &Page) -> KVec<Window> {
        for window in &self.windows {
            self.hide(window, scratch);
        }
        if !self.windows.is_empty() {
            invept_everywhere();
        }
        core::mem::take(&mut self.windows)
    }

    fn hide(&self, window: &Window, scratch: &Page) {
        let leaf = ept::leaf(physical(scratch), window.kind());
        let place = window.place;
        for number in place.first..place.first.saturating_add(place.count) {
            self.set(number, leaf);
        }
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
