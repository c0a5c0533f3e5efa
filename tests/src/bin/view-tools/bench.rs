// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the tests work with: the program, stock QEMUs, and the modules.

use crate::{rom, Arguments};
use anyhow::{bail, ensure, Context as _, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{kill_process, waitpid, Pid, Signal, WaitOptions};
use serde_json::Value;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use zeroshift_tests::module;
use zeroshift_tests::program::Program;
use zeroshift_tests::vmfunc::MODULE;

/// How long anything may take: only what hangs comes near.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes of the guest's memory.
const MEMORY: u64 = 32 << 20;

/// See the module.
pub(crate) struct Bench {
    pub(crate) program: Program,
    qemu: PathBuf,
    rom: PathBuf,
    module: PathBuf,
    kvm: Option<PathBuf>,
    kvm_parameters: String,
}

impl Bench {
    pub(crate) fn new(arguments: &Arguments) -> Result<Self> {
        let rom = std::env::temp_dir().join(format!("view-tools-{}.rom", std::process::id()));
        fs::write(&rom, rom::image())?;
        Ok(Self {
            program: Program(arguments.zeroshift.clone()),
            qemu: arguments.qemu.clone(),
            rom,
            module: arguments.module.clone(),
            kvm: arguments.kvm.clone(),
            kvm_parameters: arguments.kvm_parameters.clone(),
        })
    }

    /// `zeroshift view` with arguments.
    pub(crate) fn view(&self, arguments: &[&str]) -> Result<String> {
        self.program.text(&[&["view"], arguments].concat())
    }

    /// The same as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.program.json(&[&["view"], arguments].concat())
    }

    /// That it fails with these words.
    pub(crate) fn refused(&self, arguments: &[&str], words: &[&str]) -> Result<()> {
        self.program
            .refused(&[&["view"], arguments].concat(), 1, words)
    }

    /// What `view list` knows.
    pub(crate) fn attachments(&self) -> Result<Vec<Value>> {
        let list = self.json(&["list"])?;
        let attachments = list["attachments"].as_array();
        Ok(attachments.context("no attachments")?.clone())
    }

    /// Attaches to a guest; what it says.
    pub(crate) fn attach(&self, guest: &Guest) -> Result<Value> {
        self.json(&["attach", "--pid", &guest.pid()])
    }

    /// Attaches to one that was attached before: that may take a moment to end.
    pub(crate) fn attach_again(&self, guest: &Guest) -> Result<Value> {
        let pid = guest.pid();
        let arguments = ["view", "attach", "--pid", &pid, "--json"];
        wait("the last attachment to end", || {
            let ran = self.program.run(&arguments)?;
            match ran.code {
                Some(0) => Ok(Some(serde_json::from_slice(&ran.output)?)),
                _ if ran.errors.contains("still ending") => Ok(None),
                _ => bail!("{}", ran.errors),
            }
        })
    }

    /// A stock QEMU whose guest has said that VMFUNC is refused.
    pub(crate) fn guest(&self) -> Result<Guest> {
        let mut child = Command::new(&self.qemu)
            .args([
                "-machine",
                "q35,memory-backend=ram",
                "-accel",
                "kvm",
                "-cpu",
                "host",
            ])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-m"])
            .arg(format!("{}M", MEMORY >> 20))
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=ram,size={MEMORY},share=on"
            ))
            .args(["-serial", "stdio", "-bios"])
            .arg(&self.rom)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.qemu.display()))?;
        let output = child.stdout.take().context("no pipe")?;
        let mut guest = Guest { child, output };
        guest.says(rom::REFUSED)?;
        Ok(guest)
    }

    /// Loads the module.
    pub(crate) fn load(&self) -> Result<()> {
        module::load(&self.module, "").context("cannot load the module")
    }

    /// Loads KVM's module, with or without guests of guests.
    pub(crate) fn load_kvm(&self, nested: bool) -> Result<()> {
        let path = self.kvm.as_ref().context("no file of kvm_intel")?;
        if module::is_loaded("kvm_intel") {
            wait("kvm_intel to be free", || {
                match module::unload("kvm_intel") {
                    Err(Errno::WOULDBLOCK) => Ok(None),
                    other => Ok(Some(other.context("cannot unload kvm_intel")?)),
                }
            })?;
        }
        let parameters = format!("nested={} {}", u8::from(nested), self.kvm_parameters);
        module::load(path, &parameters).context("cannot load kvm_intel")
    }

    /// Loads what most tests need, whatever the one before has left.
    pub(crate) fn ready(&self) -> Result<()> {
        let nested = fs::read_to_string("/sys/module/kvm_intel/parameters/nested");
        if nested.is_ok_and(|nested| nested.trim() == "Y") && self.kvm.is_some() {
            self.load_kvm(false)?;
        }
        if !module::is_loaded(MODULE) {
            self.load()?;
        }
        Ok(())
    }

    /// Whether KVM's module can be loaded with other parameters.
    pub(crate) fn can_reload_kvm(&self) -> bool {
        self.kvm.is_some()
    }

    /// Unloads the module: nothing of any attachment is left. That may take a moment.
    pub(crate) fn unload(&self) -> Result<()> {
        wait("the module to be free", || match module::unload(MODULE) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            other => Ok(Some(other.context("cannot unload the module")?)),
        })
    }

    /// Ends what a test that failed has left.
    pub(crate) fn tidy(&self) {
        for attachment in self.attachments().unwrap_or_default() {
            let (pid, vm) = (attachment["pid"].to_string(), attachment["vm"].to_string());
            let _ = self.view(&["detach", "--pid", &pid, "--vm", &vm]);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.rom);
    }
}

