//! Any bytes as firmware descriptors: the selected firmware matches the request, names only files
//! of its descriptor, and becomes valid JSON on the command line, whatever the file names.

use std::path::PathBuf;

use qvm::{
    machine::firmware::{Descriptor, choose},
    spec::Firmware,
};

/// Each part, ended by a zero byte, is a descriptor.
pub fn check(bytes: &[u8]) {
    let parsed = bytes.split(|byte| *byte == 0).enumerate().take(16).filter_map(|(nr, json)| {
        let descriptor: Descriptor = serde_json::from_slice(json).ok()?;
        Some((PathBuf::from(format!("/{nr}.json")), descriptor))
    });
    let descriptors: Vec<(PathBuf, Descriptor)> = parsed.collect();
    for machine in ["pc-q35-10.0", "pc-q35-7.2"] {
        assert_eq!(choose(&descriptors, &[], Firmware::Bios, machine), Ok(None));
        for firmware in [Firmware::Uefi, Firmware::UefiSecure] {
            one(&descriptors, firmware, machine);
        }
    }
}

fn one(descriptors: &[(PathBuf, Descriptor)], firmware: Firmware, machine: &str) {
    let searched = [PathBuf::from("/usr/share/qemu/firmware")];
    let chosen = match choose(descriptors, &searched, firmware, machine) {
        Ok(chosen) => chosen.expect("UEFI comes from a descriptor"),
        Err(error) => return super::is_tame(&error.to_string()),
    };
    let (_, descriptor) =
        descriptors.iter().find(|(path, _)| *path == chosen.descriptor).expect("one of them");
    let files = descriptor.files();
    assert!(files.contains(&chosen.code.as_path()), "{chosen:?}");
    assert!(chosen.vars_template.iter().all(|vars| files.contains(&vars.as_path())), "{chosen:?}");
    assert!(descriptor.interface_types.iter().any(|kind| kind == "uefi"));
    assert!(descriptor.targets.iter().any(|target| target.architecture == "x86_64"));
    let has = |feature: &str| descriptor.features.iter().any(|has| has == feature);
    match firmware {
        Firmware::UefiSecure => {
            assert!(chosen.secure && chosen.smm && has("enrolled-keys"), "{chosen:?}");
            assert!(chosen.vars_template.is_some() && !chosen.memory, "{chosen:?}");
        }
        _ => assert!(!has("enrolled-keys"), "it would enforce Secure Boot"),
    }
    let vm = super::vm_file::minimal();
    super::vm_file::command_line(&vm, Some(&chosen));
}
