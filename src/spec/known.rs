//! The image list of `qvm new`; the data is in images.toml.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::value::Size;

/// An image with a short key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Known {
    /// The key for `qvm new --image`.
    pub key: String,
    /// The distribution and its version.
    pub title: String,
    /// The URL where it is published; `None` if it must be built.
    pub url: Option<String>,
    /// The URL of its list of checksums.
    pub checksums: Option<String>,
    /// Its digest, if no list is published.
    pub sha256: Option<String>,
    /// How to build it, one step a line, if it is not published.
    #[serde(default)]
    pub made: Vec<String>,
    /// The image supports a NoCloud seed.
    pub cloud_init: bool,
    /// The account for logins.
    pub user: Option<String>,
    /// The firmware that it requires.
    pub firmware: Boots,
    /// The main TCP port of the guest.
    #[serde(default = "ssh")]
    pub port: u16,
    /// The minimum memory.
    pub mem_min: Size,
    /// The minimum disk size, in GiB.
    pub disk_min_g: u32,
    /// Notes for users, one a line.
    #[serde(default)]
    pub note: Vec<String>,
}

const fn ssh() -> u16 {
    22
}

/// The firmware of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Boots {
    /// BIOS, also if the image supports both.
    Bios,
    /// Only UEFI.
    Uefi,
}

impl Boots {
    /// Returns the value of `firmware` in a VM file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// The key of the default image.
pub const DEFAULT: &str = "debian-13";

/// Returns all images, in the order of the data.
pub fn all() -> &'static [Known] {
    #[derive(Deserialize)]
    struct Data {
        image: Vec<Known>,
    }
    // A unit test proves that the data can be parsed.
    static ALL: LazyLock<Vec<Known>> = LazyLock::new(|| {
        toml::from_str(include_str!("images.toml")).map(|data: Data| data.image).unwrap_or_default()
    });
    &ALL
}

/// Returns the image with this key.
pub fn named(key: &str) -> Option<&'static Known> {
    all().iter().find(|image| image.key == key)
}

/// Returns the most similar key to an unknown one.
pub fn nearest(key: &str) -> Option<&'static str> {
    // Of equally similar keys, the first.
    all()
        .iter()
        .rev()
        .map(|image| (strsim::jaro_winkler(key, &image.key), image.key.as_str()))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_image_has_an_origin() {
        let keys: BTreeSet<&str> = all().iter().map(|image| image.key.as_str()).collect();
        assert_eq!(keys.len(), all().len(), "duplicate key");
        assert!(all().len() >= 12 && named(DEFAULT).is_some());
        for image in all() {
            let key = &image.key;
            let digests = [&image.checksums, &image.sha256].into_iter().flatten().count();
            match &image.url {
                Some(url) => {
                    assert!(url.starts_with("https://"), "{key}");
                    assert_eq!((digests, image.made.len()), (1, 0), "{key}");
                }
                None => assert!(digests == 0 && !image.made.is_empty(), "{key}"),
            }
            assert!(image.mem_min.bytes() >= 128 << 20 && image.disk_min_g > 0, "{key}");
            // The texts become comments of a VM file.
            let lines = image.made.iter().chain(&image.note);
            assert!(lines.clone().all(|line| line.len() <= 78 && !line.contains('\n')), "{key}");
            assert_eq!(image.cloud_init, image.user.is_some(), "{key}");
        }
    }

    #[test]
    fn checksums_are_on_the_images_server() {
        for image in all() {
            let (Some(url), Some(sums)) = (&image.url, &image.checksums) else { continue };
            let directory = |url: &str| url.rsplit_once('/').unwrap().0.to_owned();
            assert_eq!(directory(url), directory(sums), "{}", image.key);
        }
    }

    #[test]
    fn unknown_key_has_a_suggestion() {
        assert_eq!(nearest("debian13"), Some("debian-13"));
        assert_eq!(nearest("ubuntu"), Some("ubuntu-24.04"));
        assert_eq!(nearest("zzz"), None);
    }
}
