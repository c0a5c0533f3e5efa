// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of [`Ring`]: real files and pipes, the waker's race, and drops with requests in flight.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::pipe::PipeFlags;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn file(content: &[u8]) -> Arc<OwnedFd> {
    let file = tempfile::tempfile().unwrap();
    rustix::io::pwrite(&file, content, 0).unwrap();
    Arc::new(OwnedFd::from(file))
}

fn content(file: &OwnedFd, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    let count = rustix::io::pread(file, &mut data, offset).unwrap();
    data.truncate(count);
    data
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 7 + i % 251) as u8).collect()
}

fn memory(len: usize) -> Arc<Mapping> {
    Arc::new(Mapping::anonymous(len).unwrap())
}

fn buffer(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Buffer {
    Buffer {
        mapping: Arc::clone(mapping),
        offset,
        len,
    }
}

fn bytes(mapping: &Mapping, offset: usize, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    mapping.read(offset, &mut data).unwrap();
    data
}

/// Waits until `count` requests have completed; results by token.
fn finish(ring: &mut Ring, count: usize) -> Vec<(u32, i32)> {
    let end = Instant::now() + PATIENCE;
    let mut completed = Vec::new();
    ring.submit().unwrap();
    loop {
        ring.reap(&mut completed);
        if completed.len() >= count {
            completed.sort_unstable();
            return completed;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{completed:?} after {PATIENCE:?}");
        ring.wait(Some(left)).unwrap();
    }
}

/// A request whose end is the test's to choose: a read from an empty pipe.
fn pipe() -> (Arc<OwnedFd>, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    (Arc::new(reader), writer)
}

#[test]
fn many_slots_read_and_write_at_once() {
    let data = pattern(64 * 4096);
    let (source, target) = (file(&data), file(&[]));
    let ram = memory(data.len());
    let mut ring = Ring::new(64).unwrap();
    for round in 0..3 {
        for token in 0..64 {
            // Not in the order of the file.
            let block = (token as usize * 37) % 64 * 4096;
            let mut buffers = vec![buffer(&ram, block, 4096)];
            let operation = Operation::Read {
                file: &source,
                offset: block as u64,
            };
            ring.push(token, operation, &mut buffers).unwrap();
            assert!(buffers.is_empty());
        }
        assert_eq!(ring.in_flight, 64);
        let expected: Vec<_> = (0..64).map(|token| (token, 4096)).collect();
        assert_eq!(finish(&mut ring, 64), expected, "round {round}");
        assert_eq!(ring.in_flight, 0);
        assert!(bytes(&ram, 0, data.len()) == data);
    }
    for token in 0..64 {
        let block = token as usize * 4096;
        let operation = Operation::Write {
            file: &target,
            offset: block as u64,
            durable: token % 2 == 0,
        };
        let mut buffers = vec![buffer(&ram, block, 4096)];
        ring.push(token, operation, &mut buffers).unwrap();
    }
    assert!(finish(&mut ring, 64).iter().all(|done| done.1 == 4096));
    let sync = Operation::Sync { file: &target };
    ring.push(5, sync, &mut Vec::new()).unwrap();
    assert_eq!(finish(&mut ring, 1), [(5, 0)]);
    assert!(content(&target, 0, data.len()) == data);
    // Buffers and files were released.
    assert_eq!(Arc::strong_count(&ram), 1);
    assert_eq!(Arc::strong_count(&source), 1);
    assert_eq!(Arc::strong_count(&target), 1);
}

#[test]
fn vectors_are_joined_where_contiguous_and_keep_their_order() {
    let data = pattern(8192);
    let source = file(&data);
    let (one, two) = (memory(8192), memory(8192));
    let mut ring = Ring::new(2).unwrap();
    let mut buffers = vec![
        buffer(&one, 4096, 1024),
        buffer(&one, 5120, 512), // continues the first
        buffer(&two, 100, 1),
        buffer(&two, 7, 0),
        buffer(&one, 0, 2559),
    ];
    let read = Operation::Read {
        file: &source,
        offset: 512,
    };
    ring.push(1, read, &mut buffers).unwrap();
    assert_eq!(ring.slots[1].vectors.len(), 3);
    assert_eq!(finish(&mut ring, 1), [(1, 4096)]);
    assert_eq!(bytes(&one, 4096, 1536), data[512..2048]);
    assert_eq!(bytes(&two, 100, 1), data[2048..2049]);
    assert_eq!(bytes(&one, 0, 2559), data[2049..4608]);

    let mut buffers = vec![buffer(&two, 100, 1), buffer(&one, 4096, 1535)];
    let write = Operation::Write {
        file: &source,
        offset: 1024,
        durable: true,
    };
    ring.push(0, write, &mut buffers).unwrap();
    assert_eq!(finish(&mut ring, 1), [(0, 1536)]);
    let expected = [&data[2048..2049], &data[512..2047]].concat();
    assert_eq!(content(&source, 1024, 1536), expected);

    // The end of the file is a short result.
    let read = Operation::Read {
        file: &source,
        offset: 8000,
    };
    let mut buffers = vec![buffer(&one, 0, 100), buffer(&two, 0, 100)];
    ring.push(0, read, &mut buffers).unwrap();
    assert_eq!(finish(&mut ring, 1), [(0, 192)]);
}

#[test]
fn as_many_vectors_as_the_kernel_takes_and_no_more() {
    let data = pattern(1025);
    let source = file(&data);
    let ram = memory(4096);
    let mut ring = Ring::new(2).unwrap();
    let scattered =
        |count: usize| -> Vec<Buffer> { (0..count).map(|i| buffer(&ram, i * 2, 1)).collect() };
    let read = Operation::Read {
        file: &source,
        offset: 0,
    };
    ring.push(0, read, &mut scattered(1024)).unwrap();
    ring.push(1, read, &mut scattered(1025)).unwrap();
    let invalid = Errno::INVAL.raw_os_error();
    assert_eq!(finish(&mut ring, 2), [(0, 1024), (1, -invalid)]);
    for i in [0, 1, 500, 1023] {
        assert_eq!(bytes(&ram, i * 2, 2), [data[i], 0]);
    }
    // 1025 that make one are fine.
    let mut contiguous = (0..1025).map(|i| buffer(&ram, i, 1)).collect();
    ring.push(0, read, &mut contiguous).unwrap();
    assert_eq!(finish(&mut ring, 1), [(0, 1025)]);
    assert_eq!(bytes(&ram, 0, 1025), data);
}

#[test]
fn what_cannot_be_right_completes_with_an_error() {
    let source = file(&pattern(4096));
    let ram = memory(4096);
    let read_only = Arc::new(Mapping::new(source.as_fd(), 4096, false).unwrap());
    let mut ring = Ring::new(8).unwrap();
    let read = |offset| Operation::Read {
        file: &source,
        offset,
    };
    let write = |offset| Operation::Write {
        file: &source,
        offset,
        durable: false,
    };
    let huge = usize::MAX;
    ring.push(0, read(0), &mut vec![buffer(&ram, 4000, 97)])
        .unwrap();
    ring.push(1, read(0), &mut vec![buffer(&ram, huge, 1)])
        .unwrap();
    ring.push(2, write(0), &mut vec![buffer(&ram, 0, huge)])
        .unwrap();
    ring.push(3, read(0), &mut vec![buffer(&read_only, 0, 1)])
        .unwrap();
    ring.push(4, read(u64::MAX), &mut vec![buffer(&ram, 0, 1)])
        .unwrap();
    ring.push(5, write(1 << 63), &mut vec![buffer(&ram, 0, 1)])
        .unwrap();
    ring.push(6, read(0), &mut Vec::new()).unwrap();
    assert_eq!(ring.in_flight, 7);
    let fault = -Errno::FAULT.raw_os_error();
    let invalid = -Errno::INVAL.raw_os_error();
    let results: Vec<i32> = finish(&mut ring, 7).iter().map(|done| done.1).collect();
    assert_eq!(results, [fault, fault, fault, fault, invalid, invalid, 0]);
    // An error of the kernel is a result too; a taken or wrong token is not.
    let (reader, _writer) = pipe();
    let mut buffers = vec![buffer(&ram, 0, 1)];
    let wrong = Operation::Write {
        file: &reader,
        offset: 0,
        durable: false,
    };
    ring.push(7, wrong, &mut buffers).unwrap();
    buffers.push(buffer(&ram, 0, 1));
    assert_eq!(ring.push(7, read(0), &mut buffers), Err(Full));
    assert_eq!(ring.push(8, read(0), &mut buffers), Err(Full));
    assert_eq!(buffers.len(), 1);
    let bad = -Errno::BADF.raw_os_error();
    assert_eq!(finish(&mut ring, 1), [(7, bad)]);
}

#[test]
fn holes_and_zeroes() {
    let data = pattern(4 * 4096);
    let target = file(&data);
    let mut ring = Ring::new(2).unwrap();
    let (offset, len) = (4096, 4096);
    let hole = Operation::Deallocate {
        file: &target,
        offset,
        len,
    };
    ring.push(0, hole, &mut Vec::new()).unwrap();
    assert_eq!(finish(&mut ring, 1), [(0, 0)]);
    let zero = Operation::Zero {
        file: &target,
        offset: 3 * 4096 - 512,
        len: 512,
    };
    ring.push(1, zero, &mut Vec::new()).unwrap();
    let result = finish(&mut ring, 1)[0].1;
    let mut expected = data.clone();
    expected[4096..8192].fill(0);
    // A filesystem need not know it (tmpfs does not).
    assert!(result == 0 || result == -Errno::OPNOTSUPP.raw_os_error());
    if result == 0 {
        expected[3 * 4096 - 512..3 * 4096].fill(0);
    }
    assert!(content(&target, 0, 5 * 4096) == expected);
}

#[test]
fn a_request_can_be_cancelled_and_its_slot_used_again() {
    let (reader, writer) = pipe();
    let ram = memory(4096);
    let mut ring = Ring::new(2).unwrap();
    let read = Operation::Read {
        file: &reader,
        offset: 0,
    };
    for _ in 0..100 {
        ring.push(0, read, &mut vec![buffer(&ram, 0, 8)]).unwrap();
        ring.push(1, read, &mut vec![buffer(&ram, 8, 8)]).unwrap();
        ring.submit().unwrap();
        ring.cancel(0);
        ring.cancel(0);
        let cancelled = -Errno::CANCELED.raw_os_error();
        assert_eq!(finish(&mut ring, 1), [(0, cancelled)]);
        assert_eq!(ring.in_flight, 1);
        rustix::io::write(&writer, b"tokenone").unwrap();
        assert_eq!(finish(&mut ring, 1), [(1, 8)]);
        // Late, and for nobody.
        ring.cancel(1);
        ring.cancel(7);
    }
    assert_eq!(bytes(&ram, 0, 16), *b"\0\0\0\0\0\0\0\0tokenone");
}

#[test]
fn more_entries_than_the_queue_has_are_submitted_on_the_way() {
    let (reader, _writer) = pipe();
    let ram = memory(4096);
    let mut ring = Ring::new(400).unwrap();
    for token in 0..400 {
        let read = Operation::Read {
            file: &reader,
            offset: 0,
        };
        ring.push(token, read, &mut vec![buffer(&ram, 0, 1)])
            .unwrap();
    }
    for token in 0..400 {
        ring.cancel(token);
    }
    let cancelled = -Errno::CANCELED.raw_os_error();
    let completed = finish(&mut ring, 400);
    assert!(completed.iter().all(|done| done.1 == cancelled));
}

#[test]
fn a_ring_that_is_dropped_waits_for_its_requests() {
    let (reader, writer) = pipe();
    let (blocked, _blocked_writer) = pipe();
    let ram = memory(4096);
    let mut ring = Ring::new(64).unwrap();
    for token in 0..32 {
        let read = Operation::Read {
            file: if token % 2 == 0 { &reader } else { &blocked },
            offset: 0,
        };
        ring.push(token, read, &mut vec![buffer(&ram, 0, 64)])
            .unwrap();
        if token == 20 {
            ring.submit().unwrap(); // the rest was never given to the kernel
        }
    }
    drop(ring);
    assert_eq!(Arc::strong_count(&ram), 1);
    assert_eq!(Arc::strong_count(&reader), 1);
    // Nobody reads any more.
    rustix::io::write(&writer, b"late").unwrap();
    assert_eq!(bytes(&ram, 0, 4), [0; 4]);
    assert_eq!(content_of_pipe(&reader), b"late");
}

fn content_of_pipe(reader: &OwnedFd) -> Vec<u8> {
    let mut data = vec![0; 64];
    let count = rustix::io::read(reader, &mut data).unwrap();
    data.truncate(count);
    data
}

#[test]
fn a_request_in_flight_does_not_reach_revoked_memory() {
    let (reader, writer) = pipe();
    let ram_file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&ram_file, 8192).unwrap();
    let ram = Arc::new(Mapping::new(ram_file.as_fd(), 8192, true).unwrap());
    ram.write(0, &[9; 8192]).unwrap();
    let mut ring = Ring::new(1).unwrap();
    let read = Operation::Read {
        file: &reader,
        offset: 0,
    };
    let mut buffers = vec![buffer(&ram, 0, 16), buffer(&ram, 4096, 16)];
    ring.push(0, read, &mut buffers).unwrap();
    ring.submit().unwrap();
    ram.revoke();
    rustix::io::write(&writer, &[5; 32]).unwrap();
    let fault = -Errno::FAULT.raw_os_error();
    assert_eq!(finish(&mut ring, 1), [(0, fault)]);
    assert!(content(&ram_file, 0, 8192) == [9; 8192]);
}

/// The kernel must not take anything else for the data of a write.
#[test]
fn a_write_from_revoked_memory_writes_nothing() {
    // A full pipe keeps the write waiting, so that memory can be taken away in between.
    let flags = PipeFlags::CLOEXEC;
    let (reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    rustix::io::write(&writer, &vec![1; room]).unwrap();
    let ram_file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&ram_file, 4096).unwrap();
    let ram = Arc::new(Mapping::new(ram_file.as_fd(), 4096, true).unwrap());
    ram.write(0, &[9; 4096]).unwrap();
    let mut ring = Ring::new(1).unwrap();
    let write = Operation::Write {
        file: &Arc::new(writer),
        offset: 0,
        durable: false,
    };
    ring.push(0, write, &mut vec![buffer(&ram, 0, 4096)])
        .unwrap();
    ring.submit().unwrap();
    ram.revoke();
    let mut taken = vec![0; room];
    assert_eq!(rustix::io::read(&reader, &mut taken), Ok(room));
    let fault = -Errno::FAULT.raw_os_error();
    assert_eq!(finish(&mut ring, 1), [(0, fault)]);
    // Nor does one that comes later.
    let write = Operation::Write {
        file: &file(&[]),
        offset: 0,
        durable: false,
    };
    ring.push(0, write, &mut vec![buffer(&ram, 0, 4096)])
        .unwrap();
    assert_eq!(finish(&mut ring, 1), [(0, fault)]);
}

/// An access of ours that met a page that is gone has put zeroes in place of all pages.
#[test]
fn zeroes_in_place_of_memory_are_an_error_of_the_request() {
    crate::sys::sigbus::install().unwrap();
    let (reader, writer) = pipe();
    let ram_file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&ram_file, 8192).unwrap();
    let ram = Arc::new(Mapping::new(ram_file.as_fd(), 8192, true).unwrap());
    let mut ring = Ring::new(1).unwrap();
    let read = Operation::Read {
        file: &reader,
        offset: 0,
    };
    ring.push(0, read, &mut vec![buffer(&ram, 0, 16)]).unwrap();
    ring.submit().unwrap();
    rustix::fs::ftruncate(&ram_file, 4096).unwrap();
    ram.read(4096, &mut [0]).unwrap();
    assert!(ram.revoked());
    rustix::io::write(&writer, &[5; 16]).unwrap();
    let fault = -Errno::FAULT.raw_os_error();
    assert_eq!(finish(&mut ring, 1), [(0, fault)]);
}

