// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Broken cards: what `migdirty` makes of each, and that a good card beside them does not notice.
//!
//! Needs root, the module not loaded, and exactly the cards that `--cards` prints: one software
//! card for each line, the first word its serial number, the second, if any, its fault rule. The
//! first line is the good card. Every rule counts Identify commands, so the order of the questions below is part of the test:
//!
//! | Identify | sent by |
//! |---|---|
//! | 1 | probe, at which the cards `PROBE-...` break |
//! | 2 | `found` |
//! | 3 | `strike`, at which the others break |
//! | 4, 5 | a card that lives: two more questions; a dead one: `bound_again`, probe and a question |
//! | 6 | `unload_with_dead_cards`, at which they break again |
//! | 7, 8 | `loaded_again`: probe and a question |
//! | 9 | `unbind_while_waiting`, at which `BROKEN-STALL` breaks once more |

use clap::Parser;
use migdirty_uapi::MigdirtyCard;
use rustix::io::Errno;
use std::fs;
use std::mem::offset_of;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use zeroshift_tests::kmsg::Log;
use zeroshift_tests::ktap::{Ktap, Outcome, Stop};
use zeroshift_tests::migdirty::{get, gone, is_quiet, open, Answer, DRIVER};
use zeroshift_tests::sysfs::Function;
use zeroshift_tests::{check, check_eq, module};

/// Tests migdirty with cards that break
#[derive(Parser)]
struct Arguments {
    /// Print the cards that the test needs, and end
    #[arg(long)]
    cards: bool,
    /// Only a few of the cards, at least one for each way to notice a fault: for slow machines
    #[arg(long)]
    few: bool,
    /// Module file to load and unload
    #[arg(long, required_unless_present = "cards")]
    module: Option<PathBuf>,
}

/// Whether a card is one of the `--few`.
fn is_wanted(serial: &str, few: bool) -> bool {
    const FEW: [&str; 7] = [
        HEALTHY,
        STATUS,
        "BROKEN-CID",
        STALL,
        "BROKEN-CFS",
        "PROBE-CID",
        "PROBE-ONES",
    ];
    !few || FEW.contains(&serial)
}

/// Serial number, fault, and what becomes of it.
type Card = (&'static str, &'static str, Then);

/// NVMe administrative controllers.
const CLASS: u32 = 0x01_08_03;

/// What a card gets for a command.
const LIMIT: Duration = Duration::from_secs(10);
const PARAMETERS: &str = "command_timeout_ms=10000";
const LATE: &str = "no answer to admin command 0x06 in 10000 ms;";

const ONES: Then = Then::Dies {
    cause: "its registers read all-ones",
    late: false,
    for_good: Some("registers read all-ones: no controller answers"),
};
const CFS: Then = Then::Dies {
    cause: "it reports a fatal status (CSTS.CFS)",
    late: false,
    for_good: Some("controller reports a fatal status (CSTS.CFS) although it was reset"),
};

const fn dies(cause: &'static str) -> Then {
    Then::Dies {
        cause,
        late: false,
        for_good: None,
    }
}

const fn is_late() -> Then {
    Then::Dies {
        cause: LATE,
        late: true,
        for_good: None,
    }
}

/// Cards that break when they are bound.
const WORKING: [Card; 11] = [
    (HEALTHY, "", Then::Answers),
    ("SLOW", "delay=2s", Then::Answers),
    (STATUS, "status=0/6", Then::Refuses),
    (
        "BROKEN-CID",
        "corrupt=cid",
        dies(", which it does not have;"),
    ),
    (
        "BROKEN-SQID",
        "corrupt=sqid",
        dies("it completed a command of queue 32768;"),
    ),
    (
        "BROKEN-SQHD",
        "corrupt=sqhd",
        dies("it reported submission queue head 327"),
    ),
    ("BROKEN-PHASE", "corrupt=phase", is_late()),
    ("BROKEN-DROP", "drop", is_late()),
    (STALL, "stall", is_late()),
    ("BROKEN-ONES", "dead=ones", ONES),
    ("BROKEN-CFS", "dead=cfs", CFS),
];

/// Cards that break at probe.
const PROBED: [Card; 5] = [
    ("PROBE-STATUS", "status=0/6", Then::Refuses),
    (
        "PROBE-CID",
        "corrupt=cid",
        dies(", which it does not have;"),
    ),
    ("PROBE-DROP", "drop", is_late()),
    ("PROBE-ONES", "dead=ones", ONES),
    ("PROBE-CFS", "dead=cfs", CFS),
];

