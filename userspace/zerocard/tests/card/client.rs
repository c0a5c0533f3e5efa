// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vfio-user client from the byte layout of the protocol document.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::server::LIMIT;

pub(crate) const VERSION: u16 = 1;
pub(crate) const DMA_MAP: u16 = 2;
pub(crate) const DMA_UNMAP: u16 = 3;
pub(crate) const GET_INFO: u16 = 4;
pub(crate) const GET_REGION_INFO: u16 = 5;
pub(crate) const GET_IRQ_INFO: u16 = 7;
pub(crate) const SET_IRQS: u16 = 8;
pub(crate) const REGION_READ: u16 = 9;
pub(crate) const REGION_WRITE: u16 = 10;
pub(crate) const DEVICE_RESET: u16 = 13;

pub(crate) const BAR0: u32 = 0;
pub(crate) const CONFIG: u32 = 7;

/// A reply: its body, or the errno it carries.
pub(crate) type Reply = Result<Vec<u8>, u32>;

pub(crate) fn bytes32(fields: &[u32]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A whole message.
pub(crate) fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(id.to_le_bytes());
    message.extend(command.to_le_bytes());
    message.extend((16 + body.len() as u32).to_le_bytes());
    message.extend(flags.to_le_bytes());
    message.extend(0u32.to_le_bytes());
    message.extend(body);
    message
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    id: u16,
}

impl Client {
    /// Connects without negotiating.
    pub(crate) fn raw(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self { stream, id: 0x4000 }
    }

    pub(crate) fn connect(path: &Path) -> Self {
        let mut client = Self::raw(path);
        client
            .call(
                VERSION,
                b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8}}\0",
            )
            .unwrap();
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let vector = [IoSlice::new(bytes)];
        let sent =
            rustix::net::sendmsg(&self.stream, &vector, &mut control, SendFlags::NOSIGNAL).unwrap();
        self.stream.write_all(&bytes[sent..]).unwrap();
    }

    /// The next reply: id, command, and what it says.
    pub(crate) fn receive(&mut self) -> (u16, u16, Reply) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32_at(&head, 4) as usize - 16];
        self.stream.read_exact(&mut body).unwrap();
        let flags = u32_at(&head, 8);
        assert_eq!(flags & !0x20, 1, "a reply and nothing else");
        let reply = if flags & 0x20 != 0 {
            Err(u32_at(&head, 12))
        } else {
            Ok(body)
        };
        let id = u16::from_le_bytes([head[0], head[1]]);
        (id, u16::from_le_bytes([head[2], head[3]]), reply)
    }

    /// The server has closed the connection.
    pub(crate) fn closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }

    pub(crate) fn call_with(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Reply {
        self.id = self.id.wrapping_add(1);
        let id = self.id;
        self.send(&message(id, command, 0, body), fds);
        let (reply_id, reply_command, reply) = self.receive();
        assert_eq!((reply_id, reply_command), (id, command));
        reply
    }

    pub(crate) fn call(&mut self, command: u16, body: &[u8]) -> Reply {
        self.call_with(command, body, &[])
    }

    pub(crate) fn read(&mut self, region: u32, offset: u64, count: u32) -> Reply {
        let mut body = offset.to_le_bytes().to_vec();
        body.extend(bytes32(&[region, count]));
        let reply = self.call(REGION_READ, &body)?;
        assert_eq!(reply[..16], body, "the reply repeats the request");
        assert_eq!(reply.len(), 16 + count as usize);
        Ok(reply[16..].to_vec())
    }

    pub(crate) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Reply {
        let mut body = offset.to_le_bytes().to_vec();
        body.extend(bytes32(&[region, data.len() as u32]));
        body.extend(data);
        self.call(REGION_WRITE, &body)
    }

    pub(crate) fn read32(&mut self, region: u32, offset: u64) -> u32 {
        u32_at(&self.read(region, offset, 4).unwrap(), 0)
    }

    pub(crate) fn write32(&mut self, region: u32, offset: u64, value: u32) {
        self.write(region, offset, &value.to_le_bytes()).unwrap();
    }

    pub(crate) fn map(&mut self, iova: u64, size: u64, offset: u64, file: &OwnedFd) -> Reply {
        let mut body = bytes32(&[32, 3]);
        for field in [offset, iova, size] {
            body.extend(field.to_le_bytes());
        }
        self.call_with(DMA_MAP, &body, &[file.as_fd()])
    }

    pub(crate) fn unmap(&mut self, iova: u64, size: u64, flags: u32) -> Reply {
        let mut body = bytes32(&[24, flags]);
        for field in [iova, size] {
            body.extend(field.to_le_bytes());
        }
        let reply = self.call(DMA_UNMAP, &body)?;
        assert_eq!(reply, body);
        Ok(reply)
    }

    /// SET_IRQS for MSI-X.
    pub(crate) fn set_irqs(
        &mut self,
        flags: u32,
        start: u32,
        count: u32,
        data: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Reply {
        let mut body = bytes32(&[20 + data.len() as u32, flags, 2, start, count]);
        body.extend(data);
        self.call_with(SET_IRQS, &body, fds)
    }
}
