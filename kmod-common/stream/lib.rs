// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

#![cfg_attr(not(test), no_std)]
//! The migration stream of a function: `docs/interfaces.md`, section 13.
//!
//! Owned by nobody in particular: the kernel modules include these files, the tools link them as a
//! crate, so the format is written down once. Pure data: nothing in here may allocate, do I/O,
//! panic on a value that came from outside, or use anything but `core`.
//!
//! | to | use |
//! |---|---|
//! | write | [`identity::Builder`], [`writer::header_part`], then a [`writer::Writer`] |
//! | read, in pieces of any size | a [`reader::Reader`], which hands out [`reader::Event`]s |
//! | check what came | [`identity::compare`], [`registers::compare`] |
//!
//! A kernel module includes it with
//!
//! ```text
//! #[path = "../kmod-common/stream/lib.rs"]
//! #[allow(dead_code, unreachable_pub, unused_attributes)]
//! mod stream;
//! ```
//!
//! (not every module uses every item, and `no_std` is an attribute of a crate root).

mod bytes;

pub mod crc;
pub mod difference;
pub mod error;
pub mod format;
pub mod identity;
pub mod reader;
pub mod record;
pub mod registers;
pub mod writer;
