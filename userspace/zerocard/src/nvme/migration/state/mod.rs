// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A controller state as bytes: the standard parts, our records behind them, and a checksum over
//! all.
//!
//! Pure. Who gives and takes the values is the controller.

mod image;
#[cfg(test)]
mod tests;
mod tlv;

use zeroshift_nvme::hmlm::state::{self, ControllerState, Header, Queues};

pub(crate) use self::image::{
    AdminQueues, DoorbellBuffers, ErrorLog, Event, Events, Features, Identity, Image, Namespace,
    Registers, Ring, ERROR_ENTRY,
};
use crate::pci::{Parts, Refused};
pub(crate) use zeroshift_nvme::hmlm::state::{CompletionQueue, SubmissionQueue};

/// The UUID of our vendor specific data, 9edbdb91-8d5f-46fc-b482-6c7d393c7a9b.
pub(crate) const FORMAT_UUID: [u8; 16] = [
    0x9e, 0xdb, 0xdb, 0x91, 0x8d, 0x5f, 0x46, 0xfc, 0xb4, 0x82, 0x6c, 0x7d, 0x39, 0x3c, 0x7a, 0x9b,
];

/// The record that ends the vendor specific data: CRC-32 of all that comes before its value.
const CHECKSUM: u32 = tlv::MANDATORY | 0xff;
/// Bytes of that record.
const CHECKSUM_RECORD: usize = tlv::HEADER + 4;

/// What a state says, parts that it does not have being `None`.
#[derive(Debug, PartialEq)]
pub(crate) struct Contents {
    pub(crate) queues: Option<IoQueues>,
    pub(crate) image: Option<Image>,
}

/// The I/O queues, each list in ascending order of identifiers.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct IoQueues {
    pub(crate) submission: Vec<SubmissionQueue>,
    pub(crate) completion: Vec<CompletionQueue>,
}

impl Contents {
    /// A Controller State data structure. `suspended`: the fields belong together.
    pub(crate) fn encode(&self, suspended: bool) -> Vec<u8> {
        let queues = self.queues.as_ref().map(|queues| Queues {
            submission: &queues.submission,
            completion: &queues.completion,
        });
        let vendor = match &self.image {
            Some(image) => {
                let mut vendor = image.encode();
                tlv::put(&mut vendor, CHECKSUM, &[0; 4]);
                vendor
            }
            None => Vec::new(),
        };
        // A controller has at most 65,535 queues of each kind, so it always has a size and fits.
        let size = state::encoded_size(queues, vendor.len()).unwrap_or(0);
        let mut bytes = vec![0; size];
        if state::encode(&mut bytes, suspended, queues, &vendor).is_none() {
            return Vec::new();
        }
        if let (Some(_), Some((rest, sum))) = (&self.image, bytes.split_last_chunk_mut::<4>()) {
            *sum = crc32(rest).to_le_bytes();
        }
        bytes
    }

    /// Reads a Controller State data structure of which the host says that it has these parts.
    pub(crate) fn decode(bytes: &[u8], parts: Parts) -> Result<Self, Refused> {
        let state = ControllerState::decode(bytes).map_err(|error| Refused(error.to_string()))?;
        let Header {
            suspended,
            nvme_bytes,
            vendor_bytes,
        } = state.header;
        if (!parts.standard && nvme_bytes != 0) || (!parts.vendor && vendor_bytes != 0) {
            return Err(Refused::new("it has a part whose index is 0"));
        }
        if (parts.standard && nvme_bytes == 0) || (parts.vendor && vendor_bytes == 0) {
            return Err(Refused::new("a part whose index is given is missing"));
        }
        if !suspended {
            return Err(Refused::new("it was not taken while suspended"));
        }
        let image = if parts.vendor {
            // It was found to be all in the buffer.
            let whole = usize::try_from(state.header.total_bytes()).unwrap_or(0);
            Some(decode_vendor(&bytes[..whole], state.vendor)?)
        } else {
            None
        };
        let queues = parts.standard.then(|| IoQueues {
            submission: state.submission_queues().collect(),
            completion: state.completion_queues().collect(),
        });
        Ok(Self { queues, image })
    }
}

fn decode_vendor(whole: &[u8], vendor: &[u8]) -> Result<Image, Refused> {
    let missing = || Refused::new("the checksum record does not come last");
    let at = vendor.len().checked_sub(CHECKSUM_RECORD);
    let (records, last) = vendor.split_at(at.ok_or_else(missing)?);
    let mut last = tlv::records(last);
    let Some(Ok((CHECKSUM, sum))) = last.next() else {
        return Err(missing());
    };
    let Some((before, _)) = whole.split_last_chunk::<4>() else {
        return Err(missing());
    };
    if sum != crc32(before).to_le_bytes() {
        return Err(Refused::new("the checksum is wrong"));
    }
    Image::decode(records)
}

/// CRC-32 as Ethernet and zip have it (polynomial 04C11DB7h, reflected). States are small and rare,
/// so it goes without a table.
fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(sum & 1))
        })
    });
    !sum
}
