// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The only unsafe code of zerocard: mappings of memory that others change, and the kernel's rings.
//!
//! Nothing here decides what may be accessed; it only guarantees that no access leaves a mapping
//! and that the kernel never holds an address whose memory is gone. It must never hand out a
//! reference into a mapping: the bytes are shared with guests and the kernel, so data is copied.

mod bytes;
mod mapping;
mod ring;
pub(crate) mod sigbus;
mod waker;

pub(crate) use mapping::Mapping;
pub(crate) use ring::{Buffer, Full, Operation, Ring, MAX_VECTORS};
pub(crate) use waker::Waker;
