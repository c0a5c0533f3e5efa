// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A tiny virtual machine monitor on `/dev/kvm`, for guests without an operating system: 64-bit
//! mode, 2 MiB of memory, and the place where VMFUNC's windows are.

mod code;
mod stats;
mod sys;
mod tables;
mod vcpu;

pub use code::{Program, RING3_PORT};
pub use vcpu::{End, Running, Stop, Vcpu, NOTHING};

use crate::vfio::memory::Memory;
use anyhow::{ensure, Context as _, Result};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY};
use kvm_ioctls::Kvm;
use stats::Stats;
use std::sync::Arc;
use sys::Machine;

/// Bytes of memory, from address 0.
pub const RAM_SIZE: u64 = 2 << 20;

/// Guest-physical and guest-virtual address of the gate's page, and of the slot of the windows.
pub const GATE: u64 = 512 << 30;

/// Where the gate is called.
pub const GATE_ENTRY: u64 = GATE + 0x100;

/// What the gate returns when it was aborted.
pub const ABORTED: u32 = 1;

/// Guest-virtual address by which the guest reaches the first 2 MiB of the windows with small
/// pages: what is at an offset from [`GATE`] with large pages is there at the same offset.
pub const SMALL: u64 = 1 << 40;

/// Guest-physical and guest-virtual address where tests may put memory of their own.
pub const SPARE: u64 = 1 << 30;

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

/// A number of a vCPU's report: its offset.
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
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    machine: Arc<Machine>,
    ram: Arc<Memory>,
    /// Of each vCPU.
    stats: Vec<Stats>,
}

impl Vm {
    /// Makes one with `vcpus` vCPUs, at most 8.
    pub fn new(vcpus: u64) -> Result<(Self, Vec<Vcpu>)> {
        ensure!(vcpus <= tables::MAX_VCPUS, "no room for {vcpus} vCPUs");
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let file = kvm.create_vm().context("cannot make a VM")?;
        // Three pages that VMX wants for itself, where nothing else is.
        file.set_tss_address(0xfffb_d000)
            .context("cannot set the address of the TSS")?;
        let machine = Arc::new(Machine::new(file));
        let ram = Arc::new(Memory::new(RAM_SIZE as usize)?);
        tables::fill(&ram);
        machine.set_slot(RAM_SLOT, 0, &ram, 0)?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let mut vm = Self {
            machine,
            ram,
            stats: Vec::new(),
        };
        let vcpus = (0..vcpus).map(|index| Vcpu::new(&mut vm, index, &cpuid));
        let vcpus = vcpus.collect::<Result<_>>()?;
        Ok((vm, vcpus))
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

    /// Exits of a vCPU to KVM so far, but those for an interrupt of the host.
    pub fn exits(&self, vcpu: usize) -> Result<u64> {
        let stats = self.stats.get(vcpu).context("no such vCPU")?;
        Ok(stats.get("exits")?.saturating_sub(stats.get("irq_exits")?))
    }
}

/// Why guests cannot run here. `None`: they can.
pub fn obstacle() -> Option<String> {
    const ADDRESS_SIZES: u32 = 0x8000_0008;
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return Some(format!("cannot open /dev/kvm: {error}")),
    };
    let cpuid = match kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES) {
        Ok(cpuid) => cpuid,
        Err(error) => return Some(format!("KVM tells no CPUID: {error}")),
    };
    let sizes = cpuid
        .as_slice()
        .iter()
        .find(|e| e.function == ADDRESS_SIZES);
    let bits = sizes.map_or(36, |e| e.eax & 0xff);
    (bits < ADDRESS_BITS).then(|| format!("{bits} physical address bits, {ADDRESS_BITS} needed"))
}
