// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A program under test: what it prints, how it ends, and with which words it refuses.

use anyhow::{ensure, Context as _, Result};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// The program.
#[derive(Clone, Debug)]
pub struct Program(pub PathBuf);

/// What it did.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub output: Vec<u8>,
    /// Standard error.
    pub errors: String,
}

impl Program {
    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let ran = Command::new(&self.0)
            .args(arguments)
            .output()
            .with_context(|| format!("cannot run {}", self.0.display()))?;
        Ok(Ran {
            code: ran.status.code(),
            output: ran.stdout,
            errors: String::from_utf8_lossy(&ran.stderr).into_owned(),
        })
    }

    /// What it prints when it succeeds.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        let ran = self.run(arguments)?;
        ensure!(
            ran.code == Some(0),
            "'{}' ended with {:?}: {}",
            arguments.join(" "),
            ran.code,
            ran.errors
        );
        Ok(String::from_utf8(ran.output)?)
    }

    /// The same as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// That it fails with this exit code, says these words, and prints no result.
    pub fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
        let ran = self.run(arguments)?;
        let command = arguments.join(" ");
        ensure!(
            ran.code == Some(code),
            "'{command}' ended with {:?}, not {code}: {}",
            ran.code,
            ran.errors
        );
        ensure!(ran.output.is_empty(), "'{command}' failed and printed");
        for word in words {
            ensure!(
                ran.errors.contains(word),
                "'{command}' does not say \"{word}\": {}",
                ran.errors
            );
        }
        Ok(())
    }
}
