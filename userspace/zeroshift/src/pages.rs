// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift completions` and `zeroshift man`: made from the definition of the command line, so
//! that they cannot fall behind it.

use crate::cli::Arguments;
use crate::WRITING;
use anyhow::{anyhow, Context as _, Result};
use clap::CommandFactory as _;
use std::io::Write;

/// Prints a completion script.
pub(crate) fn completions(shell: clap_complete::Shell, output: &mut impl Write) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "zeroshift", &mut script);
    output.write_all(&script).context(WRITING)
}

/// Prints the manual page of the program, or of the subcommand that the names lead to.
pub(crate) fn man(subcommands: &[String], output: &mut impl Write) -> Result<()> {
    let mut command = Arguments::command();
    command.build();
    let mut command = &command;
    for name in subcommands {
        command = command.find_subcommand(name).ok_or_else(|| {
            let of = command.get_bin_name().unwrap_or("zeroshift");
            anyhow!("no subcommand '{name}': '{of} --help' lists the subcommands")
        })?;
    }
    let command = command.clone();
    clap_mangen::Man::new(command)
        .render(output)
        .context(WRITING)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(print: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> String {
        let mut output = Vec::new();
        print(&mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn man_pages_name_what_they_describe() {
        let page = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            text(|output| man(&names, output))
        };
        let main = page(&[]);
        assert!(main.contains(".TH zeroshift 1"), "{main}");
        assert!(main.contains("zeroshift\\-list(1)"), "{main}");
        let list = page(&["list"]);
        assert!(list.contains(".TH zeroshift-list 1"), "{list}");
        assert!(list.contains("\\-\\-json"), "{list}");
        let top = page(&["card", "top"]);
        assert!(top.contains(".TH zeroshift-card-top 1"), "{top}");
        let error = man(&["fly".into()], &mut Vec::new()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("'fly'") && error.contains("--help"));
    }

    #[test]
    fn every_shell_completes_list() {
        use clap::ValueEnum as _;
        for shell in clap_complete::Shell::value_variants() {
            let script = text(|output| completions(*shell, output));
            assert!(script.contains("list"), "{shell}");
        }
    }
}
