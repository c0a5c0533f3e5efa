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
    for line in lines.iter().map(|l| l.trim()) {
        if let Some(n) = line
            .strip_prefix("1..")
            .and_then(|n| n.split_whitespace().next())
            .and_then(|n| n.parse::<usize>().ok())
        {
            planned = Some(n);
            continue;
        }
        let (ok, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let Some((number, rest)) = rest
            .split_once(' ')
            .or(Some((rest, "")))
            .filter(|(n, _)| n.parse::<usize>().is_ok())
        else {
            continue;
        };
        let rest = rest.trim_start_matches("- ");
        let (name, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
        let outcome = match directive.strip_prefix("SKIP") {
            Some(why) => Outcome::Skipped(why.trim().to_owned()),
            None if ok => Outcome::Passed,
            None => Outcome::Failed,
        };
        let name = if name.is_empty() { number } else { name };
        report.results.push((name.to_owned(), outcome));
    }
    let failed = report.results.iter().any(|(_, o)| *o == Outcome::Failed);
    report.broken = match (planned, exit) {
        (_, None) => Some("the program never ended".to_owned()),
        (None, Some(code)) => Some(format!("no plan (1..N) was printed; exit code {code}")),
        (Some(n), _) if n != report.results.len() => Some(format!(
            "{n} tests were planned, {} reported",
            report.results.len()
        )),
        (_, Some(code)) if code != 0 && code != 4 && !failed => {
            Some(format!("exit code {code} although no test failed"))
        }
        _ => None,
    };
    report
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
        ] {
            assert_eq!(
                parse(&lines(text), exit).counts().failed,
                1,
                "{text:?} {exit:?}"
            );
        }
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
