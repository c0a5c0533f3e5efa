// SPDX-License-Identifier: GPL-2.0-only

//! A card as the rest of the module sees it: an administrative controller that answered Identify,
//! and the functions that it manages.
//!
//! Made by probe, shared by the registry, its functions and whoever is using it. Outlives its
//! device's binding: then its queue refuses commands, and what was read stays readable. A function
//! holds its card, and the card its functions until [`Card::lose`] at unbind lets go of them.

use crate::{
    admin_queue::{AdminQueue, Answer, Counters, Data, Manner, Unanswered},
    cause::Cause,
    common::pci_driver::Address,
    errno::not_supported,
    function::Function,
    logic::slots::CommandId,
    nvme::{
        command::{cns, Command},
        hmlm::{formats::Formats, track_send},
        identify::{self, IdentifyController},
        status::Status,
    },
    queue_memory::BUFFER,
    uapi::{
        MigdirtyCard, MIGDIRTY_CARD_LIVE, MIGDIRTY_CARD_LIVE_MIGRATION, MIGDIRTY_CARD_TRACKS_MEMORY,
    },
    watch::Watch,
};
use kernel::{
    device::Bound,
    fmt, new_work, pci,
    prelude::*,
    sync::{new_mutex, Arc, Mutex},
    workqueue::Work,
};

/// An administrative controller.
#[pin_data]
pub(crate) struct Card {
    address: Address,
    /// Device Serial Number: what joins functions to it.
    serial_number: Option<u64>,
    queue: Arc<AdminQueue>,
    /// What it said at probe.
    described: MigdirtyCard,
    /// Bytes that a command may transfer.
    transfer: usize,
    #[pin]
    functions: Mutex<Functions>,
    /// Descriptors that are in use, or reserved for a start under way, over all functions.
    #[pin]
    descriptors: Mutex<u32>,
    /// Read when it is first needed.
    #[pin]
    format: Mutex<Option<StateFormat>>,
    #[pin]
    pub(crate) watch: Watch,
    /// Runs while it is watched.
    #[pin]
    pub(crate) watching: Work<Self>,
}

/// The functions that somebody has asked for since the card was bound.
struct Functions {
    list: KVec<Arc<Function>>,
    /// The card is being unbound: nothing is added any more.
    closed: bool,
}

/// The form in which controller states are read from a card.
#[derive(Clone, Copy)]
pub(crate) struct StateFormat {
    /// Of the version (CSVI).
    pub(crate) version_index: u8,
    /// Of the UUID (CSUUIDI); 0 for none.
    pub(crate) uuid_index: u8,
    /// Zeroes for none.
    pub(crate) uuid: [u8; 16],
}

/// An Identify data structure.
pub(crate) type Page = KBox<[u8; identify::SIZE]>;

/// The version of the NVMe Controller State that this module knows.
pub(crate) const STATE_VERSION: u16 = 0;

/// What a card can track, as it says now.
pub(crate) struct TrackingLimits {
    /// Descriptors over all functions.
    pub(crate) descriptors: u32,
    /// MINMRTG.
    pub(crate) finest: u8,
    /// MAXMRTG.
    pub(crate) coarsest: u8,
    /// TRATTR.MRTLL.
    pub(crate) powers_of_two: bool,
}

impl Card {
    /// Asks the controller behind `queue` who it is.
    pub(crate) fn identify(
        address: Address,
        serial_number: Option<u64>,
        queue: Arc<AdminQueue>,
    ) -> Result<Arc<Self>> {
        let page = ask(&queue)?.ok_or(EIO)?;
        let data = IdentifyController::new(&page);
        let described = describe(address, &queue, &data);
        // MDTS is in memory pages of CAP.MPSMIN, which is 4 KiB, or probe would have refused it.
        let transfer = match data.mdts() {
            0 => BUFFER,
            mdts => 1usize
                .checked_shl(u32::from(mdts).saturating_add(12))
                .unwrap_or(BUFFER)
                .min(BUFFER),
        };
        Arc::pin_init(
            pin_init!(Self {
                address,
                serial_number,
                queue,
                described,
                transfer,
                functions <- new_mutex!(
                    Functions {
                        list: KVec::new(),
                        closed: false,
                    },
                    "Card::functions"
                ),
                descriptors <- new_mutex!(0, "Card::descriptors"),
                format <- new_mutex!(None, "Card::format"),
                watch <- Watch::new(),
                watching <- new_work!("Card::watching"),
            }),
            GFP_KERNEL,
        )
    }

