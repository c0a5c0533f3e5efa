// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Holds `migdirty.h` and `lib.rs` together.

use header::{constants, structure, Row};
use migdirty_uapi::*;
use std::mem::{offset_of, size_of};

#[path = "../../../kmod-common/uapi/header.rs"]
mod header;

#[test]
fn header_and_rust_say_the_same() {
    let mut rows = structure!("struct migdirty_card", MigdirtyCard:
        argsz flags address controller_id controller_type min_granule max_granule reserved
        max_ranges max_ranges_subsystem version vectors commands failures interrupts
        serial model firmware subnqn reserved2);
    rows.extend(
        structure!("struct migdirty_function_info", MigdirtyFunctionInfo:
        argsz flags address card controller_id reserved ranges granule suspends resumes harvests
        dirty_bytes states_read states_written reserved2),
    );
    rows.extend(structure!("struct migdirty_target", MigdirtyTarget: argsz flags address reserved));
    rows.extend(structure!("struct migdirty_range", MigdirtyRange: iova length));
    rows.extend(structure!("struct migdirty_log_start", MigdirtyLogStart:
        argsz flags address count granule ranges));
    rows.extend(structure!("struct migdirty_log_sync", MigdirtyLogSync:
        argsz flags address count iova length ranges));
    rows.extend(structure!("struct migdirty_state", MigdirtyState:
        argsz flags address version reserved uuid data size));
    rows.extend(structure!("struct migdirty_identity", MigdirtyIdentity:
        argsz flags address size data));
    rows.extend(constants! {
        "MIGDIRTY_GET_CARD" = MIGDIRTY_GET_CARD;
        "MIGDIRTY_GET_FUNCTION" = MIGDIRTY_GET_FUNCTION;
        "MIGDIRTY_LOG_START" = MIGDIRTY_LOG_START;
        "MIGDIRTY_LOG_SYNC" = MIGDIRTY_LOG_SYNC;
        "MIGDIRTY_LOG_STOP" = MIGDIRTY_LOG_STOP;
        "MIGDIRTY_PAUSE" = MIGDIRTY_PAUSE;
        "MIGDIRTY_RESUME" = MIGDIRTY_RESUME;
        "MIGDIRTY_SAVE" = MIGDIRTY_SAVE;
        "MIGDIRTY_RESTORE" = MIGDIRTY_RESTORE;
        "MIGDIRTY_GET_IDENTITY" = MIGDIRTY_GET_IDENTITY;
        "MIGDIRTY_CARD_LIVE" = MIGDIRTY_CARD_LIVE;
        "MIGDIRTY_CARD_LIVE_MIGRATION" = MIGDIRTY_CARD_LIVE_MIGRATION;
        "MIGDIRTY_CARD_TRACKS_MEMORY" = MIGDIRTY_CARD_TRACKS_MEMORY;
        "MIGDIRTY_FUNCTION_LIVE" = MIGDIRTY_FUNCTION_LIVE;
        "MIGDIRTY_FUNCTION_SUSPENDED" = MIGDIRTY_FUNCTION_SUSPENDED;
        "MIGDIRTY_FUNCTION_LOGGING" = MIGDIRTY_FUNCTION_LOGGING;
        "MIGDIRTY_FUNCTION_LOG_LOST" = MIGDIRTY_FUNCTION_LOG_LOST;
        "MIGDIRTY_FUNCTION_OWNED_BY_VFIO" = MIGDIRTY_FUNCTION_OWNED_BY_VFIO;
        "MIGDIRTY_FUNCTION_OWNED_BY_TOOL" = MIGDIRTY_FUNCTION_OWNED_BY_TOOL;
        "MIGDIRTY_SYNC_MORE" = MIGDIRTY_SYNC_MORE;
        "MIGDIRTY_SYNC_COMPLETE" = MIGDIRTY_SYNC_COMPLETE;
        "MIGDIRTY_MAX_ARGSZ" = MAX_ARGSZ;
        "MIGDIRTY_MAX_LOG_RANGES" = MAX_LOG_RANGES;
        "MIGDIRTY_MAX_SYNC_RANGES" = MAX_SYNC_RANGES;
        "MIGDIRTY_MAX_STATE" = MAX_STATE;
    });
    let folder = env!("CARGO_TARGET_TMPDIR");
    header::compare("migdirty.h", env!("CARGO_MANIFEST_DIR"), folder, &rows);
}

/// The offsets of `docs/interfaces.md`, section 4.
#[test]
fn layout_is_the_contract() {
    assert_eq!(MIGDIRTY_GET_CARD, 0xc1e0_e700);
    assert_eq!(
        [
            offset_of!(MigdirtyCard, address),
            offset_of!(MigdirtyCard, controller_id),
            offset_of!(MigdirtyCard, max_granule),
            offset_of!(MigdirtyCard, max_ranges),
            offset_of!(MigdirtyCard, version),
            offset_of!(MigdirtyCard, commands),
            offset_of!(MigdirtyCard, serial),
            offset_of!(MigdirtyCard, model),
            offset_of!(MigdirtyCard, firmware),
            offset_of!(MigdirtyCard, subnqn),
            offset_of!(MigdirtyCard, reserved2),
            size_of::<MigdirtyCard>(),
        ],
        [8, 12, 16, 20, 24, 32, 56, 76, 116, 124, 380, 480]
    );
    assert_eq!(
        [
            MIGDIRTY_GET_FUNCTION,
            MIGDIRTY_LOG_START,
            MIGDIRTY_LOG_SYNC,
            MIGDIRTY_LOG_STOP,
            MIGDIRTY_PAUSE,
            MIGDIRTY_RESUME,
            MIGDIRTY_SAVE,
            MIGDIRTY_RESTORE,
            MIGDIRTY_GET_IDENTITY,
        ],
        [
            0xc080_e701,
            0xc020_e702,
            0xc028_e703,
            0xc010_e704,
            0xc010_e705,
            0xc010_e706,
            0xc030_e707,
            0xc030_e708,
            0xc018_e709,
        ]
    );
    assert_eq!(
        [
            offset_of!(MigdirtyFunctionInfo, card),
            offset_of!(MigdirtyFunctionInfo, controller_id),
            offset_of!(MigdirtyFunctionInfo, ranges),
            offset_of!(MigdirtyFunctionInfo, granule),
            offset_of!(MigdirtyFunctionInfo, suspends),
            offset_of!(MigdirtyFunctionInfo, resumes),
            offset_of!(MigdirtyFunctionInfo, harvests),
            offset_of!(MigdirtyFunctionInfo, dirty_bytes),
            offset_of!(MigdirtyFunctionInfo, states_read),
            offset_of!(MigdirtyFunctionInfo, states_written),
            offset_of!(MigdirtyFunctionInfo, reserved2),
            size_of::<MigdirtyFunctionInfo>(),
        ],
        [12, 16, 20, 24, 32, 40, 48, 56, 64, 72, 80, 128]
    );
    assert_eq!(
        [
            offset_of!(MigdirtyLogStart, granule),
            offset_of!(MigdirtyLogStart, ranges),
            offset_of!(MigdirtyLogSync, iova),
            offset_of!(MigdirtyLogSync, length),
            offset_of!(MigdirtyLogSync, ranges),
            offset_of!(MigdirtyState, version),
            offset_of!(MigdirtyState, uuid),
            offset_of!(MigdirtyState, data),
            offset_of!(MigdirtyState, size),
            offset_of!(MigdirtyIdentity, size),
            offset_of!(MigdirtyIdentity, data),
        ],
        [16, 24, 16, 24, 32, 12, 16, 32, 40, 12, 16]
    );
}
