// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the module says in the kernel's log when it refuses to attach: an error number has no room for
//! it.

use rustix::fs::OFlags;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What the module's line begins with; its reason follows in quotation marks.
const PREFIX: &str = "vmfunc_view: cannot attach: ";

/// The kernel's log, from a moment on.
pub(super) struct Log(File);

impl Log {
    /// From now on. None for users who may not read it.
    pub(super) fn from_now(path: &Path) -> Option<Self> {
        let mut options = File::options();
        // CAST: the flag fits. With it a read at the end fails and does not wait.
        options
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32);
        let mut file = options.open(path).ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// The last reason that was given since.
    pub(super) fn reason(mut self) -> Option<String> {
        // More than any record has (PRINTKRB_RECORD_MAX, and what /dev/kmsg writes around it).
        let mut record = [0; 8192];
        let mut found = None;
        loop {
            match self.0.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    found = reason(&text).or(found);
                }
                // Records were overwritten: the next read goes on behind them.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                Err(_) => break,
            }
        }
        found
    }
}

/// The reason in a record: a header, a semicolon, the line, and perhaps lines with properties.
fn reason(record: &str) -> Option<String> {
    let (_, message) = record.split_once(';')?;
    let reason = message.lines().next()?.strip_prefix(PREFIX)?;
    Some(reason.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_reason_is_found_in_its_record() {
        let record = "4,812,5362968,-;vmfunc_view: cannot attach: \"no EPT; load it\"\n KEY=x\n";
        assert_eq!(reason(record).as_deref(), Some("no EPT; load it"));
        for other in [
            "4,1,2,-;vmfunc_view: something else\n",
            "4,1,2,-;program: vmfunc_view: cannot attach: \"x\"\n",
            "vmfunc_view: cannot attach: \"x\"\n",
            "",
        ] {
            assert_eq!(reason(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_comes_later_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        let record = |text: &str| format!("4,1,2,-;vmfunc_view: cannot attach: \"{text}\"\n");
        std::fs::write(&path, record("before")).unwrap();
        assert_eq!(Log::from_now(&path).unwrap().reason(), None);
        let log = Log::from_now(&path).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(record("now").as_bytes()).unwrap();
        assert_eq!(log.reason().as_deref(), Some("now"));
        assert!(Log::from_now(&dir.path().join("none")).is_none());
    }
}
