// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A tiny virtual machine monitor on `/dev/kvm`, for guests without an operating system: 64-bit
//! mode, 2 MiB of memory, and the place where VMFUNC's windows are.

mod code;
mod events;
mod stats;
mod sys;
mod tables;
mod vcpu;

pub use code::{Program, Work, AROUND};
pub use events::Event;
pub use vcpu::{End, Running, Stop, Vcpu, NOTHING};

use crate::vfio::memory::Memory;
use anyhow::{ensure, Context as _, Result};
use kvm_bindings::{
    CpuId, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MAX_CPUID_ENTRIES,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY,
};
use kvm_ioctls::Kvm;
use stats::Stats;
use std::sync::Arc;
use sys::Machine;

/// Bytes of memory, from address 0.
pub const RAM_SIZE: u64 = 2 << 20;

/// Guest-physical and guest-virtual address of the gate's page, and of the slot of the windows.
pub const GATE: u64 = 512 << 30;

/// Where the gate is called to copy.
pub const GATE_COPY: u64 = GATE + 0x100;

/// Where it is called to load, store, and exchange a word.
pub const GATE_LOAD: u64 = GATE + 0x140;
/// As [`GATE_LOAD`].
pub const GATE_STORE: u64 = GATE + 0x180;
/// As [`GATE_LOAD`].
pub const GATE_EXCHANGE: u64 = GATE + 0x1c0;

/// What the gate returns when it was aborted.
pub const ABORTED: u8 = 1;

/// Guest-virtual address by which the guest reaches the first 2 MiB of the windows with small
/// pages: what is at an offset from [`GATE`] with large pages is there at the same offset.
pub const SMALL: u64 = 1 << 40;

/// Guest-physical and guest-virtual address where tests may put memory of their own.
pub const SPARE: u64 = 1 << 30;

/// The most bytes of it.
pub const SPARE_SIZE: u64 = 16 << 20;

/// The leaf of CPUID that tells how many bits addresses have.
const ADDRESS_SIZES: u32 = 0x8000_0008;

/// Bits of a guest-physical address that the processor must have.
const ADDRESS_BITS: u32 = 40;

/// Selectors of ring 3.
const USER_CODE: u16 = 0x1b;
const USER_DATA: u16 = 0x23;

/// Of the report: not 0 asks a program to stop.
const STOP: u64 = 64;

const RAM_SLOT: u32 = 0;
const GATE_SLOT: u32 = 1;
const SPARE_SLOT: u32 = 2;

/// A number of a vCPU's report: its offset. [`STOP`] is among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// What it went through.
    Rounds = 0,
    /// Rounds after which the data was not right.
    Errors = 8,
    /// Copies that the gate aborted.
    Aborts = 16,
    /// Copies that the gate refused.
    Refusals = 24,
    /// Non-maskable interrupts.
    Nmis = 32,
    /// Invalid opcodes.
    Faults = 40,
    /// Debug exceptions.
    Debugs = 48,
    /// Machine checks.
    Checks = 56,
    /// The last generation that was seen.
    Seen = 72,
    /// Copies that ended with zeroes.
    Blanks = 80,
    /// A word with a byte that was neither.
    Wrong = 88,
    /// System-management interrupts. Those of all vCPUs are in the report of the first one.
    Smis = 96,
    /// Invalid opcodes in system-management mode, likewise.
    SmmFaults = 104,
    /// INT3s.
    Traps = 112,
}

/// Memory of which KVM can log what the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// All that a guest has from the start.
    Ram = RAM_SLOT as isize,
    /// What is at [`SPARE`].
    Spare = SPARE_SLOT as isize,
}

/// A dirty log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyLog(Vec<u64>);

impl DirtyLog {
    /// Numbers of the pages that are in it.
    pub fn pages(&self) -> Vec<usize> {
        let bit = |page: &usize| self.0[page / 64] >> (page % 64) & 1 != 0;
        (0..self.0.len() * 64).filter(bit).collect()
    }
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    machine: Arc<Machine>,
    ram: Arc<Memory>,
    cpuid: CpuId,
    /// Of each vCPU.
    stats: Vec<Stats>,
}