#[test]
fn memory_whose_file_shrank_is_an_error_of_the_request() {
    let source = file(&pattern(8192));
    let ram_file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&ram_file, 8192).unwrap();
    let ram = Arc::new(Mapping::new(ram_file.as_fd(), 8192, true).unwrap());
    rustix::fs::ftruncate(&ram_file, 0).unwrap();
    let mut ring = Ring::new(1).unwrap();
    let read = Operation::Read {
        file: &source,
        offset: 0,
    };
    ring.push(0, read, &mut vec![buffer(&ram, 0, 8192)])
        .unwrap();
    let fault = -Errno::FAULT.raw_os_error();
    assert_eq!(finish(&mut ring, 1), [(0, fault)]);
}

#[test]
fn a_wait_ends_by_timeout_wake_or_completion() {
    let mut ring = Ring::new(1).unwrap();
    ring.wait(Some(Duration::from_millis(1))).unwrap();
    // A wake before the sleep is not lost, however many there were.
    ring.waker().wake();
    ring.waker().wake();
    ring.wait(None).unwrap();
    assert_eq!(ring.in_flight, 0);
    let (reader, writer) = pipe();
    let ram = memory(4096);
    let read = Operation::Read {
        file: &reader,
        offset: 0,
    };
    ring.push(0, read, &mut vec![buffer(&ram, 0, 1)]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || rustix::io::write(&writer, b"x").unwrap());
        let mut completed = Vec::new();
        while completed.is_empty() {
            ring.wait(None).unwrap();
            ring.reap(&mut completed);
        }
        assert_eq!(completed, [(0, 1)]);
    });
}

