// SPDX-License-Identifier: Apache-2.0 OR MIT

//! I/O through the whole card: functions, namespaces and clients beside each other.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::client::*;
use crate::disk::*;
use crate::driver::Driver;
use crate::server::{wait, Server};

/// A card with 8 MiB of memory (1), a file of 8 MiB (2) and `functions` functions.
pub(crate) fn card(functions: u16) -> Server {
    card_with(functions, &[])
}

pub(crate) fn card_with(functions: u16, more: &[&str]) -> Server {
    Server::with(|directory| {
        let mut options = vec!["--json".to_owned(), "--namespace=memory=8M".to_owned()];
        let medium = directory.join("medium");
        options.push(format!("--namespace=file={},size=8M", medium.display()));
        options.push(format!("--functions={functions}"));
        options.extend(more.iter().map(|option| (*option).to_owned()));
        options
    })
}

#[test]
fn what_is_written_is_read_and_is_in_the_file() {
    let server = card(1);
    let mut disk = Disk::start(&server.socket_of("nvme1"));
    for nsid in [1, 2] {
        for (slba, len) in [
            (0, 512),
            (7, 0x1000),
            (100, 0x1200),
            (1000, SLOT),
            (16383, 512),
        ] {
            let data = pattern(slba + u64::from(nsid), len);
            disk.write(nsid, slba, &data);
            assert!(disk.read(nsid, slba, len) == data, "{len} at {slba}");
        }
        assert_eq!(disk.run(READ, nsid, 16384, 1), 0x080);
        assert_eq!(disk.run(FLUSH, nsid, 0, 1), 0);
    }
    assert_eq!(disk.run(READ, 3, 0, 1), 0x00b);
    let medium = std::fs::read(server.path("medium")).unwrap();
    assert_eq!(medium.len(), 8 << 20);
    assert!(medium[1000 * 512..][..SLOT as usize] == pattern(1002, SLOT));
    // The administrative controller is served beside it.
    let mut admin = Driver::start(&server.socket());
    assert_eq!(admin.identify()[111], 3);
}

#[test]
fn namespaces_belong_to_the_functions_that_attach_them() {
    let server = Server::with(|_| {
        let options = [
            "--json",
            "--namespace=memory=1M",
            "--namespace=memory=2M,block=4096",
            "--function=name=left,namespaces=1",
            "--function=name=both,queues=2",
        ];
        options.map(str::to_owned).to_vec()
    });
    let mut left = Disk::start(&server.socket_of("left"));
    let mut both = Disk::start(&server.socket_of("both"));
    assert_eq!(left.run(READ, 1, 2047, 1), 0);
    assert_eq!(left.run(READ, 2, 0, 1), 0x00b);
    assert_eq!(both.run(READ, 2, 511, 1), 0);
    assert_eq!(both.run(READ, 2, 512, 1), 0x080);
    // Get Features, Number of Queues: dword 0 is not seen here, but the third queue is.
    assert_eq!(both.admin(0x05, 0x8000, [0x1f_0002, 1]), 0);
    assert_eq!(both.admin(0x05, 0x8000, [0x1f_0003, 1]), 0x101);
}

#[test]
fn sixteen_functions_at_once_keep_their_data_apart() {
    let server = card(16);
    std::thread::scope(|scope| {
        for number in 1..=16u64 {
            let socket = server.socket_of(&format!("nvme{number}"));
            scope.spawn(move || {
                let mut disk = Disk::start(&socket);
                for round in 0..6u64 {
                    for nsid in [1, 2] {
                        // 128 blocks each, as wide apart as there is room.
                        for cid in 0..DEPTH {
                            let seed = number << 32 | round << 16 | u64::from(cid);
                            disk.put(Disk::data(cid), &pattern(seed, 0x1000));
                            let slba = number * 256 + u64::from(cid) * 8;
                            disk.queue(WRITE, nsid, slba, 8, cid);
                        }
                        finish(&mut disk);
                        for cid in 0..DEPTH {
                            disk.put(Disk::data(cid), &[0; 0x1000]);
                            let slba = number * 256 + u64::from(cid) * 8;
                            disk.queue(READ, nsid, slba, 8, cid);
                        }
                        finish(&mut disk);
                        for cid in 0..DEPTH {
                            let seed = number << 32 | round << 16 | u64::from(cid);
                            let found = disk.bytes(Disk::data(cid), 0x1000);
                            assert!(found == pattern(seed, 0x1000), "{number} {round} {cid}");
                        }
                    }
                }
            });
        }
    });
}

/// Rings and waits for a command of every identifier.
fn finish(disk: &mut Disk) {
    disk.ring();
    let mut seen = [false; DEPTH as usize];
    for _ in 0..DEPTH {
        let done = disk.wait();
        assert_eq!(done.status, 0);
        assert!(!std::mem::replace(&mut seen[usize::from(done.cid)], true));
    }
}

