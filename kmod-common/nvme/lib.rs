// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT
#![no_std]

//! NVMe registers, commands and data structures: the encodings of NVM Express Base Specification 2.1.
//!
//! Owned by nobody in particular: the kernel modules include these files, the software card and the
//! tools link them as a crate, so a layout is written down once. Pure data: nothing in here may
//! allocate, do I/O, panic on a value that came from the other side of the bus, or use anything but
//! `core`.
//!
//! A kernel module includes it with
//!
//! ```text
//! #[path = "../kmod-common/nvme/lib.rs"]
//! #[allow(dead_code, unreachable_pub, unused_attributes)]
//! mod nvme;
//! ```
//!
//! (not every module uses every item, and `no_std` is an attribute of a crate root).

#[macro_use]
mod bytes;
#[cfg(test)]
mod random;

pub mod command;
pub mod completion;
pub mod feature;
pub mod hmlm;
pub mod identify;
pub mod list;
pub mod namespace;
pub mod nvm;
pub mod registers;
pub mod secondary;
pub mod sgl;
pub mod smart;
pub mod status;
