// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The Controller State data structure and the NVMe Controller State in it, version 0 of both: NVMe
//! Base 2.1, section 5.1.17.1.3, figures 358 to 361.
//!
//! Header, then I/O submission queues, then I/O completion queues, then vendor specific data. It
//! carries nothing else of the controller: admin queue, CC, features, outstanding Asynchronous
//! Event Requests and so on are in the vendor's part, which this file does not look into.
//!
//! (libnvme's C structures have both queue arrays at one offset, in a union; in the specification
//! the completion queues follow the submission queues. The last byte offset in figure 359 is 8 too
//! high: an entry has 24 bytes there as everywhere.)

use super::super::bytes;
use super::Malformed;

/// Size of the header of the Controller State, in bytes.
pub const HEADER: usize = 48;
/// Size of the header of the NVMe Controller State, in bytes.
pub const NVME_HEADER: usize = 8;
/// Size of the state of one queue, in bytes.
pub const QUEUE: usize = 24;

/// State of an I/O Submission Queue, figure 360.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubmissionQueue {
    /// PRP Entry 1 (IOSQPRP1) of the Create I/O Submission Queue command.
    pub prp1: u64,
    /// Queue Size (IOSQQSIZE), 0's based.
    pub size: u16,
    /// Queue Identifier (IOSQQID).
    pub id: u16,
    /// Identifier of its completion queue (IOSQCQID).
    pub completion_queue: u16,
    /// Attributes (IOSQA): bit 0 physically contiguous (PC), bits 2:1 priority (QPRIO).
    pub attributes: u16,
    /// Head Pointer (IOSQHP): the next entry that the controller fetches.
    pub head: u16,
    /// Tail Pointer (IOSQTP), as last written to the doorbell.
    pub tail: u16,
}

/// State of an I/O Completion Queue, figure 361.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompletionQueue {
    /// PRP Entry 1 (IOCQPRP1) of the Create I/O Completion Queue command.
    pub prp1: u64,
    /// Queue Size (IOCQQSIZE), 0's based.
    pub size: u16,
    /// Queue Identifier (IOCQQID).
    pub id: u16,
    /// Head Pointer (IOCQHP), as last written to the doorbell.
    pub head: u16,
    /// Tail Pointer (IOCQTP): the slot that the controller writes next.
    pub tail: u16,
    /// Attributes (IOCQA): the bits of this file, and the interrupt vector (IOCQIV) in 31:16.
    pub attributes: u32,
}

/// Bit 0 of the attributes of either queue: physically contiguous (PC).
pub const CONTIGUOUS: u16 = 1 << 0;
/// Bit 1 of the attributes of a completion queue: interrupts enabled (IOCQIEN).
pub const INTERRUPTS: u32 = 1 << 1;
/// Bit 2 of the attributes of a completion queue: Slot 0 Phase Tag (S0PT), the phase in slot 0 of
/// the queue's memory.
pub const SLOT_0_PHASE: u32 = 1 << 2;

impl SubmissionQueue {
    fn decode(entry: &[u8]) -> Self {
        Self {
            prp1: bytes::u64_at(entry, 0),
            size: bytes::u16_at(entry, 8),
            id: bytes::u16_at(entry, 10),
            completion_queue: bytes::u16_at(entry, 12),
            attributes: bytes::u16_at(entry, 14),
            head: bytes::u16_at(entry, 16),
            tail: bytes::u16_at(entry, 18),
        }
    }

    fn encode(&self, entry: &mut [u8]) {
        entry.fill(0);
        bytes::put(entry, 0, &self.prp1.to_le_bytes());
        bytes::put(entry, 8, &self.size.to_le_bytes());
        bytes::put(entry, 10, &self.id.to_le_bytes());
        bytes::put(entry, 12, &self.completion_queue.to_le_bytes());
        bytes::put(entry, 14, &self.attributes.to_le_bytes());
        bytes::put(entry, 16, &self.head.to_le_bytes());
        bytes::put(entry, 18, &self.tail.to_le_bytes());
    }
}

impl CompletionQueue {
    /// Interrupt Vector (IOCQIV).
    pub const fn vector(&self) -> u16 {
        (self.attributes >> 16) as u16
    }

