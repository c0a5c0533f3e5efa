// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

#![cfg_attr(not(test), no_std)]
//! Pure logic of vmfunc_view.ko, compiled into the module and into tests.
//!
//! Numbers in, numbers out: what entries of EPT tables and extended-page-table pointers are to be.
//! Must never touch a table itself, allocate, or panic on a value that came from outside.

pub mod ept;
pub mod eptp;
pub mod place;
