// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The administrative controller through the whole card: bytes in guest memory, interrupts on
//! eventfds, and what resets and misuse do.

use std::os::fd::AsFd;

use crate::client::*;
use crate::driver::*;
use crate::server::Server;

const SUCCESS: u16 = 0x000;
const DATA_TRANSFER_ERROR: u16 = 0x004;
const PRP_OFFSET_INVALID: u16 = 0x013;

#[test]
fn identify_reaches_guest_memory_and_interrupts() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    let page = driver.identify();
    assert_eq!(page[0..4], [0x53, 0x5a, 0x53, 0x5a], "VID, SSVID");
    assert_eq!(&page[4..24], b"ZS00000001          ", "SN");
    assert_eq!(&page[24..42], b"Zeroshift zerocard", "MN");
    assert_eq!(page[77], 7, "MDTS");
    assert_eq!(page[80..84], [0, 1, 2, 0], "VER 2.1.0");
    assert_eq!(page[111], 3, "CNTRLTYPE");
    assert_eq!(page[256..258], [0, 8], "OACS.HMLMS");
    assert!(page[768..1024].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));
    assert_eq!(
        driver.client.read(BAR0, 0x08, 4).unwrap(),
        page[80..84],
        "VS is VER"
    );
}

#[test]
fn the_queues_wrap_and_the_phase_turns() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    for round in 1..=3 * ENTRIES {
        let entry = driver.run(0x06, [DATA, 0], 1);
        assert_eq!(entry.status, SUCCESS);
        assert_eq!(u32::from(entry.sqhd), round % ENTRIES);
    }
}

#[test]
fn bad_pointers_fail_the_command_and_not_the_controller() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    rustix::io::pwrite(&driver.ram, &[0xee; 16], DATA).unwrap();
    let cases = [
        ([DATA + 1, 0], PRP_OFFSET_INVALID),
        ([DATA + 4, DATA + 0x1004], PRP_OFFSET_INVALID),
        ([RAM, 0], DATA_TRANSFER_ERROR),
        ([u64::MAX - 0xfff, 0], DATA_TRANSFER_ERROR),
        ([u64::MAX - 0xffb, 0], DATA_TRANSFER_ERROR),
        ([RAM - 0x800, RAM], DATA_TRANSFER_ERROR),
    ];
    for (prp, status) in cases {
        assert_eq!(driver.run(0x06, prp, 1).status, status, "{prp:x?}");
    }
    let mut data = [0; 16];
    rustix::io::pread(&driver.ram, &mut data[..], DATA).unwrap();
    assert_eq!(data, [0xee; 16], "a refused command writes nothing");
    assert_eq!(driver.csts(), 1);
    driver.identify();
}

#[test]
fn bad_doorbells_are_reported_as_events() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    let request = driver.submit(0x0c, [0, 0], 0);
    driver.client.write32(BAR0, 0x1000, ENTRIES);
    wait_fired(&driver.interrupt);
    let event = driver.reap().unwrap();
    assert_eq!((event.cid, event.dw0), (request, 0x0001_0100));
    driver.client.write32(BAR0, 0x1004, 0xffff);
    driver.client.write32(BAR0, 0x1ffc, 1);
    assert_eq!(driver.csts(), 1);
    driver.identify();
}

#[test]
fn unmapped_memory_is_not_reached_any_more() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    driver.identify();
    driver.client.unmap(DATA, 0x1000, 0).unwrap();
    rustix::io::pwrite(&driver.ram, &[0xee; 16], DATA).unwrap();
    assert_eq!(driver.run(0x06, [DATA, 0], 1).status, DATA_TRANSFER_ERROR);
    let mut data = [0; 16];
    rustix::io::pread(&driver.ram, &mut data[..], DATA).unwrap();
    assert_eq!(data, [0xee; 16]);
    // Mapped again, with another offset in the file.
    let ram = driver.ram.try_clone().unwrap();
    driver.client.map(DATA, 0x1000, 0x4_0000, &ram).unwrap();
    assert_eq!(driver.run(0x06, [DATA, 0], 1).status, SUCCESS);
    rustix::io::pread(&driver.ram, &mut data[..], 0x4_0000).unwrap();
    assert_eq!(data[..2], [0x53, 0x5a]);
    // Without its queues the controller cannot go on, and says so.
    driver.client.unmap(0, 0, 2).unwrap();
    driver.submit(0x06, [DATA, 0], 1);
    assert_eq!(driver.csts(), 3, "fatal status");
    driver.client.map(0, RAM, 0, &ram).unwrap();
    driver.client.write32(BAR0, 0x14, 0);
    assert_eq!(driver.csts(), 0);
    driver.enable();
    driver.identify();
}

