// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The plan: run a guest until its programs have worked for some rounds, move it (or see that QEMU refuses), let them
//! work for some more, stop them, and judge. Every wait has a limit, and says what it waited for.

use std::io::Write;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use serde_json::{json, Value};

use crate::events::Events;
use crate::guest::Guest;
use crate::qemu::{News, Qemu, Side};
use crate::qmp::{Qmp, Refused};
use crate::Arguments;

/// How often the migration is asked how far it is, beside at every pass over memory.
const LOOK: Duration = Duration::from_millis(250);

/// Bytes a second at which memory is copied until every program of the guest has done a round: slow enough for that.
const SLOW: u64 = 4 << 20;

/// The same for the first pass when only what comes behind it matters: so slow that the next ones do not end the move
/// before they are slowed down.
const FIRST_PASS: u64 = 16 << 20;

/// Passes over memory after which the guest may stand still for longer: it writes faster than this machine copies.
const PATIENCE: u64 = 6;
/// What it may then, in ms.
const LONG: u32 = 10_000;

/// A run.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    arguments: &'a Arguments,
    events: Events,
    guest: Guest,
    source: Option<Qemu>,
    destination: Option<Qemu>,
    news: Receiver<News>,
    sender: Sender<News>,
    /// Passes of the migration over memory, as QEMU counts them.
    passes: u64,
    ended: [bool; 2],
    /// The destination's end is no accident.
    dropped: bool,
    /// The moves that came to nothing, as they had to.
    interruptions: Vec<Value>,
    /// How the move went, or that it was refused.
    migration: Value,
    /// The guest was told to stop.
    stopping: bool,
    /// The move is not to end yet, however many passes that takes.
    held: bool,
}

impl<'a> Run<'a> {
    /// Nothing was started yet.
    pub(crate) fn new(arguments: &'a Arguments) -> Self {
        let (sender, news) = channel();
        Self {
            arguments,
            events: Events::new(),
            guest: Guest::default(),
            source: None,
            destination: None,
            news,
            sender,
            passes: 0,
            ended: [false; 2],
            dropped: false,
            interruptions: Vec::new(),
            migration: Value::Null,
            stopping: false,
            held: false,
        }
    }

    /// Carries the plan out and says the verdict; true when it is a pass.
    pub(crate) fn run(mut self) -> bool {
        let why = match self.carry_out() {
            Ok(()) => self.complaints(),
            Err(e) => self.circumstances(&e),
        };
        let workloads: serde_json::Map<String, Value> = self
            .guest
            .workloads
            .iter()
            .map(|(name, workload)| (name.clone(), workload.json()))
            .collect();
        let pass = why.is_empty();
        self.events.say(
            "verdict",
            json!({
                "pass": pass, "why": why, "migration": self.migration, "interruptions": self.interruptions,
                "workloads": workloads,
            }),
        );
        pass
    }

    /// What is known when the plan failed with `error`: what came from both QEMUs since, and from the guest.
    fn circumstances(&mut self, error: &anyhow::Error) -> Vec<String> {
        let mut why = vec![format!("{error:#}")];
        while let Ok(news) = self.news.try_recv() {
            why.extend(self.take(news).err().map(|e| format!("{e:#}")));
        }
        why.push(self.words());
        self.look();
        why.push(self.guest.ending());
        why
    }

    /// Says what processors and interrupt controllers of the guest do: a guest that hangs tells nothing itself.
    fn look(&mut self) {
        for qemu in [&mut self.source, &mut self.destination]
            .into_iter()
            .flatten()
        {
            for command in ["info status", "info registers", "info lapic", "info pic"] {
                let arguments = json!({"command-line": command});
                let said = qemu.qmp.execute("human-monitor-command", arguments);
                let said = said.map_or_else(|e| format!("{e:#}"), |said| said.to_string());
                let side = qemu.side.name();
                self.events.say(
                    "monitor",
                    json!({"side": side, "asked": command, "said": said}),
                );
            }
        }
    }

    fn carry_out(&mut self) -> Result<()> {
        let arguments = self.arguments;
        self.phase("boot");
        self.source = Some(self.start(Side::Source)?);
        self.work("before the move")?;
        if let Some(text) = &arguments.expect_refusal {
            self.migration = self.refusal(text)?;
            self.work("after the refused move")?;
        } else if arguments.migrate {
            for interruption in &arguments.interruptions {
                self.interrupt(*interruption)?;
            }
            self.migration = self.migrate()?;
            self.work("after the move")?;
        }
        self.stop()?;
        self.phase("end");
        Ok(())
    }

