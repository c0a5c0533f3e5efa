// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A polling NVMe driver: an admin queue and one pair of I/O queues, by VFIO.
//!
//! It remembers which pages the function wrote because it was asked to: those of data, and those of
//! completion queues ([`Nvme::take_written`]). Addresses are I/O addresses. What the queues are and
//! how far they came ([`Queues`]) is apart from the function, so a test can go on with another
//! function that has taken over the state.

use super::device::Device;
use super::dma::Dma;
use super::log::{range, Pages, PAGE};
use super::memory::Bar;
use anyhow::{bail, ensure, Context as _, Result};
use std::thread::yield_now;
use std::time::{Duration, Instant};
use zeroshift_nvme::command::{admin, cns, feature, Command};
use zeroshift_nvme::completion::{phase_of_dword, Completion, PHASE_DWORD};
use zeroshift_nvme::nvm::{io, BlockCommand};
use zeroshift_nvme::registers::{
    completion_head_doorbell, submission_tail_doorbell, Aqa, Cap, Cc, Csts, ACQ, AQA, ASQ, CAP, CC,
    CSTS,
};

/// How long a command, or a change of CSTS.RDY, may take. Machines here are emulated.
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of a block of the namespaces that the tests use.
pub const BLOCK: u64 = 512;
/// Blocks of a page.
pub const BLOCKS_OF_PAGE: u64 = PAGE / BLOCK;

/// A submission queue and its completion queue.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Identifier of both.
    pub id: u16,
    /// Entries of each.
    pub entries: u16,
    /// Address of the submission queue.
    pub submission: u64,
    /// Address of the completion queue.
    pub completion: u64,
    tail: u16,
    head: u16,
    phase: bool,
    next_cid: u16,
}

impl Pair {
    fn new(dma: &Dma, id: u16, entries: u16) -> Self {
        let pages = |size: usize| (usize::from(entries) * size).div_ceil(PAGE as usize) as u64;
        Self {
            id,
            entries,
            submission: dma.take(pages(Command::SIZE)),
            completion: dma.take(pages(Completion::SIZE)),
            tail: 0,
            head: 0,
            phase: true,
            next_cid: 0,
        }
    }

    fn slot(&self) -> u64 {
        self.completion + u64::from(self.head) * Completion::SIZE as u64
    }

    /// Takes the next completion, if it is there.
    fn take(&mut self, dma: &Dma) -> Option<Completion> {
        let at = self.slot();
        if phase_of_dword(dma.load32(at + PHASE_DWORD as u64)) != self.phase {
            return None;
        }
        let mut entry = [0; Completion::SIZE];
        dma.read(at, &mut entry);
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(Completion::from_bytes(&entry))
    }
}

/// The queues of a function, and how far they came.
#[derive(Clone, Debug)]
pub struct Queues {
    /// The admin queues.
    pub admin: Pair,
    /// The I/O queues.
    pub io: Pair,
}

impl Queues {
    fn new(dma: &Dma, wish: Wish) -> Self {
        Self {
            admin: Pair::new(dma, 0, 32),
            io: Pair::new(dma, 1, wish.entries),
        }
    }
}

/// What a test wants of the I/O queues.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Entries of each queue.
    pub entries: u16,
    /// MSI-X vector of the completion queue, if it is to interrupt.
    pub vector: Option<u16>,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            entries: 64,
            vector: None,
        }
    }
}

/// A function that runs.
#[derive(Debug)]
pub struct Nvme<'a> {
    /// The device.
    pub device: Device,
    /// Its registers.
    pub bar: Bar,
    /// Its queues.
    pub queues: Queues,
    dma: &'a Dma,
    written: Pages,
}

/// What has to happen within [`LIMIT`].
fn wait<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < LIMIT, "{what} takes more than {LIMIT:?}");
        yield_now();
    }
}

impl<'a> Nvme<'a> {
    /// Takes a device, whatever it did before, and starts it with fresh queues.
    pub fn start(device: Device, dma: &'a Dma, wish: Wish) -> Result<Self> {
        device.enable(true)?;
        let bar = device.map_bar().context("cannot map BAR0")?;
        let mut nvme = Self {
            device,
            bar,
            queues: Queues::new(dma, wish),
            dma,
            written: Pages::new(),
        };
        nvme.enable()?;
        nvme.create_queues(wish)?;
        Ok(nvme)
    }

    /// Starts it anew after a reset, with fresh queues where the old ones were.
    pub fn start_again(&mut self, wish: Wish) -> Result<()> {
        self.dma.take_back();
        self.queues = Queues::new(self.dma, wish);
        self.device.enable(true)?;
        self.enable()?;
        self.create_queues(wish)
    }

