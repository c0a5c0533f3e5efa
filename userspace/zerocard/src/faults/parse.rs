// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Fault rules from text (`--fault`) and from JSON (the control socket).
//!
//! Both become the same list of keys and values, so they accept the same and refuse it in the same
//! words: the key, the value, and what is allowed.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde_json::Value;
use zeroshift_nvme::command::admin;
use zeroshift_nvme::status::Status;

use super::names;
use super::rule::{Action, Death, Field, Filter, Rule, Schedule};

/// Longest function name; the same for every place that takes one.
const MAX_NAME: usize = 64;
/// Longest delay, in nanoseconds: an hour.
const MAX_DELAY: u64 = 3_600_000_000_000;
/// Latest arrival of a write, in nanoseconds: its connection waits for it.
const MAX_LATE: u64 = 1_000_000_000;

/// Keys that need no value.
const FLAGS: [&str; 6] = ["before", "after", "stall", "drop", "disconnect", "dnr"];
/// Keys that do.
const KEYS: [&str; 16] = [
    "function", "queue", "op", "sel", "cdw10", "nth", "from", "every", "times", "p", "delay",
    "status", "dead", "corrupt", "forget", "late",
];
/// Keys that say what happens. A rule has one of them.
const ACTIONS: &str = "delay, status, stall, drop, disconnect, dead, corrupt, forget or late";

/// Why something is no rule, in words for whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuleError(String);

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RuleError {}

/// "`key`: `value` is not allowed". The value is cut and escaped: it may be anything.
fn refused(key: &str, value: &str, allowed: impl fmt::Display) -> RuleError {
    let shown = shorten(value);
    RuleError(format!(
        "{key}: {shown:?} is not allowed; it takes {allowed}"
    ))
}

fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(40).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

impl FromStr for Rule {
    type Err = RuleError;

    /// `key=value,key=value,flag`.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut fields = Fields::default();
        for part in text.split(',') {
            let part = part.trim();
            match part.split_once('=') {
                Some((key, value)) => fields.add(key.trim(), Some(value.trim().to_owned()))?,
                None => fields.add(part, None)?,
            }
        }
        fields.rule()
    }
}

impl Rule {
    /// A text as above, or an object with the same keys: numbers may be JSON numbers, and a key
    /// that needs no value is `true`.
    pub(crate) fn from_json(value: &Value) -> Result<Self, RuleError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Object(object) => {
                let mut fields = Fields::default();
                for (key, value) in object {
                    let value = match value {
                        Value::String(text) => Some(text.clone()),
                        Value::Number(number) => Some(number.to_string()),
                        Value::Bool(true) => None,
                        other => {
                            let shown = other.to_string();
                            return Err(refused(key, &shown, "a string, a number or true"));
                        }
                    };
                    fields.add(key, value)?;
                }
                fields.rule()
            }
            _ => Err(RuleError("a fault rule is a string or an object".into())),
        }
    }
}

