// SPDX-License-Identifier: Apache-2.0 OR MIT

//! NVMe controllers: registers, the admin queue and the admin commands.
//!
//! A [`controller::Controller`] is a device kind of the PCI function around it. Encodings come from
//! the `zeroshift-nvme` crate; what is here is behaviour.

pub(crate) mod admin;
mod admin_queue;
pub(crate) mod controller;
mod prp;
