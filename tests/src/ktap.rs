// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Test results in KTAP version 1 (`Documentation/dev-tools/ktap.rst`).

use std::fmt::Display;
use std::io::{self, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Why a test did not pass.
#[derive(Debug)]
pub enum Stop {
    /// It could not run here, and why.
    Skip(String),
    /// It ran and failed, and how.
    Fail(String),
}

impl<E: Display> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Fail(format!("{error:#}"))
    }
}

/// What a test returns.
pub type Outcome = Result<(), Stop>;

/// Ends a test as skipped.
pub fn skip(why: impl Into<String>) -> Outcome {
    Err(Stop::Skip(why.into()))
}

/// Fails the test unless a condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::ktap::Stop::Fail(format!($($text)+)));
        }
    };
}

/// Fails the test unless two values are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($text:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if left != right {
                    return Err($crate::ktap::Stop::Fail(format!(
                        "{}: {left:?}, expected {right:?}",
                        format_args!($($text)+),
                    )));
                }
            }
        }
    };
}

/// A run of a known number of tests.
#[derive(Debug)]
pub struct Ktap<W: Write> {
    output: W,
    planned: usize,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Ktap<io::Stdout> {
    /// Announces `planned` tests on standard output.
    pub fn new(planned: usize) -> Self {
        Self::on(io::stdout(), planned)
    }
}

impl<W: Write> Ktap<W> {
    /// Announces `planned` tests.
    pub fn on(mut output: W, planned: usize) -> Self {
        let _ = writeln!(output, "KTAP version 1\n1..{planned}");
        Self {
            output,
            planned,
            passed: 0,
            failed: 0,
            skipped: 0,
        }
    }

    /// Runs one test and prints its line; a panic is a failure.
    pub fn test(&mut self, name: &str, test: impl FnOnce() -> Outcome) {
        let number = self.passed + self.failed + self.skipped + 1;
        let outcome = catch_unwind(AssertUnwindSafe(test))
            .unwrap_or_else(|_| Err(Stop::Fail("the test program panicked".into())));
        let line = match outcome {
            Ok(()) => {
                self.passed += 1;
                format!("ok {number} {name}")
            }
            Err(Stop::Skip(why)) => {
                self.skipped += 1;
                format!("ok {number} {name} # SKIP {}", one_line(&why))
            }
            Err(Stop::Fail(why)) => {
                self.failed += 1;
                format!("# {name}: {}\nnot ok {number} {name}", one_line(&why))
            }
        };
        let _ = writeln!(self.output, "{line}");
        let _ = self.output.flush();
    }

    /// Prints the totals and gives the exit code.
    pub fn finish(mut self) -> u8 {
        let run = self.passed + self.failed + self.skipped;
        let _ = writeln!(
            self.output,
            "# Totals: pass:{} fail:{} xfail:0 xpass:0 skip:{} error:{}",
            self.passed,
            self.failed,
            self.skipped,
            self.planned.abs_diff(run),
        );
        let _ = self.output.flush();
        if self.failed > 0 || run != self.planned {
            1
        } else if self.passed == 0 {
            4
        } else {
            0
        }
    }
}

/// A line break would end the comment or the line that this goes into.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(planned: usize, outcomes: Vec<Outcome>) -> (String, u8) {
        let mut output = Vec::new();
        let mut ktap = Ktap::on(&mut output, planned);
        for outcome in outcomes {
            ktap.test("thing", || outcome);
        }
        let code = ktap.finish();
        (String::from_utf8(output).unwrap(), code)
    }

    #[test]
    fn lines_are_ktap() {
        let fail = Err(Stop::Fail("two\nlines".into()));
        let (text, code) = run(3, vec![Ok(()), skip("no card"), fail]);
        assert_eq!(
            text,
            "KTAP version 1\n1..3\nok 1 thing\nok 2 thing # SKIP no card\n\
             # thing: two lines\nnot ok 3 thing\n\
             # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0\n"
        );
        assert_eq!(code, 1);
    }

    #[test]
    fn exit_codes() {
        assert_eq!(run(1, vec![Ok(())]).1, 0);
        assert_eq!(run(2, vec![Ok(()), skip("x")]).1, 0);
        assert_eq!(run(2, vec![skip("x"), skip("x")]).1, 4);
        assert_eq!(run(2, vec![Ok(())]).1, 1, "fewer than planned");
        assert_eq!(run(1, vec![Ok(()), Ok(())]).1, 1, "more than planned");
    }

    #[test]
    fn a_panic_is_a_failure() {
        let mut ktap = Ktap::on(Vec::new(), 1);
        ktap.test("thing", || panic!("no"));
        assert_eq!(ktap.finish(), 1);
    }

    #[test]
    fn checks_say_what_was_wrong() {
        let test = || -> Outcome {
            check!(true, "fine");
            check_eq!(1 + 1, 3, "sum of {}", "ones");
            Ok(())
        };
        let Err(Stop::Fail(why)) = test() else {
            panic!("must fail")
        };
        assert_eq!(why, "sum of ones: 2, expected 3");
    }
}
