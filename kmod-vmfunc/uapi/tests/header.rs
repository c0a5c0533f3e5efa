// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Holds `vmfunc.h` and `lib.rs` together: a C program prints what the C compiler makes of the
//! header, and every number must be Rust's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;
use vmfunc_uapi::*;

/// Name in the header, C expression, Rust value.
type Row = (String, String, u64);

macro_rules! rows {
    ($c:literal, $rust:ty: $($field:ident)*) => {{
        let zero = <$rust>::default();
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
                format!("{} offset of {field}", $c),
                format!("offsetof({}, {field})", $c),
                offset_of!($rust, $field) as u64,
            ));
            rows.push((
                format!("{} size of {field}", $c),
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

#[test]
fn header_and_rust_say_the_same() {
    let mut rows = rows!("struct vmfunc_attach", VmfuncAttach: argsz flags vm_fd vcpus slot);
    rows.extend(rows!("struct vmfunc_view", VmfuncView: argsz flags view reserved));
    rows.extend(rows!("struct vmfunc_window", VmfuncWindow:
        argsz flags view reserved offset length address));
    rows.extend(rows!("struct vmfunc_vcpu", VmfuncVcpu:
        argsz flags vcpu reserved arms loads resyncs bounces invepts));
    macro_rules! constants {
        ($($c:literal = $rust:expr;)*) => {
            [$(($c.into(), $c.into(), u64::from($rust))),*]
        };
    }
    let constants: Vec<Row> = Vec::from(constants! {
        "VMFUNC_ATTACH" = VMFUNC_ATTACH;
        "VMFUNC_VIEW_CREATE" = VMFUNC_VIEW_CREATE;
        "VMFUNC_VIEW_DESTROY" = VMFUNC_VIEW_DESTROY;
        "VMFUNC_WINDOW_ADD" = VMFUNC_WINDOW_ADD;
        "VMFUNC_WINDOW_REMOVE" = VMFUNC_WINDOW_REMOVE;
        "VMFUNC_GET_VCPU" = VMFUNC_GET_VCPU;
        "VMFUNC_WINDOW_WRITE" = VMFUNC_WINDOW_WRITE;
        "VMFUNC_WINDOW_OWNED" = VMFUNC_WINDOW_OWNED;
        "VMFUNC_VCPU_ARMED" = VMFUNC_VCPU_ARMED;
        "VMFUNC_MAX_ARGSZ" = MAX_ARGSZ;
        "VMFUNC_SLOT_SIZE" = SLOT_SIZE;
        "VMFUNC_MAX_VIEWS" = MAX_VIEWS;
        "VMFUNC_MAX_WINDOW" = MAX_WINDOW;
        "VMFUNC_MAX_WINDOWS" = MAX_WINDOWS;
        "VMFUNC_FIRST_WINDOW" = FIRST_WINDOW;
    });
    rows.extend(constants);

    let mut program = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"vmfunc.h\"\nint main(void)\n{\n",
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
    let source = folder.join("vmfunc_header.c");
    let binary = folder.join("vmfunc_header");
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
        ],
        [
            0xc018_e740,
            0xc010_e741,
            0xc010_e742,
            0xc028_e743,
            0xc028_e744,
            0xc038_e745,
        ]
    );
}