#[test]
fn functions_that_share_a_namespace_see_each_others_writes() {
    for pollers in ["--pollers=1", "--pollers=2"] {
        let server = card_with(2, &[pollers]);
        let mut one = Disk::start(&server.socket_of("nvme1"));
        let mut two = Disk::start(&server.socket_of("nvme2"));
        for round in 0..20u64 {
            for nsid in [1, 2] {
                let data = pattern(round + 1, 0x3000);
                one.write(nsid, round * 24, &data);
                assert!(two.read(nsid, round * 24, 0x3000) == data);
                two.write(nsid, round * 24, &data[..512]);
                assert!(one.read(nsid, round * 24, 0x400) == data[..0x400]);
                std::mem::swap(&mut one, &mut two);
            }
        }
    }
}

#[test]
fn a_client_that_takes_its_memory_away_hurts_itself_only() {
    let mut server = card(2);
    let mut victim = Disk::start(&server.socket_of("nvme1"));
    let mut other = Disk::start(&server.socket_of("nvme2"));
    for cid in 0..DEPTH {
        victim.queue(READ, 2, u64::from(cid) * 512, 1024, cid);
    }
    victim.ring();
    rustix::fs::ftruncate(&victim.ram, 0).unwrap();
    // The queues are gone too, which is fatal at the latest when it looks at them again.
    victim.ring_anything();
    while victim.csts() & 2 == 0 {
        std::thread::yield_now();
    }
    let data = pattern(5, SLOT);
    other.write(2, 0, &data);
    assert!(other.read(2, 0, SLOT) == data);
    drop(victim);
    let mut next = Disk::start(&server.socket_of("nvme1"));
    assert!(next.read(2, 0, SLOT) == data);
    assert!(server.alive());
}

impl Disk {
    /// Rings for a command that nobody wrote.
    fn ring_anything(&mut self) {
        self.client.write32(BAR0, 0x1008, 20);
    }
}

/// The environment variable that makes this program a client that never ends by itself.
const SOCKET: &str = "ZEROCARD_TEST_CLIENT_SOCKET";

/// Not a test by itself: the process that `a_killed_client` kills.
#[test]
fn client_process() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut disk = Disk::start(socket.as_ref());
    println!("\nrunning");
    loop {
        for cid in 0..DEPTH {
            let (opcode, blocks) = if cid % 4 == 0 {
                (WRITE, 8)
            } else {
                (READ, 1024)
            };
            disk.queue_with(opcode, 2, u64::from(cid) * 512, blocks, cid, FUA);
        }
        finish(&mut disk);
    }
}

#[test]
fn a_killed_client_leaves_a_function_for_the_next_one() {
    let mut server = card(2);
    let socket = server.socket_of("nvme1");
    let mut other = Disk::start(&server.socket_of("nvme2"));
    for round in 0..5u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "io::client_process", "--nocapture"])
            .env(SOCKET, &socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let running = said.any(|line| line.unwrap() == "running");
        // Some I/O later, wherever that is.
        for _ in 0..round * 3 {
            other.read(2, 4096, SLOT / 4);
        }
        child.kill().unwrap();
        wait(&mut child);
        assert!(running, "the client ended by itself");
        let mut disk = Disk::start(&socket);
        let data = pattern(round + 1, 0x2000);
        disk.write(2, 8192, &data);
        assert!(disk.read(2, 8192, 0x2000) == data);
        assert_eq!(server.maps("disk-ram"), 2, "its RAM is gone");
    }
    assert!(server.alive());
}

#[test]
fn a_signal_with_commands_in_flight_ends_it_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = card(2);
        let mut disks = [
            Disk::start(&server.socket_of("nvme1")),
            Disk::start(&server.socket_of("nvme2")),
        ];
        for disk in &mut disks {
            for cid in 0..DEPTH {
                disk.queue_with(WRITE, 2, u64::from(cid) * 512, 64, cid, FUA);
            }
            disk.ring();
        }
        let (status, rest) = server.end(signal);
        assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
        for name in ["admin", "nvme1", "nvme2", "control"] {
            assert!(!server.socket_of(name).exists(), "{name}");
        }
    }
}

