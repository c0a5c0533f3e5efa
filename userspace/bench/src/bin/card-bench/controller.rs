// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An NVMe controller of the card, as a driver that polls has it: enabled, with an admin queue and,
//! for an I/O controller, one pair of I/O queues without interrupts.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use zeroshift_nvme::command::{admin, feature, Command};
use zeroshift_nvme::completion::{phase_of_dword, Completion, PHASE_DWORD};
use zeroshift_nvme::hmlm::track_send::{self, TrackSend};
use zeroshift_nvme::hmlm::MemoryRange;
use zeroshift_nvme::registers::{self, Aqa, Cc, Csts};

use crate::client::{Client, Region};
use crate::queue::Queue;
use crate::sys::Ram;

/// How long the card may take for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// Where things are in RAM.
const ADMIN_SQ: u64 = 0x0000;
const ADMIN_CQ: u64 = 0x1000;
const SHADOW: u64 = 0x2000;
const EVENT_INDICES: u64 = 0x3000;
const PAGE: u64 = 0x4000;
const IO_CQ: u64 = 0x1_0000;
const IO_SQ: u64 = 0x2_0000;
/// Data of I/O commands begins here.
pub(crate) const DATA: u64 = 0x10_0000;

/// Entries of both admin queues.
const ADMIN_ENTRIES: u16 = 16;
/// Entries of both I/O queues, as many as Linux makes. With each round, a driver passes an EventIdx
/// that the card left behind, which costs a register write.
const IO_ENTRIES: u16 = 1024;

/// How a driver says that it has moved a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doorbells {
    /// A register write for each.
    Trapped,
    /// In memory, with a register write when EventIdx asks for one.
    Shadow,
}

/// See the module.
pub(crate) struct Controller {
    pub(crate) client: Client,
    pub(crate) ram: Ram,
    tail: u16,
    head: u16,
    phase: bool,
    cid: u16,
}

impl Controller {
    /// Connects to a function, gives it `ram` bytes of RAM, and enables it.
    pub(crate) fn enable(socket: &Path, ram: usize) -> Result<Self> {
        let mut client = Client::connect(socket)?;
        let ram = Ram::new(ram).context("guest RAM")?;
        client.map(&ram).context("map guest RAM")?;
        // PCI command register: memory space and bus master.
        client.write(Region::Config, 4, &[6, 0])?;
        let aqa = Aqa::default()
            .with_asqs(ADMIN_ENTRIES - 1)
            .with_acqs(ADMIN_ENTRIES - 1);
        client.write(Region::Bar0, registers::AQA, &aqa.0.to_le_bytes())?;
        client.write(Region::Bar0, registers::ASQ, &ADMIN_SQ.to_le_bytes())?;
        client.write(Region::Bar0, registers::ACQ, &ADMIN_CQ.to_le_bytes())?;
        // Entries of 2^6 and 2^4 bytes.
        let cc = Cc::default().with_iosqes(6).with_iocqes(4).with_en(true);
        client.write(Region::Bar0, registers::CC, &cc.0.to_le_bytes())?;
        let end = Instant::now() + LIMIT;
        loop {
            let csts = Csts(client.read(Region::Bar0, registers::CSTS)?);
            ensure!(!csts.cfs(), "the controller has failed");
            if csts.rdy() {
                break;
            }
            ensure!(Instant::now() < end, "the controller does not become ready");
        }
        Ok(Self {
            client,
            ram,
            tail: 0,
            head: 0,
            phase: true,
            cid: 0,
        })
    }

    /// Runs an admin command to its completion; an error status is an error.
    pub(crate) fn admin(&mut self, mut command: Command) -> Result<Completion> {
        self.cid = self.cid.wrapping_add(1);
        command.cid = self.cid;
        let at = ADMIN_SQ + u64::from(self.tail) * Command::SIZE as u64;
        self.ram.write(at, &command.to_bytes());
        self.tail = (self.tail + 1) % ADMIN_ENTRIES;
        let doorbell = registers::submission_tail_doorbell(0, 0);
        let value = u32::from(self.tail).to_le_bytes();
        self.client.write(Region::Bar0, doorbell, &value)?;

        let at = ADMIN_CQ + u64::from(self.head) * Completion::SIZE as u64;
        let end = Instant::now() + LIMIT;
        while phase_of_dword(self.ram.load(at + PHASE_DWORD as u64)) != self.phase {
            ensure!(Instant::now() < end, "no completion of an admin command");
        }
        let mut entry = [0; Completion::SIZE];
        self.ram.read(at, &mut entry);
        self.head = (self.head + 1) % ADMIN_ENTRIES;
        self.phase ^= self.head == 0;
        let doorbell = registers::completion_head_doorbell(0, 0);
        let value = u32::from(self.head).to_le_bytes();
        self.client.write(Region::Bar0, doorbell, &value)?;
        let completion = Completion::from_bytes(&entry);
        if !completion.status.is_success() {
            bail!(
                "admin command {:02x}h: {:?}",
                command.opcode,
                completion.status
            );
        }
        Ok(completion)
    }

    /// Makes one pair of I/O queues.
    pub(crate) fn io_queue(&mut self, doorbells: Doorbells) -> Result<Queue> {
        let mut set_features = Command::new(admin::SET_FEATURES);
        set_features.cdw10 = feature::NUMBER_OF_QUEUES.into();
        self.admin(set_features)?;
        const CONTIGUOUS: u32 = 1;
        let size = u32::from(IO_ENTRIES - 1) << 16;
        let mut create = Command::new(admin::CREATE_IO_CQ);
        (create.prp1, create.cdw10, create.cdw11) = (IO_CQ, size | 1, CONTIGUOUS);
        self.admin(create)?;
        create.opcode = admin::CREATE_IO_SQ;
        (create.prp1, create.cdw11) = (IO_SQ, 1 << 16 | CONTIGUOUS);
        self.admin(create)?;
        if doorbells == Doorbells::Shadow {
            let mut config = Command::new(admin::DOORBELL_BUFFER_CONFIG);
            (config.prp1, config.prp2) = (SHADOW, EVENT_INDICES);
            self.admin(config)?;
        }
        Ok(Queue::new(IO_SQ, IO_CQ, IO_ENTRIES, doorbells))
    }

    /// Starts tracking of the first `bytes` of memory of another controller, with granules of 4 KiB.
    pub(crate) fn start_tracking(&mut self, controller: u16, bytes: u64) -> Result<()> {
        let range = MemoryRange {
            address: 0,
            granules: u32::try_from(bytes / 0x1000)?,
        };
        let mut list = [0; 64];
        let len = track_send::encode(&mut list, 0, [range]).context("encode the list")?;
        self.ram.write(PAGE, &list[..len.next_multiple_of(4)]);
        let start = TrackSend::TrackMemory {
            controller,
            start: true,
        };
        self.admin(start.to_command(PAGE, 0))?;
        Ok(())
    }

    /// Ends it.
    pub(crate) fn stop_tracking(&mut self, controller: u16) -> Result<()> {
        let stop = TrackSend::TrackMemory {
            controller,
            start: false,
        };
        self.admin(stop.to_command(0, 0))?;
        Ok(())
    }
}

/// Offset in RAM of the shadow doorbell or EventIdx `index` (two for each queue pair).
pub(crate) fn shadow(index: u64) -> (u64, u64) {
    (SHADOW + index * 4, EVENT_INDICES + index * 4)
}