    /// What is wrong with how the guest ended.
    fn complaints(&self) -> Vec<String> {
        let mut why = Vec::new();
        if self.guest.exit != Some(0) {
            why.push(match self.guest.exit {
                Some(code) => format!("the guest's job ended with {code}"),
                None => "the guest's job did not end".to_owned(),
            });
        }
        for (name, _) in &self.arguments.workloads {
            let workload = self.guest.workloads.get(name);
            let summary = workload.and_then(|w| w.summary.as_ref());
            let passed = summary.and_then(|s| s.get("pass")) == Some(&Value::Bool(true));
            if !passed {
                why.push(match summary {
                    Some(summary) => format!("{name} in the guest: {summary}"),
                    None => format!("{name} in the guest did not come to its end"),
                });
            }
        }
        why
    }

    pub(crate) fn phase(&self, name: &str) {
        self.events.say("phase", json!({"phase": name}));
    }

    fn start(&self, side: Side) -> Result<Qemu> {
        let arguments = self.arguments.qemu(side)?;
        Qemu::start(side, &arguments, &self.sender)
    }

    /// A move came to nothing, as it had to.
    pub(crate) fn interrupted(&mut self, how: &str) {
        self.events.say("interrupted", json!({"how": how}));
        self.interruptions.push(how.into());
    }

    /// Waits until every program of the guest has done its rounds once more.
    pub(crate) fn work(&mut self, when: &str) -> Result<()> {
        self.phase(&format!("work {when}"));
        for (name, rounds) in &self.arguments.workloads {
            let done = |guest: &Guest| guest.workloads.get(name).map_or(0, |w| w.rounds);
            let wanted = done(&self.guest) + rounds;
            self.wait(&format!("{rounds} rounds of {name} {when}"), |run| {
                done(&run.guest) >= wanted
            })?;
        }
        Ok(())
    }

    /// Tells the guest to stop, and waits until it has switched itself off.
    fn stop(&mut self) -> Result<()> {
        self.phase("stop");
        self.stopping = true;
        let qemu = self.destination.as_mut().or(self.source.as_mut());
        let qemu = qemu.context("no QEMU has the guest")?;
        qemu.jobs()
            .write_all(b"stop\n")
            .context("say stop to the guest")?;
        let side = qemu.side;
        self.wait("the guest's end", |run| run.ended[side as usize])?;
        // The ports are heard to their end before the guest is judged: threads of their own hear them and the monitor.
        for qemu in [self.destination.take(), self.source.take()] {
            qemu.into_iter().for_each(Qemu::end);
        }
        self.drain()?;
        ensure!(
            self.guest.halted,
            "QEMU ended before the guest had switched itself off"
        );
        Ok(())
    }

    /// Starts a migration that has to fail with `text` in the words of a QEMU.
    fn refusal(&mut self, text: &str) -> Result<Value> {
        self.phase("refusal");
        if self.arguments.destination.is_some() {
            self.open_destination()?;
        }
        self.destination_may_end();
        // QEMU warns of some things when it starts, in the same words.
        let old = self.on_stderr(text);
        let said = match self.send(0) {
            Err(e) if e.is::<Refused>() => format!("{e:#}"),
            Err(e) => return Err(e),
            Ok(()) => {
                let last = self.follow(|_, _| false)?;
                ensure!(
                    status(&last) != "completed",
                    "the migration completed, although it had to fail with {text:?}"
                );
                // The destination says why it ends.
                let end = Instant::now() + Duration::from_secs(120);
                while !self.ended[Side::Destination as usize] && self.hear(end)? {}
                let gone = self.ended[Side::Destination as usize];
                if let Some(destination) = self.destination.as_mut().filter(|_| gone) {
                    destination.epitaph();
                }
                last.to_string()
            }
        };
        let said = match self.on_stderr(text) {
            _ if said.contains(text) => said,
            Some(line) if old.is_none() => line,
            _ => bail!(
                "the migration had to fail with {text:?}: {said}; {}",
                self.words()
            ),
        };
        self.drop_destination()?;
        self.events.say("refused", json!({"said": said}));
        Ok(json!({"refused": said}))
    }

    /// A line with `text` that one of the QEMUs printed.
    fn on_stderr(&self, text: &str) -> Option<String> {
        [&self.source, &self.destination]
            .into_iter()
            .flatten()
            .find_map(|qemu| qemu.said(text))
    }

