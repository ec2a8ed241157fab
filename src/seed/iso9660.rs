//! Creates a reproducible CD image of a few files: ISO 9660 with Joliet and Rock Ridge.
//!
//! ```text
//! sector   0..16  system area, zero
//!             16  primary volume descriptor ──▶ primary directory: NETWORK_CONFIG.;1 + Rock Ridge
//!             17  Joliet volume descriptor  ──▶ Joliet directory:  network-config (UCS-2)
//!             18  end of the descriptors
//!         19..23  path tables: primary and Joliet, each little and big endian
//!            23…  primary directory, Joliet directory, then the files, each in a separate sector
//! ```
//!
//! Both directories refer to the same extents. Sources: ECMA-119, the Joliet Specification of 1995,
//! IEEE P1281 SUSP 1.12 and P1282 RRIP (the entries `SP`, `ER`, `PX`, `NM`). Linux uses Rock Ridge
//! if the root has `ER`, else Joliet; libblkid and BSDs support both.

use std::collections::BTreeSet;

use crate::value::{ErrorCode, Explain, shown};

/// The logical block size of CDs, in bytes.
pub const SECTOR: usize = 2048;
/// The first sector of the directories, after the descriptors and the path tables.
const DIRECTORIES: usize = 23;
/// The maximum name length in UCS-2 characters (Joliet: 128 bytes).
const NAME_CHARS: usize = 64;
/// The maximum name length in bytes: a directory record of 254 bytes without the fixed part, the
/// longest primary name, `PX` and the header of `NM`, so that no continuation area is needed.
const NAME_BYTES: usize = 254 - 33 - 33 - PX - 5;
/// The length of `PX` in RRIP_1991A.
const PX: usize = 36;
/// A fixed time for reproducible images: 1970-01-01 00:00:00, GMT.
const RECORDED: [u8; 7] = [70, 1, 1, 0, 0, 0, 0];
/// A seed may contain password hashes: in the guest, only root may read it.
const FILE_MODE: u32 = 0o100_400;
const DIRECTORY_MODE: u32 = 0o040_500;

/// Why an image cannot be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A volume ID that does not fit the Joliet descriptor.
    #[error("`{}` is not a volume ID: use 1 to 16 printable ASCII characters", shown(.0))]
    VolumeId(String),
    /// A name that one of the three name spaces cannot express, and the reason.
    #[error("`{}` cannot be a file name on a CD: {}", shown(.0), .1)]
    Name(String, &'static str),
    /// Two files have the same name.
    #[error("two files are named `{}`", shown(.0))]
    Duplicate(String),
    /// A file that exceeds the 32-bit length of an extent.
    #[error("`{}` has {} bytes; a file on a CD must be smaller than 4 \
        GiB", shown(.0), .1)]
    FileTooLarge(String, u64),
    /// The directory or the image exceeds 32 bits: number of files, total bytes.
    #[error("{0} files with {1} bytes in total exceed the size of a CD image")]
    VolumeTooLarge(usize, u64),
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(ErrorCode::SeedInvalid)
    }

    fn own_hint(&self) -> Option<String> {
        let is_too_large = matches!(self, Self::FileTooLarge(..) | Self::VolumeTooLarge(..));
        is_too_large.then(|| "use a separate disk for large files: `[disk.NAME]`".into())
    }
}

