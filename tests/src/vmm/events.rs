// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What comes between the instructions of a vCPU that does not run at the moment.

use super::{tables, Program, Vcpu};
use anyhow::{Context as _, Result};
use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_segment, kvm_sregs};

/// Something that happens to a vCPU when it runs again, before its next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A non-maskable interrupt.
    Nmi,
    /// An interrupt into SMM, which returns at once.
    Smi,
    /// A debug exception.
    Debug,
    /// A machine check.
    Check,
}

impl Vcpu {
    /// Lets something happen.
    pub fn send(&self, event: Event) -> Result<()> {
        const DEBUG: u8 = 1;
        const MACHINE_CHECK: u8 = 18;
        match event {
            Event::Nmi => self.file.nmi().context("KVM_NMI"),
            Event::Smi => self.file.smi().context("KVM_SMI"),
            Event::Debug => self.raise(DEBUG),
            Event::Check => self.raise(MACHINE_CHECK),
        }
    }

    fn raise(&self, vector: u8) -> Result<()> {
        let mut events = self.file.get_vcpu_events()?;
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = 0;
        let set = self.file.set_vcpu_events(&events);
        set.context("KVM_SET_VCPU_EVENTS")
    }

    /// A breakpoint of the guest's own at an instruction, or none.
    pub fn set_breakpoint(&self, at: Option<u64>) -> Result<()> {
        // Bit 10 is always set; G0, for an instruction.
        let registers = kvm_debugregs {
            db: [at.unwrap_or(0), 0, 0, 0],
            dr6: 0xffff_0ff0,
            dr7: if at.is_some() { 0x402 } else { 0x400 },
            ..Default::default()
        };
        let set = self.file.set_debug_regs(&registers);
        set.context("KVM_SET_DEBUGREGS")
    }

    /// Continues at another program, with all other registers as they are.
    pub fn jump(&self, program: Program) -> Result<()> {
        let mut registers = self.file.get_regs()?;
        registers.rip = tables::CODE + program.offset();
        Ok(self.file.set_regs(&registers)?)
    }

    /// Resets it as a VMM does, to what KVM began with: real mode. It halts there, and is ready for
    /// programs again.
    pub fn reset(self) -> Result<Self> {
        let code = kvm_segment {
            base: 0,
            selector: 0,
            ..self.reset.cs
        };
        let real = kvm_sregs {
            cs: code,
            ..self.reset
        };
        self.file.set_sregs(&real)?;
        self.file.set_regs(&kvm_regs {
            rip: tables::CODE + Program::Halt.offset(),
            rflags: 2,
            ..Default::default()
        })?;
        let (vcpu, _) = self.go_on()?.wait_for_halt()?;
        let registers = tables::registers(vcpu.index, vcpu.reset);
        vcpu.file.set_sregs(&registers)?;
        Ok(vcpu)
    }
}
