// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

#![cfg_attr(not(test), no_std)]
//! Pure logic of migdirty.ko, compiled into the module and into tests.
//!
//! Owned by nobody: plain values that the kernel glue keeps under its own locks. Must never touch
//! memory that a card can write, sleep, allocate, or panic on a value that came from outside.

pub mod dirty;
pub mod log;
pub mod pass;
pub mod ranges;
pub mod ring;
pub mod slots;
pub mod span;
pub mod startup;
