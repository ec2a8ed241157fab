//! Any bytes as a user-data file: reading ends soon, a problem names the file and does not control
//! a terminal, and accepted bytes are passed to the guest unchanged.

use std::path::Path;

use qvm::{seed::documents, spec};

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
            // The line of the VM file that names the file.
            return assert_eq!(problem.line, Some(3), "{shown}");
        }
    };
    let uuid = "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".to_owned();
    let identity = qvm::store::identity::Identity::new(&vm, uuid.clone(), &uuid, "pc-q35-10.0");
    let documents = documents::documents(&vm, &identity).expect("a seed");
    assert_eq!(documents.user_data, bytes);
    let data = vm.cloud_init.as_ref().and_then(|seed| seed.user_data.as_ref()).expect("user-data");
    for note in data.advice() {
        super::is_tame(&note.text);
        assert!(note.text.contains("x.yaml") && note.text.len() < 1000, "{note}");
    }
    // A file that cloud-init would ignore has a note.
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let begins = [
        "#cloud-config",
        "#!",
        "#include",
        "#cloud-boothook",
        "#part-handler",
        "#upstart-job",
        "## template",
        "content-type:",
        "mime-version:",
    ];
    let begins = begins.iter().any(|header| text.trim_start().starts_with(header));
    let known = begins || text.contains("mime-version:") || bytes.starts_with(&[0x1f, 0x8b]);
    assert!(known || !data.notes.is_empty(), "ignored without a word");
    let cd = documents::image(&documents).expect("a CD");
    // Files begin at a sector boundary.
    let mut sectors = (0..cd.len()).step_by(qvm::seed::iso9660::SECTOR);
    assert!(sectors.any(|at| cd[at..].starts_with(bytes)));
}
