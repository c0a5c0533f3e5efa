// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A PCI function: configuration space, MSI-X and guest memory around a device kind.
//!
//! Owns everything that is the same for every kind. The kind (an NVMe controller, later virtio)
//! sees registers and a [`Bus`]; the transport sees [`Device`]. Neither knows the other, so tests
//! drive a kind or a whole function without a socket.

pub(crate) mod config;
pub(crate) mod msix;

use std::io;
use std::os::fd::OwnedFd;

use crate::memory::{DmaError, GuestMemory, MapRequest};
use crate::transport::device::{Device, Region, VectorAction};
use config::{ConfigSpace, Identity, MSIX_PENDING, MSIX_TABLE};
use msix::Msix;

/// What a device kind implements. Registers are BAR0 below the MSI-X table.
pub(crate) trait Kind: Send {
    /// Reads registers at an offset, any width and alignment.
    fn read(&mut self, offset: usize, data: &mut [u8]);

    /// Writes registers at an offset, any width and alignment.
    fn write(&mut self, offset: usize, data: &[u8], bus: &mut Bus<'_>);

    /// Something that may have kept the kind from working has changed (it became bus master).
    fn resume(&mut self, bus: &mut Bus<'_>);

    /// Back to the state after power-on. Outstanding work is dropped, nothing is written any more.
    fn reset(&mut self);
}

/// A kind's way to the outside for the length of a call.
pub(crate) struct Bus<'a> {
    memory: &'a GuestMemory,
    msix: &'a mut Msix,
    master: bool,
}

impl Bus<'_> {
    /// Whether the function may access memory at all.
    pub(crate) fn master(&self) -> bool {
        self.master
    }

    /// Copies guest memory out. All of it or nothing.
    pub(crate) fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.allowed()?.read(iova, data)
    }

    /// Copies into guest memory. All of it or nothing.
    pub(crate) fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaError> {
        self.allowed()?.write(iova, data)
    }

    /// Stores one aligned dword after everything written before.
    pub(crate) fn publish_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        self.allowed()?.publish_u32(iova, value)
    }

    /// Sends the interrupt of a vector, or makes it pending.
    pub(crate) fn interrupt(&mut self, vector: u16) {
        self.msix.raise(vector);
    }

    fn allowed(&self) -> Result<&GuestMemory, DmaError> {
        self.master
            .then_some(self.memory)
            .ok_or(DmaError::BusMasterOff)
    }
}

/// A function of the card.
pub(crate) struct Function<K> {
    config: ConfigSpace,
    msix: Msix,
    memory: GuestMemory,
    bar0_size: u32,
    kind: K,
}

impl<K: Kind> Function<K> {
    /// A function after power-on.
    pub(crate) fn new(identity: &Identity, kind: K) -> Self {
        Self {
            config: ConfigSpace::new(identity),
            msix: Msix::new(identity.vectors),
            memory: GuestMemory::default(),
            bar0_size: identity.bar0_size,
            kind,
        }
    }

    fn with_kind(&mut self, work: impl FnOnce(&mut K, &mut Bus<'_>)) {
        let mut bus = Bus {
            memory: &self.memory,
            msix: &mut self.msix,
            master: self.config.bus_master(),
        };
        work(&mut self.kind, &mut bus);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let was_master = self.config.bus_master();
        if self.config.write(offset, data) {
            tracing::debug!("function level reset");
            self.reset();
            return;
        }
        let master = self.config.bus_master();
        self.msix.configure(
            self.config.msix_enabled(),
            self.config.msix_masked(),
            master,
        );
        if master && !was_master {
            self.with_kind(|kind, bus| kind.resume(bus));
        }
    }

    /// Splits an access to BAR0 at the borders of registers, MSI-X table and pending bits, and
    /// hands out (area, offset in the area, range of the data).
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
}

#[derive(Clone, Copy)]
enum Area {
    Registers,
    Table,
    Pending,
}

impl<K: Kind> Device for Function<K> {
    fn region_size(&self, region: Region) -> u64 {
        match region {
            Region::Bar0 => u64::from(self.bar0_size),
            Region::Config => config::SIZE as u64,
        }
    }

    fn vectors(&self) -> u16 {
        self.msix.count()
    }

    fn read(&mut self, region: Region, offset: usize, data: &mut [u8]) {
        if region == Region::Config {
            return self.config.read(offset, data);
        }
        // An access while Memory Space Enable is off does not reach a real function.
        if !self.config.memory_enabled() {
            return data.fill(0xff);
        }
        for (area, at, from, to) in Self::areas(offset, data.len()) {
            match area {
                Area::Registers => self.kind.read(at, &mut data[from..to]),
                Area::Table => self.msix.read_table(at, &mut data[from..to]),
                Area::Pending => self.msix.read_pending(at, &mut data[from..to]),
            }
        }
    }

    fn write(&mut self, region: Region, offset: usize, data: &[u8]) {
        if region == Region::Config {
            return self.write_config(offset, data);
        }
        if !self.config.memory_enabled() {
            return;
        }
        for (area, at, from, to) in Self::areas(offset, data.len()) {
            match area {
                Area::Registers => {
                    self.with_kind(|kind, bus| kind.write(at, &data[from..to], bus));
                }
                Area::Table => self.msix.write_table(at, &data[from..to]),
                Area::Pending => {}
            }
        }
    }

    fn map(&mut self, request: MapRequest, file: Option<&OwnedFd>) -> io::Result<()> {
        self.memory.map(request, file)
    }

