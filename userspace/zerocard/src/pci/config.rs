// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Configuration space: 4096 bytes, masks of the bits that a write sets or clears, and the layout of
//! section 1 of `docs/interfaces.md`.
//!
//! Owned by the PCI function. BAR sizing needs no code: the address bits below the size are simply
//! not writable. Writes have no effects in here; the function looks at what they changed.

/// Bytes of configuration space.
pub(crate) const SIZE: usize = 4096;
/// Vendor id of the card: not assigned by the PCI-SIG, so nothing matches on it.
pub(crate) const VENDOR: u16 = 0x5a53;

const COMMAND: usize = 0x04;
const POWER_MANAGEMENT: usize = 0x40;
const MSIX: usize = 0x50;
const EXPRESS: usize = 0x60;
const ACS: usize = 0x100;
const SERIAL_NUMBER: usize = 0x110;
const DVSEC: usize = 0x120;
const AER: usize = 0x130;
/// Bytes of Advanced Error Reporting with everything that version 2 has room for.
const AER_LENGTH: usize = 0x48;

const DEVICE_CONTROL: usize = EXPRESS + 0x08;
/// Initiate Function Level Reset: bit 15 of Device Control, so bit 7 of its second byte.
const INITIATE_FLR: u8 = 0x80;

/// What an endpoint can report of its own (PCIe Base 7.8.4.2), optional ones of no use left out: Data
/// Link Protocol, Poisoned TLP, Flow Control Protocol, Completion Timeout, Completer Abort, Unexpected
/// Completion, Receiver Overflow, Malformed TLP, Unsupported Request, Uncorrectable Internal Error.
const UNCORRECTABLE: u32 = 0x0057_f010;
/// Those that are masked by default (7.8.4.3): Uncorrectable Internal Error.
const UNCORRECTABLE_MASK: u32 = 0x0040_0000;
/// Those that are fatal by default (7.8.4.4), Surprise Down among them, which is of ports only and
/// fixed here.
const UNCORRECTABLE_SEVERITY: u32 = 0x0046_2030;
/// Receiver Error, Bad TLP, Bad DLLP, REPLAY_NUM Rollover, Replay Timer Timeout, Advisory Non-Fatal
/// (7.8.4.5).
const CORRECTABLE: u32 = 0x0000_31c1;
/// Those that are masked by default (7.8.4.6): Advisory Non-Fatal.
const CORRECTABLE_MASK: u32 = 0x0000_2000;

/// BAR0 offset of the MSI-X table.
pub(crate) const MSIX_TABLE: u32 = 0x2000;
/// BAR0 offset of the MSI-X pending bits.
pub(crate) const MSIX_PENDING: u32 = 0x3000;

/// What a function shows of itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// PCI device id.
    pub(crate) device: u16,
    /// Class code, 24 bits.
    pub(crate) class: u32,
    /// Device Serial Number, the same for every function of a card.
    pub(crate) serial_number: u64,
    /// NVMe controller id, shown in the DVSEC.
    pub(crate) controller_id: u16,
    /// Role in the DVSEC: 0 managed function, 1 administrative controller.
    pub(crate) role: u8,
    /// Size of BAR0 in bytes, a power of two.
    pub(crate) bar0_size: u32,
    /// MSI-X vectors, at least 1.
    pub(crate) vectors: u16,
}

/// Configuration space of one function.
pub(crate) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Bits that writing a one clears (RW1C).
    clearable: [u8; SIZE],
    initial: Box<[u8; SIZE]>,
}

