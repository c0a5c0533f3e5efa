// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The build root: a Debian root file system in the cache with the compilers, emulators and kernel packages
//! that `ci/kernels.toml` names. Nothing of the host is used for kernel code or rigs.
//!
//! It is entered with a private mount and PID namespace: mounts vanish with the command, and so does every
//! process it started, even when we are killed. It is written only while it is made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Key, Leftover};
use crate::command;
use crate::machine;

/// `ci/kernels.toml`.
#[derive(Debug, Deserialize)]
pub(crate) struct Recipe {
    suite: String,
    components: Vec<String>,
    backports: Vec<String>,
    /// Supported kernel series, the preferred one first.
    pub(crate) series: Vec<String>,
    packages: std::collections::BTreeMap<String, Vec<String>>,
}

impl Recipe {
    /// Reads the recipe of this checkout.
    pub(crate) fn read(repo: &Path) -> Result<Self> {
        let path = repo.join("ci/kernels.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    fn packages(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self
            .packages
            .values()
            .flatten()
            .map(String::as_str)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What was found when the root was made; `zeroshift.json` in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Kernel series, such as `7.2`.
    pub(crate) series: String,
    /// Release of the stock kernel, such as `7.2.12+deb13-amd64`.
    pub(crate) release: String,
    /// Package that the stock kernel image comes from.
    pub(crate) image_package: String,
    /// Hash over every installed package and its version.
    #[serde(default)]
    pub(crate) packages: String,
}

/// A build root that is ready for use.
#[derive(Clone, Debug)]
pub(crate) struct BuildRoot {
    dir: PathBuf,
    repo: PathBuf,
    cache: PathBuf,
    /// What it holds.
    pub(crate) facts: Facts,
    /// Identity for the keys of what is built in it.
    pub(crate) id: String,
}

/// The root file system, inside the artefact.
const TREE: &str = "tree";

const FACTS: &str = "zeroshift.json";

/// `unshare` runs this: mounts what the command needs and enters the root. `$1` root, `$2` folder to be in,
/// then folders to show inside at the same path, `--`, the command.
///
/// The shell stays, as the first process of its PID namespace: it dies with us, and all others with it. The command
/// itself could lose its parent-death signal (apt-get does, when it changes its user).
const ENTER: &str = r#"
set -eu
root=$1 cwd=$2; shift 2
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  shift
done
shift
chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 \
  DEBIAN_FRONTEND=noninteractive sh -c 'cd "$0" && exec "$@"' "$cwd" "$@"
exit $?
"#;

impl BuildRoot {
    /// The root of this checkout's recipe, made when it is not there yet.
    pub(crate) fn get(cache: &Cache, repo: &Path, mirror: Option<&str>) -> Result<Self> {
        let recipe = Recipe::read(repo)?;
        let packages = recipe.packages().join(" ");
        let key = Key::of([
            ("suite", recipe.suite.as_bytes()),
            ("components", recipe.components.join(" ").as_bytes()),
            ("backports", recipe.backports.join(" ").as_bytes()),
            ("series", recipe.series.join(" ").as_bytes()),
            ("packages", packages.as_bytes()),
            ("recipe", b"3".as_slice()),
        ]);
        if cache.find("root", &key).is_none() {
            machine::check_for_setup(cache.dir())?;
        }
        let dir = cache.artefact("root", &key, Leftover::Remove, |dir| {
            make(cache, &recipe, mirror, dir)
        })?;
        Self::at(cache, repo, dir.join(TREE))
    }

    fn at(cache: &Cache, repo: &Path, dir: PathBuf) -> Result<Self> {
        let path = dir.join(FACTS);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let facts: Facts =
            serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        Ok(Self {
            dir,
            repo: repo.to_owned(),
            cache: cache.dir().to_owned(),
            id: facts.packages.clone(),
            facts,
        })
    }

    /// Path of `inside` as seen from the host.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.dir.join(inside.trim_start_matches('/'))
    }

    /// A command inside the root. The checkout, the cache and `/dev` have the same paths as outside.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.command_with(program, &[], Network::Host)
    }