    fn unmap(&mut self, iova: u64, size: u64) {
        self.memory.unmap(iova, size);
    }

    fn unmap_all(&mut self) {
        self.memory.unmap_all();
    }

    fn vector(&mut self, index: u16, action: VectorAction) {
        match action {
            VectorAction::Assign(trigger) => self.msix.set_trigger(index, trigger),
            VectorAction::Trigger => self.msix.trigger(index),
            VectorAction::Mask => self.msix.set_client_mask(index, true),
            VectorAction::Unmask => self.msix.set_client_mask(index, false),
        }
    }

    fn reset(&mut self) {
        self.kind.reset();
        self.msix.reset();
        self.config.reset();
    }

    fn disconnect(&mut self) {
        self.reset();
        self.msix.disconnect();
        self.memory = GuestMemory::default();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Everything a kind needs in a test, without a function around it.
    pub(crate) struct Bench {
        pub(crate) memory: GuestMemory,
        pub(crate) msix: Msix,
        pub(crate) master: bool,
    }

    impl Bench {
        pub(crate) fn new() -> Self {
            let mut msix = Msix::new(1);
            msix.configure(true, false, true);
            Self {
                memory: GuestMemory::default(),
                msix,
                master: true,
            }
        }

        pub(crate) fn bus(&mut self) -> Bus<'_> {
            Bus {
                memory: &self.memory,
                msix: &mut self.msix,
                master: self.master,
            }
        }
    }

    /// Remembers what reached it.
    #[derive(Default)]
    struct Recorder {
        writes: Vec<(usize, Vec<u8>)>,
        resumed: u32,
        resets: u32,
    }

    impl Kind for Recorder {
        fn read(&mut self, offset: usize, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: usize, data: &[u8], bus: &mut Bus<'_>) {
            self.writes.push((offset, data.to_vec()));
            bus.interrupt(0);
        }

        fn resume(&mut self, _bus: &mut Bus<'_>) {
            self.resumed += 1;
        }

        fn reset(&mut self) {
            self.resets += 1;
        }
    }

    fn function() -> Function<Recorder> {
        Function::new(&config::tests::identity(), Recorder::default())
    }

    #[test]
    fn memory_space_enable_gates_the_bar() {
        let mut function = function();
        let mut byte = [0];
        function.read(Region::Bar0, 5, &mut byte);
        function.write(Region::Bar0, 5, &[1]);
        assert_eq!((byte[0], function.kind.writes.len()), (0xff, 0));
        function.write(Region::Config, 4, &[2]);
        function.read(Region::Bar0, 5, &mut byte);
        function.write(Region::Bar0, 5, &[1]);
        assert_eq!((byte[0], function.kind.writes.len()), (5, 1));
    }

    #[test]
    fn an_access_across_areas_reaches_each_of_them() {
        let mut function = function();
        function.write(Region::Config, 4, &[2]);
        function.write(Region::Bar0, 0x1ffc, &[1, 2, 3, 4, 0x50, 6, 7, 8]);
        assert_eq!(function.kind.writes, [(0x1ffc, vec![1, 2, 3, 4])]);
        let mut bytes = [0xee; 8];
        function.read(Region::Bar0, 0x1ffc, &mut bytes);
        assert_eq!(bytes, [0xfc, 0xfc, 0xfc, 0xfc, 0x50, 6, 7, 8]);
    }

    #[test]
    fn becoming_bus_master_resumes_the_kind_once() {
        let mut function = function();
        function.write(Region::Config, 4, &[4]);
        function.write(Region::Config, 4, &[6]);
        assert_eq!(function.kind.resumed, 1);
        function.write(Region::Config, 4, &[2]);
        function.write(Region::Config, 4, &[6]);
        assert_eq!(function.kind.resumed, 2);
    }

    #[test]
    fn function_level_reset_resets_kind_config_and_vectors_but_keeps_maps_and_eventfds() {
        let mut function = function();
        let (mine, theirs) = msix::tests::eventfd();
        let file = crate::memory::tests::memfd(0x1000);
        function
            .map(crate::memory::tests::request(0, 0x1000, 0), Some(&file))
            .unwrap();
        function.vector(0, VectorAction::Assign(Some(theirs)));
        function.write(Region::Config, 4, &[6]);
        function.write(Region::Config, 0x68, &0x8000u16.to_le_bytes());
        assert_eq!(function.kind.resets, 1);
        assert!(!function.config.memory_enabled());
        function.write(Region::Config, 4, &[6]);
        function.write(Region::Config, 0x53, &[0x80]);
        function.write(Region::Bar0, 0, &[0]);
        assert_eq!(msix::tests::fired(&mine), 1);
        function.with_kind(|_, bus| assert_eq!(bus.read(0, &mut [0; 16]), Ok(())));
        function.disconnect();
        function.write(Region::Config, 4, &[6]);
        function.with_kind(|_, bus| {
            assert_eq!(bus.read(0, &mut [0; 16]), Err(DmaError::NotMapped));
        });
        assert_eq!(function.kind.resets, 2);
    }

    #[test]
    fn no_bus_master_no_access() {
        let mut function = function();
        let file = crate::memory::tests::memfd(0x1000);
        function
            .map(crate::memory::tests::request(0, 0x1000, 0), Some(&file))
            .unwrap();
        function.with_kind(|_, bus| {
            assert_eq!(bus.write(0, &[1]), Err(DmaError::BusMasterOff));
            assert_eq!(bus.publish_u32(0, 1), Err(DmaError::BusMasterOff));
        });
    }
}
