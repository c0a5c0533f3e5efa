// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Suspending under load: what is in flight finishes first, and then nothing happens any more.

use super::*;
use crate::control::ControlTarget;

/// A card with its namespace in a file, so that requests stay with the kernel until the test takes
/// them back.
fn rig() -> (Rig, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let mut rig = Rig::new(&format!("file={}", file.path().display()));
    rig.start(ONE, 8);
    rig.start(TWO, 8);
    (rig, file)
}

impl Rig {
    /// Puts reads into queue 1 of a host and lets them go to the kernel.
    fn begin(&mut self, host: usize, count: u16) {
        for cid in 0..count {
            let iova = DATA + u64::from(cid) * 0x1000;
            let read = block(0x02, cid, cid.into(), iova);
            self.hosts[host].driver.queue(1, &read);
        }
        self.hosts[host].ring(1);
        let before = self.ring.in_flight();
        self.poll();
        assert_eq!(self.ring.in_flight() - before, u32::from(count));
    }

    /// Puts a command into the administrative controller's queue and rings, no more.
    fn submit(&mut self, cid: u16, command: Command) {
        let command = Command { cid, ..command };
        self.hosts[ADMIN].driver.queue(0, &command);
        self.hosts[ADMIN].ring(0);
    }

    /// Completions of the administrative controller: command and status.
    fn answers(&mut self) -> Vec<(u16, u16)> {
        let mut answers = Vec::new();
        while let Some(completion) = self.hosts[ADMIN].driver.reap(0) {
            answers.push((completion.cid, completion.status.without_flags().bits()));
        }
        self.hosts[ADMIN].ring(0);
        answers
    }
}

#[test]
fn a_suspend_completes_when_its_target_is_quiet_and_the_poller_learns_of_it() {
    let (mut rig, _file) = rig();
    rig.begin(ONE, 3);
    rig.begin(TWO, 2);
    rig.submit(10, suspend(1));
    rig.submit(11, suspend(2));
    // A second Suspend of the same target waits as well.
    rig.submit(12, suspend(1));
    rig.poll_callers();
    assert_eq!(rig.answers(), []);
    assert!(matches!(rig.hosts[ONE].phase(), Phase::Suspending(_)));
    assert!(rig.hosts[ONE].function.lock().kind.status().suspended);
    // More commands come in, and stay where they are.
    let late = block(0x02, 9, 9, DATA + 0x9000);
    rig.hosts[ONE].driver.queue(1, &late);
    rig.hosts[ONE].ring(1);
    while !rig.poll_callers().is_empty() {}
    assert_eq!(rig.answers(), []);
    // Nothing but the completions of requests makes the administrative controller's poller work.
    rig.finish();
    assert!(rig.poll_callers().contains(&ADMIN));
    assert_eq!(rig.answers(), [(10, 0), (11, 0), (12, 0)]);
    for (host, count) in [(ONE, 3), (TWO, 2)] {
        assert!(matches!(rig.hosts[host].phase(), Phase::Suspended(_)));
        for _ in 0..count {
            let completion = rig.hosts[host].driver.reap(1).unwrap();
            assert!(completion.status.is_success());
        }
        assert!(rig.hosts[host].driver.reap(1).is_none());
    }
    assert!(fired(&rig.hosts[ONE].interrupts[1]) > 0);
    rig.hosts[ONE].ring(1);
    rig.submit(13, resume(1));
    rig.run();
    assert_eq!(rig.answers(), [(13, 0)]);
    assert_eq!(rig.hosts[ONE].driver.reap(1).unwrap().cid, 9);
}

#[test]
fn a_suspended_controller_touches_nothing_and_misses_nothing() {
    let (mut rig, _file) = rig();
    rig.shadow(ONE);
    rig.run();
    assert_eq!(rig.status(suspend(1)), 0);
    for interrupt in &rig.hosts[ONE].interrupts {
        fired(interrupt);
    }
    let host = &mut rig.hosts[ONE];
    let identify = Command {
        prp1: DATA,
        cdw10: 1,
        ..Command::new(0x06)
    };
    host.driver.queue(0, &identify);
    host.driver.queue(1, &block(0x02, 5, 0, DATA + 0x1000));
    host.ring(1);
    let before = host.driver.read(0, RAM as usize);
    host.ring(0);
    // Not even a bad doorbell is reported, nor is EventIdx written.
    host.set(0x1000 + 8 * 9, 1);
    for _ in 0..3 {
        rig.run();
        rig.hosts[ONE].function.arm();
    }
    let host = &rig.hosts[ONE];
    assert!(host.driver.read(0, RAM as usize) == before);
    assert!(host.interrupts.iter().all(|event| fired(event) == 0));
    assert_eq!(rig.status(resume(1)), 0);
    rig.run();
    assert_eq!(rig.hosts[ONE].driver.reap(1).unwrap().cid, 5);
    assert!(rig.hosts[ONE].driver.reap(0).unwrap().status.is_success());
}

