// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Dirty exactness, end to end: guest memory before and after everything that a function does, held
//! against what Track Receive reports. Nothing is lost, and nothing is reported that lies outside
//! of the granules that a command, a queue or a doorbell buffer named.

use proptest::prelude::*;

use super::*;
use crate::control::ControlTarget;

#[derive(Clone, Debug)]
enum Step {
    /// Reads so many blocks to a byte offset in the data area.
    Read { blocks: u32, at: u64 },
    /// Writes one block from there.
    Write { at: u64 },
    /// An admin command with 4 KiB of data to there.
    Identify { page: u64 },
    /// The poller goes to sleep.
    Sleep,
    /// The log is read.
    Report,
    /// As is, and the log is read in between.
    Suspend,
    /// The controller is reset and enabled again.
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..17u32, 0..0x3_0000u64 / 4).prop_map(|(blocks, at)| Step::Read { blocks, at: at * 4 }),
        1 => (0..0x3_0000u64 / 4).prop_map(|at| Step::Write { at: at * 4 }),
        1 => (0..0x30u64).prop_map(|page| Step::Identify { page }),
        2 => Just(Step::Sleep),
        2 => Just(Step::Report),
        1 => Just(Step::Suspend),
        1 => Just(Step::Reset),
    ]
}

/// What the independent record knows.
struct Record {
    granule: u64,
    before: Vec<u8>,
    /// Granules that changed since the last report.
    changed: BTreeSet<u64>,
    /// Granules that the function was allowed to write.
    allowed: BTreeSet<u64>,
}

impl Record {
    fn allow(&mut self, iova: u64, len: u64) {
        let first = iova / self.granule;
        let last = (iova + len - 1) / self.granule;
        let granules = (first..=last).map(|n| n * self.granule);
        self.allowed.extend(granules);
    }

    /// The driver has written what it wants; from here on only the function writes.
    fn begin(&mut self, rig: &Rig) {
        self.before = rig.hosts[ONE].driver.read(0, RAM as usize);
    }

    fn end(&mut self, rig: &Rig) {
        let after = rig.hosts[ONE].driver.read(0, RAM as usize);
        let size = self.granule as usize;
        for (n, (old, new)) in self.before.chunks(size).zip(after.chunks(size)).enumerate() {
            if old != new {
                self.changed.insert(n as u64 * self.granule);
            }
        }
    }

    /// Lets the poller do what is left, so that nothing changes while the log is read.
    fn settle(&mut self, rig: &mut Rig) {
        if rig.hosts[ONE].driver.shadow {
            self.allow(EVENT_IDX, 0x1000);
        }
        self.begin(rig);
        rig.run();
        self.end(rig);
        self.begin(rig);
    }

    fn compare(&mut self, rig: &Rig, reported: &BTreeSet<u64>) {
        let now = rig.hosts[ONE].driver.read(0, RAM as usize);
        assert!(now == self.before, "it changed while the log was read");
        let changed = std::mem::take(&mut self.changed);
        let allowed = std::mem::take(&mut self.allowed);
        let lost: Vec<_> = changed.difference(reported).collect();
        let invented: Vec<_> = reported.difference(&allowed).collect();
        assert!(lost.is_empty(), "lost: {lost:x?}");
        assert!(invented.is_empty(), "invented: {invented:x?}");
    }
}

/// A command that its driver has put into a queue: the function does it.
fn work(rig: &mut Rig, record: &mut Record, queue: usize, command: &Command) {
    let host = &mut rig.hosts[ONE];
    let at = host.driver.queues[queue].cq;
    record.allow(at, u64::from(host.driver.queues[queue].entries) * 16);
    // The poller says there whether it is awake.
    if host.driver.shadow {
        record.allow(EVENT_IDX, 0x1000);
    }
    host.driver.queue(queue, command);
    if host.driver.shadow && queue != 0 {
        host.ring(queue);
        record.begin(rig);
    } else {
        record.begin(rig);
        rig.hosts[ONE].ring(queue);
    }
    rig.run();
    record.end(rig);
    let completion = rig.hosts[ONE].driver.reap(queue).unwrap();
    assert!(completion.status.is_success(), "{completion:?}");
    rig.hosts[ONE].ring(queue);
}

fn setup(rig: &mut Rig, shadow: bool) {
    rig.start(ONE, 5);
    if shadow {
        rig.hosts[ONE].driver.write(SHADOW, &[0; 0x2000]);
        rig.shadow(ONE);
    }
}

