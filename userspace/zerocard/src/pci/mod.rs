// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A PCI function: configuration space, MSI-X and guest memory around a device kind.
//!
//! Owns everything that is the same for every kind. The kind (an NVMe controller, later virtio)
//! sees registers and a [`Bus`]; the transport sees [`Device`]; the poller sees [`Function::poll`].
//! None knows the others, so tests drive a kind or a whole function without a socket.
//!
//! # Threads and locks
//!
//! One lock per function guards all of its state ([`State`]). Three kinds of threads take it: the
//! function's session (for each message), its poller (once per pass, not per command), and whoever
//! manages it (the administrative controller's threads, the control socket; for a moment each). A
//! thread that holds the lock of the administrative controller may take that of another function,
//! never the other way round; nobody holds two others. The dirty log is read without any lock.
//!
//! Nothing blocks under the lock. Who has to wait for requests that the kernel still works on (an
//! unmap, a reset) waits on [`Function::quiet`], which gives the lock away; the poller, which
//! finishes requests, notifies it.

pub(crate) mod config;
mod migratable;
pub(crate) mod msix;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::attention::Attention;
use crate::control::Rate;
use crate::counters::Counters;
use crate::faults::{Death, SharedStage};
use crate::memory::{DmaError, GuestMemory, MapRequest};
use crate::poller::Io;
use crate::transport::device::{Closer, Device, Region, VectorAction};
use config::{ConfigSpace, Identity, MSIX_PENDING, MSIX_TABLE};
pub(crate) use migratable::{Migratable, Parts, Phase, Refused};
use msix::Msix;

/// How long requests that the kernel works on may hold up an unmap or a reset before they are
/// cancelled. Tests do without it, however slow they run.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 3 });
/// How long cancelled requests may take to end before guest memory is taken away from them.
const GRACE: Duration = Duration::from_secs(1);

/// What a device kind implements. Registers are BAR0 below the MSI-X table.
pub(crate) trait Kind: Send {
    /// Reads registers at an offset, any width and alignment.
    fn read(&mut self, offset: usize, data: &mut [u8]);

    /// Writes registers at an offset, any width and alignment.
    fn write(&mut self, offset: usize, data: &[u8], bus: &mut Bus<'_>);

    /// Something that may have kept the kind from working has changed (it became bus master).
    fn resume(&mut self, bus: &mut Bus<'_>);

    /// Back to the state after power-on. Outstanding work is dropped and nothing new is begun, but
    /// requests that the kernel works on stay in flight; their completions lead nowhere.
    fn reset(&mut self);

    /// Does what there is to do. Called by the poller only.
    fn poll(&mut self, bus: &mut Bus<'_>, io: &mut Io<'_>) -> Progress;

    /// The kernel is done with a request that [`Kind::poll`] handed to it.
    fn finish(&mut self, slot: u32, result: i32, bus: &mut Bus<'_>, io: &mut Io<'_>);

    /// The poller is about to sleep: asks the driver for a doorbell. Says whether work came in
    /// between.
    fn arm(&mut self, bus: &mut Bus<'_>) -> bool;

    /// Whether the kernel works on requests that touch guest memory or change a medium.
    fn busy(&self) -> bool;

    /// Whether the kernel works on a request with data in the range (`last` is inclusive).
    fn uses(&self, first: u64, last: u64) -> bool;

    /// Asks the kernel to give up all requests. Called by the poller only.
    fn cancel(&mut self, io: &mut Io<'_>);

    /// How it is, for people who look at it.
    fn status(&self) -> Condition;

    /// Lets commands go on that a fault stalls. Says how many there were.
    fn release(&mut self) -> u64;

    /// Limits the rate of I/O.
    fn set_rate(&mut self, rate: Rate);

    /// The device has failed for good: it says so and does nothing any more until it is reset.
    fn fail(&mut self);

    /// Where it stands in a migration.
    fn phase(&self) -> Phase {
        Phase::Running
    }

    /// What can migrate it, if anything can.
    fn migratable(&mut self) -> Option<&mut dyn Migratable> {
        None
    }
}

/// How a kind is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    /// It has a driver.
    pub(crate) ready: bool,
    /// It is suspended for migration.
    pub(crate) suspended: bool,
    /// Commands that a fault stalls.
    pub(crate) stalled: u64,
    /// Its rate limit.
    pub(crate) rate: Rate,
}

/// What a pass of the poller over a function came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Something was done.
    pub(crate) worked: bool,
    /// Work may come without anybody calling: look again while awake.
    pub(crate) watch: bool,
    /// Something has to be done at this time, also when nothing else happens.
    pub(crate) deadline: Option<Instant>,
}

/// A kind's way to the outside for the length of a call.
pub(crate) struct Bus<'a> {
    memory: &'a GuestMemory,
    msix: &'a mut Msix,
    attention: &'a Attention,
    counters: &'a Counters,
    stage: &'a SharedStage,
    asked: &'a mut Asked,
    alive: bool,
    master: bool,
}

/// What a kind asked of the function, done after the call.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    die: Option<Death>,
    disconnect: bool,
    give_up: bool,
}

