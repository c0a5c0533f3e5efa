// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vfio-user protocol, message by message: what is answered, what is refused, and that a
//! refused message changes nothing and leaves the stream in step.

use std::os::fd::AsFd;

use crate::client::*;
use crate::driver::{eventfd, fired, memfd, wait_fired};
use crate::server::Server;

const EINVAL: u32 = 22;
const EEXIST: u32 = 17;
const EMSGSIZE: u32 = 90;
const EOPNOTSUPP: u32 = 95;

#[test]
fn the_version_comes_first_and_once() {
    let server = Server::start();
    let mut client = Client::raw(&server.socket());
    assert_eq!(client.call(GET_INFO, &bytes32(&[16, 0, 0, 0])), Err(EINVAL));
    assert_eq!(client.call(VERSION, b"\x01\0\0\0{}\0"), Err(EOPNOTSUPP));
    assert_eq!(client.call(VERSION, b"\0\0\0\0{nonsense\0"), Err(EINVAL));
    assert_eq!(client.call(VERSION, b"\0\0\0"), Err(EINVAL));
    let reply = client
        .call(VERSION, b"\0\0\0\0{\"capabilities\":{\"new\":1}}\0")
        .unwrap();
    assert_eq!(reply[..4], [0, 0, 0, 0], "minor 0 was asked for");
    assert_eq!(reply.last(), Some(&0));
    let data: serde_json::Value = serde_json::from_slice(&reply[4..reply.len() - 1]).unwrap();
    let capabilities = &data["capabilities"];
    assert_eq!(capabilities["max_msg_fds"], 16);
    assert_eq!(capabilities["max_data_xfer_size"], 1 << 20);
    assert_eq!(capabilities["pgsizes"], 4096);
    assert_eq!(capabilities["max_dma_maps"], 65535);
    assert_eq!(client.call(VERSION, b"\0\0\0\0"), Err(EINVAL));
    assert!(client.call(GET_INFO, &bytes32(&[16, 0, 0, 0])).is_ok());
}

#[test]
fn device_regions_and_interrupts_are_described() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket());
    let info = client.call(GET_INFO, &bytes32(&[16, 0, 0, 0])).unwrap();
    assert_eq!(
        info,
        bytes32(&[16, 3, 9, 5]),
        "resettable, PCI, 9 regions, 5 interrupt indices"
    );
    assert_eq!(client.call(GET_INFO, &bytes32(&[15, 0, 0, 0])), Err(EINVAL));
    for index in 0..9 {
        let request = bytes32(&[32, 0, index, 0, 0, 0, 0, 0]);
        let info = client.call(GET_REGION_INFO, &request).unwrap();
        let (flags, size) = match index {
            BAR0 => (3, 0x4000),
            CONFIG => (3, 0x1000),
            _ => (0, 0),
        };
        assert_eq!(
            (u32_at(&info, 4), u64_at(&info, 16)),
            (flags, size),
            "region {index}"
        );
        assert_eq!(
            (u32_at(&info, 8), u32_at(&info, 12), info.len()),
            (index, 0, 32)
        );
    }
    assert_eq!(
        client.call(GET_REGION_INFO, &bytes32(&[32, 0, 9, 0, 0, 0, 0, 0])),
        Err(EINVAL)
    );
    for (index, count) in [(0, 0), (1, 0), (2, 1), (4, 0)] {
        let info = client
            .call(GET_IRQ_INFO, &bytes32(&[16, 0, index, 0]))
            .unwrap();
        assert_eq!((u32_at(&info, 8), u32_at(&info, 12)), (index, count));
        assert_eq!(u32_at(&info, 4) & 8, 0, "NORESIZE must not be set");
        assert_eq!(u32_at(&info, 4) & 1, u32::from(count > 0), "EVENTFD");
    }
    assert_eq!(
        client.call(GET_IRQ_INFO, &bytes32(&[16, 0, 3, 0])),
        Err(EINVAL)
    );
    assert_eq!(
        client.call(GET_IRQ_INFO, &bytes32(&[16, 0, 5, 0])),
        Err(EINVAL)
    );
}