    fn decode(entry: &[u8]) -> Self {
        Self {
            prp1: bytes::u64_at(entry, 0),
            size: bytes::u16_at(entry, 8),
            id: bytes::u16_at(entry, 10),
            head: bytes::u16_at(entry, 12),
            tail: bytes::u16_at(entry, 14),
            attributes: bytes::u32_at(entry, 16),
        }
    }

    fn encode(&self, entry: &mut [u8]) {
        entry.fill(0);
        bytes::put(entry, 0, &self.prp1.to_le_bytes());
        bytes::put(entry, 8, &self.size.to_le_bytes());
        bytes::put(entry, 10, &self.id.to_le_bytes());
        bytes::put(entry, 12, &self.head.to_le_bytes());
        bytes::put(entry, 14, &self.tail.to_le_bytes());
        bytes::put(entry, 16, &self.attributes.to_le_bytes());
    }
}

/// The queues of the NVMe Controller State, each list in ascending order of identifiers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queues<'a> {
    /// I/O submission queues.
    pub submission: &'a [SubmissionQueue],
    /// I/O completion queues.
    pub completion: &'a [CompletionQueue],
}

/// Bytes of a Controller State with `queues` (`None` leaves the NVMe part out, as CSVI 0 does) and
/// `vendor` bytes of vendor specific data, rounded up to whole dwords.
pub fn encoded_size(queues: Option<Queues<'_>>, vendor: usize) -> Option<usize> {
    nvme_size(queues)?
        .checked_add(HEADER)?
        .checked_add(vendor.checked_next_multiple_of(4)?)
}

fn nvme_size(queues: Option<Queues<'_>>) -> Option<usize> {
    let Some(queues) = queues else {
        return Some(0);
    };
    let count = queues
        .submission
        .len()
        .checked_add(queues.completion.len())?;
    count.checked_mul(QUEUE)?.checked_add(NVME_HEADER)
}

/// Writes a Controller State into `buffer` and returns its size in bytes; `None` when it does not
/// fit, or a list has more than 65535 queues. `suspended` goes into CSATTR: the target was
/// suspended all the time. Vendor specific data is filled up with zeroes to whole dwords.
pub fn encode(
    buffer: &mut [u8],
    suspended: bool,
    queues: Option<Queues<'_>>,
    vendor: &[u8],
) -> Option<usize> {
    let size = encoded_size(queues, vendor.len())?;
    let nvme = nvme_size(queues)?;
    let buffer = buffer.get_mut(..size)?;
    let (header, rest) = buffer.split_at_mut_checked(HEADER)?;
    let (nvme, vendor_part) = rest.split_at_mut_checked(nvme)?;
    header.fill(0);
    bytes::put(header, 2, &[u8::from(suspended)]);
    bytes::put(header, 16, &(nvme.len() as u64 / 4).to_le_bytes());
    bytes::put(header, 32, &(vendor_part.len() as u64 / 4).to_le_bytes());
    if let Some(queues) = queues {
        let (header, entries) = nvme.split_at_mut_checked(NVME_HEADER)?;
        header.fill(0);
        let submission = u16::try_from(queues.submission.len()).ok()?;
        let completion = u16::try_from(queues.completion.len()).ok()?;
        bytes::put(header, 2, &submission.to_le_bytes());
        bytes::put(header, 4, &completion.to_le_bytes());
        let mut entries = entries.chunks_exact_mut(QUEUE);
        for (queue, entry) in queues.submission.iter().zip(&mut entries) {
            queue.encode(entry);
        }
        for (queue, entry) in queues.completion.iter().zip(&mut entries) {
            queue.encode(entry);
        }
    }
    vendor_part.fill(0);
    bytes::put(vendor_part, 0, vendor);
    Some(size)
}

/// The header of a Controller State: what tells how long the whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Controller Suspended (CSATTR bit 0): the target was suspended all the time, so the fields
    /// belong together.
    pub suspended: bool,
    /// Bytes of the NVMe Controller State (NVMECSS, in dwords on the wire).
    pub nvme_bytes: u64,
    /// Bytes of the vendor specific data (VSS, in dwords on the wire).
    pub vendor_bytes: u64,
}

