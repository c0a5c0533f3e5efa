// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift save` and `zeroshift restore`: the controller state of a function, in a file.

use crate::backend::{Backend, State};
use crate::cli::{FunctionOptions, RestoreOptions, SaveOptions};
use crate::device::Device;
use crate::explain::{explain, Request};
use crate::progress;
use crate::stream;
use crate::WRITING;
use anyhow::{bail, Context as _, Result};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use zeroshift_stream::identity::{self, View};
use zeroshift_stream::record::KIND_NVME;

/// What was being done when the state cannot be written to standard output. Whoever reads it has not
/// got it, so this is an error also when that one has gone away.
const PIPING: &str =
    "cannot write the state to standard output, where it is not whole now; save it again";

/// Runs `save`.
pub(crate) fn save(options: &SaveOptions, output: &mut impl Write) -> Result<()> {
    let device = Device::open_loaded(&options.function.places.device)?;
    save_to(&device, options, output)
}

/// Runs `restore`.
pub(crate) fn restore(options: &RestoreOptions, output: &mut impl Write) -> Result<()> {
    let device = Device::open_loaded(&options.function.places.device)?;
    restore_from(&device, options, output)
}

fn save_to(backend: &dyn Backend, options: &SaveOptions, output: &mut impl Write) -> Result<()> {
    let address = options.function.address;
    let file = &options.file;
    let to_output = file == Path::new("-");
    if to_output && options.function.json {
        bail!("standard output cannot be both the file and JSON; name a file");
    }
    if !to_output {
        stream::refuse_existing(file, options.force)?;
    }
    let identity = backend
        .identity(address)
        .map_err(|errno| explain(backend, Request::Identify, address, errno))?;
    let state = progress::during(&format!("getting the state of {address}"), || {
        backend.save(address)
    })
    .map_err(|errno| explain(backend, Request::Save, address, errno))?;
    if to_output {
        stream::write(output, &identity, &state).context(PIPING)?;
        return output.flush().context(PIPING);
    }
    let bytes = progress::during(&format!("writing {}", file.display()), || {
        stream::atomically(file, options.force, |to| {
            stream::write(to, &identity, &state)
        })
    })?;
    done(&options.function, file, bytes, "saved", output)
}

fn restore_from(
    backend: &dyn Backend,
    options: &RestoreOptions,
    output: &mut impl Write,
) -> Result<()> {
    let address = options.function.address;
    let name = options.file.display();
    let loaded = stream::load(&options.file)?;
    if loaded.header.kind != KIND_NVME {
        bail!(
            "cannot restore {address} from {name}: it is for another kind of function ({}), not \
             for NVMe",
            loaded.header.kind
        );
    }
    let mine = backend
        .identity(address)
        .map_err(|errno| explain(backend, Request::Identify, address, errno))?;
    let mine = View::decode(&mine).map_err(|why| {
        anyhow::anyhow!(
            "cannot restore {address}: the module migdirty gives an identity that is none ({why}); \
             load the module of the same version as zeroshift"
        )
    })?;
    let theirs = View::decode(&loaded.identity)?;
    if let Err(difference) = identity::compare(&mine, &theirs) {
        bail!(
            "cannot restore {address} from {name}: it was saved from another function: \
             {difference}; 'zeroshift inspect {name}' shows which"
        );
    }
    let state = State {
        version: loaded.header.format.version,
        uuid: loaded.header.format.uuid,
        bytes: loaded.state,
    };
    progress::during(&format!("setting the state of {address}"), || {
        backend.restore(address, &state)
    })
    .map_err(|errno| explain(backend, Request::Restore, address, errno))?;
    done(
        &options.function,
        &options.file,
        loaded.size,
        "restored",
        output,
    )
}

