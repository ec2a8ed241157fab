//! The images that a new VM can be made from without looking anything up: the data is images.toml.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::value::Size;

/// An image that is known by a short key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Known {
    /// What `qvm new --image` calls it.
    pub key: String,
    /// The distribution and its version.
    pub title: String,
    /// Where it is published; `None` where it has to be made.
    pub url: Option<String>,
    /// The list of digests beside it.
    pub checksums: Option<String>,
    /// Its digest, where there is no such list.
    pub sha256: Option<String>,
    /// How it is made, a line each, where nobody publishes it.
    #[serde(default)]
    pub made: Vec<String>,
    /// It reads a NoCloud seed.
    pub cloud_init: bool,
    /// The account that is meant to be logged in to.
    pub user: Option<String>,
    /// What it boots by.
    pub firmware: Boots,
    /// The port of the guest that one wants to reach first.
    #[serde(default = "ssh")]
    pub port: u16,
    /// The least memory.
    pub mem_min: Size,
    /// The least disk, in GiB.
    pub disk_min_g: u32,
    /// What one would stumble over, a line each.
    #[serde(default)]
    pub note: Vec<String>,
}

const fn ssh() -> u16 {
    22
}

/// What an image boots by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Boots {
    /// The simpler one, where it boots by both.
    Bios,
    /// UEFI alone.
    Uefi,
}

impl Boots {
    /// As `firmware` of a VM file has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// The one that is taken where none is named.
pub const DEFAULT: &str = "debian-13";

/// Every known image, in the order of the data.
pub fn all() -> &'static [Known] {
    #[derive(Deserialize)]
    struct Data {
        image: Vec<Known>,
    }
    // A test holds the data to being readable.
    static ALL: LazyLock<Vec<Known>> = LazyLock::new(|| {
        toml::from_str(include_str!("images.toml")).map(|data: Data| data.image).unwrap_or_default()
    });
    &ALL
}

/// The image of this key.
pub fn named(key: &str) -> Option<&'static Known> {
    all().iter().find(|image| image.key == key)
}

/// The key that comes nearest to one that there is not.
pub fn nearest(key: &str) -> Option<&'static str> {
    // Of several that come as near, the first.
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
    fn the_data_is_read_and_each_image_says_where_it_is_from() {
        let keys: BTreeSet<&str> = all().iter().map(|image| image.key.as_str()).collect();
        assert_eq!(keys.len(), all().len(), "a key is there twice");
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
            // They become comments of a VM file.
            let lines = image.made.iter().chain(&image.note);
            assert!(lines.clone().all(|line| line.len() <= 78 && !line.contains('\n')), "{key}");
            assert_eq!(image.cloud_init, image.user.is_some(), "{key}");
        }
    }

    #[test]
    fn checksums_lie_beside_their_image() {
        for image in all() {
            let (Some(url), Some(sums)) = (&image.url, &image.checksums) else { continue };
            let directory = |url: &str| url.rsplit_once('/').unwrap().0.to_owned();
            assert_eq!(directory(url), directory(sums), "{}", image.key);
        }
    }

    #[test]
    fn a_key_that_is_not_there_has_a_nearest() {
        assert_eq!(nearest("debian13"), Some("debian-13"));
        assert_eq!(nearest("ubuntu"), Some("ubuntu-24.04"));
        assert_eq!(nearest("zzz"), None);
    }
}
