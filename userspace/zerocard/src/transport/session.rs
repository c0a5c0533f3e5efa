// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One client's session: every message checked, carried out on the device, and answered.
//!
//! Owned by the listener for the length of a connection. A message that is wrong gets an error
//! reply and changes nothing; only a header that loses the framing ends the session. Requests are
//! answered in order and at once: there is no request that waits for a guest.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::device::{Device, Region, VectorAction};
use super::stream::{Closed, Message, Stream};
use super::trigger::is_trigger;
use super::version;
use super::wire::{self, command, irq, region, Body};
use crate::memory::MapRequest;
use crate::throttle::Throttle;

/// Serves a client until it goes or the process is to end.
pub(super) fn run(stream: &Stream<'_>, device: &dyn Device) -> Closed {
    let mut session = Session {
        device,
        negotiated: false,
        warnings: Throttle::default(),
    };
    loop {
        let message = match stream.receive() {
            Ok(message) => message,
            Err(Closed::Unframed(header)) => {
                // Best effort: the client learns why, then the connection has to go.
                let _ = stream.send(&header.reply(Err(Errno::MSGSIZE)));
                return Closed::Unframed(header);
            }
            Err(closed) => return closed,
        };
        let header = message.header;
        if header.is_reply() {
            // Nothing was asked, so this answers nothing; answering it could go on for ever.
            tracing::debug!("reply without a request ignored (id {})", header.id);
            continue;
        }
        let result = session.handle(message);
        if let Err(error) = &result {
            tracing::debug!("command {} refused: {error}", header.command);
        }
        if header.wants_reply() {
            let reply = header.reply(result.as_deref().map_err(|error| *error));
            if let Err(closed) = stream.send(&reply) {
                return closed;
            }
        }
    }
}

struct Session<'a> {
    device: &'a dyn Device,
    negotiated: bool,
    warnings: Throttle,
}

