// SPDX-License-Identifier: Apache-2.0 OR MIT

//! VFIO_DEVICE_FEATURE, with any header and any data.

use super::device::Device;
use super::space::vfio;
use crate::sys::ioctl_on;
use rustix::io::Result;
use std::os::fd::BorrowedFd;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET,
};

/// Size of the header: `argsz` and `flags`.
pub const HEADER: usize = 8;
/// Flag: read the feature.
pub const GET: u32 = VFIO_DEVICE_FEATURE_GET;
/// Flag: write the feature.
pub const SET: u32 = VFIO_DEVICE_FEATURE_SET;
/// Flag: ask whether it is there.
pub const PROBE: u32 = VFIO_DEVICE_FEATURE_PROBE;

const FEATURE: u32 = vfio(17);
/// More than any feature writes, so that a wrong size shows and does no harm.
const ROOM: usize = 256;

/// The call. `data` comes back as the kernel left it.
pub(super) fn call(file: BorrowedFd<'_>, argsz: u32, flags: u32, data: &mut [u8]) -> Result<()> {
    let mut bytes = vec![0; HEADER + data.len() + ROOM];
    bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
    bytes[4..HEADER].copy_from_slice(&flags.to_ne_bytes());
    bytes[HEADER..][..data.len()].copy_from_slice(data);
    let result = ioctl_on(file, FEATURE, &mut bytes);
    data.copy_from_slice(&bytes[HEADER..][..data.len()]);
    result
}

impl Device {
    /// Reads a feature into `data`, whose content goes in as well.
    pub fn get_feature(&self, index: u32, data: &mut [u8]) -> Result<()> {
        self.feature(size_with(data), GET | index, data)
    }

    /// Writes a feature; what comes back is in `data`.
    pub fn set_feature(&self, index: u32, data: &mut [u8]) -> Result<()> {
        self.feature(size_with(data), SET | index, data)
    }

    /// Whether a feature is there, with these ways to use it (`GET`, `SET`, both or none).
    pub fn probe_feature(&self, index: u32, ways: u32) -> Result<()> {
        self.feature(size_with(&[]), PROBE | ways | index, &mut [])
    }
}

/// `argsz` of a call with this data.
pub fn size_with(data: &[u8]) -> u32 {
    // CAST: these structures are small.
    (HEADER + data.len()) as u32
}
