// SPDX-License-Identifier: GPL-2.0-only

//! Arguments of ioctls: structures that begin with `argsz`, the size that the caller knows
//! (`docs/interfaces.md`, section 4).
//!
//! Must never hold a lock over a copy from or to the caller.

use core::mem::size_of;
use kernel::{
    prelude::*,
    transmute::{AsBytes, FromBytes},
    uaccess::{UserPtr, UserSlice},
};

/// Says of structures that they are integers, or arrays of them, without padding.
///
/// Only for structures of a `uapi` folder, whose test adds their fields up.
macro_rules! plain {
    ($($name:ty)*) => {$(
        // SAFETY: integers and arrays of integers; every pattern of bits is a value.
        unsafe impl ::kernel::transmute::FromBytes for $name {}

        // SAFETY: no padding (`uapi/tests/header.rs` adds the fields up), so every byte is
        // initialised.
        unsafe impl ::kernel::transmute::AsBytes for $name {}
    )*};
}
pub(crate) use plain;

/// Bytes that are copied at once.
const PART: usize = 64;

/// Reads the argument at `arg`, lets `perform` answer it, and writes the answer; what the caller
/// knows beyond that is zeroed. `perform` may give an error besides an answer. E2BIG, EINVAL: `argsz`
/// is above `most`, or too small. EFAULT: nothing was done, as nobody could get the answer. An
/// argument that is refused is left as it was.
pub(crate) fn call<T: AsBytes + FromBytes>(
    arg: usize,
    most: u32,
    perform: impl FnOnce(T) -> Result<(T, Result)>,
) -> Result<isize> {
    let arg = UserPtr::from_addr(arg);
    let argsz: u32 = UserSlice::new(arg, size_of::<u32>()).reader().read()?;
    if argsz > most {
        return Err(E2BIG);
    }
    // CAST: widens.
    let argsz = argsz as usize;
    // Every structure is of its first version.
    if argsz < size_of::<T>() {
        return Err(EINVAL);
    }
    // The second read of `argsz` may find another value; only the first one counts.
    let question: T = UserSlice::new(arg, size_of::<T>()).reader().read()?;
    touch(arg, argsz)?;
    let (answer, result) = perform(question)?;
    // CAST: every structure is far smaller than 4 GiB.
    let known = size_of::<T>() as u32;
    let mut writer = UserSlice::new(arg, argsz).writer();
    writer.write(&known)?;
    let rest = answer.as_bytes().get(size_of::<u32>()..).unwrap_or(&[]);
    writer.write_slice(rest)?;
    let zeroes = [0; PART];
    while !writer.is_empty() {
        let part = writer.len().min(PART);
        writer.write_slice(zeroes.get(..part).unwrap_or(&[]))?;
    }
    result.map(|()| 0)
}

/// Writes what stands there.
fn touch(arg: UserPtr, length: usize) -> Result {
    let (mut reader, mut writer) = UserSlice::new(arg, length).reader_writer();
    let mut bytes = [0; PART];
    while !reader.is_empty() {
        let part = reader.len().min(PART);
        let bytes = bytes.get_mut(..part).unwrap_or(&mut []);
        reader.read_slice(bytes)?;
        writer.write_slice(bytes)?;
    }
    Ok(())
}
