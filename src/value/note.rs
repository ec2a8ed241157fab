//! What the operator of a VM should know, with a stable code.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use serde::{Deserialize, Deserializer, Serialize};

use super::codes::codes;

codes! {
    /// What a note is about. The words are stable; docs/reference/notes.md lists them.
    pub enum NoteCode {
        BridgeDown "bridge-down" "The bridge of a NIC is down.",
        BridgeMtu "bridge-mtu" "The MTU of a NIC exceeds the MTU of its bridge.",
        CloudInitDegraded "cloud-init-degraded" "cloud-init has finished with recoverable errors.",
        ConsoleOutputLost "console-output-lost" "Console output is missing in the log.",
        DiskCorrupt "disk-corrupt" "A read-only disk is marked corrupt.",
        DiskFileUnused "disk-file-unused"
            "A second file of a disk, in another format, is not used.",
        DiskFormatKept "disk-format-kept" "A disk exists in another format than `format`.",
        DiskImageChanged "disk-image-changed" "A disk was made from another image than `image`.",
        DiskNotShrunk "disk-not-shrunk" "A disk is larger than `size`.",
        DiskOvercommitted "disk-overcommitted" "A disk may grow beyond the free space.",
        DiskShownAsQcow2 "disk-shown-as-qcow2"
            "A disk with `format = \"raw\"` contains a qcow2 image.",
        EndsUnreadable "ends-unreadable" "The record of earlier ends cannot be read.",
        Frozen "frozen" "The guest's file systems are frozen.",
        IpUnreachable "ip-unreachable" "The user-mode network cannot reach the `ip` of a NIC.",
        KvmUnproven "kvm-unproven" "KVM is used, but no KVM module is known to be loaded.",
        MonitorSilent "monitor-silent" "QEMU's monitor does not answer.",
        NoEffect "no-effect" "A key of the VM file has no effect on this host.",
        NoKvm "no-kvm" "The guest runs without KVM.",
        NoSpace "no-space" "The guest is paused because the storage of a disk is full.",
        NoSupervisor "no-supervisor" "QEMU runs without a supervisor.",
        NotApplied "not-applied" "A change of the VM file could not be applied to the running VM.",
        NotReady "not-ready" "The guest was not ready in time.",
        NotReleased "not-released" "The guest still uses a device that was removed.",
        NotThawed "not-thawed" "The guest's file systems are frozen and cannot be thawed.",
        Orphan "orphan" "The VM file is gone.",
        Other "other" "The supervisor has no codes, or this version does not know the code.",
        SavedState "saved-state" "The state of the guest is saved.",
        SavedStateUnusable "saved-state-unusable" "The saved state could not be restored.",
        ScreenNotServed "screen-not-served" "The screen is not served as configured.",
        SupervisorSilent "supervisor-silent"
            "The supervisor accepts connections but does not answer.",
        TapOffBridge "tap-off-bridge" "A tap is not on its bridge.",
        TapsUnattended "taps-unattended"
            "The host's network cannot be reached to examine the taps.",
        Unknown "unknown" "The state of the VM cannot be determined.",
        UnknownOperator "unknown-operator" "The host does not know an entry of `operators`.",
        UserData "user-data" "A line of the user-data file may not mean what it seems.",
        VmFileInvalid "vm-file-invalid" "The VM file is not valid.",
        VmFileUnread "vm-file-unread" "The storage of the VM file does not answer.",
        Waiting "waiting" "The start waits for memory or for another start.",
        WeightVoid "weight-void" "`cpuWeight` is not in effect.",
    }
}

impl<'de> Deserialize<'de> for NoteCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let known = Self::ALL.iter().find(|(code, _)| code.word() == word);
        Ok(known.map_or(Self::Other, |(code, _)| *code))
    }
}