#[test]
fn refused_messages_leave_the_stream_in_step() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket());
    for command in [0, 6, 11, 12, 14, 15, 99, 0xffff] {
        assert_eq!(
            client.call(command, &[0x5a; 333]),
            Err(EOPNOTSUPP),
            "command {command}"
        );
    }
    for command in [2, 3, 4, 5, 7, 8, 9, 10] {
        assert_eq!(
            client.call(command, &[0; 3]),
            Err(EINVAL),
            "short body of command {command}"
        );
    }
    // A message type that does not exist.
    client.send(&message(7, GET_INFO, 2, &bytes32(&[16, 0, 0, 0])), &[]);
    assert_eq!(client.receive(), (7, GET_INFO, Err(EINVAL)));
    // A reply to nothing gets no answer, and neither does a command that wants none, be it good
    // or bad; the next answer is that of the next message.
    client.send(&message(8, GET_INFO, 1, &[]), &[]);
    client.send(&message(9, 99, 0x10, &[1, 2, 3]), &[]);
    let mut write = 0x3cu64.to_le_bytes().to_vec();
    write.extend(bytes32(&[CONFIG, 1]));
    write.push(0x77);
    client.send(&message(10, REGION_WRITE, 0x10, &write), &[]);
    assert_eq!(
        client.read(CONFIG, 0x3c, 1).unwrap(),
        [0x77],
        "interrupt line"
    );
}

#[test]
fn a_size_that_loses_the_framing_ends_the_connection_only() {
    let server = Server::start();
    for size in [0u32, 15, 1 << 21, u32::MAX] {
        let mut client = Client::connect(&server.socket());
        let mut bad = message(3, REGION_WRITE, 0, &[]);
        bad[4..8].copy_from_slice(&size.to_le_bytes());
        client.send(&bad, &[]);
        assert_eq!(
            client.receive(),
            (3, REGION_WRITE, Err(EMSGSIZE)),
            "size {size}"
        );
        assert!(client.closed());
    }
    // Cut off in the header, and in the body.
    for cut in [1, 15, 17, 30] {
        let mut client = Client::connect(&server.socket());
        client.send(&message(3, REGION_READ, 0, &[0; 16])[..cut], &[]);
    }
    assert_eq!(
        Client::connect(&server.socket()).read32(CONFIG, 0),
        0x0001_5a53
    );
}

#[test]
fn a_message_may_arrive_byte_by_byte() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket());
    let mut body = 0u64.to_le_bytes().to_vec();
    body.extend(bytes32(&[CONFIG, 4]));
    for byte in message(0x55, REGION_READ, 0, &body) {
        client.send(&[byte], &[]);
    }
    let (id, _, reply) = client.receive();
    assert_eq!((id, u32_at(&reply.unwrap(), 16)), (0x55, 0x0001_5a53));
}

#[test]
fn regions_take_every_width_and_nothing_beyond_their_end() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket());
    let whole = client.read(CONFIG, 0, 4096).unwrap();
    for count in 0..20u32 {
        for offset in [0u32, 1, 2, 3, 0x34, 4096 - count] {
            let (at, end) = (offset as usize, (offset + count) as usize);
            assert_eq!(
                client.read(CONFIG, offset.into(), count).unwrap(),
                whole[at..end]
            );
        }
    }
    client.write(CONFIG, 0x04, &[0x02]).unwrap();
    assert_eq!(
        client.read(BAR0, 0x08, 3).unwrap(),
        [0x00, 0x01, 0x02],
        "VS"
    );
    assert!(client.read(BAR0, 0x4000, 0).unwrap().is_empty());
    for (region, offset, count) in [
        (BAR0, 0x3fff, 2),
        (BAR0, 0x4000, 1),
        (BAR0, u64::MAX, 1),
        (BAR0, u64::MAX - 1, 4),
        (CONFIG, 4093, 4),
        (CONFIG, 0, u32::MAX),
        (1, 0, 1),
        (6, 0, 4),
        (8, 0, 4),
        (u32::MAX, 0, 4),
    ] {
        assert_eq!(
            client.read(region, offset, count),
            Err(EINVAL),
            "{region} {offset:x} {count}"
        );
    }
    assert_eq!(client.write(BAR0, 0x3ffd, &[0; 4]), Err(EINVAL));
    // Count and data disagree.
    for data in [&[][..], &[1, 2, 3], &[1, 2, 3, 4, 5]] {
        let mut body = 0x3cu64.to_le_bytes().to_vec();
        body.extend(bytes32(&[CONFIG, 4]));
        body.extend(data);
        assert_eq!(client.call(REGION_WRITE, &body), Err(EINVAL));
    }
    assert_eq!(client.read(CONFIG, 0x3c, 1).unwrap(), [0]);
}

