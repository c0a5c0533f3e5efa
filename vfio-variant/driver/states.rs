// SPDX-License-Identifier: GPL-2.0-only

//! The migration state of a function, and its arcs.
//!
//! One mutex orders arcs, resets and the loss of the card. It is held while the card works, so that
//! an arc is never half done for anybody; it is never held over an access to user memory, because a
//! reset takes it with locks held that page faults wait for. Owned by the device and, as a
//! listener, by the claim, which close takes out again.
//!
//! The state that is shown is what is known: where the outcome of a command is not, it is ERROR, and
//! the function is kept from memory.

use super::{
    bind::{Function, EOPNOTSUPP},
    resume::{Incoming, Received, ResumeFile},
    save::SaveFile,
};
use crate::{
    backend::{Claim, Format},
    common::pci_driver::{clear_master, set_master},
    logic::arcs::{self, Action, State},
    stream::{self, identity, record, registers::Registers, writer},
    vfio::{data_file, migration, Device},
};
use kernel::{
    fs::File,
    new_mutex, pci,
    prelude::*,
    sync::{aref::ARef, Arc, Mutex},
};

/// What a data file is expected to hold before one was made, in bytes of state.
const FIRST_STATE: usize = 16 << 10;

/// The migration of a function.
#[pin_data]
pub(crate) struct Migration {
    pub(super) pdev: ARef<pci::Device>,
    #[pin]
    pub(super) inner: Mutex<Inner>,
    /// Held over what a log asks of the card, and over nothing else: one at a time, so that the card
    /// always has a place for an arc or a reset as well.
    #[pin]
    pub(super) log: Mutex<()>,
}

/// What the mutex protects.
pub(super) struct Inner {
    pub(super) state: State,
    /// Some from open to close, when a card manages the function. (None as well while
    /// [`Migration::claim_again`] works, and when that has failed.)
    claim: Option<Arc<Claim<Migration>>>,
    /// The card was lost since the function was claimed.
    pub(super) lost: bool,
    /// From open until its last file was closed.
    in_use: bool,
    /// Its user had let it write memory, and may not know that it cannot any more.
    fenced: bool,
    /// The file of a state that saves.
    saving: Option<Arc<SaveFile>>,
    /// The file of the state RESUMING.
    resuming: Option<Arc<ResumeFile>>,
    /// What the function showed when it was opened.
    registers: Registers,
    /// Bytes of the last header part and of the last state, 0 before there was one.
    header_bytes: usize,
    state_bytes: usize,
}

impl Migration {
    /// For a function that is being bound.
    pub(super) fn new(pdev: &pci::Device) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                pdev: pdev.into(),
                inner <- new_mutex!(
                    Inner {
                        state: State::Running,
                        claim: None,
                        lost: false,
                        in_use: false,
                        fenced: false,
                        saving: None,
                        resuming: None,
                        registers: Registers { cap: 0, version: 0, vectors: 0 },
                        header_bytes: 0,
                        state_bytes: 0,
                    },
                    "zeroshift_migration"
                ),
                log <- new_mutex!((), "zeroshift_log"),
            }),
            GFP_KERNEL,
        )
    }

    /// The device is being opened.
    pub(super) fn begin(&self) {
        let mut inner = self.inner.lock();
        inner.state = State::Running;
        inner.lost = false;
        inner.in_use = true;
        inner.fenced = false;
    }

    /// A card manages the function.
    pub(super) fn attach(&self, claim: Arc<Claim<Self>>) {
        self.inner.lock().claim = Some(claim);
    }

    /// Whether a card manages the function.
    pub(super) fn has_card(&self) -> bool {
        self.inner.lock().claim.is_some()
    }

    /// Whether its card tells what the header part of a stream has to say.
    pub(super) fn check_card(&self) -> Result {
        let claim = self.claim()?;
        claim.identity(identity::MAX_SIZE)?;
        claim.format().map(drop)
    }

    /// What the function shows its driver.
    pub(super) fn set_registers(&self, registers: Registers) {
        self.inner.lock().registers = registers;
    }

    /// The device's last file was closed. Its function may be suspended and can still write memory,
    /// so its state stays.
    pub(super) fn end(&self) {
        let mut inner = self.inner.lock();
        inner.end_files();
        inner.in_use = false;
        inner.fenced = false;
    }

    /// Takes the claim, for whoever drops it: without the mutex, because `lost` may be waiting for
    /// that.
    pub(super) fn detach(&self) -> Option<Arc<Claim<Self>>> {
        self.inner.lock().claim.take()
    }

    /// The claim, while the device is open. `EIO`: there is no card any more.
    pub(super) fn claim(&self) -> Result<Arc<Claim<Self>>> {
        self.inner.lock().claim.clone().ok_or(EIO)
    }

    /// Claims a running function whose card was lost once more: its card may be back. (Else every
    /// pause of a guest would fail until the device is opened again, and VMMs answer that with a
    /// reset.) Without success nothing changes. Only while the device is open.
    pub(super) fn claim_again(this: &Arc<Self>) {
        let old = {
            let mut inner = this.inner.lock();
            if !inner.lost || inner.state != State::Running {
                return;
            }
            // `lost` can come for the new claim before it is known here. Until then there is none,
            // so nobody relies on it.
            inner.lost = false;
            inner.claim.take()
        };
        drop(old);
        let claim = Claim::new(&this.pdev, this.clone());
        match claim.and_then(|claim| Ok(Arc::new(claim, GFP_KERNEL)?)) {
            Ok(claim) => {
                dev_info!(this.pdev, "its card is back, so it can migrate again\n");
                this.attach(claim);
            }
            Err(_) => this.inner.lock().lost = true,
        }
    }
}

