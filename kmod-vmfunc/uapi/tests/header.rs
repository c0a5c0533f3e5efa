// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Holds `vmfunc.h` and `lib.rs` together.

use header::{constants, structure, Row};
use std::mem::{offset_of, size_of};
use vmfunc_uapi::*;

#[path = "../../../kmod-common/uapi/header.rs"]
mod header;

#[test]
fn header_and_rust_say_the_same() {
    let mut rows = structure!("struct vmfunc_attach", VmfuncAttach: argsz flags vm_fd vcpus slot);
    rows.extend(structure!("struct vmfunc_view", VmfuncView: argsz flags view reserved));
    rows.extend(structure!("struct vmfunc_window", VmfuncWindow:
        argsz flags view fd offset length address));
    rows.extend(structure!("struct vmfunc_vcpu", VmfuncVcpu:
        argsz flags vcpu reserved arms loads resyncs bounces invepts));
    rows.extend(structure!("struct vmfunc_query", VmfuncQuery:
        argsz flags vcpus windows views slot max_views max_windows first_window max_window));
    rows.extend(structure!("struct vmfunc_eventfd", VmfuncEventfd: argsz flags fd reserved));
    rows.extend(constants! {
        "VMFUNC_ATTACH" = VMFUNC_ATTACH;
        "VMFUNC_VIEW_CREATE" = VMFUNC_VIEW_CREATE;
        "VMFUNC_VIEW_DESTROY" = VMFUNC_VIEW_DESTROY;
        "VMFUNC_WINDOW_ADD" = VMFUNC_WINDOW_ADD;
        "VMFUNC_WINDOW_REMOVE" = VMFUNC_WINDOW_REMOVE;
        "VMFUNC_GET_VCPU" = VMFUNC_GET_VCPU;
        "VMFUNC_QUERY" = VMFUNC_QUERY;
        "VMFUNC_SET_EVENTFD" = VMFUNC_SET_EVENTFD;
        "VMFUNC_GET_WINDOW" = VMFUNC_GET_WINDOW;
        "VMFUNC_WINDOW_WRITE" = VMFUNC_WINDOW_WRITE;
        "VMFUNC_WINDOW_OWNED" = VMFUNC_WINDOW_OWNED;
        "VMFUNC_WINDOW_FILE" = VMFUNC_WINDOW_FILE;
        "VMFUNC_VCPU_ARMED" = VMFUNC_VCPU_ARMED;
        "VMFUNC_VCPU_UNABLE" = VMFUNC_VCPU_UNABLE;
        "VMFUNC_QUERY_ENDED" = VMFUNC_QUERY_ENDED;
        "VMFUNC_MAX_ARGSZ" = MAX_ARGSZ;
        "VMFUNC_SLOT_SIZE" = SLOT_SIZE;
        "VMFUNC_MAX_VIEWS" = MAX_VIEWS;
        "VMFUNC_MAX_WINDOW" = MAX_WINDOW;
        "VMFUNC_MAX_WINDOWS" = MAX_WINDOWS;
        "VMFUNC_FIRST_WINDOW" = FIRST_WINDOW;
    });
    let folder = env!("CARGO_TARGET_TMPDIR");
    header::compare("vmfunc.h", env!("CARGO_MANIFEST_DIR"), folder, &rows);
}

/// The numbers of `docs/interfaces.md`, section 15.
#[test]
fn numbers_are_the_contract() {
    assert_eq!(
        [
            VMFUNC_ATTACH,
            VMFUNC_VIEW_CREATE,
            VMFUNC_VIEW_DESTROY,
            VMFUNC_WINDOW_ADD,
            VMFUNC_WINDOW_REMOVE,
            VMFUNC_GET_VCPU,
            VMFUNC_QUERY,
            VMFUNC_SET_EVENTFD,
            VMFUNC_GET_WINDOW,
        ],
        [
            0xc018_e740,
            0xc010_e741,
            0xc010_e742,
            0xc028_e743,
            0xc028_e744,
            0xc038_e745,
            0xc038_e746,
            0xc010_e747,
            0xc028_e748,
        ]
    );
}