/// Keys and values that no other part of a rule has taken yet.
#[derive(Default)]
struct Fields(Vec<(&'static str, Option<String>)>);

impl Fields {
    fn add(&mut self, key: &str, value: Option<String>) -> Result<(), RuleError> {
        if key.is_empty() && value.is_none() {
            return Err(RuleError(format!(
                "an empty part; a fault rule is key=value,... with one of {ACTIONS}"
            )));
        }
        let mut known = FLAGS.iter().chain(&KEYS);
        let Some(key) = known.find(|known| **known == key) else {
            let (keys, flags) = (KEYS.join(", "), FLAGS.join(", "));
            return Err(RuleError(format!(
                "{:?} is no key of a fault rule; there are {keys} with a value and {flags} without",
                shorten(key)
            )));
        };
        match (&value, FLAGS.contains(key)) {
            (Some(value), true) => return Err(refused(key, value, "no value")),
            (None, false) => return Err(RuleError(format!("{key}: a value is missing"))),
            _ => {}
        }
        if self.has(key) {
            return Err(RuleError(format!("{key}: it is there twice")));
        }
        self.0.push((key, value));
        Ok(())
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| *known == key)
    }

    /// Takes a key with its value.
    fn value(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| *known == key)?;
        self.0.swap_remove(at).1
    }

    /// Takes a key without a value.
    fn flag(&mut self, key: &str) -> bool {
        let count = self.0.len();
        self.0.retain(|(known, _)| *known != key);
        self.0.len() < count
    }

    fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, RuleError> {
        let Some(text) = self.value(key) else {
            return Ok(None);
        };
        match number(&text) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(refused(
                key,
                &text,
                format_args!("a number from {} to {}", range.start(), range.end()),
            )),
        }
    }

    fn rule(mut self) -> Result<Rule, RuleError> {
        let function = self.function()?;
        let filter = self.filter()?;
        let (after, place) = match (self.flag("before"), self.flag("after")) {
            (true, true) => return Err(RuleError("before and after exclude each other".into())),
            (before, after) => (after, before || after),
        };
        let forget = self.number("forget", 1..=u64::MAX)?;
        let schedule = self.schedule(forget)?;
        let (action, name) = self.action(forget.is_some())?;
        if let Some((key, _)) = self.0.first() {
            let text = match *key {
                "dnr" => String::from("dnr: it goes with status only"),
                key => format!("{key} and {name} exclude each other; a fault rule has one action"),
            };
            return Err(RuleError(text));
        }
        let mut rule = Rule {
            function,
            filter,
            schedule,
            after,
            action,
        };
        match action {
            Action::Forget if place || filter != Filter::default() => {
                return Err(RuleError(
                    "forget: it counts dirty marks, not commands; it goes with function, from, \
                     times and p only"
                        .into(),
                ));
            }
            Action::Late(_) if place || filter != Filter::default() => {
                return Err(RuleError(
                    "late: it counts writes of registers, not commands; it goes with function, \
                     nth, from, every, times and p only"
                        .into(),
                ));
            }
            Action::CorruptCompletion(_) | Action::CorruptState if place && !after => {
                return Err(RuleError(
                    "before: nothing can be corrupt before the command is executed".into(),
                ));
            }
            Action::CorruptCompletion(_) => rule.after = true,
            Action::CorruptState => {
                rule.after = true;
                rule.filter = state_filter(filter)?;
            }
            _ => {}
        }
        Ok(rule)
    }

    fn function(&mut self) -> Result<Option<String>, RuleError> {
        let Some(name) = self.value("function") else {
            return Ok(None);
        };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) {
            return Err(refused("function", &name, "the name of a function, or all"));
        }
        Ok(Some(name).filter(|name| name != "all"))
    }

    fn filter(&mut self) -> Result<Filter, RuleError> {
        let mut admin = match self.value("queue").as_deref() {
            None | Some("any") => None,
            Some("admin") => Some(true),
            Some("io") => Some(false),
            Some(other) => return Err(refused("queue", other, "admin, io or any")),
        };
        let mut opcode = None;
        if let Some(text) = self.value("op") {
            if let Some((of_admin, code)) = names::opcode(&text) {
                if admin.is_some_and(|admin| admin != of_admin) {
                    let queue = if of_admin { "admin" } else { "io" };
                    return Err(RuleError(format!(
                        "op: {text} is a command of queue={queue}"
                    )));
                }
                admin = Some(of_admin);
                opcode = Some(code);
            } else {
                let code = number(&text).and_then(|code| u8::try_from(code).ok());
                opcode = Some(code.ok_or_else(|| {
                    let names = names::all();
                    refused(
                        "op",
                        &text,
                        format_args!("an opcode (0 to 255), or {names}"),
                    )
                })?);
            }
        }
        // The casts cannot cut: number() checked the range.
        Ok(Filter {
            admin,
            opcode,
            select: self.number("sel", 0..=0xff)?.map(|value| value as u8),
            cdw10: self
                .number("cdw10", 0..=0xffff_ffff)?
                .map(|value| value as u32),
        })
    }

    fn schedule(&mut self, forget: Option<u64>) -> Result<Schedule, RuleError> {
        const COUNT: RangeInclusive<u64> = 1..=u64::MAX;
        let nth = self.number("nth", COUNT)?;
        let mut from = self.number("from", COUNT)?;
        let mut every = self.number("every", COUNT)?;
        let mut times = self.number("times", COUNT)?;
        if nth.is_some() && (from.or(every).or(times).is_some() || forget.is_some()) {
            return Err(RuleError(
                "nth: it is short for from=N,times=1 and goes without from, every, times and forget"
                    .into(),
            ));
        }
        if nth.is_some() {
            (from, times) = (nth, Some(1));
        }
        if forget.is_some() && every.is_some() {
            return Err(RuleError(
                "every: forget=N says it already (every N-th mark)".into(),
            ));
        }
        every = every.or(forget);
        let probability = match self.value("p") {
            None => None,
            Some(text) => match text.parse::<f64>() {
                Ok(p) if p > 0.0 && p <= 1.0 => Some(p),
                _ => return Err(refused("p", &text, "a probability above 0 and at most 1")),
            },
        };
        let every = every.unwrap_or(1);
        Ok(Schedule {
            from: from.unwrap_or(every),
            every,
            times,
            probability,
        })
    }

    /// The action, and the key that named it.
    fn action(&mut self, forget: bool) -> Result<(Action, &'static str), RuleError> {
        if forget {
            return Ok((Action::Forget, "forget"));
        }
        for (flag, action) in [
            ("stall", Action::Stall),
            ("drop", Action::Drop),
            ("disconnect", Action::Disconnect),
        ] {
            if self.flag(flag) {
                return Ok((action, flag));
            }
        }
        if let Some(text) = self.value("delay") {
            return Ok((delay(&text)?, "delay"));
        }
        if let Some(text) = self.value("status") {
            let status = status(&text)?;
            let with_flag = if self.flag("dnr") {
                status.with_do_not_retry()
            } else {
                status
            };
            return Ok((Action::Status(with_flag), "status"));
        }
        if let Some(text) = self.value("dead") {
            let death = match text.as_str() {
                "ones" => Death::Ones,
                "cfs" => Death::Cfs,
                other => return Err(refused("dead", other, "ones or cfs")),
            };
            return Ok((Action::Die(death), "dead"));
        }
        if let Some(text) = self.value("corrupt") {
            let action = match text.as_str() {
                "cid" => Action::CorruptCompletion(Field::Cid),
                "sqid" => Action::CorruptCompletion(Field::Sqid),
                "sqhd" => Action::CorruptCompletion(Field::Sqhd),
                "phase" => Action::CorruptCompletion(Field::Phase),
                "state" => Action::CorruptState,
                other => {
                    return Err(refused("corrupt", other, "cid, sqid, sqhd, phase or state"));
                }
            };
            return Ok((action, "corrupt"));
        }
        if let Some(text) = self.value("late") {
            let time = nanoseconds(&text).filter(|time| (1..=MAX_LATE).contains(time));
            let allowed = "a time such as 10us or 5ms, above 0 and up to 1s";
            let time = time.ok_or_else(|| refused("late", &text, allowed))?;
            return Ok((Action::Late(time), "late"));
        }
        Err(RuleError(format!(
            "nothing happens in this fault rule; it needs {ACTIONS}"
        )))
    }
}

