// SPDX-License-Identifier: GPL-2.0-only

//! The driver: what an NVMe function does beyond plain VFIO. No `unsafe` in this folder.
//!
//! | file | has |
//! |---|---|
//! | `bind.rs` | binding, opening and closing a function; whether it has a back end |
//! | `states.rs` | the migration state and its arcs |
//! | `save.rs`, `resume.rs` | the data files |
//! | `dirty.rs` | the DMA log |
//! | `reset.rs` | what a reset, or the loss of the card, does |

mod bind;
mod dirty;
mod reset;
mod resume;
mod save;
mod states;

pub(crate) use bind::Function;

/// Shows what `core` can show, which the kernel's own formatting does not take as it is.
struct Shown<'a, T>(&'a T);

impl<T: core::fmt::Display> kernel::fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        self.0.fmt(f)
    }
}