impl Bus<'_> {
    /// Whether the function may access memory at all.
    pub(crate) fn master(&self) -> bool {
        self.master
    }

    /// Guest memory, for what is more than a copy.
    pub(crate) fn memory(&self) -> Result<&GuestMemory, DmaError> {
        self.master
            .then_some(self.memory)
            .ok_or(DmaError::BusMasterOff)
    }

    /// Guest memory after the fact: what the kernel wrote is dirty, bus master or not.
    pub(crate) fn wrote(&self, iova: u64, len: u64) {
        self.memory.wrote(iova, len);
    }

    /// Copies guest memory out. All of it or nothing.
    pub(crate) fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.memory()?.read(iova, data)
    }

    /// Copies into guest memory. All of it or nothing.
    pub(crate) fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        self.memory()?.write(iova, data)
    }

    /// Stores one aligned dword after everything written before.
    pub(crate) fn publish_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        self.memory()?.publish_u32(iova, value)
    }

    /// Sends the interrupt of a vector, or makes it pending.
    pub(crate) fn interrupt(&mut self, vector: u16) {
        if self.alive {
            self.counters.io.interrupts.count();
            self.msix.raise(vector);
        }
    }

    /// Whether a message waits until its vector is unmasked.
    pub(crate) fn is_pending(&self, vector: u16) -> bool {
        self.msix.is_pending(vector)
    }

    /// The function's counters.
    pub(crate) fn counters(&self) -> &Counters {
        self.counters
    }

    /// What decides on faults.
    pub(crate) fn stage(&self) -> &SharedStage {
        self.stage
    }

    /// The function dies after this call.
    pub(crate) fn die(&mut self, death: Death) {
        self.asked.die = Some(death);
    }

    /// After this call, guest memory is out of reach of requests that the kernel keeps, and the
    /// function has failed.
    pub(crate) fn give_up(&mut self) {
        self.asked.give_up = true;
    }

    /// The client's connection is closed after this call.
    pub(crate) fn disconnect(&mut self) {
        self.asked.disconnect = true;
    }

    /// Number of interrupt vectors.
    pub(crate) fn vectors(&self) -> u16 {
        self.msix.count()
    }

    /// There is work for the poller.
    pub(crate) fn call_poller(&self) {
        self.attention.call();
    }
}

/// A function of the card.
pub(crate) struct Function {
    bar0_size: u32,
    vectors: u16,
    state: Mutex<State>,
    /// Requests in flight have become fewer.
    quiet: Condvar,
    /// Work for the poller.
    pub(crate) attention: Arc<Attention>,
    /// What it did so far.
    pub(crate) counters: Counters,
    stage: Arc<SharedStage>,
    /// Who has to know when the [`Phase`] of the kind has changed.
    observer: OnceLock<Arc<Attention>>,
}

/// Everything that the lock of a function guards.
pub(crate) struct State {
    config: ConfigSpace,
    msix: Msix,
    pub(crate) memory: GuestMemory,
    pub(crate) kind: Box<dyn Kind>,
    /// Threads that wait on `quiet`.
    waiting: u32,
    /// The poller is to cancel what is in flight.
    cancel: bool,
    /// The function is dead: it answers as the death says and does nothing.
    dead: Option<Death>,
    /// Closes the client's connection.
    closer: Option<Closer>,
    /// The phase that the observer knows.
    told: Phase,
}

impl State {
    /// How the function was killed.
    pub(crate) fn dead(&self) -> Option<Death> {
        self.dead
    }

    /// Whether a client is connected.
    pub(crate) fn connected(&self) -> bool {
        self.closer.is_some()
    }