    fn migrate(&mut self) -> Result<Value> {
        self.phase("migration");
        self.open_destination()?;
        if self.arguments.paused {
            self.source()?.execute("stop", Value::Null)?;
        }
        // What it did until now does not count as done during the move.
        self.drain()?;
        self.guest.moves();
        if self.arguments.paused {
            self.send(0)?;
        } else {
            if self.arguments.behind_first_pass {
                self.send(FIRST_PASS)?;
                let state = self.follow(|_, state| syncs(state) > Some(1))?;
                self.set_bandwidth(SLOW)?;
                self.held = true;
                self.phase("behind the first pass");
                self.drain()?;
                if status(&state) == "active" {
                    self.guest.moves();
                }
            } else {
                self.send(SLOW)?;
            }
            self.follow(|run, state| {
                let mut names = run.arguments.workloads.iter().map(|(name, _)| name);
                status(state) == "active" && names.all(|name| run.guest.rounds_since(name) > 0)
            })?;
            self.phase("full speed");
            self.held = false;
            self.set_bandwidth(0)?;
        }
        let last = self.follow(|_, _| false)?;
        if status(&last) != "completed" {
            bail!("the migration did not complete: {last}; {}", self.words());
        }
        self.phase("switch");
        if self.arguments.paused {
            self.wait_for(Side::Destination, "paused")?;
            let destination = self.destination.as_mut().context("no destination")?;
            destination.qmp.execute("cont", Value::Null)?;
        }
        self.wait_running(Side::Destination)?;
        // All that the guest said in the source comes before what it says in the destination.
        if let Some(source) = self.source.take() {
            source.end();
        }
        self.drain()?;
        self.guest.moved();
        if let Some(destination) = &mut self.destination {
            destination.listen()?;
        }
        let number = |key: &str| last.get(key).cloned().unwrap_or_default();
        let ram = |key: &str| last.pointer(&format!("/ram/{key}")).cloned();
        let outcome = json!({
            "downtime_ms": number("downtime"), "total_ms": number("total-time"), "setup_ms": number("setup-time"),
            "passes": ram("dirty-sync-count"), "ram_bytes": ram("transferred"), "pages": ram("normal"),
            "device_bytes": last.pointer("/vfio/transferred"),
        });
        self.events.say("moved", outcome.clone());
        Ok(outcome)
    }

    /// What both QEMUs said last.
    pub(crate) fn words(&mut self) -> String {
        let qemus = [&mut self.source, &mut self.destination];
        let words = qemus.into_iter().flatten().map(Qemu::describe);
        words.collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn open_destination(&mut self) -> Result<()> {
        let mut destination = self.start(Side::Destination)?;
        let capabilities = self.capabilities();
        let qmp = &mut destination.qmp;
        qmp.execute("migrate-set-capabilities", capabilities)?;
        qmp.execute("migrate-incoming", json!({"uri": self.arguments.uri()}))
            .with_context(|| "open the destination")?;
        self.destination = Some(destination);
        Ok(())
    }

    /// From now on its end is no accident.
    pub(crate) fn destination_may_end(&mut self) {
        self.dropped = true;
    }

    /// Ends the destination, if there is one.
    pub(crate) fn drop_destination(&mut self) -> Result<()> {
        self.destination_may_end();
        if let Some(destination) = self.destination.take() {
            destination.end();
            self.wait("the destination's end", |run| {
                run.ended[Side::Destination as usize]
            })?;
        }
        self.dropped = false;
        self.ended[Side::Destination as usize] = false;
        Ok(())
    }

    /// The source's monitor.
    pub(crate) fn source(&mut self) -> Result<&mut Qmp> {
        Ok(&mut self.source.as_mut().context("no source")?.qmp)
    }

    /// Starts the migration, with at most `bandwidth` bytes a second; 0 for as many as go.
    pub(crate) fn send(&mut self, bandwidth: u64) -> Result<()> {
        let capabilities = self.capabilities();
        let uri = self.arguments.uri();
        let downtime = self.arguments.downtime_limit;
        let qmp = self.source()?;
        qmp.execute("migrate-set-capabilities", capabilities)?;
        let parameters = json!({"max-bandwidth": bandwidth, "downtime-limit": downtime});
        qmp.execute("migrate-set-parameters", parameters)?;
        qmp.execute("migrate", json!({"uri": uri})).map(drop)
    }

    /// Copies at most so many bytes a second from now on; 0 for as many as go.
    fn set_bandwidth(&mut self, bandwidth: u64) -> Result<()> {
        let parameters = json!({"max-bandwidth": bandwidth});
        let done = self.source()?.execute("migrate-set-parameters", parameters);
        done.map(drop)
    }

    /// Switches a capability of the source's on or off.
    pub(crate) fn switch_capability(&mut self, name: &str, on: bool) -> Result<()> {
        let list = json!([{"capability": name, "state": on}]);
        let arguments = json!({"capabilities": list});
        let done = self
            .source()?
            .execute("migrate-set-capabilities", arguments);
        done.map(drop)
    }

    fn capabilities(&self) -> Value {
        let wanted = self.arguments.capabilities.iter().map(String::as_str);
        let list: Vec<Value> = std::iter::once("events")
            .chain(wanted)
            .map(|name| json!({"capability": name, "state": true}))
            .collect();
        json!({"capabilities": list})
    }

    /// Follows the migration to its end, whichever it is, or to where `enough` is true of it.
    pub(crate) fn follow(&mut self, enough: impl Fn(&Self, &Value) -> bool) -> Result<Value> {
        let end = Instant::now() + self.arguments.limit();
        let mut said = Value::Null;
        let mut patient = true;
        loop {
            let state = self.source()?.execute("query-migrate", Value::Null)?;
            let line = json!({
                "status": status(&state), "passes": self.passes, "remaining": state.pointer("/ram/remaining"),
                "transferred": state.pointer("/ram/transferred"), "dirty_rate": state.pointer("/ram/dirty-pages-rate"),
                "syncs": state.pointer("/ram/dirty-sync-count"), "device": state.pointer("/vfio/transferred"),
            });
            if line != said {
                said = line.clone();
                self.events.say("progress", line);
            }
            let over = matches!(status(&state), "completed" | "failed" | "cancelled");
            if over || enough(self, &state) {
                return Ok(state);
            }
            if patient && !self.held && syncs(&state) > Some(PATIENCE) {
                patient = false;
                let parameters = json!({"downtime-limit": LONG});
                self.source()?
                    .execute("migrate-set-parameters", parameters)?;
            }
            ensure!(
                Instant::now() < end,
                "the migration did not end in {} s: {state}",
                self.arguments.limit().as_secs()
            );
            let passes = self.passes;
            self.listen(LOOK, |run| run.passes != passes)?;
        }
    }

    /// Waits until a side runs the guest.
    pub(crate) fn wait_running(&mut self, side: Side) -> Result<()> {
        self.wait_for(side, "running")
    }

    /// Waits until a side is in the state `wanted`.
    fn wait_for(&mut self, side: Side, wanted: &str) -> Result<()> {
        let end = Instant::now() + self.arguments.limit();
        loop {
            let qemu = match side {
                Side::Source => &mut self.source,
                Side::Destination => &mut self.destination,
            };
            let qemu = qemu.as_mut().context("that QEMU was never started")?;
            let state = qemu.qmp.execute("query-status", Value::Null)?;
            if status(&state) == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "the {} is not {wanted}: {state}",
                side.name()
            );
            self.listen(LOOK, |_| false)?;
        }
    }

