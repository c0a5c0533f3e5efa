// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT
#![no_std]
//! NVMe registers, commands and data structures, shared by kernel modules and userspace.
