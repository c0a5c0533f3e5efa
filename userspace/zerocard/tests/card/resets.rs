// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whatever ends commands that are in flight, at whatever moment: after its reply (or CSTS.RDY = 0)
//! nothing writes to guest memory any more, and no completion of the past appears.

use rustix::fs::Advice;

use crate::client::*;
use crate::disk::*;
use crate::fuzz::Random;
use crate::io::card_with;
use crate::server::Server;

/// Everything of RAM holds this, so a byte that somebody wrote is seen.
fn fill(disk: &Disk, seed: u64) -> Vec<u8> {
    let fill = pattern(seed, RAM);
    disk.put(0, &fill);
    fill
}

/// Begins reads and safe writes of the file, some of which are not in the page cache, so that the
/// kernel is busy with them for a while.
fn begin(server: &Server, disk: &mut Disk, random: &mut Random) {
    let medium = std::fs::File::open(server.path("medium")).unwrap();
    rustix::fs::fadvise(&medium, 0, None, Advice::DontNeed).unwrap();
    for cid in 0..1 + random.below(DEPTH.into()) as u16 {
        let blocks = random.pick(&[1, 8, 64, 256]);
        let slba = random.below(16384 - 256);
        let (opcode, flags) = random.pick(&[(READ, 0), (READ, 0), (WRITE, FUA)]);
        let nsid = random.pick(&[1, 2, 2, 2]);
        disk.queue_with(opcode, nsid, slba, blocks, cid, flags);
    }
    disk.ring();
    // Another moment each time: now, or some messages later.
    for _ in 0..random.below(6) {
        disk.csts();
    }
}

/// I/O of another function on the same poller, through which everything older has passed.
fn activity(other: &mut Disk) {
    for slba in 0..3 {
        other.read(2, slba * 256, SLOT);
    }
}

fn rounds(seed: u64, mut way: impl FnMut(&mut Disk, &mut Random)) {
    let server = card_with(2, &[]);
    let socket = server.socket_of("nvme1");
    let mut random = Random(seed);
    let mut disk = Disk::start(&socket);
    let mut other = Disk::start(&server.socket_of("nvme2"));
    for round in 0..30 {
        begin(&server, &mut disk, &mut random);
        way(&mut disk, &mut random);
        let filled = fill(&disk, round + 1);
        // A doorbell of before, which is nobody's any more.
        disk.client.write32(BAR0, 0x1008, 1);
        activity(&mut other);
        let found = disk.bytes(0, RAM);
        let first = (0..RAM as usize).find(|at| found[*at] != filled[*at]);
        assert_eq!(first, None, "seed {seed}, round {round}");
        disk.enable();
        // Also sees that its completion is the first one.
        assert_eq!(disk.run(READ, 2, 0, 256), 0, "seed {seed}, round {round}");
        assert_eq!(disk.reap(), None);
    }
}

#[test]
fn after_a_controller_reset_nothing_is_written() {
    rounds(0x1001, |disk, _| {
        disk.client.write32(BAR0, 0x14, 0);
        while disk.csts() & 1 != 0 {
            std::thread::yield_now();
        }
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
        begin(&server, &mut disk, &mut random);
        // All of the data, or a part, or across its end.
        let slot = Disk::data(random.below(DEPTH.into()) as u16);
        let (iova, size) = random.pick(&[
            (DATA, RAM - DATA),
            (slot, SLOT),
            (slot + 0x1000, 0x3000),
            (DATA, u64::MAX - DATA),
            (DATA, 0u64.wrapping_sub(DATA)),
        ]);
        disk.client.unmap(iova, size, 0).unwrap();
        let size = size.min(RAM - iova);
        let filled = pattern(round + 1, size);
        disk.put(iova, &filled);
        activity(&mut other);
        assert!(disk.bytes(iova, size) == filled, "round {round}");
        // What was in flight has completed, or is about to; the data is there again.
        let ram = disk.ram.try_clone().unwrap();
        disk.client.map(iova, size, iova, &ram).unwrap();
        disk.client.write32(BAR0, 0x14, 0);
        while disk.csts() & 1 != 0 {
            std::thread::yield_now();
        }
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
        begin(&server, &mut disk, &mut random);
        let ram = disk.ram.try_clone().unwrap();
        drop(disk);
        // The next client is served when the session of the last one is over.
        let mut disk = Disk::start(&socket);
        let filled = pattern(round + 1, RAM);
        rustix::io::pwrite(&ram, &filled, 0).unwrap();
        assert_eq!(disk.run(READ, 2, 0, 256), 0);
        activity(&mut other);
        let mut found = vec![0; RAM as usize];
        rustix::io::pread(&ram, &mut found[..], 0).unwrap();
        assert!(found == filled, "round {round}");
        assert_eq!(server.maps("disk-ram"), 2, "the old RAM is not kept");
    }
}