impl Header {
    /// Decodes the first [`HEADER`] bytes.
    ///
    /// # Errors
    ///
    /// A version other than 0, or sizes that together leave 2^63 bytes.
    pub fn decode(header: &[u8; HEADER]) -> Result<Self, Malformed> {
        if bytes::u16_at(header, 0) != 0 {
            return Err(Malformed::new(0, "unknown version of the controller state"));
        }
        Ok(Self {
            suspended: bytes::u8_at(header, 2) & 1 != 0,
            nvme_bytes: size_at(header, 16)?,
            vendor_bytes: size_at(header, 32)?,
        })
    }

    /// Bytes of the whole structure.
    pub const fn total_bytes(&self) -> u64 {
        // Each part is below 2^62.
        HEADER as u64 + self.nvme_bytes + self.vendor_bytes
    }
}

/// A 128-bit count of dwords, as bytes below 2^62.
fn size_at(header: &[u8; HEADER], at: usize) -> Result<u64, Malformed> {
    match bytes::u128_at(header, at) {
        dwords if dwords < 1 << 60 => Ok(dwords as u64 * 4),
        _ => Err(Malformed::new(at, "size out of any range")),
    }
}

/// A Controller State that has been checked.
#[derive(Clone, Copy, Debug)]
pub struct ControllerState<'a> {
    /// Its header.
    pub header: Header,
    /// Vendor specific data; its last dword may be filled up with zeroes.
    pub vendor: &'a [u8],
    submission: &'a [u8],
    completion: &'a [u8],
}

impl<'a> ControllerState<'a> {
    /// Decodes and checks a whole Controller State at the start of `buffer`; bytes behind it are
    /// left alone ([`Header::total_bytes`] tells where it ends).
    ///
    /// # Errors
    ///
    /// An unknown version, parts that are not all in `buffer`, an NVMe part whose size is not that
    /// of its queues, queue 0, identifiers that do not ascend, a pointer outside its queue, a queue
    /// of one entry (QSIZE 0, which the Create commands refuse), or a submission queue without its
    /// completion queue.
    pub fn decode(buffer: &'a [u8]) -> Result<Self, Malformed> {
        let Some((header, rest)) = buffer.split_first_chunk::<HEADER>() else {
            return Err(Malformed::new(
                buffer.len(),
                "controller state shorter than its header",
            ));
        };
        let header = Header::decode(header)?;
        let (nvme, rest) = take(rest, header.nvme_bytes)
            .ok_or(Malformed::new(16, "NVMe controller state cut short"))?;
        let (vendor, _) = take(rest, header.vendor_bytes)
            .ok_or(Malformed::new(32, "vendor specific data cut short"))?;
        let (submission, completion) = split_queues(nvme)?;
        let state = Self {
            header,
            vendor,
            submission,
            completion,
        };
        state.check_queues()?;
        Ok(state)
    }

    /// Whether there is an NVMe part at all, perhaps without queues.
    pub const fn has_queues(&self) -> bool {
        self.header.nvme_bytes != 0
    }

    /// I/O submission queues, in ascending order of identifiers.
    pub fn submission_queues(&self) -> impl ExactSizeIterator<Item = SubmissionQueue> + 'a {
        self.submission
            .chunks_exact(QUEUE)
            .map(SubmissionQueue::decode)
    }

    /// I/O completion queues, in ascending order of identifiers.
    pub fn completion_queues(&self) -> impl ExactSizeIterator<Item = CompletionQueue> + 'a {
        self.completion
            .chunks_exact(QUEUE)
            .map(CompletionQueue::decode)
    }

    fn check_queues(&self) -> Result<(), Malformed> {
        let mut at = HEADER + NVME_HEADER;
        let mut last = 0;
        for queue in self.submission_queues() {
            check_queue(at, last, queue.id, queue.size, queue.head, queue.tail)?;
            if !self.has_completion_queue(queue.completion_queue) {
                return Err(Malformed::new(at + 12, "no such completion queue"));
            }
            last = queue.id;
            at += QUEUE;
        }
        last = 0;
        for queue in self.completion_queues() {
            check_queue(at, last, queue.id, queue.size, queue.head, queue.tail)?;
            last = queue.id;
            at += QUEUE;
        }
        Ok(())
    }

    /// Searches the completion queues, whose order may not have been checked yet: then the answer
    /// is any, and the check of the order fails later.
    fn has_completion_queue(&self, id: u16) -> bool {
        let (mut low, mut high) = (0, self.completion.len() / QUEUE);
        while low < high {
            let middle = low + (high - low) / 2;
            match bytes::u16_at(self.completion, middle * QUEUE + 10) {
                found if found == id => return true,
                found if found < id => low = middle + 1,
                _ => high = middle,
            }
        }
        false
    }
}