#[test]
fn resume_raises_the_interrupts_of_queues_that_hold_something() {
    let (mut rig, _file) = rig();
    rig.begin(ONE, 1);
    rig.finish();
    assert_eq!(fired(&rig.hosts[ONE].interrupts[1]), 1);
    assert_eq!(rig.status(suspend(1)), 0);
    assert_eq!(fired(&rig.hosts[ONE].interrupts[1]), 0);
    assert_eq!(rig.status(resume(1)), 0);
    let counts: Vec<_> = rig.hosts[ONE].interrupts.iter().map(fired).collect();
    assert_eq!(counts[1..], [1, 0, 0], "queue 1 was not read");
}

#[test]
fn a_disabled_controller_can_be_suspended() {
    let (mut rig, _file) = rig();
    rig.hosts[TWO].set(0x14, 0);
    assert_eq!(rig.status(suspend(2)), 0);
    assert_eq!(rig.status(resume(2)), 0);
    rig.start(TWO, 4);
    assert_eq!(rig.command(TWO, 1, block(0x02, 1, 0, DATA)).cid, 1);
}

#[test]
fn an_abort_of_a_suspend_lets_the_target_go_on() {
    let (mut rig, _file) = rig();
    rig.begin(ONE, 2);
    rig.submit(10, suspend(1));
    rig.submit(11, suspend(1));
    let abort = |cid: u32| Command {
        cdw10: cid << 16,
        ..Command::new(0x08)
    };
    rig.submit(12, abort(10));
    assert_eq!(rig.answers(), [(10, 0x007), (12, 0)]);
    assert!(matches!(rig.hosts[ONE].phase(), Phase::Suspending(_)), "11");
    // A command identifier that is in use cannot be used again.
    rig.submit(11, Command::new(0x06));
    assert_eq!(rig.answers(), [(11, 0x003)]);
    rig.submit(13, abort(11));
    assert_eq!(rig.answers(), [(11, 0x007), (13, 0)]);
    assert_eq!(rig.hosts[ONE].phase(), Phase::Running);
    rig.finish();
    let late = block(0x02, 9, 9, DATA + 0x9000);
    rig.hosts[ONE].driver.queue(1, &late);
    rig.hosts[ONE].ring(1);
    rig.run();
    let cids = (0..3).map(|_| rig.hosts[ONE].driver.reap(1).unwrap().cid);
    let cids: BTreeSet<_> = cids.collect();
    assert_eq!(cids, BTreeSet::from([0, 1, 9]));
    assert_eq!(rig.answers(), []);
}

#[test]
fn a_reset_or_a_resume_of_the_target_interrupts_a_suspend() {
    let (mut rig, _file) = rig();
    rig.begin(ONE, 2);
    rig.submit(10, suspend(1));
    rig.submit(11, resume(1));
    rig.run();
    assert_eq!(rig.answers(), [(11, 0), (10, 0x021)]);
    for id in [1, 2] {
        rig.hosts[TWO].driver.queues[id].head = rig.hosts[TWO].driver.queues[id].tail;
    }
    rig.begin(TWO, 1);
    rig.submit(12, suspend(2));
    rig.hosts[TWO].set(0x14, 0);
    rig.poll_callers();
    assert_eq!(rig.answers(), [(12, 0x021)]);
    assert_eq!(rig.hosts[TWO].phase(), Phase::Running);
    rig.finish();
    assert_eq!(
        rig.hosts[TWO].get(0x1c),
        0,
        "RDY falls when the kernel is done"
    );
}

#[test]
fn a_reset_of_the_target_ends_its_suspension_and_not_its_log() {
    let (mut rig, _file) = rig();
    let ranges = request_for(0, &[(0, 256)]);
    assert_eq!(rig.send(track(1, true), &ranges), 0);
    rig.command(ONE, 1, block(0x02, 1, 0, DATA + 0x3000));
    assert_eq!(rig.status(suspend(1)), 0);
    rig.hosts[ONE].function.write(Region::Config, 0x69, &[0x80]);
    assert_eq!(rig.hosts[ONE].phase(), Phase::Running, "FLR");
    assert_eq!(rig.status(resume(1)), 0x13a);
    let (dirty, attributes) = rig.report(1);
    assert!(dirty.contains(&(DATA + 0x3000)) && attributes == 0);
    rig.hosts[ONE].configure();
    rig.start(ONE, 4);
    rig.command(ONE, 1, block(0x02, 1, 0, DATA + 0x7000));
    assert!(rig.report(1).0.contains(&(DATA + 0x7000)));
    rig.hosts[ONE].function.disconnect();
    let receive = Command {
        cdw11: 1,
        ..Command::new(0x3e)
    };
    assert_eq!(rig.status(receive), 0x11f, "its client has gone");
}