impl ConfigSpace {
    /// Configuration space as it is after power-on.
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            clearable: [0; SIZE],
            initial: Box::new([0; SIZE]),
        };
        space.header(identity);
        space.power_management();
        space.msix(identity.vectors);
        space.express();
        space.extended(identity);
        *space.initial = space.bytes;
        space
    }

    /// Back to the state after power-on: the client restores what it wants to keep. Only the error
    /// registers stay as they are, all of which are sticky: they tell after a reset what led to it.
    pub(crate) fn reset(&mut self) {
        let range = AER..AER + AER_LENGTH;
        let mut bytes = *self.initial;
        bytes[range.clone()].copy_from_slice(&self.bytes[range]);
        self.bytes = bytes;
    }

    /// As it is after power-on.
    pub(crate) fn power_on(&mut self) {
        self.bytes = *self.initial;
    }

    /// Reads bytes; all ones beyond the end, as the bus would answer.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + i).copied().unwrap_or(0xff);
        }
    }

    /// Writes the writable bits of some bytes. Says whether the write initiates a function level
    /// reset; that bit always reads zero.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let mut reset = false;
        let power = self.power_state();
        for (i, value) in data.iter().enumerate() {
            let at = offset + i;
            let masks = self.writable.get(at).zip(self.clearable.get(at));
            let (Some(byte), Some((mask, clear))) = (self.bytes.get_mut(at), masks) else {
                break;
            };
            *byte = (*byte & !mask & !(value & clear)) | (value & mask);
            reset |= at == DEVICE_CONTROL + 1 && value & INITIATE_FLR != 0;
        }
        // D1 and D2 do not exist: such a write completes and the state stays.
        if matches!(self.power_state(), 1 | 2) {
            self.bytes[POWER_MANAGEMENT + 4] ^= self.power_state() ^ power;
        }
        reset
    }

    /// Memory Space Enable, and powered on: in D3hot only configuration space answers.
    pub(crate) fn memory_enabled(&self) -> bool {
        self.bytes[COMMAND] & 2 != 0 && self.powered_on()
    }

    fn powered_on(&self) -> bool {
        self.power_state() == 0
    }

    /// PowerState of the power management capability: 0 is D0, 3 is D3hot.
    fn power_state(&self) -> u8 {
        self.bytes[POWER_MANAGEMENT + 4] & 3
    }

    /// Bus Master Enable, and powered on.
    pub(crate) fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & 4 != 0 && self.powered_on()
    }

    /// MSI-X Enable.
    pub(crate) fn msix_enabled(&self) -> bool {
        self.bytes[MSIX + 3] & 0x80 != 0
    }

    /// MSI-X Function Mask.
    pub(crate) fn msix_masked(&self) -> bool {
        self.bytes[MSIX + 3] & 0x40 != 0
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    fn put16(&mut self, offset: usize, value: u16) {
        self.put(offset, &value.to_le_bytes());
    }

    fn put32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    fn allow_clear(&mut self, offset: usize, mask: u32) {
        self.clearable[offset..offset + 4].copy_from_slice(&mask.to_le_bytes());
    }

    fn header(&mut self, identity: &Identity) {
        self.put16(0x00, VENDOR);
        self.put16(0x02, identity.device);
        // Memory space, bus master, parity and SERR enable, interrupt disable.
        self.allow(COMMAND, &0x0546u16.to_le_bytes());
        // Status: capabilities list.
        self.put16(0x06, 0x0010);
        self.bytes[0x08] = 1;
        self.put(0x09, &identity.class.to_le_bytes()[..3]);
        self.allow(0x0c, &[0xff]);
        // BAR0: memory, 64-bit, not prefetchable.
        self.put32(0x10, 0x4);
        self.allow(0x10, &(!(identity.bar0_size - 1)).to_le_bytes());
        self.allow(0x14, &u32::MAX.to_le_bytes());
        self.put16(0x2c, VENDOR);
        self.put16(0x2e, identity.device);
        self.bytes[0x34] = POWER_MANAGEMENT as u8;
        // Interrupt line is scratch; the pin is 0, there is no INTx.
        self.allow(0x3c, &[0xff]);
    }

    fn power_management(&mut self) {
        self.put(POWER_MANAGEMENT, &[0x01, MSIX as u8]);
        // Version 3. No_Soft_Reset: D3hot to D0 keeps the state.
        self.put16(POWER_MANAGEMENT + 2, 0x0003);
        self.put16(POWER_MANAGEMENT + 4, 0x0008);
        self.allow(POWER_MANAGEMENT + 4, &[0x03]);
    }

    fn msix(&mut self, vectors: u16) {
        self.put(MSIX, &[0x11, EXPRESS as u8]);
        self.put16(MSIX + 2, vectors - 1);
        self.allow(MSIX + 2, &0xc000u16.to_le_bytes());
        self.put32(MSIX + 4, MSIX_TABLE);
        self.put32(MSIX + 8, MSIX_PENDING);
    }

    fn express(&mut self) {
        self.put(EXPRESS, &[0x10, 0x00]);
        // Capability version 2, endpoint.
        self.put16(EXPRESS + 0x02, 0x0002);
        // Payload 128 bytes, role-based error reporting, function level reset.
        self.put32(EXPRESS + 0x04, 0x1000_8000);
        // Relaxed ordering, no snoop, read requests of 512 bytes: the values after reset.
        self.put16(EXPRESS + 0x08, 0x2810);
        self.allow(EXPRESS + 0x08, &0x78ffu16.to_le_bytes());
        // Link: 2.5 GT/s, x1.
        self.put32(EXPRESS + 0x0c, 0x0000_0011);
        self.allow(EXPRESS + 0x10, &0x00c3u16.to_le_bytes());
        self.put16(EXPRESS + 0x12, 0x0011);
        self.put32(EXPRESS + 0x2c, 0x0000_0002);
        self.put16(EXPRESS + 0x30, 0x0001);
    }

    fn extended(&mut self, identity: &Identity) {
        self.put32(ACS, extended_header(0x000d, 1, SERIAL_NUMBER));
        self.put32(SERIAL_NUMBER, extended_header(0x0003, 1, DVSEC));
        self.put(SERIAL_NUMBER + 4, &identity.serial_number.to_le_bytes());
        self.put32(DVSEC, extended_header(0x0023, 1, AER));
        // Revision 0, 16 bytes long.
        self.put32(DVSEC + 4, u32::from(VENDOR) | 0x010 << 20);
        self.put16(DVSEC + 8, 0x0001);
        self.put16(DVSEC + 10, identity.controller_id);
        self.bytes[DVSEC + 12] = identity.role;
        self.error_reporting();
    }

    /// Advanced Error Reporting (PCIe Base 7.8.4). No ECRC, no TLP prefixes; the card itself makes no
    /// errors.
    fn error_reporting(&mut self) {
        self.put32(AER, extended_header(0x0001, 2, 0));
        self.allow_clear(AER + 0x04, UNCORRECTABLE);
        self.put32(AER + 0x08, UNCORRECTABLE_MASK);
        self.allow(AER + 0x08, &UNCORRECTABLE.to_le_bytes());
        self.put32(AER + 0x0c, UNCORRECTABLE_SEVERITY);
        self.allow(AER + 0x0c, &UNCORRECTABLE.to_le_bytes());
        self.allow_clear(AER + 0x10, CORRECTABLE);
        self.put32(AER + 0x14, CORRECTABLE_MASK);
        self.allow(AER + 0x14, &CORRECTABLE.to_le_bytes());
    }
}