    /// The same with more host folders shown inside, and perhaps without a network.
    pub(crate) fn command_with(
        &self,
        program: &str,
        folders: &[&Path],
        network: Network,
    ) -> Command {
        let shown: Vec<&Path> = [self.repo.as_path(), self.cache.as_path()]
            .into_iter()
            .chain(folders.iter().copied())
            .collect();
        enter(&self.dir, &self.repo, &shown, network, program)
    }
}

/// Which network a command inside the root sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// The host's.
    Host,
    /// None at all: nothing that an emulator opens can be reached from outside.
    None,
}

fn enter(root: &Path, cwd: &Path, shown: &[&Path], network: Network, program: &str) -> Command {
    let mut c = command::command("unshare");
    c.args(["--mount", "--pid", "--fork", "--kill-child"]);
    if network == Network::None {
        c.arg("--net");
    }
    c.args(["sh", "-c", ENTER, "enter"])
        .arg(root)
        .arg(cwd)
        .args(shown)
        .args(["--", program]);
    c
}

fn make(cache: &Cache, recipe: &Recipe, mirror: Option<&str>, dir: &Path) -> Result<()> {
    machine::need_program("mmdebstrap", "mmdebstrap", &cache.log("host-packages"))?;
    let mirror = match mirror {
        Some(m) => m.to_owned(),
        None => machine::mirror()?,
    };
    // It has setuid programs that nobody will ever update: out of everybody's reach. Its own `/` must be open.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    let dir = &dir.join(TREE);
    fs::create_dir(dir)?;
    let inside = |program: &str| enter(dir, Path::new("/"), &[], Network::Host, program);

    // mmdebstrap checks the archive's signatures with the machine's Debian keyring and carries the keys over.
    // It mounts /proc and more in the root: in a namespace of its own, they vanish even when it is killed.
    let mut base = command::command("unshare");
    base.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        r#""$@"; exit $?"#,
        "sh",
        "mmdebstrap",
    ]);
    base.args([
        "--mode=root",
        "--variant=apt",
        "--architectures=amd64",
        "--skip=check/empty",
    ]);
    base.arg("--aptopt=APT::Install-Recommends \"false\"");
    base.args(machine::proxies().iter().map(|p| format!("--aptopt={p}")));
    base.arg("--include=ca-certificates");
    base.arg(&recipe.suite).arg(dir);
    base.args(
        recipe
            .components
            .iter()
            .map(|c| format!("deb {mirror} {c} main")),
    );
    command::run(
        "making the Debian build root",
        &cache.log("root-base"),
        base,
    )?;

    let preferences = format!(
        "Package: {}\nPin: release n={}-backports\nPin-Priority: 990\n",
        recipe.backports.join(" "),
        recipe.suite
    );
    fs::write(dir.join("etc/apt/preferences.d/zeroshift"), preferences)?;
    let mut update = inside("apt-get");
    // Without this, an index that cannot be fetched is no error.
    update.args(["update", "-eany"]);
    command::run(
        "reading the package index",
        &cache.log("root-index"),
        update,
    )?;

    let mut names = inside("apt-cache");
    names.args(["pkgnames", "linux-"]);
    let names = command::output(names)?;
    let mut facts = choose_kernel(&recipe.series, &names)?;

    // Downloads live outside the root, so that a run that was interrupted does not fetch them twice.
    let packages = cache.dir().join("packages");
    let _downloading = cache.lock("packages")?;
    fs::create_dir_all(packages.join("partial"))?;
    let mut install = enter(dir, Path::new("/"), &[&packages], Network::Host, "apt-get");
    install.args(["install", "-y", "--no-install-recommends"]);
    install.arg(format!("-oDir::Cache::archives={}", packages.display()));
    install.args(recipe.packages());
    install.args(["linux-headers-", "linux-modules-"].map(|p| format!("{p}{}", facts.release)));
    install
        .arg(&facts.image_package)
        .arg(format!("linux-source-{}", facts.series));
    command::run(
        &format!(
            "installing compilers, emulators and kernel {} in it",
            facts.release
        ),
        &cache.log("root-packages"),
        install,
    )?;
    let status = fs::read(dir.join("var/lib/dpkg/status"))?;
    facts.packages = Key::of([("status", status.as_slice())]).as_str().to_owned();
    fs::write(dir.join(FACTS), serde_json::to_string_pretty(&facts)?)?;
    fs::remove_dir_all(&packages).ok();
    Ok(())
}

