// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What this machine is, and the refusals that come before any work: each names the cause and the fix.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{bail, Context as _, Result};

use crate::command;

/// Room that a complete set-up needs; measured 6.2 GB: source 1.8, build root 2.8, three kernel trees 1.6.
pub(crate) const DISK_BYTES: u64 = 9 << 30;

/// `ID` and its relatives of /etc/os-release.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Distribution {
    /// `ID`, such as `debian`.
    pub(crate) id: String,
    /// `ID_LIKE`, such as `debian`.
    pub(crate) like: String,
    /// `PRETTY_NAME`.
    pub(crate) name: String,
}

impl Distribution {
    /// The distribution this runs on.
    pub(crate) fn here() -> Self {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(os_release: &str) -> Self {
        let fields: BTreeMap<&str, &str> = os_release
            .lines()
            .filter_map(|l| l.split_once('='))
            .map(|(k, v)| (k.trim(), v.trim().trim_matches(['"', '\''])))
            .collect();
        let get = |k: &str| fields.get(k).copied().unwrap_or_default().to_owned();
        Self {
            id: get("ID"),
            like: get("ID_LIKE"),
            name: get("PRETTY_NAME"),
        }
    }

    /// Whether apt and its signed archives are at home here.
    pub(crate) fn has_apt(&self) -> bool {
        std::iter::once(self.id.as_str())
            .chain(self.like.split_whitespace())
            .any(|id| id == "debian" || id == "ubuntu")
    }
}

/// Everything that set-up needs of the machine before it starts.
pub(crate) fn check_for_setup(cache: &Path) -> Result<()> {
    let distribution = Distribution::here();
    if !distribution.has_apt() {
        bail!(
            "unsupported distribution: {}\n=> set-up makes its own Debian root, for which it needs apt and mmdebstrap: run it on Debian \
             12 or newer, or a distribution made from it (a container or VM of one is enough)",
            if distribution.name.is_empty() { "no /etc/os-release" } else { &distribution.name }
        );
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "unsupported processor: {}\n=> the modules and the rigs are x86-64 only",
            std::env::consts::ARCH
        );
    }
    check_root()?;
    check_disk(cache)
}

/// Root, for chroot and mounts.
pub(crate) fn check_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("not root: the build root is entered with mount and chroot\n=> run the same command with: sudo -E env \"PATH=$PATH\" cargo xtask ...");
    }
    Ok(())
}

/// Enough room for a whole set-up. Asked only before a build root is made, when nothing else of it is usable.
fn check_disk(cache: &Path) -> Result<()> {
    let free = free_bytes(cache)?;
    let need = DISK_BYTES;
    if free < need {
        bail!(
            "not enough disk below {}: {:.1} GiB free, set-up needs {:.1} GiB more\n=> free some space, or point ZEROSHIFT_CACHE at a larger disk",
            cache.display(),
            gib(free),
            gib(need)
        );
    }
    Ok(())
}

/// Free bytes for us on the file system of `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64> {
    let s = rustix::fs::statvfs(path).with_context(|| format!("statvfs {}", path.display()))?;
    Ok(s.f_bavail.saturating_mul(s.f_frsize))
}

/// Bytes as GiB, for messages.
pub(crate) fn gib(bytes: u64) -> f64 {
    // CAST: a figure for people; the lost precision does not show.
    bytes as f64 / f64::from(1u32 << 30)
}

/// The proxies of this machine, as apt configuration: apt's own, and those of the environment.
pub(crate) fn proxies() -> Vec<String> {
    let mut dump = command::command("apt-config");
    dump.arg("dump");
    let mut found = parse_proxies(&command::output(dump).unwrap_or_default());
    for scheme in ["http", "https"] {
        let set = found
            .iter()
            .any(|p| p.starts_with(&format!("Acquire::{scheme}::Proxy ")));
        if let (false, Ok(url)) = (set, std::env::var(format!("{scheme}_proxy"))) {
            found.push(format!("Acquire::{scheme}::Proxy \"{url}\";"));
        }
    }
    found
}

fn parse_proxies(apt_config: &str) -> Vec<String> {
    let proxy = |l: &&str| {
        ["Acquire::http::Proxy ", "Acquire::https::Proxy "]
            .iter()
            .any(|p| l.starts_with(p))
    };
    apt_config
        .lines()
        .filter(proxy)
        .map(str::to_owned)
        .collect()
}

/// Debian's mirror as this machine's own apt knows it.
pub(crate) fn mirror() -> Result<String> {
    if let Some(mirror) = known_mirror() {
        return Ok(mirror);
    }
    // A container's image has no index until the first update.
    let mut update = command::lasting("apt-get");
    update.arg("update");
    command::output(update).ok();
    known_mirror().with_context(|| {
        "this machine's apt configuration names no Debian mirror that answers\n=> check the network; or name one: \
         cargo xtask setup --mirror URI (and install debian-archive-keyring, whose keys check what comes from it)"
    })
}

