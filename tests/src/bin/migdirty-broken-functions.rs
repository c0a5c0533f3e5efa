// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Cards that break while they work on functions: what becomes of an order that the card refuses,
//! does not answer, answers with nothing, or dies of, and of functions whose card somebody else
//! resets.
//!
//! Needs root, vfio-pci loaded, the module not loaded, and exactly the cards that `--cards` prints:
//! one software card with one function for each line, the first word its serial number, the others
//! its fault rules. Each rule counts the commands of one kind, so the order of what a test does is
//! part of the test. A `status=0/0` is a card that says that it did something and did not.

use clap::Parser;
use migdirty_uapi::{
    MIGDIRTY_FUNCTION_LIVE, MIGDIRTY_FUNCTION_LOGGING, MIGDIRTY_FUNCTION_LOG_LOST,
    MIGDIRTY_FUNCTION_OWNED_BY_TOOL, MIGDIRTY_FUNCTION_SUSPENDED,
};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fs::File;
use std::mem::offset_of;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use zeroshift_stream::identity::View;
use zeroshift_tests::kmsg::Log;
use zeroshift_tests::ktap::{Ktap, Outcome, Stop};
use zeroshift_tests::migdirty::{get, gone, open, Tool, DRIVER};
use zeroshift_tests::sysfs::Function;
use zeroshift_tests::vfio::dma::DATA;
use zeroshift_tests::vfio::log::{range, Pages, Range, PAGE};
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig;
use zeroshift_tests::vfio::space::Access;
use zeroshift_tests::{check, check_eq, module};

/// Tests what migdirty does with functions when their card breaks
#[derive(Parser)]
struct Arguments {
    /// Print the cards that the test needs, and end
    #[arg(long)]
    cards: bool,
    /// Module file to load and unload
    #[arg(long, required_unless_present = "cards")]
    module: Option<PathBuf>,
}

/// What a card gets for a command; an Abort gets the same, and a second more.
const PARAMETERS: &str = "command_timeout_ms=10000";

/// How long a test waits for what takes seconds.
const LIMIT: Duration = Duration::from_secs(120);

const IO: u32 = 0x01_08_02;
/// CC.
const CC: usize = 0x14;

const LIVE: u32 = MIGDIRTY_FUNCTION_LIVE;
const SUSPENDED: u32 = MIGDIRTY_FUNCTION_SUSPENDED;
const LOGGING: u32 = MIGDIRTY_FUNCTION_LOGGING;
const LOST: u32 = MIGDIRTY_FUNCTION_LOG_LOST;
const OWNED: u32 = MIGDIRTY_FUNCTION_OWNED_BY_TOOL;

const ALL: Range = range(0, 1 << 48);
const ROOM: u32 = 4096;

/// Serial number, fault rules, and what to do with the card.
type Card = (
    &'static str,
    &'static [&'static str],
    fn(&Bench<'_>) -> Outcome,
);