    fn die(&mut self, death: Death) {
        tracing::warn!("the function dies ({death:?})");
        self.dead = Some(death);
        if death == Death::Cfs {
            self.kind.fail();
        }
    }

    fn give_up(&mut self) {
        tracing::error!(
            "the storage keeps requests: the function has failed, and guest memory is out of \
             their reach"
        );
        self.memory.revoke();
        self.kind.reset();
        self.kind.fail();
    }

    fn disconnect(&self) -> bool {
        self.closer.as_ref().is_some_and(Closer::close)
    }
}

impl Function {
    /// A function after power-on.
    pub(crate) fn new(identity: &Identity, kind: Box<dyn Kind>, stage: Arc<SharedStage>) -> Self {
        let mut memory = GuestMemory::default();
        memory.set_stage(Arc::clone(&stage));
        Self {
            bar0_size: identity.bar0_size,
            vectors: identity.vectors,
            state: Mutex::new(State {
                config: ConfigSpace::new(identity),
                msix: Msix::new(identity.vectors),
                memory,
                kind,
                waiting: 0,
                cancel: false,
                dead: None,
                closer: None,
                told: Phase::Running,
            }),
            quiet: Condvar::new(),
            attention: Arc::default(),
            counters: Counters::default(),
            stage,
            observer: OnceLock::new(),
        }
    }

    /// Works with the kind and a bus.
    pub(crate) fn with_kind<T>(
        &self,
        state: &mut State,
        work: impl FnOnce(&mut dyn Kind, &mut Bus<'_>) -> T,
    ) -> T {
        let mut asked = Asked::default();
        let mut bus = Bus {
            memory: &state.memory,
            msix: &mut state.msix,
            attention: &self.attention,
            counters: &self.counters,
            stage: &self.stage,
            asked: &mut asked,
            alive: state.dead.is_none(),
            master: state.config.bus_master() && state.dead.is_none(),
        };
        let result = work(state.kind.as_mut(), &mut bus);
        if let Some(death) = asked.die {
            state.die(death);
        }
        if asked.disconnect {
            state.disconnect();
        }
        if asked.give_up {
            state.give_up();
        }
        self.tell(state);
        result
    }

    /// From now on, `observer` is called when the phase of the kind has changed.
    pub(crate) fn observe(&self, observer: Arc<Attention>) {
        // A function has one manager for its life; a second call changes nothing.
        let _ = self.observer.set(observer);
    }

    fn tell(&self, state: &mut State) {
        let phase = state.kind.phase();
        if std::mem::replace(&mut state.told, phase) != phase {
            if let Some(observer) = self.observer.get() {
                observer.call();
            }
        }
    }

    /// Kills the function, or brings it back as it is after a reset.
    pub(crate) fn kill(&self, death: Option<Death>) {
        let mut state = self.state.lock();
        match death {
            Some(death) => state.die(death),
            None => {
                state.dead = None;
                self.reset_now(&mut state);
            }
        }
    }

    /// Closes the client's connection. Says whether there was one.
    pub(crate) fn disconnect_client(&self) -> bool {
        self.state.lock().disconnect()
    }

    /// The state, for whoever manages the function.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Does what there is to do.
    pub(crate) fn poll(&self, io: &mut Io<'_>) -> Progress {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.cancel) {
            state.kind.cancel(io);
        }
        if state.dead.is_some() {
            return Progress::default();
        }
        self.with_kind(&mut state, |kind, bus| kind.poll(bus, io))
    }

    /// Takes back requests that the kernel has finished (slot, result), and goes on with what that
    /// makes possible.
    pub(crate) fn finish(&self, finished: &[(u32, i32)], io: &mut Io<'_>) -> Progress {
        let mut state = self.state.lock();
        let alive = state.dead.is_none();
        let progress = self.with_kind(&mut state, |kind, bus| {
            for &(token, result) in finished {
                kind.finish(token % crate::poller::SLOTS, result, bus, io);
            }
            if alive {
                kind.poll(bus, io)
            } else {
                Progress::default()
            }
        });
        if state.waiting > 0 {
            self.quiet.notify_all();
        }
        progress
    }

    /// The poller is about to sleep. Says whether it should not.
    pub(crate) fn arm(&self) -> bool {
        let mut state = self.state.lock();
        if state.dead.is_some() {
            return false;
        }
        self.with_kind(&mut state, |kind, bus| kind.arm(bus))
    }

