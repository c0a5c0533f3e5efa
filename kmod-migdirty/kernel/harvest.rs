// SPDX-License-Identifier: GPL-2.0-only

//! Reading a function's log: from the card into kernel memory, and from there to whoever asked.
//!
//! A card forgets what it reports, so a report that cannot be understood means that the log is lost.
//! What was harvested is kept until it is handed out.

use crate::{
    admin_queue::Data,
    card::command_timeout_ms,
    function::Function,
    logic::{
        log::Harvest,
        pass::{Next, Pass},
        span::Span,
    },
    nvme::hmlm::track_receive::{Report, TrackReceive, DESCRIPTOR, HEADER},
    operations::{Failure, Protocol},
};
use kernel::prelude::*;

/// What a harvest found.
#[derive(Clone, Copy)]
pub(crate) struct Harvested {
    /// The function is suspended, and stays so, and all that it wrote was taken.
    pub(crate) complete: bool,
    /// It was thought to be suspended, and is not.
    pub(crate) ran: bool,
}

/// What one report said.
struct Taken {
    /// First and last byte, in the order of the report.
    ends: Option<(u64, u64)>,
    bytes: u64,
    more: bool,
    suspended: bool,
}

impl Function {
    /// Takes what the card has: of a suspended function all of it, of a running one at most one pass
    /// over what is tracked. `EINVAL` no log, `EIO` the log is lost.
    pub(crate) fn log_harvest(&self) -> Result<Harvested> {
        let mut protocol = self.protocol.lock();
        // Also when a log that was started meanwhile found it to run: nobody was told that.
        let was_suspended = protocol.log.may_be_suspended();
        match protocol.log.harvest() {
            Harvest::NoLog => return Err(EINVAL),
            Harvest::Lost => return Err(EIO),
            Harvest::Waits => {
                // It waits because the function was suspended when somebody looked last.
                protocol.log.doubt();
                self.start_late(&mut protocol)?;
                if protocol.log.is_suspended() {
                    return Ok(Harvested {
                        complete: !protocol.mend,
                        ran: false,
                    });
                }
            }
            Harvest::Receive => {}
        }
        let mut pass = Pass::new(protocol.tracked);
        let suspended = loop {
            let taken = self.take_report(&mut protocol)?;
            self.note(|status| {
                status.dirty_bytes = status.dirty_bytes.wrapping_add(taken.bytes);
            });
            match pass.report(taken.ends, taken.bytes, taken.more, taken.suspended) {
                Next::Again => {}
                Next::Enough | Next::Complete => break taken.suspended,
                Next::Nonsense => {
                    self.lose_log(&mut protocol, "the card reports more than there can be");
                    return Err(EIO);
                }
            }
        };
        self.note(|status| status.harvests = status.harvests.wrapping_add(1));
        // The card knows better than we do: somebody else may have reset the function.
        if suspended {
            protocol.log.suspend();
            self.show(&protocol);
        } else if protocol.log.may_be_suspended() {
            self.runs(&mut protocol);
        }
        Ok(Harvested {
            complete: suspended && !protocol.mend,
            ran: was_suspended && !suspended,
        })
    }

    /// Sends one Track Receive and keeps what it reports. After an error the log is lost.
    fn take_report(&self, protocol: &mut Protocol) -> Result<Taken> {
        if !self.is_free(protocol) {
            // Nothing is lost by not asking.
            return Err(ETIMEDOUT);
        }
        let size = self.card().transfer();
        let command = TrackReceive {
            controller: self.controller(),
            // CAST: widens.
            dwords: (size / 4) as u64,
        };
        let data = Data::Receive(size);
        if protocol.buffer.len() < size && protocol.buffer.resize(size, 0, GFP_KERNEL).is_err() {
            // Nothing was asked for yet, so nothing is lost.
            return Err(ENOMEM);
        }
        let command = command.to_command(0, 0);
        let answer = self.command(protocol, command, data, command_timeout_ms());
        let failure = match &answer {
            Ok(answer) => answer.result().err().map(Failure::from),
            Err(error) => Some(Failure::Lost(*error)),
        };
        if let Some(failure) = failure {
            drop(answer);
            return Err(match failure {
                Failure::Lost(error) => {
                    self.lose_log(protocol, "the card did not answer Track Receive");
                    error
                }
                Failure::Refused(status) => {
                    self.card().report("Track Receive", status);
                    self.lose_log(protocol, "the card refused Track Receive");
                    EIO
                }
            });
        }
        let answer = answer?;
        let mut buffer = core::mem::replace(&mut protocol.buffer, KVVec::new());
        let length = fetch(&mut buffer, size, |offset, to| answer.read(offset, to));
        drop(answer);
        let result = length.map_err(|_| "the card is gone").and_then(|length| {
            let report = buffer.get(..length).unwrap_or(&[]);
            self.keep(report)
        });
        protocol.buffer = buffer;
        result.map_err(|why| {
            self.lose_log(protocol, why);
            EIO
        })
    }

