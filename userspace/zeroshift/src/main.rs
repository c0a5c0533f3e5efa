// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line of Zeroshift.
//!
//! This file parses, dispatches and reports errors; each subcommand has a file of its own. Results
//! go to standard output, everything else to standard error.

mod address;
mod backend;
mod bind;
mod card;
mod cli;
mod device;
mod doctor;
mod explain;
#[cfg(test)]
mod fake;
mod function;
mod inspect;
mod list;
mod log;
mod modules;
mod pages;
mod progress;
mod save;
mod size;
mod status;
mod stream;
mod sys;
mod sysfs;
mod table;
mod usage;
mod view;

use anyhow::Context as _;
use clap::Parser as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// What was being done when printing fails.
const WRITING: &str = "cannot write to standard output";

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let mut output = io::stdout().lock();
    let result = match arguments.command {
        cli::Command::Doctor(options) => doctor::run(&options, &mut output),
        cli::Command::List(options) => list::run(&options, &mut output),
        cli::Command::Bind(options) => bind::bind(&options, &mut output),
        cli::Command::Unbind(options) => bind::unbind(&options, &mut output),
        cli::Command::Status(options) => status::status(&options, &mut output),
        cli::Command::Log(command) => log::run(&command, &mut output),
        cli::Command::Pause(options) => status::pause(&options, &mut output),
        cli::Command::Resume(options) => status::resume(&options, &mut output),
        cli::Command::Save(options) => save::save(&options, &mut output),
        cli::Command::Restore(options) => save::restore(&options, &mut output),
        cli::Command::Inspect(options) => inspect::run(&options, &mut output),
        cli::Command::View(command) => view::run(&command, &mut output),
        cli::Command::Card(options) => card::run(&options, &mut output),
        cli::Command::Completions { shell } => pages::completions(shell, &mut output),
        cli::Command::Man { all: Some(dir), .. } => pages::all(&dir),
        cli::Command::Man { command, .. } => pages::man(&command, &mut output),
    };
    match result.and_then(|()| output.flush().context(WRITING)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zeroshift: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever reads our output has seen enough (`zeroshift list | head`). Another pipe that breaks is an
/// error, and so is the output of what cannot be had again: its message is another one.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
    broken && error.to_string() == WRITING
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Standard output that cannot be written to.
    pub(crate) struct Broken(pub(crate) io::ErrorKind);

    impl io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failed_write_names_the_output_and_a_closed_pipe_is_known() {
        let print = |kind| pages::man(&[], &mut Broken(kind)).unwrap_err();
        let full = print(io::ErrorKind::StorageFull);
        assert!(format!("{full:#}").starts_with(WRITING), "{full:#}");
        assert!(!is_broken_pipe(&full));
        assert!(is_broken_pipe(&print(io::ErrorKind::BrokenPipe)));
        // As when a card closes its control socket.
        let other =
            anyhow::anyhow!("the card is gone").context(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(!is_broken_pipe(&other));
    }
}
