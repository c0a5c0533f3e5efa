// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! What Identify says of one namespace: the NVM command set's structure (CNS 00h, NVM Command Set
//! 1.1, section 4.1.5.1) and the one of every command set (CNS 08h, Base 2.1, section 5.1.13.2.8).
//!
//! Views for drivers and builders for the software card over the 4096 bytes as they travel. Decides
//! nothing: which NSID is active, and what an inactive one answers, belongs to the command.

use super::bytes;
use super::identify::SIZE;

/// NSFEAT bit 0: thin provisioning, NUSE may be below NCAP.
pub const NSFEAT_THINP: u8 = 1 << 0;
/// NSFEAT bit 1: NAWUN, NAWUPF and NACWU hold for this namespace (NSABPNS).
pub const NSFEAT_ATOMICS: u8 = 1 << 1;
/// NSFEAT bit 2: deallocated or unwritten blocks are errors on request (DAE).
pub const NSFEAT_DAE: u8 = 1 << 2;
/// NSFEAT bit 3: NGUID and EUI64 are never used again (UIDREUSE); the same bit in CNS 08h.
pub const NSFEAT_UIDREUSE: u8 = 1 << 3;
/// NSFEAT bit 4: NPWG, NPWA, NPDG, NPDA and NOWS are defined (OPTPERF).
pub const NSFEAT_OPTPERF: u8 = 1 << 4;
/// NMIC bit 0: the namespace may be attached to several controllers (SHRNS); the same in CNS 08h.
pub const NMIC_SHARED: u8 = 1 << 0;
/// DLFEAT bits 2:0 = 001b: deallocated blocks read as zeroes.
pub const DLFEAT_READ_ZEROES: u8 = 1;
/// DLFEAT bit 3: Write Zeroes takes the Deallocate bit (WZDS).
pub const DLFEAT_WRITE_ZEROES_DEALLOCATES: u8 = 1 << 3;
/// RESCAP bit 0: Persist Through Power Loss (PTPLS).
pub const RESCAP_PERSIST: u8 = 1 << 0;
/// RESCAP bits 6:1: all six reservation types.
pub const RESCAP_ALL_TYPES: u8 = 0x7e;
/// RESCAP bit 7: Ignore Existing Key as in NVMe 1.3 and later (IEKS).
pub const RESCAP_IEKS: u8 = 1 << 7;
/// NSTAT bit 0 of CNS 08h: the namespace is ready (NRDY).
pub const NSTAT_READY: u8 = 1 << 0;
/// NSFEAT bit 5 of CNS 08h: no volatile write cache for this namespace (VWCNP).
pub const INDEPENDENT_NSFEAT_VWCNP: u8 = 1 << 5;

/// Number of LBA formats that the structure has room for.
pub const LBA_FORMATS: usize = 64;

/// An LBA Format: NVM Command Set 1.1, section 4.1.5.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LbaFormat {
    /// Metadata Size (MS), in bytes for each logical block.
    pub metadata: u16,
    /// LBA Data Size (LBADS): 2^n bytes, 9 or more; 0 for a format that is not there.
    pub data: u8,
    /// Relative Performance (RP): 0 best to 3 degraded.
    pub performance: u8,
}

impl LbaFormat {
    /// Bytes of a logical block without metadata; `None` for a format that is not there or too
    /// large for any use.
    pub const fn block_size(self) -> Option<u32> {
        if self.data < 9 || self.data > 31 {
            return None;
        }
        Some(1 << self.data)
    }
}

/// Reads an Identify Namespace data structure.
#[derive(Clone, Copy)]
pub struct IdentifyNamespace<'a>(&'a [u8; SIZE]);

/// Writes an Identify Namespace data structure.
pub struct IdentifyNamespaceMut<'a>(&'a mut [u8; SIZE]);

impl<'a> IdentifyNamespace<'a> {
    /// A view over the bytes that the controller returned.
    pub const fn new(page: &'a [u8; SIZE]) -> Self {
        Self(page)
    }

    /// Namespace Globally Unique Identifier (NGUID), most significant byte first; zeroes for none.
    pub fn nguid(&self) -> [u8; 16] {
        bytes::array(self.0, 104)
    }

