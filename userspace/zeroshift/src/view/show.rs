// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Attached VMs, windows and counters, as tables and as JSON: `docs/interfaces.md`, section 14.

use super::options::OneOptions;
use super::protocol::{Added, Attachment, File, Vcpu, Window};
use super::runtime::Holder;
use crate::{size, table, WRITING};
use anyhow::{Context as _, Result};
use serde_json::{json, Value};
use std::io::Write;

/// What `attach` says.
pub(super) fn attached(
    attachment: &Attachment,
    as_json: bool,
    output: &mut impl Write,
) -> Result<()> {
    if as_json {
        let text = serde_json::to_string(attachment)?;
        return writeln!(output, "{text}").context(WRITING);
    }
    let Attachment {
        pid,
        command,
        vm,
        slot,
        vcpus,
        holder,
        ..
    } = attachment;
    let vcpus = count(*vcpus as usize, "vCPU");
    writeln!(
        output,
        "attached to VM {vm} of process {pid} ({command}): {vcpus}, slot {slot}; process {holder} \
         holds it"
    )
    .context(WRITING)
}

/// What `list` says.
pub(super) fn list(
    attachments: &[Attachment],
    loaded: bool,
    as_json: bool,
    output: &mut impl Write,
) -> Result<()> {
    if as_json {
        let value = json!({"loaded": loaded, "attachments": attachments});
        return writeln!(output, "{value}").context(WRITING);
    }
    let head = [
        "PID", "COMMAND", "VM", "SLOT", "VCPUS", "VIEWS", "WINDOWS", "HOLDER",
    ];
    let mut rows = vec![head.map(String::from)];
    rows.extend(attachments.iter().map(|attachment| {
        let windows = attachment.views.iter().map(|view| view.windows.len());
        [
            attachment.pid.to_string(),
            attachment.command.clone(),
            attachment.vm.to_string(),
            attachment.slot.clone(),
            attachment.vcpus.to_string(),
            attachment.views.len().to_string(),
            windows.sum::<usize>().to_string(),
            attachment.holder.to_string(),
        ]
    }));
    table::write(output, &rows).context(WRITING)?;
    let head = [
        "PID",
        "VM",
        "VIEW",
        "OFFSET",
        "GUEST ADDRESS",
        "LENGTH",
        "ACCESS",
        "MEMORY",
    ];
    let mut rows = vec![head.map(String::from)];
    for attachment in attachments {
        for view in &attachment.views {
            for window in &view.windows {
                let [offset, address, length, access, memory] = cells(window);
                rows.push([
                    attachment.pid.to_string(),
                    attachment.vm.to_string(),
                    view.view.to_string(),
                    offset,
                    address,
                    length,
                    access,
                    memory,
                ]);
            }
        }
    }
    if rows.len() > 1 {
        writeln!(output).context(WRITING)?;
        table::write(output, &rows).context(WRITING)?;
    }
    Ok(())
}

/// What `add` says.
pub(super) fn added(
    holder: &Holder,
    added: &Added,
    options: &OneOptions,
    output: &mut impl Write,
) -> Result<()> {
    if options.json {
        return write_json(holder, serde_json::to_value(added)?, output);
    }
    let [offset, address, length, access, memory] = cells(&added.window);
    writeln!(
        output,
        "opened a window in view {}: {length} at {offset} of the slot, guest address {address}, \
         {access}, {memory}",
        added.view
    )
    .context(WRITING)
}

/// What `stat` says.
pub(super) fn stat(
    holder: &Holder,
    vcpus: &[Vcpu],
    options: &OneOptions,
    output: &mut impl Write,
) -> Result<()> {
    if options.json {
        return write_json(holder, json!({"vcpus": vcpus}), output);
    }
    let head = [
        "VCPU", "VMFUNC", "ARMS", "LOADS", "RESYNCS", "BOUNCES", "INVEPTS",
    ];
    let mut rows = vec![head.map(String::from)];
    rows.extend(vcpus.iter().map(|vcpu| {
        let state = match (vcpu.armed, vcpu.unable) {
            (_, true) => "cannot (5-level tables)",
            (true, _) => "on",
            (false, _) => "not yet",
        };
        [
            vcpu.vcpu.to_string(),
            state.into(),
            vcpu.arms.to_string(),
            vcpu.loads.to_string(),
            vcpu.resyncs.to_string(),
            vcpu.bounces.to_string(),
            vcpu.invepts.to_string(),
        ]
    }));
    table::write(output, &rows).context(WRITING)
}