#[test]
fn hundreds_of_thousands_of_maps_leave_the_process_small() {
    let mut server = card(1);
    let mut client = Client::connect(&server.socket_of("nvme1"));
    let ram = crate::driver::memfd("mapped-ram", 0x10_0000);
    let map = |id: u16, iova: u64| {
        let mut body = bytes32(&[32, 3]);
        for field in [0, iova, 0x1000] {
            body.extend(field.to_le_bytes());
        }
        message(id, DMA_MAP, 0, &body)
    };
    let unmap = |id: u16, iova: u64| {
        let mut body = bytes32(&[24, 0]);
        for field in [iova, 0x1000] {
            body.extend(field.to_le_bytes());
        }
        message(id, DMA_UNMAP, 0, &body)
    };
    // 64 pairs in one go; the replies are short enough to wait for us.
    let round = |client: &mut Client, first: u64| {
        let mut batch = Vec::new();
        for id in 0..64u16 {
            batch.extend(map(id, first + u64::from(id) * 0x1000));
        }
        for id in 64..128u16 {
            batch.extend(unmap(id, first + u64::from(id - 64) * 0x1000));
        }
        client.send(&batch, &[]);
        for id in 0..128u16 {
            let (reply, _, result) = client.receive();
            assert_eq!((reply, result.is_ok()), (id, true));
        }
    };
    (0..50).for_each(|n| round(&mut client, n << 20));
    let before = server.resident();
    for n in 0..2300u64 {
        round(&mut client, n << 20);
    }
    for n in 0..3000u64 {
        client.map(n << 12, 0x1000, (n % 256) << 12, &ram).unwrap();
        client.unmap(n << 12, 0x1000, 0).unwrap();
    }
    // Many at the same time, as a virtual IOMMU has them.
    for n in 0..2000u64 {
        client.map(n << 13, 0x1000, (n % 256) << 12, &ram).unwrap();
    }
    assert_eq!(server.maps("mapped-ram"), 1);
    client.unmap(0, 0, 2).unwrap();
    assert_eq!(server.maps("mapped-ram"), 0);
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
    assert!(server.alive());
    let mut disk = Disk::attach_to(client);
    disk.enable();
    assert_eq!(disk.run(READ, 1, 0, 1), 0);
}

#[test]
fn what_the_command_line_cannot_mean_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let odd = directory.path().join("odd");
    std::fs::write(&odd, [0; 1000]).unwrap();
    let file = |more: &str| format!("--namespace=file={}{more}", odd.display());
    let missing = format!("--namespace=file={}/none", directory.path().display());
    for (options, code, text) in [
        (vec!["--namespace=memory=1X"], 2, "no unit"),
        (vec!["--namespace=size=1M"], 2, "memory=SIZE or file=PATH"),
        (vec!["--namespace=memory=1M,block=1000"], 2, "512 or 4096"),
        (vec!["--function=queues=0"], 2, "1 to 255"),
        (vec!["--function=name=admin"], 2, "already"),
        (vec!["--function=name=a/b"], 2, "letters"),
        (vec!["--functions=65"], 2, "65"),
        (
            vec!["--functions=1", "--function=name=x"],
            2,
            "cannot be used",
        ),
        (vec!["--pollers=0"], 2, "pollers"),
        (vec!["--function=namespaces=1"], 1, "namespace 1"),
        (
            vec!["--function=name=x", "--function=name=x"],
            1,
            "two functions",
        ),
        (vec!["--namespace=memory=1000"], 1, "1000"),
        (vec![&file("")], 1, "odd"),
        (vec![&missing], 1, "none"),
    ] {
        let (status, error) =
            crate::process::fails(&[&["serve"], &options[..]].concat(), Some(directory.path()));
        assert_eq!(status, Some(code), "{options:?}: {error}");
        assert!(error.contains(text), "{options:?}: {error}");
    }
    // Nothing is left behind.
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn the_ready_line_names_every_function() {
    let server = Server::with(|_| {
        let options = [
            "--json",
            "--namespace=memory=1M",
            "--function=name=first",
            "--function=queues=1",
        ];
        options.map(str::to_owned).to_vec()
    });
    let line: serde_json::Value = serde_json::from_str(&server.ready).unwrap();
    let functions = line["functions"].as_array().unwrap();
    let expected = [
        ("admin", "nvme-admin", 0),
        ("first", "nvme", 1),
        ("nvme2", "nvme", 2),
    ];
    assert_eq!(functions.len(), expected.len());
    for (function, (name, kind, id)) in functions.iter().zip(expected) {
        assert_eq!(function["name"], name);
        assert_eq!(function["kind"], kind);
        assert_eq!(function["controller_id"], id);
        let socket = server.socket_of(name);
        assert_eq!(function["socket"], socket.to_str().unwrap());
        assert!(socket.exists());
    }
    let mut client = Client::connect(&server.socket_of("first"));
    assert_eq!(client.read32(CONFIG, 0), 0x0002_5a53);
    assert_eq!(client.read32(CONFIG, 8) >> 8, 0x01_08_02);
    // One vector for the admin queue and one for each I/O queue pair.
    let irqs = |client: &mut Client| {
        let info = client.call(GET_IRQ_INFO, &bytes32(&[16, 0, 2, 0]));
        u32_at(&info.unwrap(), 12)
    };
    assert_eq!(irqs(&mut client), 17);
    assert_eq!(irqs(&mut Client::connect(&server.socket_of("nvme2"))), 2);
}