/// Returns the image with these files (name, content) in its only directory.
///
/// # Errors
/// Names that are empty, too long, duplicated, or contain characters that Joliet forbids; files of
/// 4 GiB or more.
pub fn image(volume_id: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>, Error> {
    let id_fits = (1..=16).contains(&volume_id.len())
        && volume_id.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if !id_fits {
        return Err(Error::VolumeId(volume_id.to_owned()));
    }
    let entries = entries(files)?;
    let bytes = files.iter().map(|(_, content)| content.len() as u64).sum();
    let too_large = || Error::VolumeTooLarge(files.len(), bytes);

    // The length of a directory does not depend on extents, so it is laid out twice: first with
    // empty extents to get its length, then with the final ones.
    let mut trees = [Tree::Primary, Tree::Joliet].map(|tree| Directory {
        tree,
        sorted: sorted(tree, &entries),
        extent: Extent::default(),
    });
    let mut next = DIRECTORIES;
    for directory in &mut trees {
        let length = directory.bytes(&vec![Extent::default(); entries.len()]).len();
        directory.extent = Extent::new(next, length).ok_or_else(too_large)?;
        next += length / SECTOR;
    }
    let mut extents = Vec::with_capacity(entries.len());
    for entry in &entries {
        extents.push(Extent::new(next, entry.content.len()).ok_or_else(too_large)?);
        // An empty file also has a sector, so that its extent is within the volume.
        next += entry.content.len().div_ceil(SECTOR).max(1);
    }
    let sectors = u32::try_from(next).map_err(|_| too_large())?;

    let mut out = Vec::with_capacity(next * SECTOR);
    out.resize(16 * SECTOR, 0);
    for (directory, path_table) in trees.iter().zip([19, 21]) {
        descriptor(&mut out, directory, volume_id, sectors, path_table);
    }
    out.extend_from_slice(b"\xffCD001\x01");
    fill_sector(&mut out);
    for directory in &trees {
        path_table(&mut out, directory.extent.sector.to_le_bytes(), 1_u16.to_le_bytes());
        path_table(&mut out, directory.extent.sector.to_be_bytes(), 1_u16.to_be_bytes());
    }
    for directory in &trees {
        out.append(&mut directory.bytes(&extents));
    }
    for entry in &entries {
        out.extend_from_slice(entry.content);
        out.resize(out.len() + SECTOR * usize::from(entry.content.is_empty()), 0);
        fill_sector(&mut out);
    }
    Ok(out)
}

/// The position of content in directory records.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    sector: u32,
    bytes: u32,
}

impl Extent {
    fn new(sector: usize, bytes: usize) -> Option<Self> {
        Some(Self { sector: sector.try_into().ok()?, bytes: bytes.try_into().ok()? })
    }
}

/// One file with its three names.
struct Entry<'a> {
    /// The Rock Ridge name, unchanged.
    name: &'a str,
    /// The primary name: `NETWORK_CONFIG.;1`.
    primary: Vec<u8>,
    /// The Joliet name: UCS-2, big endian.
    joliet: Vec<u8>,
    content: &'a [u8],
}

/// Checks all names and derives the primary ones.
fn entries<'a>(files: &[(&'a str, &'a [u8])]) -> Result<Vec<Entry<'a>>, Error> {
    let mut names = BTreeSet::new();
    let mut primaries = BTreeSet::new();
    let mut entries = Vec::with_capacity(files.len());
    for &(name, content) in files {
        if let Some(why) = refused(name) {
            return Err(Error::Name(name.to_owned(), why));
        }
        if !names.insert(name) {
            return Err(Error::Duplicate(name.to_owned()));
        }
        let bytes = content.len() as u64;
        if u32::try_from(bytes).is_err() {
            return Err(Error::FileTooLarge(name.to_owned(), bytes));
        }
        let joliet = ucs2(name);
        entries.push(Entry { name, primary: primary(name, &mut primaries), joliet, content });
    }
    Ok(entries)
}

/// Returns why a name is not valid, if so.
fn refused(name: &str) -> Option<&'static str> {
    if matches!(name, "" | "." | "..") {
        return Some("it is a reserved entry of directories");
    }
    // Joliet specification, "Allowed Character Set"; and UCS-2 ends at U+FFFF.
    if name.chars().any(|c| c.is_control() || "*/:;?\\".contains(c)) {
        return Some("it contains a control character or one of `*/:;?\\`");
    }
    if name.chars().any(|c| u32::from(c) > 0xffff) {
        return Some("it contains a character outside of UCS-2");
    }
    if name.chars().count() > NAME_CHARS || name.len() > NAME_BYTES {
        return Some("it is longer than 64 characters or 147 bytes");
    }
    None
}

