// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Initramfs images in layers: the kernel unpacks one archive after another, so what rarely changes (busybox,
//! the kernel's modules, QEMU with its libraries) is packed once and kept in the cache, and each run adds its
//! own small layer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context as _, Result};

use crate::buildroot::{BuildRoot, Network};
use crate::cache::{Cache, Key, Leftover};
use crate::command;
use crate::kernel::Kernel;

/// Packs the folder `$1` into the archive `$2`.
const PACK: &str = r#"set -e; cd "$1" && find . -mindepth 1 -print0 | sort -z | cpio --null --quiet --reproducible -o -H newc -R 0:0 | gzip -1 > "$2""#;

/// Copies the programs `$2`... with the libraries they need into the folder `$1`.
const COPY_PROGRAMS: &str = r#"
set -eu
to=$1; shift
for program; do
  for file in "$program" $(ldd "$program" 2>/dev/null | grep -o '/[^ ]*'); do
    [ -e "$to$file" ] && continue
    mkdir -p "$to$(dirname "$file")"
    cp -L "$file" "$to$file"
  done
done
"#;

/// QEMU's firmware for a guest that is started with -kernel.
const QEMU_DATA: [&str; 6] = [
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/bios.bin",
    "/usr/share/qemu/multiboot_dma.bin",
];

/// What a host uses cards with, and the one data file they need. fio brings most of the layer's 60 MB: it is linked
/// with the clients of three distributed file systems.
const PEERS: [&str; 7] = [
    "/usr/bin/fio",
    "/usr/sbin/nvme",
    "/usr/sbin/mkfs.ext4",
    "/usr/sbin/e2fsck",
    "/usr/sbin/blkdiscard",
    "/usr/sbin/blockdev",
    "/etc/mke2fs.conf",
];

/// busybox, `/init`, and the kernel's own modules `names` with what they depend on.
pub(crate) fn base(
    cache: &Cache,
    root: &BuildRoot,
    repo: &Path,
    kernel: &Kernel,
    names: &[&str],
) -> Result<PathBuf> {
    let init = fs::read(repo.join("ci/rig/init"))?;
    let key = Key::of([
        ("root", root.id.as_bytes()),
        ("tree", kernel.tree.id.as_bytes()),
        ("release", kernel.release.as_bytes()),
        ("modules", names.join(" ").as_bytes()),
        ("init", &init),
        ("recipe", PACK.as_bytes()),
    ]);
    layer(cache, root, "base", &key, |dir| {
        for d in ["bin", "dev", "proc", "sys", "zs/modules", "zs/jobs"] {
            fs::create_dir_all(dir.join(d))?;
        }
        fs::copy(root.path("usr/bin/busybox"), dir.join("bin/busybox")).context("copy busybox")?;
        fs::write(dir.join("init"), &init)?;
        fs::set_permissions(dir.join("init"), fs::Permissions::from_mode(0o755))?;
        let mut order = String::new();
        for path in closure(&kernel.modules, names)? {
            let name = module_name(&path);
            unpack_module(
                root,
                &kernel.modules.join(&path),
                &dir.join(format!("zs/modules/{name}.ko")),
            )?;
            order += &format!("{name}.ko\n");
        }
        Ok(fs::write(dir.join("zs/modules/order"), order)?)
    })
}

/// QEMU with its libraries and firmware, for a machine that runs guests itself.
pub(crate) fn qemu(cache: &Cache, root: &BuildRoot) -> Result<PathBuf> {
    let files = [&["/usr/bin/qemu-system-x86_64"], QEMU_DATA.as_slice()].concat();
    programs(cache, root, "qemu", &files)
}

/// fio, nvme-cli, ext4's programs and util-linux's for block devices.
pub(crate) fn peers(cache: &Cache, root: &BuildRoot) -> Result<PathBuf> {
    programs(cache, root, "peers", &PEERS)
}

/// `files` of the build root, programs with the libraries they need.
fn programs(cache: &Cache, root: &BuildRoot, name: &str, files: &[&str]) -> Result<PathBuf> {
    let key = Key::of([
        ("root", root.id.as_bytes()),
        ("files", files.join(" ").as_bytes()),
        ("recipe", PACK.as_bytes()),
        ("copy", COPY_PROGRAMS.as_bytes()),
    ]);
    layer(cache, root, name, &key, |dir| {
        let mut copy = root.command_with("sh", &[], Network::None);
        copy.args(["-c", COPY_PROGRAMS, "copy"])
            .arg(dir)
            .args(files);
        command::run(
            &format!("collecting the programs of the layer {name}"),
            &cache.log(&format!("layer-{name}")),
            copy,
        )
    })
}

fn layer(
    cache: &Cache,
    root: &BuildRoot,
    name: &str,
    key: &Key,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let dir = cache.artefact(&format!("layer-{name}"), key, Leftover::Remove, |dir| {
        let tree = dir.join("tree");
        fs::create_dir_all(&tree)?;
        fill(&tree)?;
        pack(root, &tree, &dir.join("layer.gz"))?;
        Ok(fs::remove_dir_all(&tree)?)
    })?;
    Ok(dir.join("layer.gz"))
}

fn pack(root: &BuildRoot, tree: &Path, to: &Path) -> Result<()> {
    let mut c = root.command_with("bash", &[], Network::None);
    c.args(["-o", "pipefail", "-c", PACK, "pack"])
        .arg(tree)
        .arg(to);
    let out = c.output().context("pack an image")?;
    if !out.status.success() {
        bail!(
            "packing {}: {}\n{}",
            tree.display(),
            out.status,
            command::tail(&String::from_utf8_lossy(&out.stderr), 10)
        );
    }
    Ok(())
}

