// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! What tools do with a function that a card manages.
//!
//! Every structure begins with `argsz` and `flags`, as `lib.rs` says, and names the function by
//! its PCI address, `domain << 16 | bus << 8 | device << 3 | function`. No implicit padding.

/// [`MigdirtyFunctionInfo::flags`]: its card is not dead.
pub const MIGDIRTY_FUNCTION_LIVE: u32 = 1 << 0;
/// [`MigdirtyFunctionInfo::flags`]: it is suspended.
pub const MIGDIRTY_FUNCTION_SUSPENDED: u32 = 1 << 1;
/// [`MigdirtyFunctionInfo::flags`]: there is a log of what it writes.
pub const MIGDIRTY_FUNCTION_LOGGING: u32 = 1 << 2;
/// [`MigdirtyFunctionInfo::flags`]: the log is lost; only stop and start help.
pub const MIGDIRTY_FUNCTION_LOG_LOST: u32 = 1 << 3;
/// [`MigdirtyFunctionInfo::flags`]: a VFIO device owns it.
pub const MIGDIRTY_FUNCTION_OWNED_BY_VFIO: u32 = 1 << 4;
/// [`MigdirtyFunctionInfo::flags`]: tools own it.
pub const MIGDIRTY_FUNCTION_OWNED_BY_TOOL: u32 = 1 << 5;

/// [`MigdirtyLogSync::flags`]: there is more than the room.
pub const MIGDIRTY_SYNC_MORE: u32 = 1 << 0;
/// [`MigdirtyLogSync::flags`]: the function is suspended, and nothing is left in its log.
pub const MIGDIRTY_SYNC_COMPLETE: u32 = 1 << 1;

/// The most ranges of a log.
pub const MAX_LOG_RANGES: u32 = 256;
/// The most ranges that one `MIGDIRTY_LOG_SYNC` hands out.
pub const MAX_SYNC_RANGES: u32 = 65536;
/// The largest controller state, in bytes.
pub const MAX_STATE: u64 = 64 << 20;

/// A function, for `MIGDIRTY_GET_FUNCTION`. Counters begin when its card is bound.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigdirtyFunctionInfo {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// In: 0. Out: `MIGDIRTY_FUNCTION_*`.
    pub flags: u32,
    /// In: the function's address.
    pub address: u32,
    /// Address of its card.
    pub card: u32,
    /// Its controller id (CNTLID).
    pub controller_id: u16,
    /// 0.
    pub reserved: u16,
    /// Memory ranges that are tracked now, after joining.
    pub ranges: u32,
    /// Granule of its log in bytes, 0 without one.
    pub granule: u64,
    /// Suspends that succeeded.
    pub suspends: u64,
    /// Resumes that succeeded.
    pub resumes: u64,
    /// Harvests of its log.
    pub harvests: u64,
    /// Bytes that these reported as written.
    pub dirty_bytes: u64,
    /// Controller states read.
    pub states_read: u64,
    /// Controller states set.
    pub states_written: u64,
    /// 0.
    pub reserved2: [u64; 6],
}

/// A function, and nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigdirtyTarget {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// The function's address.
    pub address: u32,
    /// 0.
    pub reserved: u32,
}

/// A range of addresses as the function uses them. The last byte may be 2^64 - 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigdirtyRange {
    /// First byte, a multiple of 4096.
    pub iova: u64,
    /// Bytes, a multiple of 4096, not 0.
    pub length: u64,
}

/// A log to start, for `MIGDIRTY_LOG_START`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigdirtyLogStart {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// The function's address.
    pub address: u32,
    /// Number of `ranges`, 1 to [`MAX_LOG_RANGES`].
    pub count: u32,
    /// In: wished granule in bytes, a power of two from 4096; 0 for any. Out: the one in use.
    pub granule: u64,
    /// Address of [`MigdirtyRange`]s that do not overlap.
    pub ranges: u64,
}

/// What was written, for `MIGDIRTY_LOG_SYNC`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigdirtyLogSync {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// In: 0. Out: `MIGDIRTY_SYNC_*`.
    pub flags: u32,
    /// The function's address.
    pub address: u32,
    /// In: room in `ranges`, 1 to [`MAX_SYNC_RANGES`]. Out: how many there are.
    pub count: u32,
    /// Where to look: first byte.
    pub iova: u64,
    /// Where to look: bytes, not 0.
    pub length: u64,
    /// Address of room for [`MigdirtyRange`]s. They come in ascending order.
    pub ranges: u64,
}

/// The controller state of a function, for `MIGDIRTY_SAVE` and `MIGDIRTY_RESTORE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigdirtyState {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// The function's address.
    pub address: u32,
    /// Version of the NVMe Controller State. Out when saving, in when restoring.
    pub version: u16,
    /// 0.
    pub reserved: u16,
    /// Format of the vendor specific data, zeroes for none. Out when saving, in when restoring.
    pub uuid: [u8; 16],
    /// Address of the state.
    pub data: u64,
    /// Bytes, [`MAX_STATE`] at most. Saving: in the room, out what it has or would need.
    pub size: u64,
}

/// What a function is, for `MIGDIRTY_GET_IDENTITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigdirtyIdentity {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// The function's address.
    pub address: u32,
    /// In: room at `data`. Out: bytes that it has or would need.
    pub size: u32,
    /// Address of room for the record.
    pub data: u64,
}

macro_rules! argument {
    ($name:ident, $size:literal: { $($field:ident: $zero:expr),* $(,)? }) => {
        impl $name {
            /// All zero.
            pub const ZERO: Self = Self { $($field: $zero),* };

            /// A question about the function at `address`, from a caller that knows this version.
            pub const fn question(address: u32) -> Self {
                Self {
                    argsz: $size,
                    address,
                    ..Self::ZERO
                }
            }
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    };
}

argument!(MigdirtyFunctionInfo, 128: {
    argsz: 0, flags: 0, address: 0, card: 0, controller_id: 0, reserved: 0, ranges: 0, granule: 0,
    suspends: 0, resumes: 0, harvests: 0, dirty_bytes: 0, states_read: 0, states_written: 0,
    reserved2: [0; 6],
});
argument!(MigdirtyTarget, 16: { argsz: 0, flags: 0, address: 0, reserved: 0 });
argument!(MigdirtyLogStart, 32: {
    argsz: 0, flags: 0, address: 0, count: 0, granule: 0, ranges: 0,
});
argument!(MigdirtyLogSync, 40: {
    argsz: 0, flags: 0, address: 0, count: 0, iova: 0, length: 0, ranges: 0,
});
argument!(MigdirtyState, 48: {
    argsz: 0, flags: 0, address: 0, version: 0, reserved: 0, uuid: [0; 16], data: 0, size: 0,
});
argument!(MigdirtyIdentity, 24: { argsz: 0, flags: 0, address: 0, size: 0, data: 0 });

impl MigdirtyRange {
    /// All zero.
    pub const ZERO: Self = Self { iova: 0, length: 0 };
}
