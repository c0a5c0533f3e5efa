// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reading test results: KTAP from test programs, and the closing lines of `cargo test`.

/// Numbers of a test run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that held.
    pub(crate) passed: usize,
    /// Tests that did not.
    pub(crate) failed: usize,
    /// Tests that could not run here.
    pub(crate) skipped: usize,
}

impl Counts {
    /// Adds another run's numbers.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// One result of a KTAP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// `ok`.
    Passed,
    /// `not ok`.
    Failed,
    /// `ok ... # SKIP why`.
    Skipped(String),
}

/// A KTAP program's results, with what its plan and exit code demand.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Name and outcome of each test.
    pub(crate) results: Vec<(String, Outcome)>,
    /// Why the report as a whole cannot be trusted.
    pub(crate) broken: Option<String>,
}

impl Report {
    /// Its numbers; a broken report is one more failure.
    pub(crate) fn counts(&self) -> Counts {
        let count = |f: fn(&Outcome) -> bool| self.results.iter().filter(|(_, o)| f(o)).count();
        Counts {
            passed: count(|o| *o == Outcome::Passed),
            failed: count(|o| *o == Outcome::Failed) + usize::from(self.broken.is_some()),
            skipped: count(|o| matches!(o, Outcome::Skipped(_))),
        }
    }
}