// Migration Send: SEL 0 Suspend, 1 Resume, 2 Set Controller State. Track Send: CDW10 65537 start, 1
// stop. Identify: SEL is CNS. An Abort ends what is stalled or delayed, unless it is faked
// (`op=abort,...,status=0/0`), and not what is dropped.
const CARDS: &[Card] = &[
    (
        "SUSPEND",
        &[
            "op=migration-send,sel=0,from=1,times=2,status=0/21h",
            "op=migration-send,sel=0,nth=4,status=0/2",
            "op=migration-send,sel=0,nth=5,stall",
            "op=migration-send,sel=0,nth=6,delay=30s",
            "op=abort,nth=2,status=0/0",
            "op=migration-send,sel=0,nth=7,drop,after",
            "op=migration-send,sel=0,nth=8,status=0/0",
        ],
        suspend,
    ),
    (
        "UNSURE",
        &[
            "op=migration-send,sel=0,nth=1,status=0/2",
            "op=migration-send,sel=1,nth=1,status=0/2",
            "op=migration-send,sel=0,nth=2,status=0/6,dnr",
            "op=migration-send,sel=1,nth=2,status=0/2",
            "op=migration-send,sel=0,from=3,times=40,status=0/21h",
            "op=migration-send,sel=0,nth=43,stall",
            "op=abort,nth=1,delay=3s",
        ],
        unsure,
    ),
    (
        "RESUME",
        &[
            "op=migration-send,sel=1,nth=1,status=0/2",
            "op=migration-send,sel=1,nth=3,status=0/6",
            "op=migration-send,sel=1,nth=5,stall",
            "op=migration-send,sel=1,nth=7,delay=30s",
            "op=abort,nth=2,status=0/0",
            "op=migration-send,sel=1,nth=9,drop",
        ],
        resume,
    ),
    (
        "STATE",
        &[
            "op=migration-receive,nth=1,status=0/6",
            "op=migration-receive,nth=2,status=0/0",
            "op=migration-receive,nth=3,stall",
            "corrupt=state,nth=4",
            "op=migration-send,sel=2,nth=1,status=0/6",
            "op=migration-send,sel=2,nth=2,status=0/2",
            "op=migration-send,sel=2,nth=3,stall",
            "op=identify,sel=0x20,nth=1,status=0/6",
            "op=identify,sel=0x20,nth=2,status=0/0",
        ],
        state,
    ),
    (
        "TRACK",
        &[
            "op=track-send,cdw10=65537,from=1,times=10,status=1/38h",
            "op=track-send,cdw10=65537,nth=11,status=0/2",
            "op=track-send,cdw10=65537,nth=12,status=0/6,after",
            "op=track-send,cdw10=65537,nth=13,stall,after",
            "op=track-send,cdw10=65537,nth=17,status=0/6",
            "op=track-send,cdw10=65537,nth=19,status=1/38h",
            "op=track-send,cdw10=1,nth=3,status=0/6",
            "op=track-send,cdw10=1,nth=4,stall",
            "op=track-send,cdw10=1,nth=11,status=0/6",
        ],
        track,
    ),
    (
        "REPORT",
        &[
            "op=track-receive,nth=1,status=0/6",
            "op=track-receive,nth=2,status=0/0",
            "op=track-receive,nth=3,stall",
            "op=track-receive,nth=4,drop",
            "op=track-receive,nth=6,drop",
        ],
        report,
    ),
    (
        "IDENTITY",
        &[
            "op=identify,sel=0x10,nth=1,status=0/2",
            "op=identify,sel=0x10,nth=2,status=0/6",
            "op=identify,sel=0x10,nth=3,status=0/0",
            "op=identify,sel=0x11,nth=1,drop",
            "op=identify,sel=0x11,nth=2,status=0/0bh",
            "op=identify,sel=0x12,nth=3,status=0/0",
            "op=identify,sel=0x12,nth=4,status=0/6",
        ],
        identity,
    ),
    (
        "DIES-SUSPEND",
        &["op=migration-send,sel=0,nth=1,dead=ones"],
        dies_at_suspend,
    ),
    (
        "DIES-RESUME",
        &["op=migration-send,sel=1,nth=1,dead=ones"],
        dies_at_resume,
    ),
    (
        "DIES-STATE",
        &["op=migration-receive,nth=1,dead=cfs"],
        dies_at_state,
    ),
    (
        "DIES-REPORT",
        &["op=track-receive,nth=1,dead=cfs"],
        dies_at_report,
    ),
    ("RESET", &[], reset_in_each_state),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(module) = arguments.module else {
        for (serial, rules, _) in CARDS {
            println!("{serial} {}", rules.join(" "));
        }
        return ExitCode::SUCCESS;
    };
    let mut ktap = Ktap::new(CARDS.len() + 2);
    let mut file = None;
    ktap.test("load", || {
        module::load(&module, PARAMETERS)?;
        file = Some(open()?);
        Ok(())
    });
    for (serial, _, test) in CARDS {
        ktap.test(serial, || match &file {
            Some(file) => Bench::with(file, serial, *test),
            None => Err(Stop::Fail("the module is not loaded".into())),
        });
    }
    drop(file);
    ktap.test("unload", || {
        // Dead cards, and what tools left on others, do not hold it.
        module::unload(DRIVER)?;
        gone()
    });
    ExitCode::from(ktap.finish())
}

/// A card and its function.
struct Bench<'a> {
    file: &'a File,
    card: Function,
    function: Function,
    tool: Tool<'a>,
    log: RefCell<Log>,
}

