// SPDX-License-Identifier: Apache-2.0 OR MIT

//! vfio-user: functions served to a VMM over unix sockets.
//!
//! One thread per function waits for a client, answers its messages until it goes, resets the
//! function and waits again. Knows functions only as [`device::Device`].

pub(crate) mod device;
pub(crate) mod listener;
mod session;
mod stream;
mod trigger;
mod version;
mod wire;
