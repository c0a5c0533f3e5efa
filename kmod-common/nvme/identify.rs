// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The Identify Controller data structure (CNS 01h): NVMe Base 2.1, section 5.1.13.2.1.
//!
//! A read view for drivers and a builder for the software card, both over the 4096 bytes as they
//! travel. The table below is the only place where an offset stands. Never validates: a card may
//! say anything, and the caller has to cope.

use super::bytes;
use super::registers::Version;

/// Size of every Identify data structure, in bytes.
pub const SIZE: usize = 4096;

/// OACS bit 11: Host Managed Live Migration Support (HMLMS).
pub const OACS_HMLMS: u16 = 1 << 11;
/// OACS bit 3: Namespace Management Support.
pub const OACS_NMS: u16 = 1 << 3;
/// OACS bit 8: Doorbell Buffer Config Support.
pub const OACS_DBCS: u16 = 1 << 8;
/// TRATTR bit 0: Track Host Memory Changes Support (THMCS).
pub const TRATTR_THMCS: u8 = 1 << 0;
/// TRATTR bit 1: Track User Data Changes Support (TUDCS).
pub const TRATTR_TUDCS: u8 = 1 << 1;
/// TRATTR bit 2: Memory Range Tracking Length Limit (MRTLL): lengths are powers of two.
pub const TRATTR_MRTLL: u8 = 1 << 2;
/// CNTRLTYPE of an I/O controller.
pub const CNTRLTYPE_IO: u8 = 1;
/// CNTRLTYPE of a discovery controller.
pub const CNTRLTYPE_DISCOVERY: u8 = 2;
/// CNTRLTYPE of an administrative controller.
pub const CNTRLTYPE_ADMINISTRATIVE: u8 = 3;

/// Reads fields of an Identify Controller data structure.
#[derive(Clone, Copy)]
pub struct IdentifyController<'a>(&'a [u8; SIZE]);

/// Writes fields of an Identify Controller data structure.
pub struct IdentifyControllerMut<'a>(&'a mut [u8; SIZE]);

impl<'a> IdentifyController<'a> {
    /// A view over the bytes that the controller returned.
    pub const fn new(page: &'a [u8; SIZE]) -> Self {
        Self(page)
    }

    /// Serial Number (SN): ASCII, padded with spaces.
    pub fn sn(&self) -> [u8; 20] {
        bytes::array(self.0, 4)
    }

    /// Model Number (MN): ASCII, padded with spaces.
    pub fn mn(&self) -> [u8; 40] {
        bytes::array(self.0, 24)
    }

    /// Firmware Revision (FR): ASCII, padded with spaces.
    pub fn fr(&self) -> [u8; 8] {
        bytes::array(self.0, 64)
    }

    /// Version (VER).
    pub fn ver(&self) -> Version {
        Version(bytes::u32_at(self.0, 80))
    }

    /// NVM Subsystem NVMe Qualified Name (SUBNQN): UTF-8, zero terminated within its 256 bytes.
    pub fn subnqn(&self) -> [u8; 256] {
        bytes::array(self.0, 768)
    }

    /// OACS.HMLMS: Host Managed Live Migration Support.
    pub fn hmlms(&self) -> bool {
        self.oacs() & OACS_HMLMS != 0
    }

    /// TRATTR.THMCS: Track Host Memory Changes Support.
    pub fn thmcs(&self) -> bool {
        self.trattr() & TRATTR_THMCS != 0
    }
}

impl<'a> IdentifyControllerMut<'a> {
    /// A builder over a zeroed page.
    pub fn new(page: &'a mut [u8; SIZE]) -> Self {
        page.fill(0);
        Self(page)
    }

    /// Serial Number (SN), cut at 20 bytes, padded with spaces.
    pub fn set_sn(&mut self, text: &str) -> &mut Self {
        self.set_padded::<20>(4, text)
    }

    /// Model Number (MN), cut at 40 bytes, padded with spaces.
    pub fn set_mn(&mut self, text: &str) -> &mut Self {
        self.set_padded::<40>(24, text)
    }

    /// Firmware Revision (FR), cut at 8 bytes, padded with spaces.
    pub fn set_fr(&mut self, text: &str) -> &mut Self {
        self.set_padded::<8>(64, text)
    }

    /// Version (VER).
    pub fn set_ver(&mut self, version: Version) -> &mut Self {
        bytes::put(self.0, 80, &version.0.to_le_bytes());
        self
    }

    /// NVM Subsystem NVMe Qualified Name (SUBNQN), cut at 223 bytes (the longest that section 4.7
    /// allows), padded with zeroes.
    pub fn set_subnqn(&mut self, name: &str) -> &mut Self {
        let mut field = [0u8; 256];
        for (place, byte) in field.iter_mut().take(223).zip(name.bytes()) {
            *place = byte;
        }
        bytes::put(self.0, 768, &field);
        self
    }

    fn set_padded<const N: usize>(&mut self, at: usize, text: &str) -> &mut Self {
        let mut field = [b' '; N];
        for (place, byte) in field.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        bytes::put(self.0, at, &field);
        self
    }
}

