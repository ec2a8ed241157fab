//! `qemu-img check` of the disks of a stopped VM: whether the tables of a qcow2 file are
//! consistent.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::existing::path_of;
use crate::{
    image::{
        qcow2,
        qemu_img::{self, CheckReport, QemuImg},
    },
    spec::{Disk, Format},
    store::layout::VmPaths,
    sys::{file, progress::Cancel},
    value::{Explain, Label, chain},
};

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckResult {
    /// A raw disk has no tables, or the disk does not exist yet.
    NothingToCheck,
    /// Consistent.
    Clean,
    /// Space is lost, and no data.
    Leaks,
    /// The check was not completed.
    NotChecked,
    /// Data of the guest is wrong or lost, or QEMU marked the file as corrupt.
    Corrupt,
}

/// A disk with the result of its check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedDisk {
    /// The name of the disk.
    pub disk: Label,
    /// The file or device.
    pub path: PathBuf,
    /// The format of the file.
    pub format: Format,
    /// The result.
    pub result: CheckResult,
    /// The number of clusters that are allocated and not used.
    pub leaks: u64,
    /// The number of clusters whose content or place is wrong.
    pub corruptions: u64,
    /// What an operator should know beside the result.
    pub detail: Option<String>,
    /// Whether the host is the reason that the check was not completed.
    #[serde(skip)]
    pub is_host_fault: bool,
    /// What to do.
    #[serde(skip)]
    pub hint: Option<String>,
}

/// Checks a disk. The caller holds the locks of the VM, which is stopped.
///
/// # Errors
/// `cancel` was set.
pub fn check(
    disk: &Disk,
    paths: &VmPaths,
    qemu_img: &QemuImg,
    cancel: &Cancel,
) -> Result<CheckedDisk, qemu_img::Error> {
    let (path, format) = match path_of(disk, paths) {
        Ok(found) => found,
        Err(error) => {
            let path = paths.disk(&disk.name, disk.format);
            return Ok(not_checked(disk, path, disk.format, &error, error.is_host_fault()));
        }
    };
    let nothing = |detail: &str| CheckedDisk {
        result: CheckResult::NothingToCheck,
        detail: Some(detail.to_owned()),
        ..clean(&disk.name, &path, format)
    };
    match file::metadata(&path) {
        Err(error) => {
            return Ok(not_checked(disk, path, format, &error, error.is_host_fault()));
        }
        Ok(None) => return Ok(nothing("the disk does not exist yet")),
        Ok(Some(_)) if format == Format::Raw => {
            return Ok(nothing("a raw disk has no tables that could be checked"));
        }
        Ok(Some(_)) => {}
    }
    let header = match file::read_at(&path, 0, qcow2::HEAD) {
        Ok(head) => qcow2::Header::parse(&head),
        Err(error) => {
            return Ok(not_checked(disk, path, format, &error, error.is_host_fault()));
        }
    };
    let header = match header {
        Ok(header) => header,
        Err(error) => {
            let result = CheckResult::Corrupt;
            let detail = Some(format!("its header is not one of a qcow2 file: {}", chain(&error)));
            let hint = Some("restore it from a backup".to_owned());
            return Ok(CheckedDisk { result, detail, hint, ..clean(&disk.name, &path, format) });
        }
    };
    if header.external_data {
        // The guest may have written the name of that file.
        let error = std::io::Error::other("its data is in another file, which is not opened");
        return Ok(not_checked(disk, path, format, &error, false));
    }
    match qemu_img.check_report(&path, &mut || !cancel.is_set()) {
        Ok(report) => Ok(judge(clean(&disk.name, &path, format), report, header.corrupt)),
        Err(error @ qemu_img::Error::Canceled) => Err(error),
        Err(error) => {
            let hint = error.hint();
            let is_host_fault = error.is_host_fault();
            Ok(CheckedDisk { hint, ..not_checked(disk, path, format, &error, is_host_fault) })
        }
    }
}

fn clean(name: &Label, path: &Path, format: Format) -> CheckedDisk {
    CheckedDisk {
        disk: name.clone(),
        path: path.to_owned(),
        format,
        result: CheckResult::Clean,
        leaks: 0,
        corruptions: 0,
        detail: None,
        is_host_fault: false,
        hint: None,
    }
}

fn not_checked(
    disk: &Disk,
    path: PathBuf,
    format: Format,
    error: &(dyn std::error::Error + 'static),
    is_host_fault: bool,
) -> CheckedDisk {
    let (result, detail) = (CheckResult::NotChecked, Some(chain(error)));
    CheckedDisk { result, detail, is_host_fault, ..clean(&disk.name, &path, format) }
}

/// The result by what qemu-img found and by the mark that QEMU sets in the header.
fn judge(disk: CheckedDisk, report: CheckReport, is_marked: bool) -> CheckedDisk {
    let CheckReport { corruptions, leaks, check_errors } = report;
    let disk = CheckedDisk { leaks, corruptions, ..disk };
    let path = disk.path.display().to_string();
    let repair = format!(
        "restore it from a backup; or copy the file, then repair it: `qemu-img check -r all {path}`"
    );
    if corruptions > 0 {
        return CheckedDisk { result: CheckResult::Corrupt, hint: Some(repair), ..disk };
    }
    if is_marked {
        let detail = Some("QEMU marked it as corrupt, and does not write to it".to_owned());
        return CheckedDisk { result: CheckResult::Corrupt, detail, hint: Some(repair), ..disk };
    }
    if check_errors > 0 {
        let detail = Some(format!("{check_errors} parts of the file could not be checked"));
        let result = CheckResult::NotChecked;
        return CheckedDisk { result, detail, is_host_fault: true, ..disk };
    }
    if leaks > 0 {
        let hint = format!("`qemu-img check -r leaks {path}` frees the space; keep the VM stopped");
        return CheckedDisk { result: CheckResult::Leaks, hint: Some(hint), ..disk };
    }
    disk
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(corruptions: u64, leaks: u64, check_errors: u64, is_marked: bool) -> CheckResult {
        let disk = clean(&"root".parse().unwrap(), "/v/root.qcow2".as_ref(), Format::Qcow2);
        judge(disk, CheckReport { corruptions, leaks, check_errors }, is_marked).result
    }

    #[test]
    fn worst_finding_is_the_result() {
        assert_eq!(judged(0, 0, 0, false), CheckResult::Clean);
        assert_eq!(judged(0, 3, 0, false), CheckResult::Leaks);
        assert_eq!(judged(1, 3, 1, false), CheckResult::Corrupt);
        assert_eq!(judged(0, 3, 0, true), CheckResult::Corrupt);
        // A part that could not be read may have been corrupt.
        assert_eq!(judged(0, 3, 1, false), CheckResult::NotChecked);
    }
}
