// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Get Log Page command and the pages it serves (NVMe Base 2.1, section 5.1.12).
//!
//! Owned by the admin command set. A page is built whole, then the asked-for part is sent, zeroes
//! beyond its end; lengths and offsets come from the guest and are bounded by MDTS first.

use std::collections::VecDeque;

use zeroshift_nvme::command::{log, Command, NSID_ALL};
use zeroshift_nvme::nvm::BlockCommand;
use zeroshift_nvme::smart::{self, SmartLogMut};
use zeroshift_nvme::status::Status;

use super::features::{self, TEMPERATURE};
use super::{identify, Admin, Context, MAX_TRANSFER};
use crate::counters::Counters;
use crate::nvme::io;
use crate::nvme::migration::state::{self, ERROR_ENTRY};
use crate::pci::Refused;

/// Entries of the Error Information log page.
pub(super) const ERROR_ENTRIES: u8 = 16;

/// Commands Supported and Effects bit 0: Command Supported (CSUPP).
const EFFECT_SUPPORTED: u32 = 1;
/// Bit 1: Logical Block Content Change (LBCC).
const EFFECT_CHANGES_DATA: u8 = 1 << 1;

/// Feature Identifiers Supported and Effects.
const FEATURE_EFFECTS: u8 = 0x12;

const PAGES: [u8; 6] = [
    log::SUPPORTED_PAGES,
    log::ERROR_INFORMATION,
    log::SMART_HEALTH,
    log::FIRMWARE_SLOT,
    log::COMMAND_EFFECTS,
    FEATURE_EFFECTS,
];

