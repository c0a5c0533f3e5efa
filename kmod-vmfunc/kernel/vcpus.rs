// SPDX-License-Identifier: GPL-2.0-only

//! The vCPUs of a VM that can switch views.
//!
//! There is room for as many as KVM allows, so probes find them without a lock. They are prepared in
//! the order of their indexes, those that are made after attaching when they first enter the guest.

use crate::vcpu::Prepared;
use kernel::{prelude::*, sync::SetOnce};

/// See the module.
pub(crate) struct Vcpus(KVVec<SetOnce<KBox<Prepared>>>);

impl Vcpus {
    /// None, with room for `most`.
    pub(crate) fn new(most: usize) -> Result<Self> {
        let mut room = KVVec::with_capacity(most, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..most {
            room.push(SetOnce::new(), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self(room))
    }

    /// Whether there can be one of this index.
    pub(crate) fn has_room(&self, index: usize) -> bool {
        index < self.0.len()
    }

    /// The one of this index, when it is prepared.
    pub(crate) fn get(&self, index: usize) -> Option<&Prepared> {
        Some(self.0.get(index)?.as_ref()?)
    }

    /// All that are prepared.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Prepared> {
        let prepared = self.0.iter().map_while(SetOnce::as_ref);
        prepared.map(|prepared| &**prepared)
    }

    /// Prepares the first `count`, with top tables for `views`. True when one was not. What is done
    /// stays done when there is no memory for more. One caller at a time.
    pub(crate) fn prepare(
        &self,
        count: usize,
        views: impl Iterator<Item = usize> + Clone,
    ) -> Result<bool> {
        let mut news = false;
        for place in self.0.iter().take(count) {
            if place.as_ref().is_some() {
                continue;
            }
            let prepared = Prepared::new()?;
            for view in views.clone() {
                prepared.add_top(view)?;
            }
            place.populate(KBox::new(prepared, GFP_KERNEL_ACCOUNT)?);
            news = true;
        }
        Ok(news)
    }
}
