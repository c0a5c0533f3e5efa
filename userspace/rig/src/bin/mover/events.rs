// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the mover says: on each line of its output either `ZS-EVENT` and a JSON object, or `L2|` and a line of the
//! guest. Nothing else goes to standard output.

use std::io::Write;
use std::time::Instant;

use serde_json::Value;

/// Says events, with the time since the start in each.
#[derive(Debug)]
pub(crate) struct Events {
    began: Instant,
}

impl Events {
    /// Time begins.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    /// Says `event`; `fields` is an object.
    pub(crate) fn say(&self, event: &str, mut fields: Value) {
        if let Value::Object(object) = &mut fields {
            let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            object.insert("event".into(), event.into());
            object.insert("ms".into(), ms.into());
        }
        print(&format!("ZS-EVENT {fields}"));
    }
}

/// Says a line of the guest.
pub(crate) fn guest_line(line: &str) {
    print(&format!("L2| {line}"));
}

fn print(line: &str) {
    // Nobody listens any more: the exit code still tells.
    writeln!(std::io::stdout().lock(), "{line}").ok();
}
