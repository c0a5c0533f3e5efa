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
use crate::qmp::Refused;
use crate::Arguments;

/// How often the migration is asked how far it is.
const LOOK: Duration = Duration::from_millis(250);

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
    /// How the move went, or that it was refused.
    migration: Value,
    /// The guest was told to stop.
    stopping: bool,
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
            migration: Value::Null,
            stopping: false,
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
            json!({"pass": pass, "why": why, "migration": self.migration, "workloads": workloads}),
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
        why.push(self.guest.ending());
        why
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

    fn phase(&self, name: &str) {
        self.events.say("phase", json!({"phase": name}));
    }

    fn start(&self, side: Side) -> Result<Qemu> {
        let arguments = self.arguments.qemu(side)?;
        Qemu::start(side, &arguments, &self.sender)
    }

    /// Waits until every program of the guest has done its rounds once more.
    fn work(&mut self, when: &str) -> Result<()> {
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
        self.wait("the guest's end", |run| {
            run.guest.halted && run.ended[side as usize]
        })?;
        // The ports are heard to their end before the guest is judged.
        for qemu in [self.destination.take(), self.source.take()] {
            qemu.into_iter().for_each(Qemu::end);
        }
        self.drain()?;
        Ok(())
    }

    /// Starts a migration that has to fail with `text` in the words of a QEMU.
    fn refusal(&mut self, text: &str) -> Result<Value> {
        self.phase("refusal");
        if self.arguments.destination.is_some() {
            self.open_destination()?;
        }
        let said = match self.send() {
            Err(e) if e.is::<Refused>() => format!("{e:#}"),
            Err(e) => return Err(e),
            Ok(()) => {
                let last = self.follow()?;
                ensure!(
                    status(&last) != "completed",
                    "the migration completed, although it had to fail with {text:?}"
                );
                // The destination says why it ends.
                let end = Instant::now() + Duration::from_secs(30);
                while !self.ended[Side::Destination as usize] && self.hear(end)? {}
                last.to_string()
            }
        };
        let on_stderr = [&self.source, &self.destination]
            .into_iter()
            .flatten()
            .find_map(|qemu| qemu.said(text));
        let said = match on_stderr {
            Some(line) => line,
            None if said.contains(text) => said,
            None => bail!(
                "the migration had to fail with {text:?}: {said}; {}",
                self.words()
            ),
        };
        if let Some(destination) = self.destination.take() {
            destination.end();
        }
        self.events.say("refused", json!({"said": said}));
        Ok(json!({"refused": said}))
    }

    fn migrate(&mut self) -> Result<Value> {
        self.phase("migration");
        self.guest.moves();
        self.open_destination()?;
        self.send()?;
        let last = self.follow()?;
        if status(&last) != "completed" {
            bail!("the migration did not complete: {last}; {}", self.words());
        }
        self.phase("switch");
        self.wait_running()?;
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
    fn words(&mut self) -> String {
        let qemus = [&mut self.source, &mut self.destination];
        let words = qemus.into_iter().flatten().map(Qemu::describe);
        words.collect::<Vec<_>>().join("; ")
    }

    fn open_destination(&mut self) -> Result<()> {
        let mut destination = self.start(Side::Destination)?;
        let capabilities = self.capabilities();
        let qmp = &mut destination.qmp;
        qmp.execute("migrate-set-capabilities", capabilities)?;
        qmp.execute("migrate-incoming", json!({"uri": self.arguments.uri()}))
            .with_context(|| "open the destination")?;
        self.destination = Some(destination);
        Ok(())
    }

    /// Starts the migration.
    fn send(&mut self) -> Result<()> {
        let capabilities = self.capabilities();
        let uri = self.arguments.uri();
        let downtime = self.arguments.downtime_limit;
        let qmp = &mut self.source.as_mut().context("no source")?.qmp;
        qmp.execute("migrate-set-capabilities", capabilities)?;
        let parameters = json!({"max-bandwidth": 0, "downtime-limit": downtime});
        qmp.execute("migrate-set-parameters", parameters)?;
        qmp.execute("migrate", json!({"uri": uri})).map(drop)
    }

    fn capabilities(&self) -> Value {
        let wanted = self.arguments.capabilities.iter().map(String::as_str);
        let list: Vec<Value> = std::iter::once("events")
            .chain(wanted)
            .map(|name| json!({"capability": name, "state": true}))
            .collect();
        json!({"capabilities": list})
    }

    /// Follows the migration to its end, whichever it is.
    fn follow(&mut self) -> Result<Value> {
        let end = Instant::now() + self.arguments.limit();
        let mut said = Value::Null;
        loop {
            let qmp = &mut self.source.as_mut().context("no source")?.qmp;
            let state = qmp.execute("query-migrate", Value::Null)?;
            let line = json!({
                "status": status(&state), "passes": self.passes, "remaining": state.pointer("/ram/remaining"),
                "transferred": state.pointer("/ram/transferred"), "dirty_rate": state.pointer("/ram/dirty-pages-rate"),
                "syncs": state.pointer("/ram/dirty-sync-count"), "device": state.pointer("/vfio/transferred"),
            });
            if line != said {
                said = line.clone();
                self.events.say("progress", line);
            }
            if matches!(status(&state), "completed" | "failed" | "cancelled") {
                return Ok(state);
            }
            ensure!(
                Instant::now() < end,
                "the migration did not end in {} s: {state}",
                self.arguments.limit().as_secs()
            );
            self.listen(LOOK)?;
        }
    }

    /// Waits until the destination runs the guest.
    fn wait_running(&mut self) -> Result<()> {
        let end = Instant::now() + self.arguments.limit();
        loop {
            let qmp = &mut self.destination.as_mut().context("no destination")?.qmp;
            let state = qmp.execute("query-status", Value::Null)?;
            if status(&state) == "running" {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "the destination does not run the guest: {state}"
            );
            self.listen(LOOK)?;
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

    /// Takes all news that come in the time `span`.
    fn listen(&mut self, span: Duration) -> Result<()> {
        let end = Instant::now() + span;
        while self.hear(end)? {}
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
                let refused = side == Side::Destination && self.arguments.expect_refusal.is_some();
                let expected = self.guest.halted || refused;
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

fn status(state: &Value) -> &str {
    let status = state.get("status").and_then(Value::as_str);
    status.unwrap_or("none")
}
