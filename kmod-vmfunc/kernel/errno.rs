// SPDX-License-Identifier: GPL-2.0-only

//! Error numbers that `kernel::error` does not name.

use kernel::{bindings, error::Error};

/// `ENOTCONN`: the file is attached to no VM.
pub(crate) fn not_attached() -> Error {
    // CAST: the constant is 107.
    Error::from_errno(-(bindings::ENOTCONN as i32))
}