/// An answer about one VM, which it names.
pub(super) fn write_json(
    holder: &Holder,
    mut answer: Value,
    output: &mut impl Write,
) -> Result<()> {
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("pid".into(), holder.pid.into());
        answer.insert("vm".into(), holder.vm.into());
    }
    writeln!(output, "{answer}").context(WRITING)
}

fn cells(window: &Window) -> [String; 5] {
    [
        window.offset.clone(),
        window.address.clone(),
        size::bytes(window.length),
        if window.write { "read-write" } else { "read" }.into(),
        match &window.file {
            None => "module".into(),
            Some(File { path, offset: 0 }) => path.clone(),
            Some(File { path, offset }) => format!("{path}:{offset:#x}"),
        },
    ]
}

fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::View;
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            pid: 1234,
            command: "qemu-system-x86".into(),
            vm: 10,
            slot: "0x8000000000".into(),
            vcpus: 2,
            holder: 1300,
            views: vec![
                View {
                    view: 1,
                    windows: vec![
                        Window {
                            offset: "0x200000".into(),
                            address: "0x8000200000".into(),
                            length: 65536,
                            write: true,
                            file: None,
                        },
                        Window {
                            offset: "0x400000".into(),
                            address: "0x8000400000".into(),
                            length: 4096,
                            write: false,
                            file: Some(File {
                                path: "/dev/shm/x".into(),
                                offset: 8192,
                            }),
                        },
                    ],
                },
                View {
                    view: 2,
                    windows: vec![],
                },
            ],
        }
    }

    fn text(print: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> String {
        let mut output = vec![];
        print(&mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn list_is_two_tables() {
        let shown = text(|output| list(&[attachment()], true, false, output));
        assert_eq!(
            shown,
            "PID   COMMAND          VM  SLOT          VCPUS  VIEWS  WINDOWS  HOLDER\n\
             1234  qemu-system-x86  10  0x8000000000  2      2      2        1300\n\
             \n\
             PID   VM  VIEW  OFFSET    GUEST ADDRESS  LENGTH  ACCESS      MEMORY\n\
             1234  10  1     0x200000  0x8000200000   64 KiB  read-write  module\n\
             1234  10  1     0x400000  0x8000400000   4 KiB   read        /dev/shm/x:0x2000\n"
        );
        let none = Attachment {
            views: vec![],
            ..attachment()
        };
        let shown = text(|output| list(&[none], true, false, output));
        assert_eq!(shown.lines().count(), 2);
    }

    #[test]
    fn json_is_the_contract() {
        let shown = text(|output| list(&[attachment()], true, true, output));
        let value: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            value,
            json!({"loaded": true, "attachments": [{
                "pid": 1234, "command": "qemu-system-x86", "vm": 10, "slot": "0x8000000000",
                "vcpus": 2, "holder": 1300, "views": [
                    {"view": 1, "windows": [
                        {"offset": "0x200000", "address": "0x8000200000", "length": 65536,
                         "write": true, "file": null},
                        {"offset": "0x400000", "address": "0x8000400000", "length": 4096,
                         "write": false, "file": {"path": "/dev/shm/x", "offset": 8192}}]},
                    {"view": 2, "windows": []}]}]})
        );
        let shown = text(|output| attached(&attachment(), true, output));
        let value: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(value["holder"], 1300);
    }

    #[test]
    fn attach_says_what_it_did() {
        let shown = text(|output| attached(&attachment(), false, output));
        assert_eq!(
            shown,
            "attached to VM 10 of process 1234 (qemu-system-x86): 2 vCPUs, slot 0x8000000000; \
             process 1300 holds it\n"
        );
    }
}
