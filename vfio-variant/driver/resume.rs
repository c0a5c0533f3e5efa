// SPDX-License-Identifier: GPL-2.0-only

//! The data file of RESUMING: it takes a migration stream.
//!
//! QEMU accepts a stream for another device, so what is in it is the only guard: every byte is
//! checked as it comes, the function's identity as soon as the header part is there. It knows
//! nothing of the device, which it may outlive; the device looks here.

use super::Shown;
use crate::{
    stream::{
        error, identity,
        reader::{Event, HeaderPart, Reader},
        record,
        registers::{self, Registers},
    },
    vfio::data_file::{DataFile, Ready, Waiters},
};
use kernel::{
    bindings, new_mutex, pci,
    prelude::*,
    sync::{aref::ARef, Arc, Mutex},
    uaccess::UserSlice,
};

/// Bytes that are copied from the user at a time.
const CHUNK: usize = 32 << 10;

/// What a stream has to fit.
pub(super) struct Incoming {
    /// Value of the function's own identity record.
    pub(super) identity: KVVec<u8>,
    /// The function's own registers.
    pub(super) registers: Registers,
}

/// A stream that was taken whole.
pub(super) struct Received {
    pub(super) state: KVVec<u8>,
    pub(super) format: crate::stream::format::Format,
}

/// A stream that is coming.
struct Intake {
    reader: Reader,
    identity: KVVec<u8>,
    format: Option<crate::stream::format::Format>,
    state: KVVec<u8>,
    /// The log says already that it is cut short.
    said: bool,
}

/// What has become of a stream. A file has one, in its own memory.
#[allow(clippy::large_enum_variant)]
enum Stream {
    Coming(Intake),
    Refused,
    Dead,
}

/// A data file that takes.
#[pin_data]
pub(super) struct ResumeFile {
    /// Whom messages are about.
    pdev: ARef<pci::Device>,
    fits: Incoming,
    /// Where bytes of the user come first. One writer at a time, over its copy from user memory.
    /// Never taken by the device.
    #[pin]
    writer: Mutex<KVVec<u8>>,
    /// Taken by the device, so never over an access to user memory.
    #[pin]
    stream: Mutex<Stream>,
    /// Notified when the file is dead.
    #[pin]
    changed: Waiters,
}

