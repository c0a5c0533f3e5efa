// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Migration streams in files: `docs/interfaces.md`, section 13.

use crate::backend::State;
use anyhow::{anyhow, bail, Context as _, Result};
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use zeroshift_stream::format::Format;
use zeroshift_stream::identity::View;
use zeroshift_stream::reader::{Event, HeaderPart, Reader};
use zeroshift_stream::record::{KIND_NVME, MAX_HEADER_PART};
use zeroshift_stream::writer::{header_part, Writer};

/// Bytes that are read or written at once.
const PIECE: usize = 1 << 20;

/// A whole stream, whose identity follows the format.
pub(crate) struct Loaded {
    pub(crate) header: HeaderPart,
    /// The value of `IDENTITY`.
    pub(crate) identity: Vec<u8>,
    pub(crate) state: Vec<u8>,
    /// Bytes of the stream.
    pub(crate) size: u64,
}

/// What is read: a file, or standard input for `-`.
pub(crate) fn load(path: &Path) -> Result<Loaded> {
    let name = path.display().to_string();
    if path == Path::new("-") {
        return read(&mut io::stdin().lock(), "standard input");
    }
    let mut file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    read(&mut file, &name)
}

fn read(input: &mut impl Read, name: &str) -> Result<Loaded> {
    let mut reader = Reader::new();
    let mut header = None;
    let mut identity = Vec::new();
    let mut state = Vec::new();
    let mut buffer = vec![0; PIECE];
    loop {
        let size = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
        };
        let mut piece = &buffer[..size];
        while let Some(event) = reader
            .next(&mut piece)
            .map_err(|error| refused(name, error))?
        {
            match event {
                Event::Identity(bytes) => identity.extend_from_slice(bytes),
                Event::State(bytes) => state.extend_from_slice(bytes),
                Event::Header(part) => {
                    View::decode(&identity).map_err(|why| refused(name, part.refused(&why)))?;
                    header = Some(part);
                }
                Event::End => {}
            }
        }
    }
    reader.finish().map_err(|error| refused(name, error))?;
    let header = header.ok_or_else(|| anyhow!("{name}: the stream has no header part"))?;
    Ok(Loaded {
        header,
        identity,
        state,
        size: reader.offset(),
    })
}

fn refused(name: &str, error: zeroshift_stream::error::Error) -> anyhow::Error {
    anyhow!(
        "{name} is no whole migration stream: {error}; save the function again, or copy the file \
         again"
    )
}

/// Writes a stream without registers, and says how many bytes it has.
pub(crate) fn write(output: &mut impl Write, identity: &[u8], state: &State) -> Result<u64> {
    const TOO_LONG: &str =
        "the identity or the state of the function is none: the module migdirty \
                            of the same version as zeroshift has to be loaded";
    let mut header = vec![0; MAX_HEADER_PART];
    let format = Format {
        version: state.version,
        uuid: state.uuid,
    };
    let Some(size) = header_part(&mut header, KIND_NVME, identity, None, &format) else {
        bail!(TOO_LONG);
    };
    header.truncate(size);
    let mut writer = Writer::new(&header);
    let mut total = header.len() as u64;
    output.write_all(&header)?;
    for part in state.bytes.chunks(PIECE) {
        let Some(before) = writer.state(part) else {
            bail!(TOO_LONG);
        };
        output.write_all(&before)?;
        output.write_all(part)?;
        total += (before.len() + part.len()) as u64;
    }
    let Some(end) = writer.end() else {
        bail!(TOO_LONG);
    };
    output.write_all(&end)?;
    Ok(total + end.len() as u64)
}

/// A file that is not there yet: gone when it is dropped before it is in its place.
struct Unfinished {
    path: PathBuf,
    file: File,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // In its place it has another name, and this one is gone already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes a file that is there as a whole or not at all, also when the disk is full, somebody kills
/// this program or the power fails; the last two may leave a hidden one behind. `replace`: also in
/// the place of another one.
pub(crate) fn atomically<T>(
    path: &Path,
    replace: bool,
    fill: impl FnOnce(&mut File) -> Result<T>,
) -> Result<T> {
    let name = path.display();
    let Some(file_name) = path.file_name() else {
        bail!("{name} is no name of a file");
    };
    refuse_existing(path, replace)?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(file_name);
    hidden.push(format!(".{}", std::process::id()));
    let cannot = || format!("cannot write {name}");
    let hidden = folder.join(hidden);
    // Left by a program that was killed, and had the number that this one has now.
    let _ = std::fs::remove_file(&hidden);
    let file = File::options()
        .write(true)
        .create_new(true)
        // It tells what a guest does: nobody else may open it, not even before it is full.
        .mode(0o600)
        .open(&hidden)
        .with_context(cannot)?;
    let mut unfinished = Unfinished { path: hidden, file };
    let file = &mut unfinished.file;
    // Whatever the umask took away.
    file.set_permissions(Permissions::from_mode(0o600))
        .with_context(cannot)?;
    let result = fill(file).with_context(cannot)?;
    file.sync_all().with_context(cannot)?;
    put(&unfinished.path, path, replace).with_context(cannot)?;
    let folder = File::open(folder).with_context(cannot)?;
    folder.sync_all().with_context(cannot)?;
    Ok(result)
}

/// Refuses to go on when there is something in the place of the file that must not be replaced:
/// `/dev/stdout` or `/dev/null` never.
pub(crate) fn refuse_existing(path: &Path, replace: bool) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else {
        return Ok(());
    };
    if !metadata.is_file() {
        bail!(
            "{} is there, and is no regular file; choose another name, or - for standard output",
            path.display()
        );
    }
    if !replace {
        bail!(
            "{} exists already; choose another name, or replace it with --force",
            path.display()
        );
    }
    Ok(())
}