macro_rules! fields {
    ($($get:ident $set:ident: $type:ident at $offset:literal via $read:ident, $text:literal;)*) => {
        impl IdentifyController<'_> {
            $(
                #[doc = $text]
                pub fn $get(&self) -> $type {
                    bytes::$read(self.0, $offset)
                }
            )*
        }

        impl IdentifyControllerMut<'_> {
            $(
                #[doc = $text]
                pub fn $set(&mut self, value: $type) -> &mut Self {
                    bytes::put(self.0, $offset, &value.to_le_bytes());
                    self
                }
            )*
        }
    };
}

fields! {
    vid set_vid: u16 at 0 via u16_at, "PCI Vendor ID (VID).";
    ssvid set_ssvid: u16 at 2 via u16_at, "PCI Subsystem Vendor ID (SSVID).";
    rab set_rab: u8 at 72 via u8_at, "Recommended Arbitration Burst (RAB), 2^n commands.";
    cmic set_cmic: u8 at 76 via u8_at,
        "Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC).";
    mdts set_mdts: u8 at 77 via u8_at,
        "Maximum Data Transfer Size (MDTS), 2^n minimum memory pages; 0 is no limit.";
    cntlid set_cntlid: u16 at 78 via u16_at, "Controller ID (CNTLID).";
    rtd3r set_rtd3r: u32 at 84 via u32_at, "RTD3 Resume Latency (RTD3R), in microseconds.";
    rtd3e set_rtd3e: u32 at 88 via u32_at, "RTD3 Entry Latency (RTD3E), in microseconds.";
    oaes set_oaes: u32 at 92 via u32_at, "Optional Asynchronous Events Supported (OAES).";
    ctratt set_ctratt: u32 at 96 via u32_at, "Controller Attributes (CTRATT).";
    cntrltype set_cntrltype: u8 at 111 via u8_at, "Controller Type (CNTRLTYPE).";
    oacs set_oacs: u16 at 256 via u16_at, "Optional Admin Command Support (OACS).";
    acl set_acl: u8 at 258 via u8_at, "Abort Command Limit (ACL), 0's based.";
    aerl set_aerl: u8 at 259 via u8_at, "Asynchronous Event Request Limit (AERL), 0's based.";
    frmw set_frmw: u8 at 260 via u8_at, "Firmware Updates (FRMW).";
    lpa set_lpa: u8 at 261 via u8_at, "Log Page Attributes (LPA).";
    elpe set_elpe: u8 at 262 via u8_at, "Error Log Page Entries (ELPE), 0's based.";
    npss set_npss: u8 at 263 via u8_at, "Number of Power States Support (NPSS), 0's based.";
    wctemp set_wctemp: u16 at 266 via u16_at,
        "Warning Composite Temperature Threshold (WCTEMP), in kelvins.";
    cctemp set_cctemp: u16 at 268 via u16_at,
        "Critical Composite Temperature Threshold (CCTEMP), in kelvins.";
    kas set_kas: u16 at 320 via u16_at,
        "Keep Alive Support (KAS), granularity in 100 ms; 0 is not supported.";
    cqt set_cqt: u16 at 386 via u16_at, "Command Quiesce Time (CQT), in milliseconds.";
    sqes set_sqes: u8 at 512 via u8_at,
        "Submission Queue Entry Size (SQES): 3:0 required, 7:4 maximum, as powers of two.";
    cqes set_cqes: u8 at 513 via u8_at,
        "Completion Queue Entry Size (CQES): 3:0 required, 7:4 maximum, as powers of two.";
    maxcmd set_maxcmd: u16 at 514 via u16_at, "Maximum Outstanding Commands (MAXCMD).";
    nn set_nn: u32 at 516 via u32_at, "Number of Namespaces (NN).";
    oncs set_oncs: u16 at 520 via u16_at, "Optional NVM Command Support (ONCS).";
    sgls set_sgls: u32 at 536 via u32_at, "SGL Support (SGLS).";
    cmmrtd set_cmmrtd: u16 at 570 via u16_at,
        "Controller Maximum Memory Range Tracking Descriptors (CMMRTD).";
    nmmrtd set_nmmrtd: u16 at 572 via u16_at,
        "NVM Subsystem Maximum Memory Range Tracking Descriptors (NMMRTD).";
    minmrtg set_minmrtg: u8 at 574 via u8_at,
        "Minimum Memory Range Tracking Granularity (MINMRTG), 2^n x 4 KiB.";
    maxmrtg set_maxmrtg: u8 at 575 via u8_at,
        "Maximum Memory Range Tracking Granularity (MAXMRTG), 2^n x 4 KiB.";
    trattr set_trattr: u8 at 576 via u8_at, "Tracking Attributes (TRATTR).";
    mcudmq set_mcudmq: u16 at 578 via u16_at,
        "Maximum Controller User Data Migration Queues (MCUDMQ).";
    mnsudmq set_mnsudmq: u16 at 580 via u16_at,
        "Maximum NVM Subsystem User Data Migration Queues (MNSUDMQ).";
    mcmr set_mcmr: u16 at 582 via u16_at, "Maximum CDQ Memory Ranges (MCMR).";
    nmcmr set_nmcmr: u16 at 584 via u16_at, "NVM Subsystem Maximum CDQ Memory Ranges (NMCMR).";
    mcdqpc set_mcdqpc: u16 at 586 via u16_at,
        "Maximum Controller Data Queue PRP Count (MCDQPC).";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets and widths copied from the layout table, byte for byte, not from the macro above.
    #[test]
    fn every_field_reads_the_bytes_of_the_layout_table() {
        let mut page = [0u8; SIZE];
        for (i, byte) in page.iter_mut().enumerate() {
            *byte = (i as u8) ^ (i >> 8) as u8;
        }
        let two = |at: usize| u16::from(page[at]) | u16::from(page[at + 1]) << 8;
        let four = |at: usize| u32::from(two(at)) | u32::from(two(at + 2)) << 16;
        let id = IdentifyController::new(&page);
        assert_eq!((id.vid(), id.ssvid()), (two(0), two(2)));
        assert_eq!(id.sn()[..], page[4..=23]);
        assert_eq!(id.mn()[..], page[24..=63]);
        assert_eq!(id.fr()[..], page[64..=71]);
        assert_eq!(
            (id.rab(), id.cmic(), id.mdts()),
            (page[72], page[76], page[77])
        );
        assert_eq!((id.cntlid(), id.ver()), (two(78), Version(four(80))));
        assert_eq!((id.rtd3r(), id.rtd3e()), (four(84), four(88)));
        assert_eq!((id.oaes(), id.ctratt()), (four(92), four(96)));
        assert_eq!(id.cntrltype(), page[111]);
        assert_eq!(
            (id.oacs(), id.acl(), id.aerl()),
            (two(256), page[258], page[259])
        );
        assert_eq!(
            (id.frmw(), id.lpa(), id.elpe()),
            (page[260], page[261], page[262])
        );
        assert_eq!(
            (id.npss(), id.wctemp(), id.cctemp()),
            (page[263], two(266), two(268))
        );
        assert_eq!((id.kas(), id.cqt()), (two(320), two(386)));
        assert_eq!(
            (id.sqes(), id.cqes(), id.maxcmd()),
            (page[512], page[513], two(514))
        );
        assert_eq!(
            (id.nn(), id.oncs(), id.sgls()),
            (four(516), two(520), four(536))
        );
        assert_eq!((id.cmmrtd(), id.nmmrtd()), (two(570), two(572)));
        assert_eq!(
            (id.minmrtg(), id.maxmrtg(), id.trattr()),
            (page[574], page[575], page[576])
        );
        assert_eq!((id.mcudmq(), id.mnsudmq()), (two(578), two(580)));
        assert_eq!(
            (id.mcmr(), id.nmcmr(), id.mcdqpc()),
            (two(582), two(584), two(586))
        );
        assert_eq!(id.subnqn()[..], page[768..=1023]);
    }

    #[test]
    fn live_migration_bits() {
        let mut page = [0u8; SIZE];
        page[257] = 0x08;
        page[576] = 0x01;
        let id = IdentifyController::new(&page);
        assert!(id.hmlms() && id.thmcs());
        page[257] = 0xf7;
        page[576] = 0xfe;
        let id = IdentifyController::new(&page);
        assert!(!id.hmlms() && !id.thmcs());
    }

    #[test]
    fn builder_writes_what_the_view_reads_and_nothing_else() {
        let mut page = [0xffu8; SIZE];
        let mut id = IdentifyControllerMut::new(&mut page);
        id.set_vid(0x5a53)
            .set_cntrltype(CNTRLTYPE_ADMINISTRATIVE)
            .set_sn("ZS1")
            .set_fr("longer than eight")
            .set_ver(Version::new(2, 1, 0))
            .set_mcdqpc(0x0102)
            .set_subnqn("nqn.2014-08.org.nvmexpress:x");
        let mut expected = [0u8; SIZE];
        expected[0] = 0x53;
        expected[1] = 0x5a;
        expected[4..24].copy_from_slice(b"ZS1                 ");
        expected[64..72].copy_from_slice(b"longer t");
        expected[81] = 1;
        expected[82] = 2;
        expected[111] = 3;
        expected[586] = 2;
        expected[587] = 1;
        expected[768..796].copy_from_slice(b"nqn.2014-08.org.nvmexpress:x");
        assert_eq!(page, expected);
    }

    #[test]
    fn subsystem_name_always_ends_with_a_zero() {
        let name = [b'n'; 300];
        let mut page = [0u8; SIZE];
        let Ok(name) = core::str::from_utf8(&name) else {
            return;
        };
        IdentifyControllerMut::new(&mut page).set_subnqn(name);
        assert_eq!(page[768 + 222], b'n');
        assert!(page[768 + 223..1024].iter().all(|&byte| byte == 0));
    }
}
