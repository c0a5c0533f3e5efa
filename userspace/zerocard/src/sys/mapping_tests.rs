// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of [`Mapping`]: copies at every alignment, revocation, SIGBUS.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use super::*;
use crate::sys::sigbus;

fn memfd(len: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, len).unwrap();
    file
}

#[test]
fn copies_at_every_alignment_and_stays_inside() {
    let mapping = Mapping::new(memfd(4096).as_fd(), 4096, true).unwrap();
    let pattern: Vec<u8> = (0..40).map(|i| i as u8 + 1).collect();
    for offset in 0..17 {
        for len in 0..=pattern.len() {
            mapping.write(100, &[0xee; 64]).unwrap();
            mapping.write(101 + offset, &pattern[..len]).unwrap();
            let mut around = [0u8; 64];
            mapping.read(100, &mut around).unwrap();
            let mut expected = [0xee; 64];
            expected[1 + offset..1 + offset + len].copy_from_slice(&pattern[..len]);
            assert_eq!(around, expected, "offset {offset} len {len}");
            let mut back = vec![0; len];
            mapping.read(101 + offset, &mut back).unwrap();
            assert_eq!(back, pattern[..len]);
        }
    }
    assert!(mapping.read(4090, &mut [0; 7]).is_none());
    assert!(mapping.write(usize::MAX, &[0]).is_none());
    assert!(mapping.publish_u32(4094, 0).is_none());
    assert!(mapping.publish_u32(2, 0).is_none());
    assert!(mapping.publish_u32(4092, 7).is_some());
    let mut dword = [0; 4];
    mapping.read(4092, &mut dword).unwrap();
    assert_eq!(dword, [7, 0, 0, 0]);
}

#[test]
fn transfers_and_zeroes_at_every_alignment() {
    let from = Mapping::anonymous(4096).unwrap();
    let to = Mapping::new(memfd(4096).as_fd(), 4096, true).unwrap();
    let pattern: Vec<u8> = (0..4096).map(|i| (i % 251) as u8 + 1).collect();
    from.write(0, &pattern).unwrap();
    for len in [0, 1, 7, 8, 9, 31, 64, 255, 256, 257, 512, 1000] {
        for (source, target) in [(0, 0), (1, 1), (3, 8), (8, 5), (7, 15), (16, 1)] {
            to.write(0, &[0xee; 1100]).unwrap();
            Mapping::copy(&from, source, &to, target, len).unwrap();
            let mut expected = [0xee; 1100];
            expected[target..target + len].copy_from_slice(&pattern[source..source + len]);
            let mut found = [0; 1100];
            to.read(0, &mut found).unwrap();
            assert!(found == expected, "{source} to {target}, {len} bytes");
            to.fill_zero(target, len).unwrap();
            expected[target..target + len].fill(0);
            to.read(0, &mut found).unwrap();
            assert!(found == expected, "zeroes at {target}, {len} bytes");
        }
    }
    assert!(Mapping::copy(&from, 4000, &to, 0, 97).is_none());
    assert!(Mapping::copy(&from, 0, &to, 4000, 97).is_none());
    assert!(to.fill_zero(4000, 97).is_none());
}

#[test]
fn a_read_only_mapping_takes_no_writes() {
    let mapping = Mapping::new(memfd(4096).as_fd(), 4096, false).unwrap();
    assert!(mapping.write(0, &[1]).is_none() && mapping.publish_u32(0, 1).is_none());
    assert!(mapping.fill_zero(0, 1).is_none());
    assert!(Mapping::copy(&mapping, 0, &mapping, 8, 8).is_none());
    assert!(mapping.read(0, &mut [0]).is_some());
}

#[test]
fn a_revoked_mapping_reaches_nobody() {
    let file = memfd(8192);
    let mapping = Mapping::new(file.as_fd(), 8192, true).unwrap();
    let other = Mapping::new(file.as_fd(), 8192, true).unwrap();
    mapping.write(5000, b"before").unwrap();
    assert!(!mapping.revoked());
    mapping.revoke();
    assert!(mapping.revoked() && !other.revoked());
    let mut found = [1; 6];
    assert!(mapping.read(5000, &mut found).is_none());
    assert!(mapping.write(5000, b"after!").is_none());
    assert!(mapping.publish_u32(5000, 1).is_none() && mapping.fill_zero(0, 8192).is_none());
    assert!(Mapping::copy(&mapping, 0, &other, 0, 8).is_none());
    assert!(Mapping::copy(&other, 0, &mapping, 0, 8).is_none());
    assert!(mapping.address(0, 1).is_none());
    other.read(5000, &mut found).unwrap();
    assert_eq!(&found, b"before");
    // Twice is as good as once, and the place in the table serves the next mapping as new.
    mapping.revoke();
    drop(mapping);
    let mapping = Mapping::new(file.as_fd(), 8192, false).unwrap();
    assert!(!mapping.revoked() && mapping.read(0, &mut [0]).is_some());
    // Nobody else has this.
    let own = Mapping::anonymous(1).unwrap();
    own.revoke();
    assert!(!own.revoked() && own.write(0, &[1]).is_some());
}