impl Vm {
    /// Makes one with `vcpus` vCPUs, at most 8.
    pub fn new(vcpus: u64) -> Result<(Self, Vec<Vcpu>)> {
        Self::with(vcpus, false, |_| {})
    }

    /// One with a vCPU that waits in KVM while it is halted, because KVM has its interrupt controllers.
    pub fn that_waits() -> Result<(Self, Vec<Vcpu>)> {
        Self::with(1, true, |_| {})
    }

    /// One whose guest believes in so many bits of a physical address.
    pub fn narrow(vcpus: u64, bits: u32) -> Result<(Self, Vec<Vcpu>)> {
        Self::with(vcpus, false, |cpuid| {
            let entries = cpuid.as_mut_slice().iter_mut();
            for entry in entries.filter(|e| e.function == ADDRESS_SIZES) {
                entry.eax = entry.eax & !0xff | bits;
            }
        })
    }

    fn with(
        vcpus: u64,
        interrupts: bool,
        change: impl FnOnce(&mut CpuId),
    ) -> Result<(Self, Vec<Vcpu>)> {
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let file = kvm.create_vm().context("cannot make a VM")?;
        // Three pages that VMX wants for itself, where nothing else is.
        file.set_tss_address(0xfffb_d000)
            .context("cannot set the address of the TSS")?;
        if interrupts {
            let created = file.create_irq_chip();
            created.context("cannot make interrupt controllers")?;
        }
        let machine = Arc::new(Machine::new(file));
        let ram = Arc::new(Memory::private(RAM_SIZE as usize)?);
        tables::fill(&ram);
        machine.set_slot(RAM_SLOT, 0, &ram, 0)?;
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        change(&mut cpuid);
        let mut vm = Self {
            machine,
            ram,
            cpuid,
            stats: Vec::new(),
        };
        let vcpus = (0..vcpus).map(|_| vm.add_vcpu());
        let vcpus = vcpus.collect::<Result<_>>()?;
        Ok((vm, vcpus))
    }

    /// Makes one more vCPU.
    pub fn add_vcpu(&mut self) -> Result<Vcpu> {
        let index = self.stats.len() as u64;
        ensure!(index < tables::MAX_VCPUS, "no room for vCPU {index}");
        Vcpu::new(self, index)
    }

    /// Its file descriptor, for an ioctl that takes one.
    pub fn raw_fd(&self) -> i32 {
        self.machine.raw_fd()
    }

    /// Shows the default face of the gate to the guest, read-only.
    pub fn set_gate(&self, gate: &Arc<Memory>) -> Result<()> {
        let slot = self
            .machine
            .set_slot(GATE_SLOT, GATE, gate, KVM_MEM_READONLY);
        slot.context("the gate")
    }

    /// Takes it away, and lets go of the memory.
    pub fn clear_gate(&self) -> Result<()> {
        self.machine.clear_slot(GATE_SLOT)
    }

    /// Shows memory to the guest at [`SPARE`].
    pub fn set_spare(&self, memory: &Arc<Memory>) -> Result<()> {
        self.machine.set_slot(SPARE_SLOT, SPARE, memory, 0)
    }

    /// The same so that what the guest writes there is for the VMM to answer, as to a ROM.
    pub fn set_spare_read_only(&self, memory: &Arc<Memory>) -> Result<()> {
        self.machine
            .set_slot(SPARE_SLOT, SPARE, memory, KVM_MEM_READONLY)
    }

    /// Shows it at another address.
    pub fn set_spare_at(&self, address: u64, memory: &Arc<Memory>) -> Result<()> {
        self.machine.set_slot(SPARE_SLOT, address, memory, 0)
    }

    /// Moves what is there to another address.
    pub fn move_spare(&self, address: u64) -> Result<()> {
        self.machine.move_slot(SPARE_SLOT, address)
    }

