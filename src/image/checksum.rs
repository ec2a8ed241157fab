//! Determines and compares the digest of an image.

use super::{
    cache, checksum_file, fetch,
    reference::{file_name, local_path, without_password},
};
use super::{ensure::Work, error::Error};
use crate::{
    spec::{Checksum, Origin},
    sys::file,
    value::Digest,
};

impl Work<'_> {
    /// Returns the expected digest. A SUMS file is downloaded, and its digest stored if `remember`.
    pub(crate) fn expected(&mut self, remember: bool) -> Result<Option<Digest>, Error> {
        let sums = match &self.image.checksum {
            Checksum::None => return Ok(None),
            Checksum::Digest(digest) => return Ok(Some(digest.clone())),
            Checksum::Sums(sums) => sums,
        };
        let digest = self.listed(sums)?;
        if remember {
            cache::remember(self.cache, self.image, &digest)?;
        }
        Ok(Some(digest))
    }

    /// Returns the digest in the list at `sums`: by the file name in the image's URL, else by the
    /// file name of the redirect target.
    fn listed(&mut self, sums: &str) -> Result<Digest, Error> {
        let name = file_name(&self.image.origin).ok_or(Error::NoName(self.name.clone()))?;
        let (patience, list) = (self.tools.patience, self.list_name(sums));
        let bytes = match local_path(sums) {
            Some(path) => file::read_at(&path, 0, 4 << 20)?,
            None => fetch::bytes(sums, patience, self.progress, self.cancel)?,
        };
        let text = checksum_file::decoded(&bytes);
        let source = match checksum_file::find(&text, &name, list.as_deref()) {
            Ok(digest) => return Ok(digest),
            Err(source) => source,
        };
        let fail = |source| {
            let (image, sums) = (self.name.clone(), without_password(sums));
            Error::Sums { image, sums, source }
        };
        let (checksum_file::Error::NotListed { .. }, Origin::Http(url)) =
            (&source, &self.image.origin)
        else {
            return Err(fail(source));
        };
        let target = fetch::redirect_target(url, patience, self.progress, self.cancel)?;
        match file_name(&Origin::Http(target)).filter(|target| *target != name) {
            Some(target) => {
                let digest = checksum_file::find(&text, &target, None).map_err(|_| fail(source))?;
                let text = format!(
                    "{}: using the checksum of `{}`, the redirect target of the URL",
                    self.name,
                    crate::value::shown(&target)
                );
                self.progress.note(&text);
                Ok(digest)
            }
            None => Err(fail(source)),
        }
    }

    /// Returns the file name of a list of checksums.
    fn list_name(&self, sums: &str) -> Option<String> {
        let origin = match local_path(sums) {
            Some(path) => Origin::Path(path),
            None => Origin::Http(sums.to_owned()),
        };
        file_name(&origin)
    }

    /// Compares the digest of the image with the expected one.
    pub(crate) fn compare(&self, expected: Digest, found: Digest) -> Result<Digest, Error> {
        if expected == found {
            return Ok(expected);
        }
        let sums = match &self.image.checksum {
            Checksum::Sums(sums) => Some(without_password(sums)),
            _ => None,
        };
        Err(Error::Mismatch { image: self.name.clone(), expected, found, sums })
    }
}