/// The layer of one run: files and jobs.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    layers: Vec<PathBuf>,
    files: Vec<(String, PathBuf)>,
    jobs: Vec<(String, String)>,
}

impl Overlay {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Puts a layer below it, such as [`qemu`].
    pub(crate) fn layer(mut self, layer: PathBuf) -> Self {
        self.layers.push(layer);
        self
    }

    /// Adds the host's file `from` as `to` (absolute), executable.
    pub(crate) fn file(mut self, to: &str, from: &Path) -> Self {
        self.files.push((to.to_owned(), from.to_owned()));
        self
    }

    /// Adds a job: a shell script under busybox. Jobs run in the order they were added.
    pub(crate) fn job(mut self, name: &str, script: &str) -> Self {
        self.jobs.push((name.to_owned(), script.to_owned()));
        self
    }

    /// Writes the whole image, `layers` and its own first, to `to`.
    pub(crate) fn write(&self, root: &BuildRoot, layers: &[PathBuf], to: &Path) -> Result<()> {
        let tree = to.with_extension("tree");
        fs::create_dir_all(tree.join("zs/jobs"))?;
        for (to, from) in &self.files {
            let path = tree.join(to.trim_start_matches('/'));
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(from, &path)
                .with_context(|| format!("copy {} into an image", from.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        strip(root, &tree, self.files.iter().map(|(to, _)| to.as_str()))?;
        for (i, (name, script)) in self.jobs.iter().enumerate() {
            fs::write(tree.join(format!("zs/jobs/{i:02}-{name}")), script)?;
        }
        let own = to.with_extension("layer");
        pack(root, &tree, &own)?;
        let mut image = File::create(to)?;
        for layer in layers.iter().chain(&self.layers).chain([&own]) {
            io::copy(
                &mut File::open(layer).with_context(|| format!("open {}", layer.display()))?,
                &mut image,
            )?;
        }
        fs::remove_file(own)?;
        Ok(fs::remove_dir_all(tree)?)
    }
}

/// Takes debug information out of those of `files` that are programs or modules: it is four fifths of a program, and
/// a machine in Bochs unpacks its image for seconds.
fn strip<'a>(root: &BuildRoot, tree: &Path, files: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut strip = root.command_with("strip", &[], Network::None);
    strip.arg("--strip-debug");
    let mut any = false;
    for file in files {
        let path = tree.join(file.trim_start_matches('/'));
        let mut magic = [0; 4];
        let read = File::open(&path)?.read(&mut magic)?;
        if magic[..read] == *b"\x7fELF" {
            strip.arg(&path);
            any = true;
        }
    }
    if any {
        command::output(strip)?;
    }
    Ok(())
}

/// `kernel/drivers/a-b.ko.xz` is called `a_b`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn unpack_module(root: &BuildRoot, from: &Path, to: &Path) -> Result<()> {
    let program = match from.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
            return Ok(());
        }
    };
    let mut c = root.command_with("sh", &[], Network::None);
    c.args(["-c", r#"exec "$1" -dc "$2" > "$3""#, "unpack", program])
        .arg(from)
        .arg(to);
    command::output(c).map(drop)
}

/// The files of `names` and of all they depend on, in an order in which they can be loaded. A name that is
/// built into the kernel is left out.
fn closure(modules: &Path, names: &[&str]) -> Result<Vec<String>> {
    let read = |name: &str| {
        fs::read_to_string(modules.join(name))
            .with_context(|| format!("read {name} in {}", modules.display()))
    };
    order(&read("modules.dep")?, &read("modules.builtin")?, names)
}

fn order(dep: &str, builtin: &str, names: &[&str]) -> Result<Vec<String>> {
    let depends: BTreeMap<String, (&str, Vec<&str>)> = dep
        .lines()
        .filter_map(|l| l.split_once(':'))
        .map(|(path, needs)| {
            (
                module_name(path),
                (path, needs.split_whitespace().collect()),
            )
        })
        .collect();
    let mut ordered: Vec<String> = Vec::new();
    for name in names {
        let name = name.replace('-', "_");
        let Some((path, needs)) = depends.get(&name) else {
            if builtin.lines().any(|l| module_name(l) == name) {
                continue;
            }
            bail!(
                "the kernel has no module {name}\n=> it was renamed, or ci/kernel/*.config lost it"
            );
        };
        // modules.dep lists what is needed last first.
        for file in needs.iter().rev().chain([path]) {
            if !ordered.iter().any(|o| o == file) {
                ordered.push((*file).to_owned());
            }
        }
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/vfio/vfio.ko.xz:\nkernel/lib/irqbypass.ko.xz:\n\
        kernel/vfio/pci/vfio-pci-core.ko.xz: kernel/vfio/vfio.ko.xz kernel/lib/irqbypass.ko.xz\n\
        kernel/vfio/pci/vfio-pci.ko.xz: kernel/vfio/pci/vfio-pci-core.ko.xz kernel/vfio/vfio.ko.xz kernel/lib/irqbypass.ko.xz\n";

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let got = order(
            DEP,
            "kernel/x/kvm.ko\n",
            &["vfio_pci", "vfio-pci-core", "kvm"],
        )
        .unwrap();
        let names: Vec<String> = got.iter().map(|p| module_name(p)).collect();
        assert_eq!(names, ["irqbypass", "vfio", "vfio_pci_core", "vfio_pci"]);
    }

    #[test]
    fn an_unknown_module_is_named() {
        assert!(order(DEP, "", &["nvme_core"])
            .unwrap_err()
            .to_string()
            .contains("nvme_core"));
    }
}