#[test]
fn a_wake_ends_one_sleep_only() {
    let mut ring = Ring::new(1).unwrap();
    for _ in 0..3 {
        let waker = ring.waker();
        std::thread::scope(|scope| {
            scope.spawn(move || waker.wake());
            ring.wait(None).unwrap();
        });
        // An eventfd that was signalled just before another end of the sleep may end one more.
        ring.wait(Some(Duration::from_millis(1))).unwrap();
        ring.reap(&mut Vec::new());
        ring.wait(Some(Duration::from_millis(1))).unwrap();
        assert!(ring.uring.completion().is_empty());
    }
}

#[test]
fn a_poller_that_never_sleeps_sees_completions() {
    let (reader, writer) = pipe();
    let ram = memory(4096);
    let mut ring = Ring::new(1).unwrap();
    let read = Operation::Read {
        file: &reader,
        offset: 0,
    };
    ring.push(0, read, &mut vec![buffer(&ram, 0, 1)]).unwrap();
    ring.submit().unwrap();
    let mut completed = Vec::new();
    ring.reap(&mut completed);
    assert!(completed.is_empty());
    rustix::io::write(&writer, b"x").unwrap();
    let end = Instant::now() + PATIENCE;
    while completed.is_empty() {
        assert!(Instant::now() < end, "no completion after {PATIENCE:?}");
        ring.reap(&mut completed);
    }
    assert_eq!(completed, [(0, 1)]);
}

