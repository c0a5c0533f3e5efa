// SPDX-License-Identifier: GPL-2.0-only

//! What was harvested for one function and not handed out yet, in kernel memory.
//!
//! Under `Function::dirty`. The set itself is `logic/dirty.rs`; here is its storage, and what it is
//! worth: nothing without a log, and nothing when the log is lost.

use crate::logic::{
    dirty::{Bits, Entry, Lost, Record, Store},
    span::Span,
};
use kernel::{
    alloc::{flags::__GFP_NOWARN, kvec::InsertError},
    prelude::*,
};

/// The harvest of one function.
pub(crate) struct Dirty {
    record: Record<Heap>,
    /// What the owner wants to know of, ascending and apart from each other.
    wanted: KVVec<Span>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    NoLog,
    Log,
    Lost,
}

impl Dirty {
    /// Of a function without a log.
    pub(crate) fn new() -> Self {
        Self {
            record: Record::new(Heap(KVVec::new())),
            wanted: KVVec::new(),
            state: State::NoLog,
        }
    }

    /// A log of `wanted` begins, which ascend and are apart from each other.
    pub(crate) fn begin(&mut self, wanted: KVVec<Span>) -> Result {
        self.record.clear();
        // The first entry always has a place: that is what the set needs to lose nothing.
        let mut entries = KVVec::new();
        entries.reserve(16, GFP_KERNEL)?;
        self.record = Record::new(Heap(entries));
        self.wanted = wanted;
        self.state = State::Log;
        Ok(())
    }

    /// There is no log any more.
    pub(crate) fn end(&mut self) {
        *self = Self::new();
    }

    /// What was written is not known any more. Whether that is news.
    pub(crate) fn lose(&mut self) -> bool {
        let news = self.state == State::Log;
        if news {
            self.record.clear();
            self.state = State::Lost;
        }
        news
    }

    /// What the owner wants to know of.
    pub(crate) fn wanted(&self) -> &[Span] {
        &self.wanted
    }

    /// The part of `span` that the owner wants to know of was written. Returns how many bytes that
    /// is.
    pub(crate) fn mark(&mut self, span: Span) -> Result<u64, Lost> {
        let mut bytes = 0u64;
        let first = self
            .wanted
            .partition_point(|wanted| wanted.last() < span.first());
        for wanted in self.wanted.get(first..).unwrap_or(&[]) {
            let Some(part) = wanted.overlap(&span) else {
                break;
            };
            self.record.mark(part)?;
            bytes = bytes.saturating_add(part.bytes());
        }
        Ok(bytes)
    }

    /// Everything that the owner wants to know of was written.
    pub(crate) fn mark_all(&mut self) -> Result<(), Lost> {
        for wanted in self.wanted.iter() {
            self.record.mark(*wanted)?;
        }
        Ok(())
    }

    /// Hands out what was written in `span`, ascending, and forgets it, until `dirty` returns
    /// `false`: that part and the rest stays. Says whether it never did. `EINVAL` no log, `EIO` the
    /// log is lost.
    pub(crate) fn take(&mut self, span: Span, dirty: impl FnMut(Span) -> bool) -> Result<bool> {
        match self.state {
            State::NoLog => Err(EINVAL),
            State::Lost => Err(EIO),
            State::Log => Ok(self.record.take(span, dirty)),
        }
    }

    /// Whether everything was handed out.
    pub(crate) fn is_empty(&self) -> bool {
        self.record.is_empty()
    }
}

/// Entries in one vector, a bitmap in a page each.
struct Heap(KVVec<Entry<KBox<Bits>>>);

impl Store for Heap {
    type Bits = KBox<Bits>;

    fn entries(&self) -> &[Entry<Self::Bits>] {
        &self.0
    }

    fn entries_mut(&mut self) -> &mut [Entry<Self::Bits>] {
        &mut self.0
    }

    fn insert(&mut self, at: usize, entry: Entry<Self::Bits>) -> Result<(), Entry<Self::Bits>> {
        if self.0.len() == self.0.capacity() {
            // Doubles what there is. A failure shows below.
            let _ = self
                .0
                .reserve(self.0.len().max(16), GFP_KERNEL | __GFP_NOWARN);
        }
        self.0
            .insert_within_capacity(at, entry)
            .map_err(|error| match error {
                InsertError::IndexOutOfBounds(entry) | InsertError::OutOfCapacity(entry) => entry,
            })
    }

    fn retain(&mut self, keep: impl FnMut(&mut Entry<Self::Bits>) -> bool) {
        self.0.retain(keep);
    }

    fn bits(&mut self) -> Option<Self::Bits> {
        KBox::init(pin_init::init_zeroed::<Bits>(), GFP_KERNEL | __GFP_NOWARN).ok()
    }
}