impl<'a> Bench<'a> {
    /// Finds the card and lets `test` have it.
    fn with(file: &'a File, serial: &str, test: fn(&Bench<'_>) -> Outcome) -> Outcome {
        let mut next = 0;
        let card = loop {
            let answer = get(file, next)?;
            if answer.text(offset_of!(migdirty_uapi::MigdirtyCard, serial), 20) == serial {
                break answer.address();
            }
            next = answer.address() + 1;
        };
        for function in Function::of_class(IO)? {
            let address = function.number()?;
            let tool = Tool { file, address };
            if tool.info()?.card == card {
                return test(&Self {
                    file,
                    card: Function::at(card),
                    function,
                    tool,
                    log: Log::from_now()?.into(),
                });
            }
        }
        Err(Stop::Fail(format!("{serial} has no function")))
    }

    /// Starts the function, and lets `test` have it.
    fn running(&self, test: impl FnOnce(&mut Nvme<'_>, &Tool<'_>) -> Outcome) -> Outcome {
        rig::with_nvme(
            "vfio-pci",
            &self.function.address,
            Access::Group,
            Wish::default(),
            |nvme| test(nvme, &self.tool),
        )
    }

    /// The log says this of the card.
    fn said(&self, text: &str) -> Outcome {
        let prefix = format!("{DRIVER} {}: ", self.card.address);
        Ok(self.log.borrow_mut().wait_for(&prefix, text)?)
    }

    /// The card is bound anew, which ends all that it was told.
    fn rebind(&self) -> Outcome {
        self.card.unbind(DRIVER)?;
        self.card.bind(DRIVER)?;
        flags_are(&self.tool, LIVE, "of a card that is bound again")
    }

    /// Commands that the card completed.
    fn commands(&self) -> Result<u64, Stop> {
        Ok(get(self.file, self.card.number()?)?.commands())
    }
}

fn flags_are(tool: &Tool<'_>, flags: u32, when: &str) -> Outcome {
    let found = tool.info()?.flags;
    check_eq!(found, flags, "flags {when}");
    Ok(())
}

/// The function runs.
fn works(nvme: &mut Nvme<'_>) -> Outcome {
    Ok(nvme.read(0, DATA.iova, PAGE)?)
}

/// The function is suspended: gives the command that waits.
fn is_held(nvme: &mut Nvme<'_>, tool: &Tool<'_>) -> Result<u16, Stop> {
    let cid = nvme.put_read(0, DATA.iova, PAGE);
    nvme.ring_io();
    // The card has work in between.
    tool.pause()?;
    check!(!nvme.has_completion(), "a suspended function works");
    Ok(cid)
}

fn goes_on(nvme: &mut Nvme<'_>, cid: u16) -> Outcome {
    check_eq!(nvme.next_completion()?.cid, cid, "the command that waited");
    Ok(())
}

fn page(number: u64) -> u64 {
    DATA.iova + number * PAGE
}

/// The log sees what the function writes.
fn logs(nvme: &mut Nvme<'_>, tool: &Tool<'_>) -> Outcome {
    let pages: Pages = [1, 7, 8].map(page).into();
    nvme.write_pages(&pages)?;
    check_eq!(tool.log_sync(DATA, ROOM)?.pages(), pages, "dirty pages");
    Ok(())
}

/// Waits until the function has these flags: what a card did not do is made up for by and by.
fn becomes(tool: &Tool<'_>, flags: u32, when: &str) -> Outcome {
    let start = Instant::now();
    while tool.info()?.flags != flags {
        check!(
            start.elapsed() < LIMIT,
            "flags {when}: {:#x}, expected {flags:#x}",
            tool.info()?.flags
        );
        thread::yield_now();
    }
    Ok(())
}

/// Nothing is sent for a function of which the card still has an order; only the card's reset ends
/// one that it never completes.
fn gets_no_orders(bench: &Bench<'_>) -> Outcome {
    let tool = &bench.tool;
    bench.said("gets no orders until the card has completed the last one")?;
    let before = bench.commands()?;
    check_eq!(tool.save().err(), Some(Errno::TIMEDOUT), "save");
    check_eq!(tool.pause(), Err(Errno::NOTRECOVERABLE), "pause");
    check_eq!(tool.resume(), Err(Errno::NOTRECOVERABLE), "resume");
    // The question itself, and Identify Controller before a save: nothing else.
    check!(bench.commands()? - before <= 2, "orders were sent");
    bench.rebind()
}