/// One thread works off what the other asks for, as fast as both can. A lost wake-up is a sleep to
/// the end of the patience.
#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: u64 = 50_000;
    let asked = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let mut ring = Ring::new(1).unwrap();
    let waker = ring.waker();
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                asked.store(round, Ordering::Relaxed);
                waker.wake();
                // Most rounds ask again at once, some only when there is nothing left to do.
                while round % 4 == 0
                    && done.load(Ordering::Relaxed) < round
                    && !failed.load(Ordering::Relaxed)
                {
                    std::thread::yield_now();
                }
            }
        });
        let mut completed = Vec::new();
        let mut seen = 0;
        while seen < ROUNDS {
            let started = Instant::now();
            ring.wait(Some(PATIENCE)).unwrap();
            ring.reap(&mut completed);
            if started.elapsed() >= PATIENCE {
                failed.store(true, Ordering::Relaxed);
                panic!("slept through a wake after {seen} rounds");
            }
            seen = asked.load(Ordering::Relaxed);
            done.store(seen, Ordering::Relaxed);
        }
        assert!(completed.is_empty());
    });
}

#[test]
fn errors_name_the_cause() {
    for (number, word) in [
        (Errno::PERM, "kernel.io_uring_disabled"),
        (Errno::NOSYS, "kernel.io_uring_disabled"),
        (Errno::NOMEM, "ulimit"),
    ] {
        let text = explain(&number.into()).to_string();
        assert!(text.contains(word), "{text}");
    }
    assert!(Ring::new(u32::MAX).is_err());
}
