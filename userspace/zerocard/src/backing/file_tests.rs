// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of [`FileMedium`] on real files.

use std::os::fd::AsRawFd;
use std::time::Duration;

use super::*;
use crate::backing::Medium;
use crate::sys::{Buffer, Ring};

const OPTIONS: FileOptions = FileOptions {
    size: None,
    block_size: 512,
    read_only: false,
};

fn sized(size: u64) -> FileOptions {
    FileOptions {
        size: Some(size),
        ..OPTIONS
    }
}

fn read_only() -> FileOptions {
    FileOptions {
        read_only: true,
        ..OPTIONS
    }
}

fn refusal(path: &Path, options: FileOptions) -> String {
    let error = FileMedium::open(path, options).err().unwrap();
    let text = format!("{error:#}");
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    text
}

#[test]
fn makes_a_file_once_and_opens_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    assert!(refusal(&path, OPTIONS).contains("give a size"));
    let medium = FileMedium::open(&path, sized(1 << 20)).unwrap();
    assert_eq!((medium.size(), medium.read_only()), (1 << 20, false));
    drop(medium);
    let status = rustix::fs::stat(&path).unwrap();
    assert_eq!((status.st_size, status.st_blocks), (1 << 20, 0));
    assert_eq!(status.st_mode & 0o777, 0o600);
    std::fs::write(&path, [7; 2048]).unwrap();
    let medium = FileMedium::open(&path, OPTIONS).unwrap();
    assert_eq!(medium.size(), 2048);
    drop(medium);
    assert!(FileMedium::open(&path, sized(2048)).is_ok());
    assert!(refusal(&path, sized(4096)).contains("has 2048 bytes, not 4096"));
    // Opening leaves no trace in it.
    assert_eq!(std::fs::read(&path).unwrap(), [7; 2048]);
    let blocks = rustix::fs::stat(&path).unwrap().st_blocks;
    std::fs::write(directory.path().join("like"), [7; 2048]).unwrap();
    let like = rustix::fs::stat(directory.path().join("like")).unwrap();
    assert_eq!(blocks, like.st_blocks);
}

#[test]
fn refuses_what_cannot_be_a_medium() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("odd");
    std::fs::write(&path, [0; 1000]).unwrap();
    let text = refusal(&path, OPTIONS);
    assert!(
        text.contains("488 are left over") && text.contains("truncate"),
        "{text}"
    );
    std::fs::write(&path, []).unwrap();
    assert!(refusal(&path, OPTIONS).contains("no blocks"));
    assert!(refusal(directory.path(), OPTIONS).contains("regular file"));
    assert!(refusal(Path::new("/dev/null"), OPTIONS).contains("regular file"));
    let nowhere = directory.path().join("no/disk");
    assert!(refusal(&nowhere, sized(512)).contains("directory has to exist"));
    // A file that could not be made whole is not left behind.
    let huge = directory.path().join("huge");
    assert!(refusal(&huge, sized(1 << 62)).contains("choose fewer"));
    assert!(!huge.exists());
    let none = FileOptions {
        block_size: 0,
        ..OPTIONS
    };
    assert!(refusal(&path, none).contains("blocks of 0 bytes"));
}

#[test]
fn is_locked_while_it_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let medium = FileMedium::open(&path, sized(4096)).unwrap();
    assert!(refusal(&path, OPTIONS).contains("has it"));
    assert!(refusal(&path, read_only()).contains("has it"));
    drop(medium);
    let reader = FileMedium::open(&path, read_only()).unwrap();
    assert!(reader.read_only() && !reader.can_zero() && !reader.can_deallocate());
    assert!(reader.zero(0, 512).is_none());
    let another = FileMedium::open(&path, read_only()).unwrap();
    assert!(refusal(&path, OPTIONS).contains("has it"));
    drop((reader, another));
    assert!(FileMedium::open(&path, OPTIONS).is_ok());
}

/// Runs one operation to its end.
fn run(ring: &mut Ring, operation: Operation<'_>, mut buffers: Vec<Buffer>) -> i32 {
    ring.push(0, operation, &mut buffers).unwrap();
    let mut completed = Vec::new();
    while completed.is_empty() {
        ring.wait(Some(Duration::from_secs(60))).unwrap();
        ring.reap(&mut completed);
    }
    completed[0].1
}

#[test]
fn zeroes_and_deallocates_as_it_says_it_can() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::write(&path, [7; 64 << 10]).unwrap();
    let medium = Medium::File(FileMedium::open(&path, OPTIONS).unwrap());
    let Medium::File(file) = &medium else {
        unreachable!()
    };
    let mut ring = Ring::new(1).unwrap();
    let mut expected = vec![7; 64 << 10];
    assert_eq!(medium.can_zero(), file.zero(0, 512).is_some());
    if let Some(operation) = file.zero(4096, 8192) {
        assert_eq!(run(&mut ring, operation, Vec::new()), 0);
        expected[4096..12288].fill(0);
    }
    assert_eq!(medium.can_deallocate(), file.deallocate(0, 512).is_some());
    if let Some(operation) = file.deallocate(32 << 10, 16 << 10) {
        let before = rustix::fs::fstat(file.file()).unwrap().st_blocks;
        assert_eq!(run(&mut ring, operation, Vec::new()), 0);
        expected[32 << 10..48 << 10].fill(0);
        let after = rustix::fs::fstat(file.file()).unwrap().st_blocks;
        assert!(after < before);
    }
    assert!(std::fs::read(&path).unwrap() == expected);
    assert_eq!(medium.size(), 64 << 10);
}

#[test]
fn falls_back_to_a_hole_where_ranges_cannot_be_zeroed() {
    // A memfd is on tmpfs, which knows holes only.
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let memfd = rustix::fs::memfd_create("t", flags).unwrap();
    rustix::fs::ftruncate(&memfd, 8192).unwrap();
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let medium = FileMedium::open(Path::new(&path), OPTIONS).unwrap();
    assert!(medium.can_zero() && medium.can_deallocate());
    let zero = medium.zero(0, 512);
    assert!(matches!(zero, Some(Operation::Deallocate { .. })));
}
