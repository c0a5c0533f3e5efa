// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/migdirty` as the test programs use it: questions, answers, and what must be left of it.

use crate::ktap::Outcome;
use crate::sys::ioctl_on;
use crate::sysfs::{self, Function};
use crate::{check, check_eq, module};
use migdirty_uapi::{MigdirtyCard, MIGDIRTY_CARD_LIVE, MIGDIRTY_GET_CARD};
use rustix::io::Errno;
use std::fs::File;
use std::mem::{offset_of, size_of};
use std::path::Path;

/// The character device.
pub const DEVICE: &str = "/dev/migdirty";
/// The module and its PCI driver.
pub const DRIVER: &str = "migdirty";
/// Size of the structure.
pub const KNOWN: usize = size_of::<MigdirtyCard>();

/// Opens it.
pub fn open() -> std::io::Result<File> {
    File::options().read(true).write(true).open(DEVICE)
}

/// A question as bytes.
pub fn bytes_of(card: &MigdirtyCard) -> Vec<u8> {
    let mut bytes = vec![0; KNOWN];
    bytes[..4].copy_from_slice(&card.argsz.to_ne_bytes());
    bytes[4..8].copy_from_slice(&card.flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&card.address.to_ne_bytes());
    bytes
}

/// The bytes of an answer, and the parts of it that the tests look at.
#[derive(Clone, Debug)]
pub struct Answer(pub Vec<u8>);

impl Answer {
    /// The bytes from `offset` on.
    pub fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0[offset..offset + N].try_into().unwrap()
    }

    /// The 32-bit number at `offset`.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.array(offset))
    }

    /// The 64-bit number at `offset`.
    pub fn u64(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.array(offset))
    }

    /// The text at `offset`, without what it is padded with.
    pub fn text(&self, offset: usize, length: usize) -> String {
        String::from_utf8_lossy(&self.0[offset..offset + length])
            .trim_end_matches([' ', '\0'])
            .to_owned()
    }

    /// Where the card is.
    pub fn address(&self) -> u32 {
        self.u32(offset_of!(MigdirtyCard, address))
    }

    /// Whether it is said to answer commands.
    pub fn is_live(&self) -> bool {
        self.u32(offset_of!(MigdirtyCard, flags)) & MIGDIRTY_CARD_LIVE != 0
    }

    /// Commands since it was bound.
    pub fn commands(&self) -> u64 {
        self.u64(offset_of!(MigdirtyCard, commands))
    }

    /// Of these, the ones that failed, and those that timed out.
    pub fn failures(&self) -> u64 {
        self.u64(offset_of!(MigdirtyCard, failures))
    }

    /// Interrupts since it was bound.
    pub fn interrupts(&self) -> u64 {
        self.u64(offset_of!(MigdirtyCard, interrupts))
    }
}

/// Asks for the first card from `address` on.
pub fn get(file: &File, address: u32) -> Result<Answer, Errno> {
    let mut buffer = bytes_of(&MigdirtyCard::question(address));
    ioctl_on(file, MIGDIRTY_GET_CARD, &mut buffer)?;
    Ok(Answer(buffer))
}

/// The controller is disabled and may not touch memory.
pub fn is_quiet(function: &Function) -> Outcome {
    const CC: usize = 0x14;
    const CSTS: usize = 0x1c;
    check_eq!(function.command()? & 4, 0, "bus master of a free card");
    let (cc, csts) = function.with_registers(|bar| Ok((bar.read32(CC)?, bar.read32(CSTS)?)))?;
    check_eq!(cc & 1, 0, "CC.EN of a free card");
    check_eq!(csts & 3, 0, "CSTS.RDY and CSTS.CFS of a free card");
    Ok(())
}

/// The module is unloaded, and nothing is left of it.
pub fn gone() -> Outcome {
    check!(!Path::new(DEVICE).exists(), "{DEVICE} is left");
    check!(!sysfs::has_driver(DRIVER), "the PCI driver is left");
    check!(!module::is_loaded(DRIVER), "the module is left");
    Ok(())
}
