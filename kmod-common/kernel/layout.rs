// SPDX-License-Identifier: GPL-2.0-only

//! Compares what Rust and the C compiler think of the kernel's structures.
//!
//! `bindings` come from libclang while the kernel and our helpers may come from gcc, and the
//! metadata may have been rebuilt outside of the kernel package. A difference would be silent
//! memory corruption, so a module checks each structure that its Rust code reads or writes fields
//! of, or embeds, before it does anything else, and refuses to load when one differs.

use core::ffi::CStr;
use kernel::{
    ffi::{c_char, c_ulong},
    prelude::*,
};

/// One size or offset as Rust has it, under the name that the C table uses.
pub(crate) struct Entry {
    /// `struct name` or `struct name.field`.
    pub(crate) name: &'static CStr,
    /// Bytes.
    pub(crate) value: usize,
}

/// Lists entries: `size "struct x" = type;` and `offset "struct x.field" = type, field;`.
macro_rules! layout_table {
    ($($kind:ident $name:literal = $type:ty $(, $field:ident)?;)*) => {
        &[$($crate::common::layout::Entry {
            name: $name,
            value: $crate::common::layout::layout_table!(@ $kind $type $(, $field)?),
        }),*]
    };
    (@ size $type:ty) => { ::core::mem::size_of::<$type>() };
    (@ offset $type:ty, $field:ident) => { ::core::mem::offset_of!($type, $field) };
}
pub(crate) use layout_table;

/// `struct zs_layout_entry` of `zs_helpers.h`.
#[repr(C)]
struct RawEntry {
    name: *const c_char,
    value: c_ulong,
}

extern "C" {
    /// Ends with an entry that has no name.
    static zs_layout_table: [RawEntry; 0];
}

/// What the C compiler says under `name`.
fn c_value(name: &CStr) -> Option<usize> {
    let mut entry = (&raw const zs_layout_table).cast::<RawEntry>();
    loop {
        // SAFETY: the table is constant and ends with an entry without a name, past which the loop
        // does not go.
        let raw = unsafe { &*entry };
        if raw.name.is_null() {
            return None;
        }
        // SAFETY: the names are string literals.
        if unsafe { CStr::from_char_ptr(raw.name) } == name {
            return Some(raw.value);
        }
        // SAFETY: this was not the last entry, so there is one more.
        entry = unsafe { entry.add(1) };
    }
}

/// Refuses (`EINVAL`, with a message for each) entries that differ or that the C table lacks.
pub(crate) fn check(entries: &[Entry]) -> Result {
    let mut good = true;
    for entry in entries {
        let c = c_value(entry.name);
        if c != Some(entry.value) {
            good = false;
            pr_err!(
                "{:?} is {} in Rust and {:?} in C: built for another kernel or with wrong Rust \
                 metadata, rebuild the module for this kernel\n",
                entry.name,
                entry.value,
                c,
            );
        }
    }
    if good {
        Ok(())
    } else {
        Err(EINVAL)
    }
}
