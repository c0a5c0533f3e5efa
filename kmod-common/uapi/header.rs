// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Holds the C header of a `uapi` folder against its Rust face: a C program prints what the compiler
//! makes of the header, and every number must be Rust's. Included by the tests of each folder.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::size_of;
use std::path::Path;
use std::process::Command;

/// Name in the header, C expression, Rust value.
pub(crate) type Row = (String, String, u64);

/// Size, and offset and size of each field, of a structure without padding: all its fields, in order.
macro_rules! structure {
    ($c:literal, $rust:ty: $($field:ident)*) => {{
        let mut rows: Vec<Row> = vec![(
            $c.into(),
            concat!("sizeof(", $c, ")").into(),
            size_of::<$rust>() as u64,
        )];
        let mut end = 0;
        $(
            let field = stringify!($field);
            let size = $crate::header::size_of_field(|all: &$rust| &all.$field);
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
pub(crate) use structure;

/// A constant of the same name, or of the one that is given, on both sides.
macro_rules! constants {
    ($($c:literal = $rust:expr;)*) => {
        Vec::<Row>::from([$(($c.into(), $c.into(), u64::from($rust))),*])
    };
}
pub(crate) use constants;

/// Size of what `field` finds in a structure.
pub(crate) fn size_of_field<T, F>(_field: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Panics when the C compiler sees another number than Rust. `header` is the file's name in the
/// folder of the crate, and `folder` one for files of the test.
pub(crate) fn compare(header: &str, include: &str, folder: &str, rows: &[Row]) {
    let mut program = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"{header}\"\nint main(void)\n{{\n"
    );
    for (name, expression, _) in rows {
        writeln!(
            program,
            "\tprintf(\"{name}=%llu\\n\", (unsigned long long)({expression}));"
        )
        .unwrap();
    }
    program.push_str("\treturn 0;\n}\n");

    let binary = Path::new(folder).join(header).with_extension("test");
    let source = binary.with_extension("c");
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
        .arg(include)
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
    for (name, _, value) in rows {
        assert_eq!(said[name.as_str()], *value, "{name}");
    }
    assert_eq!(said.len(), rows.len());
}
