// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loading and unloading of a kernel module.

use rustix::io::Result;
use rustix::system::{delete_module, finit_module};
use std::ffi::CString;
use std::fs::File;
use std::path::Path;

/// Whether a module is loaded.
pub fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module")
        .join(name)
        .join("initstate")
        .exists()
}

/// Loads the module in a file.
pub fn load(path: &Path, arguments: &str) -> Result<()> {
    let file = File::open(path).map_err(|error| {
        rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
    })?;
    let arguments = CString::new(arguments).map_err(|_| rustix::io::Errno::INVAL)?;
    finit_module(file, &arguments, 0)
}

/// Unloads a module; does not wait for its users to go.
pub fn unload(name: &str) -> Result<()> {
    let name = CString::new(name).map_err(|_| rustix::io::Errno::INVAL)?;
    // O_NONBLOCK is the only way that the kernel supports.
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    // CAST: the flag fits.
    delete_module(&name, flags as i32)
}