    /// Keeps what a report says, or says why it cannot be.
    fn keep(&self, report: &[u8]) -> Result<Taken, &'static str> {
        let report = Report::decode(report).map_err(|malformed| malformed.what)?;
        if report.controller != self.controller() {
            return Err("the card reports another function");
        }
        let mut taken = Taken {
            ends: None,
            bytes: 0,
            more: report.more,
            suspended: report.suspended,
        };
        let mut dirty = self.dirty.lock();
        for range in report.ranges() {
            let range = range.map_err(|malformed| malformed.what)?;
            // Never `None`: `ranges` has checked it.
            let length = range.bytes(report.granularity).unwrap_or(0);
            let Some(span) = Span::of_length(range.address, length) else {
                continue;
            };
            dirty.mark(span).map_err(|_| "no memory")?;
            taken.bytes = taken.bytes.saturating_add(span.bytes());
            let (first, last) = taken.ends.unwrap_or((span.first(), span.last()));
            taken.ends = Some((first, last.max(span.last())));
        }
        Ok(taken)
    }

    /// Hands out what was harvested of `span`, ascending, and forgets it, until `dirty` returns
    /// `false`: that part and the rest stays. Says whether it never did. `EINVAL` no log, `EIO` the
    /// log is lost.
    pub(crate) fn log_take(&self, span: Span, dirty: impl FnMut(Span) -> bool) -> Result<bool> {
        let mut record = self.dirty.lock();
        if !self.card().is_live() {
            record.lose();
        }
        record.take(span, dirty)
    }

    /// Takes back what [`Self::log_take`] has handed out and nobody has got. Without memory for it
    /// the log is lost.
    pub(crate) fn log_put_back(&self, spans: &[Span]) {
        let mut protocol = self.protocol.lock();
        let mut dirty = self.dirty.lock();
        let kept = spans
            .iter()
            .try_for_each(|span| dirty.mark(*span).map(drop));
        drop(dirty);
        if kept.is_err() {
            self.lose_log(&mut protocol, "no memory");
        }
    }

    /// Whether everything that was harvested was handed out.
    pub(crate) fn has_no_dirty(&self) -> bool {
        self.dirty.lock().is_empty()
    }
}

/// Copies a report into `buffer` with `read`, and no more than it says that it has. Returns its
/// length, at most `size`.
fn fetch(
    buffer: &mut [u8],
    size: usize,
    read: impl Fn(usize, &mut [u8]) -> Result,
) -> Result<usize> {
    /// Number of Tracked Memory Changed Descriptors (NTMCD).
    const COUNT: usize = 4;

    read(0, buffer.get_mut(..HEADER).ok_or(EIO)?)?;
    let count = buffer.get(COUNT..).and_then(|rest| rest.first_chunk::<4>());
    // CAST: widens.
    let count = u32::from_le_bytes(*count.ok_or(EIO)?) as usize;
    // A count beyond the buffer is refused by whoever decodes it.
    let list = count
        .saturating_mul(DESCRIPTOR)
        .min(size.saturating_sub(HEADER));
    let end = HEADER + list;
    read(HEADER, buffer.get_mut(HEADER..end).ok_or(EIO)?)?;
    Ok(end)
}