const HEALTHY: &str = "HEALTHY";
const STATUS: &str = "BROKEN-STATUS";
const STALL: &str = "BROKEN-STALL";

/// What becomes of a card at its fault.
#[derive(Clone, Copy)]
enum Then {
    /// It answers, if late, as if nothing were.
    Answers,
    /// It answers with an error status.
    Refuses,
    /// It is dead.
    Dies {
        /// What the log says.
        cause: &'static str,
        /// Its time was over.
        late: bool,
        /// What the log says when it is bound again, if no reset brings it back.
        for_good: Option<&'static str>,
    },
}

impl Then {
    fn for_good(self) -> Option<&'static str> {
        match self {
            Self::Dies { for_good, .. } => for_good,
            _ => None,
        }
    }

    /// What the log says at the fault, and nothing else that begins like it.
    fn said(self) -> (&'static str, &'static str) {
        match self {
            Self::Answers => ("card ", "nothing"),
            Self::Refuses => (
                "card refuses ",
                "card refuses Identify Controller: status 0x006 (Internal Error)",
            ),
            Self::Dies { cause, .. } => ("card is dead: ", cause),
        }
    }
}

/// A card that was found.
struct Found {
    serial: &'static str,
    then: Then,
    function: Function,
    address: u32,
    /// What it answered before its fault.
    before: Answer,
    /// What it answered at its fault, and after what time.
    struck: Option<(Answer, Duration)>,
}

/// A card that is not bound, because its probe failed.
struct Refused {
    serial: &'static str,
    then: Then,
    function: Function,
}

struct Rig {
    working: Vec<Card>,
    probed: Vec<Card>,
    module: PathBuf,
    log: Log,
    found: Vec<Found>,
    refused: Vec<Refused>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let wanted = |(serial, ..): &Card| is_wanted(serial, arguments.few);
    let working: Vec<_> = WORKING.into_iter().filter(wanted).collect();
    let probed: Vec<_> = PROBED.into_iter().filter(wanted).collect();
    if arguments.cards {
        print_cards(&working, &probed);
        return ExitCode::SUCCESS;
    }
    let log = match Log::from_now() {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    // All but the good one.
    let breaking: Vec<_> = working.iter().map(|card| card.0).skip(1).collect();
    let refused: Vec<_> = probed.iter().map(|card| card.0).collect();
    let mut rig = Rig {
        working,
        probed,
        module: arguments.module.unwrap_or_default(),
        log,
        found: Vec::new(),
        refused: Vec::new(),
    };
    let mut ktap = Ktap::new(10 + breaking.len() + refused.len());
    ktap.test("load", || rig.load());
    ktap.test("refused", || rig.find_refused());
    for serial in refused {
        ktap.test(&format!("refused_{serial}"), || rig.check_refused(serial));
    }
    ktap.test("found", || rig.find());
    ktap.test("strike", || rig.strike());
    for serial in breaking {
        ktap.test(&format!("struck_{serial}"), || rig.check_struck(serial));
    }
    ktap.test("bound_again", || rig.bound_again());
    ktap.test("unload_with_dead_cards", || rig.unload_with_dead_cards());
    ktap.test("loaded_again", || rig.loaded_again());
    ktap.test("no_interrupt", || rig.no_interrupt());
    ktap.test("unbind_while_waiting", || rig.unbind_while_waiting());
    ktap.test("said_once", || rig.said_once());
    ExitCode::from(ktap.finish())
}

fn print_cards(working: &[Card], probed: &[Card]) {
    for (serial, fault, _) in working {
        let times = if *serial == STALL { 3 } else { 2 };
        match *fault {
            "" => println!("{serial}"),
            _ => println!("{serial} op=identify,from=3,every=3,times={times},{fault}"),
        }
    }
    for (serial, fault, _) in probed {
        println!("{serial} op=identify,nth=1,{fault}");
    }
}

fn serial_of(answer: &Answer) -> String {
    answer.text(offset_of!(MigdirtyCard, serial), 20)
}

/// The answer without what may change: LIVE and the counters.
fn description(answer: &Answer) -> Vec<u8> {
    let mut bytes = answer.0.clone();
    bytes[offset_of!(MigdirtyCard, flags)] &= !1;
    let counters = offset_of!(MigdirtyCard, commands)..offset_of!(MigdirtyCard, serial);
    bytes[counters].fill(0);
    bytes
}

/// Asks the card at `address`, which is there.
fn ask(address: u32) -> Result<Answer, Stop> {
    let answer = get(&open()?, address)?;
    check_eq!(answer.address(), address, "address of the answer");
    Ok(answer)
}

/// A card that was bound just now answers its first question.
fn is_new(address: u32, serial: &str) -> Outcome {
    let answer = ask(address)?;
    check!(answer.is_live(), "{serial} is not live");
    check_eq!(serial_of(&answer), serial, "serial number");
    check_eq!(answer.commands(), 2, "commands of {serial} since probe");
    check_eq!(answer.failures(), 0, "failures of {serial} since probe");
    Ok(())
}

/// No driver has it and it is stopped, as far as its registers say something.
fn is_left(function: &Function, then: Then) -> Outcome {
    check_eq!(function.driver(), None, "driver of {}", function.address);
    if then.for_good().is_none() {
        return is_quiet(function);
    }
    check_eq!(function.command()? & 4, 0, "bus master of a free card");
    Ok(())
}

fn prefix(function: &Function) -> String {
    format!("{DRIVER} {}: ", function.address)
}

impl Rig {
    fn load(&mut self) -> Outcome {
        module::load(&self.module, PARAMETERS)
            .map_err(|error| Stop::Fail(format!("cannot load the module: {error}")))
    }