    /// Waits until the kernel has let go of requests: all of them, or those in a range. A kernel
    /// that does not (its storage hangs) costs the function, but neither the client's patience nor
    /// anybody's memory: requests are cancelled, and at last guest memory is taken away from them.
    fn drain(&self, state: &mut MutexGuard<'_, State>, range: Option<(u64, u64)>) {
        let busy = |state: &State| match range {
            Some((first, last)) => state.kind.uses(first, last),
            None => state.kind.busy(),
        };
        if !busy(state) {
            return;
        }
        state.waiting += 1;
        for (patience, last) in [(PATIENCE, false), (GRACE, true)] {
            let deadline = Instant::now() + patience;
            while busy(state) && !self.quiet.wait_until(state, deadline).timed_out() {}
            if !busy(state) {
                break;
            }
            if last {
                state.give_up();
                self.tell(state);
            } else {
                tracing::warn!("cancelling requests that the storage keeps");
                state.cancel = true;
                self.attention.call();
            }
        }
        state.waiting -= 1;
    }

    fn reset_now(&self, state: &mut MutexGuard<'_, State>) {
        self.counters.connection.resets.count();
        state.kind.reset();
        self.tell(state);
        self.drain(state, None);
        state.msix.reset();
        state.config.reset();
    }

    fn write_config(&self, state: &mut MutexGuard<'_, State>, offset: usize, data: &[u8]) {
        let was_master = state.config.bus_master();
        if state.config.write(offset, data) {
            tracing::debug!("function level reset");
            return self.reset_now(state);
        }
        let master = state.config.bus_master();
        let (enabled, masked) = (state.config.msix_enabled(), state.config.msix_masked());
        state.msix.configure(enabled, masked, master);
        if was_master && !master {
            // The write is done when the function writes no more.
            self.drain(state, Some((0, u64::MAX)));
        }
        if master && !was_master {
            self.with_kind(state, |kind, bus| kind.resume(bus));
        }
    }
}

/// Splits an access to BAR0 at the borders of registers, MSI-X table and pending bits, and hands
/// out (area, offset in the area, range of the data).
fn areas(offset: usize, len: usize) -> impl Iterator<Item = (Area, usize, usize, usize)> {
    const BORDERS: [(Area, usize, usize); 3] = [
        (Area::Registers, 0, MSIX_TABLE as usize),
        (Area::Table, MSIX_TABLE as usize, MSIX_PENDING as usize),
        (Area::Pending, MSIX_PENDING as usize, usize::MAX),
    ];
    BORDERS.into_iter().filter_map(move |(area, first, end)| {
        let from = offset.max(first);
        let to = (offset + len).min(end);
        (from < to).then(|| (area, from - first, from - offset, to - offset))
    })
}

#[derive(Clone, Copy)]
enum Area {
    Registers,
    Table,
    Pending,
}

