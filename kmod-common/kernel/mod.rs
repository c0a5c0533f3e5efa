// SPDX-License-Identifier: GPL-2.0-only

//! Kernel glue that more than one module of this project needs.
//!
//! Each module compiles its own copy: it includes this folder with
//! `#[path = "../kmod-common/kernel/mod.rs"] mod common;`, and its C file includes
//! `zs_helpers.h`. Together with a module's own `sys` folder this is the only place for `unsafe`;
//! what is public here is safe to call. Must never know a device or a protocol.

pub(crate) mod argument;
pub(crate) mod irq_lock;
pub(crate) mod layout;
pub(crate) mod misc_device;
pub(crate) mod pci_config;
pub(crate) mod pci_driver;
pub(crate) mod wait;
pub(crate) mod work;
