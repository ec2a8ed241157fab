//! Any files as a CD image: no panic, and a reader of the records finds the files in both trees.

use std::collections::BTreeMap;

use qvm::seed::iso9660::{self, SECTOR};

use super::Cut;

/// The volume ID, then for each file a name and its content.
pub fn check(bytes: &[u8]) {
    let mut cut = Cut(bytes);
    let volume = String::from_utf8_lossy(cut.short()).into_owned();
    let mut owned: Vec<(String, &[u8])> = Vec::new();
    while !cut.is_empty() {
        owned.push((String::from_utf8_lossy(cut.short()).into_owned(), cut.long()));
    }
    let files: Vec<(&str, &[u8])> = owned.iter().map(|(n, c)| (n.as_str(), *c)).collect();
    let image = match iso9660::image(&volume, &files) {
        Ok(image) => image,
        Err(error) => {
            super::is_tame(&error.to_string());
            return;
        }
    };
    assert_eq!(image.len() % SECTOR, 0, "not whole sectors");
    let put: BTreeMap<String, Vec<u8>> =
        files.iter().map(|&(name, content)| (name.to_owned(), content.to_vec())).collect();
    assert_eq!(put.len(), files.len(), "two files of one name were taken");
    assert_eq!(read(&image, 16, rock_ridge), put, "Rock Ridge");
    assert_eq!(read(&image, 17, joliet), put, "Joliet");
    // ECMA-119, 6.3: the size in the descriptor is that of the image.
    assert_eq!(le32(&image[16 * SECTOR + 80..]) as usize * SECTOR, image.len());
}

/// Returns the files of the root directory of the descriptor in this sector.
fn read(image: &[u8], sector: usize, name: fn(&[u8]) -> String) -> BTreeMap<String, Vec<u8>> {
    let descriptor = &image[sector * SECTOR..][..SECTOR];
    assert_eq!(&descriptor[1..6], b"CD001");
    let mut directory = extent(image, &descriptor[156..190]);
    let mut files = BTreeMap::new();
    while let Some(&length) = directory.first() {
        if length == 0 {
            // The rest of this sector is empty; records do not cross sectors.
            let rest = directory.len() % SECTOR;
            directory = &directory[if rest == 0 { SECTOR } else { rest }..];
            continue;
        }
        let record = &directory[..usize::from(length)];
        if record[25] & 2 == 0 {
            let old = files.insert(name(record), extent(image, record).to_vec());
            assert_eq!(old, None, "two records of one name");
        }
        directory = &directory[record.len()..];
    }
    files
}

fn extent<'i>(image: &'i [u8], record: &[u8]) -> &'i [u8] {
    let (sector, bytes) = (le32(&record[2..]) as usize, le32(&record[10..]) as usize);
    &image[sector * SECTOR..][..bytes]
}

fn id(record: &[u8]) -> &[u8] {
    &record[33..][..usize::from(record[32])]
}

/// Returns the name in `NM`, which follows the identifier and its padding.
fn rock_ridge(record: &[u8]) -> String {
    let mut rest = &record[(33 + id(record).len()).next_multiple_of(2)..];
    while rest.len() > 4 {
        let entry = &rest[..usize::from(rest[2])];
        if entry.starts_with(b"NM") {
            return String::from_utf8(entry[5..].to_vec()).expect("the name as it was given");
        }
        rest = &rest[entry.len()..];
    }
    panic!("a record without a name");
}

/// Decodes UCS-2, big endian.
fn joliet(record: &[u8]) -> String {
    let units = id(record).chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    String::from_utf16(&units.collect::<Vec<u16>>()).expect("the name as it was given")
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
