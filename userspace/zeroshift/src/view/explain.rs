// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What an error number of `/dev/vmfunc` means for what was asked, and what to do about it.

use super::vm;
use anyhow::{anyhow, Error};
use rustix::io::Errno;
use std::path::Path;
use vmfunc_uapi::{MAX_VIEWS, MAX_WINDOWS};

/// What was asked of an attached VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Look,
    Watch,
    Create,
    /// A window in this view.
    Add(u32),
    /// A window in this view at this offset, or the view.
    Remove(u32, Option<u64>),
}

/// A VM, for messages.
pub(super) fn vm(proc: &Path, pid: i32, vm: i32) -> String {
    format!("VM {vm} of {}", vm::process(proc, pid))
}

/// Says that the holder of a VM was killed, by its process and file descriptor there.
pub(super) fn died((pid, number): &(i32, i32)) {
    let vm = vm(Path::new("/proc"), *pid, *number);
    eprintln!("zeroshift: the holder of {vm} was killed; that closed its windows");
}

/// The error for people: object, cause, next step.
pub(super) fn explain(vm: &str, request: Request, errno: Errno) -> Error {
    let what = match request {
        Request::Look => format!("cannot look at the views of {vm}"),
        Request::Watch => format!("cannot learn when {vm} ends"),
        Request::Create => format!("cannot make a view for {vm}"),
        Request::Add(view) => format!("cannot open a window in view {view} of {vm}"),
        Request::Remove(view, None) => format!("cannot end view {view} of {vm}"),
        Request::Remove(view, Some(at)) => {
            format!("cannot close the window at {at:#x} in view {view} of {vm}")
        }
    };
    let why: String = match (errno, request) {
        (Errno::NOTCONN, _) => "the VM has ended, and its windows are closed".into(),
        (Errno::NOENT, Request::Remove(_, Some(_))) => {
            "there is none that begins there; 'zeroshift view list' shows them".into()
        }
        (Errno::NOENT, _) => {
            "there is no such view; 'zeroshift view list' shows them, and 'view add' without --view \
             makes one"
                .into()
        }
        (Errno::NOSPC, Request::Create) => format!(
            "it has {MAX_VIEWS}, and no vCPU takes more; 'zeroshift view remove --view N' ends one"
        ),
        (Errno::NOSPC, _) => format!("the view has {MAX_WINDOWS} windows; take another view"),
        (Errno::EXIST, _) => "it would overlap a window that is there ('zeroshift view list'); \
             without --at a free place is taken"
            .into(),
        (Errno::NOMEM, _) => "there is not enough memory, or a file of that size goes beyond the \
             holder's limit of locked memory (ulimit -l where 'view attach' is run)"
            .into(),
        (Errno::ACCESS | Errno::BADF, Request::Add(_)) => "the file is not open for reading".into(),
        (Errno::INVAL, Request::Add(_)) => "the file is not memory (memfd, tmpfs, hugetlbfs), or is \
             shorter than that"
            .into(),
        (Errno::FAULT, Request::Add(_)) => {
            "the memory of the file cannot be had; is it as long as that?".into()
        }
        (Errno::NOTTY | Errno::INVAL | Errno::TOOBIG, _) => format!(
            "the module vmfunc_view does not know the request of zeroshift {}; load the module of \
             the same version",
            env!("CARGO_PKG_VERSION")
        ),
        (errno, _) => format!("{errno}; 'dmesg' may say more"),
    };
    anyhow!("{what}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_vm_the_cause_and_the_next_step() {
        for (request, errno, words) in [
            (Request::Look, Errno::NOTCONN, ["has ended", "closed"]),
            (Request::Create, Errno::NOSPC, ["63", "view remove"]),
            (Request::Add(3), Errno::NOENT, ["view 3", "without --view"]),
            (Request::Add(3), Errno::NOSPC, ["1024", "another view"]),
            (Request::Add(3), Errno::EXIST, ["overlap", "without --at"]),
            (
                Request::Add(3),
                Errno::NOMEM,
                ["locked memory", "ulimit -l"],
            ),
            (Request::Add(3), Errno::INVAL, ["memfd", "shorter"]),
            (
                Request::Remove(2, Some(0x40_0000)),
                Errno::NOENT,
                ["at 0x400000 in view 2", "view list"],
            ),
            (
                Request::Remove(2, None),
                Errno::NOENT,
                ["end view 2", "view list"],
            ),
            (
                Request::Look,
                Errno::NOTTY,
                ["does not know", "same version"],
            ),
            (Request::Create, Errno::PERM, ["not permitted", "dmesg"]),
        ] {
            let text = explain("VM 9 of process 7 (qemu)", request, errno).to_string();
            assert!(
                text.starts_with("cannot ") && text.contains("VM 9 of process 7 (qemu): "),
                "{text}"
            );
            for word in words {
                assert!(text.contains(word), "{request:?} {errno:?}: {text}");
            }
        }
    }
}
