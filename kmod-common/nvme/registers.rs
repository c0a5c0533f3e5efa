// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Controller properties (registers) of a memory-based controller: NVMe Base 2.1, section 3.1.4.
//!
//! Offsets in BAR0 and one newtype per register, with getters and builders named after the fields.
//! Owns no mapping and does no I/O: the caller reads and writes, this file says what it means.

/// Controller Capabilities, 8 bytes.
pub const CAP: usize = 0x00;
/// Version, 4 bytes.
pub const VS: usize = 0x08;
/// Interrupt Mask Set, 4 bytes; not used with MSI-X.
pub const INTMS: usize = 0x0c;
/// Interrupt Mask Clear, 4 bytes; not used with MSI-X.
pub const INTMC: usize = 0x10;
/// Controller Configuration, 4 bytes.
pub const CC: usize = 0x14;
/// Controller Status, 4 bytes.
pub const CSTS: usize = 0x1c;
/// NVM Subsystem Reset, 4 bytes.
pub const NSSR: usize = 0x20;
/// Admin Queue Attributes, 4 bytes.
pub const AQA: usize = 0x24;
/// Admin Submission Queue Base Address, 8 bytes.
pub const ASQ: usize = 0x28;
/// Admin Completion Queue Base Address, 8 bytes.
pub const ACQ: usize = 0x30;
/// Controller Ready Timeouts, 4 bytes; there when CAP.CRMS is not zero.
pub const CRTO: usize = 0x68;
/// First doorbell register (PCIe transport specification 1.1, section 3.1.2).
pub const DOORBELLS: usize = 0x1000;

/// Offset of the Submission Queue `queue` Tail Doorbell. `stride` is CAP.DSTRD, at most 15.
pub const fn submission_tail_doorbell(queue: u16, stride: u8) -> usize {
    doorbell(2 * queue as usize, stride)
}

/// Offset of the Completion Queue `queue` Head Doorbell. `stride` is CAP.DSTRD, at most 15.
pub const fn completion_head_doorbell(queue: u16, stride: u8) -> usize {
    doorbell(2 * queue as usize + 1, stride)
}

const fn doorbell(index: usize, stride: u8) -> usize {
    // 2 * 65535 + 1 doorbells of 4 << 15 bytes fit a usize of 64 bits, the only size supported.
    DOORBELLS + index * (4 << (stride & 0xf))
}

