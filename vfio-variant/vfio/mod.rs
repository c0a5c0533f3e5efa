// SPDX-License-Identifier: GPL-2.0-only

//! A thin safe layer over the VFIO core for PCI variant drivers.
//!
//! Names are near those of the layer that was posted upstream (`vfio::pci::{Operations, Device,
//! Adapter}`), so that a later move is mechanical; migration and logging are ours. A driver
//! implements [`pci::Operations`], [`migration::Operations`] and [`log::Operations`] for the type
//! that holds its state, and never sees a raw pointer. Must never know a device or a protocol.

pub(crate) mod config;
pub(crate) mod data_file;
mod device;
mod iova_bitmap;
pub(crate) mod log;
pub(crate) mod migration;
pub(crate) mod pci;
pub(crate) mod sys;

pub(crate) use device::Device;
pub(crate) use iova_bitmap::IovaBitmap;
