// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Start and end of the process: ready line, sockets, signals, exit codes.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::client::{message, Client, DMA_MAP, REGION_READ};
use crate::driver::Driver;
use crate::server::{readable, wait, zerocard, Server};

pub(crate) fn fails(arguments: &[&str], directory: Option<&Path>) -> (Option<i32>, String) {
    let mut command = zerocard();
    command.args(arguments);
    if let Some(directory) = directory {
        command.arg("--dir").arg(directory);
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = wait(&mut child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"", "standard output is for the ready line");
    (status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_ready_line_is_the_one_of_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(directory.path(), &["--json", "--serial", "MY-CARD"]);
    let socket = directory.path().join("admin.sock");
    let expected = format!(
        "{{\"event\":\"ready\",\"card\":{{\"serial\":\"MY-CARD\"}},\"functions\":[{{\"name\":\"admin\",\
         \"kind\":\"nvme-admin\",\"controller_id\":0,\"socket\":\"{}\"}}]}}\n",
        socket.display()
    );
    assert_eq!(server.ready, expected);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        Driver::start(&socket).identify()[4..24],
        *b"MY-CARD             "
    );
    let (status, rest) = server.end(Signal::TERM);
    assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
    assert!(!socket.exists());
}

#[test]
fn without_json_the_ready_line_is_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(directory.path(), &[]);
    assert!(
        server.ready.starts_with("card ZS00000001 is ready: admin "),
        "{}",
        server.ready
    );
    assert_eq!(server.end(Signal::INT).0.code(), Some(0));
}

#[test]
fn a_signal_ends_it_in_the_middle_of_everything() {
    let mut server = Server::start();
    let socket = server.socket();
    // A client inside a message, and one that waits for its turn.
    let mut client = Client::connect(&socket);
    client.send(&message(1, REGION_READ, 0, &[0; 16])[..20], &[]);
    let _second = Client::raw(&socket);
    assert_eq!(server.end(Signal::TERM).0.code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_standard_error_that_takes_nothing_ends_nothing() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let directory = tempfile::tempdir().unwrap();
    let mut command = zerocard();
    command.stderr(full());
    let mut server = Server::start_with(command, directory.path(), &["--json"]);
    // Both connections are logged.
    for _ in 0..2 {
        Driver::start(&directory.path().join("admin.sock")).identify();
    }
    assert_eq!(server.end(Signal::TERM).0.code(), Some(0));
    let mut command = zerocard();
    command.args(["serve", "--dir", "/nonexistent/zerocard"]);
    let mut child = command.stderr(full()).spawn().unwrap();
    assert_eq!(wait(&mut child).code(), Some(1));
}

#[test]
fn refused_maps_do_not_fill_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = zerocard();
    command.stderr(log.reopen().unwrap());
    let mut server = Server::start_with(command, directory.path(), &["--json"]);
    let mut client = Client::connect(&directory.path().join("admin.sock"));
    for _ in 0..2000 {
        client.call(DMA_MAP, &[0; 32]).unwrap_err();
    }
    assert_eq!(server.end(Signal::TERM).0.code(), Some(0));
    let text = std::fs::read_to_string(log.path()).unwrap();
    let lines = text.matches("DMA map").count();
    // One a second, and a second is long enough for many messages on any machine.
    assert!((1..1000).contains(&lines), "{lines} lines");
}

#[test]
fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    drop(UnixListener::bind(&socket).unwrap());
    // A child that another test is just about to start listens, too, until it is a program.
    let end = Instant::now() + Duration::from_secs(60);
    while UnixStream::connect(&socket).is_ok() {
        assert!(Instant::now() < end, "somebody listens");
        std::thread::yield_now();
    }
    assert!(socket.exists());
    let mut server = Server::start_in(directory.path(), &["--json"]);
    let (code, text) = fails(&["serve"], Some(directory.path()));
    assert_eq!(code, Some(1));
    assert!(
        text.contains("is being served by another process"),
        "{text}"
    );
    Driver::start(&socket).identify();
    assert!(server.alive());
}

#[test]
fn waiting_for_another_card_is_said_and_can_be_ended() {
    let directory = tempfile::tempdir().unwrap();
    let held = std::fs::File::open(directory.path()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut child = zerocard()
        .args(["serve", "--dir"])
        .arg(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    if readable(said.get_ref()) {
        said.read_line(&mut line).unwrap();
    }
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = wait(&mut child);
    assert!(line.contains("waiting for the lock"), "{line}");
    assert!(!status.success(), "it never served");
    assert!(!directory.path().join("admin.sock").exists());
}

#[test]
fn a_file_that_is_no_socket_stays() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    std::fs::write(&socket, "precious").unwrap();
    let (code, text) = fails(&["serve"], Some(directory.path()));
    assert_eq!(code, Some(1));
    assert!(text.contains("no socket"), "{text}");
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
}

#[test]
fn somebody_elses_socket_is_not_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let mut server = Server::start_in(directory.path(), &["--json"]);
    std::fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    assert_eq!(server.end(Signal::TERM).0.code(), Some(0));
    assert!(socket.exists());
}

#[test]
fn errors_and_bad_usage_have_their_exit_codes() {
    let (code, text) = fails(&["serve", "--dir", "/nonexistent/zerocard"], None);
    assert_eq!(code, Some(1));
    assert!(text.contains("/nonexistent/zerocard"), "{text}");
    let long = tempfile::tempdir().unwrap();
    let deep = long.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let (code, text) = fails(&["serve"], Some(&deep));
    assert_eq!(code, Some(1));
    assert!(text.contains("shorter"), "{text}");
    assert_eq!(fails(&["serve"], None).0, Some(2));
    assert_eq!(fails(&[], None).0, Some(2));
    let serial = [
        "serve",
        "--dir",
        "/tmp",
        "--serial",
        "longer-than-twenty-characters",
    ];
    assert_eq!(fails(&serial, None).0, Some(2));
}
