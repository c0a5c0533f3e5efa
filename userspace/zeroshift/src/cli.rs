// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the command line looks like. Nothing is done here.

use crate::card::CardOptions;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Looks after migration-capable cards and shared-memory windows
#[derive(Debug, Parser)]
#[command(name = "zeroshift", version, about)]
pub(crate) struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the cards of this machine and what each can do
    ///
    /// Cards that the module migdirty has bound are asked over /dev/migdirty; NVMe administrative
    /// controllers that it has not bound are found in sysfs, with the command that binds them.
    List(ListOptions),
    /// Look into a software card that zerocard serves, or make it misbehave
    ///
    /// Asks the card over the control socket in its directory.
    Card(CardOptions),
    /// Print a completion script for a shell
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man {
        /// Subcommand to print the page of, instead of the main page
        command: Vec<String>,
    },
}

/// Options of `list`.
#[derive(Args, Debug)]
pub(crate) struct ListOptions {
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    /// Where sysfs is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys", hide = true)]
    pub(crate) sysfs: PathBuf,

    /// Device of the module migdirty
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/dev/migdirty",
        hide = true
    )]
    pub(crate) device: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn definition_is_consistent() {
        Arguments::command().debug_assert();
    }
}
