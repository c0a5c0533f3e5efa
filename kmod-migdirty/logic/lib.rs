// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

#![no_std]
//! Pure logic of migdirty.ko, compiled into the module and into tests.
