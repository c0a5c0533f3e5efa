// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The least of a vfio-user client: negotiate, map RAM, read and write registers.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure, Context as _, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::sys::Ram;

/// How long the card may take to answer a message.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a message's header.
const HEADER: usize = 16;

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;

/// A region of the function.
#[derive(Clone, Copy)]
pub(crate) enum Region {
    Bar0 = 0,
    Config = 7,
}

/// A connection to one function.
pub(crate) struct Client {
    stream: UnixStream,
    id: u16,
}

impl Client {
    /// Connects and negotiates.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut client = Self { stream, id: 0 };
        let version = b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8}}\0";
        client.call(VERSION, version, &[]).context("negotiation")?;
        Ok(client)
    }

    /// Sends a message and gives the body of its reply.
    fn call(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Vec<u8>> {
        self.id = self.id.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(self.id.to_le_bytes());
        message.extend(command.to_le_bytes());
        message.extend(u32::try_from(HEADER + body.len())?.to_le_bytes());
        message.extend([0; 8]);
        message.extend(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds));
        ensure!(fits, "a message takes one descriptor");
        let vector = [IoSlice::new(&message)];
        let flags = SendFlags::NOSIGNAL;
        let sent = rustix::net::sendmsg(&self.stream, &vector, &mut control, flags)?;
        self.stream.write_all(&message[sent..])?;

        let mut head = [0; HEADER];
        self.stream
            .read_exact(&mut head)
            .context("the card's reply")?;
        let field =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (size, flags, error) = (field(4) as usize, field(8), field(12));
        ensure!(
            head[..4] == message[..4] && size >= HEADER,
            "a reply to something else"
        );
        let mut reply = vec![0; size - HEADER];
        self.stream.read_exact(&mut reply)?;
        if flags & 0x20 != 0 {
            bail!("the card refused message {command} with errno {error}");
        }
        Ok(reply)
    }

    /// Maps all of `ram` at IOVA 0, to be read and written.
    pub(crate) fn map(&mut self, ram: &Ram) -> Result<()> {
        let mut body = Vec::new();
        for field in [32u32, 3] {
            body.extend(field.to_le_bytes());
        }
        for field in [0, 0, ram.len() as u64] {
            body.extend(field.to_le_bytes());
        }
        self.call(DMA_MAP, &body, &[ram.file().as_fd()])?;
        Ok(())
    }

    fn access(region: Region, offset: usize, count: usize) -> Vec<u8> {
        let mut body = (offset as u64).to_le_bytes().to_vec();
        body.extend((region as u32).to_le_bytes());
        // CAST: registers have at most eight bytes.
        body.extend((count as u32).to_le_bytes());
        body
    }

    /// Reads a dword.
    pub(crate) fn read(&mut self, region: Region, offset: usize) -> Result<u32> {
        let reply = self.call(REGION_READ, &Self::access(region, offset, 4), &[])?;
        let value = reply.get(16..20).context("a short reply")?;
        Ok(u32::from_le_bytes([value[0], value[1], value[2], value[3]]))
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, region: Region, offset: usize, value: &[u8]) -> Result<()> {
        let mut body = Self::access(region, offset, value.len());
        body.extend(value);
        self.call(REGION_WRITE, &body, &[])?;
        Ok(())
    }
}