/// Returns a unique name for the primary directory: d-characters `A-Z0-9_` and one dot, at most 30
/// (ECMA-119, 7.5.1 and interchange level 2).
fn primary(name: &str, taken: &mut BTreeSet<Vec<u8>>) -> Vec<u8> {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, extension),
        _ => (name, ""),
    };
    let d_characters = |text: &str, most: usize| -> String {
        let d = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        text.chars().map(d).take(most).collect()
    };
    let (stem, extension) = (d_characters(stem, 22), d_characters(extension, 8));
    let mut candidate = format!("{stem}.{extension};1");
    let mut number = 0_usize;
    while !taken.insert(candidate.clone().into_bytes()) {
        number += 1;
        let tail = format!("_{number}");
        let kept = stem.get(..22 - tail.len().min(22)).unwrap_or(&stem);
        candidate = format!("{kept}{tail}.{extension};1");
    }
    candidate.into_bytes()
}

/// The two directories of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    Primary,
    Joliet,
}

/// Sorts the records (ECMA-119, 9.3) by identifier; in the primary tree, stem and extension are
/// compared as if padded with spaces, which precede all d-characters.
fn sorted<'e>(tree: Tree, entries: &'e [Entry<'e>]) -> Vec<(usize, &'e Entry<'e>)> {
    let mut sorted: Vec<_> = entries.iter().enumerate().collect();
    match tree {
        Tree::Primary => sorted.sort_by_key(|(_, entry)| {
            entry
                .primary
                .iter()
                .map(|&b| if b".;".contains(&b) { b' ' } else { b })
                .collect::<Vec<u8>>()
        }),
        Tree::Joliet => sorted.sort_by_key(|(_, entry)| &entry.joliet),
    }
    sorted
}

/// The root directory of one tree.
struct Directory<'e> {
    tree: Tree,
    /// The files in the order of this tree, with their indexes in the list of extents.
    sorted: Vec<(usize, &'e Entry<'e>)>,
    /// The extent of the directory.
    extent: Extent,
}

impl Directory<'_> {
    /// Returns the sectors of the directory; a record never crosses a sector boundary (ECMA-119,
    /// 6.8.1.1).
    fn bytes(&self, extents: &[Extent]) -> Vec<u8> {
        let rock_ridge = self.tree == Tree::Primary;
        let (mut own, mut parent) = (Vec::new(), Vec::new());
        if rock_ridge {
            own.extend_from_slice(b"SP\x07\x01\xbe\xef\0");
            own.extend_from_slice(&px(DIRECTORY_MODE, 2));
            // Only the identifier: its two usual texts would need a continuation area. Linux
            // ignores all Rock Ridge entries without this one.
            own.extend_from_slice(b"ER\x12\x01\x0a\0\0\x01RRIP_1991A");
            parent.extend_from_slice(&px(DIRECTORY_MODE, 2));
        }
        let mut out = Vec::with_capacity(SECTOR);
        push_record(&mut out, &[0], self.extent, true, &own);
        push_record(&mut out, &[1], self.extent, true, &parent);
        for &(place, entry) in &self.sorted {
            let extent = extents.get(place).copied().unwrap_or_default();
            if rock_ridge {
                let mut system_use = px(FILE_MODE, 1);
                system_use.extend_from_slice(&[b'N', b'M', byte(5 + entry.name.len()), 1, 0]);
                system_use.extend_from_slice(entry.name.as_bytes());
                push_record(&mut out, &entry.primary, extent, false, &system_use);
            } else {
                push_record(&mut out, &entry.joliet, extent, false, &[]);
            }
        }
        fill_sector(&mut out);
        out
    }
}

