// SPDX-License-Identifier: GPL-2.0-only

//! The gate of a VM: its two faces, in pages that nobody can change.

use crate::{faces, sys::page::from_bytes};
use kernel::{page::Page, prelude::*};

/// Copies of both faces, for one VM.
pub(crate) struct Faces {
    default: Page,
    view: Page,
}

impl Faces {
    pub(crate) fn new() -> Result<Self> {
        let (default, view) = faces::bytes();
        Ok(Self {
            default: from_bytes(default)?,
            view: from_bytes(view)?,
        })
    }

    /// For the default view: VMMs give it to the guest by mmap.
    pub(crate) fn default_face(&self) -> &Page {
        &self.default
    }

    /// For the other views.
    pub(crate) fn view_face(&self) -> &Page {
        &self.view
    }
}