impl Session<'_> {
    /// Carries out a message and gives the body of its reply.
    fn handle(&mut self, message: Message) -> Result<Vec<u8>, Errno> {
        let Message {
            header,
            body,
            fds,
            too_many_fds,
        } = message;
        if !header.is_command() || too_many_fds {
            return Err(Errno::INVAL);
        }
        if self.negotiated == (header.command == command::VERSION) {
            // The version comes first, and once.
            return Err(Errno::INVAL);
        }
        let body = Body(&body);
        match header.command {
            command::VERSION => {
                let reply = version::negotiate(body)?;
                self.negotiated = true;
                Ok(reply)
            }
            command::DMA_MAP => self.dma_map(body, &fds),
            command::DMA_UNMAP => self.dma_unmap(body),
            command::DEVICE_GET_INFO => device_info(body),
            command::DEVICE_GET_REGION_INFO => self.region_info(body),
            command::DEVICE_GET_IRQ_INFO => self.irq_info(body),
            command::DEVICE_SET_IRQS => self.set_irqs(body, fds),
            command::REGION_READ => self.region_read(body),
            command::REGION_WRITE => self.region_write(body),
            command::DEVICE_RESET => {
                tracing::info!("device reset");
                self.device.reset();
                Ok(Vec::new())
            }
            _ => Err(Errno::NOTSUP),
        }
    }

    fn dma_map(&mut self, mut body: Body<'_>, fds: &[OwnedFd]) -> Result<Vec<u8>, Errno> {
        let _argsz = body.u32()?;
        let flags = body.u32()?;
        let (offset, iova, size) = (body.u64()?, body.u64()?, body.u64()?);
        if flags & !(wire::MAP_READ | wire::MAP_WRITE) != 0 || fds.len() > 1 {
            return Err(Errno::INVAL);
        }
        let request = MapRequest {
            iova,
            size,
            offset,
            readable: flags & wire::MAP_READ != 0,
            writable: flags & wire::MAP_WRITE != 0,
        };
        tracing::trace!("map {request:x?}, {} fds", fds.len());
        self.device.map(request, fds.first()).map_err(|error| {
            // A guest with an IOMMU can ask for more maps than there may be, for ever.
            if self.warnings.ready() {
                tracing::warn!("DMA map {request:x?} refused: {error}");
            }
            errno(&error)
        })?;
        Ok(Vec::new())
    }

    fn dma_unmap(&mut self, mut body: Body<'_>) -> Result<Vec<u8>, Errno> {
        let request = body.0;
        let _argsz = body.u32()?;
        let flags = body.u32()?;
        let (iova, size) = (body.u64()?, body.u64()?);
        tracing::trace!("unmap {iova:x} + {size:x}, flags {flags:x}");
        if flags & wire::UNMAP_DIRTY_BITMAP != 0 {
            return Err(Errno::NOTSUP);
        }
        if flags & wire::UNMAP_ALL != 0 {
            self.device.unmap_all();
        } else {
            self.device.unmap(iova, size);
        }
        // The reply repeats the structure; size is what is unmapped now.
        Ok(request[..24].to_vec())
    }

    fn region_info(&self, mut body: Body<'_>) -> Result<Vec<u8>, Errno> {
        const SIZE: u32 = 32;
        let argsz = body.u32()?;
        let _flags = body.u32()?;
        let index = body.u32()?;
        if argsz < SIZE || index >= region::COUNT {
            return Err(Errno::INVAL);
        }
        let (flags, size) = match region_of(index) {
            Some(region) => (region::READ_WRITE, self.device.region_size(region)),
            None => (0, 0),
        };
        let mut reply = Vec::new();
        for field in [SIZE, flags, index, 0] {
            reply.extend(field.to_le_bytes());
        }
        reply.extend(size.to_le_bytes());
        reply.extend(0u64.to_le_bytes());
        Ok(reply)
    }

    fn irq_info(&self, mut body: Body<'_>) -> Result<Vec<u8>, Errno> {
        const SIZE: u32 = 16;
        let argsz = body.u32()?;
        let _flags = body.u32()?;
        let index = body.u32()?;
        // The error interrupt is refused rather than described as empty, like the kernel does it for
        // devices without: QEMU warns about an empty one.
        if argsz < SIZE || index >= irq::COUNT || index == irq::ERROR {
            return Err(Errno::INVAL);
        }
        let (flags, count) = match index {
            irq::MSIX => (irq::INFO_EVENTFD, u32::from(self.device.vectors())),
            _ => (0, 0),
        };
        Ok([SIZE, flags, index, count]
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect())
    }

    fn set_irqs(&mut self, mut body: Body<'_>, fds: Vec<OwnedFd>) -> Result<Vec<u8>, Errno> {
        const SIZE: u32 = 20;
        let argsz = body.u32()?;
        let flags = body.u32()?;
        let (index, start, count) = (body.u32()?, body.u32()?, body.u32()?);
        let available = match index {
            irq::MSIX => u32::from(self.device.vectors()),
            0..irq::COUNT => 0,
            _ => return Err(Errno::INVAL),
        };
        let end = start.checked_add(count).ok_or(Errno::INVAL)?;
        if argsz < SIZE || end > available {
            return Err(Errno::INVAL);
        }
        // All indices are below the number of vectors from here on, which is a u16.
        let vectors = (start..end).map(|vector| vector as u16);
        let action = flags & !irq::DATA;
        match (flags & irq::DATA, action) {
            (irq::DATA_NONE, irq::ACTION_TRIGGER) if count == 0 => {
                // Disables the whole index.
                for vector in 0..available as u16 {
                    self.device.vector(vector, VectorAction::Assign(None));
                }
            }
            (irq::DATA_NONE, _) => {
                for vector in vectors {
                    self.device.vector(vector, plain_action(action)?);
                }
            }
            (irq::DATA_BOOL, _) => {
                let chosen = body.rest(count)?;
                for (vector, _) in vectors.zip(chosen).filter(|(_, chosen)| **chosen != 0) {
                    self.device.vector(vector, plain_action(action)?);
                }
            }
            (irq::DATA_EVENTFD, irq::ACTION_TRIGGER) => {
                // Either every vector gets an eventfd or every vector loses its own.
                if !fds.is_empty() && fds.len() != count as usize {
                    return Err(Errno::INVAL);
                }
                if !fds.iter().all(is_trigger) {
                    if self.warnings.ready() {
                        tracing::warn!(
                            "interrupts refused: a descriptor is no eventfd, or one that blocks \
                             (EFD_NONBLOCK is needed)"
                        );
                    }
                    return Err(Errno::INVAL);
                }
                let mut fds = fds.into_iter();
                for vector in vectors {
                    self.device.vector(vector, VectorAction::Assign(fds.next()));
                }
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(Vec::new())
    }

    fn region_read(&mut self, mut body: Body<'_>) -> Result<Vec<u8>, Errno> {
        let request = body.0;
        let (region, offset, count) = self.region_access(&mut body)?;
        let mut reply = request[..16].to_vec();
        reply.resize(16 + count, 0);
        self.device.read(region, offset, &mut reply[16..]);
        Ok(reply)
    }

    fn region_write(&mut self, mut body: Body<'_>) -> Result<Vec<u8>, Errno> {
        let request = body.0;
        let (region, offset, count) = self.region_access(&mut body)?;
        let data = body.rest(count as u32)?;
        self.device.write(region, offset, data);
        Ok(request[..16].to_vec())
    }

    /// Reads and checks offset, region and count.
    fn region_access(&self, body: &mut Body<'_>) -> Result<(Region, usize, usize), Errno> {
        let (offset, index, count) = (body.u64()?, body.u32()?, body.u32()?);
        let region = region_of(index).ok_or(Errno::INVAL)?;
        let end = offset.checked_add(u64::from(count)).ok_or(Errno::INVAL)?;
        if end > self.device.region_size(region) || count as usize > wire::MAX_TRANSFER {
            return Err(Errno::INVAL);
        }
        let offset = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        Ok((region, offset, count as usize))
    }
}

fn device_info(mut body: Body<'_>) -> Result<Vec<u8>, Errno> {
    const SIZE: u32 = 16;
    if body.u32()? < SIZE {
        return Err(Errno::INVAL);
    }
    let fields = [SIZE, wire::DEVICE_FLAGS, region::COUNT, irq::COUNT];
    Ok(fields
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect())
}

fn region_of(index: u32) -> Option<Region> {
    match index {
        region::BAR0 => Some(Region::Bar0),
        region::CONFIG => Some(Region::Config),
        _ => None,
    }
}

fn plain_action(action: u32) -> Result<VectorAction, Errno> {
    match action {
        irq::ACTION_TRIGGER => Ok(VectorAction::Trigger),
        irq::ACTION_MASK => Ok(VectorAction::Mask),
        irq::ACTION_UNMASK => Ok(VectorAction::Unmask),
        _ => Err(Errno::INVAL),
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(match error.kind() {
        io::ErrorKind::AlreadyExists => Errno::EXIST,
        io::ErrorKind::OutOfMemory => Errno::NOMEM,
        io::ErrorKind::QuotaExceeded => Errno::MFILE,
        _ => Errno::INVAL,
    })
}