#[test]
fn configuration_space_is_that_of_the_contract() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket());
    assert_eq!(client.read32(CONFIG, 0x00), 0x0001_5a53);
    assert_eq!(client.read32(CONFIG, 0x08) >> 8, 0x01_08_03);
    client.write(CONFIG, 0x10, &[0xff; 8]).unwrap();
    assert_eq!(client.read32(CONFIG, 0x10), 0xffff_c004);
    assert_eq!(client.read32(CONFIG, 0x14), 0xffff_ffff);
    let mut found = Vec::new();
    let mut at = 0x100;
    while at != 0 {
        let header = client.read32(CONFIG, at);
        found.push(header & 0xffff);
        if header & 0xffff == 0x0023 {
            assert_eq!(client.read32(CONFIG, at + 4), 0x0100_5a53);
            assert_eq!(
                client.read32(CONFIG, at + 8),
                0x0000_0001,
                "DVSEC id 1, controller 0"
            );
            assert_eq!(
                client.read32(CONFIG, at + 12),
                1,
                "administrative controller"
            );
        }
        at = u64::from(header >> 20);
    }
    assert_eq!(found, [0x000d, 0x0003, 0x0023, 0x0001]);
}

#[test]
fn eventfds_are_assigned_masked_and_taken_away() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket());
    let event = eventfd();
    client.set_irqs(0x24, 0, 1, &[], &[event.as_fd()]).unwrap();
    client.set_irqs(0x21, 0, 1, &[], &[]).unwrap();
    assert_eq!(wait_fired(&event), 1, "trigger without data");
    client.set_irqs(0x22, 0, 1, &[0], &[]).unwrap();
    assert_eq!(fired(&event), 0);
    client.set_irqs(0x22, 0, 1, &[1], &[]).unwrap();
    assert_eq!(wait_fired(&event), 1, "trigger by bool");
    client.set_irqs(0x09, 0, 1, &[], &[]).unwrap();
    client.set_irqs(0x11, 0, 1, &[], &[]).unwrap();
    client.set_irqs(0x12, 0, 1, &[1], &[]).unwrap();
    // No descriptors: the vector loses its own. So does the whole index with a count of zero.
    client.set_irqs(0x24, 0, 1, &[], &[]).unwrap();
    client.set_irqs(0x21, 0, 1, &[], &[]).unwrap();
    assert_eq!(fired(&event), 0);
    client.set_irqs(0x24, 0, 1, &[], &[event.as_fd()]).unwrap();
    client.set_irqs(0x21, 0, 0, &[], &[]).unwrap();
    client.set_irqs(0x21, 0, 1, &[], &[]).unwrap();
    assert_eq!(fired(&event), 0);
    let two = [event.as_fd(), event.as_fd()];
    assert_eq!(
        client.set_irqs(0x24, 0, 1, &[], &two),
        Err(EINVAL),
        "two for one"
    );
    assert_eq!(
        client.set_irqs(0x24, 0, 2, &[], &two),
        Err(EINVAL),
        "one vector only"
    );
    for (flags, start, count, data) in [
        (0x24, 1, 1, &[][..]),
        (0x24, u32::MAX, 2, &[]),
        (0x21, 0, 2, &[]),
        (0x22, 0, 1, &[]),     // no bool
        (0x22, 0, 1, &[1, 1]), // one too many
        (0x20, 0, 1, &[]),     // no data type
        (0x23, 0, 1, &[]),     // two data types
        (0x01, 0, 1, &[]),     // no action
        (0x29, 0, 1, &[]),     // two actions
        (0x0c, 0, 1, &[]),     // mask by eventfd
    ] {
        let refused = client.set_irqs(flags, start, count, data, &[]);
        assert_eq!(refused, Err(EINVAL), "flags {flags:#x} {start} {count}");
    }
    // What could block the card is refused, and the vector keeps what it has.
    client.set_irqs(0x24, 0, 1, &[], &[event.as_fd()]).unwrap();
    let blocking = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (_reader, pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    for bad in [&blocking, &pipe] {
        let refused = client.set_irqs(0x24, 0, 1, &[], &[bad.as_fd()]);
        assert_eq!(refused, Err(EINVAL));
    }
    client.set_irqs(0x21, 0, 1, &[], &[]).unwrap();
    assert_eq!(wait_fired(&event), 1, "still assigned");
    let other_index = bytes32(&[20, 0x21, 0, 0, 1]);
    assert_eq!(
        client.call(SET_IRQS, &other_index),
        Err(EINVAL),
        "INTx has no vector"
    );
}