    /// Where it is.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// Describes the card. Asks it again, so that `LIVE` is true now and not only was at probe.
    ///
    /// `ENODEV` when the card was unbound meanwhile. For a card that is dead, what it said at
    /// probe, without `LIVE`.
    pub(crate) fn describe(&self) -> Result<MigdirtyCard> {
        let (mut described, live) = match ask(&self.queue) {
            Ok(Some(page)) => (
                describe(self.address, &self.queue, &IdentifyController::new(&page)),
                MIGDIRTY_CARD_LIVE,
            ),
            // Whoever answers with an error is alive.
            Ok(None) => (self.described, MIGDIRTY_CARD_LIVE),
            Err(error) if error == EIO => (self.described, 0),
            Err(error) => return Err(error),
        };
        described.flags |= live;
        let Counters {
            commands,
            failures,
            interrupts,
        } = self.queue.counters();
        described.commands = commands;
        described.failures = failures;
        described.interrupts = interrupts;
        Ok(described)
    }

    /// Whether it answers commands, as far as is known.
    pub(crate) fn is_live(&self) -> bool {
        self.queue.is_live()
    }

    /// The Device Serial Number of the administrative controller.
    pub(crate) fn serial_number(&self) -> Option<u64> {
        self.serial_number
    }

    /// CNTLID of the administrative controller.
    pub(crate) fn controller_id(&self) -> u16 {
        self.described.controller_id
    }

    /// Ends the card's work. Who relies on it is told before its controller is disabled, which ends
    /// every suspension and every log. Once; later calls return `false`.
    pub(crate) fn stop(&self, pdev: &pci::Device<Bound>) -> bool {
        if !self.queue.close() {
            return false;
        }
        self.functions.lock().closed = true;
        self.watch.end();
        self.lose();
        let list = core::mem::replace(&mut self.functions.lock().list, KVec::new());
        self.queue.halt(pdev);
        // Outside of the lock: these may be the last references.
        drop(list);
        true
    }

    /// The controller is going to be reset, says the kernel. Returns when all who rely on it were
    /// told.
    pub(crate) fn give_up(&self, cause: Cause) {
        self.queue.give_up(cause);
        self.lose();
    }

    /// The card cannot be relied on any more: tells the owner of every function, and returns when
    /// all of them were told. Commands are refused already.
    pub(crate) fn lose(&self) {
        // All owners first: their functions may run again at any moment.
        self.for_each(Function::tell_owner);
        self.for_each(Function::card_lost);
    }

    /// Whether a function is one of those that are told when the card is lost.
    pub(crate) fn holds(&self, function: &Function) -> bool {
        let functions = self.functions.lock();
        let mut list = functions.list.iter();
        list.any(|known| core::ptr::eq(Arc::as_ptr(known), function))
    }

    /// Looks whether it is still there, and declares it dead if not.
    pub(crate) fn look(&self) {
        self.queue.look();
    }

    /// One after the other without the lock: owners sleep, and functions may be added.
    pub(crate) fn for_each(&self, action: impl Fn(&Function)) {
        let mut next = 0;
        loop {
            let function = self.functions.lock().list.get(next).cloned();
            let Some(function) = function else {
                return;
            };
            action(&function);
            next += 1;
        }
    }

    /// The function with this controller id at this address, which the caller has found to be of
    /// this card.
    pub(crate) fn function(
        self: &Arc<Self>,
        address: Address,
        controller: u16,
    ) -> Result<Arc<Function>> {
        let mut functions = self.functions.lock();
        if functions.closed {
            return Err(ENODEV);
        }
        let found = functions
            .list
            .iter()
            .position(|function| function.controller() == controller);
        if let Some(at) = found {
            let function = functions.list.get(at).ok_or(EIO)?;
            if function.address() == address {
                return Ok(function.clone());
            }
            // Functions do not move, but may be pulled out and plugged in elsewhere.
            if !function.is_idle() {
                return Err(EBUSY);
            }
            let new = Function::new(self.clone(), address, controller)?;
            if let Some(place) = functions.list.get_mut(at) {
                *place = new.clone();
            }
            return Ok(new);
        }
        let new = Function::new(self.clone(), address, controller)?;
        functions.list.push(new.clone(), GFP_KERNEL)?;
        Ok(new)
    }

    /// The function at this address, when somebody has it.
    pub(crate) fn busy_function(&self, address: Address) -> Option<Arc<Function>> {
        let functions = self.functions.lock();
        let mut list = functions.list.iter();
        let found = list.find(|function| function.address() == address)?;
        (!found.is_idle()).then(|| found.clone())
    }

