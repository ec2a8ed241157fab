//! The disks of a VM as they are on the host: sizes, backing chain, and what their place can do.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{existing::path_of, frozen, origin::made};
use crate::{
    image::{cache, qcow2},
    spec::{Disk, Format, Source, Vm},
    store::layout::VmPaths,
    sys::{
        capabilities::{self, Capabilities},
        extents, file,
        mount::{self, Mount},
    },
    value::{Label, Size, chain},
};

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedDisk {
    /// The name of the disk.
    pub disk: Label,
    /// The source of its content in the VM file.
    pub source: DiskOrigin,
    /// The file or device.
    pub path: PathBuf,
    /// The format of the file.
    pub format: Format,
    /// Whether it exists.
    pub exists: bool,
    /// What the guest sees, in bytes.
    pub virtual_bytes: Option<u64>,
    /// What the file occupies on its file system, in bytes; of a device, its size.
    pub allocated_bytes: Option<u64>,
    /// The bytes of it that no other file shares; `None` if the file system does not report them.
    pub own_bytes: Option<u64>,
    /// The files below a qcow2 file, the nearest first.
    pub backing: Vec<String>,
    /// Where it is.
    pub place: Option<Place>,
    /// What could not be read.
    pub problem: Option<String>,
}

/// Where the content of a disk comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskOrigin {
    /// An image.
    Image,
    /// Created empty.
    Blank,
    /// It was in the state directory.
    Existing,
    /// A file of the operator.
    File,
    /// A block device of the operator.
    Device,
    /// It is in the state directory, and the VM file does not name it.
    Unnamed,
}

/// Where a disk is, and what can be done there; `None` is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The type of the file system, such as `btrfs`; of a device `devtmpfs` or the like.
    pub file_system: Option<String>,
    /// The directory that it is mounted on.
    pub mount_point: Option<PathBuf>,
    /// What is mounted there.
    pub mount_source: Option<PathBuf>,
    /// Two files can share blocks.
    pub reflink: Option<bool>,
    /// Files can be read and written without the page cache.
    pub direct: Option<bool>,
    /// Blocks that are not used can be given back.
    pub discard: Option<bool>,
}

/// Returns the disks of a VM: those of the VM file in their order, then those that are only in its
/// state directory. `sys` is the directory that sysfs is mounted on. Blocks as long as the storage.
pub fn list(vm: &Vm, paths: &VmPaths, sys: &Path) -> Vec<ListedDisk> {
    let mut all: Vec<ListedDisk> = vm.disks.iter().map(|disk| named(disk, paths, sys)).collect();
    all.extend(unnamed(&all, paths, sys));
    all
}

/// A disk of the VM file.
fn named(disk: &Disk, paths: &VmPaths, sys: &Path) -> ListedDisk {
    let source = match disk.source {
        Source::Image(_) => DiskOrigin::Image,
        Source::Blank => DiskOrigin::Blank,
        Source::Existing => DiskOrigin::Existing,
        Source::File(_) => DiskOrigin::File,
        Source::Device(_) => DiskOrigin::Device,
    };
    match path_of(disk, paths) {
        Ok((path, format)) => {
            let size = disk.size.map(Size::bytes);
            let base = made(&disk.name, paths).ok().flatten().and_then(|made| made.base);
            // The nearest file of a snapshot is above the base.
            let frozen = frozen::expected(&disk.name, paths).ok().flatten();
            let base = frozen.map(PathBuf::from).or(base);
            let listed = ListedDisk::new(disk.name.clone(), source, path, format);
            listed.examine(size, base.as_deref(), sys)
        }
        Err(error) => {
            let path = paths.disk(&disk.name, disk.format);
            let listed = ListedDisk::new(disk.name.clone(), source, path, disk.format);
            ListedDisk { problem: Some(chain(&error)), ..listed }
        }
    }
}

/// The disks of the state directory that `listed` does not contain.
fn unnamed(listed: &[ListedDisk], paths: &VmPaths, sys: &Path) -> Vec<ListedDisk> {
    let files = file::list(&paths.state).unwrap_or_default();
    let disk = |path: PathBuf| -> Option<ListedDisk> {
        let format = match path.extension()?.to_str()? {
            "qcow2" => Format::Qcow2,
            "raw" => Format::Raw,
            _ => return None,
        };
        let name: Label = path.file_stem()?.to_str()?.parse().ok()?;
        let is_new = !listed.iter().any(|other| other.path == path);
        let listed = || ListedDisk::new(name, DiskOrigin::Unnamed, path, format);
        is_new.then(|| listed().examine(None, None, sys))
    };
    files.into_iter().filter_map(disk).collect()
}