fn suspend(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        // Refused twice for a reason that passes.
        tool.pause()?;
        flags_are(tool, LIVE | SUSPENDED | OWNED, "after the third Suspend")?;
        let cid = nvme.put_read(0, DATA.iova, PAGE);
        nvme.ring_io();
        check!(bench.commands()? > 0, "the card does not answer");
        check!(!nvme.has_completion(), "a suspended function works");
        tool.resume()?;
        goes_on(nvme, cid)?;

        check_eq!(tool.pause(), Err(Errno::IO), "refused for good");
        bench.said("card refuses Suspend: status 0x002")?;
        flags_are(tool, LIVE, "refused for good")?;
        works(nvme)?;

        check_eq!(tool.pause(), Err(Errno::TIMEDOUT), "aborted");
        bench.said("no answer to admin command 0x41 in 100")?;
        flags_are(tool, LIVE, "aborted")?;
        works(nvme)?;

        // It comes when nobody expects it any more, and is undone.
        check_eq!(tool.pause(), Err(Errno::NOTRECOVERABLE), "too late");
        bench.said("may be suspended; it is resumed when the card does what it is told")?;
        flags_are(tool, LIVE | SUSPENDED | OWNED, "nobody knows")?;
        becomes(tool, LIVE, "after a late Suspend")?;
        works(nvme)?;

        let done = tool.pause();
        check_eq!(done, Err(Errno::NOTRECOVERABLE), "done without an answer");
        let cid = nvme.put_read(0, DATA.iova, PAGE);
        nvme.ring_io();
        flags_are(tool, LIVE | SUSPENDED | OWNED, "nobody knows")?;
        check!(!nvme.has_completion(), "a suspended function works");
        gets_no_orders(bench)?;
        goes_on(nvme, cid)?;

        // What is not true shows when the state is read.
        check_eq!(tool.pause(), Ok(()), "an answer that is not true");
        check_eq!(tool.save().err(), Some(Errno::BUSY), "its state");
        flags_are(tool, LIVE, "it runs")?;
        works(nvme)
    })
}

/// What is known stays known, and a card is not hurried.
fn unsure(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        // Neither does anything, and it ran before.
        check_eq!(tool.pause(), Err(Errno::IO), "refused for good");
        bench.said("card refuses Suspend: status 0x002")?;
        flags_are(tool, LIVE, "refused for good")?;
        check_eq!(tool.resume(), Ok(()), "of a function that runs");
        bench.said("card refuses Resume: status 0x002")?;
        flags_are(tool, LIVE, "of a function that runs")?;
        works(nvme)?;

        // The Suspend may have been done, so that a refusal of the Resume is not the end.
        check_eq!(tool.pause(), Err(Errno::NOTRECOVERABLE), "nobody knows");
        becomes(tool, LIVE, "when it can be resumed")?;
        works(nvme)?;

        // The last Suspend has two seconds or so left, its Abort takes longer, and the card lives.
        check_eq!(tool.pause(), Err(Errno::TIMEDOUT), "refused for long");
        flags_are(tool, LIVE, "refused for long")?;
        works(nvme)
    })
}

fn resume(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        tool.pause()?;
        let cid = is_held(nvme, tool)?;
        check_eq!(tool.resume(), Err(Errno::IO), "refused for good");
        bench.said("card refuses Resume: status 0x002")?;
        flags_are(tool, LIVE | SUSPENDED | OWNED, "refused for good")?;
        check!(!nvme.has_completion(), "a suspended function works");
        check_eq!(tool.resume(), Ok(()), "another try");
        goes_on(nvme, cid)?;

        // It is resumed without being asked again, so what it wrote is not all.
        tool.log_start(&[DATA], 0)?;
        tool.pause()?;
        let cid = is_held(nvme, tool)?;
        let what = "an internal error";
        check_eq!(tool.resume(), Err(Errno::NOTRECOVERABLE), "{what}");
        check!(!tool.log_sync(ALL, ROOM)?.complete, "complete, and resumed");
        goes_on(nvme, cid)?;
        becomes(tool, LIVE | LOGGING | OWNED, what)?;
        tool.log_stop()?;
        for what in ["aborted", "done too late"] {
            tool.pause()?;
            let cid = is_held(nvme, tool)?;
            check_eq!(tool.resume(), Err(Errno::NOTRECOVERABLE), "{what}");
            goes_on(nvme, cid)?;
            becomes(tool, LIVE, what)?;
        }

        tool.pause()?;
        let cid = is_held(nvme, tool)?;
        check_eq!(tool.resume(), Err(Errno::NOTRECOVERABLE), "no answer");
        flags_are(tool, LIVE | SUSPENDED | OWNED, "nobody knows")?;
        check!(!nvme.has_completion(), "a suspended function works");
        gets_no_orders(bench)?;
        goes_on(nvme, cid)
    })
}

