//! Any bytes as the user-data file that a VM file names: reading ends soon, a problem names the file and drives no terminal, and what is
//! accepted is told to the guest byte for byte.

use std::path::Path;

use qvm::{plan::seed, spec};

const VM_FILE: &str = "image.path = \"/x.qcow2\"\n[cloudInit]\nuserData = \"x.yaml\"\n";

pub fn check(bytes: &[u8]) {
    let name = "web".parse().expect("a VM's name");
    let mut read = |_: &Path| Ok(bytes.to_vec());
    let vm = spec::read(&name, Path::new("/etc/qvm/vms/web.toml"), VM_FILE, &mut read);
    let vm = match vm {
        Ok(vm) => vm,
        Err(problems) => {
            let [problem] = &problems[..] else { panic!("one problem, not {problems:?}") };
            let shown = problem.to_string();
            super::is_tame(&shown);
            assert!(shown.contains("x.yaml") && shown.len() < 1000, "{shown}");
            // The line of the VM file, where the file is named.
            return assert_eq!(problem.line, Some(3), "{shown}");
        }
    };
    let uuid = "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".to_owned();
    let identity = qvm::plan::identity::Identity::new(&vm, uuid.clone(), &uuid, "pc-q35-10.0");
    let documents = seed::documents(&vm, &identity).expect("a seed");
    assert_eq!(documents.user_data.as_bytes(), bytes);
    let begins =
        ["#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "## template"];
    let begins = begins.iter().any(|header| bytes.starts_with(header.as_bytes()));
    assert!(begins || bytes.starts_with(b"Content-Type:") || bytes.starts_with(b"MIME-Version:"));
    let cd = seed::image(&documents).expect("a CD");
    // A file begins with a sector.
    let mut sectors = (0..cd.len()).step_by(qvm::plan::iso9660::SECTOR);
    assert!(sectors.any(|at| cd[at..].starts_with(bytes)));
}