/// A QEMU that runs. Killed when it is dropped.
pub(crate) struct Guest {
    child: Child,
    output: std::process::ChildStdout,
}

impl Guest {
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Waits for the next byte on the guest's serial port, which has to be this one.
    pub(crate) fn says(&mut self, what: u8) -> Result<()> {
        let limit = Timespec {
            tv_sec: LIMIT.as_secs() as i64,
            tv_nsec: 0,
        };
        let ready = poll(
            &mut [PollFd::new(&self.output, PollFlags::IN)],
            Some(&limit),
        )?;
        let expected = char::from(what);
        ensure!(ready == 1, "the guest does not say '{expected}'");
        let mut byte = [0];
        self.output
            .read_exact(&mut byte)
            .with_context(|| format!("QEMU ended before the guest said '{expected}'"))?;
        ensure!(byte == [what], "the guest says {byte:?}, not '{expected}'");
        Ok(())
    }

    /// The file of its memory.
    pub(crate) fn memory(&self) -> Result<PathBuf> {
        let files = Path::new("/proc").join(self.pid()).join("fd");
        for file in fs::read_dir(&files)? {
            let path = file?.path();
            let target = fs::read_link(&path).unwrap_or_default();
            if target.to_string_lossy().starts_with("/memfd:") {
                return Ok(path);
            }
        }
        bail!("QEMU has no memfd")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Stops it: none of its threads runs when this returns.
    pub(crate) fn stop(&self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP)?;
        // Told when the last thread has stopped.
        let stopped = waitpid(Some(pid), WaitOptions::UNTRACED)?;
        ensure!(
            stopped.is_some_and(|(_, status)| status.stopped()),
            "QEMU ended"
        );
        Ok(())
    }

    /// kill -9.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that is not ours.
pub(crate) fn signal(pid: &Value, signal: Signal) -> Result<()> {
    let pid = pid.as_i64().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw).context("no process id")?;
    Ok(kill_process(pid, signal)?)
}

/// Whether a process has ended.
fn has_ended(pid: &Value) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // One that nobody has waited for yet is still there.
    status.is_empty() || status.contains("State:\tZ")
}

/// Waits until a process has ended.
pub(crate) fn ended(pid: &Value) -> Result<()> {
    wait("a process to end", || Ok(has_ended(pid).then_some(())))
}

/// Looks until something is there.
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        // Looked at once more behind the limit.
        let late = start.elapsed() > LIMIT;
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(!late, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