impl Inner {
    /// The claim, for orders to the card. `EIO`: the card is lost.
    pub(super) fn card(&self) -> Result<Arc<Claim<Migration>>> {
        match &self.claim {
            Some(claim) if !self.lost => Ok(claim.clone()),
            _ => Err(EIO),
        }
    }

    /// Ends the data files: what is behind them is not theirs any more.
    pub(super) fn end_files(&mut self) {
        if let Some(file) = self.saving.take() {
            file.end();
        }
        if let Some(file) = self.resuming.take() {
            file.end();
        }
    }

    /// Takes notice of a stream that was refused: a file cannot reach the device.
    fn settle(&mut self) {
        if self.resuming.as_ref().is_some_and(|file| file.is_refused()) {
            self.fail();
        }
    }

    /// It did not become what it should, and has no use before a reset.
    pub(super) fn fail(&mut self) {
        self.end_files();
        self.state = State::Error;
    }

    /// Nobody knows what the function does: it is kept from memory until it is reset.
    pub(super) fn fence(&mut self, pdev: &pci::Device) {
        self.fail();
        let was_master = clear_master(pdev);
        self.fenced |= was_master && self.in_use;
    }

    /// The function was reset, so its user finds it as any reset leaves it.
    pub(super) fn was_reset(&mut self, pdev: &pci::Device) {
        self.end_files();
        self.state = State::Running;
        if core::mem::take(&mut self.fenced) {
            set_master(pdev);
        }
    }

    /// Suspends the function, or leaves it running.
    fn suspend(&mut self, pdev: &pci::Device) -> Result {
        let claim = self.card()?;
        claim.suspend().inspect_err(|_| {
            // The card may have suspended it all the same.
            if claim.resume().is_err() {
                self.fence(pdev);
            }
        })
    }

    /// Lets the function run.
    fn resume(&mut self, pdev: &pci::Device) -> Result {
        self.card()?.resume().inspect_err(|_| self.fence(pdev))
    }