/// Parses the lines of a KTAP program that ended with `exit`.
pub(crate) fn parse(lines: &[String], exit: Option<i32>) -> Report {
    let mut report = Report::default();
    let mut planned = None;
    let mut disorder = None;
    for line in lines.iter().map(|l| l.trim()) {
        if let Some(plan) = line.strip_prefix("1..") {
            let (number, directive) = split_directive(plan);
            let Ok(n) = number.parse::<usize>() else {
                continue;
            };
            planned = Some(n);
            if let (0, Some(why)) = (n, skip(directive)) {
                report
                    .results
                    .push(("all of it".to_owned(), Outcome::Skipped(why)));
            }
            continue;
        }
        let (ok, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let (test, directive) = split_directive(rest);
        let (number, name) = test.split_once(' ').unwrap_or((test, ""));
        let Ok(number) = number.parse::<usize>() else {
            continue;
        };
        if number != report.results.len() + 1 {
            disorder = Some(format!(
                "test {number} came after {} results",
                report.results.len()
            ));
        }
        let outcome = match (ok, skip(directive)) {
            (false, _) => Outcome::Failed,
            (true, Some(why)) => Outcome::Skipped(why),
            (true, None) => Outcome::Passed,
        };
        let name = name.trim_start_matches("- ").trim();
        let name = if name.is_empty() {
            number.to_string()
        } else {
            name.to_owned()
        };
        report.results.push((name, outcome));
    }
    let reported = report.results.len();
    let skipped = |(_, o): &(String, Outcome)| matches!(o, Outcome::Skipped(_));
    let failed = report.results.iter().any(|(_, o)| *o == Outcome::Failed);
    report.broken = match (planned, exit) {
        (_, None) => Some("the program never ended".to_owned()),
        (None, Some(code)) => Some(format!("no plan (1..N) was printed; exit code {code}")),
        (Some(_), Some(code)) if reported == 0 => {
            Some(format!("it reported no test at all; exit code {code}"))
        }
        (Some(n), _) if n != reported && n != 0 => {
            Some(format!("{n} tests were planned, {reported} reported"))
        }
        (Some(0), _) if reported != 1 || !skipped(&report.results[0]) => {
            Some("results although none was planned".to_owned())
        }
        (_, Some(4)) if !report.results.iter().all(skipped) => {
            Some("exit code 4 (all skipped) although a test ran".to_owned())
        }
        (_, Some(code)) if code != 0 && code != 4 && !failed => {
            Some(format!("exit code {code} although no test failed"))
        }
        (_, Some(0)) if failed => Some("exit code 0 although a test failed".to_owned()),
        _ => disorder,
    };
    report
}

/// The text before the directive, and the directive. A `#` may also stand in a test's name.
fn split_directive(text: &str) -> (&str, &str) {
    let at = text
        .rmatch_indices('#')
        .map(|(at, _)| at)
        .find(|at| skip(&text[at + 1..]).is_some());
    match at.or_else(|| text.find(" # ").map(|at| at + 1)) {
        Some(at) => (text[..at].trim(), text[at + 1..].trim()),
        None => (text.trim(), ""),
    }
}

/// The reason of a SKIP directive.
fn skip(directive: &str) -> Option<String> {
    let directive = directive.trim();
    let (word, why) = directive.split_once(' ').unwrap_or((directive, ""));
    word.eq_ignore_ascii_case("skip")
        .then(|| why.trim().to_owned())
}

/// Adds up the `test result:` lines of `cargo test`.
pub(crate) fn parse_cargo(log: &str) -> Counts {
    let mut counts = Counts::default();
    for line in log
        .lines()
        .filter_map(|l| l.trim().strip_prefix("test result: "))
    {
        let number = |what: &str| {
            line.split([';', '.'])
                .filter_map(|p| p.trim().strip_suffix(what))
                .find_map(|p| p.trim().parse::<usize>().ok())
                .unwrap_or(0)
        };
        counts.add(Counts {
            passed: number(" passed"),
            failed: number(" failed"),
            skipped: number(" ignored"),
        });
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn results_and_skips_are_counted() {
        let text = "TAP version 13\n1..3\n# a note\nok 1 first\nnot ok 2 second\n[ 1.0] a kernel line\nok 3 third # SKIP no card\n";
        let report = parse(&lines(text), Some(1));
        assert_eq!(
            report.counts(),
            Counts {
                passed: 1,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(report.results[2].1, Outcome::Skipped("no card".into()));
        assert_eq!(report.broken, None);
    }

    #[test]
    fn a_report_that_does_not_add_up_is_a_failure() {
        for (text, exit) in [
            ("1..2\nok 1 a\n", Some(0)),
            ("ok 1 a\n", Some(0)),
            ("1..1\nok 1 a\n", Some(139)),
            ("1..1\nok 1 a\n", None),
            ("", Some(0)),
            ("1..0\n", Some(0)),
            ("1..2\nok 1 a\nok 1 a\n", Some(0)),
            ("1..1\nok 2 b\n", Some(0)),
            ("1..1\nnot ok 1 a # SKIP no excuse\n", Some(1)),
            ("1..1\nok 1 a\n", Some(4)),
            ("1..0\nok 1 a\n", Some(0)),
        ] {
            assert_eq!(
                parse(&lines(text), exit).counts().failed,
                1,
                "{text:?} {exit:?}"
            );
        }
    }

    #[test]
    fn every_form_of_a_skip_is_one() {
        for text in [
            "1..1\nok 1 # SKIP why\n",
            "1..1\nok 1 a # skip why\n",
            "1..1\nok 1 a #SKIP why",
            "1..0 # SKIP why",
        ] {
            let report = parse(&lines(text), Some(4));
            assert_eq!(
                report.counts(),
                Counts {
                    passed: 0,
                    failed: 0,
                    skipped: 1
                },
                "{text:?}"
            );
            assert_eq!(report.results[0].1, Outcome::Skipped("why".into()));
        }
    }

    #[test]
    fn a_number_sign_in_a_name_is_no_directive() {
        let text =
            "1..3\nok 1 controller #1 # SKIP why\nok 2 controller #2\nok 3 x #skipping handled\n";
        let report = parse(&lines(text), Some(0));
        assert_eq!(
            report.counts(),
            Counts {
                passed: 2,
                failed: 0,
                skipped: 1
            }
        );
        assert_eq!(report.results[1].0, "controller #2");
    }

    #[test]
    fn all_skipped_ends_with_4_and_is_no_failure() {
        let report = parse(&lines("1..1\nok 1 a # SKIP no KVM\n"), Some(4));
        assert_eq!(
            report.counts(),
            Counts {
                passed: 0,
                failed: 0,
                skipped: 1
            }
        );
    }

    #[test]
    fn cargo_results_add_up() {
        let log = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                   test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        assert_eq!(
            parse_cargo(log),
            Counts {
                passed: 15,
                failed: 2,
                skipped: 1
            }
        );
    }
}