#[test]
fn a_file_that_shrinks_revokes_its_mapping_only() {
    sigbus::install().unwrap();
    let other = Mapping::new(memfd(8192).as_fd(), 8192, true).unwrap();
    other.write(0, b"mine").unwrap();
    for access in [
        |mapping: &Mapping| mapping.read(4096, &mut [0; 64]),
        |mapping: &Mapping| mapping.write(4090, &[1; 64]),
        |mapping: &Mapping| mapping.publish_u32(4096, 1),
        |mapping: &Mapping| mapping.fill_zero(0, 8192),
        |mapping: &Mapping| Mapping::copy(mapping, 0, mapping, 4096, 4096),
    ] {
        let file = memfd(8192);
        let mapping = Mapping::new(file.as_fd(), 8192, true).unwrap();
        mapping.write(0, &[7; 8192]).unwrap();
        rustix::fs::ftruncate(&file, 0).unwrap();
        assert!(!mapping.revoked());
        assert!(access(&mapping).is_some());
        assert!(mapping.revoked());
        // For good, also when the file grows again.
        rustix::fs::ftruncate(&file, 8192).unwrap();
        assert!(mapping.read(1024, &mut [7; 512]).is_none());
        assert!(mapping.write(0, b"lost").is_none());
        let mut found = [1; 4];
        rustix::io::pread(&file, &mut found, 0).unwrap();
        assert_eq!(found, [0; 4]);
    }
    let mut found = [0; 4];
    other.read(0, &mut found).unwrap();
    assert_eq!(&found, b"mine");
    assert!(!other.revoked());
}

/// Threads that hit the same lost pages at once, while mappings come and go around them.
#[test]
fn many_threads_may_meet_in_the_handler() {
    sigbus::install().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mapping = Mapping::new(memfd(4096).as_fd(), 4096, true).unwrap();
                mapping.write(0, &[1]).unwrap();
                assert!(!mapping.revoked());
            }
        });
        for _ in 0..200 {
            let file = memfd(8192);
            let mapping = Mapping::new(file.as_fd(), 8192, true).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !mapping.revoked() {
                            // Refused when the other thread was faster.
                            let _ = mapping.read(0, &mut [0; 8]);
                        }
                    });
                }
                rustix::fs::ftruncate(&file, 0).unwrap();
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// In a process of its own, because it dies.
#[test]
fn any_other_sigbus_still_kills() {
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "ZEROCARD_TEST_SIGBUS";
    if std::env::var_os(CHILD).is_some() {
        let none = rustix::process::Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
    }
    match std::env::var(CHILD).as_deref() {
        Ok("sent") => {
            sigbus::install().unwrap();
            let _mapping = Mapping::new(memfd(4096).as_fd(), 4096, true).unwrap();
            let this = rustix::process::getpid();
            rustix::process::kill_process(this, rustix::process::Signal::BUS).unwrap();
            return;
        }
        Ok(_) => {
            sigbus::install().unwrap();
            let file = memfd(4096);
            let mapping = Mapping::new(file.as_fd(), 4096, true).unwrap();
            rustix::fs::ftruncate(&file, 0).unwrap();
            // As if it were memory that is not a Mapping.
            mapping.registration.as_ref().unwrap().withdraw();
            mapping.read(0, &mut [0]).unwrap();
            return;
        }
        Err(_) => {}
    }
    for way in ["sent", "accessed"] {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["any_other_sigbus_still_kills", "--test-threads=1"])
            .env(CHILD, way)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        let expected = rustix::process::Signal::BUS.as_raw();
        assert_eq!(status.signal(), Some(expected), "{way}");
    }
}

#[test]
fn a_full_table_is_an_error() {
    // In a process of its own: other tests need mappings too.
    const CHILD: &str = "ZEROCARD_TEST_TABLE";
    if std::env::var_os(CHILD).is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["a_full_table_is_an_error", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let file = memfd(4096);
    let mut mappings = Vec::new();
    let error = loop {
        match Mapping::new(file.as_fd(), 4096, true) {
            Ok(mapping) => mappings.push(mapping),
            Err(error) => break error,
        }
        assert!(mappings.len() < 100_000);
    };
    assert!(error.to_string().contains("memory mappings exist already"));
    // Memory of our own needs no place.
    assert!(Mapping::anonymous(4096).is_ok());
    mappings.pop();
    assert!(Mapping::new(file.as_fd(), 4096, true).is_ok());
}
