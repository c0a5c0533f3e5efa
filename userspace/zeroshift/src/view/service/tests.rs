// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::*;
use std::sync::{Arc, Mutex};
use vmfunc_uapi::{VmfuncQuery, VmfuncVcpu, VMFUNC_WINDOW_OWNED};

/// A module vmfunc_view with a VM of one vCPU: it notes what it was asked, and fails where it is told
/// to. Copies are the same one.
#[derive(Clone, Default)]
pub(in super::super) struct Fake(Arc<Mutex<Inner>>);

#[derive(Default)]
pub(in super::super) struct Inner {
    views: BTreeMap<u32, BTreeMap<u64, VmfuncWindow>>,
    pub(in super::super) ended: bool,
    pub(in super::super) fails: Option<(&'static str, Errno)>,
    pub(in super::super) asked: Vec<String>,
}

impl Fake {
    pub(in super::super) fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// How many there are of it.
    pub(in super::super) fn copies(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    fn ask(&self, what: String) -> Result<std::sync::MutexGuard<'_, Inner>, Errno> {
        let mut inner = self.inner();
        let word = what.split(' ').next().unwrap().to_owned();
        inner.asked.push(what);
        match inner.fails {
            Some((failing, errno)) if failing == word => Err(errno),
            _ => Ok(inner),
        }
    }
}

impl Views for Fake {
    fn query(&self) -> Result<VmfuncQuery, Errno> {
        let inner = self.inner();
        Ok(VmfuncQuery {
            flags: if inner.ended { VMFUNC_QUERY_ENDED } else { 0 },
            vcpus: 1,
            views: inner.views.keys().map(|view| 1 << view).sum(),
            slot: 1 << 39,
            ..VmfuncQuery::default()
        })
    }

    fn create_view(&self) -> Result<u32, Errno> {
        let mut inner = self.ask("create".into())?;
        let free = (1..).find(|view| !inner.views.contains_key(view)).unwrap();
        inner.views.insert(free, BTreeMap::new());
        Ok(free)
    }

    fn destroy_view(&self, view: u32) -> Result<(), Errno> {
        let mut inner = self.ask(format!("destroy {view}"))?;
        inner.views.remove(&view).map(drop).ok_or(Errno::NOENT)
    }

    fn add_window(
        &self,
        view: u32,
        offset: u64,
        length: u64,
        memory: Memory<'_>,
    ) -> Result<(), Errno> {
        let (flags, address) = match memory {
            Memory::Owned { write: false } => (VMFUNC_WINDOW_OWNED, 0),
            Memory::Owned { write: true } => (VMFUNC_WINDOW_OWNED | VMFUNC_WINDOW_WRITE, 0),
            Memory::File { file, offset } => {
                // It is a file.
                rustix::fs::fstat(file)?;
                (VMFUNC_WINDOW_FILE, offset)
            }
        };
        let mut inner = self.ask(format!(
            "add {view} {offset:x}+{length:x} {flags} {address:x}"
        ))?;
        let windows = inner.views.get_mut(&view).ok_or(Errno::NOENT)?;
        let window = VmfuncWindow {
            view,
            offset,
            length,
            flags,
            address,
            ..VmfuncWindow::default()
        };
        match windows.insert(offset, window) {
            None => Ok(()),
            Some(_) => Err(Errno::EXIST),
        }
    }

    fn remove_window(&self, view: u32, offset: u64) -> Result<(), Errno> {
        let mut inner = self.ask(format!("remove {view} {offset:x}"))?;
        let windows = inner.views.get_mut(&view).ok_or(Errno::NOENT)?;
        windows.remove(&offset).map(drop).ok_or(Errno::NOENT)
    }

    fn window(&self, view: u32, offset: u64) -> Result<VmfuncWindow, Errno> {
        let inner = self.inner();
        let windows = inner.views.get(&view).ok_or(Errno::NOENT)?;
        let found = windows.range(offset..).next();
        found.map(|(_, window)| *window).ok_or(Errno::NOENT)
    }

