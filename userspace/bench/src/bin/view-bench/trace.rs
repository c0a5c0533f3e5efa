// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages that the kernel hands out to this thread: the event `kmem:mm_page_alloc`, in a trace of our own.

use std::fs;
use std::path::PathBuf;

use anyhow::{ensure, Context as _, Result};

/// Where tracefs may be.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Name of our trace.
const NAME: &str = "zeroshift_bench";

/// Flags with which the module asks for a table, and nobody else for anything here.
const TABLE: &str = "GFP_KERNEL_ACCOUNT|__GFP_ZERO";

/// What was handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pages {
    /// For tables.
    pub(crate) tables: u64,
    /// For anything.
    pub(crate) all: u64,
}

/// A trace that runs.
pub(crate) struct Trace(PathBuf);

impl Trace {
    /// Starts one.
    pub(crate) fn of_allocations() -> Result<Self> {
        let mut places = TRACEFS.map(PathBuf::from).into_iter();
        let tracefs = places
            .find(|dir| dir.join("instances").exists())
            .context("no tracefs: mount it (mount -t tracefs tracefs /sys/kernel/tracing)")?;
        let dir = tracefs.join("instances").join(NAME);
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let trace = Self(dir);
        // CAST: identifiers of threads are positive.
        let thread = rustix::thread::gettid().as_raw_nonzero();
        let event = |file: &str| format!("events/kmem/mm_page_alloc/{file}");
        trace.write(&event("filter"), &format!("common_pid == {thread}"))?;
        trace.write(&event("enable"), "1")?;
        Ok(trace)
    }

    fn write(&self, file: &str, what: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, what).with_context(|| format!("write {}", path.display()))
    }

    /// Ends it.
    pub(crate) fn end(self) -> Result<Pages> {
        self.write("tracing_on", "0")?;
        let text = fs::read_to_string(self.0.join("trace"))?;
        pages(&text)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Best effort: it disturbs nobody.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Pages in the lines of a trace.
fn pages(text: &str) -> Result<Pages> {
    let lost = text.lines().any(|line| line.contains("LOST"));
    ensure!(!lost, "the trace lost events");
    let mut pages = Pages::default();
    for line in text.lines().filter(|line| line.contains("mm_page_alloc:")) {
        let value = |key| line.split_whitespace().find_map(|w| w.strip_prefix(key));
        let order: u32 = value("order=")
            .and_then(|o| o.parse().ok())
            .context("no order")?;
        let count = 1u64.checked_shl(order).context("a strange order")?;
        pages.all += count;
        if value("gfp_flags=").is_some_and(|flags| flags.contains(TABLE)) {
            pages.tables += count;
        }
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `Documentation/trace/events-kmem.rst` and the kernel's own format show them.
    #[test]
    fn pages_are_counted_by_order() {
        let line = |order, flags| {
            format!(
                "  view-bench-77 [000] ..... 12.5: mm_page_alloc: page=0x1 pfn=0x9 order={order} \
                 migratetype=0 gfp_flags={flags}\n"
            )
        };
        let (slab, table) = (line(3, "GFP_KERNEL"), line(0, TABLE));
        let counted = pages(&format!("# tracer: nop\n#\n{slab}{table}{table}")).unwrap();
        assert_eq!((counted.tables, counted.all), (2, 10));
        assert!(pages("CPU:0 [LOST 5 EVENTS]\n").is_err());
    }
}