#[test]
fn a_reset_of_the_administrative_controller_ends_every_suspension_and_log() {
    type Reset = fn(&mut Host);
    let resets: [(&str, Reset); 3] = [
        ("CC.EN", |host| host.set(0x14, 0)),
        ("FLR", |host| {
            host.function.write(Region::Config, 0x69, &[0x80]);
            host.configure();
        }),
        ("disconnect", |host| {
            host.function.disconnect();
            host.plug();
        }),
    ];
    for (what, reset) in resets {
        let (mut rig, _file) = rig();
        let ranges = request_for(0, &[(0, 256)]);
        assert_eq!(rig.send(track(1, true), &ranges), 0);
        assert_eq!(rig.send(track(2, true), &ranges), 0);
        assert_eq!(rig.status(suspend(1)), 0);
        let state = rig.state(1);
        assert_eq!(rig.send(set(1, 1, 0, 4), &state[..16]), 0);
        rig.begin(TWO, 1);
        rig.submit(20, suspend(2));
        reset(&mut rig.hosts[ADMIN]);
        for host in [ONE, TWO] {
            assert_eq!(rig.hosts[host].phase(), Phase::Running, "{what}");
        }
        rig.finish();
        rig.hosts[ADMIN].enable(16);
        for controller in [1, 2] {
            assert_eq!(rig.status(track(controller, false)), 0x11f, "{what}");
            assert_eq!(rig.status(resume(controller)), 0x13a, "{what}");
        }
        assert_eq!(rig.status(suspend(1)), 0);
        assert_eq!(rig.status(set(1, 2, 16, 0)), 0x00c, "{what}");
        assert_eq!(rig.status(resume(1)), 0, "{what}");
        let completion = rig.command(ONE, 1, block(0x02, 7, 0, DATA));
        assert_eq!(completion.cid, 7, "{what}");
    }
}

#[test]
fn a_queue_under_deletion_is_gone_before_its_controller_is_quiet() {
    let (mut rig, _file) = rig();
    rig.begin(ONE, 2);
    let delete = Command {
        cid: 77,
        cdw10: 1,
        ..Command::new(0x00)
    };
    rig.hosts[ONE].driver.queue(0, &delete);
    rig.hosts[ONE].ring(0);
    assert!(rig.hosts[ONE].driver.reap(0).is_none());
    rig.submit(10, suspend(1));
    rig.run();
    assert_eq!(rig.answers(), [(10, 0)]);
    assert_eq!(rig.hosts[ONE].driver.reap(0).unwrap().cid, 77);
    let state = rig.state(1);
    assert_eq!(state[50..54], [1, 0, 2, 0], "one submission queue is left");
}

#[test]
fn what_a_fault_holds_is_finished_first() {
    let (mut rig, _file) = rig();
    let rule = "function=nvme1,op=read,nth=1,stall";
    rig.card.faults().add(rule.parse().unwrap()).unwrap();
    rig.hosts[ONE].driver.queue(1, &block(0x02, 4, 0, DATA));
    rig.hosts[ONE].ring(1);
    rig.poll();
    rig.submit(10, suspend(1));
    rig.run();
    assert_eq!(rig.answers(), [], "stalled");
    rig.hosts[ONE].function.lock().kind.release();
    rig.run();
    assert_eq!(rig.hosts[ONE].driver.reap(1).unwrap().cid, 4);
    rig.poll();
    assert_eq!(rig.answers(), [(10, 0)]);
}

#[test]
fn a_fault_spoils_one_byte_of_a_state() {
    let (mut rig, _file) = rig();
    assert_eq!(rig.status(suspend(1)), 0);
    let good = rig.state(1);
    let rule = "function=admin,corrupt=state,nth=2";
    rig.card.faults().add(rule.parse().unwrap()).unwrap();
    let bad = rig.state(1);
    let different = good.iter().zip(&bad).filter(|(one, other)| one != other);
    assert_eq!(different.count(), 1);
    assert_eq!(rig.status(suspend(2)), 0);
    rig.hosts[TWO].function.reset();
    rig.hosts[TWO].configure();
    assert_eq!(rig.status(suspend(2)), 0);
    assert_eq!(rig.give(2, &bad, 300), 0x002);
    assert_eq!(rig.give(2, &good, 300), 0);
}

#[test]
fn parts_of_two_suspensions_make_no_state() {
    let mut rig = Rig::new("memory=1M");
    rig.start(ONE, 8);
    assert_eq!(rig.status(suspend(1)), 0);
    assert_eq!(rig.status(get(1, 0, 16)), 0);
    rig.hosts[ONE].function.reset();
    rig.hosts[ONE].configure();
    assert_eq!(rig.status(suspend(1)), 0);
    assert_eq!(rig.status(get(1, 64, 16)), 0x0c, "Command Sequence Error");
    assert_eq!(rig.status(get(1, 0, 16)), 0);
    assert_eq!(rig.status(get(1, 64, 16)), 0);
}