    /// Waits for `what`, as `done` sees it.
    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + self.arguments.limit();
        while !done(self) {
            let heard = self.hear(end).with_context(|| format!("wait for {what}"))?;
            ensure!(
                heard || done(self),
                "waited {} s in vain for {what}",
                self.arguments.limit().as_secs()
            );
            ensure!(
                self.stopping || !self.guest.halted,
                "the guest ended before {what}"
            );
        }
        Ok(())
    }

    /// Takes all news that come in the time `span`, or until `enough`.
    fn listen(&mut self, span: Duration, enough: impl Fn(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + span;
        while !enough(self) && self.hear(end)? {}
        Ok(())
    }

    /// Takes the next news, if one comes before `end`.
    fn hear(&mut self, end: Instant) -> Result<bool> {
        let left = end.saturating_duration_since(Instant::now());
        match self.news.recv_timeout(left) {
            Ok(news) => self.take(news).map(|()| true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => bail!("nobody is left to say anything"),
        }
    }

    /// Takes what has come already.
    fn drain(&mut self) -> Result<()> {
        while let Ok(news) = self.news.try_recv() {
            self.take(news)?;
        }
        Ok(())
    }

    fn take(&mut self, news: News) -> Result<()> {
        match news {
            News::Said(port, bytes) => self.guest.hear(port, &bytes, &self.events),
            News::Event(side, event) => {
                if let Some(pass) = event.pointer("/data/pass").and_then(Value::as_u64) {
                    self.passes = pass;
                }
                let name = event.get("event").cloned().unwrap_or_default();
                let data = event.get("data").cloned().unwrap_or_default();
                let line = json!({"side": side.name(), "name": name, "data": data});
                self.events.say("qemu", line);
            }
            News::Ended(side) => {
                self.ended[side as usize] = true;
                let dropped = side == Side::Destination && self.dropped;
                // A guest that was told to stop may say its last words on its port after QEMU has closed the monitor.
                let expected = self.stopping || dropped;
                let qemu = match side {
                    Side::Source => &mut self.source,
                    Side::Destination => &mut self.destination,
                };
                if let Some(qemu) = qemu.as_mut().filter(|_| !expected) {
                    bail!("too early, {}", qemu.epitaph());
                }
            }
        }
        Ok(())
    }
}

/// How often QEMU has read the dirty log of memory: once at the beginning, and at the end of each pass.
fn syncs(state: &Value) -> Option<u64> {
    state.pointer("/ram/dirty-sync-count")?.as_u64()
}

/// The status in an answer of the monitor.
pub(crate) fn status(state: &Value) -> &str {
    let status = state.get("status").and_then(Value::as_str);
    status.unwrap_or("none")
}
