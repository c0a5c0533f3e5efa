// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift inspect`: what a saved file is.

use crate::cli::InspectOptions;
use crate::stream::{self, Loaded};
use crate::table;
use crate::{size, WRITING};
use anyhow::{Context as _, Result};
use serde_json::{json, Value};
use std::io::Write;
use zeroshift_stream::identity::{Namespace, View};
use zeroshift_stream::record::{KIND_NVME, MAJOR};

/// Runs the subcommand.
pub(crate) fn run(options: &InspectOptions, output: &mut impl Write) -> Result<()> {
    let loaded = stream::load(&options.file)?;
    let view = View::decode(&loaded.identity)?;
    if options.json {
        let value = as_json(&loaded, &view);
        return writeln!(output, "{value}").context(WRITING);
    }
    write_text(&loaded, &view, output).context(WRITING)
}

fn as_json(loaded: &Loaded, view: &View<'_>) -> Value {
    let (header, identity) = (&loaded.header, &view.identity);
    let namespaces = view.namespaces().map(|namespaces| {
        let value = |namespace: Namespace| {
            json!({
                "nsid": namespace.nsid,
                "block_bytes": block_bytes(&namespace),
                "blocks": namespace.blocks,
                "eui64": hexadecimal(&namespace.eui64),
                "nguid": hexadecimal(&namespace.nguid),
            })
        };
        namespaces.map(value).collect::<Vec<_>>()
    });
    let registers = header.registers.map(|registers| {
        json!({
            "cap": format!("{:#018x}", registers.cap),
            "version": format!("{:#010x}", registers.version),
            "vectors": registers.vectors,
        })
    });
    json!({
        "version": {"major": MAJOR, "minor": header.minor},
        "kind": header.kind,
        "identity": {
            "vendor": format!("{:04x}", identity.vendor),
            "device": format!("{:04x}", identity.device),
            "subsystem_vendor": format!("{:04x}", identity.subsystem_vendor),
            "subsystem": format!("{:04x}", identity.subsystem),
            "class": format!("{:06x}", identity.class_revision >> 8),
            "revision": format!("{:02x}", identity.class_revision & 0xff),
            "serial": text(identity.serial),
            "model": text(identity.model),
            "subnqn": text(identity.subnqn),
            "namespaces": namespaces,
        },
        "registers": registers,
        "format": {"version": header.format.version, "uuid": uuid(&header.format.uuid)},
        "state_bytes": loaded.state.len(),
        "bytes": loaded.size,
    })
}

fn write_text(loaded: &Loaded, view: &View<'_>, output: &mut impl Write) -> std::io::Result<()> {
    let (header, identity) = (&loaded.header, &view.identity);
    let kind = match header.kind {
        KIND_NVME => "NVMe".to_owned(),
        other => format!("{other} (unknown)"),
    };
    let registers = header.registers.map_or("not in a saved file".into(), |r| {
        format!(
            "CAP {:#018x}, VS {:#010x}, {} vectors",
            r.cap, r.version, r.vectors
        )
    });
    let rows = [
        (
            "stream",
            format!("version {MAJOR}.{}, whole, checksum right", header.minor),
        ),
        ("kind of function", kind),
        (
            "PCI",
            format!(
                "{:04x}:{:04x}, subsystem {:04x}:{:04x}, class {:06x}, revision {:02x}",
                identity.vendor,
                identity.device,
                identity.subsystem_vendor,
                identity.subsystem,
                identity.class_revision >> 8,
                identity.class_revision & 0xff
            ),
        ),
        ("serial number", text(identity.serial)),
        ("model", text(identity.model)),
        ("SUBNQN", text(identity.subnqn)),
        ("registers", registers),
        (
            "format of the state",
            format!(
                "version {}, UUID {}",
                header.format.version,
                uuid(&header.format.uuid)
            ),
        ),
        ("bytes of state", loaded.state.len().to_string()),
        ("bytes of stream", loaded.size.to_string()),
    ];
    table::write(output, &rows.map(|(name, value)| [name.to_owned(), value]))?;
    let Some(namespaces) = view.namespaces() else {
        return writeln!(output, "\nnamespaces were not known");
    };
    let mut rows = vec![["NSID", "BLOCK", "SIZE", "EUI64", "NGUID"].map(String::from)];
    rows.extend(namespaces.map(|namespace| {
        let bytes = block_bytes(&namespace).and_then(|block| block.checked_mul(namespace.blocks));
        [
            namespace.nsid.to_string(),
            block_bytes(&namespace).map_or("?".into(), size::bytes),
            bytes.map_or("?".into(), size::bytes),
            hexadecimal(&namespace.eui64).unwrap_or("-".into()),
            hexadecimal(&namespace.nguid).unwrap_or("-".into()),
        ]
    }));
    writeln!(output)?;
    table::write(output, &rows)
}

/// Bytes of a logical block, unless that is absurd.
fn block_bytes(namespace: &Namespace) -> Option<u64> {
    1u64.checked_shl(namespace.block_shift.into())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned()
}

/// A name, unless it is none.
fn hexadecimal(bytes: &[u8]) -> Option<String> {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.iter().any(|byte| *byte != 0).then_some(digits)
}

fn uuid(bytes: &[u8; 16]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::State;
    use crate::fake;

    fn inspect(json: bool) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        let state = State {
            version: 0,
            uuid: *b"\x9e\xdb\xdb\x91\x8d\x5f\x46\xfc\xb4\x82\x6c\x7d\x39\x3c\x7a\x9b",
            bytes: vec![1; 1000],
        };
        let mut stream = vec![];
        stream::write(&mut stream, &fake::identity("ZS\x1b01"), &state).unwrap();
        std::fs::write(&file, stream).unwrap();
        let mut output = vec![];
        run(&InspectOptions { file, json }, &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn text_shows_what_it_is() {
        assert_eq!(
            inspect(false),
            "\
stream               version 1.0, whole, checksum right
kind of function     NVMe
PCI                  5a53:0002, subsystem 5a53:0002, class 010802, revision 00
serial number        ZS?01
model                Zeroshift zerocard
SUBNQN               nqn.2026-01.org.example:1
registers            not in a saved file
format of the state  version 0, UUID 9edbdb91-8d5f-46fc-b482-6c7d393c7a9b
bytes of state       1000
bytes of stream      1281

NSID  BLOCK  SIZE     EUI64  NGUID
1     512 B  512 MiB  -      11111111111111111111111111111111
"
        );
    }

    #[test]
    fn json_is_the_contract() {
        let value: Value = serde_json::from_str(&inspect(true)).unwrap();
        assert_eq!(
            value,
            json!({"version": {"major": 1, "minor": 0}, "kind": 1,
                "identity": {"vendor": "5a53", "device": "0002", "subsystem_vendor": "5a53",
                    "subsystem": "0002", "class": "010802", "revision": "00",
                    "serial": "ZS\u{1b}01", "model": "Zeroshift zerocard",
                    "subnqn": "nqn.2026-01.org.example:1",
                    "namespaces": [{"nsid": 1, "block_bytes": 512, "blocks": 1 << 20,
                        "eui64": null, "nguid": "11111111111111111111111111111111"}]},
                "registers": null,
                "format": {"version": 0, "uuid": "9edbdb91-8d5f-46fc-b482-6c7d393c7a9b"},
                "state_bytes": 1000, "bytes": 1281})
        );
    }
}