fn extended_header(id: u16, version: u32, next: usize) -> u32 {
    u32::from(id) | version << 16 | (next as u32) << 20
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn identity() -> Identity {
        Identity {
            device: 1,
            class: 0x01_08_03,
            serial_number: 0x1122_3344_5566_7788,
            controller_id: 0x0102,
            role: 1,
            bar0_size: 0x4000,
            vectors: 2,
        }
    }

    fn read32(space: &ConfigSpace, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        space.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn identity_and_class_are_where_pci_has_them() {
        let space = ConfigSpace::new(&identity());
        assert_eq!(read32(&space, 0x00), 0x0001_5a53);
        assert_eq!(read32(&space, 0x08), 0x0108_0301);
        assert_eq!(read32(&space, 0x0c) >> 16 & 0x7f, 0, "type 0 header");
        assert_eq!(read32(&space, 0x2c), 0x0001_5a53);
    }

    #[test]
    fn bar_sizing_gives_sixteen_kibibytes() {
        let mut space = ConfigSpace::new(&identity());
        space.write(0x10, &[0xff; 8]);
        assert_eq!(read32(&space, 0x10), 0xffff_c004);
        assert_eq!(read32(&space, 0x14), 0xffff_ffff);
        space.write(0x18, &[0xff; 16]);
        assert_eq!(read32(&space, 0x18), 0);
        space.write(0x12, &[0xde]);
        assert_eq!(read32(&space, 0x10), 0xffde_c004);
    }

    #[test]
    fn capability_lists_lead_to_every_capability() {
        let space = ConfigSpace::new(&identity());
        let mut found = Vec::new();
        let mut at = read32(&space, 0x34) as usize & 0xff;
        while at != 0 {
            let head = read32(&space, at);
            found.push(head as u8);
            at = (head >> 8) as usize & 0xff;
        }
        assert_eq!(found, [0x01, 0x11, 0x10]);
        let mut found = Vec::new();
        let mut at = 0x100;
        while at != 0 {
            let head = read32(&space, at);
            found.push((head as u16, (head >> 16) & 0xf));
            at = (head >> 20) as usize;
        }
        assert_eq!(found, [(0x000d, 1), (0x0003, 1), (0x0023, 1), (0x0001, 2)]);
    }

    #[test]
    fn extended_capabilities_carry_the_contract() {
        let space = ConfigSpace::new(&identity());
        assert_eq!(read32(&space, ACS + 4), 0, "no peer-to-peer control at all");
        assert_eq!(read32(&space, SERIAL_NUMBER + 4), 0x5566_7788);
        assert_eq!(read32(&space, SERIAL_NUMBER + 8), 0x1122_3344);
        assert_eq!(read32(&space, DVSEC + 4), 0x0100_5a53);
        assert_eq!(read32(&space, DVSEC + 8), 0x0102_0001);
        assert_eq!(read32(&space, DVSEC + 12), 1);
    }

    #[test]
    fn only_writable_bits_change_and_reset_restores() {
        let mut space = ConfigSpace::new(&identity());
        let before: Vec<u8> = space.bytes.to_vec();
        assert!(
            space.write(0, &[0xff; SIZE]),
            "sets Initiate FLR among others"
        );
        assert_eq!(read32(&space, 0x00), 0x0001_5a53);
        assert!(space.msix_enabled() && space.msix_masked());
        assert_eq!(read32(&space, COMMAND) & 0xffff, 0x0546);
        assert_eq!(read32(&space, MSIX) >> 16, 0xc001);
        assert_eq!(
            read32(&space, DEVICE_CONTROL) & 0x8000,
            0,
            "Initiate FLR reads zero"
        );
        assert_eq!(read32(&space, DVSEC + 8), 0x0102_0001);
        space.reset();
        let (errors, after) = (AER..AER + AER_LENGTH, &space.bytes);
        assert_eq!(after[..errors.start], before[..errors.start]);
        assert_eq!(after[errors.end..], before[errors.end..]);
        space.power_on();
        assert_eq!(space.bytes.to_vec(), before);
    }

    #[test]
    fn error_registers_begin_with_the_defaults_of_the_specification() {
        let space = ConfigSpace::new(&identity());
        assert_eq!(read32(&space, 0x130), 0x0002_0001, "version 2, the last");
        let fatal = [4, 5, 13, 17, 18, 22].iter().map(|bit| 1 << bit).sum();
        let registers: [(usize, u32); 6] = [
            (0x04, 0),
            (0x08, 1 << 22),
            (0x0c, fatal),
            (0x10, 0),
            (0x14, 1 << 13),
            (0x18, 0),
        ];
        for (offset, default) in registers {
            assert_eq!(read32(&space, 0x130 + offset), default, "{offset:#x}");
        }
        // Header log, nothing of root ports, prefix log.
        for offset in (0x1c..0x48).step_by(4) {
            assert_eq!(read32(&space, 0x130 + offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn an_error_is_cleared_by_writing_one_and_by_nothing_but_power_on_else() {
        const STATUS: usize = 0x134;
        const MASK: usize = 0x138;
        const SEVERITY: usize = 0x13c;
        // Completion Timeout and Malformed TLP.
        const TWO: u32 = 1 << 14 | 1 << 18;
        let mut space = ConfigSpace::new(&identity());
        space.write(STATUS, &[0xff; 4]);
        assert_eq!(read32(&space, STATUS), 0, "a write sets no error");
        space.put32(STATUS, TWO);
        space.write(STATUS, &0u32.to_le_bytes());
        assert_eq!(read32(&space, STATUS), TWO);
        space.write(MASK, &TWO.to_le_bytes());
        space.write(SEVERITY, &TWO.to_le_bytes());
        space.reset();
        assert_eq!(read32(&space, STATUS), TWO, "sticky");
        assert_eq!(read32(&space, MASK), TWO, "sticky");
        // Surprise Down is not ours.
        assert_eq!(read32(&space, SEVERITY), TWO | 1 << 5, "sticky");
        space.write(STATUS, &(1u32 << 14).to_le_bytes());
        assert_eq!(read32(&space, STATUS), 1 << 18);
        space.write(STATUS + 2, &[1 << 2]);
        assert_eq!(read32(&space, STATUS), 0);
        space.put32(STATUS, TWO);
        space.power_on();
        assert_eq!(read32(&space, STATUS), 0);
        assert_eq!(read32(&space, MASK), 1 << 22);
    }

    #[test]
    fn function_level_reset_is_bit_15_of_device_control() {
        let mut space = ConfigSpace::new(&identity());
        assert!(!space.write(DEVICE_CONTROL, &0x7fffu16.to_le_bytes()));
        assert!(space.write(DEVICE_CONTROL, &0x8000u16.to_le_bytes()));
        assert!(space.write(DEVICE_CONTROL + 1, &[0x80]));
        assert!(!space.write(DEVICE_CONTROL + 2, &[0x80]));
    }

    #[test]
    fn the_bus_needs_power() {
        let mut space = ConfigSpace::new(&identity());
        space.write(COMMAND, &[0x06]);
        assert!(space.bus_master() && space.memory_enabled());
        space.write(POWER_MANAGEMENT + 4, &[3]);
        assert!(!space.bus_master() && !space.memory_enabled());
    }

    #[test]
    fn power_states_that_do_not_exist_are_not_entered() {
        let mut space = ConfigSpace::new(&identity());
        for (written, state) in [(1, 0), (2, 0), (3, 3), (2, 3), (1, 3), (0, 0)] {
            space.write(POWER_MANAGEMENT + 4, &[written]);
            assert_eq!(read32(&space, POWER_MANAGEMENT + 4), 8 | state, "{written}");
        }
    }

    #[test]
    fn reads_beyond_the_end_give_ones() {
        let mut bytes = [0; 4];
        ConfigSpace::new(&identity()).read(SIZE - 2, &mut bytes);
        assert_eq!(bytes, [0, 0, 0xff, 0xff]);
    }
}
