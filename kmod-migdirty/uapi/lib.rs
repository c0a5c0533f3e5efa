// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

#![no_std]
//! The ioctl interface of /dev/migdirty.
