// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift completions` and `zeroshift man`: made from the definition of the command line, so
//! that they cannot fall behind it.

use crate::cli::Arguments;
use crate::WRITING;
use anyhow::{anyhow, Context as _, Result};
use clap::CommandFactory as _;
use std::io::Write;
use std::path::Path;

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

/// Writes the pages of the program and of all its subcommands into a folder.
pub(crate) fn all(folder: &Path) -> Result<()> {
    let mut command = Arguments::command();
    command.build();
    clap_mangen::generate_to(command, folder)
        .with_context(|| format!("cannot write manual pages to {}", folder.display()))
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

    /// Names that lead to each subcommand that is not hidden.
    fn subcommands(of: &clap::Command, before: &[String]) -> Vec<Vec<String>> {
        let mut all = vec![];
        for command in of.get_subcommands().filter(|c| !c.is_hide_set()) {
            let path = [before, &[command.get_name().to_owned()]].concat();
            all.extend(subcommands(command, &path));
            all.push(path);
        }
        all
    }

    #[test]
    fn every_subcommand_has_a_page_and_is_completed() {
        use clap::ValueEnum as _;
        let all = subcommands(&Arguments::command(), &[]);
        for names in ["bind", "log sync", "restore", "inspect", "card fault add"] {
            let names: Vec<String> = names.split(' ').map(String::from).collect();
            assert!(all.contains(&names), "{names:?}");
        }
        for names in &all {
            let page = text(|output| man(names, output));
            let title = format!(".TH zeroshift-{} 1", names.join("-"));
            assert!(page.contains(&title), "{page}");
            // What the kernel is elsewhere is for tests.
            assert!(!page.contains("sysfs DIR"), "{page}");
        }
        let folder = tempfile::tempdir().unwrap();
        super::all(folder.path()).unwrap();
        for names in &all {
            let page = format!("zeroshift-{}.1", names.join("-"));
            assert!(folder.path().join(&page).exists(), "{page}");
        }
        assert!(folder.path().join("zeroshift.1").exists());
        let error = super::all(&folder.path().join("no")).unwrap_err();
        assert!(format!("{error:#}").contains("cannot write manual pages"));
        for shell in clap_complete::Shell::value_variants() {
            let script = text(|output| completions(*shell, output));
            for names in &all {
                let name = names.last().unwrap();
                assert!(script.contains(name.as_str()), "{shell}: {name}");
            }
        }
    }
}
