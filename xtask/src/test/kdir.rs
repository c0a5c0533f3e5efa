// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask build --kdir`: trees that a user may have, and what is no tree.

use std::path::Path;

use anyhow::{bail, ensure, Result};

use super::Results;
use crate::command;
use crate::kernel::{Kind, Tree};
use crate::modules;
use crate::session::Session;

/// Builds against both kinds of tree and looks at what came out; then the refusals.
pub(super) fn scenario(session: &Session, results: &mut Results) -> Result<()> {
    let root = session.root()?;
    let release = &root.facts.release;
    let headers = root.path(&format!("usr/src/linux-headers-{release}"));
    results.check(
        "installed headers, which ship no metadata",
        fits(session, &headers, release),
    );
    let built = session.kernel(Kind::Test)?;
    let own = fits(session, &built.tree.dir, &built.release);
    results.check("the O= folder of a finished build", own);

    let nothing = session.cache.run_dir("kdir")?;
    let refused = |dir: &Path, why: &str| match Tree::of_user(&session.cache, root, dir) {
        Ok(_) => bail!("{} was taken for a kernel tree", dir.display()),
        Err(e) => {
            let text = format!("{e:#}");
            ensure!(
                text.contains(why) && text.contains("=> "),
                "no cause and remedy in: {text}"
            );
            Ok(())
        }
    };
    results.check(
        "an empty folder is refused",
        refused(nothing.path(), "no configured kernel tree"),
    );
    std::fs::write(nothing.path().join(".config"), "# CONFIG_RUST is not set\n")?;
    results.check(
        "a tree that was never built is refused",
        refused(nothing.path(), "never built"),
    );
    std::fs::create_dir_all(nothing.path().join("include/config"))?;
    std::fs::write(
        nothing.path().join("include/config/kernel.release"),
        "7.2.12-x\n",
    )?;
    std::fs::write(nothing.path().join("Module.symvers"), "")?;
    results.check(
        "a kernel without Rust is refused",
        refused(nothing.path(), "without CONFIG_RUST"),
    );
    std::fs::create_dir_all(nothing.path().join("rust"))?;
    std::fs::write(nothing.path().join("rust/libkernel.rmeta"), "")?;
    let config = "CONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT=\"rustc 1.60.0\"\n";
    std::fs::write(nothing.path().join(".config"), config)?;
    results.check(
        "a kernel of another compiler is refused",
        refused(nothing.path(), "rustc 1.60.0"),
    );
    Ok(())
}

/// Whether modules build for the tree in `dir` and carry its release.
fn fits(session: &Session, dir: &Path, release: &str) -> Result<()> {
    let root = session.root()?;
    let tree = Tree::of_user(&session.cache, root, dir)?;
    let built = modules::build(&session.cache, root, &session.repo, &tree)?;
    for file in built.files() {
        let mut modinfo = root.command("modinfo");
        modinfo.args(["-F", "vermagic"]).arg(file);
        let magic = command::output(modinfo)?;
        ensure!(
            magic.starts_with(&format!("{release} ")),
            "{} is for {magic}",
            file.display()
        );
    }
    Ok(())
}