fn check(steps: Vec<Step>, granularity: u8, shadow: bool) {
    let mut rig = Rig::new("memory=64K");
    setup(&mut rig, shadow);
    // Every block of the medium is different from the others.
    for lba in 0..128u32 {
        let content: Vec<u8> = (0..128u32)
            .flat_map(|n| (lba * 977 + n).to_le_bytes())
            .collect();
        rig.hosts[ONE].driver.write(DATA, &content);
        let completion = rig.command(ONE, 2, block(0x01, 1, lba, DATA));
        assert!(completion.status.is_success());
    }
    let granule = 0x1000 << granularity;
    let ranges = request_for(granularity, &[(0, (RAM / granule) as u32)]);
    assert_eq!(rig.send(track(1, true), &ranges), 0);
    let mut record = Record {
        granule,
        before: Vec::new(),
        changed: BTreeSet::new(),
        allowed: BTreeSet::new(),
    };
    let mut lba = 0;
    for step in steps {
        match step {
            Step::Read { blocks, at } => {
                let iova = DATA + at;
                lba = (lba + 17) % 100;
                let read = Command {
                    cdw12: blocks - 1,
                    // Two pages follow the first at most: a list for more, beside the queues.
                    prp2: list(&rig.hosts[ONE].driver, iova, u64::from(blocks) * 512),
                    ..block(0x02, 3, lba, iova)
                };
                let len = u64::from(blocks) * 512;
                rig.hosts[ONE].driver.write(iova, &vec![0xa5; len as usize]);
                record.allow(iova, len);
                work(&mut rig, &mut record, 1 + (at as usize / 4) % 2, &read);
            }
            Step::Write { at } => {
                let iova = DATA + at;
                let write = Command {
                    prp2: list(&rig.hosts[ONE].driver, iova, 512),
                    ..block(0x01, 4, 127, iova)
                };
                work(&mut rig, &mut record, 2, &write);
            }
            Step::Identify { page } => {
                let iova = DATA + page * 0x1000;
                rig.hosts[ONE].driver.write(iova, &[0xa5; 0x1000]);
                record.allow(iova, 0x1000);
                let identify = Command {
                    prp1: iova,
                    cdw10: 1,
                    ..Command::new(0x06)
                };
                work(&mut rig, &mut record, 0, &identify);
            }
            Step::Sleep => {
                if rig.hosts[ONE].driver.shadow {
                    record.allow(EVENT_IDX, 0x1000);
                }
                record.begin(&rig);
                rig.hosts[ONE].function.arm();
                record.end(&rig);
            }
            Step::Report => {
                record.settle(&mut rig);
                let (reported, attributes) = rig.report(1);
                assert_eq!(attributes, 0);
                record.compare(&rig, &reported);
            }
            Step::Suspend => {
                record.settle(&mut rig);
                assert_eq!(rig.status(suspend(1)), 0);
                let (reported, attributes) = rig.report(1);
                assert_eq!(attributes, 2, "SUSP, and nothing more");
                record.compare(&rig, &reported);
                assert!(rig.report(1).0.is_empty());
                if rig.hosts[ONE].driver.shadow {
                    record.allow(EVENT_IDX, 0x1000);
                }
                record.begin(&rig);
                assert_eq!(rig.status(resume(1)), 0);
                rig.run();
                record.end(&rig);
            }
            Step::Reset => {
                record.allow(0x2000, 0x1000);
                record.allow(EVENT_IDX, 0x1000);
                rig.hosts[ONE].set(0x14, 0);
                setup(&mut rig, shadow);
            }
        }
    }
    record.settle(&mut rig);
    let (reported, _) = rig.report(1);
    record.compare(&rig, &reported);
}

/// PRP2 of a transfer: nothing, the second page, or a list.
fn list(driver: &Driver, iova: u64, len: u64) -> u64 {
    const LIST: u64 = 0x5000;
    let first = iova / 0x1000;
    let last = (iova + len - 1) / 0x1000;
    match last - first {
        0 => 0,
        1 => last * 0x1000,
        _ => {
            let pages: Vec<u8> = (first + 1..=last)
                .flat_map(|page| (page * 0x1000).to_le_bytes())
                .collect();
            driver.write(LIST, &pages);
            LIST
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_write_is_reported_and_nothing_else(
        steps in proptest::collection::vec(step(), 1..40),
        granularity in 0..5u8,
        shadow: bool,
    ) {
        check(steps, granularity, shadow);
    }
}

#[test]
fn a_card_that_forgets_is_found_out() {
    let steps = vec![
        Step::Read { blocks: 1, at: 0 },
        Step::Read {
            blocks: 1,
            at: 0x8000,
        },
        Step::Report,
    ];
    check(steps.clone(), 0, false);
    let mut rig = Rig::new("memory=64K");
    setup(&mut rig, false);
    assert_eq!(rig.send(track(1, true), &request_for(0, &[(0, 256)])), 0);
    let rule = "function=nvme1,forget=1";
    rig.card.faults().add(rule.parse().unwrap()).unwrap();
    rig.command(ONE, 1, block(0x02, 1, 0, DATA));
    assert!(rig.report(1).0.is_empty());
}

#[test]
fn a_report_shorter_than_its_buffer_reads_the_pointers_of_the_whole() {
    let mut rig = Rig::new("memory=1M");
    assert_eq!(rig.send(track(1, true), &request_for(0, &[(0, 1024)])), 0);
    {
        let state = rig.hosts[ONE].function.lock();
        for n in 0..300 {
            state.memory.log().unwrap().mark(n * 0x2000, 1);
        }
    }
    // Four pages, so PRP2 is a list; the report fills a page and a part of the next.
    let pages = [DATA, DATA + 0x5000, DATA + 0x3000, DATA + 0x7000];
    let at = DATA + 0x1000;
    let list: Vec<u8> = pages[1..]
        .iter()
        .flat_map(|page| page.to_le_bytes())
        .collect();
    rig.hosts[ADMIN].driver.write(at, &list);
    let receive = Command {
        prp1: pages[0],
        prp2: at,
        cdw11: 1,
        cdw12: 4096 - 1,
        ..Command::new(0x3e)
    };
    assert_eq!(rig.command(ADMIN, 0, receive).status.bits(), 0);
    let driver = &rig.hosts[ADMIN].driver;
    assert_eq!(driver.read(at, list.len()), list, "the list is the host's");
    let mut data = driver.read(pages[0], 0x1000);
    data.extend(driver.read(pages[1], 0x1000));
    assert_eq!(data[4..8], 300u32.to_le_bytes());
    for (n, entry) in data[16..].chunks(16).take(300).enumerate() {
        let address = n as u64 * 0x2000;
        assert_eq!((&entry[..8], entry[8]), (&address.to_le_bytes()[..], 1));
    }
}