/// A fact that the operator of a VM should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What it is about, for programs.
    pub code: NoteCode,
    /// The key of the VM file, such as `cpu.pin` or `disk.data`, where it is about one.
    #[serde(default)]
    pub key: Option<String>,
    /// A sentence for people.
    pub text: String,
    /// What the operator can do.
    #[serde(default)]
    pub hint: Option<String>,
}

impl Note {
    /// A note without key and hint.
    pub fn new(code: NoteCode, text: impl Into<String>) -> Self {
        Self { code, key: None, text: text.into(), hint: None }
    }

    /// The note for a key of the VM file.
    #[must_use]
    pub fn key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// The note with what the operator can do.
    #[must_use]
    pub fn hint(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// Whether the note has this code and is about this key.
    pub fn is_of(&self, code: NoteCode, key: &str) -> bool {
        self.code == code && self.key.as_deref() == Some(key)
    }
}

/// The text, and the hint in parentheses.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hint {
            Some(hint) => write!(f, "{} ({hint})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// The notes of an object of JSON: the texts as `notes`, and the same notes with their codes as
/// `noteDetails`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Notes(Vec<Note>);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    notes: Vec<String>,
    /// Absent in what a version without codes wrote.
    note_details: Option<Vec<Note>>,
}

impl From<Written> for Notes {
    fn from(written: Written) -> Self {
        let texts = || written.notes.iter().map(|text| Note::new(NoteCode::Other, text)).collect();
        Self(written.note_details.unwrap_or_else(texts))
    }
}

impl From<Notes> for Written {
    fn from(notes: Notes) -> Self {
        let texts = notes.0.iter().map(Note::to_string).collect();
        Self { notes: texts, note_details: Some(notes.0) }
    }
}

impl From<Vec<Note>> for Notes {
    fn from(notes: Vec<Note>) -> Self {
        Self(notes)
    }
}

impl From<Notes> for Vec<Note> {
    fn from(notes: Notes) -> Self {
        notes.0
    }
}

impl Deref for Notes {
    type Target = Vec<Note>;

    fn deref(&self) -> &Vec<Note> {
        &self.0
    }
}

impl DerefMut for Notes {
    fn deref_mut(&mut self) -> &mut Vec<Note> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Object {
        name: String,
        #[serde(flatten)]
        notes: Notes,
        #[serde(flatten)]
        other: serde_json::Map<String, serde_json::Value>,
    }

    #[test]
    fn notes_have_texts_and_details() {
        let note = Note::new(NoteCode::NotApplied, "`mem` could not be applied").key("mem");
        let note = note.hint("stop the VM".to_owned());
        let object =
            Object { name: "web".into(), notes: vec![note].into(), other: Default::default() };
        let json = json!({
            "name": "web",
            "notes": ["`mem` could not be applied (stop the VM)"],
            "noteDetails": [{
                "code": "not-applied", "key": "mem", "text": "`mem` could not be applied",
                "hint": "stop the VM",
            }],
        });
        assert_eq!(serde_json::to_value(&object).unwrap(), json);
        assert_eq!(serde_json::from_value::<Object>(json).unwrap(), object);
    }

    #[test]
    fn other_versions_are_understood() {
        let older = json!({ "name": "web", "notes": ["a"], "more": 1 });
        let older: Object = serde_json::from_value(older).unwrap();
        assert_eq!(*older.notes, [Note::new(NoteCode::Other, "a")]);
        assert_eq!(older.other.keys().collect::<Vec<_>>(), ["more"]);
        let newer = json!({ "name": "web", "noteDetails": [{ "code": "newer", "text": "a" }] });
        let newer: Object = serde_json::from_value(newer).unwrap();
        assert_eq!(*newer.notes, [Note::new(NoteCode::Other, "a")]);
    }

    #[test]
    fn words_are_those_of_serde() {
        for (code, meaning) in NoteCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.word());
            assert!(meaning.ends_with('.'), "{meaning}");
        }
        assert!(NoteCode::ALL.is_sorted_by_key(|(code, _)| code.word()));
    }
}
