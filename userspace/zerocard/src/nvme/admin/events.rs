// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Asynchronous events and the requests that wait for them (NVMe Base 2.1, section 5.1.2).
//!
//! Owned by the admin command set. Requests are held up to AERL; an event is reported through one
//! of them, and then its type stays masked until the host reads the log page that goes with it.
//! Equal events merge, so however often a guest provokes one, nothing grows.

use std::collections::VecDeque;

use zeroshift_nvme::command::log;
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::status::Status;

use crate::nvme::migration::state::{self, Events as Image};
use crate::pci::Refused;

/// Asynchronous Event Request Limit, 0's based.
pub(super) const LIMIT: u8 = 3;

/// An asynchronous event: type, information and log page of the completion's dword 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    kind: u8,
    information: u8,
    log_page: u8,
}

impl Event {
    /// Error status: write to invalid doorbell register.
    pub(super) const INVALID_DOORBELL_REGISTER: Self = Self::error(0x00);
    /// Error status: invalid doorbell write value.
    pub(super) const INVALID_DOORBELL_VALUE: Self = Self::error(0x01);
    /// SMART / health status: temperature threshold.
    pub(super) const TEMPERATURE_THRESHOLD: Self = Self {
        kind: 1,
        information: 0x01,
        log_page: log::SMART_HEALTH,
    };

    const fn error(information: u8) -> Self {
        Self {
            kind: 0,
            information,
            log_page: log::ERROR_INFORMATION,
        }
    }

    fn save(self) -> state::Event {
        [self.kind, self.information, self.log_page]
    }

    fn restore([kind, information, log_page]: state::Event) -> Option<Self> {
        let event = Self {
            kind,
            information,
            log_page,
        };
        let known = [
            Self::INVALID_DOORBELL_REGISTER,
            Self::INVALID_DOORBELL_VALUE,
            Self::TEMPERATURE_THRESHOLD,
        ];
        known.contains(&event).then_some(event)
    }

    fn dword(self) -> u32 {
        u32::from(self.kind) | u32::from(self.information) << 8 | u32::from(self.log_page) << 16
    }
}

/// Held requests, events to report, and masked types.
#[derive(Default)]
pub(super) struct Events {
    requests: VecDeque<u16>,
    pending: VecDeque<Event>,
    /// Events that were reported and whose log page was not read since.
    reported: Vec<Event>,
}

impl Events {
    /// Holds a request.
    pub(super) fn hold(&mut self, cid: u16) -> Result<(), Status> {
        if self.holds(cid) {
            return Err(Status::COMMAND_ID_CONFLICT);
        }
        if self.requests.len() > usize::from(LIMIT) {
            return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED);
        }
        self.requests.push_back(cid);
        Ok(())
    }

    /// All of it, for a controller state.
    pub(super) fn save(&self) -> Image {
        Image {
            requests: self.requests.iter().copied().collect(),
            pending: self.pending.iter().map(|event| event.save()).collect(),
            reported: self.reported.iter().map(|event| event.save()).collect(),
        }
    }

    /// What a controller state has, if it can have come about.
    pub(super) fn restore(image: &Image) -> Result<Self, Refused> {
        let mut events = Self::default();
        for &cid in &image.requests {
            events
                .hold(cid)
                .map_err(|_| Refused::new("event requests that cannot all be outstanding"))?;
        }
        let known = |list: &[state::Event]| -> Option<Vec<Event>> {
            let mut known = Vec::new();
            for event in list {
                let event = Event::restore(*event)?;
                if known.contains(&event) {
                    return None;
                }
                known.push(event);
            }
            Some(known)
        };
        let unknown = || Refused::new("an event that does not exist, or twice");
        events.pending = known(&image.pending).ok_or_else(unknown)?.into();
        events.reported = known(&image.reported).ok_or_else(unknown)?;
        Ok(events)
    }

    /// Whether a request with this command identifier is held.
    pub(super) fn holds(&self, cid: u16) -> bool {
        self.requests.contains(&cid)
    }

    /// Gives up a held request. Says whether there was one.
    pub(super) fn release(&mut self, cid: u16) -> bool {
        let before = self.requests.len();
        self.requests.retain(|&held| held != cid);
        self.requests.len() < before
    }

    /// Something happened.
    pub(super) fn raise(&mut self, event: Event) {
        if !self.pending.contains(&event) {
            self.pending.push_back(event);
        }
    }

    /// The host read a log page without Retain Asynchronous Event.
    pub(super) fn log_page_read(&mut self, page: u8) {
        self.reported.retain(|event| event.log_page != page);
    }

    /// Completes a request with an event, when there are both.
    pub(super) fn report(&mut self) -> Option<Completion> {
        let masked = |event: &Event| self.reported.iter().any(|done| done.kind == event.kind);
        let at = self.pending.iter().position(|event| !masked(event))?;
        let cid = self.requests.pop_front()?;
        let event = self.pending.remove(at)?;
        self.reported.push(event);
        Some(Completion {
            cid,
            dw0: event.dword(),
            ..Completion::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_held_up_to_the_limit() {
        let mut events = Events::default();
        for cid in 0..4 {
            events.hold(cid).unwrap();
        }
        assert_eq!(events.hold(9), Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED));
        assert_eq!(events.hold(2), Err(Status::COMMAND_ID_CONFLICT));
        assert!(events.release(2) && !events.release(2));
        events.hold(9).unwrap();
        assert_eq!(events.report(), None);
    }

    #[test]
    fn a_type_is_masked_until_its_log_page_is_read() {
        let mut events = Events::default();
        events.raise(Event::INVALID_DOORBELL_VALUE);
        events.raise(Event::INVALID_DOORBELL_VALUE);
        events.raise(Event::INVALID_DOORBELL_REGISTER);
        events.raise(Event::TEMPERATURE_THRESHOLD);
        assert_eq!(events.report(), None, "nobody asked yet");
        for cid in 10..14 {
            events.hold(cid).unwrap();
        }
        let first = events.report().unwrap();
        assert_eq!((first.cid, first.dw0), (10, 0x0001_0100));
        let second = events.report().unwrap();
        assert_eq!(
            (second.cid, second.dw0),
            (11, 0x0002_0101),
            "another type passes"
        );
        assert_eq!(events.report(), None);
        events.log_page_read(log::SMART_HEALTH);
        assert_eq!(events.report(), None);
        events.log_page_read(log::ERROR_INFORMATION);
        let third = events.report().unwrap();
        assert_eq!((third.cid, third.dw0), (12, 0x0001_0000));
        events.log_page_read(log::ERROR_INFORMATION);
        assert_eq!(events.report(), None);
    }
}
