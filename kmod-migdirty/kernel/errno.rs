// SPDX-License-Identifier: GPL-2.0-only

//! Error numbers that `kernel::error` does not name.

use kernel::{bindings, error::Error};

/// `EOPNOTSUPP`.
pub(crate) fn not_supported() -> Error {
    // CAST: the constant is 95.
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}

/// `EALREADY`.
pub(crate) fn already() -> Error {
    // CAST: the constant is 114.
    Error::from_errno(-(bindings::EALREADY as i32))
}

/// `ENOTRECOVERABLE`.
pub(crate) fn not_recoverable() -> Error {
    // CAST: the constant is 131.
    Error::from_errno(-(bindings::ENOTRECOVERABLE as i32))
}
