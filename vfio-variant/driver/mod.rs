// SPDX-License-Identifier: GPL-2.0-only

//! The driver: what an NVMe function does beyond plain VFIO. No `unsafe` in this folder.

mod bind;

pub(crate) use bind::Function;
