// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Values of features that have fields in a dword: NVMe Base 2.1, section 5.1.25.1.
//!
//! Pure data, CDW11 of Set Features and dword 0 of the completion. Which feature is supported and
//! what it changes belongs to the controller.

/// Volatile Write Cache (FID 06h) bit 0: the cache is enabled (WCE).
pub const WRITE_CACHE_ENABLED: u32 = 1 << 0;

/// Number of Queues (FID 07h), as counts: 1 to 65535 of each, without the admin queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// I/O submission queues (NSQR or NSQA, bits 15:0, 0's based).
    pub submission: u16,
    /// I/O completion queues (NCQR or NCQA, bits 31:16, 0's based).
    pub completion: u16,
}

impl NumberOfQueues {
    /// What the host asks for in CDW11; `None` for FFFFh, which is Invalid Field in Command.
    pub const fn from_dword(value: u32) -> Option<Self> {
        let submission = (value as u16).checked_add(1);
        let completion = ((value >> 16) as u16).checked_add(1);
        match (submission, completion) {
            (Some(submission), Some(completion)) => Some(Self {
                submission,
                completion,
            }),
            _ => None,
        }
    }

    /// The counts as they travel; a count of 0 cannot be told and goes as 1.
    pub const fn to_dword(self) -> u32 {
        self.submission.saturating_sub(1) as u32 | (self.completion.saturating_sub(1) as u32) << 16
    }
}

/// Interrupt Coalescing (FID 08h): applies to I/O completion queues only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptCoalescing {
    /// Aggregation Threshold (THR), bits 7:0: completions to wait for, 0's based.
    pub threshold: u8,
    /// Aggregation Time (TIME), bits 15:8: longest delay in 100 microseconds; 0 is no delay.
    pub time: u8,
}

impl InterruptCoalescing {
    /// From CDW11.
    pub const fn from_dword(value: u32) -> Self {
        Self {
            threshold: value as u8,
            time: (value >> 8) as u8,
        }
    }

    /// The value as it travels.
    pub const fn to_dword(self) -> u32 {
        self.threshold as u32 | (self.time as u32) << 8
    }
}

/// Interrupt Vector Configuration (FID 09h) of one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptVector {
    /// Interrupt Vector (IV), bits 15:0.
    pub vector: u16,
    /// Coalescing Disable (CD), bit 16.
    pub coalescing_disabled: bool,
}

impl InterruptVector {
    /// From CDW11.
    pub const fn from_dword(value: u32) -> Self {
        Self {
            vector: value as u16,
            coalescing_disabled: value & 1 << 16 != 0,
        }
    }

    /// The value as it travels.
    pub const fn to_dword(self) -> u32 {
        self.vector as u32 | (self.coalescing_disabled as u32) << 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_queues_is_zeroes_based() {
        let value = NumberOfQueues {
            submission: 1,
            completion: 0x0403,
        };
        assert_eq!(NumberOfQueues::from_dword(0x0402_0000), Some(value));
        assert_eq!(value.to_dword(), 0x0402_0000);
        assert_eq!(NumberOfQueues::from_dword(0x0000_ffff), None);
        assert_eq!(NumberOfQueues::from_dword(0xffff_0000), None);
        let most = NumberOfQueues {
            submission: 0xffff,
            completion: 0xffff,
        };
        assert_eq!(NumberOfQueues::from_dword(0xfffe_fffe), Some(most));
    }

    #[test]
    fn interrupt_features_have_their_fields() {
        let coalescing = InterruptCoalescing::from_dword(0xffff_0807);
        assert_eq!((coalescing.threshold, coalescing.time), (7, 8));
        assert_eq!(coalescing.to_dword(), 0x0807);
        let vector = InterruptVector::from_dword(0x0001_0203);
        assert_eq!((vector.vector, vector.coalescing_disabled), (0x0203, true));
        assert_eq!(vector.to_dword(), 0x0001_0203);
        assert_eq!(InterruptVector::from_dword(0x0002_0000).to_dword(), 0);
    }
}
