// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/migdirty` as the test programs use it: questions, answers, and what must be left of it.

use crate::ktap::Outcome;
use crate::sys::{address_of, address_of_bytes, ioctl_on, ioctl_with};
use crate::sysfs::{self, Function};
use crate::vfio::log::{range, Pages, Range};
use crate::{check, check_eq, module};
use migdirty_uapi::{
    MigdirtyCard, MigdirtyFunctionInfo, MigdirtyIdentity, MigdirtyLogStart, MigdirtyLogSync,
    MigdirtyRange, MigdirtyState, MigdirtyTarget, MAX_STATE, MIGDIRTY_CARD_LIVE, MIGDIRTY_GET_CARD,
    MIGDIRTY_GET_FUNCTION, MIGDIRTY_GET_IDENTITY, MIGDIRTY_LOG_START, MIGDIRTY_LOG_STOP,
    MIGDIRTY_LOG_SYNC, MIGDIRTY_PAUSE, MIGDIRTY_RESTORE, MIGDIRTY_RESUME, MIGDIRTY_SAVE,
    MIGDIRTY_SYNC_COMPLETE, MIGDIRTY_SYNC_MORE,
};
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

/// A function as tools have it.
#[derive(Debug)]
pub struct Tool<'a> {
    /// `/dev/migdirty`.
    pub file: &'a File,
    /// The function's address.
    pub address: u32,
}

/// What a sync found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Ranges, as they came.
    pub ranges: Vec<Range>,
    /// There is more than the room.
    pub more: bool,
    /// The function is suspended, and nothing is left.
    pub complete: bool,
}

impl Synced {
    /// The pages of its ranges.
    pub fn pages(&self) -> Pages {
        self.ranges.iter().flat_map(|range| range.pages()).collect()
    }
}

/// A controller state, and in which form it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Version of the NVMe Controller State.
    pub version: u16,
    /// Format of the vendor's part.
    pub uuid: [u8; 16],
    /// The state.
    pub data: Vec<u8>,
}

impl Tool<'_> {
    /// Describes it.
    pub fn info(&self) -> Result<MigdirtyFunctionInfo, Errno> {
        let mut info = MigdirtyFunctionInfo::question(self.address);
        ioctl_with(self.file, MIGDIRTY_GET_FUNCTION, &mut info)?;
        Ok(info)
    }

    fn order(&self, number: u32) -> Result<(), Errno> {
        ioctl_with(
            self.file,
            number,
            &mut MigdirtyTarget::question(self.address),
        )
    }

    /// Suspends it.
    pub fn pause(&self) -> Result<(), Errno> {
        self.order(MIGDIRTY_PAUSE)
    }

    /// Lets it run.
    pub fn resume(&self) -> Result<(), Errno> {
        self.order(MIGDIRTY_RESUME)
    }

    /// Starts a log; gives the granule.
    pub fn log_start(&self, ranges: &[Range], granule: u64) -> Result<u64, Errno> {
        let of = |range: &Range| MigdirtyRange {
            iova: range.iova,
            length: range.length,
        };
        let mut list: Vec<_> = ranges.iter().map(of).collect();
        let mut start = MigdirtyLogStart {
            // CAST: tests have few ranges.
            count: list.len() as u32,
            granule,
            ranges: address_of(&mut list),
            ..MigdirtyLogStart::question(self.address)
        };
        ioctl_with(self.file, MIGDIRTY_LOG_START, &mut start)?;
        Ok(start.granule)
    }

    /// Ends the log.
    pub fn log_stop(&self) -> Result<(), Errno> {
        self.order(MIGDIRTY_LOG_STOP)
    }

    /// Reads what was written in `window`, `room` ranges at most.
    pub fn log_sync(&self, window: Range, room: u32) -> Result<Synced, Errno> {
        let mut list = vec![MigdirtyRange::ZERO; room as usize];
        let mut sync = MigdirtyLogSync {
            count: room,
            iova: window.iova,
            length: window.length,
            ranges: address_of(&mut list),
            ..MigdirtyLogSync::question(self.address)
        };
        ioctl_with(self.file, MIGDIRTY_LOG_SYNC, &mut sync)?;
        list.truncate(sync.count as usize);
        Ok(Synced {
            ranges: list.iter().map(|r| range(r.iova, r.length)).collect(),
            more: sync.flags & MIGDIRTY_SYNC_MORE != 0,
            complete: sync.flags & MIGDIRTY_SYNC_COMPLETE != 0,
        })
    }

    /// Gets its state into `room` bytes; the size that is needed when they are too few.
    pub fn save_into(&self, room: usize) -> Result<Result<State, u64>, Errno> {
        let mut data = vec![0; room];
        let mut state = MigdirtyState {
            data: address_of_bytes(&mut data),
            size: room as u64,
            ..MigdirtyState::question(self.address)
        };
        match ioctl_with(self.file, MIGDIRTY_SAVE, &mut state) {
            Ok(()) => {}
            Err(Errno::NOSPC) => return Ok(Err(state.size)),
            Err(error) => return Err(error),
        }
        // CAST: within the room.
        data.truncate(state.size as usize);
        Ok(Ok(State {
            version: state.version,
            uuid: state.uuid,
            data,
        }))
    }

    /// Gets its state.
    pub fn save(&self) -> Result<State, Errno> {
        // CAST: 64-bit machines only.
        self.save_into(MAX_STATE as usize / 8)?
            .map_err(|_| Errno::NOSPC)
    }

    /// The identity record, of at most `room` bytes; `ENOSPC` when they are too few.
    pub fn identity(&self, room: usize) -> Result<Vec<u8>, Errno> {
        self.identity_into(room)?.map_err(|_| Errno::NOSPC)
    }

    /// The same; the size that is needed when the room is too small.
    pub fn identity_into(&self, room: usize) -> Result<Result<Vec<u8>, u32>, Errno> {
        let mut data = vec![0; room];
        let mut identity = MigdirtyIdentity {
            data: address_of_bytes(&mut data),
            // CAST: tests have little room.
            size: room as u32,
            ..MigdirtyIdentity::question(self.address)
        };
        match ioctl_with(self.file, MIGDIRTY_GET_IDENTITY, &mut identity) {
            Ok(()) => {}
            Err(Errno::NOSPC) => return Ok(Err(identity.size)),
            Err(error) => return Err(error),
        }
        data.truncate(identity.size as usize);
        Ok(Ok(data))
    }

    /// Sets its state.
    pub fn restore(&self, from: &State) -> Result<(), Errno> {
        let mut data = from.data.clone();
        let mut state = MigdirtyState {
            version: from.version,
            uuid: from.uuid,
            data: address_of_bytes(&mut data),
            size: data.len() as u64,
            ..MigdirtyState::question(self.address)
        };
        ioctl_with(self.file, MIGDIRTY_RESTORE, &mut state)
    }
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
