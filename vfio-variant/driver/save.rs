// SPDX-License-Identifier: GPL-2.0-only

//! The data file of a state that saves: it gives a migration stream.
//!
//! In PRE_COPY it has the header part only, which the other host can check early; the arc to
//! STOP_COPY puts the rest behind it. It knows nothing of the device, which it may outlive. What it
//! gives is never changed once it is there, so readers copy from it without a lock that the device
//! takes.

use crate::{
    backend::Format,
    logic::image,
    stream::{
        record::RECORD_HEADER,
        writer::{Writer, END},
    },
    vfio::{
        data_file::{DataFile, Ready, Waiters},
        migration::{PrecopyInfo, GET_PRECOPY_INFO},
    },
};
use core::mem::size_of;
use kernel::{
    bindings, new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex,
    },
    uaccess::{UserPtr, UserSlice},
};

/// A stream in memory.
#[derive(Clone)]
struct Image {
    header: Arc<KVVec<u8>>,
    /// What follows the header part, once the function was stopped.
    rest: Option<Arc<Rest>>,
}

/// What follows the header part.
struct Rest {
    before: [u8; RECORD_HEADER],
    state: KVVec<u8>,
    end: [u8; END],
}

impl Image {
    /// The bytes from `position` on that lie together; none at the end of what is there.
    fn from(&self, position: u64) -> &[u8] {
        match &self.rest {
            None => image::rest(&[self.header.as_slice()], position),
            Some(rest) => image::rest(
                &[
                    self.header.as_slice(),
                    &rest.before,
                    rest.state.as_slice(),
                    &rest.end,
                ],
                position,
            ),
        }
    }
}

/// A data file that gives.
#[pin_data]
pub(super) struct SaveFile {
    format: Format,
    /// The user had opted in to `VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2` when it was made.
    info_v2: bool,
    /// One reader at a time, over its copy to user memory. Never taken by the device.
    #[pin]
    reader: Mutex<()>,
    /// Bytes that were read. Written by the reader.
    position: Atomic<u64>,
    /// None when the file is dead. Taken by the device, so only for a moment.
    #[pin]
    image: Mutex<Option<Image>>,
    /// Notified when there is more, or nothing any more.
    #[pin]
    changed: Waiters,
}

impl SaveFile {
    /// A file that gives `header` and, after [`Self::complete`], a state in `format`.
    pub(super) fn new(header: KVVec<u8>, format: Format, info_v2: bool) -> Result<Arc<Self>> {
        let image = Image {
            header: Arc::new(header, GFP_KERNEL_ACCOUNT)?,
            rest: None,
        };
        Arc::pin_init(
            pin_init!(Self {
                format,
                info_v2,
                reader <- new_mutex!((), "zeroshift_save_reader"),
                position: Atomic::new(0),
                image <- new_mutex!(Some(image), "zeroshift_save_image"),
                changed <- Waiters::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The format that the header part announces.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Puts `state` and the end of the stream behind the header part.
    pub(super) fn complete(&self, state: KVVec<u8>) -> Result {
        let image = self.image.lock().clone().ok_or(ENODEV)?;
        let mut writer = Writer::new(&image.header);
        let before = writer.state(&state).ok_or(EIO)?;
        let end = writer.end().ok_or(EIO)?;
        let rest = Arc::new(Rest { before, state, end }, GFP_KERNEL_ACCOUNT)?;
        match &mut *self.image.lock() {
            Some(image) => image.rest = Some(rest),
            None => return Err(ENODEV),
        }
        self.changed.notify();
        Ok(())
    }

    /// Makes the file dead.
    pub(super) fn end(&self) {
        let image = self.image.lock().take();
        self.changed.notify();
        drop(image);
    }

    fn image(&self) -> Result<Image> {
        self.image.lock().clone().ok_or(ENODEV)
    }

    fn precopy_info(&self, arg: UserPtr) -> Result {
        const SIZE: usize = size_of::<PrecopyInfo>();
        let mut info: PrecopyInfo = UserSlice::new(arg, SIZE).reader().read()?;
        // CAST: widens.
        if (info.argsz as usize) < SIZE {
            return Err(EINVAL);
        }
        let image = self.image()?;
        if image.rest.is_some() {
            return Err(EINVAL);
        }
        // Without the opt-in the field stays as it came. There is never a second header part, so
        // REINIT is never set.
        if self.info_v2 {
            info.flags = 0;
        }
        // CAST: widens.
        info.initial_bytes = image.from(self.position.load(Relaxed)).len() as u64;
        info.dirty_bytes = 0;
        UserSlice::new(arg, SIZE).writer().write(&info)
    }
}

impl DataFile for SaveFile {
    const NAME: &'static CStr = c"zeroshift-save";
    const FLAGS: u32 = bindings::O_RDONLY;

    fn read(&self, out: UserSlice) -> Result<usize> {
        let _reader = self.reader.lock();
        let image = self.image()?;
        let mut out = out.writer();
        let mut done = 0;
        while !out.is_empty() {
            let position = self.position.load(Relaxed);
            let bytes = image.from(position);
            let bytes = bytes.get(..out.len()).unwrap_or(bytes);
            if bytes.is_empty() {
                break;
            }
            match out.write_slice(bytes) {
                Ok(()) => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
            }
            done = done.saturating_add(bytes.len());
            // CAST: widens.
            self.position
                .store(position.saturating_add(bytes.len() as u64), Relaxed);
        }
        if done == 0 && !out.is_empty() && image.rest.is_none() {
            // CAST: a small constant.
            return Err(Error::from_errno(-(bindings::ENOMSG as i32)));
        }
        Ok(done)
    }

    fn write(&self, _input: UserSlice) -> Result<usize> {
        Err(EBADF)
    }

    fn waiters(&self) -> &Waiters {
        &self.changed
    }

    fn ready(&self) -> Ready {
        match self.image() {
            Err(_) => Ready::Dead,
            // The end is readable as well.
            Ok(image) if image.rest.is_some() => Ready::Readable,
            Ok(image) => match image.from(self.position.load(Relaxed)).is_empty() {
                true => Ready::No,
                false => Ready::Readable,
            },
        }
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            GET_PRECOPY_INFO => self.precopy_info(UserPtr::from_addr(arg)).map(|()| 0),
            _ => Err(ENOTTY),
        }
    }
}
