//! Copies a file to a new disk: by reflink if the file system supports it, else if there is enough
//! space.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path};

use super::error::Error;
use crate::{
    sys::{
        file::{self, Error as FileError},
        progress::{At, Cancel, Doing, Progress},
        reflink,
        writeback::WriteBack,
    },
    value::Label,
};

/// Copies `from` to the open empty file `to`. The caller syncs it.
///
/// # Errors
/// Reading or writing fails, there is not enough space, or the copy was canceled.
pub fn copy(
    disk: &Label,
    from: &Path,
    (target, to): (&File, &Path),
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<(), Error> {
    let wrap = |source| Error::File { disk: disk.clone(), source };
    let error = |e| wrap(FileError::on("write", to)(e));
    let source = File::open(from).map_err(FileError::on("open", from)).map_err(wrap)?;
    if reflink::reflink(&source, target).map_err(error)? {
        return Ok(());
    }
    let metadata = source.metadata().map_err(FileError::on("examine", from)).map_err(wrap)?;
    let dir = to.parent().unwrap_or(Path::new("/"));
    let (needed, free) = (metadata.blocks() * 512, file::available(dir).map_err(wrap)?);
    if needed > free {
        return Err(Error::NoRoom { disk: disk.clone(), needed, free, dir: dir.to_owned() });
    }
    let mut back = WriteBack::of(target).map_err(error)?;
    let copied = reflink::copy(&source, target, &mut |done| {
        let total = Some(needed);
        progress.at(&At { doing: Doing::Copying, what: disk.as_str(), done, total });
        back.wrote(done);
        !cancel.is_set()
    });
    match copied {
        Ok(_) => back.end().map_err(error),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(Error::Canceled(disk.clone())),
        Err(e) => Err(error(e)),
    }
}
