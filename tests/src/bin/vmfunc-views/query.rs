// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the device tells of views and windows.

use crate::rig::{Rig, OFFSET, PAGE};
use rustix::io::Errno;
use vmfunc_uapi::{
    VmfuncQuery, FIRST_WINDOW, MAX_VIEWS, MAX_WINDOW, MAX_WINDOWS, SLOT_SIZE, VMFUNC_GET_WINDOW,
    VMFUNC_WINDOW_OWNED, VMFUNC_WINDOW_WRITE,
};
use zeroshift_tests::check_eq;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::{query, window};
use zeroshift_tests::vmm::GATE;

/// The counts follow what comes and goes.
pub(crate) fn counts() -> Outcome {
    let (rig, _vcpus) = Rig::new(2)?;
    let file = &rig.vmfunc;
    let with = |views, windows| {
        Ok(VmfuncQuery {
            vcpus: 2,
            views,
            windows,
            slot: GATE,
            max_views: MAX_VIEWS,
            max_windows: MAX_WINDOWS,
            first_window: FIRST_WINDOW,
            max_window: MAX_WINDOW,
            ..query()
        })
    };
    check_eq!(file.query(), with(0, 0), "at first");
    for view in 1..=3 {
        check_eq!(file.create_view(), Ok(view), "view {view}");
        file.add_owned(view, OFFSET, PAGE)?;
        file.add_owned(view, OFFSET + 8192, PAGE)?;
    }
    check_eq!(file.query(), with(0b1110, 6), "three views");
    file.remove_window(1, OFFSET)?;
    check_eq!(file.query(), with(0b1110, 5), "without a window");
    file.destroy_view(2)?;
    check_eq!(file.query(), with(0b1010, 3), "without a view");
    for view in [2].into_iter().chain(4..=MAX_VIEWS) {
        check_eq!(file.create_view(), Ok(view), "view {view}");
    }
    check_eq!(file.query(), with(!1, 3), "all views");
    Ok(())
}

/// Windows are found in the order of their offsets, with what was told of them.
pub(crate) fn windows() -> Outcome {
    let (rig, _vcpus) = Rig::new(1)?;
    let file = &rig.vmfunc;
    check_eq!(file.create_view(), Ok(1), "a view");
    let from = |view, offset| {
        let found = file.window_from(view, offset);
        found.map(|w| (w.flags, w.offset, w.length, w.address))
    };
    let none = Err(Errno::NOENT);
    check_eq!(from(1, 0), none, "of an empty view");
    check_eq!(from(2, 0), none, "of no view");
    check_eq!(from(0, 0), none, "of the default view");

    let memory = Memory::new(2 * PAGE)?;
    let end = SLOT_SIZE - PAGE as u64;
    // Not in the order of their offsets.
    file.add_owned_read_only(1, end, PAGE)?;
    file.add_window(1, OFFSET + 4096, &memory)?;
    file.add_owned(1, 1 << 30, 3 * PAGE)?;
    let page = PAGE as u64;
    let mine = Ok((0, OFFSET + page, 2 * page, memory.address()));
    let place = |offset: u64| SLOT_SIZE + offset;
    let owned = VMFUNC_WINDOW_OWNED | VMFUNC_WINDOW_WRITE;
    let middle = Ok((owned, 1 << 30, 3 * page, place(1 << 30)));
    let last = Ok((VMFUNC_WINDOW_OWNED, end, page, place(end)));
    for (offset, expected) in [
        (0, mine),
        (OFFSET, mine),
        (OFFSET + page, mine),
        (OFFSET + 2 * page, middle),
        (OFFSET + 3 * page, middle),
        ((1 << 30) + page, last),
        (end, last),
        (SLOT_SIZE, none),
        (!4095, none),
    ] {
        check_eq!(from(1, offset), expected, "from {offset:#x} on");
    }
    file.remove_window(1, 1 << 30)?;
    check_eq!(from(1, OFFSET + 2 * page), last, "after a removal");

    let bad = [
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, -1, 0, 0),
        (0, 0, 4096, 0),
        (0, 0, 0, 4096),
    ];
    for (flags, fd, length, address) in bad {
        let mut argument = window(1, 0);
        (argument.flags, argument.fd) = (flags, fd);
        (argument.length, argument.address) = (length, address);
        let what = format!("{argument:x?}");
        let result = file.call(VMFUNC_GET_WINDOW, &mut argument);
        check_eq!(result, Err(Errno::INVAL), "{what}");
    }
    check_eq!(from(1, 1), Err(Errno::INVAL), "in mid-page");
    Ok(())
}