/// The mirror that apt's index names now; asks nobody.
pub(crate) fn known_mirror() -> Option<String> {
    let mut apt = command::command("apt-get");
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    apt.args(["indextargets", "--format", format, "Created-By: Packages"]);
    parse_mirror(&command::output(apt).unwrap_or_default(), |p| {
        fs::read_to_string(p).ok()
    })
}

fn parse_mirror(targets: &str, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let uris = targets
        .lines()
        .filter_map(|l| l.split_once('|'))
        .filter_map(|(origin, rest)| Some((origin, rest.split_once('|')?)))
        .filter(|(origin, (label, _))| *origin == "Debian" && *label == "Debian")
        .map(|(_, (_, uri))| uri);
    let is_web = |uri: &str| uri.starts_with("http://") || uri.starts_with("https://");
    // Cloud images name a file with mirrors; inside the build root there is no such file.
    let listed = |uri: &str| {
        let path = uri.strip_prefix("mirror+file:")?.trim_end_matches('/');
        let text = read(path)?;
        let first = text.split_whitespace().find(|w| is_web(w))?;
        Some(first.to_owned())
    };
    uris.filter_map(|uri| {
        if is_web(uri) {
            Some(uri.to_owned())
        } else {
            listed(uri)
        }
    })
    .next()
}

/// Makes sure the program `name` is there, from the package `package` if need be.
pub(crate) fn need_program(name: &str, package: &str, log: &Path) -> Result<()> {
    if find_program(name) {
        return Ok(());
    }
    let mut update = command::lasting("apt-get");
    update.arg("update");
    // A third-party source that fails must not stop us: what counts is whether the package can be installed.
    let updated = command::run("reading the package index of this machine", log, update);
    let mut apt = command::lasting("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt.args([
        "-oDPkg::Lock::Timeout=300",
        "install",
        "-y",
        "--no-install-recommends",
        package,
    ]);
    let installed = command::run(&format!("installing {package} on this machine"), log, apt);
    match (installed, updated) {
        (Err(install), Err(update)) => Err(install.context(update)),
        (installed, _) => installed,
    }
}

/// Whether `name` is on the PATH (or in the folders of root's).
pub(crate) fn find_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|d| d.join(name).is_file())
}

/// Whether QEMU can use KVM: the processor's flag, and a device that opens.
pub(crate) fn has_kvm() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = fs::File::options().read(true).write(true).open("/dev/kvm");
    has_hardware_virtualization(&cpuinfo) && device.is_ok()
}

/// Whether this processor can run guests with `/dev/kvm` (vmx or svm; the device file alone says nothing).
pub(crate) fn has_hardware_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find(|l| l.starts_with("flags"))
        .is_some_and(|l| l.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_with_apt_are_recognised() {
        let of = |text: &str| Distribution::parse(text).has_apt();
        assert!(of("ID=debian\n"));
        assert!(of("ID=pop\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!of("ID=fedora\nID_LIKE=\"rhel\"\n"));
        assert!(!of(""));
    }

    #[test]
    fn the_mirror_is_debians_own_and_not_the_security_archive() {
        let targets = "Debian|Debian-Security|http://b/\nOther|Debian|http://c/\nDebian|Debian|http://a/debian/\n";
        let parse = |targets: &str| {
            parse_mirror(targets, |_| {
                Some(
                    "http://m/debian	priority:1
"
                    .into(),
                )
            })
        };
        assert_eq!(parse(targets).as_deref(), Some("http://a/debian/"));
        assert_eq!(
            parse(
                "Node Source|Node Source|https://n/
"
            ),
            None
        );
        let cloud = "Debian|Debian|mirror+file:/etc/apt/mirrors/debian.list/
";
        assert_eq!(parse(cloud).as_deref(), Some("http://m/debian"));
        assert_eq!(
            parse(
                "Debian|Debian|cdrom:[x]/
"
            ),
            None
        );
    }

    #[test]
    fn proxies_of_apt_are_carried_over() {
        let dump = "APT \"\";\nAcquire::http::Proxy \"http://p:3128\";\nAcquire::http::Proxy::h \"DIRECT\";\n";
        assert_eq!(
            parse_proxies(dump),
            ["Acquire::http::Proxy \"http://p:3128\";"]
        );
    }

    #[test]
    fn kvm_needs_the_processor_flag() {
        assert!(has_hardware_virtualization(
            "processor: 0\nflags\t\t: fpu vmx sse\n"
        ));
        assert!(!has_hardware_virtualization(
            "flags\t\t: fpu svm_lock avmx sse\n"
        ));
    }
}
