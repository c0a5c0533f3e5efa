// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Little-endian fields one after another, without a way to panic.
//!
//! Used by the other files of this folder only.

/// Takes fields from the front of some bytes.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `N` bytes; `None` when there are fewer.
    pub(super) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(field)
    }

    /// The next `size` bytes.
    pub(super) fn slice(&mut self, size: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(field)
    }

    /// The next byte.
    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().copied().map(u8::from_le_bytes)
    }

    /// The next 16-bit field.
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().copied().map(u16::from_le_bytes)
    }

    /// The next 32-bit field.
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().copied().map(u32::from_le_bytes)
    }

    /// The next 64-bit field.
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().copied().map(u64::from_le_bytes)
    }
}

/// Appends fields to a buffer that may be too small.
pub(super) struct Output<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> Output<'a> {
    /// Begins at the front of `buffer`.
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, used: 0 }
    }

    /// Appends `field`; `None`, and nothing written, when it does not fit.
    pub(super) fn put(&mut self, field: &[u8]) -> Option<()> {
        let end = self.used.checked_add(field.len())?;
        self.buffer.get_mut(self.used..end)?.copy_from_slice(field);
        self.used = end;
        Some(())
    }

    /// Bytes written.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Overwrites what stands at `at`, inside what was written.
    pub(super) fn replace(&mut self, at: usize, field: &[u8]) -> Option<()> {
        let end = at
            .checked_add(field.len())
            .filter(|end| *end <= self.used)?;
        self.buffer.get_mut(at..end)?.copy_from_slice(field);
        Some(())
    }
}
