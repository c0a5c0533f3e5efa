// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

#![cfg_attr(not(test), no_std)]
//! Pure logic of zeroshift_vfio_pci.ko, compiled into the module and into tests.
//!
//! Owned by nobody: plain values that the driver keeps under its own locks. Must never allocate,
//! sleep, use anything but `core`, or panic on a value that came from outside.

pub mod arcs;
pub mod config;
pub mod image;
pub mod log;
