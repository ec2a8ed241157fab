//! Determines the format of an image and whether it may be used.

use std::path::Path;

use super::{
    cache, qcow2, qemu_img,
    reference::{Compression, Foreign},
};
use super::{ensure::Work, error::Error};
use crate::{spec::Format, sys::file};

impl Work<'_> {
    /// Returns the format and the virtual size in bytes.
    pub(crate) fn inspect(&mut self, path: &Path) -> Result<(Format, u64), Error> {
        let image = self.name.clone();
        let head = file::read_at(path, 0, qcow2::HEAD)?;
        if head.is_empty() {
            return Err(Error::Empty(image));
        }
        if let Some(foreign) = Foreign::of(&head) {
            return Err(Error::Foreign { image, foreign });
        }
        if let Some(inner) = Compression::of(&head) {
            return Err(Error::Twice { image, inner });
        }
        let header = match qcow2::Header::parse(&head) {
            Ok(header) => header,
            Err(qcow2::Error::NotQcow2) => {
                let length = file::metadata(path)?.map_or(0, |m| m.len());
                return Ok((Format::Raw, length));
            }
            Err(source) => return Err(Error::Header { image, source }),
        };
        let why = if let Some(backing) = cache::backing_of(path)? {
            Some(format!("the image has a backing file, `{}`", crate::value::shown(&backing)))
        } else if header.external_data {
            Some("the image has an external data file".to_owned())
        } else if header.encrypted {
            Some("the image is encrypted".to_owned())
        } else {
            None
        };
        if let Some(why) = why {
            return Err(Error::Refused { image, why });
        }
        if header.corrupt {
            return Err(Error::MarkedCorrupt { image });
        }
        let checked = self.tools.qemu_img.check(path, &mut || !self.cancel.is_set());
        match checked {
            Ok(()) => Ok((Format::Qcow2, header.virtual_size)),
            Err(source @ qemu_img::Error::Failed { .. }) => Err(Error::Corrupt { image, source }),
            Err(source) => Err(Error::Check { image, source }),
        }
    }
}
