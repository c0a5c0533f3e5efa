// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! A card, as `MIGDIRTY_GET_CARD` describes it.

#[cfg(doc)]
use super::MIGDIRTY_GET_CARD;

/// [`MigdirtyCard::flags`]: the card answered when it was asked.
pub const MIGDIRTY_CARD_LIVE: u32 = 1 << 0;

/// [`MigdirtyCard::flags`]: Host Managed Live Migration (OACS.HMLMS).
pub const MIGDIRTY_CARD_LIVE_MIGRATION: u32 = 1 << 1;

/// [`MigdirtyCard::flags`]: tracks what functions write to host memory (TRATTR.THMCS).
pub const MIGDIRTY_CARD_TRACKS_MEMORY: u32 = 1 << 2;

/// The smallest `argsz` of a [`MigdirtyCard`]: its first version.
pub const MIN_ARGSZ: u32 = 480;

/// A card, for [`MIGDIRTY_GET_CARD`]. No implicit padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigdirtyCard {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// In: 0. Out: `MIGDIRTY_CARD_*`.
    pub flags: u32,
    /// `domain << 16 | bus << 8 | device << 3 | function`. In: where to look from.
    pub address: u32,
    /// Controller ID (CNTLID).
    pub controller_id: u16,
    /// Controller Type (CNTRLTYPE), 3 for an administrative controller.
    pub controller_type: u8,
    /// Smallest tracking granule, 2^n x 4 KiB (MINMRTG).
    pub min_granule: u8,
    /// Largest tracking granule, 2^n x 4 KiB (MAXMRTG).
    pub max_granule: u8,
    /// 0.
    pub reserved: [u8; 3],
    /// Memory range tracking descriptors that this controller supports (CMMRTD).
    pub max_ranges: u16,
    /// The same for its whole NVM subsystem (NMMRTD).
    pub max_ranges_subsystem: u16,
    /// VS register.
    pub version: u32,
    /// Interrupt vectors in use.
    pub vectors: u32,
    /// Admin commands completed since probe.
    pub commands: u64,
    /// Of these, with an error status, plus those that timed out.
    pub failures: u64,
    /// Interrupts taken since probe.
    pub interrupts: u64,
    /// Serial number (SN), ASCII, space padded.
    pub serial: [u8; 20],
    /// Model number (MN), ASCII, space padded.
    pub model: [u8; 40],
    /// Firmware revision (FR), ASCII, space padded.
    pub firmware: [u8; 8],
    /// NVM subsystem name (SUBNQN), zero padded.
    pub subnqn: [u8; 256],
    /// 0.
    pub reserved2: [u8; 100],
}

impl MigdirtyCard {
    /// A question for the card at `address` or after it, from a caller that knows this version.
    pub const fn question(address: u32) -> Self {
        Self {
            argsz: MIN_ARGSZ,
            address,
            ..Self::ZERO
        }
    }

    /// All zero.
    pub const ZERO: Self = Self {
        argsz: 0,
        flags: 0,
        address: 0,
        controller_id: 0,
        controller_type: 0,
        min_granule: 0,
        max_granule: 0,
        reserved: [0; 3],
        max_ranges: 0,
        max_ranges_subsystem: 0,
        version: 0,
        vectors: 0,
        commands: 0,
        failures: 0,
        interrupts: 0,
        serial: [0; 20],
        model: [0; 40],
        firmware: [0; 8],
        subnqn: [0; 256],
        reserved2: [0; 100],
    };
}

const _: () = assert!(core::mem::size_of::<MigdirtyCard>() == MIN_ARGSZ as usize);