    /// Goes on with another function, which has taken over the state of this one, and gives the
    /// device of this one back.
    pub fn go_on_with(&mut self, device: Device) -> Result<Device> {
        device.enable(true)?;
        self.bar = device.map_bar().context("cannot map BAR0")?;
        Ok(std::mem::replace(&mut self.device, device))
    }

    /// The memory that it works with.
    pub fn dma(&self) -> &'a Dma {
        self.dma
    }

    fn csts(&self) -> Csts {
        Csts(self.bar.read32(CSTS))
    }

    /// Whether it is enabled and ready.
    pub fn is_ready(&self) -> bool {
        Cc(self.bar.read32(CC)).en() && self.csts().rdy()
    }

    /// Clears CC.EN and waits for CSTS.RDY to fall.
    pub fn disable(&self) -> Result<()> {
        let cc = Cc(self.bar.read32(CC));
        self.bar.write32(CC, cc.with_en(false).0);
        self.wait_ready(false)
    }

    fn wait_ready(&self, ready: bool) -> Result<()> {
        wait("a change of CSTS.RDY", || {
            let csts = self.csts();
            ensure!(!csts.is_gone(), "its registers are all ones");
            ensure!(!csts.cfs(), "CSTS.CFS is set");
            Ok((csts.rdy() == ready).then_some(()))
        })
    }

    fn enable(&mut self) -> Result<()> {
        self.disable()?;
        let pair = &self.queues.admin;
        let last = pair.entries - 1;
        self.bar
            .write32(AQA, Aqa(0).with_asqs(last).with_acqs(last).0);
        self.bar.write64(ASQ, pair.submission);
        self.bar.write64(ACQ, pair.completion);
        // Entries of 64 and 16 bytes.
        let cc = Cc(0).with_css(Cc::CSS_NVM).with_iosqes(6).with_iocqes(4);
        self.bar.write32(CC, cc.with_en(true).0);
        self.wait_ready(true)
    }

    fn create_queues(&mut self, wish: Wish) -> Result<()> {
        const PHYSICALLY_CONTIGUOUS: u32 = 1;
        const INTERRUPTS_ENABLED: u32 = 1 << 1;

        let both = Command {
            // One queue of each kind, 0's based.
            cdw10: u32::from(feature::NUMBER_OF_QUEUES),
            ..Command::new(admin::SET_FEATURES)
        };
        self.admin(both)?;
        let pair = self.queues.io.clone();
        let size = u32::from(pair.id) | u32::from(pair.entries - 1) << 16;
        let interrupt = wish
            .vector
            .map_or(0, |vector| INTERRUPTS_ENABLED | u32::from(vector) << 16);
        self.admin(Command {
            prp1: pair.completion,
            cdw10: size,
            cdw11: PHYSICALLY_CONTIGUOUS | interrupt,
            ..Command::new(admin::CREATE_IO_CQ)
        })?;
        self.admin(Command {
            prp1: pair.submission,
            cdw10: size,
            cdw11: PHYSICALLY_CONTIGUOUS | u32::from(pair.id) << 16,
            ..Command::new(admin::CREATE_IO_SQ)
        })?;
        Ok(())
    }

    fn stride(&self) -> u8 {
        Cap(self.bar.read64(CAP)).dstrd()
    }

    fn pair(&mut self, id: u16) -> &mut Pair {
        match id {
            0 => &mut self.queues.admin,
            _ => &mut self.queues.io,
        }
    }

    /// Puts a command into a queue; the function does not know it before [`Self::ring`].
    fn put(&mut self, id: u16, mut command: Command) -> u16 {
        let dma = self.dma;
        let pair = self.pair(id);
        command.cid = pair.next_cid;
        pair.next_cid = pair.next_cid.wrapping_add(1) & 0x7fff;
        let at = pair.submission + u64::from(pair.tail) * Command::SIZE as u64;
        dma.write(at, &command.to_bytes());
        pair.tail = (pair.tail + 1) % pair.entries;
        command.cid
    }

    fn ring(&mut self, id: u16) {
        let tail = self.pair(id).tail;
        let doorbell = submission_tail_doorbell(id, self.stride());
        self.bar.write32(doorbell, u32::from(tail));
    }

    /// The next completion of a queue, when it is there.
    fn poll(&mut self, id: u16) -> Option<Completion> {
        let dma = self.dma;
        let slot = self.pair(id).slot();
        let completion = self.pair(id).take(dma)?;
        self.written.insert(slot & !(PAGE - 1));
        let head = self.pair(id).head;
        let doorbell = completion_head_doorbell(id, self.stride());
        self.bar.write32(doorbell, u32::from(head));
        Some(completion)
    }

    /// Waits for the next completion of the I/O queue.
    pub fn next_completion(&mut self) -> Result<Completion> {
        wait("an I/O command", || Ok(self.poll(1)))
    }

    /// Whether a completion is in the I/O queue; takes none.
    pub fn has_completion(&self) -> bool {
        let pair = &self.queues.io;
        let dword = self.dma.load32(pair.slot() + PHASE_DWORD as u64);
        phase_of_dword(dword) == pair.phase
    }

    /// An admin command that has to succeed.
    pub fn admin(&mut self, command: Command) -> Result<Completion> {
        let cid = self.put(0, command);
        self.ring(0);
        let completion = wait("an admin command", || Ok(self.poll(0)))?;
        succeeded(&completion, cid)
            .with_context(|| format!("admin command {:#x}", command.opcode))?;
        Ok(completion)
    }

    /// Identify Controller, into the page at `iova`.
    pub fn identify(&mut self, iova: u64) -> Result<()> {
        self.admin(Command::identify(cns::CONTROLLER, 0, 0, iova))?;
        self.written.insert(iova);
        Ok(())
    }

    /// Identify Namespace, into the page at `iova`.
    pub fn identify_namespace(&mut self, nsid: u32, iova: u64) -> Result<()> {
        self.admin(Command::identify(cns::NAMESPACE, 0, nsid, iova))?;
        self.written.insert(iova);
        Ok(())
    }

    /// A command that reads or writes `length` bytes from block `slba` on, to or from `iova`. The
    /// list of its pages, when it needs one, goes to a page that is taken for it.
    fn block_command(&self, opcode: u8, slba: u64, iova: u64, length: u64) -> Command {
        let blocks = u32::try_from(length / BLOCK).unwrap_or(u32::MAX);
        let fields = BlockCommand {
            slba,
            blocks,
            control: 0,
        };
        let mut command = fields.to_command(opcode, 1);
        command.prp1 = iova;
        let rest: Vec<u64> = range(iova, length).pages().skip(1).collect();
        command.prp2 = match rest.as_slice() {
            [] => 0,
            [second] => *second,
            _ => {
                assert!(rest.len() <= 512, "one list of pages only");
                let list = self.dma.take(1);
                let bytes: Vec<u8> = rest.iter().flat_map(|p| p.to_le_bytes()).collect();
                self.dma.write(list, &bytes);
                list
            }
        };
        command
    }

    /// Puts a read of namespace 1 into the I/O queue; gives its command identifier.
    pub fn put_read(&mut self, slba: u64, iova: u64, length: u64) -> u16 {
        let command = self.block_command(io::READ, slba, iova, length);
        self.written.extend(range(iova, length).pages());
        self.put(1, command)
    }

    /// Puts a write to namespace 1 into the I/O queue; gives its command identifier.
    pub fn put_write(&mut self, slba: u64, iova: u64, length: u64) -> u16 {
        let command = self.block_command(io::WRITE, slba, iova, length);
        self.put(1, command)
    }

    /// Tells the function of all that was put into the I/O queue.
    pub fn ring_io(&mut self) {
        self.ring(1);
    }

    /// Reads `length` bytes of namespace 1 from block `slba` on to `iova`.
    pub fn read(&mut self, slba: u64, iova: u64, length: u64) -> Result<()> {
        let cid = self.put_read(slba, iova, length);
        self.ring(1);
        succeeded(&self.next_completion()?, cid).context("read")
    }

    /// Writes `length` bytes from `iova` to namespace 1 from block `slba` on.
    pub fn write(&mut self, slba: u64, iova: u64, length: u64) -> Result<()> {
        let cid = self.put_write(slba, iova, length);
        self.ring(1);
        succeeded(&self.next_completion()?, cid).context("write")
    }

    /// Makes the function write each of these pages, by one read of a page each, several at a time.
    pub fn write_pages(&mut self, pages: &Pages) -> Result<()> {
        let batch = usize::from(self.queues.io.entries) - 1;
        let pages: Vec<u64> = pages.iter().copied().collect();
        for batch in pages.chunks(batch) {
            let mut open: Vec<u16> = Vec::new();
            for page in batch {
                open.push(self.put_read(0, *page, PAGE));
            }
            self.ring(1);
            while !open.is_empty() {
                let completion = self.next_completion()?;
                let cid = completion.cid;
                let place = open.iter().position(|open| *open == cid);
                open.remove(place.with_context(|| format!("nobody sent command {cid}"))?);
                succeeded(&completion, cid).context("read of a page")?;
            }
        }
        Ok(())
    }

    /// The pages that the function has written since this was asked last, as far as it did what it
    /// was told.
    pub fn take_written(&mut self) -> Pages {
        std::mem::take(&mut self.written)
    }
}

/// A completion is of this command and says success.
pub fn succeeded(completion: &Completion, cid: u16) -> Result<()> {
    if completion.cid != cid {
        bail!("completion of command {}, not of {cid}", completion.cid);
    }
    ensure!(completion.status.is_success(), "{}", completion.status);
    Ok(())
}