    /// Gives system-management mode, which has an address space of its own, the same memory. False:
    /// this KVM knows no such mode.
    pub fn set_smm(&self) -> Result<bool> {
        /// The second address space (KVM_CAP_MULTI_ADDRESS_SPACE).
        const SMM_RAM: u32 = 1 << 16 | RAM_SLOT;
        if !self.machine.has_smm() {
            return Ok(false);
        }
        // CAST: an address in 2 MiB.
        self.ram.write(code::SMM as usize, code::smm_bytes());
        self.machine.set_slot(SMM_RAM, 0, &self.ram, 0)?;
        Ok(true)
    }

    /// Has KVM log what the guest writes, or no longer.
    pub fn set_logging(&self, area: Area, on: bool) -> Result<()> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        self.machine.change_slot(area as u32, flags)
    }

    /// Lets the log stay as it is when it is read (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), and if
    /// wished has it begin with all pages dirty (KVM_DIRTY_LOG_INITIALLY_SET).
    pub fn set_manual_log(&self, initially_set: bool) -> Result<()> {
        let set = if initially_set {
            KVM_DIRTY_LOG_INITIALLY_SET
        } else {
            0
        };
        self.machine
            .set_manual_dirty_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | set)
    }

    /// Reads the log.
    pub fn log(&self, area: Area) -> Result<DirtyLog> {
        self.machine.dirty_log(area as u32).map(DirtyLog)
    }

    /// Clears in the log what is in `log`.
    pub fn clear_log(&self, area: Area, log: &mut DirtyLog) -> Result<()> {
        self.machine.clear_dirty_log(area as u32, &mut log.0)
    }

    /// Takes it away.
    pub fn clear_spare(&self) -> Result<()> {
        self.machine.clear_slot(SPARE_SLOT)
    }

    /// Guest address of a vCPU's buffer of four pages.
    pub fn buffer(vcpu: u64) -> u64 {
        tables::buffer(vcpu)
    }

    /// Reads guest memory. Panics beyond its end.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        // CAST: what is too large is beyond the end.
        self.ram.read(address as usize, data);
    }

    /// Writes guest memory. Panics beyond its end.
    pub fn write(&self, address: u64, data: &[u8]) {
        // CAST: as above.
        self.ram.write(address as usize, data);
    }

    /// A number of a vCPU's report.
    pub fn count(&self, vcpu: u64, count: Count) -> u64 {
        let mut data = [0; 8];
        self.read(tables::report(vcpu) + count as u64, &mut data);
        u64::from_le_bytes(data)
    }

    /// Asks the program of a vCPU to stop at the end of a round.
    pub fn ask_to_stop(&self, vcpu: u64) {
        self.write(tables::report(vcpu) + STOP, &1_u64.to_le_bytes());
    }

    /// Whether a vCPU waits in KVM, halted.
    pub fn is_waiting(&self, vcpu: usize) -> Result<bool> {
        let stats = self.stats.get(vcpu).context("no such vCPU")?;
        Ok(stats.get("blocking")? != 0)
    }

    /// Exits of a vCPU to KVM so far, but those for an interrupt of the host.
    pub fn exits(&self, vcpu: usize) -> Result<u64> {
        let stats = self.stats.get(vcpu).context("no such vCPU")?;
        Ok(stats.get("exits")?.saturating_sub(stats.get("irq_exits")?))
    }
}

/// Bits of a guest-physical address.
pub fn address_bits() -> Result<u32> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let cpuid = cpuid.context("KVM tells no CPUID")?;
    let mut entries = cpuid.as_slice().iter();
    let sizes = entries.find(|e| e.function == ADDRESS_SIZES);
    Ok(sizes.map_or(36, |e| e.eax & 0xff))
}

/// Why guests cannot run here. `None`: they can.
pub fn obstacle() -> Option<String> {
    let bits = match address_bits() {
        Ok(bits) => bits,
        Err(error) => return Some(format!("{error:#}")),
    };
    (bits < ADDRESS_BITS).then(|| format!("{bits} physical address bits, {ADDRESS_BITS} needed"))
}