    /// Carries out the arc to `next`.
    fn step(&mut self, device: &Device<Function>, next: State) -> Result<Option<ARef<File>>> {
        let mut file = None;
        match arcs::action(self.state, next).ok_or(EINVAL)? {
            Action::Nothing => {}
            Action::Suspend => self.suspend(device.pdev())?,
            Action::Resume => self.resume(device.pdev())?,
            Action::SaveHeader => {
                let (header, format) = self.header()?;
                let save = SaveFile::new(header, format, migration::wants_precopy_info_v2(device))?;
                file = Some(data_file::open(save.clone())?);
                self.saving = Some(save);
            }
            Action::SaveRest => {
                let save = self.saving.clone().ok_or(EINVAL)?;
                self.save_rest(&save)?;
            }
            Action::SaveWhole => {
                let (header, format) = self.header()?;
                let save = SaveFile::new(header, format, false)?;
                self.save_rest(&save)?;
                file = Some(data_file::open(save.clone())?);
                self.saving = Some(save);
            }
            Action::EndSave => self.end_files(),
            Action::Load => {
                let incoming = Incoming {
                    identity: self.card()?.identity(identity::MAX_SIZE)?,
                    registers: self.registers,
                };
                let resume = ResumeFile::new(device.pdev(), incoming)?;
                file = Some(data_file::open(resume.clone())?);
                self.resuming = Some(resume);
            }
            Action::Commit => self.commit(device.pdev())?,
        }
        self.state = next;
        Ok(file)
    }

    /// The header part of a stream, and the format that it announces.
    fn header(&mut self) -> Result<(KVVec<u8>, Format)> {
        let claim = self.card()?;
        let identity = claim.identity(identity::MAX_SIZE)?;
        let format = claim.format()?;
        let mut header = KVVec::from_elem(
            0,
            writer::header_part_size(identity.len(), true),
            GFP_KERNEL_ACCOUNT,
        )?;
        let size = writer::header_part(
            &mut header,
            record::KIND_NVME,
            &identity,
            Some(&self.registers),
            &stream::format::Format {
                version: format.version,
                uuid: format.uuid,
            },
        )
        .ok_or(EIO)?;
        header.truncate(size);
        self.header_bytes = size;
        Ok((header, format))
    }

    /// Gets the state, and puts it behind the header part in `save`.
    fn save_rest(&mut self, save: &SaveFile) -> Result {
        let got = self.card()?.get_state(self.expected_state());
        let (state, format) = got.inspect_err(|error| {
            // It runs, says its card, so what was shown is not true.
            if *error == EBUSY {
                self.fail();
            }
        })?;
        // The header part, which may be on the other host already, promises a format.
        if format != save.format() {
            return Err(EIO);
        }
        self.state_bytes = state.len();
        save.complete(state)
    }

    /// Sets the state that came, when all of it came.
    fn commit(&mut self, pdev: &pci::Device) -> Result {
        let claim = self.card()?;
        let Received { state, format } = self.resuming.as_ref().ok_or(EINVAL)?.take()?;
        let format = Format {
            version: format.version,
            uuid: format.uuid,
            ..Format::default()
        };
        if let Err(error) = claim.set_state(&state, format) {
            let unknown = error.to_errno() == -EOPNOTSUPP;
            let why = match unknown {
                true => "its card does not know the format of the controller state",
                false => "its card refuses the controller state, see the card's messages",
            };
            dev_warn!(
                pdev,
                "migration stream refused: {} ({:?}); reset the function before another try\n",
                why,
                error,
            );
            self.fail();
            return Err(if unknown { EINVAL } else { error });
        }
        self.end_files();
        Ok(())
    }

    /// How many bytes of state to expect.
    fn expected_state(&self) -> usize {
        match self.state_bytes {
            0 => FIRST_STATE,
            bytes => bytes,
        }
    }
}

impl migration::Operations for Function {
    fn set_state(device: &Device<Self>, target: State) -> Result<Option<ARef<File>>> {
        if target != State::Running {
            Migration::claim_again(&device.migration);
        }
        let mut inner = device.migration.inner.lock();
        inner.settle();
        if inner.state == State::Error {
            return Err(EIO);
        }
        let mut file = None;
        while inner.state != target {
            let next = migration::next_state(device, inner.state, target)?;
            // Only the last arc has one.
            file = inner.step(device, next)?;
        }
        Ok(file)
    }

    fn state(device: &Device<Self>) -> State {
        let mut inner = device.migration.inner.lock();
        inner.settle();
        inner.state
    }

    fn data_size(device: &Device<Self>) -> usize {
        let inner = device.migration.inner.lock();
        let header = match inner.header_bytes {
            // One namespace, a SUBNQN of usual length.
            0 => writer::header_part_size(identity::size(100, 1), true),
            bytes => bytes,
        };
        inner
            .expected_state()
            .saturating_add(header)
            .saturating_add(record::RECORD_HEADER + writer::END)
    }
}