/// The newest amd64 release of the first series that has headers, modules and an image.
fn choose_kernel(series: &[String], package_names: &str) -> Result<Facts> {
    let names: std::collections::BTreeSet<&str> = package_names.lines().map(str::trim).collect();
    for s in series {
        if !names.contains(format!("linux-source-{s}").as_str()) {
            continue;
        }
        let found = names
            .iter()
            .filter_map(|n| n.strip_prefix("linux-headers-"))
            .filter(|r| r.starts_with(&format!("{s}.")) && r.ends_with("-amd64"))
            .filter(|r| !r.contains("-cloud-") && !r.contains("-rt-"))
            .filter(|r| names.contains(format!("linux-modules-{r}").as_str()))
            .filter_map(|r| {
                let image = ["linux-binary", "linux-binary-unsigned", "linux-image"]
                    .map(|p| format!("{p}-{r}"))
                    .into_iter()
                    .find(|p| names.contains(p.as_str()))?;
                Some((patch_level(r), r, image))
            })
            .max();
        if let Some((_, release, image)) = found {
            return Ok(Facts {
                series: s.clone(),
                release: release.to_owned(),
                image_package: image,
                packages: String::new(),
            });
        }
    }
    bail!(
        "no supported kernel series: the package index offers none of {}\n=> update this checkout (ci/kernels.toml names the series it is \
         written for), or give a mirror that has one with --mirror",
        series.join(", ")
    )
}

/// The third number of `7.2.12+deb13-amd64`.
fn patch_level(release: &str) -> u32 {
    release
        .split(['.', '+', '-'])
        .nth(2)
        .and_then(|p| p.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "linux-source-7.2\nlinux-source-7.3\n\
        linux-headers-7.2.9+deb13-amd64\nlinux-modules-7.2.9+deb13-amd64\nlinux-binary-7.2.9+deb13-amd64\n\
        linux-headers-7.2.12+deb13-amd64\nlinux-modules-7.2.12+deb13-amd64\nlinux-binary-unsigned-7.2.12+deb13-amd64\n\
        linux-headers-7.2.12+deb13-rt-amd64\nlinux-modules-7.2.12+deb13-rt-amd64\nlinux-binary-7.2.12+deb13-rt-amd64\n\
        linux-headers-7.2.13+deb13-amd64\nlinux-headers-7.3.4+deb13-amd64\nlinux-modules-7.3.4+deb13-amd64\n\
        linux-binary-7.3.4+deb13-amd64\n";

    #[test]
    fn the_newest_complete_release_of_the_preferred_series_is_taken() {
        let facts = choose_kernel(&["7.2".into()], INDEX).unwrap();
        // .13 has headers only; .9 sorts after .12 as text.
        assert_eq!(facts.release, "7.2.12+deb13-amd64");
        assert_eq!(
            facts.image_package,
            "linux-binary-unsigned-7.2.12+deb13-amd64"
        );
        assert_eq!(
            choose_kernel(&["7.4".into(), "7.3".into()], INDEX)
                .unwrap()
                .series,
            "7.3"
        );
    }

    #[test]
    fn no_supported_series_is_said_with_the_remedy() {
        let err = choose_kernel(&["9.9".into()], INDEX)
            .unwrap_err()
            .to_string();
        assert!(
            err.contains("9.9") && err.contains("ci/kernels.toml"),
            "{err}"
        );
    }
}