impl ResumeFile {
    /// A file that takes a stream for a function as in `fits`.
    pub(super) fn new(pdev: &pci::Device, fits: Incoming) -> Result<Arc<Self>> {
        let chunk = KVVec::from_elem(0, CHUNK, GFP_KERNEL_ACCOUNT)?;
        let intake = Intake {
            reader: Reader::new(),
            identity: KVVec::new(),
            format: None,
            state: KVVec::new(),
            said: false,
        };
        Arc::pin_init(
            pin_init!(Self {
                pdev: pdev.into(),
                fits,
                writer <- new_mutex!(chunk, "zeroshift_resume_writer"),
                stream <- new_mutex!(Stream::Coming(intake), "zeroshift_resume_stream"),
                changed <- Waiters::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Whether something came that is no acceptable stream.
    pub(super) fn is_refused(&self) -> bool {
        matches!(*self.stream.lock(), Stream::Refused)
    }

    /// Takes the state out when the stream is whole. Else says what is missing, once, and nothing
    /// changes.
    pub(super) fn take(&self) -> Result<Received> {
        let mut stream = self.stream.lock();
        let Stream::Coming(intake) = &mut *stream else {
            return Err(EINVAL);
        };
        match (intake.reader.finish(), intake.format) {
            (Ok(()), Some(format)) => Ok(Received {
                state: core::mem::take(&mut intake.state),
                format,
            }),
            (Err(missing), _) => {
                if !core::mem::replace(&mut intake.said, true) {
                    dev_warn!(self.pdev, "cannot leave RESUMING: {}\n", Shown(&missing));
                }
                Err(EINVAL)
            }
            (Ok(()), None) => Err(EINVAL),
        }
    }

    /// Makes the file dead.
    pub(super) fn end(&self) {
        let stream = core::mem::replace(&mut *self.stream.lock(), Stream::Dead);
        self.changed.notify();
        drop(stream);
    }

    /// Takes `bytes`. `ENOMEM`: nothing was taken.
    fn feed(&self, bytes: &[u8]) -> Result {
        let mut stream = self.stream.lock();
        let intake = match &mut *stream {
            Stream::Coming(intake) => intake,
            Stream::Refused => return Err(EINVAL),
            Stream::Dead => return Err(ENODEV),
        };
        // Before the reader takes them: it does not give them back.
        intake.reserve(bytes.len())?;
        if let Err(error) = intake.feed(bytes, &self.fits, &self.pdev) {
            *stream = Stream::Refused;
            return Err(error);
        }
        Ok(())
    }
}

impl Intake {
    /// Makes room for whatever `bytes` more bytes of the stream may hold.
    fn reserve(&mut self, bytes: usize) -> Result {
        if self.format.is_none() {
            self.identity.reserve(bytes, GFP_KERNEL_ACCOUNT)?;
        }
        self.state.reserve(bytes, GFP_KERNEL_ACCOUNT)?;
        Ok(())
    }

    /// Takes `bytes`, for which there is room. An error means that the stream is refused.
    fn feed(&mut self, mut bytes: &[u8], fits: &Incoming, pdev: &pci::Device) -> Result {
        loop {
            match self.reader.next(&mut bytes) {
                Ok(None) => return Ok(()),
                Ok(Some(Event::Identity(part))) => {
                    self.identity.extend_from_slice(part, GFP_KERNEL_ACCOUNT)?;
                }
                Ok(Some(Event::Header(part))) => {
                    self.check(&part, fits, pdev)?;
                    self.format = Some(part.format);
                }
                Ok(Some(Event::State(part))) => {
                    self.state.extend_from_slice(part, GFP_KERNEL_ACCOUNT)?;
                }
                Ok(Some(Event::End)) => {}
                Err(refused) => {
                    refuse(pdev, &refused);
                    return Err(match refused.what {
                        error::STATE_TOO_LONG => EFBIG,
                        _ => EINVAL,
                    });
                }
            }
        }
    }

    /// Checks that the stream is one for this function.
    fn check(&self, part: &HeaderPart, fits: &Incoming, pdev: &pci::Device) -> Result {
        if part.kind != record::KIND_NVME {
            dev_warn!(
                pdev,
                "migration stream refused: HEADER: it is for a function of kind {}, which is not \
                 NVMe\n",
                part.kind,
            );
            return Err(EINVAL);
        }
        let theirs = identity::View::decode(&self.identity).map_err(|why| {
            refuse(pdev, &part.refused(&why));
            EINVAL
        })?;
        let mine = identity::View::decode(&fits.identity).map_err(|why| {
            dev_warn!(pdev, "its own identity is wrong: {}\n", Shown(&why));
            EIO
        })?;
        identity::compare(&mine, &theirs).map_err(|difference| {
            dev_warn!(
                pdev,
                "migration stream refused: IDENTITY at byte {}: {}\n",
                part.identity_at,
                Shown(&difference),
            );
            EINVAL
        })?;
        let Some(registers) = &part.registers else {
            dev_warn!(
                pdev,
                "migration stream refused: it has no REGISTERS: what zeroshift save wrote is for \
                 zeroshift restore\n",
            );
            return Err(EINVAL);
        };
        registers::compare(&fits.registers, registers).map_err(|difference| {
            dev_warn!(
                pdev,
                "migration stream refused: REGISTERS: {}\n",
                Shown(&difference),
            );
            EINVAL
        })
    }
}

/// Says what is wrong with a stream, and where.
fn refuse(pdev: &pci::Device, why: &error::Error) {
    dev_warn!(pdev, "migration stream refused: {}\n", Shown(why));
}

impl DataFile for ResumeFile {
    const NAME: &'static CStr = c"zeroshift-resume";
    const FLAGS: u32 = bindings::O_WRONLY;

    fn read(&self, _out: UserSlice) -> Result<usize> {
        Err(EBADF)
    }

    fn write(&self, input: UserSlice) -> Result<usize> {
        let mut chunk = self.writer.lock();
        let mut input = input.reader();
        let mut done = 0usize;
        loop {
            let size = input.len().min(chunk.len());
            let Some(bytes) = chunk.get_mut(..size) else {
                return Err(EINVAL);
            };
            let result = match input.read_slice(bytes) {
                Ok(()) => self.feed(bytes),
                error => error,
            };
            match result {
                Ok(()) => done = done.saturating_add(size),
                // Nothing of this chunk was taken: what came before counts.
                Err(error) if done != 0 && (error == EFAULT || error == ENOMEM) => return Ok(done),
                Err(error) => return Err(error),
            }
            if input.is_empty() {
                return Ok(done);
            }
        }
    }

    fn waiters(&self) -> &Waiters {
        &self.changed
    }

    fn ready(&self) -> Ready {
        match *self.stream.lock() {
            Stream::Dead => Ready::Dead,
            // A write does not wait, to be refused either.
            Stream::Coming(_) | Stream::Refused => Ready::Writable,
        }
    }

    fn ioctl(&self, _cmd: u32, _arg: usize) -> Result<isize> {
        Err(ENOTTY)
    }
}
