// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::super::client::{ask, must};
use super::super::options::Places;
use super::super::protocol::Attachment;
use super::super::runtime::Holder;
use super::super::service::tests::{owned, service, Fake};
use super::*;
use serde_json::Value;
use std::io::Write as _;
use std::thread::{spawn, JoinHandle};

/// A holder in a thread.
struct Rig {
    fake: Fake,
    runtime: Runtime,
    event: OwnedFd,
    stop: UnixStream,
    thread: JoinHandle<Result<()>>,
    _dir: tempfile::TempDir,
}

fn rig() -> Rig {
    rig_of(Fake::default())
}

fn rig_of(fake: Fake) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(&Places {
        runtime: Some(dir.path().join("zeroshift")),
        device: "/dev/null".into(),
    })
    .unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    let held = Held {
        service: service(&fake),
        listener: runtime.bind(7, 9).unwrap(),
        socket: runtime.socket(7, 9),
        event: event.try_clone().unwrap(),
    };
    Rig {
        fake,
        runtime,
        event,
        stop,
        thread: spawn(move || serve(held, &stopped)),
        _dir: dir,
    }
}

impl Rig {
    fn holder(&self) -> Holder {
        self.runtime.look().unwrap().holders.pop().unwrap()
    }

    /// It has ended, in peace, and its name is gone.
    fn end(self) {
        self.thread.join().unwrap().unwrap();
        let found = self.runtime.look().unwrap();
        assert!(
            found.holders.is_empty() && found.died.is_empty(),
            "{found:?}"
        );
    }
}

#[test]
fn one_client_after_the_other_is_answered() {
    let rig = rig();
    let added: Value = must(&rig.holder(), &owned(None, None), None).unwrap();
    assert_eq!(added["view"], 1);
    let list: Attachment = must(&rig.holder(), &Question::List, None).unwrap();
    assert_eq!((list.vm, list.views.len()), (9, 1));
    let refused: Result<Value> = must(&rig.holder(), &owned(Some(2), None), None);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("no such view"), "{error}");
    // Nonsense, and somebody who only looks: the next one is answered all the same.
    let holder = rig.holder();
    (&holder.stream).write_all(b"{\"op\":\"fly\"}\n").unwrap();
    let answer = super::super::protocol::receive_answer(&holder.stream).unwrap();
    let Some(Answer::Error(error)) = answer else {
        panic!("{answer:?}")
    };
    assert!(error.contains("does not understand"), "{error}");
    drop(rig.holder());
    let list: Attachment = must(&rig.holder(), &Question::List, None).unwrap();
    assert_eq!(list.views.len(), 1);
    let holder = rig.holder();
    let _: Value = must(&holder, &Question::Detach, None).unwrap();
    // When the answer is here, the kernel's file is closed: this is the last copy.
    let Rig { ref fake, .. } = rig;
    assert_eq!(fake.copies(), 1);
    rig.end();
}

#[test]
fn it_ends_with_the_vm_but_not_with_any_change() {
    let rig = rig();
    let signal = || rustix::io::write(&rig.event, &1u64.to_ne_bytes()).unwrap();
    signal();
    let list: Attachment = must(&rig.holder(), &Question::List, None).unwrap();
    assert_eq!(list.vcpus, 1);
    rig.fake.inner().ended = true;
    signal();
    rig.end();
}

/// Before there was an eventfd to signal.
#[test]
fn it_does_not_hold_a_vm_that_has_ended_before() {
    let fake = Fake::default();
    fake.inner().ended = true;
    rig_of(fake).end();
}

#[test]
fn a_signal_ends_it() {
    let rig = rig();
    (&rig.stop).write_all(b"x").unwrap();
    rig.end();
}

#[test]
fn who_asks_while_it_ends_is_told_so() {
    let (here, there) = UnixStream::pair().unwrap();
    drop(there);
    let holder = Holder {
        pid: 7,
        vm: 9,
        socket: "/x".into(),
        stream: here,
    };
    assert!(ask::<Value>(&holder, &Question::Detach, None)
        .unwrap()
        .is_none());
    let error = must::<Value>(&holder, &Question::List, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("has just ended"), "{error}");
}