fn done(
    function: &FunctionOptions,
    file: &Path,
    bytes: u64,
    what: &str,
    output: &mut impl Write,
) -> Result<()> {
    let address = function.address;
    let name = file.display();
    if function.json {
        let value = json!({"address": address.to_string(), "file": name.to_string(),
            "bytes": bytes});
        return writeln!(output, "{value}").context(WRITING);
    }
    let preposition = if what == "saved" { "to" } else { "from" };
    writeln!(
        output,
        "{what} {address} {preposition} {name} ({bytes} bytes); it is still paused"
    )
    .context(WRITING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arguments, Command};
    use crate::fake::{self, Fake};
    use clap::Parser as _;
    use migdirty_uapi::{MIGDIRTY_FUNCTION_LIVE, MIGDIRTY_FUNCTION_SUSPENDED};
    use rustix::io::Errno;
    use serde_json::Value;

    fn run(backend: &Fake, arguments: &[&str]) -> Result<Vec<u8>, String> {
        let words = ["zeroshift"].iter().chain(arguments);
        let mut output = vec![];
        let result = match Arguments::try_parse_from(words).unwrap().command {
            Command::Save(options) => save_to(backend, &options, &mut output),
            Command::Restore(options) => restore_from(backend, &options, &mut output),
            other => panic!("{other:?}"),
        };
        result
            .map(|()| output)
            .map_err(|error| format!("{error:#}"))
    }

    fn paused() -> Fake {
        let fake = Fake::default();
        fake.flags
            .set(MIGDIRTY_FUNCTION_LIVE | MIGDIRTY_FUNCTION_SUSPENDED);
        fake
    }

    #[test]
    fn a_state_goes_to_a_file_and_into_another_function() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("function.state");
        let name = file.to_str().unwrap();
        let source = paused();
        let said = String::from_utf8(run(&source, &["save", "2:0.0", name]).unwrap()).unwrap();
        let bytes = file.metadata().unwrap().len();
        assert_eq!(
            said,
            format!("saved 0000:02:00.0 to {name} ({bytes} bytes); it is still paused\n")
        );
        let destination = paused();
        destination.state.borrow_mut().bytes.clear();
        let said = run(&destination, &["restore", "2:0.0", name, "--json"]).unwrap();
        let said: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(
            said,
            json!({"address": "0000:02:00.0", "file": name, "bytes": bytes})
        );
        assert_eq!(*destination.state.borrow(), *source.state.borrow());

        // Not over another file, and the card is not asked for it.
        source.asked.borrow_mut().clear();
        let error = run(&source, &["save", "2:0.0", name]).unwrap_err();
        assert!(error.contains("exists already"), "{error}");
        assert!(source.asked.borrow().is_empty());
        run(&source, &["save", "2:0.0", name, "--force"]).unwrap();
        // As a pipe.
        let piped = run(&source, &["save", "2:0.0", "-"]).unwrap();
        assert_eq!(piped, std::fs::read(&file).unwrap());
        assert!(run(&source, &["save", "2:0.0", "-", "--json"]).is_err());
        // A reader that ended has not got it.
        let words = ["zeroshift", "save", "2:0.0", "-"];
        let Command::Save(options) = Arguments::try_parse_from(words).unwrap().command else {
            panic!()
        };
        let mut closed = crate::tests::Broken(std::io::ErrorKind::BrokenPipe);
        let error = save_to(&source, &options, &mut closed).unwrap_err();
        assert!(!crate::is_broken_pipe(&error), "{error:#}");
    }

    #[test]
    fn what_cannot_be_saved_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("function.state");
        let name = file.to_str().unwrap();
        let error = run(&Fake::default(), &["save", "2:0.0", name]).unwrap_err();
        assert!(error.contains("zeroshift pause 0000:02:00.0"), "{error}");
        let error = run(&paused(), &["save", "3:0.0", name]).unwrap_err();
        assert!(error.contains("no card manages it"), "{error}");
        let there: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert!(there.is_empty());
    }

    #[test]
    fn what_does_not_belong_there_is_not_set() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("function.state");
        let name = file.to_str().unwrap();
        let source = paused();
        run(&source, &["save", "2:0.0", name]).unwrap();
        let refused = |fake: &Fake| {
            let error = run(fake, &["restore", "2:0.0", name]).unwrap_err();
            let set = fake.asked.borrow().iter().any(|asked| asked == "restore");
            (error, set)
        };
        let other = Fake {
            identity: fake::identity("ZS00000002"),
            ..paused()
        };
        let (error, set) = refused(&other);
        assert!(
            error.contains("serial number is \"ZS00000002\" here and \"ZS00000001\" in the stream"),
            "{error}"
        );
        assert!(!set);
        let (error, _) = refused(&Fake::default());
        assert!(error.contains("zeroshift pause"), "{error}");
        let picky = paused();
        picky.fails.set(Some(("restore", Errno::INVAL)));
        assert!(refused(&picky).0.contains("the card refused the state"));
        let odd = Fake {
            identity: vec![0; 81],
            ..paused()
        };
        let (error, set) = refused(&odd);
        assert!(error.contains("same version") && !set, "{error}");

        let mut broken = std::fs::read(&file).unwrap();
        broken.pop();
        std::fs::write(&file, &broken).unwrap();
        let fake = paused();
        let (error, set) = refused(&fake);
        assert!(error.contains("cut short") && !set, "{error}");
        assert!(fake.asked.borrow().is_empty());
    }
}
