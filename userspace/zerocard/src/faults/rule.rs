// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a fault rule says, and its one canonical text.
//!
//! Made by [`super::parse`], which is the only place that checks values; a rule that exists makes
//! sense. Does not count anything: that is the stage's.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::status::Status;

use super::names;

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    /// The function that it is for; `None` means every function, each with counts of its own.
    pub(super) function: Option<String>,
    pub(super) filter: Filter,
    pub(super) schedule: Schedule,
    /// Whether the command is executed before the fault shows.
    pub(super) after: bool,
    pub(super) action: Action,
}

impl Rule {
    /// Name of the function that it is for; `None` means every function.
    pub(crate) fn function(&self) -> Option<&str> {
        self.function.as_deref()
    }
}

/// Which commands a rule is for; `None` matches all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Admin queue, or I/O queues.
    pub(super) admin: Option<bool>,
    pub(super) opcode: Option<u8>,
    /// CDW10 bits 7:0 (SEL, CNS, FID, LID).
    pub(super) select: Option<u8>,
    /// All of CDW10.
    pub(super) cdw10: Option<u32>,
}

/// At which of the matching occurrences a rule fires.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Schedule {
    /// The first occurrence that counts, from 1.
    pub(super) from: u64,
    /// Each how many-th occurrence from there on; at least 1.
    pub(super) every: u64,
    /// How often at most.
    pub(super) times: Option<u64>,
    /// With which probability, above 0 and at most 1.
    pub(super) probability: Option<f64>,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nanoseconds, both ends included.
    Delay {
        min: u64,
        max: u64,
    },
    Status(Status),
    Stall,
    Drop,
    Disconnect,
    Die(Death),
    CorruptCompletion(Field),
    CorruptState,
    /// Loses a dirty mark. The schedule counts marks, not commands.
    Forget,
    /// A write of a register arrives so many nanoseconds later. The schedule counts such writes.
    Late(u64),
}

impl Action {
    /// Whether it is for commands.
    pub(super) fn is_of_commands(self) -> bool {
        !matches!(self, Self::Forget | Self::Late(_))
    }
}

/// How a card is dead while its connection stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Death {
    /// Every register reads as all ones, as with a card that fell off the bus.
    Ones,
    /// CSTS.CFS is set; no command completes.
    Cfs,
}

/// A field of completion entries that a broken card gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// Command Identifier: of no command of the driver.
    Cid,
    /// Submission Queue Identifier: of a queue that is not there.
    Sqid,
    /// Submission Queue Head Pointer: outside any queue.
    Sqhd,
    /// Phase Tag: the entry looks as if it were not written.
    Phase,
}

impl Field {
    /// Breaks the field in an entry that is otherwise ready to be written.
    pub(crate) fn corrupt(self, entry: &mut Completion) {
        match self {
            // Drivers number commands and queues from low numbers up.
            Self::Cid => entry.cid ^= 0x8000,
            Self::Sqid => entry.sqid ^= 0x8000,
            Self::Sqhd => entry.sqhd ^= 0x8000,
            Self::Phase => entry.phase = !entry.phase,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(function) = &self.function {
            write!(f, "function={function},")?;
        }
        let Filter {
            admin,
            opcode,
            select,
            cdw10,
        } = self.filter;
        let name = admin.zip(opcode).and_then(|(a, o)| names::name(a, o));
        match (name, opcode) {
            (Some(name), _) => write!(f, "op={name},")?,
            (None, opcode) => {
                if let Some(admin) = admin {
                    write!(f, "queue={},", if admin { "admin" } else { "io" })?;
                }
                if let Some(opcode) = opcode {
                    write!(f, "op={opcode:#04x},")?;
                }
            }
        }
        if let Some(select) = select {
            write!(f, "sel={select},")?;
        }
        if let Some(cdw10) = cdw10 {
            write!(f, "cdw10={cdw10},")?;
        }
        let forget = self.action == Action::Forget;
        let Schedule {
            from,
            every,
            times,
            probability,
        } = self.schedule;
        match (every, times) {
            (1, Some(1)) if !forget => write!(f, "nth={from},")?,
            _ => {
                // Where the parser fills the same in, it is left out.
                if from != every {
                    write!(f, "from={from},")?;
                }
                if every != 1 && !forget {
                    write!(f, "every={every},")?;
                }
                if let Some(times) = times {
                    write!(f, "times={times},")?;
                }
            }
        }
        if let Some(probability) = probability {
            write!(f, "p={probability},")?;
        }
        let implied = matches!(
            self.action,
            Action::CorruptCompletion(_) | Action::CorruptState
        );
        if self.after && !implied {
            write!(f, "after,")?;
        }
        match self.action {
            Action::Delay { min, max } if min == max => write!(f, "delay={}", Time(min)),
            Action::Delay { min, max } => write!(f, "delay={}..{}", Time(min), Time(max)),
            Action::Status(status) => {
                let dnr = if status.do_not_retry() { ",dnr" } else { "" };
                let (code_type, code) = (status.code_type(), status.code());
                write!(f, "status={code_type}/{code:#04x}{dnr}")
            }
            Action::Stall => f.write_str("stall"),
            Action::Drop => f.write_str("drop"),
            Action::Disconnect => f.write_str("disconnect"),
            Action::Die(Death::Ones) => f.write_str("dead=ones"),
            Action::Die(Death::Cfs) => f.write_str("dead=cfs"),
            Action::CorruptCompletion(Field::Cid) => f.write_str("corrupt=cid"),
            Action::CorruptCompletion(Field::Sqid) => f.write_str("corrupt=sqid"),
            Action::CorruptCompletion(Field::Sqhd) => f.write_str("corrupt=sqhd"),
            Action::CorruptCompletion(Field::Phase) => f.write_str("corrupt=phase"),
            Action::CorruptState => f.write_str("corrupt=state"),
            Action::Forget => write!(f, "forget={every}"),
            Action::Late(time) => write!(f, "late={}", Time(time)),
        }
    }
}

/// Nanoseconds in the largest unit that divides them.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0ns"),
            n if n % 1_000_000_000 == 0 => write!(f, "{}s", n / 1_000_000_000),
            n if n % 1_000_000 == 0 => write!(f, "{}ms", n / 1_000_000),
            n if n % 1_000 == 0 => write!(f, "{}us", n / 1_000),
            n => write!(f, "{n}ns"),
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