/// Appends a directory record (ECMA-119, 9.1), in the next sector if it does not fit.
fn push_record(out: &mut Vec<u8>, id: &[u8], extent: Extent, directory: bool, system_use: &[u8]) {
    let record = record(id, extent, directory, system_use);
    let room = SECTOR - out.len() % SECTOR;
    if record.len() > room {
        out.resize(out.len() + room, 0);
    }
    out.extend_from_slice(&record);
}

fn record(id: &[u8], extent: Extent, directory: bool, system_use: &[u8]) -> Vec<u8> {
    // The identifier and the record are padded to even lengths.
    let id_end = (33 + id.len()).next_multiple_of(2);
    let length = (id_end + system_use.len()).next_multiple_of(2);
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&[byte(length), 0]);
    push_both_u32(&mut out, extent.sector);
    push_both_u32(&mut out, extent.bytes);
    out.extend_from_slice(&RECORDED);
    out.extend_from_slice(&[if directory { 2 } else { 0 }, 0, 0]);
    push_both_u16(&mut out, 1);
    out.push(byte(id.len()));
    out.extend_from_slice(id);
    out.resize(id_end, 0);
    out.extend_from_slice(system_use);
    out.resize(length, 0);
    out
}

/// Returns `PX`: mode, links, UID and GID of root (RRIP 4.1.1).
fn px(mode: u32, links: u32) -> Vec<u8> {
    let mut out = vec![b'P', b'X', byte(PX), 1];
    for value in [mode, links, 0, 0] {
        push_both_u32(&mut out, value);
    }
    out
}

/// Appends a volume descriptor (ECMA-119, 8.4 and 8.5).
fn descriptor(out: &mut Vec<u8>, root: &Directory<'_>, id: &str, sectors: u32, path_table: u32) {
    let joliet = root.tree == Tree::Joliet;
    let text = |out: &mut Vec<u8>, text: &str, bytes: usize| {
        let end = out.len() + bytes;
        if joliet {
            out.extend_from_slice(&ucs2(text));
            while out.len() + 2 <= end {
                out.extend_from_slice(&[0, b' ']);
            }
            out.resize(end, 0);
        } else {
            out.extend_from_slice(text.as_bytes());
            out.resize(end, b' ');
        }
    };
    out.push(if joliet { 2 } else { 1 });
    out.extend_from_slice(b"CD001\x01\0");
    text(out, "", 32);
    text(out, id, 32);
    out.extend_from_slice(&[0; 8]);
    push_both_u32(out, sectors);
    // Joliet is identified by the escape sequence of UCS-2 level 3.
    out.extend_from_slice(if joliet { b"%/E" } else { b"\0\0\0" });
    out.extend_from_slice(&[0; 29]);
    push_both_u16(out, 1);
    push_both_u16(out, 1);
    push_both_u16(out, 2048);
    push_both_u32(out, 10);
    out.extend_from_slice(&path_table.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(path_table + 1).to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&record(&[0], root.extent, true, &[]));
    // Volume set, publisher, preparer, application; copyright, abstract, bibliography.
    for (what, bytes) in
        [("", 128), ("", 128), ("", 128), ("QVM", 128), ("", 37), ("", 37), ("", 37)]
    {
        text(out, what, bytes);
    }
    for _ in 0..4 {
        // ECMA-119, 8.4.26.1: an unspecified date.
        out.extend_from_slice(b"0000000000000000\0");
    }
    out.push(1);
    fill_sector(out);
}

/// Appends a path table with only the root (ECMA-119, 9.4), in its own sector.
fn path_table(out: &mut Vec<u8>, root: [u8; 4], parent: [u8; 2]) {
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&root);
    out.extend_from_slice(&parent);
    out.extend_from_slice(&[0, 0]);
    fill_sector(out);
}

/// Fills the sector with zeros.
fn fill_sector(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(SECTOR), 0);
}