    /// Sends a command for a function, as [`AdminQueue::execute`] does.
    pub(crate) fn operate(
        &self,
        command: Command,
        data: Data<'_>,
        limit_ms: u32,
    ) -> Result<Answer<'_>, Unanswered> {
        self.queue.execute(command, data, Manner::Operate, limit_ms)
    }

    /// Whether the card still has a command that was abandoned.
    pub(crate) fn is_abandoned(&self, id: CommandId) -> bool {
        self.queue.is_abandoned(id)
    }

    /// An Identify data structure, `what` in the log when it is refused (`EIO`).
    pub(crate) fn identify_page(&self, what: &'static str, command: Command) -> Result<Page> {
        self.try_identify(command)?.map_err(|status| {
            self.report(what, status);
            EIO
        })
    }

    /// An Identify data structure, or the status with which it was refused.
    pub(crate) fn try_identify(&self, command: Command) -> Result<Result<Page, Status>> {
        let answer = self.operate(command, Data::Receive(identify::SIZE), command_timeout_ms())?;
        if let Err(status) = answer.result() {
            return Ok(Err(status));
        }
        let mut page = zeroed_page()?;
        answer.read(0, &mut page[..])?;
        Ok(Ok(page))
    }

    /// Says in the log that the card refused a command.
    pub(crate) fn report(&self, command: &'static str, status: Status) {
        self.queue.report_status(command, status);
    }

    /// Says something about the card or one of its functions in the log.
    pub(crate) fn warn(&self, message: fmt::Arguments<'_>) {
        self.queue.warn(message);
    }

    /// Bytes that a command may transfer, a multiple of 4096.
    pub(crate) fn transfer(&self) -> usize {
        self.transfer
    }

    /// Whether the card can do what the migration of a function needs.
    pub(crate) fn can_migrate(&self) -> bool {
        const NEEDED: u32 = MIGDIRTY_CARD_LIVE_MIGRATION | MIGDIRTY_CARD_TRACKS_MEMORY;
        self.described.flags & NEEDED == NEEDED
    }

    /// What it can track, asked now: a card may change its mind.
    pub(crate) fn tracking_limits(&self) -> Result<TrackingLimits> {
        let command = Command::identify(cns::CONTROLLER, 0, 0, 0);
        let page = self.identify_page("Identify Controller", command)?;
        let data = IdentifyController::new(&page);
        Ok(TrackingLimits {
            descriptors: u32::from(data.cmmrtd().min(data.nmmrtd())),
            finest: data.minmrtg(),
            coarsest: data.maxmrtg(),
            powers_of_two: data.trattr() & identify::TRATTR_MRTLL != 0,
        })
    }

    /// Calls `plan` with the number of descriptors that are left of `limit`, and reserves as many
    /// as it returns.
    pub(crate) fn reserve_descriptors<T>(
        &self,
        limit: u32,
        plan: impl FnOnce(u32) -> Result<(u32, T)>,
    ) -> Result<T> {
        // What one command can carry.
        let list = self.transfer.saturating_sub(track_send::HEADER) / track_send::DESCRIPTOR;
        let most = u32::try_from(list).unwrap_or(u32::MAX);
        let mut used = self.descriptors.lock();
        let (count, planned) = plan(limit.saturating_sub(*used).min(most))?;
        *used = used.saturating_add(count);
        Ok(planned)
    }

    /// Gives descriptors back.
    pub(crate) fn release_descriptors(&self, count: u32) {
        let mut used = self.descriptors.lock();
        *used = used.saturating_sub(count);
    }

    /// The form in which states are read: version 0 with the vendor's part, if there is one.
    /// `EOPNOTSUPP` for a card that lists no version 0.
    pub(crate) fn state_format(&self) -> Result<StateFormat> {
        if let Some(format) = *self.format.lock() {
            return Ok(format);
        }
        let page = self.formats()?;
        let formats = Formats::decode(&page).map_err(|malformed| {
            self.warn(fmt!(
                "list of state formats: {} at byte {}",
                malformed.what,
                malformed.offset,
            ));
            EIO
        })?;
        let uuid = formats.uuids().next();
        let format = StateFormat {
            version_index: formats
                .version_index(STATE_VERSION)
                .ok_or_else(not_supported)?,
            uuid_index: uuid.map_or(0, |_| 1),
            uuid: uuid.unwrap_or([0; 16]),
        };
        *self.format.lock() = Some(format);
        Ok(format)
    }

    /// The form of a state that came from elsewhere, by what it is and not by its indices, which are
    /// each card's own. `EOPNOTSUPP` when the card does not know it.
    pub(crate) fn find_format(&self, version: u16, uuid: [u8; 16]) -> Result<StateFormat> {
        if version != STATE_VERSION {
            return Err(not_supported());
        }
        let page = self.formats()?;
        let formats = Formats::decode(&page).map_err(|_| EIO)?;
        Ok(StateFormat {
            version_index: formats.version_index(version).ok_or_else(not_supported)?,
            uuid_index: if uuid == [0; 16] {
                0
            } else {
                formats.uuid_index(&uuid).ok_or_else(not_supported)?
            },
            uuid,
        })
    }

    fn formats(&self) -> Result<Page> {
        let command = Command::identify(cns::CONTROLLER_STATE_FORMATS, 0, 0, 0);
        self.identify_page("Identify of controller state formats", command)
    }

    /// What the card says it is called, for a log message: printable ASCII only.
    pub(crate) fn names(&self) -> (Printable<'_>, Printable<'_>, Printable<'_>) {
        (
            Printable(&self.described.model),
            Printable(&self.described.serial),
            Printable(&self.described.firmware),
        )
    }

    /// SN, MN, and SUBNQN without its padding, as it said at probe.
    pub(crate) fn identity(&self) -> (&[u8; 20], &[u8; 40], &[u8]) {
        let subnqn = &self.described.subnqn;
        let end = subnqn.iter().position(|byte| *byte == 0);
        let name = subnqn.get(..end.unwrap_or(subnqn.len())).unwrap_or(&[]);
        (&self.described.serial, &self.described.model, name)
    }

    /// CNTRLTYPE.
    pub(crate) fn controller_type(&self) -> u8 {
        self.described.controller_type
    }

    /// OACS.HMLMS.
    pub(crate) fn live_migration(&self) -> bool {
        self.described.flags & MIGDIRTY_CARD_LIVE_MIGRATION != 0
    }
}

