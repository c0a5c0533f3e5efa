// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Says on standard error what is being waited for, when it takes long.

use std::sync::mpsc::{channel, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// When the first line comes, and how far apart the others are.
const FIRST: Duration = Duration::from_secs(2);
const OTHERS: Duration = Duration::from_secs(10);

/// Does `work`, which cannot say itself how far it is.
pub(crate) fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    watched(what, FIRST, OTHERS, |line| eprintln!("{line}"), work)
}

fn watched<T>(
    what: &str,
    first: Duration,
    others: Duration,
    say: impl Fn(&str) + Send,
    work: impl FnOnce() -> T,
) -> T {
    let began = Instant::now();
    let (done, waits) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut next = first;
            while let Err(RecvTimeoutError::Timeout) = waits.recv_timeout(next) {
                say(&format!("{what}: {} s ...", began.elapsed().as_secs()));
                next = others;
            }
        });
        let result = work();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_long_wait_says_so_and_a_short_one_does_not() {
        let long = Duration::from_secs(3600);
        let quiet = watched("x", long, long, |_| panic!("said something"), || 7);
        assert_eq!(quiet, 7);
        let (said, lines) = channel();
        let say = move |line: &str| drop(said.send(line.to_owned()));
        let tick = Duration::from_millis(1);
        // The work ends when two lines have come.
        let last = watched("pausing x", tick, tick, say, || {
            lines.recv().unwrap();
            lines.recv().unwrap()
        });
        assert!(last.starts_with("pausing x: "), "{last}");
    }
}