fn state(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        tool.pause()?;
        check_eq!(tool.save().err(), Some(Errno::IO), "formats refused");
        bench.said("card refuses Identify of controller state formats: status 0x006")?;
        check!(tool.save().is_err(), "an empty list of formats");
        check_eq!(tool.save().err(), Some(Errno::IO), "refused");
        bench.said("card refuses Get Controller State: status 0x006")?;
        flags_are(tool, LIVE | SUSPENDED | OWNED, "refused")?;
        // Zeroes say that it was not suspended.
        check_eq!(tool.save().err(), Some(Errno::BUSY), "an empty answer");
        flags_are(tool, LIVE, "as the card says")?;
        tool.resume()?;
        works(nvme)?;

        nvme.disable()?;
        tool.pause()?;
        check_eq!(tool.save().err(), Some(Errno::TIMEDOUT), "aborted");
        flags_are(tool, LIVE | SUSPENDED | OWNED, "aborted")?;
        let wrong = tool.save()?;
        let good = tool.save()?;
        let differ = wrong.data.iter().zip(&good.data).filter(|(a, b)| a != b);
        check_eq!(differ.count(), 1, "bytes that are wrong");

        check_eq!(tool.restore(&good), Err(Errno::IO), "an internal error");
        bench.said("card refuses Set Controller State: status 0x006")?;
        check_eq!(tool.restore(&good), Err(Errno::INVAL), "refused");
        check_eq!(tool.restore(&good), Err(Errno::TIMEDOUT), "aborted");
        check_eq!(tool.restore(&wrong), Err(Errno::INVAL), "a wrong byte");
        flags_are(tool, LIVE | SUSPENDED | OWNED, "nothing was set")?;
        check_eq!(tool.restore(&good), Ok(()), "a good one");
        tool.resume()?;
        nvme.start_again(Wish::default())?;
        works(nvme)
    })
}

fn track(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        let start = || tool.log_start(&[DATA], 0);
        // Each of its granules from 4 KiB to 2 MiB is tried.
        check_eq!(start(), Err(Errno::NOSPC), "resources for nothing");
        check_eq!(start(), Err(Errno::IO), "refused");
        bench.said("card refuses Track Send (start): status 0x002")?;
        check_eq!(start(), Err(Errno::IO), "an error after it was done");
        check_eq!(start(), Err(Errno::TIMEDOUT), "done without an answer");
        flags_are(tool, LIVE, "without a log")?;
        // What nobody wants was stopped (1, 2), so the next start meets nothing: limits, start, and
        // the question itself.
        let before = bench.commands()?;
        check_eq!(start(), Ok(PAGE), "granule");
        check_eq!(bench.commands()? - before, 3, "commands of a start");
        logs(nvme, tool)?;

        check_eq!(tool.log_stop(), Err(Errno::IO), "stop refused (3)");
        bench.said("card refuses Track Send (stop): status 0x006")?;
        flags_are(tool, LIVE, "without a log")?;
        check_eq!(tool.log_sync(ALL, ROOM), Err(Errno::INVAL), "sync");
        check_eq!(start(), Err(Errno::TIMEDOUT), "no answer to a stop (4, 5)");
        check_eq!(start(), Ok(PAGE), "granule");
        logs(nvme, tool)?;
        tool.log_stop()?;

        // A promise that cannot be kept, because the start fails; its stop is 7. What is sent while the
        // function is suspended finds that out.
        tool.pause()?;
        check_eq!(start(), Ok(PAGE), "granule");
        check_eq!(tool.resume(), Ok(()), "resume");
        is_lost(bench, "it could not start when the function ran again")?;
        check_eq!(start(), Ok(PAGE), "granule");
        logs(nvme, tool)?;
        tool.log_stop()?;

        let granule = start();
        check_eq!(granule, Ok(2 * PAGE), "granule behind one that is refused");
        check_eq!(tool.info()?.granule, 2 * PAGE, "granule");
        nvme.write_pages(&[page(5)].into())?;
        let found = tool.log_sync(ALL, ROOM)?.ranges;
        check_eq!(found, vec![range(page(4), 2 * PAGE)], "dirty range");
        tool.log_stop()?;

        // A promise that cannot be kept, because the stop of the log before fails (11).
        check_eq!(start(), Ok(PAGE), "granule");
        tool.pause()?;
        tool.log_stop()?;
        check_eq!(start(), Ok(PAGE), "granule");
        check_eq!(tool.resume(), Ok(()), "resume");
        is_lost(bench, "it could not start when the function ran again")?;
        check_eq!(start(), Ok(PAGE), "granule");
        logs(nvme, tool)?;
        Ok(tool.log_stop()?)
    })
}

