// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whatever ends commands that are in flight, at whatever moment: after its reply (or CSTS.RDY = 0)
//! nothing writes to guest memory any more, and no completion of the past appears.

use std::os::fd::OwnedFd;

use crate::client::*;
use crate::disk::*;
use crate::fuzz::Random;
use crate::io::card_with;

/// Bytes at the end of each command's data.
const MARK: [u8; 64] = [0xa5; 64];

/// Puts marks where a late read would end, latest command first and without any delay: what comes
/// even a moment after the reply is caught. Also in the completion queue, where a completion would
/// appear.
fn mark(ram: &OwnedFd) {
    for cid in (0..DEPTH).rev() {
        let end = Disk::data(cid) + SLOT - MARK.len() as u64;
        rustix::io::pwrite(ram, &MARK, end).unwrap();
    }
    rustix::io::pwrite(ram, &[0xa5; 0x1000], CQ).unwrap();
}

/// All marks are there, and RAM holds what it held before the `activity`.
fn check(ram: &OwnedFd, activity: impl FnOnce(), what: &str) {
    let read = |iova: u64, len: u64| {
        let mut data = vec![0; len as usize];
        rustix::io::pread(ram, &mut data[..], iova).unwrap();
        data
    };
    let before = read(0, RAM);
    activity();
    let after = read(0, RAM);
    assert!(before == after, "{what}: memory has changed");
    for cid in 0..DEPTH {
        let end = Disk::data(cid) + SLOT - MARK.len() as u64;
        assert_eq!(read(end, 64), MARK, "{what}: data of command {cid}");
    }
    assert_eq!(read(CQ, 0x1000), [0xa5; 0x1000], "{what}: a completion");
}

/// Begins large reads, and among them a safe write, so that the kernel is busy for a while. Not with
/// many writes: what storage is slow to make safe is given up in the end, and this is not about it.
fn begin(disk: &mut Disk, random: &mut Random) {
    let write = random.below(u64::from(DEPTH) * 2) as u16;
    for cid in 0..DEPTH {
        let nsid = random.pick(&[1, 2, 2, 2]);
        let slba = random.below(16384 - 1024);
        if cid == write {
            disk.queue_with(WRITE, nsid, slba, 8, cid, FUA);
        } else {
            disk.queue(READ, nsid, slba, 1024, cid);
        }
    }
    disk.ring();
    // Another moment each time: now, or some messages later.
    for _ in 0..random.below(4) {
        disk.csts();
    }
}

/// I/O of another function on the same poller, through which everything older has passed.
fn activity(other: &mut Disk) {
    for slba in 0..3 {
        other.read(2, slba * 1024, SLOT);
    }
}

fn rounds(seed: u64, mut way: impl FnMut(&mut Disk, &mut Random)) {
    let server = card_with(2, &[]);
    let socket = server.socket_of("nvme1");
    let mut random = Random(seed);
    let mut disk = Disk::start(&socket);
    let mut other = Disk::start(&server.socket_of("nvme2"));
    for round in 0..30 {
        begin(&mut disk, &mut random);
        way(&mut disk, &mut random);
        mark(&disk.ram);
        // A doorbell of before, which is nobody's any more.
        disk.client.write32(BAR0, 0x1008, 1);
        let what = format!("seed {seed:#x}, round {round}");
        check(&disk.ram, || activity(&mut other), &what);
        disk.enable();
        // Also sees that its completion is the first one.
        assert_eq!(disk.run(READ, 2, 0, 256), 0, "seed {seed}, round {round}");
        assert_eq!(disk.reap(), None);
    }
}

#[test]
fn after_a_controller_reset_nothing_is_written() {
    rounds(0x1001, |disk, _| {
        disable(disk);
        assert_eq!(disk.csts(), 0);
    });
}

#[test]
fn after_a_function_level_reset_nothing_is_written() {
    rounds(0x1002, |disk, _| {
        let control = disk.client.read(CONFIG, 0x68, 2).unwrap();
        let initiate = [control[0], control[1] | 0x80];
        disk.client.write(CONFIG, 0x68, &initiate).unwrap();
    });
}

#[test]
fn after_a_device_reset_nothing_is_written() {
    rounds(0x1003, |disk, _| {
        disk.client.call(DEVICE_RESET, &[]).unwrap();
    });
}

#[test]
fn after_any_reset_in_any_order_nothing_is_written() {
    rounds(0x1004, |disk, random| {
        // One that is overtaken by the next.
        match random.below(3) {
            0 => disk.client.write32(BAR0, 0x14, 0),
            1 => disk.client.write32(BAR0, 0x14, 0x0046_4001),
            _ => {
                disk.client.write32(BAR0, 0x14, 0);
                disk.client.write32(BAR0, 0x14, 0x0046_0001);
            }
        }
        disk.client.call(DEVICE_RESET, &[]).unwrap();
    });
}

#[test]
fn after_an_unmap_nothing_is_written_there() {
    let server = card_with(2, &[]);
    let mut random = Random(0x2001);
    let mut disk = Disk::start(&server.socket_of("nvme1"));
    let mut other = Disk::start(&server.socket_of("nvme2"));
    for round in 0..30 {
        begin(&mut disk, &mut random);
        // From the middle of the data on; sizes that go beyond what there is, up to the end of
        // all addresses.
        let first = random.below(DEPTH.into()) as u16;
        let iova = Disk::data(first) + random.pick(&[0, 0x1000, SLOT / 2]);
        let size = random.pick(&[
            RAM - iova,
            1 << 40,
            u64::MAX - iova,
            0u64.wrapping_sub(iova),
        ]);
        disk.client.unmap(iova, size, 0).unwrap();
        mark(&disk.ram);
        // Commands below the hole may still be going on, and complete.
        other.read(2, 0, SLOT);
        for cid in first..DEPTH {
            let end = Disk::data(cid) + SLOT - MARK.len() as u64;
            let found = disk.bytes(end, 64);
            assert_eq!(found, MARK, "round {round}, command {cid}");
        }
        let ram = disk.ram.try_clone().unwrap();
        disk.client.map(iova, RAM - iova, iova, &ram).unwrap();
        disable(&mut disk);
        disk.enable();
        assert_eq!(disk.run(READ, 2, 0, 256), 0);
    }
}

#[test]
fn after_a_disconnect_nothing_is_written() {
    let server = card_with(2, &[]);
    let socket = server.socket_of("nvme1");
    let mut random = Random(0x3001);
    let mut other = Disk::start(&server.socket_of("nvme2"));
    for round in 0..30 {
        let mut disk = Disk::start(&socket);
        begin(&mut disk, &mut random);
        let ram = disk.ram.try_clone().unwrap();
        drop(disk);
        // The next client is served when the session of the last one is over.
        let next = Client::connect(&socket);
        mark(&ram);
        let mut disk = Disk::attach_to(next);
        disk.enable();
        assert_eq!(disk.run(READ, 2, 0, 256), 0);
        check(&ram, || activity(&mut other), &format!("round {round}"));
        assert_eq!(server.maps("disk-ram"), 2, "the old RAM is not kept");
    }
}

fn disable(disk: &mut Disk) {
    disk.client.write32(BAR0, 0x14, 0);
    while disk.csts() & 1 != 0 {
        std::thread::yield_now();
    }
}