#[test]
fn memory_without_a_descriptor_fails_cleanly() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    let mut body = bytes32(&[32, 3]);
    for field in [0, RAM, 0x1000] {
        body.extend(field.to_le_bytes());
    }
    driver.client.call(DMA_MAP, &body).unwrap();
    assert_eq!(driver.run(0x06, [RAM, 0], 1).status, DATA_TRANSFER_ERROR);
    driver.identify();
}

#[test]
fn the_table_mask_holds_the_interrupt_in_its_pending_bit() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    assert_eq!(driver.client.read32(BAR0, 0x200c), 1, "masked after reset");
    driver.client.write32(BAR0, 0x200c, 1);
    driver.submit(0x06, [DATA, 0], 1);
    assert_eq!(driver.client.read(BAR0, 0x3000, 1).unwrap(), [1]);
    assert_eq!(fired(&driver.interrupt), 0);
    driver.client.write32(BAR0, 0x200c, 0);
    assert_eq!(wait_fired(&driver.interrupt), 1);
    assert_eq!(driver.client.read(BAR0, 0x3000, 1).unwrap(), [0]);
    driver.reap().unwrap();
    // The same with the function mask, and with the client's own.
    driver.client.write(CONFIG, 0x52, &[0x00, 0xc0]).unwrap();
    driver.submit(0x06, [DATA, 0], 1);
    assert_eq!(fired(&driver.interrupt), 0);
    driver.client.set_irqs(0x09, 0, 1, &[], &[]).unwrap();
    driver.client.write(CONFIG, 0x52, &[0x00, 0x80]).unwrap();
    assert_eq!(fired(&driver.interrupt), 0);
    driver.client.set_irqs(0x11, 0, 1, &[], &[]).unwrap();
    assert_eq!(wait_fired(&driver.interrupt), 1);
    driver.reap().unwrap();
    driver.identify();
}

#[test]
fn every_reset_gives_a_fresh_function() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    let flr = |client: &mut Client| {
        let control = client.read(CONFIG, 0x68, 2).unwrap();
        client
            .write(CONFIG, 0x68, &[control[0], control[1] | 0x80])
            .unwrap();
        assert_eq!(
            client.read(CONFIG, 0x68, 2).unwrap(),
            control,
            "Initiate FLR reads zero"
        );
    };
    let reset = |client: &mut Client| {
        client.call(DEVICE_RESET, &[]).unwrap();
    };
    let ways: [&dyn Fn(&mut Client); 2] = [&flr, &reset];
    for way in ways {
        driver.identify();
        driver.submit(0x0c, [0, 0], 0);
        way(&mut driver.client);
        assert_eq!(
            driver.client.read(CONFIG, 0x04, 2).unwrap(),
            [0, 0],
            "command register"
        );
        assert_eq!(
            driver.client.read32(BAR0, 0x1c),
            u32::MAX,
            "memory space is off"
        );
        driver.client.write(CONFIG, 0x04, &[0x06]).unwrap();
        for offset in [0x14, 0x1c, 0x24, 0x28, 0x2c, 0x30, 0x34] {
            assert_eq!(
                driver.client.read32(BAR0, offset),
                0,
                "register {offset:#x}"
            );
        }
        assert_eq!(fired(&driver.interrupt), 0);
        // Maps and eventfd belong to the client and are still there.
        driver.enable();
    }
    driver.identify();
}

#[test]
fn the_next_client_finds_nothing_of_the_last_one() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    driver.identify();
    let descriptors = server.descriptors();
    let ram = driver.ram.try_clone().unwrap();
    drop(driver);
    let mut driver = Driver::attach(&server.socket());
    assert_eq!(server.descriptors(), descriptors);
    assert_eq!(
        server.maps("guest-ram"),
        1,
        "the old RAM is gone, the new one is there"
    );
    driver.client.write(CONFIG, 0x04, &[0x06]).unwrap();
    assert_eq!(driver.client.read32(BAR0, 0x14), 0);
    driver.enable();
    driver.identify();
    let mut stale = [0; 2];
    rustix::io::pwrite(&ram, &[0, 0], DATA).unwrap();
    driver.identify();
    rustix::io::pread(&ram, &mut stale[..], DATA).unwrap();
    assert_eq!(stale, [0, 0]);
}

#[test]
fn an_eventfd_assigned_late_still_gets_what_is_pending() {
    let server = Server::start();
    let mut driver = Driver::start(&server.socket());
    driver.client.set_irqs(0x24, 0, 1, &[], &[]).unwrap();
    driver.submit(0x06, [DATA, 0], 1);
    assert_eq!(fired(&driver.interrupt), 0);
    let interrupt = driver.interrupt.try_clone().unwrap();
    driver
        .client
        .set_irqs(0x24, 0, 1, &[], &[interrupt.as_fd()])
        .unwrap();
    assert_eq!(wait_fired(&driver.interrupt), 1);
}