    /// How often the log says that a card met its fault; anything else of that kind is an error.
    fn said(&mut self, function: &Function, then: Then) -> Result<usize, Stop> {
        let (kind, what) = then.said();
        let messages = self.log.of(&prefix(function))?;
        let of_kind = messages.iter().filter(|m| m.starts_with(kind));
        let (right, wrong): (Vec<&str>, Vec<&str>) = of_kind.partition(|m| m.contains(what));
        check!(wrong.is_empty(), "the log says {wrong:?}");
        Ok(right.len())
    }

    /// Cards that the driver did not take. They cannot be asked for their serial numbers, so what
    /// the log says of each tells which it is; `bound_again` compares.
    fn find_refused(&mut self) -> Outcome {
        let mut missing = self.probed.clone();
        for function in Function::of_class(CLASS)? {
            if function.driver().is_some() {
                continue;
            }
            // Probe is woken before it is said.
            self.log.wait_for(&prefix(&function), "card ")?;
            let messages = self.log.of(&prefix(&function))?;
            let is = |(_, _, then): &Card| messages.iter().any(|m| m.contains(then.said().1));
            let Some(place) = missing.iter().position(is) else {
                let address = &function.address;
                return Err(Stop::Fail(format!("{address} is not bound: {messages:?}")));
            };
            let (serial, _, then) = missing.remove(place);
            self.refused.push(Refused {
                serial,
                then,
                function,
            });
        }
        let missing: Vec<_> = missing.iter().map(|(serial, ..)| *serial).collect();
        check!(missing.is_empty(), "bound or not there: {missing:?}");
        Ok(())
    }

    fn check_refused(&mut self, serial: &str) -> Outcome {
        let card = self.refused.iter().find(|card| card.serial == serial);
        let card = card.ok_or("not found")?;
        let (function, then) = (card.function.clone(), card.then);
        is_left(&function, then)?;
        check_eq!(self.said(&function, then)?, 1, "times that the log says it");
        let messages = self.log.of(&prefix(&function))?;
        let failed = |m: &&&str| m.starts_with("Identify Controller failed: ");
        check_eq!(messages.iter().filter(failed).count(), 1, "of {messages:?}");
        Ok(())
    }

    fn find(&mut self) -> Outcome {
        let file = open()?;
        let mut next = 0;
        loop {
            let before = match get(&file, next) {
                Ok(answer) => answer,
                Err(Errno::NOENT) => break,
                Err(error) => return Err(error.into()),
            };
            let name = serial_of(&before);
            check!(before.is_live(), "{name} is not live");
            check_eq!(before.failures(), 0, "failures of {name}");
            let known = self.working.iter().find(|card| card.0 == name);
            let &(serial, _, then) = known.ok_or(format!("there is a card {name}"))?;
            let address = before.address();
            next = address + 1;
            self.found.push(Found {
                serial,
                then,
                function: Function::at(address),
                address,
                before,
                struck: None,
            });
        }
        check_eq!(
            self.found.len(),
            self.working.len(),
            "number of bound cards"
        );
        Ok(())
    }

