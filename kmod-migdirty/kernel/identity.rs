// SPDX-License-Identifier: GPL-2.0-only

//! The identity record of a function, for the header of a migration stream (docs/interfaces.md, 13).

use crate::{errno::not_supported, function::Function};
use kernel::prelude::*;

/// The value of the record.
pub(crate) fn of(_function: &Function) -> Result<KVVec<u8>> {
    Err(not_supported())
}