impl Admin {
    /// Runs a Get Log Page command.
    pub(super) fn get_log_page(
        &mut self,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<(), Status> {
        let identifier = command.cdw10 as u8;
        let retain = command.cdw10 & 1 << 15 != 0;
        let dwords = u64::from(command.cdw10 >> 16) | u64::from(command.cdw11 & 0xffff) << 16;
        let len = (dwords + 1) * 4;
        let offset = u64::from(command.cdw12) | u64::from(command.cdw13) << 32;
        let by_index = command.cdw14 & 1 << 23 != 0;

        let page = self.page(identifier, command.nsid, context)?;
        if len > MAX_TRANSFER || by_index || offset % 4 != 0 || offset > page.len() as u64 {
            return Err(Status::INVALID_FIELD);
        }
        // Both fit: the length is bounded by MDTS, the offset by the size of the page.
        let mut data = page[offset as usize..].to_vec();
        data.resize(len as usize, 0);
        context.send(command, &data)?;
        if !retain {
            self.events.log_page_read(identifier);
        }
        Ok(())
    }

    fn page(
        &self,
        identifier: u8,
        nsid: u32,
        context: &Context<'_, '_>,
    ) -> Result<Vec<u8>, Status> {
        match identifier {
            log::SUPPORTED_PAGES => Ok(supported_entries(256, PAGES, 1)),
            log::ERROR_INFORMATION => Ok(self.errors.page()),
            log::SMART_HEALTH => match nsid {
                0 | NSID_ALL => Ok(self.smart(context.bus.counters())),
                _ => Err(Status::INVALID_FIELD),
            },
            log::FIRMWARE_SLOT => Ok(firmware_slots()),
            log::COMMAND_EFFECTS => Ok(self.effects()),
            // Bit 0 supported, bit 21 scope: controller.
            FEATURE_EFFECTS => {
                let features = features::supported(&self.personality);
                Ok(supported_entries(256, features, 1 | 1 << 21))
            }
            _ => Err(Status::INVALID_LOG_PAGE),
        }
    }

    /// Commands Supported and Effects: admin commands, then I/O commands.
    fn effects(&self) -> Vec<u8> {
        let mut page = supported_entries(256, self.personality.commands(), EFFECT_SUPPORTED);
        let io = if self.personality.is_administrative() {
            &[][..]
        } else {
            &io::SUPPORTED
        };
        page.extend(supported_entries(256, io.iter().copied(), EFFECT_SUPPORTED));
        for opcode in io.iter().filter(|opcode| io::changes_data(**opcode)) {
            page[1024 + usize::from(*opcode) * 4] |= EFFECT_CHANGES_DATA;
        }
        page.resize(4096, 0);
        page
    }

    fn smart(&self, counters: &Counters) -> Vec<u8> {
        let mut page = [0; smart::SIZE];
        SmartLogMut::new(&mut page)
            .set_critical_warning(self.features.critical_warning())
            .set_temperature(TEMPERATURE)
            // Software does not wear.
            .set_spare(100)
            .set_spare_threshold(10)
            .set_units_read(smart::data_units(counters.io.bytes_read.get()).into())
            .set_units_written(smart::data_units(counters.io.bytes_written.get()).into())
            .set_read_commands(counters.io.reads.get().into())
            .set_write_commands(counters.io.writes.get().into())
            .set_error_entries(self.errors.count.into());
        page.to_vec()
    }
}

/// A page of `count` dwords, where the listed ones hold `value`.
fn supported_entries(count: usize, supported: impl IntoIterator<Item = u8>, value: u32) -> Vec<u8> {
    let mut page = vec![0; count * 4];
    for entry in supported {
        let at = usize::from(entry) * 4;
        page[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    page
}

fn firmware_slots() -> Vec<u8> {
    let mut page = vec![0; 512];
    // Slot 1 is active.
    page[0] = 1;
    page[8..16].fill(b' ');
    for (place, byte) in page[8..16].iter_mut().zip(identify::firmware().bytes()) {
        *place = byte;
    }
    page
}

/// The newest errors, newest first.
#[derive(Default)]
pub(super) struct ErrorLog {
    /// Errors since power-on.
    count: u64,
    entries: VecDeque<[u8; ERROR_ENTRY]>,
}

impl ErrorLog {
    /// Adds the error of a command.
    pub(super) fn record(&mut self, queue: u16, command: &Command, status: Status) {
        // Only I/O commands of this command set have blocks.
        let lba = match queue {
            0 => 0,
            _ => BlockCommand::from_command(command).slba,
        };
        self.add(queue, command.cid, status, command.nsid, lba);
    }

    /// Adds an error that no command caused: queue and command are FFFFh.
    pub(super) fn record_event(&mut self) {
        self.add(u16::MAX, u16::MAX, Status::SUCCESS, 0, 0);
    }

    fn add(&mut self, queue: u16, cid: u16, status: Status, nsid: u32, lba: u64) {
        self.count = self.count.wrapping_add(1);
        let mut entry = [0; ERROR_ENTRY];
        entry[0..8].copy_from_slice(&self.count.to_le_bytes());
        entry[8..10].copy_from_slice(&queue.to_le_bytes());
        entry[10..12].copy_from_slice(&cid.to_le_bytes());
        // The status field keeps the position it has in a completion: above the phase tag.
        entry[12..14].copy_from_slice(&(status.bits() << 1).to_le_bytes());
        // Parameter Error Location: not about a particular byte.
        entry[14..16].copy_from_slice(&[0xff; 2]);
        entry[16..24].copy_from_slice(&lba.to_le_bytes());
        entry[24..28].copy_from_slice(&nsid.to_le_bytes());
        self.entries.push_front(entry);
        self.entries.truncate(usize::from(ERROR_ENTRIES));
    }

    /// All of it, for a controller state.
    pub(super) fn save(&self) -> state::ErrorLog {
        state::ErrorLog {
            count: self.count,
            entries: self.entries.iter().copied().collect(),
        }
    }

    /// The log of a controller state.
    pub(super) fn restore(image: &state::ErrorLog) -> Result<Self, Refused> {
        if image.entries.len() > usize::from(ERROR_ENTRIES) {
            return Err(Refused::new("more errors than the log has entries"));
        }
        Ok(Self {
            count: image.count,
            entries: image.entries.iter().copied().collect(),
        })
    }

    /// Forgets the entries; counting goes on.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    fn page(&self) -> Vec<u8> {
        let mut page: Vec<u8> = self.entries.iter().flatten().copied().collect();
        page.resize(usize::from(ERROR_ENTRIES) * 64, 0);
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_log_keeps_the_newest_first_and_its_size() {
        let mut errors = ErrorLog::default();
        assert!(errors.page().iter().all(|&byte| byte == 0));
        for cid in 0..20 {
            let command = Command {
                cid,
                ..Command::new(0x06)
            };
            errors.record(0, &command, Status::INVALID_FIELD);
        }
        let page = errors.page();
        assert_eq!(page.len(), 16 * 64);
        assert_eq!((page[0], page[10]), (20, 19));
        assert_eq!((page[15 * 64], page[15 * 64 + 10]), (5, 4));
        assert_eq!(u16::from_le_bytes([page[12], page[13]]), 0x0002 << 1);
    }

    #[test]
    fn effects_pages_list_what_is_there() {
        let page = supported_entries(256, [0x06, 0x0c], 1);
        assert_eq!(page.len(), 1024);
        assert_eq!((page[0x06 * 4], page[0x0c * 4], page[0x3d * 4]), (1, 1, 0));
    }
}
