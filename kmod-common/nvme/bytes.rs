// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Little-endian fields at byte offsets, without a way to panic.
//!
//! Used by the other files of this folder only. All offsets they pass are constants inside the
//! structure, so the answer for an offset outside (zero, or nothing written) never shows; it exists
//! to keep panicking code out of the kernel.

/// The `N` bytes at `at`, zeroes when they are not all inside.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    match bytes.get(at..).and_then(|tail| tail.first_chunk::<N>()) {
        Some(chunk) => *chunk,
        None => [0; N],
    }
}

/// Writes `value` at `at` when it fits.
pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes
        .get_mut(at..)
        .and_then(|tail| tail.get_mut(..value.len()))
    {
        place.copy_from_slice(value);
    }
}

/// The byte at `at`.
pub(super) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    u8::from_le_bytes(array(bytes, at))
}

/// The 16-bit field at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

/// The 32-bit field at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// The 64-bit field at `at`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// The 128-bit field at `at`.
pub(super) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(array(bytes, at))
}

/// Getters for a view and setters for its builder, both newtypes over the bytes of a structure:
/// one line per field, so an offset stands in one place.
macro_rules! fields {
    ($view:ident, $builder:ident:
     $($get:ident $set:ident: $type:ident at $offset:literal via $read:ident, $text:literal;)*) => {
        impl $view<'_> {
            $(
                #[doc = $text]
                pub fn $get(&self) -> $type {
                    bytes::$read(self.0, $offset)
                }
            )*
        }

        impl $builder<'_> {
            $(
                #[doc = $text]
                pub fn $set(&mut self, value: $type) -> &mut Self {
                    bytes::put(self.0, $offset, &value.to_le_bytes());
                    self
                }
            )*
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_outside_read_zero_and_write_nothing() {
        let mut bytes = [0xffu8; 4];
        assert_eq!(u32_at(&bytes, 1), 0);
        assert_eq!(u32_at(&bytes, usize::MAX), 0);
        put(&mut bytes, 3, &[0, 0]);
        put(&mut bytes, usize::MAX, &[0]);
        assert_eq!(bytes, [0xff; 4]);
    }
}