#[test]
fn one_bad_descriptor_leaves_all_vectors_as_they_are() {
    let server = Server::with(|_| vec!["--json".into(), "--functions=1".into()]);
    let mut client = Client::connect(&server.socket_of("nvme1"));
    let (old, new) = ([eventfd(), eventfd()], [eventfd(), eventfd()]);
    let blocking = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let both = [old[0].as_fd(), old[1].as_fd()];
    client.set_irqs(0x24, 0, 2, &[], &both).unwrap();
    let mixed = [new[0].as_fd(), blocking.as_fd()];
    assert_eq!(client.set_irqs(0x24, 0, 2, &[], &mixed), Err(EINVAL));
    client.set_irqs(0x21, 0, 2, &[], &[]).unwrap();
    assert_eq!((wait_fired(&old[0]), wait_fired(&old[1])), (1, 1));
    assert_eq!(fired(&new[0]), 0);
    let both = [new[0].as_fd(), new[1].as_fd()];
    client.set_irqs(0x24, 0, 2, &[], &both).unwrap();
    client.set_irqs(0x21, 0, 2, &[], &[]).unwrap();
    assert_eq!((wait_fired(&new[0]), wait_fired(&new[1])), (1, 1));
}

#[test]
fn descriptors_never_pile_up() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket());
    let event = eventfd();
    let fds = vec![event.as_fd(); 16];
    let seventeen = vec![event.as_fd(); 17];
    let baseline = {
        client.call(GET_INFO, &bytes32(&[16, 0, 0, 0])).unwrap();
        server.descriptors()
    };
    for _ in 0..50 {
        client
            .call_with(GET_INFO, &bytes32(&[16, 0, 0, 0]), &fds)
            .unwrap();
        client.call_with(99, &[], &fds).unwrap_err();
        let crowded = client.call_with(GET_INFO, &bytes32(&[16, 0, 0, 0]), &seventeen);
        assert_eq!(crowded, Err(EINVAL), "more than max_msg_fds");
        client.call_with(DMA_MAP, &[0; 32], &fds[..2]).unwrap_err();
        client.set_irqs(0x24, 0, 1, &[], &fds[..1]).unwrap();
    }
    assert_eq!(server.descriptors(), baseline + 1, "the assigned one");
    client.set_irqs(0x24, 0, 1, &[], &[]).unwrap();
    assert_eq!(server.descriptors(), baseline);
}

#[test]
fn maps_are_checked_and_unmaps_never_fail() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket());
    let ram = memfd("checked-ram", 0x10000);
    client.map(0x1000, 0x2000, 0, &ram).unwrap();
    assert_eq!(client.map(0x2000, 0x2000, 0, &ram), Err(EEXIST));
    assert_eq!(
        client.map(0x8000, 0x1000, 0xf001, &ram),
        Err(EINVAL),
        "beyond the file"
    );
    assert_eq!(client.map(0x8000, 0x1000, u64::MAX, &ram), Err(EINVAL));
    assert_eq!(client.map(u64::MAX, 2, 0, &ram), Err(EINVAL), "wraps");
    assert_eq!(client.map(0x8000, 0, 0, &ram), Err(EINVAL));
    client.map(u64::MAX - 0xfff, 0x1000, 0, &ram).unwrap();
    assert_eq!(
        server.maps("checked-ram"),
        1,
        "one mapping for all maps of a file"
    );
    let two = [ram.as_fd(), ram.as_fd()];
    let mut body = bytes32(&[32, 3]);
    body.extend([0; 24]);
    assert_eq!(client.call_with(DMA_MAP, &body, &two), Err(EINVAL));
    client.unmap(0x77_0000, 0x1000, 0).unwrap();
    client.unmap(0, 0, 0).unwrap();
    client.unmap(u64::MAX, u64::MAX, 0).unwrap();
    client.unmap(0x2000, 0x100_0000, 0).unwrap();
    assert_eq!(
        client.unmap(0x1000, 0x1000, 1),
        Err(EOPNOTSUPP),
        "dirty bitmap"
    );
    assert_eq!(server.maps("checked-ram"), 1);
    client.unmap(0, 0, 2).unwrap();
    assert_eq!(server.maps("checked-ram"), 0, "dropped with the last map");
}