    fn vcpu(&self, index: u32) -> Result<VmfuncVcpu, Errno> {
        (index == 0)
            .then_some(VmfuncVcpu {
                flags: VMFUNC_VCPU_ARMED,
                arms: 3,
                loads: 4,
                resyncs: 5,
                bounces: 6,
                invepts: 7,
                ..VmfuncVcpu::default()
            })
            .ok_or(Errno::NOENT)
    }
}

pub(in super::super) fn service(fake: &Fake) -> Service<Fake> {
    // CAST: process ids are below 2^22.
    Service::new(fake.clone(), std::process::id() as i32, 9)
}

/// A window of the module's memory.
pub(in super::super) fn owned(view: Option<u32>, at: Option<u64>) -> Question {
    Question::Add(Add {
        view,
        at,
        length: 4096,
        write: true,
        file: None,
    })
}

fn ok(service: &mut Service<Fake>, question: &Question, files: &[OwnedFd]) -> Value {
    service.answer(question, files).unwrap()
}

fn error(service: &mut Service<Fake>, question: &Question) -> String {
    format!("{:#}", service.answer(question, &[]).unwrap_err())
}

#[test]
fn a_window_without_a_view_makes_one_and_takes_a_free_place() {
    let fake = Fake::default();
    let mut service = service(&fake);
    let first = ok(&mut service, &owned(None, None), &[]);
    assert_eq!(
        first,
        json!({"view": 1, "offset": "0x200000", "address": "0x8000200000", "length": 4096,
            "write": true, "file": null})
    );
    let second = ok(&mut service, &owned(Some(1), None), &[]);
    assert_eq!(second["offset"], "0x400000");
    let third = ok(&mut service, &owned(None, Some(0x60_1000)), &[]);
    assert_eq!(
        (&third["view"], &third["offset"]),
        (&json!(2), &json!("0x601000"))
    );
    let asked = fake.inner().asked.clone();
    assert_eq!(
        asked,
        [
            "create",
            "add 1 200000+1000 3 0",
            "add 1 400000+1000 3 0",
            "create",
            "add 2 601000+1000 3 0"
        ]
    );
}

#[test]
fn a_new_view_goes_when_its_window_is_refused() {
    let fake = Fake::default();
    let mut service = service(&fake);
    fake.inner().fails = Some(("add", Errno::NOMEM));
    let text = error(&mut service, &owned(None, None));
    assert!(text.contains("locked memory"), "{text}");
    assert!(fake.inner().asked.ends_with(&["destroy 1".into()]));
    // One that was there stays.
    fake.inner().fails = None;
    ok(&mut service, &owned(None, None), &[]);
    let text = error(&mut service, &owned(Some(1), Some(0x20_0000)));
    assert!(text.contains("overlap"), "{text}");
    assert!(!fake.inner().asked.ends_with(&["destroy 1".into()]));
}

#[test]
fn files_keep_the_name_that_they_were_given() {
    let fake = Fake::default();
    let mut service = service(&fake);
    let file = || [OwnedFd::from(tempfile::tempfile().unwrap())];
    let question = Question::Add(Add {
        view: None,
        at: None,
        length: 8192,
        write: false,
        file: Some(File {
            path: "/proc/7/fd/9".into(),
            offset: 4096,
        }),
    });
    let added = ok(&mut service, &question, &file());
    let part = json!({"path": "/proc/7/fd/9", "offset": 4096});
    assert_eq!((&added["file"], &added["write"]), (&part, &json!(false)));
    let list = ok(&mut service, &Question::List, &[]);
    assert_eq!(list["views"][0]["windows"][0]["file"], part);
    assert!(error(&mut service, &question).contains("lacks its file"));
    // A file and a window of the module's memory; a file to write.
    assert!(service.answer(&owned(None, None), &file()).is_err());
    let Question::Add(add) = &question else {
        panic!()
    };
    let write = Question::Add(Add {
        write: true,
        ..add.clone()
    });
    assert!(service.answer(&write, &file()).is_err());
    // The name goes with the window, and with the view.
    let at = Some(0x20_0000);
    ok(&mut service, &Question::Remove { view: 1, at }, &[]);
    assert!(service.names.is_empty());
    let Question::Add(mut again) = question else {
        panic!()
    };
    again.view = Some(1);
    ok(&mut service, &Question::Add(again), &file());
    assert_eq!(service.names.len(), 1);
    ok(&mut service, &Question::Remove { view: 1, at: None }, &[]);
    assert!(service.names.is_empty());
}

#[test]
fn list_and_stat_tell_what_the_kernel_knows() {
    let fake = Fake::default();
    let mut service = service(&fake);
    for view in [None, Some(1), None] {
        ok(&mut service, &owned(view, None), &[]);
    }
    let list = ok(&mut service, &Question::List, &[]);
    assert_eq!(list["slot"], "0x8000000000");
    assert_eq!(list["holder"], std::process::id());
    let views = list["views"].as_array().unwrap().iter();
    let views = views.map(|view| {
        (
            view["view"].as_u64(),
            view["windows"].as_array().unwrap().len(),
        )
    });
    assert_eq!(views.collect::<Vec<_>>(), [(Some(1), 2), (Some(2), 1)]);
    let stat = ok(&mut service, &Question::Stat, &[]);
    assert_eq!(
        stat,
        json!([{"vcpu": 0, "armed": true, "unable": false, "arms": 3, "loads": 4, "resyncs": 5,
            "bounces": 6, "invepts": 7}])
    );
}

#[test]
fn what_is_not_there_cannot_be_removed() {
    let fake = Fake::default();
    let mut service = service(&fake);
    let text = error(&mut service, &Question::Remove { view: 3, at: None });
    assert!(
        text.contains("cannot end view 3") && text.contains("view list"),
        "{text}"
    );
    ok(&mut service, &owned(None, None), &[]);
    let at = Some(0x40_0000);
    let text = error(&mut service, &Question::Remove { view: 1, at });
    assert!(text.contains("at 0x400000"), "{text}");
}
