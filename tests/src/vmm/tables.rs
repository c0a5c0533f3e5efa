// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where things are in the guest's memory, and the tables that its processor walks (Intel SDM
//! volume 3, chapters 4 "Paging", 3.4.5 "Segment Descriptors", 6.14 and 7.7 for 64-bit mode).

use super::code::{self, USER};
use super::{GATE, RAM_SIZE, SMALL, SPARE, SPARE_SIZE, USER_CODE, USER_DATA};
use crate::vfio::memory::Memory;
use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

/// Of the code.
pub(super) const CODE: u64 = 0x1000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const TABLES: u64 = 0x1_0000;
const STACKS: u64 = 0x2_0000;
const REPORTS: u64 = 0x3_0000;
const BUFFERS: u64 = 0x4_0000;

const PAGE: u64 = 4096;
/// A page of the second level.
const LARGE: u64 = 2 << 20;
/// Guest-virtual address of the last page of the first vCPU's buffer, behind the page before it and
/// the gate.
pub(super) const CHEAT: u64 = GATE + 2 * PAGE;
/// RET, right behind it.
const RETURN: (u64, [u8; 1]) = (0x3_9000, [0xc3]);
/// What leads to [`CHEAT`].
pub(super) const CHEAT_ENTRY: u64 = TABLES + 5 * PAGE + 2 * 8;
/// What leads to the gate.
pub(super) const GATE_ENTRY: u64 = GATE | PRESENT | WRITE;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const FOR_USER: u64 = 1 << 2;
const LEAF: u64 = 1 << 7;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const TASK: u16 = 0x28;
/// Null, and by selector: code and data of ring 0, code and data of ring 3.
const DESCRIPTORS: [u64; 5] = [
    0,
    0x00af_9a00_0000_ffff,
    0x00cf_9200_0000_ffff,
    0x00af_fa00_0000_ffff,
    0x00cf_f200_0000_ffff,
];
/// An interrupt gate, present, of ring 0.
const INTERRUPT_GATE: u64 = 0x8e00;

/// Most vCPUs that there is room for.
pub(super) const MAX_VCPUS: u64 = 8;

/// End of a vCPU's stack.
pub(super) fn stack(vcpu: u64) -> u64 {
    STACKS + (vcpu + 1) * PAGE
}

/// A vCPU's report.
pub(super) const fn report(vcpu: u64) -> u64 {
    REPORTS + vcpu * PAGE
}

/// Four pages for what a vCPU copies.
pub(super) fn buffer(vcpu: u64) -> u64 {
    BUFFERS + vcpu * 4 * PAGE
}

/// Fills the guest's memory.
pub(super) fn fill(ram: &Memory) {
    let put = |address: u64, value: u64| put(ram, address, value);
    // CAST: an address in 2 MiB.
    ram.write(CODE as usize, code::bytes());

    let table = |n: u64| TABLES + n * PAGE;
    let link = |table: u64, index: u64, to: u64| put(table + index * 8, to);
    let kernel = PRESENT | WRITE;
    let user = kernel | FOR_USER;
    let top = |address: u64| address >> 39 & 511;
    // RAM where it is.
    link(table(0), 0, table(1) | kernel);
    link(table(1), 0, table(2) | kernel);
    link(table(2), 0, kernel | LEAF);
    // The gate and large pages of the windows where they are.
    link(table(0), top(GATE), table(3) | kernel);
    link(table(3), 0, table(4) | kernel);
    link(table(4), 0, table(5) | kernel);
    link(table(5), 0, GATE_ENTRY);
    for i in 1..=2 {
        link(table(5), i, (BUFFERS + (i + 1) * PAGE) | kernel);
    }
    link(table(5), 3, RETURN.0 | kernel);
    for i in 1..32 {
        link(table(4), i, (GATE + i * LARGE) | kernel | LEAF);
    }
    // Small pages of the first windows.
    link(table(0), top(SMALL), table(6) | kernel);
    link(table(6), 0, table(7) | kernel);
    link(table(7), 1, table(8) | kernel);
    for i in 0..512 {
        link(table(8), i, (GATE + LARGE + i * PAGE) | kernel);
    }
    // What tests put there, or nothing.
    link(table(1), SPARE >> 30 & 511, table(11) | kernel);
    for i in 0..SPARE_SIZE / LARGE {
        link(table(11), i, (SPARE + i * LARGE) | kernel | LEAF);
    }
    // RAM for ring 3.
    link(table(0), top(USER), table(9) | user);
    link(table(9), 0, table(10) | user);
    link(table(10), 0, user | LEAF);
    // The gate and the first large page of windows for it.
    link(table(0), top(USER + GATE), table(12) | user);
    link(table(12), 0, table(13) | user);
    link(table(13), 0, table(14) | user);
    link(table(14), 0, GATE_ENTRY | FOR_USER);
    link(table(13), 1, (GATE + LARGE) | user | LEAF);

    // CAST: an address in 2 MiB.
    ram.write(RETURN.0 as usize, &RETURN.1);

    for (i, descriptor) in (0..).zip(DESCRIPTORS) {
        put(GDT + i * 8, descriptor);
    }
    for (vector, offset) in code::handlers() {
        let at = IDT + u64::from(vector) * 16;
        let to = CODE + offset;
        let selector = u64::from(KERNEL_CODE);
        put(
            at,
            to & 0xffff | selector << 16 | INTERRUPT_GATE << 32 | (to & 0xffff_0000) << 32,
        );
        put(at + 8, to >> 32);
    }
    for vcpu in 0..MAX_VCPUS {
        // The stack for ring 0 is 4 bytes into the segment.
        let data = stack(vcpu).to_le_bytes();
        // CAST: an address in 2 MiB.
        ram.write((task(vcpu) + 4) as usize, &data);
    }
}

fn task(vcpu: u64) -> u64 {
    TSS + vcpu * 0x100
}

fn put(ram: &Memory, address: u64, value: u64) {
    assert!(address < RAM_SIZE, "no memory at {address:#x}");
    // CAST: an address in 2 MiB.
    ram.write(address as usize, &value.to_le_bytes());
}

/// Registers of a vCPU in 64-bit mode, on top of what KVM begins with.
pub(super) fn registers(vcpu: u64, old: kvm_sregs) -> kvm_sregs {
    let segment = |selector: u16, type_: u8| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        // CAST: two bits.
        dpl: (selector & 3) as u8,
        ..Default::default()
    };
    let data = kvm_segment {
        db: 1,
        ..segment(USER_DATA, 3)
    };
    kvm_sregs {
        cs: kvm_segment {
            l: 1,
            ..segment(KERNEL_CODE, 11)
        },
        ss: kvm_segment {
            db: 1,
            ..segment(KERNEL_DATA, 3)
        },
        // Those of ring 3 also in ring 0, so that the way there does not clear GS.
        ds: data,
        es: data,
        fs: data,
        gs: kvm_segment {
            base: report(vcpu),
            ..data
        },
        tr: kvm_segment {
            base: task(vcpu),
            limit: 0x67,
            selector: TASK,
            type_: 11,
            present: 1,
            ..Default::default()
        },
        gdt: kvm_dtable {
            base: GDT,
            limit: 0x27,
            ..Default::default()
        },
        idt: kvm_dtable {
            base: IDT,
            limit: 0xfff,
            ..Default::default()
        },
        // PG, ET, PE; PAE; LMA and LME.
        cr0: 0x8000_0011,
        cr3: TABLES,
        cr4: 0x20,
        efer: 0x500,
        ..old
    }
}

const _: () = assert!(
    USER_CODE == 0x1b && USER_DATA == 0x23,
    "the descriptors' order"
);
