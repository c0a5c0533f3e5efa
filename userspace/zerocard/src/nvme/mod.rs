// SPDX-License-Identifier: Apache-2.0 OR MIT

//! NVMe controllers: registers, queues, admin and I/O commands.
//!
//! A [`controller::Controller`] is a device kind of the PCI function around it. Encodings come from
//! the `zeroshift-nvme` crate; what is here is behaviour.

pub(crate) mod admin;
pub(crate) mod controller;
pub(crate) mod data_pointer;
mod io;
#[cfg(test)]
mod io_tests;
pub(crate) mod migration;
pub(crate) mod namespace;
mod queues;
mod rate;
mod shadow;
mod staged;
