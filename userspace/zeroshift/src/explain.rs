// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What an error number of `/dev/migdirty` means for what was asked, and what to do about it.

use crate::address::Address;
use crate::backend::Backend;
use anyhow::{anyhow, Error};
use migdirty_uapi::{MIGDIRTY_FUNCTION_OWNED_BY_VFIO, MIGDIRTY_FUNCTION_SUSPENDED};
use rustix::io::Errno;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Describe,
    StartLog,
    SyncLog,
    StopLog,
    Pause,
    Resume,
    Save,
    Restore,
    Identify,
}

impl Request {
    fn text(self) -> &'static str {
        match self {
            Self::Describe => "ask about",
            Self::StartLog => "start a log of",
            Self::SyncLog => "read the log of",
            Self::StopLog => "stop the log of",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Save => "save",
            Self::Restore => "restore",
            Self::Identify => "get the identity of",
        }
    }

    fn needs_a_pause(self) -> bool {
        matches!(self, Self::Save | Self::Restore)
    }
}

/// The error for people: object, cause, next step.
pub(crate) fn explain(
    backend: &dyn Backend,
    request: Request,
    address: Address,
    errno: Errno,
) -> Error {
    let flags = || backend.function(address).map_or(0, |info| info.flags);
    let why = match (errno, request) {
        (Errno::NOENT, _) => {
            "no card manages it; 'zeroshift list --functions' shows the functions \
             that are managed, 'zeroshift list' the cards and how to bind them"
                .to_owned()
        }
        (Errno::BUSY, _) if flags() & MIGDIRTY_FUNCTION_OWNED_BY_VFIO != 0 => {
            "a VFIO user, such as a virtual machine, has it open; ask that one (QEMU: 'migrate'), \
             or end it first"
                .into()
        }
        (Errno::BUSY, request)
            if request.needs_a_pause() && flags() & MIGDIRTY_FUNCTION_SUSPENDED == 0 =>
        {
            format!("it runs; 'zeroshift pause {address}' first")
        }
        (Errno::BUSY, _) => {
            format!("somebody else has it at this moment; 'zeroshift status {address}' shows who")
        }
        (Errno::IO, Request::SyncLog) => format!(
            "the log is lost, or the card does not answer ('dmesg' says why); count all of its \
             memory as written, 'zeroshift log stop {address}', and start a new log"
        ),
        (Errno::IO, _) => "its card does not answer, or refused ('dmesg' says which); 'zeroshift \
             list' shows the card's state"
            .into(),
        (Errno::ALREADY, Request::StartLog) => {
            format!("it has a log; 'zeroshift log stop {address}' ends it")
        }
        (Errno::INVAL, Request::StartLog) => "the ranges overlap, or are not multiples of 4096 \
             bytes, or the granule is no power of two from 4096 on"
            .into(),
        (Errno::INVAL, Request::SyncLog) => {
            format!("it has no log; 'zeroshift log start {address} --range IOVA+LENGTH' starts one")
        }
        (Errno::NOSPC, Request::StartLog) => "the card cannot track that much, even with its \
             coarsest granule; ask for less, or stop the logs of other functions ('zeroshift list' \
             shows the limits)"
            .into(),
        (Errno::NOSPC, Request::Save) => "its state is larger than 64 MiB".into(),
        (Errno::TIMEDOUT, Request::Pause) => {
            "it did not become quiet in time and goes on running; \
             something in it takes long ('dmesg' may say more): try again"
                .into()
        }
        (Errno::TIMEDOUT, _) => "its card does not answer in time, or still has an earlier order \
             that it did not answer ('dmesg' says which); try again later, or reset the card"
            .into(),
        (Errno::NOTRECOVERABLE, _) => format!(
            "its card does not say whether it is paused now; it is resumed as soon as the card does \
             what it is told ('zeroshift status {address}' shows that), or when it is reset"
        ),
        (Errno::INVAL, Request::Restore) => format!(
            "the card refused the state ('dmesg' may say why) and nothing was changed; a function \
             has to be disabled for that: without a driver, then reset ('echo 1 > \
             /sys/bus/pci/devices/{address}/reset'), then paused"
        ),
        (Errno::OPNOTSUPP, Request::Restore) => "its card does not know the format of the state; \
             'zeroshift inspect FILE' shows it"
            .into(),
        (Errno::NOTTY | Errno::INVAL | Errno::TOOBIG, _) => format!(
            "the module migdirty does not know the request of zeroshift {}; load the module of \
             the same version",
            env!("CARGO_PKG_VERSION")
        ),
        (errno, _) => format!("{errno}; 'dmesg' may say more"),
    };
    anyhow!("cannot {} {address}: {why}", request.text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn errors_name_function_cause_and_next_step() {
        let fake = Fake::default();
        let said = |request, errno| explain(&fake, request, Address(0x200), errno).to_string();
        for (request, errno, words) in [
            (
                Request::Describe,
                Errno::NOENT,
                ["no card manages", "list --functions"],
            ),
            (
                Request::Pause,
                Errno::TIMEDOUT,
                ["goes on running", "try again"],
            ),
            (
                Request::Resume,
                Errno::NOTRECOVERABLE,
                ["does not say", "status 0000:02:00.0"],
            ),
            (
                Request::Save,
                Errno::TIMEDOUT,
                ["earlier order", "try again"],
            ),
            (
                Request::SyncLog,
                Errno::IO,
                ["lost", "log stop 0000:02:00.0"],
            ),
            (
                Request::SyncLog,
                Errno::INVAL,
                ["no log", "log start 0000:02:00.0"],
            ),
            (Request::StartLog, Errno::ALREADY, ["has a log", "log stop"]),
            (
                Request::StartLog,
                Errno::NOSPC,
                ["coarsest", "stop the logs"],
            ),
            (
                Request::Save,
                Errno::BUSY,
                ["it runs", "zeroshift pause 0000:02:00.0"],
            ),
            (
                Request::Restore,
                Errno::INVAL,
                ["refused", "devices/0000:02:00.0/reset"],
            ),
            (Request::Restore, Errno::OPNOTSUPP, ["format", "inspect"]),
            (
                Request::Resume,
                Errno::IO,
                ["does not answer", "zeroshift list"],
            ),
            (
                Request::Pause,
                Errno::NOTTY,
                ["does not know", "same version"],
            ),
            (Request::Pause, Errno::PERM, ["not permitted", "dmesg"]),
        ] {
            let text = said(request, errno);
            assert!(
                text.starts_with("cannot ") && text.contains("0000:02:00.0: "),
                "{text}"
            );
            for word in words {
                assert!(text.contains(word), "{request:?} {errno:?}: {text}");
            }
        }
        fake.flags.set(MIGDIRTY_FUNCTION_SUSPENDED);
        let text = said(Request::Save, Errno::BUSY);
        assert!(text.contains("zeroshift status"), "{text}");
        fake.flags.set(MIGDIRTY_FUNCTION_OWNED_BY_VFIO);
        let text = said(Request::Pause, Errno::BUSY);
        assert!(text.contains("virtual machine"), "{text}");
    }
}