/// Controller Capabilities (CAP).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// CAP.CSS: the NVM command set.
    pub const CSS_NVM: u8 = 1 << 0;
    /// CAP.CSS: one or more I/O command sets, chosen with CC.CSS 110b.
    pub const CSS_IOCSS: u8 = 1 << 6;
    /// CAP.CSS: no I/O command set, only admin commands.
    pub const CSS_NOIOCSS: u8 = 1 << 7;
    /// CAP.CRMS: controller ready with media.
    pub const CRMS_CRWMS: u8 = 1 << 0;
    /// CAP.CRMS: controller ready independent of media.
    pub const CRMS_CRIMS: u8 = 1 << 1;

    const fn field(self, shift: u32, bits: u32) -> u64 {
        (self.0 >> shift) & ((1 << bits) - 1)
    }

    const fn with(self, shift: u32, bits: u32, value: u64) -> Self {
        let mask = (1u64 << bits) - 1;
        Self((self.0 & !(mask << shift)) | ((value & mask) << shift))
    }

    /// Maximum Queue Entries Supported, 0's based.
    pub const fn mqes(self) -> u16 {
        self.field(0, 16) as u16
    }

    /// Contiguous Queues Required.
    pub const fn cqr(self) -> bool {
        self.field(16, 1) != 0
    }

    /// Timeout: worst case for CSTS.RDY to follow CC.EN, in units of 500 ms.
    pub const fn to(self) -> u8 {
        self.field(24, 8) as u8
    }

    /// Doorbell Stride: 2^(2 + DSTRD) bytes.
    pub const fn dstrd(self) -> u8 {
        self.field(32, 4) as u8
    }

    /// NVM Subsystem Reset Supported.
    pub const fn nssrs(self) -> bool {
        self.field(36, 1) != 0
    }

    /// Command Sets Supported, one bit each.
    pub const fn css(self) -> u8 {
        self.field(37, 8) as u8
    }

    /// Memory Page Size Minimum: 2^(12 + MPSMIN) bytes.
    pub const fn mpsmin(self) -> u8 {
        self.field(48, 4) as u8
    }

    /// Memory Page Size Maximum: 2^(12 + MPSMAX) bytes.
    pub const fn mpsmax(self) -> u8 {
        self.field(52, 4) as u8
    }

    /// Controller Ready Modes Supported, one bit each.
    pub const fn crms(self) -> u8 {
        self.field(59, 2) as u8
    }

    /// With MQES, 0's based.
    pub const fn with_mqes(self, value: u16) -> Self {
        self.with(0, 16, value as u64)
    }

    /// With CQR.
    pub const fn with_cqr(self, value: bool) -> Self {
        self.with(16, 1, value as u64)
    }

    /// With TO, in units of 500 ms.
    pub const fn with_to(self, value: u8) -> Self {
        self.with(24, 8, value as u64)
    }

    /// With DSTRD (4 bits).
    pub const fn with_dstrd(self, value: u8) -> Self {
        self.with(32, 4, value as u64)
    }

    /// With CSS.
    pub const fn with_css(self, value: u8) -> Self {
        self.with(37, 8, value as u64)
    }

    /// With MPSMIN (4 bits).
    pub const fn with_mpsmin(self, value: u8) -> Self {
        self.with(48, 4, value as u64)
    }

    /// With MPSMAX (4 bits).
    pub const fn with_mpsmax(self, value: u8) -> Self {
        self.with(52, 4, value as u64)
    }

    /// With CRMS (2 bits).
    pub const fn with_crms(self, value: u8) -> Self {
        self.with(59, 2, value as u64)
    }
}

const fn field32(register: u32, shift: u32, bits: u32) -> u32 {
    (register >> shift) & ((1 << bits) - 1)
}

const fn with32(register: u32, shift: u32, bits: u32, value: u32) -> u32 {
    let mask = (1u32 << bits) - 1;
    (register & !(mask << shift)) | ((value & mask) << shift)
}