/// Nobody believes that nothing was written.
fn is_lost(bench: &Bench<'_>, why: &str) -> Outcome {
    let tool = &bench.tool;
    bench.said(&format!("is lost: {why}"))?;
    *bench.log.borrow_mut() = Log::from_now()?;
    flags_are(tool, LIVE | LOGGING | LOST | OWNED, why)?;
    let before = bench.commands()?;
    check_eq!(tool.log_sync(ALL, ROOM), Err(Errno::IO), "{why}: sync");
    check_eq!(bench.commands()? - before, 1, "nobody asks the card");
    Ok(())
}

fn report(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        for (error, why) in [
            (Errno::IO, "the card refused Track Receive"),
            (Errno::IO, "the card reports another function"),
            (Errno::TIMEDOUT, "the card did not answer Track Receive"),
            (Errno::TIMEDOUT, "the card did not answer Track Receive"),
        ] {
            check_eq!(tool.log_start(&[DATA], 0), Ok(PAGE), "granule");
            nvme.write_pages(&[page(3)].into())?;
            check_eq!(tool.log_sync(ALL, ROOM), Err(error), "{why}");
            is_lost(bench, why)?;
        }
        // The old order would take what a new log has seen.
        let again = tool.log_start(&[DATA], 0);
        check_eq!(again, Err(Errno::TIMEDOUT), "start");
        // But it does nothing to a function that runs.
        check_eq!(tool.pause(), Err(Errno::TIMEDOUT), "pause");
        check_eq!(tool.resume(), Ok(()), "resume of a function that runs");
        flags_are(tool, LIVE, "of a function that runs")?;
        works(nvme)?;
        bench.rebind()?;

        // Nor does it keep one suspended.
        check_eq!(tool.log_start(&[DATA], 0), Ok(PAGE), "granule");
        logs(nvme, tool)?;
        tool.pause()?;
        let cid = is_held(nvme, tool)?;
        let why = "the card did not answer Track Receive";
        check_eq!(tool.log_sync(ALL, ROOM), Err(Errno::TIMEDOUT), "{why}");
        bench.said(&format!("is lost: {why}"))?;
        check_eq!(tool.resume(), Ok(()), "resume");
        goes_on(nvme, cid)?;
        flags_are(tool, LIVE | LOGGING | LOST | OWNED, why)?;
        bench.rebind()?;
        check_eq!(tool.log_start(&[DATA], 0), Ok(PAGE), "granule");
        logs(nvme, tool)?;
        Ok(tool.log_stop()?)
    })
}

fn identity(bench: &Bench<'_>) -> Outcome {
    /// NSIDs, if they are known.
    fn namespaces(record: &[u8]) -> Result<Option<Vec<u32>>, Stop> {
        let view = View::decode(record)?;
        let all = view.namespaces();
        Ok(all.map(|all| all.map(|namespace| namespace.nsid).collect()))
    }
    let ask = || bench.tool.identity(1 << 16);
    let known = |what: &str, expected: Option<&[u32]>| -> Outcome {
        let found = namespaces(&ask()?)?;
        check_eq!(found.as_deref(), expected, "{what}");
        Ok(())
    };
    known("a card that lists no namespaces", None)?;
    check_eq!(ask(), Err(Errno::IO), "a list that is refused");
    bench.said("card refuses Identify of allocated namespaces: status 0x006")?;
    known("an empty list", Some(&[]))?;
    check_eq!(ask(), Err(Errno::TIMEDOUT), "a namespace without an answer");
    known("a namespace that has gone", None)?;
    known("a namespace of nobody", Some(&[]))?;
    check_eq!(ask(), Err(Errno::IO), "controllers that are refused");
    known("all is well", Some(&[1]))
}

