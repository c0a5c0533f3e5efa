// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vfio-user protocol on the wire: header, commands, flags, and a reader for bodies.
//!
//! Definitions only, little-endian as every host that runs this. They follow the protocol document
//! in QEMU's `docs/interop/vfio-user.rst` and the structures of `linux/vfio.h` that it embeds.

use rustix::io::Errno;

/// Commands that are answered with more than "not supported".
pub(super) mod command {
    pub(crate) const VERSION: u16 = 1;
    pub(crate) const DMA_MAP: u16 = 2;
    pub(crate) const DMA_UNMAP: u16 = 3;
    pub(crate) const DEVICE_GET_INFO: u16 = 4;
    pub(crate) const DEVICE_GET_REGION_INFO: u16 = 5;
    pub(crate) const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub(crate) const DEVICE_SET_IRQS: u16 = 8;
    pub(crate) const REGION_READ: u16 = 9;
    pub(crate) const REGION_WRITE: u16 = 10;
    pub(crate) const DEVICE_RESET: u16 = 13;
}

/// Number of regions of a PCI device, and those that are not empty here.
pub(super) mod region {
    pub(crate) const COUNT: u32 = 9;
    pub(crate) const BAR0: u32 = 0;
    pub(crate) const CONFIG: u32 = 7;
    /// Readable and writable; neither mappable nor with capabilities.
    pub(crate) const READ_WRITE: u32 = 1 | 2;
}

/// Interrupt indices of a PCI device, and the flags of SET_IRQS.
pub(super) mod irq {
    pub(crate) const COUNT: u32 = 5;
    pub(crate) const MSIX: u32 = 2;
    pub(crate) const ERROR: u32 = 3;
    /// Delivered through eventfds. Deliberately without NORESIZE: with it, QEMU would have to
    /// assign every vector at once.
    pub(crate) const INFO_EVENTFD: u32 = 1;
    pub(crate) const DATA_NONE: u32 = 1 << 0;
    pub(crate) const DATA_BOOL: u32 = 1 << 1;
    pub(crate) const DATA_EVENTFD: u32 = 1 << 2;
    pub(crate) const DATA: u32 = DATA_NONE | DATA_BOOL | DATA_EVENTFD;
    pub(crate) const ACTION_MASK: u32 = 1 << 3;
    pub(crate) const ACTION_UNMASK: u32 = 1 << 4;
    pub(crate) const ACTION_TRIGGER: u32 = 1 << 5;
}

/// Flags of DEVICE_GET_INFO: resettable, PCI.
pub(super) const DEVICE_FLAGS: u32 = 1 | 2;

/// Flags of DMA_MAP.
pub(super) const MAP_READ: u32 = 1;
pub(super) const MAP_WRITE: u32 = 2;

/// Flags of DMA_UNMAP.
pub(super) const UNMAP_DIRTY_BITMAP: u32 = 1 << 0;
pub(super) const UNMAP_ALL: u32 = 1 << 1;

/// Bytes of data that one message may carry.
pub(super) const MAX_TRANSFER: usize = 1024 * 1024;
/// Descriptors that one message may carry; the most that QEMU accepts.
pub(super) const MAX_FDS: usize = 16;
/// Total size of the largest message: data plus any structure before it.
pub(super) const MAX_MESSAGE: usize = MAX_TRANSFER + 4096;

/// Size of a header in bytes.
pub(super) const HEADER: usize = 16;

const TYPE: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// A message header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) command: u16,
    /// Size of the message with its header.
    pub(super) size: u32,
    pub(super) flags: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let mut body = Body(bytes);
        // Sixteen bytes hold these four fields.
        Self {
            id: body.u16().unwrap_or_default(),
            command: body.u16().unwrap_or_default(),
            size: body.u32().unwrap_or_default(),
            flags: body.u32().unwrap_or_default(),
        }
    }

    pub(super) fn is_command(&self) -> bool {
        self.flags & TYPE == TYPE_COMMAND
    }

    pub(super) fn is_reply(&self) -> bool {
        self.flags & TYPE == TYPE_REPLY
    }

    pub(super) fn wants_reply(&self) -> bool {
        self.flags & NO_REPLY == 0
    }

    /// The whole reply to this message.
    pub(super) fn reply(&self, result: Result<&[u8], Errno>) -> Vec<u8> {
        let (flags, errno, body) = match result {
            Ok(body) => (TYPE_REPLY, 0, body),
            Err(error) => (TYPE_REPLY | ERROR, error.raw_os_error(), &[][..]),
        };
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(self.id.to_le_bytes());
        message.extend(self.command.to_le_bytes());
        // Bodies are bounded by MAX_MESSAGE.
        message.extend(((HEADER + body.len()) as u32).to_le_bytes());
        message.extend(flags.to_le_bytes());
        message.extend(errno.to_le_bytes());
        message.extend(body);
        message
    }
}

/// Reads the fields of a body one after another; a body that is too short is the client's error.
pub(super) struct Body<'a>(pub(super) &'a [u8]);

impl<'a> Body<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Errno::INVAL)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Errno> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_le_bytes)
    }

    /// Exactly `count` bytes and nothing behind them.
    pub(super) fn rest(self, count: u32) -> Result<&'a [u8], Errno> {
        if self.0.len() as u64 != u64::from(count) {
            return Err(Errno::INVAL);
        }
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_carry_id_command_and_either_body_or_error() {
        let mut bytes = [0; HEADER];
        bytes[..12].copy_from_slice(&[0x34, 0x12, 9, 0, 0x40, 0, 0, 0, 0x10, 0, 0, 0]);
        let header = Header::parse(&bytes);
        assert!(header.is_command() && !header.wants_reply() && header.size == 0x40);
        assert_eq!(
            header.reply(Ok(&[7])),
            [0x34, 0x12, 9, 0, 17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]
        );
        assert_eq!(
            header.reply(Err(Errno::INVAL)),
            [0x34, 0x12, 9, 0, 16, 0, 0, 0, 0x21, 0, 0, 0, 22, 0, 0, 0]
        );
    }

    #[test]
    fn a_short_body_is_invalid() {
        assert_eq!(Body(&[1, 2, 3]).u32(), Err(Errno::INVAL));
        assert_eq!(Body(&[1, 2, 3]).rest(2), Err(Errno::INVAL));
        assert_eq!(Body(&[1, 2, 3]).rest(4), Err(Errno::INVAL));
        assert_eq!(Body(&[1, 2, 3]).rest(3), Ok(&[1, 2, 3][..]));
    }
}