    /// IEEE Extended Unique Identifier (EUI64), most significant byte first; zeroes for none.
    pub fn eui64(&self) -> [u8; 8] {
        bytes::array(self.0, 120)
    }

    /// LBA Format `index` (LBAF0 .. LBAF63); nothing but zeroes outside.
    pub fn lba_format(&self, index: usize) -> LbaFormat {
        let word = if index < LBA_FORMATS {
            bytes::u32_at(self.0, 128 + 4 * index)
        } else {
            0
        };
        LbaFormat {
            metadata: word as u16,
            data: (word >> 16) as u8,
            performance: (word >> 24) as u8 & 3,
        }
    }

    /// Index of the LBA format in use: FLBAS bits 3:0, and bits 6:5 above them.
    pub fn format_in_use(&self) -> usize {
        let flbas = self.flbas();
        usize::from(flbas & 0xf) | usize::from(flbas >> 5 & 3) << 4
    }
}

impl<'a> IdentifyNamespaceMut<'a> {
    /// A builder over a zeroed page.
    pub fn new(page: &'a mut [u8; SIZE]) -> Self {
        page.fill(0);
        Self(page)
    }

    /// Namespace Globally Unique Identifier (NGUID), most significant byte first.
    pub fn set_nguid(&mut self, nguid: &[u8; 16]) -> &mut Self {
        bytes::put(self.0, 104, nguid);
        self
    }

    /// IEEE Extended Unique Identifier (EUI64), most significant byte first.
    pub fn set_eui64(&mut self, eui64: &[u8; 8]) -> &mut Self {
        bytes::put(self.0, 120, eui64);
        self
    }

    /// LBA Format `index` (LBAF0 .. LBAF63); an index outside writes nothing.
    pub fn set_lba_format(&mut self, index: usize, format: LbaFormat) -> &mut Self {
        if index < LBA_FORMATS {
            let word = u32::from(format.metadata)
                | u32::from(format.data) << 16
                | u32::from(format.performance & 3) << 24;
            bytes::put(self.0, 128 + 4 * index, &word.to_le_bytes());
        }
        self
    }
}

fields! {
    IdentifyNamespace, IdentifyNamespaceMut:
    nsze set_nsze: u64 at 0 via u64_at, "Namespace Size (NSZE), in logical blocks.";
    ncap set_ncap: u64 at 8 via u64_at, "Namespace Capacity (NCAP), in logical blocks.";
    nuse set_nuse: u64 at 16 via u64_at, "Namespace Utilization (NUSE), in logical blocks.";
    nsfeat set_nsfeat: u8 at 24 via u8_at, "Namespace Features (NSFEAT).";
    nlbaf set_nlbaf: u8 at 25 via u8_at, "Number of LBA Formats (NLBAF), 0's based.";
    flbas set_flbas: u8 at 26 via u8_at,
        "Formatted LBA Size (FLBAS): index of the format in 3:0 and 6:5, metadata kind in 4.";
    mc set_mc: u8 at 27 via u8_at, "Metadata Capabilities (MC).";
    dpc set_dpc: u8 at 28 via u8_at, "End-to-end Data Protection Capabilities (DPC).";
    dps set_dps: u8 at 29 via u8_at, "End-to-end Data Protection Type Settings (DPS).";
    nmic set_nmic: u8 at 30 via u8_at,
        "Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC).";
    rescap set_rescap: u8 at 31 via u8_at, "Reservation Capabilities (RESCAP).";
    fpi set_fpi: u8 at 32 via u8_at, "Format Progress Indicator (FPI).";
    dlfeat set_dlfeat: u8 at 33 via u8_at, "Deallocate Logical Block Features (DLFEAT).";
    nawun set_nawun: u16 at 34 via u16_at,
        "Namespace Atomic Write Unit Normal (NAWUN), in logical blocks, 0's based.";
    nawupf set_nawupf: u16 at 36 via u16_at,
        "Namespace Atomic Write Unit Power Fail (NAWUPF), in logical blocks, 0's based.";
    nacwu set_nacwu: u16 at 38 via u16_at,
        "Namespace Atomic Compare & Write Unit (NACWU), in logical blocks, 0's based.";
    nabsn set_nabsn: u16 at 40 via u16_at,
        "Namespace Atomic Boundary Size Normal (NABSN), in logical blocks, 0's based.";
    nabo set_nabo: u16 at 42 via u16_at,
        "Namespace Atomic Boundary Offset (NABO), in logical blocks.";
    nabspf set_nabspf: u16 at 44 via u16_at,
        "Namespace Atomic Boundary Size Power Fail (NABSPF), in logical blocks, 0's based.";
    noiob set_noiob: u16 at 46 via u16_at,
        "Namespace Optimal I/O Boundary (NOIOB), in logical blocks; 0 is none.";
    nvmcap set_nvmcap: u128 at 48 via u128_at, "NVM Capacity (NVMCAP), in bytes.";
    npwg set_npwg: u16 at 64 via u16_at,
        "Namespace Preferred Write Granularity (NPWG), in logical blocks, 0's based.";
    npwa set_npwa: u16 at 66 via u16_at,
        "Namespace Preferred Write Alignment (NPWA), in logical blocks, 0's based.";
    npdg set_npdg: u16 at 68 via u16_at,
        "Namespace Preferred Deallocate Granularity (NPDG), in logical blocks, 0's based.";
    npda set_npda: u16 at 70 via u16_at,
        "Namespace Preferred Deallocate Alignment (NPDA), in logical blocks, 0's based.";
    nows set_nows: u16 at 72 via u16_at,
        "Namespace Optimal Write Size (NOWS), in logical blocks, 0's based.";
    anagrpid set_anagrpid: u32 at 92 via u32_at, "ANA Group Identifier (ANAGRPID).";
    nsattr set_nsattr: u8 at 99 via u8_at,
        "Namespace Attributes (NSATTR): bit 0 is write protected now.";
    nvmsetid set_nvmsetid: u16 at 100 via u16_at, "NVM Set Identifier (NVMSETID).";
    endgid set_endgid: u16 at 102 via u16_at, "Endurance Group Identifier (ENDGID).";
}