/// Gives a file its name.
fn put(from: &Path, to: &Path, replace: bool) -> Result<()> {
    use rustix::fs::{renameat_with, RenameFlags, CWD};
    use rustix::io::Errno;
    if replace {
        return Ok(std::fs::rename(from, to)?);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => refuse_existing(to, false),
        // Some file systems cannot; then a file that came this moment is replaced.
        Err(Errno::INVAL | Errno::NOSYS) => {
            refuse_existing(to, false)?;
            Ok(std::fs::rename(from, to)?)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn state(bytes: usize) -> State {
        State {
            version: 3,
            uuid: [7; 16],
            bytes: (0..bytes).map(|n| n as u8).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let identity = fake::identity("S1");
        for bytes in [1, PIECE, PIECE + 1, 3 * PIECE] {
            let state = state(bytes);
            let mut stream = vec![];
            let size = write(&mut stream, &identity, &state).unwrap();
            assert_eq!(size, stream.len() as u64);
            let loaded = read(&mut &stream[..], "x").unwrap();
            assert_eq!(loaded.size, size);
            assert_eq!(loaded.identity, identity);
            assert_eq!(loaded.state, state.bytes);
            assert_eq!(loaded.header.format.version, 3);
            assert_eq!(loaded.header.format.uuid, [7; 16]);
            assert_eq!(loaded.header.registers, None);
            // Beyond the state itself: far below what a stream may add.
            assert!(size - bytes as u64 <= 512 + bytes as u64 / 50);
        }
        assert!(write(&mut vec![], &identity, &state(0)).is_err());
        assert!(write(&mut vec![], &[0; 70000], &state(1)).is_err());
    }

    #[test]
    fn a_broken_stream_is_refused_by_name_and_place() {
        let mut stream = vec![];
        write(&mut stream, &fake::identity("S1"), &state(100)).unwrap();
        let refused = |stream: &[u8]| {
            let mut stream = stream;
            let error = read(&mut stream, "a.state").map(drop).unwrap_err();
            error.to_string()
        };
        let cut = refused(&stream[..stream.len() - 1]);
        assert!(
            cut.contains("a.state") && cut.contains("cut short"),
            "{cut}"
        );
        let mut flipped = stream.clone();
        let at = flipped.len() - 40;
        flipped[at] ^= 1;
        assert!(refused(&flipped).contains("wrong checksum"));
        // SUBNQN of no byte.
        let mut other = stream.clone();
        other[48 + 72] = 0;
        let error = refused(&other);
        assert!(error.contains("IDENTITY at byte 120"), "{error}");
        assert!(refused(b"").contains("cut short"));
        assert!(refused(&[stream, vec![0]].concat()).contains("behind the end"));
    }

    #[test]
    fn a_file_is_there_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let left = || std::fs::read_dir(folder.path()).unwrap().count();
        let full = atomically(&path, false, |file| {
            file.write_all(b"half")?;
            Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull).into())
        });
        let full = format!("{:#}", full.unwrap_err());
        assert!(
            full.starts_with("cannot write ") && full.contains("storage"),
            "{full}"
        );
        assert_eq!(left(), 0);

        let done = |text: &str, replace| {
            atomically(&path, replace, |file| Ok(file.write_all(text.as_bytes())?))
        };
        done("one", false).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let error = done("two", false).unwrap_err().to_string();
        assert!(error.contains("exists already") && error.contains("--force"));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        done("two", true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(left(), 1);
        // What is no file stays what it is.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for (path, replace) in [(&*link, true), (&*link, false), (folder.path(), true)] {
            let error = atomically(path, replace, |_| Ok(()))
                .unwrap_err()
                .to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
        std::fs::remove_file(&link).unwrap();
        // One that came meanwhile stays.
        let other = folder.path().join("other");
        let error = atomically(&other, false, |_| Ok(std::fs::write(&other, "first")?));
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("exists already"), "{error}");
        assert_eq!(std::fs::read(&other).unwrap(), b"first");
        assert_eq!(left(), 2);
        assert!(atomically(&folder.path().join("no/file"), false, |_| Ok(())).is_err());
        assert!(atomically(Path::new("/"), true, |_| Ok(())).is_err());
    }
}