/// Version (VS): also the VER field of Identify Controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl Version {
    /// A version from its three parts.
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self(((major as u32) << 16) | ((minor as u32) << 8) | tertiary as u32)
    }

    /// Major version (MJR).
    pub const fn mjr(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Minor version (MNR).
    pub const fn mnr(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Tertiary version (TER).
    pub const fn ter(self) -> u8 {
        self.0 as u8
    }
}

/// Controller Configuration (CC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cc(pub u32);

impl Cc {
    /// CC.CSS: the NVM command set.
    pub const CSS_NVM: u8 = 0;
    /// CC.CSS: all I/O command sets.
    pub const CSS_ALL: u8 = 6;
    /// CC.CSS: admin commands only.
    pub const CSS_ADMIN: u8 = 7;
    /// CC.SHN: no notification.
    pub const SHN_NONE: u8 = 0;
    /// CC.SHN: normal shutdown.
    pub const SHN_NORMAL: u8 = 1;
    /// CC.SHN: abrupt shutdown.
    pub const SHN_ABRUPT: u8 = 2;
    /// Bits that are fields in Base 2.1; the others are reserved.
    pub const DEFINED: u32 = 0x01ff_fff1;

    /// Enable.
    pub const fn en(self) -> bool {
        self.0 & 1 != 0
    }

    /// I/O Command Set Selected.
    pub const fn css(self) -> u8 {
        field32(self.0, 4, 3) as u8
    }

    /// Memory Page Size: 2^(12 + MPS) bytes.
    pub const fn mps(self) -> u8 {
        field32(self.0, 7, 4) as u8
    }

    /// Arbitration Mechanism Selected.
    pub const fn ams(self) -> u8 {
        field32(self.0, 11, 3) as u8
    }

    /// Shutdown Notification.
    pub const fn shn(self) -> u8 {
        field32(self.0, 14, 2) as u8
    }

    /// I/O Submission Queue Entry Size, 2^n.
    pub const fn iosqes(self) -> u8 {
        field32(self.0, 16, 4) as u8
    }

    /// I/O Completion Queue Entry Size, 2^n.
    pub const fn iocqes(self) -> u8 {
        field32(self.0, 20, 4) as u8
    }

    /// With EN.
    pub const fn with_en(self, value: bool) -> Self {
        Self(with32(self.0, 0, 1, value as u32))
    }

    /// With CSS (3 bits).
    pub const fn with_css(self, value: u8) -> Self {
        Self(with32(self.0, 4, 3, value as u32))
    }

    /// With MPS (4 bits).
    pub const fn with_mps(self, value: u8) -> Self {
        Self(with32(self.0, 7, 4, value as u32))
    }

    /// With AMS (3 bits).
    pub const fn with_ams(self, value: u8) -> Self {
        Self(with32(self.0, 11, 3, value as u32))
    }

    /// With SHN (2 bits).
    pub const fn with_shn(self, value: u8) -> Self {
        Self(with32(self.0, 14, 2, value as u32))
    }

    /// With IOSQES (4 bits).
    pub const fn with_iosqes(self, value: u8) -> Self {
        Self(with32(self.0, 16, 4, value as u32))
    }

    /// With IOCQES (4 bits).
    pub const fn with_iocqes(self, value: u8) -> Self {
        Self(with32(self.0, 20, 4, value as u32))
    }
}

/// Controller Status (CSTS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// CSTS.SHST: no shutdown was asked for.
    pub const SHST_NORMAL: u8 = 0;
    /// CSTS.SHST: shutdown is under way.
    pub const SHST_OCCURRING: u8 = 1;
    /// CSTS.SHST: shutdown is complete.
    pub const SHST_COMPLETE: u8 = 2;

    /// Ready.
    pub const fn rdy(self) -> bool {
        self.0 & 1 != 0
    }

    /// Controller Fatal Status.
    pub const fn cfs(self) -> bool {
        self.0 & 2 != 0
    }

    /// Shutdown Status.
    pub const fn shst(self) -> u8 {
        field32(self.0, 2, 2) as u8
    }

    /// NVM Subsystem Reset Occurred.
    pub const fn nssro(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// Processing Paused.
    pub const fn pp(self) -> bool {
        self.0 & 0x20 != 0
    }

    /// All bits set: nobody answers on the bus. A live controller cannot say that, its reserved
    /// bits are zero.
    pub const fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// With RDY.
    pub const fn with_rdy(self, value: bool) -> Self {
        Self(with32(self.0, 0, 1, value as u32))
    }

    /// With CFS.
    pub const fn with_cfs(self, value: bool) -> Self {
        Self(with32(self.0, 1, 1, value as u32))
    }

    /// With SHST (2 bits).
    pub const fn with_shst(self, value: u8) -> Self {
        Self(with32(self.0, 2, 2, value as u32))
    }
}

/// Admin Queue Attributes (AQA). Both sizes are 0's based and 12 bits wide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aqa(pub u32);

impl Aqa {
    /// Bits that are fields in Base 2.1; the others are reserved.
    pub const DEFINED: u32 = 0x0fff_0fff;

    /// Admin Submission Queue Size, 0's based.
    pub const fn asqs(self) -> u16 {
        field32(self.0, 0, 12) as u16
    }

    /// Admin Completion Queue Size, 0's based.
    pub const fn acqs(self) -> u16 {
        field32(self.0, 16, 12) as u16
    }

    /// With ASQS, 0's based (12 bits).
    pub const fn with_asqs(self, value: u16) -> Self {
        Self(with32(self.0, 0, 12, value as u32))
    }

    /// With ACQS, 0's based (12 bits).
    pub const fn with_acqs(self, value: u16) -> Self {
        Self(with32(self.0, 16, 12, value as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cap_fields_are_where_the_layout_has_them() {
        // MQES 15:0, CQR 16, TO 31:24, DSTRD 35:32, NSSRS 36, CSS 44:37, MPSMIN 51:48,
        // MPSMAX 55:52, CRMS 60:59.
        let cap = Cap(0x03ff
            | 1 << 16
            | 0x14 << 24
            | 2 << 32
            | 1 << 36
            | 0x81 << 37
            | 1 << 48
            | 4 << 52
            | 1 << 59);
        assert_eq!(cap.mqes(), 0x3ff);
        assert!(cap.cqr() && cap.nssrs());
        assert_eq!((cap.to(), cap.dstrd(), cap.css()), (0x14, 2, 0x81));
        assert_eq!((cap.mpsmin(), cap.mpsmax(), cap.crms()), (1, 4, 1));
        let built = Cap::default()
            .with_mqes(0x3ff)
            .with_cqr(true)
            .with_to(0x14)
            .with_dstrd(2)
            .with_css(0x81)
            .with_mpsmin(1)
            .with_mpsmax(4)
            .with_crms(1);
        assert_eq!(built.0, cap.0 & !(1 << 36));
    }

    #[test]
    fn builders_leave_other_fields_alone() {
        assert_eq!(Cap(u64::MAX).with_css(0).0, !(0xff << 37));
        assert_eq!(Cc(u32::MAX).with_mps(0).0, !(0xf << 7));
        assert_eq!(Aqa(0).with_asqs(u16::MAX).0, 0x0fff);
    }

    #[test]
    fn cc_and_csts_fields_are_where_the_layout_has_them() {
        let cc = Cc(0x0046_0000 | 1 << 14 | 1 << 11 | 2 << 7 | 6 << 4 | 1);
        assert!(cc.en());
        assert_eq!((cc.css(), cc.mps(), cc.ams(), cc.shn()), (6, 2, 1, 1));
        assert_eq!((cc.iosqes(), cc.iocqes()), (6, 4));
        let built = Cc::default()
            .with_en(true)
            .with_css(6)
            .with_mps(2)
            .with_ams(1)
            .with_shn(1)
            .with_iosqes(6)
            .with_iocqes(4);
        assert_eq!(built, cc);
        let csts = Csts(0b11_1011);
        assert!(csts.rdy() && csts.cfs() && csts.nssro() && csts.pp() && !csts.is_gone());
        assert_eq!(csts.shst(), 2);
        assert_eq!(Csts(0).with_rdy(true).with_cfs(true).with_shst(2).0, 0b1011);
        assert!(Csts(u32::MAX).is_gone());
    }

    #[test]
    fn version_and_aqa() {
        assert_eq!(Version::new(2, 1, 0).0, 0x0002_0100);
        let version = Version(0x0001_0403);
        assert_eq!((version.mjr(), version.mnr(), version.ter()), (1, 4, 3));
        let aqa = Aqa(0x001f_000f);
        assert_eq!((aqa.asqs(), aqa.acqs()), (15, 31));
        assert_eq!(Aqa(0).with_asqs(15).with_acqs(31), aqa);
    }

    #[test]
    fn doorbells_follow_the_stride() {
        assert_eq!(submission_tail_doorbell(0, 0), 0x1000);
        assert_eq!(completion_head_doorbell(0, 0), 0x1004);
        assert_eq!(submission_tail_doorbell(3, 0), 0x1018);
        assert_eq!(completion_head_doorbell(1, 2), 0x1000 + 3 * 16);
    }
}