    fn card(&self, serial: &str) -> Result<&Found, Stop> {
        let card = self.found.iter().find(|card| card.serial == serial);
        Ok(card.ok_or(format!("{serial} was not found"))?)
    }

    /// Asks the cards all at once, and the healthy one again and again meanwhile.
    fn ask_all(&mut self) -> Outcome {
        let healthy = self.card(HEALTHY)?.address;
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = scope.spawn(|| -> Outcome {
                while !over.load(Ordering::Relaxed) {
                    check!(ask(healthy)?.is_live(), "the healthy card is not live");
                }
                Ok(())
            });
            let cards = self.found.iter_mut();
            let threads: Vec<_> = cards
                .filter(|card| card.serial != HEALTHY)
                .map(|card| {
                    scope.spawn(move || -> Outcome {
                        let start = Instant::now();
                        card.struck = Some((ask(card.address)?, start.elapsed()));
                        Ok(())
                    })
                })
                .collect();
            let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            over.store(true, Ordering::Relaxed);
            watch.join().map_err(|_| "the watching thread panicked")??;
            results
                .into_iter()
                .try_for_each(|result| result.map_err(|_| "a thread panicked")?)
        })
    }

    fn strike(&mut self) -> Outcome {
        self.ask_all()?;
        let healthy = ask(self.card(HEALTHY)?.address)?;
        check!(healthy.is_live(), "the healthy card is not live");
        check_eq!(healthy.failures(), 0, "failures of the healthy card");
        Ok(())
    }

    /// What a card answered at its fault, what the log says, and that it stays so.
    fn check_struck(&mut self, serial: &str) -> Outcome {
        let card = self.card(serial)?;
        let (function, then, address) = (card.function.clone(), card.then, card.address);
        let (answer, time) = card.struck.clone().ok_or("it did not answer")?;
        let before = card.before.clone();
        check_eq!(
            description(&answer),
            description(&before),
            "what it says it is"
        );
        check!(
            time < 4 * LIMIT,
            "it had {LIMIT:?}, the answer took {time:?}"
        );

        let (live, completed, failed) = match then {
            Then::Answers => (true, 1, 0),
            Then::Refuses => (true, 1, 1),
            Then::Dies { late, .. } => (false, 0, u64::from(late)),
        };
        check_eq!(answer.is_live(), live, "live");
        check_eq!(answer.commands(), before.commands() + completed, "commands");
        check_eq!(answer.failures(), before.failures() + failed, "failures");
        let master = if live { 4 } else { 0 };
        check_eq!(function.command()? & 4, master, "bus master");
        let times = usize::from(!matches!(then, Then::Answers));
        if times == 1 {
            // Whoever waits is woken before it is said.
            self.log.wait_for(&prefix(&function), then.said().1)?;
        }

        let again = ask(address)?;
        check_eq!(
            description(&again),
            description(&before),
            "what it says it is"
        );
        check_eq!(again.is_live(), live, "live when asked again");
        check_eq!(
            again.commands(),
            answer.commands() + u64::from(live),
            "commands when asked again"
        );
        check_eq!(
            again.failures(),
            answer.failures(),
            "failures when asked again"
        );
        check_eq!(
            self.said(&function, then)?,
            times,
            "times that the log says it"
        );
        Ok(())
    }

    fn bound_again(&mut self) -> Outcome {
        for card in &self.found {
            match card.then {
                Then::Dies { for_good: None, .. } => {
                    card.function.unbind(DRIVER)?;
                    is_quiet(&card.function)?;
                    card.function.bind(DRIVER)?;
                    is_new(card.address, card.serial)?;
                }
                // It stays bound and dead until the module is unloaded.
                Then::Dies { .. } => check!(!ask(card.address)?.is_live(), "{}", card.serial),
                _ => check!(ask(card.address)?.is_live(), "{} is not live", card.serial),
            }
        }
        for card in &self.refused {
            let bound = card.function.bind(DRIVER);
            let Some(why) = card.then.for_good() else {
                bound?;
                is_new(card.function.number()?, card.serial)?;
                continue;
            };
            check!(bound.is_err(), "{} was bound", card.serial);
            is_left(&card.function, card.then)?;
            self.log.wait_for(&prefix(&card.function), why)?;
        }
        Ok(())
    }

    fn unload_with_dead_cards(&mut self) -> Outcome {
        self.ask_all()?;
        for card in &self.found {
            let Some((answer, _)) = &card.struck else {
                continue;
            };
            let dead = matches!(card.then, Then::Dies { .. });
            check_eq!(answer.is_live(), !dead, "{} is live", card.serial);
        }
        self.unload()
    }

    fn unload(&mut self) -> Outcome {
        module::unload(DRIVER)?;
        gone()?;
        let found = self.found.iter().map(|card| (&card.function, card.then));
        let refused = self.refused.iter().map(|card| (&card.function, card.then));
        found
            .chain(refused)
            .try_for_each(|(function, then)| is_left(function, then))
    }

    fn loaded_again(&mut self) -> Outcome {
        self.load()?;
        let found = self.found.iter();
        let found = found.map(|card| (card.serial, &card.function, card.then));
        let refused = self.refused.iter();
        let refused = refused.map(|card| (card.serial, &card.function, card.then));
        for (serial, function, then) in found.chain(refused) {
            match then.for_good() {
                None => is_new(function.number()?, serial)?,
                Some(why) => {
                    self.log.wait_for(&prefix(function), why)?;
                    is_left(function, then)?;
                }
            }
        }
        Ok(())
    }

    /// A card that completes a command and says nothing.
    fn no_interrupt(&mut self) -> Outcome {
        let card = self.card(STATUS)?;
        let (function, address) = (card.function.clone(), card.address);
        let before = ask(address)?;
        check!(function.mask_interrupts()?, "{STATUS} has no MSI-X");
        let answer = ask(address)?;
        check!(!answer.is_live(), "live without interrupts");
        check_eq!(answer.commands(), before.commands(), "commands");
        check_eq!(answer.failures(), before.failures() + 1, "failures");
        let cause = "no interrupt for its answer to admin command 0x06 in 10000 ms;";
        self.log.wait_for(&prefix(&function), cause)?;
        check_eq!(function.command()? & 4, 0, "bus master");
        function.unbind(DRIVER)?;
        is_quiet(&function)?;
        function.bind(DRIVER)?;
        is_new(address, STATUS)
    }

    /// Whoever waits for a card that is unbound is told that it is gone, at once.
    fn unbind_while_waiting(&mut self) -> Outcome {
        let card = self.card(STALL)?;
        let (function, address, then) = (card.function.clone(), card.address, card.then);
        let deaths = self.said(&function, then)?;
        thread::scope(|scope| -> Outcome {
            let (send, receive) = mpsc::channel();
            let thread = scope.spawn(move || {
                let file = open()?;
                send.send(rustix::thread::gettid())?;
                // The next card, when this one is gone.
                let other = get(&file, address).map(|answer| answer.address());
                check!(other != Ok(address), "a card that is gone answered");
                Ok(())
            });
            let id = receive.recv()?;
            let path = format!("/proc/self/task/{}/stat", id.as_raw_nonzero());
            // Uninterruptible: it waits for the command, the only thing to wait for. It may end between the
            // two questions.
            let waits = |stat: String| stat.contains(") D ");
            while !thread.is_finished() && !fs::read_to_string(&path).is_ok_and(waits) {
                thread::yield_now();
            }
            function.unbind(DRIVER)?;
            thread.join().map_err(|_| "the thread panicked")?
        })?;
        check_eq!(self.said(&function, then)?, deaths, "deaths in the log");
        is_quiet(&function)?;
        function.bind(DRIVER)?;
        is_new(address, STALL)?;
        self.unload()
    }

    /// Over all of the run the log says once for each fault what happened, and of good cards nothing.
    fn said_once(&mut self) -> Outcome {
        let found = self.found.iter();
        let found: Vec<_> = found
            .map(|card| (card.serial, card.function.clone(), card.then))
            .collect();
        for (serial, function, then) in found {
            let times = match then {
                Then::Answers => 0,
                // The same thing of the same binding is not said twice.
                Then::Refuses
                | Then::Dies {
                    for_good: Some(_), ..
                } => 1,
                Then::Dies { .. } => 2,
            };
            check_eq!(self.said(&function, then)?, times, "messages of {serial}");
        }
        Ok(())
    }
}
