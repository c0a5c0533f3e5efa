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

/// CMIC bit 0: the subsystem may have several ports (MPORTS).
pub const CMIC_MPORTS: u8 = 1 << 0;
/// CMIC bit 1: the subsystem may have several controllers (MCTRS).
pub const CMIC_MCTRS: u8 = 1 << 1;
/// CMIC bit 2: the controller belongs to an SR-IOV virtual function (FT).
pub const CMIC_FT: u8 = 1 << 2;
/// CMIC bit 3: Asymmetric Namespace Access Reporting Support (ANARS).
pub const CMIC_ANARS: u8 = 1 << 3;
/// OAES bit 8: Attached Namespace Attribute Notices.
pub const OAES_NAMESPACE_ATTRIBUTES: u32 = 1 << 8;
/// OAES bit 9: Firmware Activation Notices.
pub const OAES_FIRMWARE_ACTIVATION: u32 = 1 << 9;
/// CTRATT bit 0: Host Identifier Support (HIDS), the 128-bit form.
pub const CTRATT_HIDS: u32 = 1 << 0;
/// OACS bit 1: Format NVM Supported (FNVMS).
pub const OACS_FNVMS: u16 = 1 << 1;
/// OACS bit 2: Firmware Download Supported (FWDS).
pub const OACS_FWDS: u16 = 1 << 2;
/// OACS bit 3: Namespace Management Supported (NMS).
pub const OACS_NMS: u16 = 1 << 3;
/// OACS bit 7: Virtualization Management Supported (VMS).
pub const OACS_VMS: u16 = 1 << 7;
/// OACS bit 8: Doorbell Buffer Config Supported (DBCS).
pub const OACS_DBCS: u16 = 1 << 8;
/// OACS bit 11: Host Managed Live Migration Support (HMLMS). The controllers that are to be
/// migrated clear it.
pub const OACS_HMLMS: u16 = 1 << 11;
/// LPA bit 0: SMART / Health Information per namespace (SMARTS).
pub const LPA_SMARTS: u8 = 1 << 0;
/// LPA bit 1: Commands Supported and Effects log page (CSES).
pub const LPA_CSES: u8 = 1 << 1;
/// LPA bit 2: Log Page Extended Data (LPEDS), 32-bit lengths and offsets in Get Log Page.
pub const LPA_LPEDS: u8 = 1 << 2;
/// ONCS bit 0: Compare.
pub const ONCS_COMPARE: u16 = 1 << 0;
/// ONCS bit 1: Write Uncorrectable.
pub const ONCS_WRITE_UNCORRECTABLE: u16 = 1 << 1;
/// ONCS bit 2: Dataset Management.
pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS bit 3: Write Zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// ONCS bit 4: Save and Select in Get and Set Features (SSFS).
pub const ONCS_SAVE_SELECT: u16 = 1 << 4;
/// ONCS bit 5: reservations.
pub const ONCS_RESERVATIONS: u16 = 1 << 5;
/// ONCS bit 6: the Timestamp feature.
pub const ONCS_TIMESTAMP: u16 = 1 << 6;
/// ONCS bit 7: Verify.
pub const ONCS_VERIFY: u16 = 1 << 7;
/// ONCS bit 8: Copy.
pub const ONCS_COPY: u16 = 1 << 8;
/// FUSES bit 0: fused Compare and Write.
pub const FUSES_COMPARE_WRITE: u16 = 1 << 0;
/// VWC bit 0: a volatile write cache is there (VWCP).
pub const VWC_PRESENT: u8 = 1 << 0;
/// VWC bits 2:1 = 10b: Flush with NSID FFFFFFFFh is not supported.
pub const VWC_NO_FLUSH_ALL: u8 = 2 << 1;
/// VWC bits 2:1 = 11b: Flush with NSID FFFFFFFFh is supported.
pub const VWC_FLUSH_ALL: u8 = 3 << 1;
/// SGLS bits 1:0 = 01b: SGLs in commands of the NVM command set, at any alignment.
pub const SGLS_SUPPORTED: u32 = 1;
/// SGLS bits 1:0 = 10b: SGLs, addresses and lengths of data blocks in dwords.
pub const SGLS_DWORD_ALIGNED: u32 = 2;
/// SGLS bit 16: SGL Bit Bucket descriptors (SBBDS).
pub const SGLS_BIT_BUCKET: u32 = 1 << 16;
/// SGLS bit 18: an SGL may be longer than the data (LLDTS).
pub const SGLS_LONGER_THAN_DATA: u32 = 1 << 18;
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

    /// IEEE OUI Identifier (IEEE), least significant byte first.
    pub fn ieee(&self) -> [u8; 3] {
        bytes::array(self.0, 73)
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

    /// IEEE OUI Identifier (IEEE), least significant byte first.
    pub fn set_ieee(&mut self, oui: [u8; 3]) -> &mut Self {
        bytes::put(self.0, 73, &oui);
        self
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

fields! {
    IdentifyController, IdentifyControllerMut:
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
    crdt1 set_crdt1: u16 at 128 via u16_at, "Command Retry Delay Time 1 (CRDT1), in 100 ms.";
    crdt2 set_crdt2: u16 at 130 via u16_at, "Command Retry Delay Time 2 (CRDT2), in 100 ms.";
    crdt3 set_crdt3: u16 at 132 via u16_at, "Command Retry Delay Time 3 (CRDT3), in 100 ms.";
    oacs set_oacs: u16 at 256 via u16_at, "Optional Admin Command Support (OACS).";
    acl set_acl: u8 at 258 via u8_at, "Abort Command Limit (ACL), 0's based.";
    aerl set_aerl: u8 at 259 via u8_at, "Asynchronous Event Request Limit (AERL), 0's based.";
    frmw set_frmw: u8 at 260 via u8_at, "Firmware Updates (FRMW).";
    lpa set_lpa: u8 at 261 via u8_at, "Log Page Attributes (LPA).";
    elpe set_elpe: u8 at 262 via u8_at, "Error Log Page Entries (ELPE), 0's based.";
    npss set_npss: u8 at 263 via u8_at, "Number of Power States Support (NPSS), 0's based.";
    avscc set_avscc: u8 at 264 via u8_at,
        "Admin Vendor Specific Command Configuration (AVSCC).";
    apsta set_apsta: u8 at 265 via u8_at,
        "Autonomous Power State Transition Attributes (APSTA).";
    wctemp set_wctemp: u16 at 266 via u16_at,
        "Warning Composite Temperature Threshold (WCTEMP), in kelvins.";
    cctemp set_cctemp: u16 at 268 via u16_at,
        "Critical Composite Temperature Threshold (CCTEMP), in kelvins.";
    mtfa set_mtfa: u16 at 270 via u16_at,
        "Maximum Time for Firmware Activation (MTFA), in 100 ms.";
    hmpre set_hmpre: u32 at 272 via u32_at,
        "Host Memory Buffer Preferred Size (HMPRE), in 4 KiB; 0 in subsystems with live migration.";
    hmmin set_hmmin: u32 at 276 via u32_at,
        "Host Memory Buffer Minimum Size (HMMIN), in 4 KiB.";
    tnvmcap set_tnvmcap: u128 at 280 via u128_at, "Total NVM Capacity (TNVMCAP), in bytes.";
    unvmcap set_unvmcap: u128 at 296 via u128_at,
        "Unallocated NVM Capacity (UNVMCAP), in bytes.";
    fwug set_fwug: u8 at 319 via u8_at, "Firmware Update Granularity (FWUG), in 4 KiB.";
    kas set_kas: u16 at 320 via u16_at,
        "Keep Alive Support (KAS), granularity in 100 ms; 0 is not supported.";
    sanicap set_sanicap: u32 at 328 via u32_at, "Sanitize Capabilities (SANICAP).";
    anatt set_anatt: u8 at 342 via u8_at, "ANA Transition Time (ANATT), in seconds.";
    anacap set_anacap: u8 at 343 via u8_at,
        "Asymmetric Namespace Access Capabilities (ANACAP).";
    anagrpmax set_anagrpmax: u32 at 344 via u32_at, "ANA Group Identifier Maximum (ANAGRPMAX).";
    nanagrpid set_nanagrpid: u32 at 348 via u32_at,
        "Number of ANA Group Identifiers (NANAGRPID).";
    cqt set_cqt: u16 at 386 via u16_at, "Command Quiesce Time (CQT), in milliseconds.";
    sqes set_sqes: u8 at 512 via u8_at,
        "Submission Queue Entry Size (SQES): 3:0 required, 7:4 maximum, as powers of two.";
    cqes set_cqes: u8 at 513 via u8_at,
        "Completion Queue Entry Size (CQES): 3:0 required, 7:4 maximum, as powers of two.";
    maxcmd set_maxcmd: u16 at 514 via u16_at, "Maximum Outstanding Commands (MAXCMD).";
    nn set_nn: u32 at 516 via u32_at, "Number of Namespaces (NN).";
    oncs set_oncs: u16 at 520 via u16_at, "Optional NVM Command Support (ONCS).";
    fuses set_fuses: u16 at 522 via u16_at, "Fused Operation Support (FUSES).";
    fna set_fna: u8 at 524 via u8_at, "Format NVM Attributes (FNA).";
    vwc set_vwc: u8 at 525 via u8_at, "Volatile Write Cache (VWC).";
    awun set_awun: u16 at 526 via u16_at,
        "Atomic Write Unit Normal (AWUN), in logical blocks, 0's based.";
    awupf set_awupf: u16 at 528 via u16_at,
        "Atomic Write Unit Power Fail (AWUPF), in logical blocks, 0's based.";
    icsvscc set_icsvscc: u8 at 530 via u8_at,
        "I/O Command Set Vendor Specific Command Configuration (ICSVSCC).";
    nwpc set_nwpc: u8 at 531 via u8_at, "Namespace Write Protection Capabilities (NWPC).";
    acwu set_acwu: u16 at 532 via u16_at,
        "Atomic Compare & Write Unit (ACWU), in logical blocks, 0's based.";
    cdfs set_cdfs: u16 at 534 via u16_at, "Copy Descriptor Formats Supported (CDFS).";
    sgls set_sgls: u32 at 536 via u32_at, "SGL Support (SGLS).";
    mnan set_mnan: u32 at 540 via u32_at,
        "Maximum Number of Allowed Namespaces (MNAN); 0 is as many as NN.";
    maxcna set_maxcna: u32 at 560 via u32_at,
        "Maximum I/O Controller Namespace Attachments (MAXCNA); 0 is not limited.";
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
        assert_eq!(id.ieee()[..], page[73..=75]);
        assert_eq!(id.cntrltype(), page[111]);
        assert_eq!(
            (id.crdt1(), id.crdt2(), id.crdt3()),
            (two(128), two(130), two(132))
        );
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
        assert_eq!((id.avscc(), id.apsta()), (page[264], page[265]));
        assert_eq!(
            (id.mtfa(), id.hmpre(), id.hmmin()),
            (two(270), four(272), four(276))
        );
        assert_eq!(id.tnvmcap().to_le_bytes()[..], page[280..=295]);
        assert_eq!(id.unvmcap().to_le_bytes()[..], page[296..=311]);
        assert_eq!((id.fwug(), id.sanicap()), (page[319], four(328)));
        assert_eq!((id.anatt(), id.anacap()), (page[342], page[343]));
        assert_eq!((id.anagrpmax(), id.nanagrpid()), (four(344), four(348)));
        assert_eq!((id.kas(), id.cqt()), (two(320), two(386)));
        assert_eq!(
            (id.sqes(), id.cqes(), id.maxcmd()),
            (page[512], page[513], two(514))
        );
        assert_eq!(
            (id.nn(), id.oncs(), id.sgls()),
            (four(516), two(520), four(536))
        );
        assert_eq!(
            (id.fuses(), id.fna(), id.vwc()),
            (two(522), page[524], page[525])
        );
        assert_eq!(
            (id.awun(), id.awupf(), id.icsvscc(), id.nwpc()),
            (two(526), two(528), page[530], page[531])
        );
        assert_eq!((id.acwu(), id.cdfs()), (two(532), two(534)));
        assert_eq!((id.mnan(), id.maxcna()), (four(540), four(560)));
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