impl Device for Function {
    fn region_size(&self, region: Region) -> u64 {
        match region {
            Region::Bar0 => u64::from(self.bar0_size),
            Region::Config => config::SIZE as u64,
        }
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn read(&self, region: Region, offset: usize, data: &mut [u8]) {
        let mut state = self.state.lock();
        if region == Region::Config {
            return state.config.read(offset, data);
        }
        // An access while Memory Space Enable is off does not reach a real function.
        if !state.config.memory_enabled() || state.dead == Some(Death::Ones) {
            return data.fill(0xff);
        }
        for (area, at, from, to) in areas(offset, data.len()) {
            match area {
                Area::Registers => state.kind.read(at, &mut data[from..to]),
                Area::Table => state.msix.read_table(at, &mut data[from..to]),
                Area::Pending => state.msix.read_pending(at, &mut data[from..to]),
            }
        }
    }

    fn write(&self, region: Region, offset: usize, data: &[u8]) {
        if region == Region::Bar0 {
            if let Some(late) = self.stage.late_write() {
                // What comes behind it on the connection waits too: a posted write is passed by none.
                std::thread::sleep(late);
            }
        }
        let mut state = self.state.lock();
        if region == Region::Config {
            return self.write_config(&mut state, offset, data);
        }
        if !state.config.memory_enabled() || state.dead.is_some() {
            return;
        }
        for (area, at, from, to) in areas(offset, data.len()) {
            let data = &data[from..to];
            match area {
                Area::Registers => {
                    self.with_kind(&mut state, |kind, bus| kind.write(at, data, bus));
                }
                Area::Table => state.msix.write_table(at, data),
                Area::Pending => {}
            }
        }
    }

    fn map(&self, request: MapRequest, file: Option<&OwnedFd>) -> io::Result<()> {
        self.state.lock().memory.map(request, file)
    }

    fn unmap(&self, iova: u64, size: u64) {
        let Some(rest) = size.checked_sub(1) else {
            return;
        };
        let mut state = self.state.lock();
        state.memory.unmap(iova, size);
        self.drain(&mut state, Some((iova, iova.saturating_add(rest))));
    }

    fn unmap_all(&self) {
        let mut state = self.state.lock();
        state.memory.unmap_all();
        self.drain(&mut state, Some((0, u64::MAX)));
    }

    fn vector(&self, index: u16, action: VectorAction) {
        let mut state = self.state.lock();
        match action {
            VectorAction::Assign(trigger) => state.msix.set_trigger(index, trigger),
            VectorAction::Trigger => state.msix.trigger(index),
            VectorAction::Mask => state.msix.set_client_mask(index, true),
            VectorAction::Unmask => state.msix.set_client_mask(index, false),
        }
    }

    fn reset(&self) {
        self.reset_now(&mut self.state.lock());
    }

    fn connect(&self, closer: Closer) {
        self.counters.connection.connects.count();
        self.state.lock().closer = Some(closer);
    }

    fn disconnect(&self) {
        let mut state = self.state.lock();
        state.closer = None;
        self.reset_now(&mut state);
        state.config.power_on();
        state.msix.disconnect();
        state.memory.reset();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::faults::Faults;

    /// Everything a kind needs in a test, without a function around it.
    pub(crate) struct Bench {
        pub(crate) memory: GuestMemory,
        pub(crate) msix: Msix,
        pub(crate) attention: Attention,
        pub(crate) counters: Counters,
        pub(crate) faults: Faults,
        pub(crate) master: bool,
        asked: Asked,
    }

    impl Bench {
        pub(crate) fn new() -> Self {
            Self::with_vectors(1)
        }

        pub(crate) fn with_vectors(count: u16) -> Self {
            let mut msix = Msix::new(count);
            msix.configure(true, false, true);
            Self {
                memory: GuestMemory::default(),
                msix,
                attention: Attention::default(),
                counters: Counters::default(),
                faults: Faults::new(1, ["bench"]),
                master: true,
                asked: Asked::default(),
            }
        }

        /// Whether the kind gave up on requests that the kernel keeps.
        pub(crate) fn gave_up(&self) -> bool {
            self.asked.give_up
        }

        pub(crate) fn bus(&mut self) -> Bus<'_> {
            Bus {
                memory: &self.memory,
                msix: &mut self.msix,
                attention: &self.attention,
                counters: &self.counters,
                stage: self.faults.stage(0).unwrap(),
                asked: &mut self.asked,
                alive: true,
                master: self.master,
            }
        }
    }

    /// What reached a kind.
    #[derive(Default)]
    struct Seen {
        writes: Vec<(usize, Vec<u8>)>,
        resumed: u32,
        resets: u32,
        /// Requests that the test has not finished yet, and what each works on.
        in_flight: Vec<(u32, u64, u64)>,
        cancelled: u32,
        failed: bool,
    }

    /// Remembers what reached it, where the test can see it.
    #[derive(Default)]
    struct Recorder(Arc<Mutex<Seen>>);

    impl Kind for Recorder {
        fn read(&mut self, offset: usize, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: usize, data: &[u8], bus: &mut Bus<'_>) {
            self.0.lock().writes.push((offset, data.to_vec()));
            bus.interrupt(0);
        }

        fn resume(&mut self, _bus: &mut Bus<'_>) {
            self.0.lock().resumed += 1;
        }

        fn reset(&mut self) {
            self.0.lock().resets += 1;
        }

        fn poll(&mut self, _bus: &mut Bus<'_>, _io: &mut Io<'_>) -> Progress {
            Progress::default()
        }

        fn finish(&mut self, slot: u32, _result: i32, _bus: &mut Bus<'_>, _io: &mut Io<'_>) {
            self.0.lock().in_flight.retain(|(own, ..)| *own != slot);
        }

        fn arm(&mut self, _bus: &mut Bus<'_>) -> bool {
            false
        }

        fn busy(&self) -> bool {
            !self.0.lock().in_flight.is_empty()
        }

        fn uses(&self, first: u64, last: u64) -> bool {
            let seen = self.0.lock();
            let mut requests = seen.in_flight.iter();
            requests.any(|(_, from, to)| *from <= last && *to >= first)
        }

        fn cancel(&mut self, _io: &mut Io<'_>) {
            self.0.lock().cancelled += 1;
        }

        fn status(&self) -> Condition {
            Condition {
                ready: true,
                suspended: false,
                stalled: 0,
                rate: Rate::default(),
            }
        }

        fn release(&mut self) -> u64 {
            0
        }

        fn set_rate(&mut self, _rate: Rate) {}

        fn fail(&mut self) {
            self.0.lock().failed = true;
        }
    }

    fn function() -> (Arc<Function>, Arc<Mutex<Seen>>) {
        let recorder = Recorder::default();
        let seen = Arc::clone(&recorder.0);
        let faults = Faults::new(1, ["recorder"]);
        let stage = Arc::clone(faults.stage(0).unwrap());
        let function = Function::new(&config::tests::identity(), Box::new(recorder), stage);
        (Arc::new(function), seen)
    }

    fn with_bus<T>(function: &Function, work: impl FnOnce(&mut Bus<'_>) -> T) -> T {
        let mut state = function.lock();
        function.with_kind(&mut state, |_, bus| work(bus))
    }

    #[test]
    fn memory_space_enable_gates_the_bar() {
        let (function, seen) = function();
        let mut byte = [0];
        function.read(Region::Bar0, 5, &mut byte);
        function.write(Region::Bar0, 5, &[1]);
        assert_eq!((byte[0], seen.lock().writes.len()), (0xff, 0));
        function.write(Region::Config, 4, &[2]);
        function.read(Region::Bar0, 5, &mut byte);
        function.write(Region::Bar0, 5, &[1]);
        assert_eq!((byte[0], seen.lock().writes.len()), (5, 1));
    }

    #[test]
    fn an_access_across_areas_reaches_each_of_them() {
        let (function, seen) = function();
        function.write(Region::Config, 4, &[2]);
        function.write(Region::Bar0, 0x1ffc, &[1, 2, 3, 4, 0x50, 6, 7, 8]);
        assert_eq!(seen.lock().writes, [(0x1ffc, vec![1, 2, 3, 4])]);
        let mut bytes = [0xee; 8];
        function.read(Region::Bar0, 0x1ffc, &mut bytes);
        assert_eq!(bytes, [0xfc, 0xfc, 0xfc, 0xfc, 0x50, 6, 7, 8]);
    }

    #[test]
    fn becoming_bus_master_resumes_the_kind_once() {
        let (function, seen) = function();
        function.write(Region::Config, 4, &[4]);
        function.write(Region::Config, 4, &[6]);
        assert_eq!(seen.lock().resumed, 1);
        function.write(Region::Config, 4, &[2]);
        function.write(Region::Config, 4, &[6]);
        assert_eq!(seen.lock().resumed, 2);
    }

    #[test]
    fn function_level_reset_resets_kind_config_and_vectors_but_keeps_maps_and_eventfds() {
        let (function, seen) = function();
        let (mine, theirs) = msix::tests::eventfd();
        let file = crate::memory::tests::memfd(0x1000);
        function
            .map(crate::memory::tests::request(0, 0x1000, 0), Some(&file))
            .unwrap();
        function.vector(0, VectorAction::Assign(Some(theirs)));
        function.write(Region::Config, 4, &[6]);
        function.write(Region::Config, 0x68, &0x8000u16.to_le_bytes());
        assert_eq!(seen.lock().resets, 1);
        assert!(!function.lock().config.memory_enabled());
        function.write(Region::Config, 4, &[6]);
        function.write(Region::Config, 0x53, &[0x80]);
        function.write(Region::Bar0, 0, &[0]);
        assert_eq!(msix::tests::fired(&mine), 1);
        with_bus(&function, |bus| {
            assert_eq!(bus.read(0, &mut [0; 16]), Ok(()));
        });
        function.disconnect();
        function.write(Region::Config, 4, &[6]);
        with_bus(&function, |bus| {
            assert_eq!(bus.read(0, &mut [0; 16]), Err(DmaError::NotMapped));
        });
        assert_eq!(seen.lock().resets, 2);
    }

    #[test]
    fn error_registers_survive_resets_and_not_the_client() {
        const MASK: usize = 0x138;
        let (function, _) = function();
        let mask = |function: &Function| {
            let mut byte = [0];
            function.read(Region::Config, MASK + 2, &mut byte);
            byte[0]
        };
        function.write(Region::Config, MASK, &[0; 4]);
        function.write(Region::Config, 0x68, &0x8000u16.to_le_bytes());
        function.reset();
        assert_eq!(mask(&function), 0);
        function.disconnect();
        assert_eq!(mask(&function), 0x40);
    }

    #[test]
    fn no_bus_master_no_access() {
        let (function, _) = function();
        let file = crate::memory::tests::memfd(0x1000);
        function
            .map(crate::memory::tests::request(0, 0x1000, 0), Some(&file))
            .unwrap();
        with_bus(&function, |bus| {
            assert_eq!(bus.write(0, &[1]), Err(DmaError::BusMasterOff));
            assert_eq!(bus.publish_u32(0, 1), Err(DmaError::BusMasterOff));
        });
    }

    /// Finishes a request as the poller would.
    fn finish(function: &Function, slot: u32) {
        let mut ring = crate::sys::Ring::new(1).unwrap();
        let mut io = Io::new(&mut ring, 0, Instant::now());
        function.finish(&[(slot, 0)], &mut io);
    }

    /// Runs `work` on another thread, and says whether it waited for request 7 before it returned.
    fn waits_for_request_7(
        function: &Arc<Function>,
        work: impl FnOnce(&Function) + Send + 'static,
    ) -> bool {
        let (done, ended) = std::sync::mpsc::channel();
        let thread = {
            let function = Arc::clone(function);
            std::thread::spawn(move || {
                work(&function);
                done.send(()).unwrap();
            })
        };
        // It waits, or it is done; nothing else can happen.
        let waited = loop {
            if function.lock().waiting > 0 {
                break true;
            }
            if ended.try_recv().is_ok() {
                break false;
            }
            std::thread::yield_now();
        };
        if waited {
            // Another request ends: that is not enough.
            finish(function, 3);
            assert!(ended.try_recv().is_err());
        }
        finish(function, 7);
        thread.join().unwrap();
        waited
    }

    #[test]
    fn whatever_takes_memory_away_waits_for_requests_that_use_it() {
        let flr = |function: &Function| {
            function.write(Region::Config, 0x68, &0x8000u16.to_le_bytes());
        };
        type Way = (&'static str, bool, Box<dyn FnOnce(&Function) + Send>);
        let ways: [Way; 7] = [
            ("unmap of it", true, Box::new(|f| f.unmap(0x2000, 0x1000))),
            ("its last byte", true, Box::new(|f| f.unmap(0x2fff, 1))),
            ("below", false, Box::new(|f| f.unmap(0x1000, 0x1000))),
            ("above", false, Box::new(|f| f.unmap(0x3000, 0x1000))),
            ("everything", true, Box::new(|f| f.unmap_all())),
            ("reset", true, Box::new(|f| f.reset())),
            ("function level reset", true, Box::new(flr)),
        ];
        for (name, expected, way) in ways {
            let (function, seen) = function();
            seen.lock().in_flight = vec![(3, 0x8000, 0x8fff), (7, 0x2000, 0x2fff)];
            assert_eq!(waits_for_request_7(&function, way), expected, "{name}");
            let seen = seen.lock();
            assert_eq!((seen.cancelled, seen.failed), (0, false));
        }
    }

    #[test]
    fn a_dead_function_answers_as_its_death_says_and_comes_back_fresh() {
        let (function, seen) = function();
        function.write(Region::Config, 4, &[6]);
        function.kill(Some(Death::Cfs));
        assert!(seen.lock().failed);
        function.kill(Some(Death::Ones));
        let mut bytes = [0; 4];
        function.read(Region::Bar0, 0x1c, &mut bytes);
        assert_eq!(bytes, [0xff; 4]);
        function.write(Region::Bar0, 0, &[1]);
        assert!(seen.lock().writes.is_empty());
        function.kill(None);
        assert_eq!(seen.lock().resets, 1);
        assert!(function.lock().dead().is_none());
        function.write(Region::Config, 4, &[6]);
        function.read(Region::Bar0, 0x1c, &mut bytes);
        assert_eq!(bytes, [0x1c; 4]);
    }
}
