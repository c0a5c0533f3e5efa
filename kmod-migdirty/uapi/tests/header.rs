// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Holds `migdirty.h` and `lib.rs` together: a C program prints what the C compiler makes of the
//! header, and every number must be Rust's.

use migdirty_uapi::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

/// Name in the header, C expression, Rust value.
type Row = (String, String, u64);

macro_rules! rows {
    ($c:literal, $rust:ty: $($field:ident)*) => {{
        let zero = <$rust>::ZERO;
        let mut rows: Vec<Row> = vec![(
            $c.into(),
            concat!("sizeof(", $c, ")").into(),
            size_of::<$rust>() as u64,
        )];
        let mut end = 0;
        $(
            let field = stringify!($field);
            let size = size_of_field(&zero.$field);
            assert_eq!(offset_of!($rust, $field), end, "padding before {field}");
            end += size;
            rows.push((
                format!("offset of {field}"),
                format!("offsetof({}, {field})", $c),
                offset_of!($rust, $field) as u64,
            ));
            rows.push((
                format!("size of {field}"),
                format!("sizeof((({} *)0)->{field})", $c),
                size as u64,
            ));
        )*
        assert_eq!(end, size_of::<$rust>(), "a field is missing here, or there is padding");
        rows
    }};
}

fn size_of_field<T>(_: &T) -> usize {
    size_of::<T>()
}

fn constant(name: &str, value: u32) -> Row {
    (name.into(), name.into(), value.into())
}

#[test]
fn header_and_rust_say_the_same() {
    let mut rows = rows!("struct migdirty_card", MigdirtyCard:
        argsz flags address controller_id controller_type min_granule max_granule reserved
        max_ranges max_ranges_subsystem version vectors commands failures interrupts
        serial model firmware subnqn reserved2);
    rows.extend([
        constant("MIGDIRTY_GET_CARD", MIGDIRTY_GET_CARD),
        constant("MIGDIRTY_CARD_LIVE", MIGDIRTY_CARD_LIVE),
        constant("MIGDIRTY_CARD_LIVE_MIGRATION", MIGDIRTY_CARD_LIVE_MIGRATION),
        constant("MIGDIRTY_CARD_TRACKS_MEMORY", MIGDIRTY_CARD_TRACKS_MEMORY),
        constant("MIGDIRTY_MAX_ARGSZ", MAX_ARGSZ),
    ]);

    let mut program = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"migdirty.h\"\nint main(void)\n{\n",
    );
    for (name, expression, _) in &rows {
        writeln!(
            program,
            "\tprintf(\"{name}=%llu\\n\", (unsigned long long)({expression}));"
        )
        .unwrap();
    }
    program.push_str("\treturn 0;\n}\n");

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = folder.join("header.c");
    let binary = folder.join("header");
    std::fs::write(&source, program).unwrap();
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let compiled = Command::new(&cc)
        .args([
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Wpadded",
            "-Werror",
            "-I",
        ])
        .arg(env!("CARGO_MANIFEST_DIR"))
        .arg("-o")
        .args([&binary, &source])
        .status()
        .unwrap_or_else(|error| panic!("cannot run the C compiler {cc}: {error}"));
    assert!(compiled.success());
    let output = Command::new(&binary).output().unwrap();
    assert!(output.status.success());

    let text = String::from_utf8(output.stdout).unwrap();
    let said: BTreeMap<&str, u64> = text
        .lines()
        .map(|line| {
            let (name, value) = line.split_once('=').unwrap();
            (name, value.parse().unwrap())
        })
        .collect();
    for (name, _, value) in &rows {
        assert_eq!(said[name.as_str()], *value, "{name}");
    }
    assert_eq!(said.len(), rows.len());
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
}