/// Reads an I/O Command Set Independent Identify Namespace data structure (CNS 08h).
#[derive(Clone, Copy)]
pub struct IndependentNamespace<'a>(&'a [u8; SIZE]);

/// Writes an I/O Command Set Independent Identify Namespace data structure (CNS 08h).
pub struct IndependentNamespaceMut<'a>(&'a mut [u8; SIZE]);

impl<'a> IndependentNamespace<'a> {
    /// A view over the bytes that the controller returned.
    pub const fn new(page: &'a [u8; SIZE]) -> Self {
        Self(page)
    }
}

impl<'a> IndependentNamespaceMut<'a> {
    /// A builder over a zeroed page.
    pub fn new(page: &'a mut [u8; SIZE]) -> Self {
        page.fill(0);
        Self(page)
    }
}

fields! {
    IndependentNamespace, IndependentNamespaceMut:
    nsfeat set_nsfeat: u8 at 0 via u8_at, "Common Namespace Features (NSFEAT).";
    nmic set_nmic: u8 at 1 via u8_at,
        "Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC).";
    rescap set_rescap: u8 at 2 via u8_at, "Reservation Capabilities (RESCAP).";
    fpi set_fpi: u8 at 3 via u8_at, "Format Progress Indicator (FPI).";
    anagrpid set_anagrpid: u32 at 4 via u32_at, "ANA Group Identifier (ANAGRPID).";
    nsattr set_nsattr: u8 at 8 via u8_at,
        "Namespace Attributes (NSATTR): bit 0 is write protected now.";
    nvmsetid set_nvmsetid: u16 at 10 via u16_at, "NVM Set Identifier (NVMSETID).";
    endgid set_endgid: u16 at 12 via u16_at, "Endurance Group Identifier (ENDGID).";
    nstat set_nstat: u8 at 14 via u8_at, "Namespace Status (NSTAT).";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise() -> [u8; SIZE] {
        let mut page = [0u8; SIZE];
        for (i, byte) in page.iter_mut().enumerate() {
            *byte = (i as u8) ^ (i >> 8) as u8;
        }
        page
    }

    /// Offsets and widths copied from the layout table, not from the macro above.
    #[test]
    fn every_field_reads_the_bytes_of_the_layout_table() {
        let page = noise();
        let two = |at: usize| u16::from(page[at]) | u16::from(page[at + 1]) << 8;
        let four = |at: usize| u32::from(two(at)) | u32::from(two(at + 2)) << 16;
        let id = IdentifyNamespace::new(&page);
        assert_eq!(id.nsze().to_le_bytes()[..], page[0..=7]);
        assert_eq!(id.ncap().to_le_bytes()[..], page[8..=15]);
        assert_eq!(id.nuse().to_le_bytes()[..], page[16..=23]);
        assert_eq!(
            [id.nsfeat(), id.nlbaf(), id.flbas(), id.mc(), id.dpc()],
            page[24..=28]
        );
        assert_eq!(
            [id.dps(), id.nmic(), id.rescap(), id.fpi(), id.dlfeat()],
            page[29..=33]
        );
        assert_eq!(
            (id.nawun(), id.nawupf(), id.nacwu()),
            (two(34), two(36), two(38))
        );
        assert_eq!(
            (id.nabsn(), id.nabo(), id.nabspf(), id.noiob()),
            (two(40), two(42), two(44), two(46))
        );
        assert_eq!(id.nvmcap().to_le_bytes()[..], page[48..=63]);
        assert_eq!(
            (id.npwg(), id.npwa(), id.npdg(), id.npda(), id.nows()),
            (two(64), two(66), two(68), two(70), two(72))
        );
        assert_eq!((id.anagrpid(), id.nsattr()), (four(92), page[99]));
        assert_eq!((id.nvmsetid(), id.endgid()), (two(100), two(102)));
        assert_eq!(id.nguid()[..], page[104..=119]);
        assert_eq!(id.eui64()[..], page[120..=127]);

        let id = IndependentNamespace::new(&page);
        assert_eq!([id.nsfeat(), id.nmic(), id.rescap(), id.fpi()], page[0..=3]);
        assert_eq!((id.anagrpid(), id.nsattr()), (four(4), page[8]));
        assert_eq!((id.nvmsetid(), id.endgid()), (two(10), two(12)));
        assert_eq!(id.nstat(), page[14]);
    }

    #[test]
    fn builder_writes_the_layout_and_nothing_else() {
        let mut page = [0xffu8; SIZE];
        IdentifyNamespaceMut::new(&mut page)
            .set_nsze(0x0102_0304_0506_0708)
            .set_nsfeat(NSFEAT_UIDREUSE)
            .set_nlbaf(1)
            .set_flbas(1)
            .set_nows(0x0a0b)
            .set_nguid(b"0123456789abcdef")
            .set_eui64(b"ABCDEFGH")
            .set_lba_format(
                1,
                LbaFormat {
                    metadata: 8,
                    data: 12,
                    performance: 2,
                },
            )
            .set_lba_format(
                64,
                LbaFormat {
                    data: 9,
                    ..LbaFormat::default()
                },
            );
        let mut expected = [0u8; SIZE];
        expected[..8].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        expected[24..=26].copy_from_slice(&[8, 1, 1]);
        expected[72..=73].copy_from_slice(&[0x0b, 0x0a]);
        expected[104..120].copy_from_slice(b"0123456789abcdef");
        expected[120..128].copy_from_slice(b"ABCDEFGH");
        expected[132..136].copy_from_slice(&[8, 0, 12, 2]);
        assert_eq!(page, expected);

        let mut page = [0xffu8; SIZE];
        IndependentNamespaceMut::new(&mut page)
            .set_nmic(NMIC_SHARED)
            .set_nstat(NSTAT_READY);
        let mut expected = [0u8; SIZE];
        expected[1] = 1;
        expected[14] = 1;
        assert_eq!(page, expected);
    }

    #[test]
    fn format_in_use_joins_both_parts_of_the_index() {
        let mut page = [0u8; SIZE];
        page[26] = 0x55; // 3:0 = 5, bit 4 metadata, 6:5 = 2
        page[128 + 4 * 37 + 2] = 9;
        let id = IdentifyNamespace::new(&page);
        assert_eq!(id.format_in_use(), 37);
        assert_eq!(id.lba_format(37).block_size(), Some(512));
        assert_eq!(id.lba_format(36).block_size(), None);
        assert_eq!(id.lba_format(usize::MAX), LbaFormat::default());
    }
}