impl ListedDisk {
    fn new(disk: Label, source: DiskOrigin, path: PathBuf, format: Format) -> Self {
        Self {
            disk,
            source,
            path,
            format,
            exists: false,
            virtual_bytes: None,
            allocated_bytes: None,
            own_bytes: None,
            backing: vec![],
            place: None,
            problem: None,
        }
    }

    /// Adds the properties of the file. `size` is the size in the VM file, `base` the base image of
    /// the disk.
    fn examine(mut self, size: Option<u64>, base: Option<&Path>, sys: &Path) -> Self {
        match file::metadata(&self.path) {
            Ok(Some(metadata)) if metadata.file_type().is_block_device() => self.of_device(sys),
            Ok(Some(metadata)) => self.of_file(&metadata, base),
            Ok(None) => {
                self.virtual_bytes = size;
                let there = self.path.ancestors().skip(1).find(|dir| dir.is_dir());
                self.place = there.map(of_directory);
                return self;
            }
            Err(error) => {
                self.problem = Some(chain(&error));
                return self;
            }
        }
        self.exists = true;
        self
    }

    fn of_device(&mut self, sys: &Path) {
        match device_bytes(&self.path, sys) {
            Ok(bytes) => {
                self.virtual_bytes = Some(bytes);
                self.allocated_bytes = Some(bytes);
                self.own_bytes = Some(bytes);
            }
            Err(error) => self.problem = Some(format!("cannot read its size: {error}")),
        }
        let can = capabilities::of_device(&self.path, sys).unwrap_or_default();
        self.place = Some(Place::new(mount::of_path(&self.path).ok(), can));
    }

    fn of_file(&mut self, metadata: &Metadata, base: Option<&Path>) {
        let place = self.path.parent().map(of_directory);
        let allocated = metadata.blocks() * 512;
        self.allocated_bytes = Some(allocated);
        let cannot_share = place.as_ref().is_some_and(|place| place.reflink == Some(false));
        self.place = place;
        match File::open(&self.path) {
            Ok(file) => {
                let shared = extents::shared_bytes(&file).ok();
                let own = shared.map(|shared| allocated.saturating_sub(shared));
                self.own_bytes = own.or(cannot_share.then_some(allocated));
            }
            Err(error) => self.problem = Some(format!("cannot open the file: {error}")),
        }
        self.virtual_bytes = match self.format {
            Format::Raw => Some(metadata.len()),
            Format::Qcow2 => self.of_header(base),
        };
    }

    /// Reads the header of a qcow2 file: returns the virtual size, and notes the backing file. That
    /// file is not opened: the guest may have written its name.
    fn of_header(&mut self, base: Option<&Path>) -> Option<u64> {
        let head = file::read_at(&self.path, 0, qcow2::HEAD).ok()?;
        let header = match qcow2::Header::parse(&head) {
            Ok(header) => header,
            Err(error) => {
                self.problem = Some(chain(&error));
                return None;
            }
        };
        match cache::backing_of(&self.path) {
            Ok(backing) => self.backing.extend(backing),
            Err(error) => self.problem = Some(chain(&error)),
        }
        let named = self.backing.first().map(Path::new);
        if base.is_some_and(|base| named != Some(base)) {
            let text = "its backing file is not the one that qvm created it on";
            self.problem = Some(text.to_owned());
        } else if header.corrupt {
            self.problem = Some("QEMU marked it as corrupt".to_owned());
        }
        Some(header.virtual_size)
    }
}

impl Place {
    fn new(mount: Option<Mount>, can: Capabilities) -> Self {
        let (file_system, mount_point, mount_source) = match mount {
            Some(mount) => (Some(mount.file_system), Some(mount.point), Some(mount.source)),
            None => (None, None, None),
        };
        let Capabilities { reflink, direct, discard } = can;
        Self { file_system, mount_point, mount_source, reflink, direct, discard }
    }
}

fn of_directory(directory: &Path) -> Place {
    let can = capabilities::of_directory(directory).unwrap_or_default();
    Place::new(mount::of_path(directory).ok(), can)
}

/// The size of a block device, in bytes; sysfs counts sectors of 512 bytes for every device.
fn device_bytes(device: &Path, sys: &Path) -> io::Result<u64> {
    let number = std::fs::metadata(device)?.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let size = sys.join(format!("dev/block/{major}:{minor}/size"));
    let sectors: u64 = std::fs::read_to_string(size)?
        .trim()
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(sectors.saturating_mul(512))
}