fn ucs2(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// Converts a length, which the checks of names limit to 255.
fn byte(length: usize) -> u8 {
    debug_assert!(length <= 255, "{length}");
    u8::try_from(length).unwrap_or(u8::MAX)
}

fn push_both_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
    out.extend_from_slice(&value.to_be_bytes());
}

fn push_both_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
    out.extend_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    /// The files by Rock Ridge name, primary name and Joliet name.
    #[derive(Debug, Default, PartialEq)]
    struct Read {
        label: String,
        joliet_label: String,
        rock_ridge: BTreeMap<String, Vec<u8>>,
        primary: Vec<String>,
        joliet: BTreeMap<String, Vec<u8>>,
        modes: Vec<u32>,
    }

    fn both_u32(bytes: &[u8]) -> u32 {
        let little = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(little, u32::from_be_bytes(bytes[4..8].try_into().unwrap()));
        little
    }

    fn both_u16(bytes: &[u8]) -> u16 {
        let little = u16::from_le_bytes(bytes[..2].try_into().unwrap());
        assert_eq!(little, u16::from_be_bytes(bytes[2..4].try_into().unwrap()));
        little
    }

    fn utf16(bytes: &[u8]) -> String {
        let units: Vec<u16> =
            bytes.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
        String::from_utf16(&units).unwrap()
    }

    struct Record<'a> {
        id: &'a [u8],
        sector: usize,
        bytes: usize,
        directory: bool,
        system_use: &'a [u8],
    }

    fn parse_record(bytes: &[u8]) -> Record<'_> {
        let length = usize::from(bytes[0]);
        assert!(length.is_multiple_of(2) && length <= bytes.len());
        let id_length = usize::from(bytes[32]);
        assert_eq!(both_u16(&bytes[28..]), 1);
        Record {
            id: &bytes[33..33 + id_length],
            sector: both_u32(&bytes[2..]) as usize,
            bytes: both_u32(&bytes[10..]) as usize,
            directory: bytes[25] == 2,
            system_use: &bytes[(33 + id_length).next_multiple_of(2)..length],
        }
    }

    /// Returns the records of a directory, sector by sector, as specified in ECMA-119.
    fn records<'a>(image: &'a [u8], root: &Record<'_>) -> Vec<Record<'a>> {
        assert!(root.directory && root.bytes.is_multiple_of(SECTOR));
        let bytes = &image[root.sector * SECTOR..][..root.bytes];
        let mut found = Vec::new();
        for sector in bytes.chunks_exact(SECTOR) {
            let mut at = 0;
            while at < SECTOR && sector[at] != 0 {
                found.push(parse_record(&sector[at..]));
                at += usize::from(sector[at]);
            }
            assert!(sector[at..].iter().all(|&b| b == 0));
        }
        for (entry, id) in found[..2].iter().zip([[0], [1]]) {
            assert!(entry.directory && entry.id == id);
            assert_eq!((entry.sector, entry.bytes), (root.sector, root.bytes));
        }
        found.split_off(2)
    }

    /// Returns the entries of a system use area by signature.
    fn susp(mut area: &[u8]) -> BTreeMap<[u8; 2], Vec<u8>> {
        let mut found = BTreeMap::new();
        while area.len() >= 4 {
            let length = usize::from(area[2]);
            assert_eq!(area[3], 1, "version");
            assert!(found.insert([area[0], area[1]], area[4..length].to_vec()).is_none());
            area = &area[length..];
        }
        assert!(area.iter().all(|&b| b == 0));
        found
    }

    fn read(image: &[u8]) -> Read {
        assert!(image.len().is_multiple_of(SECTOR));
        assert!(image[..16 * SECTOR].iter().all(|&b| b == 0));
        let mut read = Read::default();
        let mut used = vec![false; image.len() / SECTOR];
        for (kind, number) in [(1, 16), (2, 17)] {
            let d = &image[number * SECTOR..][..SECTOR];
            assert_eq!((d[0], &d[1..7]), (kind, b"CD001\x01".as_slice()));
            assert_eq!(both_u32(&d[80..]) as usize, image.len() / SECTOR);
            assert_eq!(both_u16(&d[128..]) as usize, SECTOR);
            assert_eq!(both_u32(&d[132..]), 10);
            let root = parse_record(&d[156..190]);
            let little = u32::from_le_bytes(d[140..144].try_into().unwrap()) as usize;
            let big = u32::from_be_bytes(d[148..152].try_into().unwrap()) as usize;
            let table = &image[little * SECTOR..][..10];
            assert_eq!(table[2..6], (root.sector as u32).to_le_bytes());
            let table = &image[big * SECTOR..][..10];
            assert_eq!(table[2..6], (root.sector as u32).to_be_bytes());

            let found = records(image, &root);
            for entry in &found {
                assert!(!entry.directory);
                let content = image[entry.sector * SECTOR..][..entry.bytes].to_vec();
                if kind == 1 {
                    let uses = susp(entry.system_use);
                    let name = String::from_utf8(uses[b"NM"][1..].to_vec()).unwrap();
                    read.modes.push(both_u32(&uses[b"PX"]));
                    read.primary.push(String::from_utf8(entry.id.to_vec()).unwrap());
                    assert!(read.rock_ridge.insert(name, content).is_none());
                    let sectors = entry.bytes.div_ceil(SECTOR).max(1);
                    for sector in &mut used[entry.sector..][..sectors] {
                        assert!(!std::mem::replace(sector, true), "two files share a sector");
                    }
                } else {
                    assert!(read.joliet.insert(utf16(entry.id), content).is_none());
                }
            }
            if kind == 1 {
                read.label = String::from_utf8(d[40..72].to_vec()).unwrap().trim_end().into();
                let own = susp(parse_record(&image[root.sector * SECTOR..][..SECTOR]).system_use);
                assert_eq!(own[b"SP"], [0xbe, 0xef, 0]);
                assert_eq!(own[b"ER"], b"\x0a\0\0\x01RRIP_1991A");
            } else {
                assert_eq!(&d[88..91], b"%/E");
                read.joliet_label = utf16(&d[40..72]).trim_end().into();
                assert!(found.is_sorted_by_key(|entry| entry.id));
            }
        }
        assert_eq!(&image[18 * SECTOR..][..7], b"\xffCD001\x01");
        read
    }

    const SEED: [(&str, &[u8]); 3] = [
        ("meta-data", b"instance-id: a\n"),
        ("network-config", b"version: 2\n"),
        ("user-data", b""),
    ];

    #[test]
    fn seed_has_all_three_names() {
        let image = image("cidata", &SEED).unwrap();
        let found = read(&image);
        assert_eq!((found.label.as_str(), found.joliet_label.as_str()), ("cidata", "cidata"));
        assert_eq!(found.primary, ["META_DATA.;1", "NETWORK_CONFIG.;1", "USER_DATA.;1"]);
        assert_eq!(found.rock_ridge, found.joliet);
        assert_eq!(found.modes, [FILE_MODE; 3]);
        for (name, content) in SEED {
            assert_eq!(found.rock_ridge[name], content);
        }
        assert_eq!(image.len(), 28 * SECTOR);
    }

    #[test]
    fn image_is_reproducible() {
        let digest = Sha256::digest(image("cidata", &SEED).unwrap());
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "823bcf630155e68c16024fe19d8cdea548407223d4e5235dbea5b14d7fda2ddc");
    }

    #[test]
    fn records_do_not_cross_sectors() {
        let names: Vec<String> =
            (0..500).map(|n| format!("{}{n}", "x".repeat(40 + n % 20))).collect();
        let files: Vec<(&str, &[u8])> =
            names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
        let found = read(&image("cidata", &files).unwrap());
        assert_eq!(found.rock_ridge.len(), 500);
        assert_eq!(found.rock_ridge, found.joliet);
        for (name, content) in files {
            assert_eq!(found.rock_ridge[name], content);
        }
    }

    #[test]
    fn similar_primary_names_are_unique() {
        let files: Vec<(&str, &[u8])> =
            vec![("a-b", b"1"), ("a_b", b"2"), ("A_B", b"3"), ("a_b.", b"4"), (".x", b"5")];
        let found = read(&image("x", &files).unwrap());
        assert_eq!(found.primary, ["A_B.;1", "A_B_1.;1", "A_B_2.;1", "A_B_3.;1", "_X.;1"]);
        for (name, content) in files {
            assert_eq!(found.rock_ridge[name], content, "{name}");
            assert_eq!(found.joliet[name], content, "{name}");
        }
    }

    #[test]
    fn primary_tree_is_sorted_as_if_padded() {
        let files: Vec<(&str, &[u8])> = vec![("a.1", b""), ("a", b""), ("a0.b", b""), ("a.a", b"")];
        let found = read(&image("x", &files).unwrap());
        assert_eq!(found.primary, ["A.;1", "A.1;1", "A.A;1", "A0.B;1"]);
    }

    #[test]
    fn invalid_files_are_refused() {
        let long = "x".repeat(65);
        let wide = "\u{4e00}".repeat(50);
        for name in [
            "", ".", "..", "a/b", "a\0", "a\nb", "a;1", "a:b", "a*", "a?", "a\\b", "😀", &long,
            &wide,
        ] {
            let error = image("cidata", &[(name, b"")]).unwrap_err();
            assert!(matches!(error, Error::Name(..)), "{name:?}: {error}");
        }
        let twice = image("cidata", &[("a", b"1"), ("a", b"1")]).unwrap_err();
        assert_eq!(twice.to_string(), "two files are named `a`");
        for id in ["", "ä", "a\0", "12345678901234567"] {
            assert_eq!(image(id, &[]).unwrap_err(), Error::VolumeId(id.to_owned()));
        }
        // Zeroed memory that is never accessed: the length is checked before the content.
        let large = vec![0; 1 << 32];
        let error = image("cidata", &[("disk.img", &large)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`disk.img` has 4294967296 bytes; a file on a CD must be smaller than 4 GiB"
        );
        assert!(error.hint().is_some());
    }

    #[test]
    fn limits_are_inclusive() {
        for name in ["x".repeat(64), "\u{4e00}".repeat(49), "ä".repeat(64)] {
            let found = read(&image("1234567890123456", &[(&name, b"x")]).unwrap());
            assert_eq!(found.rock_ridge[&name], b"x");
            assert_eq!(found.joliet_label, "1234567890123456");
        }
        assert!(read(&image("cidata", &[]).unwrap()).rock_ridge.is_empty());
    }

    proptest! {
        #[test]
        fn files_round_trip(
            files in prop::collection::btree_map(
                "[a-cA-C._\\-ä€ ]{1,12}|[a-z0-9.-]{1,64}",
                prop::collection::vec(any::<u8>(), 0..3000),
                0..12,
            ),
        ) {
            let given: Vec<(&str, &[u8])> = files
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "." | ".."))
                .map(|(name, content)| (name.as_str(), content.as_slice()))
                .collect();
            let found = read(&image("cidata", &given).unwrap());
            prop_assert_eq!(&found.rock_ridge, &found.joliet);
            prop_assert_eq!(found.rock_ridge.len(), given.len());
            for (name, content) in given {
                prop_assert_eq!(found.rock_ridge[name].as_slice(), content);
            }
        }

        #[test]
        fn no_name_panics(name in "\\PC{0,80}|.{0,20}") {
            if let Ok(image) = image("cidata", &[(&name, b"x")]) {
                let found = read(&image);
                prop_assert_eq!(found.joliet[&name].as_slice(), b"x");
            }
        }
    }
}
