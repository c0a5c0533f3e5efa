// SPDX-License-Identifier: GPL-2.0-only

//! Keeping the module in memory.

use kernel::{bindings, prelude::*};

/// A reference to this module: rmmod is refused while there is one.
pub(crate) struct Use;

impl Use {
    /// ENODEV when the module is going already.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: the module's own structure.
        match unsafe { bindings::try_module_get(crate::THIS_MODULE.as_ptr()) } {
            true => Ok(Self),
            false => Err(ENODEV),
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        // SAFETY: taken by `new`. Whoever drops the last one runs on the module's workqueue, which
        // module exit waits for, or in a file operation, which holds one of its own.
        unsafe { bindings::module_put(crate::THIS_MODULE.as_ptr()) }
    }
}