/// The time limit for a command, in milliseconds.
pub(crate) fn command_timeout_ms() -> u32 {
    *crate::module_parameters::command_timeout_ms.value()
}

/// Refuses module parameters that no card could live with.
pub(crate) fn check_parameters() -> Result {
    if command_timeout_ms() == 0 {
        pr_err!("command_timeout_ms=0 gives cards no time at all; leave it out for 30000\n");
        return Err(EINVAL);
    }
    Ok(())
}

/// Sends Identify Controller; `None` when the answer is an error status.
fn ask(queue: &AdminQueue) -> Result<Option<Page>> {
    let command = Command::identify(cns::CONTROLLER, 0, 0, 0);
    let data = Data::Receive(identify::SIZE);
    let answer = queue.execute(command, data, Manner::Ask, command_timeout_ms())?;
    if let Err(status) = answer.result() {
        queue.report_status("Identify Controller", status);
        return Ok(None);
    }
    let mut page = zeroed_page()?;
    answer.read(0, &mut page[..])?;
    Ok(Some(page))
}

/// Zeroed in place: it is too large for the stack.
fn zeroed_page() -> Result<Page> {
    KBox::init(pin_init::init_zeroed(), GFP_KERNEL)
}

/// What the controller said of itself, without what changes from moment to moment.
fn describe(address: Address, queue: &AdminQueue, data: &IdentifyController<'_>) -> MigdirtyCard {
    let mut flags = 0;
    if data.hmlms() {
        flags |= MIGDIRTY_CARD_LIVE_MIGRATION;
    }
    if data.thmcs() {
        flags |= MIGDIRTY_CARD_TRACKS_MEMORY;
    }
    MigdirtyCard {
        argsz: crate::uapi::MIN_ARGSZ,
        flags,
        address: address.0,
        controller_id: data.cntlid(),
        controller_type: data.cntrltype(),
        min_granule: data.minmrtg(),
        max_granule: data.maxmrtg(),
        max_ranges: data.cmmrtd(),
        max_ranges_subsystem: data.nmmrtd(),
        version: queue.version().0,
        vectors: 1,
        serial: data.sn(),
        model: data.mn(),
        firmware: data.fr(),
        subnqn: data.subnqn(),
        ..MigdirtyCard::ZERO
    }
}

/// Text of a card that may hold anything.
pub(crate) struct Printable<'a>(&'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.trim_ascii_end() {
            let shown = match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '?',
            };
            write!(f, "{shown}")?;
        }
        Ok(())
    }
}