/// Only Get Controller State (Migration Receive, SEL 0) has a state to corrupt.
fn state_filter(filter: Filter) -> Result<Filter, RuleError> {
    let whole = Filter {
        admin: Some(true),
        opcode: Some(admin::MIGRATION_RECEIVE),
        select: Some(0),
        cdw10: filter.cdw10,
    };
    let fits = filter.admin.is_none_or(|queue| queue)
        && filter
            .opcode
            .is_none_or(|opcode| Some(opcode) == whole.opcode)
        && filter.select.is_none_or(|select| select == 0);
    if fits {
        return Ok(whole);
    }
    Err(RuleError(
        "corrupt: state goes with op=migration-receive,sel=0 only, which is the default".into(),
    ))
}

/// Decimal, `0x` and hexadecimal, or hexadecimal and `h`.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = if let Some(digits) = text.strip_prefix("0x") {
        (digits, 16)
    } else if let Some(digits) = text.strip_suffix('h') {
        (digits, 16)
    } else {
        (text, 10)
    };
    // from_str_radix would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

fn delay(text: &str) -> Result<Action, RuleError> {
    let allowed = "a time such as 10us, 5ms or 2s, or MIN..MAX, up to an hour";
    let (min, max) = text.split_once("..").unwrap_or((text, text));
    match (nanoseconds(min), nanoseconds(max)) {
        (Some(min), Some(max)) if min <= max && max <= MAX_DELAY => Ok(Action::Delay { min, max }),
        _ => Err(refused("delay", text, allowed)),
    }
}

fn nanoseconds(text: &str) -> Option<u64> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at_checked(unit)?;
    let unit: u64 = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn status(text: &str) -> Result<Status, RuleError> {
    let parse = || {
        let (code_type, code) = text.split_once('/')?;
        let code_type = number(code_type).filter(|code_type| *code_type < 8)?;
        let code = u8::try_from(number(code)?).ok()?;
        Some(Status::new(code_type as u8, code))
    };
    parse().ok_or_else(|| {
        let allowed = "SCT/SC, the status code type from 0 to 7 and the code from 0 to FFh, such \
                       as 1/39h";
        refused("status", text, allowed)
    })
}
