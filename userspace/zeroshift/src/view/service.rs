// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a holder does when it is asked: each question is one or two requests to the kernel, which
//! knows all but the names of files.

use super::explain::{self, Request};
use super::kernel::{windows, Views};
use super::place;
use super::protocol::{Add, Added, Attachment, File, Question, Vcpu, View, Window};
use super::vm;
use crate::sys::vmfunc::Memory;
use anyhow::{anyhow, bail, Context as _, Result};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;
use vmfunc_uapi::{
    VmfuncWindow, VMFUNC_QUERY_ENDED, VMFUNC_VCPU_ARMED, VMFUNC_VCPU_UNABLE, VMFUNC_WINDOW_FILE,
    VMFUNC_WINDOW_WRITE,
};

/// An attached VM.
pub(super) struct Service<V> {
    views: V,
    /// Process of the VMM, and the VM's file descriptor there: for people.
    pub(super) pid: i32,
    pub(super) vm: i32,
    /// What files are called, by view and offset of the window.
    names: BTreeMap<(u32, u64), String>,
}

impl<V: Views> Service<V> {
    pub(super) fn new(views: V, pid: i32, vm: i32) -> Self {
        Self {
            views,
            pid,
            vm,
            names: BTreeMap::new(),
        }
    }

    /// The VM, for messages.
    fn name(&self) -> String {
        explain::vm(Path::new("/proc"), self.pid, self.vm)
    }

    fn explain(&self, request: Request, errno: Errno) -> anyhow::Error {
        explain::explain(&self.name(), request, errno)
    }

    /// Whether the VM has ended.
    pub(super) fn has_ended(&self) -> bool {
        let query = self.views.query();
        query.is_ok_and(|query| query.flags & VMFUNC_QUERY_ENDED != 0)
    }

    /// Answers a question that came with `files`. `Detach` is not for here.
    pub(super) fn answer(&mut self, question: &Question, files: &[OwnedFd]) -> Result<Value> {
        let value = match question {
            Question::List => serde_json::to_value(self.attachment()?)?,
            Question::Add(add) => serde_json::to_value(self.add(add, files.first())?)?,
            Question::Remove { view, at } => self.remove(*view, *at)?,
            Question::Stat => serde_json::to_value(self.stat()?)?,
            Question::Detach => Value::Null,
        };
        Ok(value)
    }

    /// All that is known of it.
    pub(super) fn attachment(&self) -> Result<Attachment> {
        let explain = |errno| self.explain(Request::Look, errno);
        let query = self.views.query().map_err(explain)?;
        let mut views = Vec::new();
        for view in (1..u64::BITS).filter(|view| query.views & (1 << view) != 0) {
            let windows = windows(&self.views, view).map_err(explain)?;
            let windows = windows.iter().map(|window| self.window(window, query.slot));
            views.push(View {
                view,
                windows: windows.collect(),
            });
        }
        Ok(Attachment {
            pid: self.pid,
            command: vm::command(Path::new("/proc"), self.pid),
            vm: self.vm,
            slot: format!("{:#x}", query.slot),
            vcpus: query.vcpus,
            holder: std::process::id(),
            views,
        })
    }

    fn window(&self, window: &VmfuncWindow, slot: u64) -> Window {
        let file = (window.flags & VMFUNC_WINDOW_FILE != 0).then(|| File {
            path: self
                .names
                .get(&(window.view, window.offset))
                .cloned()
                .unwrap_or("?".into()),
            offset: window.address,
        });
        Window {
            offset: format!("{:#x}", window.offset),
            address: format!("{:#x}", slot.saturating_add(window.offset)),
            length: window.length,
            write: window.flags & VMFUNC_WINDOW_WRITE != 0,
            file,
        }
    }

    fn add(&mut self, add: &Add, file: Option<&OwnedFd>) -> Result<Added> {
        let memory = match (&add.file, file) {
            (None, None) => Memory::Owned { write: add.write },
            (Some(part), Some(file)) if !add.write => Memory::File {
                file: file.as_fd(),
                offset: part.offset,
            },
            _ => bail!("the question lacks its file, or has one too many"),
        };
        let (view, new) = match add.view {
            Some(view) => (view, false),
            None => {
                let made = self.views.create_view();
                (made.map_err(|e| self.explain(Request::Create, e))?, true)
            }
        };
        match self.open(view, add, memory) {
            Ok(added) => Ok(added),
            Err(error) => {
                if new {
                    // What was begun is taken back; its own error would hide the first one.
                    let _ = self.views.destroy_view(view);
                }
                Err(error)
            }
        }
    }

    fn open(&mut self, view: u32, add: &Add, memory: Memory<'_>) -> Result<Added> {
        let request = Request::Add(view);
        let at = match add.at {
            Some(at) => at,
            None => {
                let windows = windows(&self.views, view);
                let windows = windows.map_err(|errno| self.explain(request, errno))?;
                let places = windows.iter().map(|window| (window.offset, window.length));
                place::free(places, add.length)
                    .with_context(|| format!("view {view} has no room for that; say --at"))?
            }
        };
        let opened = self.views.add_window(view, at, add.length, memory);
        opened.map_err(|errno| self.explain(request, errno))?;
        if let Some(file) = &add.file {
            self.names.insert((view, at), file.path.clone());
        }
        let window = self.views.window(view, at);
        let query = self.views.query();
        let (window, query) = window
            .and_then(|window| Ok((window, query?)))
            .map_err(|errno| self.explain(request, errno))?;
        Ok(Added {
            view,
            window: self.window(&window, query.slot),
        })
    }

    fn remove(&mut self, view: u32, at: Option<u64>) -> Result<Value> {
        let removed = match at {
            Some(at) => self.views.remove_window(view, at),
            None => self.views.destroy_view(view),
        };
        removed.map_err(|errno| self.explain(Request::Remove(view, at), errno))?;
        self.names
            .retain(|(of, from), _| *of != view || at.is_some_and(|at| at != *from));
        Ok(json!({"view": view, "offset": at.map(|at| format!("{at:#x}"))}))
    }

    fn stat(&self) -> Result<Vec<Vcpu>> {
        let explain = |errno| self.explain(Request::Look, errno);
        let query = self.views.query().map_err(explain)?;
        let mut vcpus = Vec::new();
        for index in 0..query.vcpus {
            let vcpu = match self.views.vcpu(index) {
                Ok(vcpu) => vcpu,
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(explain(errno)),
            };
            vcpus.push(Vcpu {
                vcpu: index,
                armed: vcpu.flags & VMFUNC_VCPU_ARMED != 0,
                unable: vcpu.flags & VMFUNC_VCPU_UNABLE != 0,
                arms: vcpu.arms,
                loads: vcpu.loads,
                resyncs: vcpu.resyncs,
                bounces: vcpu.bounces,
                invepts: vcpu.invepts,
            });
        }
        Ok(vcpus)
    }
}

/// A question as it came.
pub(super) fn understand(line: &str) -> Result<Question> {
    serde_json::from_str(line).map_err(|error| {
        anyhow!(
            "the holder is zeroshift {} and does not understand the question ({error}); detach and \
             attach again with the same version",
            env!("CARGO_PKG_VERSION")
        )
    })
}

#[cfg(test)]
pub(super) mod tests;
