// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Track Memory Changes and Tracked Memory Changes: starting, stopping and reading the dirty log of
//! another function (NVMe Base 2.1, sections 5.1.26 and 5.1.27).
//!
//! The log belongs to the target's guest memory and outlives resets of the target; only its client's
//! leaving, a stop, or a reset of the administrative controller ends it. It is read without the
//! target's lock, so the target goes on working.

use std::sync::Arc;

use zeroshift_nvme::command::Command;
use zeroshift_nvme::hmlm::track_receive::{ReportMut, TrackReceive};
use zeroshift_nvme::hmlm::track_send::{self, Capability, Header};
use zeroshift_nvme::hmlm::{MemoryRange, GRANULE};
use zeroshift_nvme::status::Status;

use super::Migration;
use crate::nvme::admin::{Answer, Context, MAX_TRANSFER};
use crate::tracking::{DirtyLog, Range, StartError};

/// The smallest granule as a power of two: granularities of the commands count from it.
const GRANULE_SHIFT: u8 = GRANULE.trailing_zeros() as u8;

impl Migration {
    /// Track Memory Changes, start.
    pub(super) fn start_tracking(
        &self,
        target: usize,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<Answer, Status> {
        let (id, function) = &self.fleet.functions[target];
        {
            let state = function.lock();
            if !state.kind.phase().is_running() {
                return Err(Status::CONTROLLER_SUSPENDED);
            }
            if state.memory.log().is_some() {
                return Err(Status::INVALID_CONTROLLER_IDENTIFIER);
            }
        }
        let (header, list) = self.read_request(command, context)?;
        let ranges: Result<Vec<_>, _> = header.ranges(&list).collect();
        let ranges = ranges.map_err(|error| {
            tracing::debug!("tracking of controller {id}: {error}");
            Status::INVALID_FIELD
        })?;
        let range = |range: &MemoryRange| Range {
            start: range.address,
            granules: range.granules,
        };
        let ranges: Vec<_> = ranges.iter().map(range).collect();
        // The header was checked against MAXMRTG, which is at most 9.
        let shift = header.granularity + GRANULE_SHIFT;
        let limits = self.fleet.limits.get();
        let log = match DirtyLog::start(&ranges, shift, self.fleet.limits.log()) {
            Ok(log) => log,
            Err(error) => {
                tracing::debug!("tracking of controller {id}: {error}");
                let StartError::NotEnoughResources { granule_shift } = error else {
                    return Err(Status::INVALID_FIELD);
                };
                let usable = granule_shift
                    .and_then(|shift| shift.checked_sub(GRANULE_SHIFT))
                    .filter(|granularity| *granularity <= limits.max_granule);
                let capability = match usable {
                    Some(granularity) => Capability {
                        granularity: granularity.into(),
                        descriptors: self.descriptors_left(),
                    },
                    // No granule helps: nothing of that size can be tracked.
                    None => Capability {
                        granularity: limits.max_granule.into(),
                        descriptors: 0,
                    },
                };
                let (dw0, dw1) = capability.to_dwords();
                return Ok(Answer::Refused {
                    status: Status::NOT_ENOUGH_RESOURCES,
                    dw0,
                    dw1,
                });
            }
        };
        tracing::debug!(
            "controller {id}: tracking {} ranges in granules of {} bytes",
            log.descriptors(),
            log.granule()
        );
        let mut state = function.lock();
        // It may have been suspended, or reset, since it was looked at.
        if !state.kind.phase().is_running() {
            return Err(Status::CONTROLLER_SUSPENDED);
        }
        state.memory.set_log(Some(Arc::new(log)));
        Ok(Answer::Now(0))
    }

    /// Reads the data structure of a start: the header, then as much list as the header says.
    fn read_request(
        &self,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<(Header, Vec<u8>), Status> {
        let mut raw = [0; track_send::HEADER];
        // What PRP2 means depends on a length that is not known before the header is; it must not be
        // needed for the header.
        let in_page = command.prp1 % context.page_size;
        if in_page + raw.len() as u64 > context.page_size {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        context.receive(command, &mut raw)?;
        let header = Header::decode(&raw)?;
        let limits = self.fleet.limits.get();
        let granules = limits.min_granule..=limits.max_granule;
        if !granules.contains(&header.granularity) || header.descriptors > self.descriptors_left() {
            return Err(Status::INVALID_FIELD);
        }
        let bytes = header.list_bytes() + raw.len() as u64;
        if bytes > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        let mut data = vec![0; bytes as usize];
        context.receive(command, &mut data)?;
        data.drain(..raw.len());
        Ok((header, data))
    }

    /// Descriptors that are free: this controller is the only one that tracks, so both limits are
    /// about the sum over its targets.
    fn descriptors_left(&self) -> u32 {
        let limits = self.fleet.limits.get();
        let limit = limits.max_ranges.min(limits.max_ranges_subsystem);
        let functions = self.fleet.functions.iter();
        let used = functions.fold(0usize, |sum, (_, function)| {
            let state = function.lock();
            sum + state.memory.log().map_or(0, |log| log.descriptors())
        });
        u32::from(limit).saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }

    /// Track Memory Changes, stop.
    pub(super) fn stop_tracking(&self, target: usize) -> Result<Answer, Status> {
        let mut state = self.fleet.functions[target].1.lock();
        if !state.kind.phase().is_running() {
            return Err(Status::CONTROLLER_SUSPENDED);
        }
        if state.memory.log().is_none() {
            return Err(Status::INVALID_CONTROLLER_IDENTIFIER);
        }
        state.memory.set_log(None);
        Ok(Answer::Now(0))
    }

    /// Tracked Memory Changes.
    pub(super) fn report_tracked(
        &self,
        target: usize,
        receive: TrackReceive,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<Answer, Status> {
        let (id, function) = &self.fleet.functions[target];
        let (log, suspended) = {
            let state = function.lock();
            let log = state.memory.log().map(Arc::clone);
            // Before the harvest: what a target writes until it is quiet has to be in a report that
            // says "suspended", or in one before.
            (log, state.kind.phase().quiet().is_some())
        };
        let log = log.ok_or(Status::INVALID_CONTROLLER_IDENTIFIER)?;
        let bytes = receive.dwords * 4;
        if bytes > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        let mut buffer = vec![0; bytes as usize];
        let granularity = log.granule().trailing_zeros() as u16 - u16::from(GRANULE_SHIFT);
        let mut report =
            ReportMut::new(&mut buffer, *id, granularity).ok_or(Status::INVALID_FIELD)?;
        let room = report.room();
        if room == 0 && !log.is_clean() {
            return Err(Status::INVALID_FIELD);
        }
        let mut taken = Vec::new();
        let more = log.harvest(room, &mut |address, granules| {
            taken.push((address, granules));
            // There is room: the log gives no more than was asked for.
            let _ = report.push(MemoryRange { address, granules });
        });
        let size = report.finish(suspended, more);
        let sent = context.send_start(command, bytes, &buffer[..size]);
        sent.inspect_err(|_| {
            // The host did not get it, so it stays in the log. There is one marker at a time: who has
            // the target's lock.
            let _state = function.lock();
            for &(address, granules) in &taken {
                log.mark(address, u64::from(granules) * log.granule());
            }
        })?;
        Ok(Answer::Now(0))
    }
}