fn take(bytes: &[u8], size: u64) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(usize::try_from(size).ok()?)
}

/// The two lists of the NVMe part, which is empty or complete.
fn split_queues(nvme: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    if nvme.is_empty() {
        return Ok((&[], &[]));
    }
    let Some((header, entries)) = nvme.split_first_chunk::<NVME_HEADER>() else {
        return Err(Malformed::new(
            16,
            "NVMe controller state shorter than its header",
        ));
    };
    if bytes::u16_at(header, 0) != 0 {
        return Err(Malformed::new(
            HEADER,
            "unknown version of the NVMe controller state",
        ));
    }
    let submission = usize::from(bytes::u16_at(header, 2)) * QUEUE;
    let completion = usize::from(bytes::u16_at(header, 4)) * QUEUE;
    match entries.split_at_checked(submission) {
        Some((first, second)) if second.len() == completion => Ok((first, second)),
        _ => Err(Malformed::new(
            HEADER + 2,
            "size of the NVMe controller state does not fit its queues",
        )),
    }
}

fn check_queue(
    at: usize,
    last: u16,
    id: u16,
    size: u16,
    head: u16,
    tail: u16,
) -> Result<(), Malformed> {
    if id <= last {
        return Err(Malformed::new(at + 10, "queue identifiers do not ascend"));
    }
    if size == 0 {
        return Err(Malformed::new(at + 8, "queue with one entry"));
    }
    if head > size || tail > size {
        return Err(Malformed::new(at, "pointer outside the queue"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::super::random::Random;
    use super::*;

    const SUBMISSION: [SubmissionQueue; 2] = [
        SubmissionQueue {
            prp1: 0x0807_0605_0403_0201,
            size: 0x0a09,
            id: 1,
            completion_queue: 2,
            attributes: 0x0007,
            head: 0x0908,
            tail: 0x0a09,
        },
        SubmissionQueue {
            prp1: 0x1000,
            size: 1,
            id: 0x0203,
            completion_queue: 2,
            attributes: CONTIGUOUS,
            head: 0,
            tail: 1,
        },
    ];
    const COMPLETION: [CompletionQueue; 1] = [CompletionQueue {
        prp1: 0x1817_1615_1413_1211,
        size: 0x1a19,
        id: 2,
        head: 0x0102,
        tail: 0x0304,
        attributes: 0x1b1c_0000 | SLOT_0_PHASE | INTERRUPTS | CONTIGUOUS as u32,
    }];
    const QUEUES: Queues<'static> = Queues {
        submission: &SUBMISSION,
        completion: &COMPLETION,
    };

    /// Figures 358 to 361, with five bytes of vendor specific data.
    const GOLDEN: [u8; 136] = [
        0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // VER, CSATTR
        20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // NVMECSS
        2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // VSS
        0, 0, 2, 0, 1, 0, 0, 0, // VER, NIOSQ, NIOCQ
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 0, 2, 0, 7, 0, 8, 9, 9, 10, 0, 0, 0, 0, //
        0, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 3, 2, 2, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, //
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 2, 0, 2, 1, 4, 3, 7, 0, 0x1c,
        0x1b, 0, 0, 0, 0, // the completion queue follows
        b'v', b'e', b'n', b'd', b'o', 0, 0, 0,
    ];

    #[test]
    fn structure_has_the_layout_of_the_specification() {
        let mut buffer = [0xff; 140];
        assert_eq!(encoded_size(Some(QUEUES), 5), Some(136));
        let size = encode(&mut buffer, true, Some(QUEUES), b"vendo");
        assert_eq!(size, Some(136));
        assert_eq!(buffer[..136], GOLDEN);
        assert_eq!(buffer[136..], [0xff; 4]);

        let state = ControllerState::decode(&buffer).unwrap();
        assert!(state.header.suspended && state.has_queues());
        assert_eq!(state.header.total_bytes(), 136);
        assert!(state.submission_queues().eq(SUBMISSION));
        assert!(state.completion_queues().eq(COMPLETION));
        assert_eq!(state.vendor, b"vendo\0\0\0");
        assert_eq!(COMPLETION[0].vector(), 0x1b1c);
    }

    #[test]
    fn parts_can_be_left_out() {
        let mut buffer = [0xff; 64];
        assert_eq!(encode(&mut buffer, false, None, &[]), Some(48));
        assert_eq!(buffer[..48], [0; 48]);
        let state = ControllerState::decode(&buffer[..48]).unwrap();
        assert!(!state.has_queues() && state.vendor.is_empty());
        let no_queues = Some(Queues::default());
        assert_eq!(encode(&mut buffer, false, no_queues, &[]), Some(56));
        assert_eq!(buffer[16], 2);
        let state = ControllerState::decode(&buffer).unwrap();
        assert!(state.has_queues());
        assert_eq!(state.submission_queues().len(), 0);
        assert_eq!(encode(&mut buffer[..55], false, no_queues, &[]), None);
        assert_eq!(encoded_size(None, usize::MAX), None);
        assert_eq!(encoded_size(None, 3), Some(52));
    }

    #[test]
    fn every_cut_is_an_error() {
        for end in 0..GOLDEN.len() {
            assert!(ControllerState::decode(&GOLDEN[..end]).is_err(), "{end}");
        }
        assert!(ControllerState::decode(&GOLDEN).is_ok());
    }

    #[test]
    fn bad_fields_are_errors() {
        let bad = |at: usize, value: u8| {
            let mut state = GOLDEN;
            state[at] = value;
            ControllerState::decode(&state)
                .map(|_| ())
                .map_err(|e| e.offset)
        };
        assert_eq!(bad(1, 1), Err(0)); // version
        assert_eq!(bad(31, 1), Err(16)); // NVMECSS, top byte
        assert_eq!(bad(39, 0x80), Err(32)); // VSS, beyond any address
        assert_eq!(bad(16, 19), Err(50)); // NVMECSS does not fit the queues
        let mut longer = GOLDEN;
        (longer[16], longer[32]) = (22, 0);
        assert_eq!(ControllerState::decode(&longer).unwrap_err().offset, 50);
        assert_eq!(bad(32, 3), Err(32)); // VSS beyond the buffer
        assert_eq!(bad(48, 1), Err(48)); // version of the NVMe part
        assert_eq!(bad(50, 3), Err(50));
        assert_eq!(bad(66, 0), Err(66)); // queue 0
        assert_eq!(bad(91, 0), Ok(())); // 3 after 1
        assert_eq!(bad(67, 2), Ok(())); // 201h, then 203h
        assert_eq!(bad(67, 3), Err(90)); // 301h, then 203h
        assert_eq!(bad(68, 1), Err(68)); // no such completion queue
        assert_eq!(bad(73, 0xff), Err(56)); // head outside
        assert_eq!(bad(75, 0xff), Err(56)); // tail outside
        assert_eq!(bad(88, 0), Err(88)); // one entry
        assert_eq!(bad(114, 0), Err(68)); // its submission queues find it no more
        assert_eq!(bad(117, 0xff), Err(104));
        assert_eq!(bad(3, 0xff), Ok(())); // reserved
        assert_eq!(bad(2, 0xfe), Ok(()));
    }

    #[test]
    fn any_bytes_decode_without_panic() {
        let mut random = Random::new(23);
        let mut bytes = [0; 256];
        let mut good = 0;
        for round in 0..6000 {
            if round % 3 == 0 {
                random.fill(&mut bytes);
            } else {
                bytes[..136].copy_from_slice(&GOLDEN);
                random.damage(&mut bytes[..136]);
            }
            let end = 136 + random.below(bytes.len() - 136);
            if let Ok(state) = ControllerState::decode(&bytes[..end]) {
                good += 1;
                assert!(state.header.total_bytes() <= end as u64);
                for queue in state.submission_queues() {
                    assert!(queue.id != 0 && queue.head <= queue.size);
                    assert!(state
                        .completion_queues()
                        .any(|completion| completion.id == queue.completion_queue));
                }
            }
        }
        assert!(good > 100, "{good}");
    }
}