/// The card is dead, and its function can be used when it is reset.
fn is_dead(bench: &Bench<'_>, nvme: &mut Nvme<'_>, left: u32) -> Outcome {
    let tool = &bench.tool;
    // The news comes a moment later.
    becomes(tool, left, "of a dead card's function")?;
    for (what, result) in [
        ("pause", tool.pause()),
        ("resume", tool.resume()),
        ("save", tool.save().map(drop)),
        ("start", tool.log_start(&[range(0, PAGE)], 0).map(drop)),
        ("sync", tool.log_sync(ALL, ROOM).map(drop)),
        ("identity", tool.identity(1 << 16).map(drop)),
    ] {
        check!(result.is_err(), "{what} of a dead card's function");
    }
    check_eq!(tool.log_stop(), Ok(()), "stop");
    flags_are(tool, 0, "of a dead card's function")?;
    check_eq!(bench.card.command()? & 4, 0, "bus master of a dead card");
    nvme.device.reset()?;
    nvme.start_again(Wish::default())?;
    works(nvme)
}

fn dies_at_suspend(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        check_eq!(tool.pause(), Err(Errno::IO), "pause");
        bench.said("card is dead: its registers read all-ones")?;
        is_dead(bench, nvme, 0)
    })
}

fn dies_at_resume(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        tool.log_start(&[DATA], 0)?;
        tool.pause()?;
        check_eq!(tool.resume(), Err(Errno::IO), "resume");
        bench.said("card is dead: its registers read all-ones")?;
        is_dead(bench, nvme, LOGGING | LOST | OWNED)
    })
}

fn dies_at_state(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        tool.pause()?;
        check_eq!(tool.save().err(), Some(Errno::IO), "save");
        bench.said("card is dead: it reports a fatal status (CSTS.CFS)")?;
        is_dead(bench, nvme, 0)
    })
}

fn dies_at_report(bench: &Bench<'_>) -> Outcome {
    bench.running(|nvme, tool| {
        tool.log_start(&[DATA], 0)?;
        tool.pause()?;
        check_eq!(tool.log_sync(ALL, ROOM), Err(Errno::IO), "sync");
        bench.said("card is dead: it reports a fatal status (CSTS.CFS)")?;
        is_dead(bench, nvme, LOGGING | LOST | OWNED)
    })
}

/// Somebody else resets the card, by its function or by its registers, in each state of a function.
fn reset_in_each_state(bench: &Bench<'_>) -> Outcome {
    for (suspended, logging) in [(true, false), (false, true), (true, true)] {
        for by_register in [false, true] {
            let what = format!("suspended {suspended}, logging {logging}, CC {by_register}");
            bench
                .running(|nvme, tool| reset(bench, nvme, tool, (suspended, logging), by_register))
                .map_err(|stop| match stop {
                    Stop::Fail(why) => Stop::Fail(format!("{what}: {why}")),
                    skip => skip,
                })?;
        }
    }
    Ok(())
}

fn reset(
    bench: &Bench<'_>,
    nvme: &mut Nvme<'_>,
    tool: &Tool<'_>,
    (suspended, logging): (bool, bool),
    by_register: bool,
) -> Outcome {
    if logging {
        tool.log_start(&[DATA], 0)?;
    }
    if suspended {
        tool.pause()?;
    }
    let cid = nvme.put_read(0, DATA.iova, PAGE);
    nvme.ring_io();
    *bench.log.borrow_mut() = Log::from_now()?;
    if by_register {
        bench.card.write_register(CC, 0)?;
        goes_on(nvme, cid)?;
        // Nobody watches a card for a log; one on which suspensions rely is watched.
        if !suspended {
            check_eq!(tool.log_sync(ALL, ROOM), Err(Errno::IO), "the next order");
        }
        bench.said("card is dead: it is not ready (CSTS.RDY), somebody else reset it")?;
    } else {
        check!(bench.card.reset()?, "it cannot be reset");
        goes_on(nvme, cid)?;
        bench.said("card is dead: somebody else resets it")?;
    }
    let left = if logging { LOGGING | LOST | OWNED } else { 0 };
    is_dead(bench, nvme, left)?;
    bench.rebind()?;
    tool.log_start(&[DATA], 0)?;
    logs(nvme, tool)?;
    Ok(tool.log_stop()?)
}
