//! Edits of a VM file's text: removes a key or replaces a value. All other text is preserved.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::value::VmName;

/// A VM file's text without settings that must be unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The text.
    pub text: String,
    /// The paths of the removed keys, in the order of removal.
    pub keys: Vec<String>,
}

/// A key with its value.
#[derive(Debug)]
struct Found {
    /// The path, such as `nic.lan.mac`.
    path: Vec<String>,
    key: Range<usize>,
    value: Range<usize>,
    /// The start of the statement, if the key is in an inline table.
    inline: Option<usize>,
    /// The value, if it is a string.
    text: Option<String>,
}

/// Returns the text for a copy of the VM `from`: addresses, ports, taps and the host name, and keys
/// that depend on them, become comments.
pub fn copied(text: &str, from: &VmName) -> Copied {
    let (mut text, mut keys) = (text.to_owned(), Vec::new());
    // One key at a time, because offsets change. Each round removes a key, so the loop ends.
    while let Some(found) = keys_of(&text).into_iter().find(is_unique) {
        text = without(&text, &found, from);
        keys.push(found.path.join("."));
    }
    if keys.iter().any(|key| FLAT_NIC.contains(&key.as_str())) {
        keep_net(&mut text);
    }
    Copied { text, keys }
}

/// The flat keys of the NIC `net`.
const FLAT_NIC: [&str; 6] = ["mac", "ip", "gateway", "dns", "bridge", "forward"];

/// Adds an empty NIC `net` if only flat keys had defined it beside other NICs.
fn keep_net(text: &mut String) {
    let keys = keys_of(text);
    let is = |path: &[&str]| keys.iter().find(|found| found.path == path);
    let has_nic = FLAT_NIC.iter().any(|key| is(&[key]).is_some()) || is(&["nic", "net"]).is_some();
    match is(&["nic"]) {
        Some(_) if has_nic => {}
        Some(nic) if text[nic.value.clone()].starts_with('{') => {
            text.insert_str(nic.value.start + 1, " net = {},");
        }
        Some(_) => {
            let newline = if text.ends_with('\n') { "" } else { "\n" };
            text.push_str(&format!("{newline}\n[nic.net]\n"));
        }
        None => {}
    }
}

/// Replaces the string value of a key; `None` if the key does not exist.
pub fn with_value(text: &str, path: &[&str], value: &str) -> Option<String> {
    let found = keys_of(text).into_iter().find(|found| found.path == path)?;
    let mut changed = text.to_owned();
    changed.replace_range(found.value, &toml::Value::from(value).to_string());
    Some(changed)
}

/// Returns the string value of a key.
pub fn value(text: &str, path: &[&str]) -> Option<String> {
    keys_of(text).into_iter().find(|found| found.path == path)?.text
}

/// Whether the key must be unique on a network or host, or depends on such a key.
fn is_unique(found: &Found) -> bool {
    let path: Vec<&str> = found.path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["mac" | "ip" | "gateway" | "forward"] | ["cloudInit", "hostname"] => true,
        ["nic", _, key] => matches!(*key, "mac" | "ip" | "gateway" | "forward" | "tap"),
        // A display at a port, and its password.
        ["display", "vnc"] => found.text.as_deref() != Some("unix"),
        ["display", "passwordFile"] => true,
        // A port is reached at `ip`, or through `forward`.
        ["ready"] => found.text.as_ref().is_some_and(|ready| ready.starts_with("tcp:")),
        _ => false,
    }
}

fn without(text: &str, found: &Found, from: &VmName) -> String {
    let line = |at: usize| text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let mut changed = text.to_owned();
    if let Some(statement) = found.inline {
        let entry = inline_entry(text, found);
        let taken = text[found.key.start..found.value.end].split_whitespace();
        let taken: Vec<&str> = taken.collect();
        let note = format!("# removed, `{from}` has it: {}\n", taken.join(" "));
        changed.replace_range(entry, "");
        changed.insert_str(line(statement), &note);
        return changed;
    }
    let start = line(found.key.start);
    let end = text[found.value.end..].find('\n').map_or(text.len(), |n| found.value.end + n + 1);
    let lines: String = text[start..end].split_inclusive('\n').map(|l| format!("# {l}")).collect();
    changed.replace_range(start..end, &format!("# removed, `{from}` has it:\n{lines}"));
    changed
}

/// Returns the range of a key and its value in an inline table, with one adjacent comma.
fn inline_entry(text: &str, found: &Found) -> Range<usize> {
    // The left side may be the rest of a dotted key. Keys contain neither commas nor braces; a
    // newline ends a comment.
    let left = text[..found.key.start].rfind(['{', ',', '\n']).unwrap_or(0);
    let right = found.value.end;
    let gap = text[right..].len() - text[right..].trim_start_matches([' ', '\t']).len();
    match (text[right + gap..].starts_with(','), &text[left..=left]) {
        (true, _) => left + 1..right + gap + 1,
        (false, ",") => left..right,
        (false, _) => left + 1..right,
    }
}

/// Returns all keys of a TOML text, in their order.
fn keys_of(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    // A byte order mark is not part of the text, as in the parser of VM files.
    let mark = text.len() - text.trim_start_matches('\u{feff}').len();
    if let Ok(top) = DeTable::parse(&text[mark..]) {
        collect(&text[mark..], top.get_ref(), &[], None, &mut found);
    }
    for found in &mut found {
        found.key = found.key.start + mark..found.key.end + mark;
        found.value = found.value.start + mark..found.value.end + mark;
        found.inline = found.inline.map(|at| at + mark);
    }
    found.sort_by_key(|found| found.key.start);
    found
}

fn collect(
    text: &str,
    table: &DeTable<'_>,
    above: &[String],
    inline: Option<usize>,
    found: &mut Vec<Found>,
) {
    for (key, value) in table {
        let mut path = above.to_vec();
        path.push(key.get_ref().to_string());
        if let DeValue::Table(table) = value.get_ref() {
            let braces = text.get(value.span()).is_some_and(|text| text.starts_with('{'));
            let inline = inline.or(braces.then_some(key.span().start));
            collect(text, table, &path, inline, found);
        }
        let value_text = value.get_ref().as_str().map(str::to_owned);
        found.push(Found { path, key: key.span(), value: value.span(), inline, text: value_text });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::spec;

    fn copy(text: &str) -> Copied {
        copied(text, &"web".parse().unwrap())
    }

    #[test]
    fn unique_keys_become_comments() {
        let text = "\
# The web server.
vcpu = 2   # enough
  mac = \"52:54:00:61:90:15\"  # in the DHCP server
forward = [
    \"2222:22\",  # ssh
    \"8080:80\",
]
ready = \"tcp:22\"

[cloudInit]
hostname = \"dev\"
user = \"op\"
";
        let expected = "\
# The web server.
vcpu = 2   # enough
# removed, `web` has it:
#   mac = \"52:54:00:61:90:15\"  # in the DHCP server
# removed, `web` has it:
# forward = [
#     \"2222:22\",  # ssh
#     \"8080:80\",
# ]
# removed, `web` has it:
# ready = \"tcp:22\"

[cloudInit]
# removed, `web` has it:
# hostname = \"dev\"
user = \"op\"
";
        let copied = copy(text);
        assert_eq!(copied.text, expected);
        assert_eq!(copied.keys, ["mac", "forward", "ready", "cloudInit.hostname"]);
    }

    #[test]
    fn nics_in_every_toml_form() {
        for (text, expected) in [
            (
                "[nic.lan]\ntap = \"t\"\nbridge = \"b\"",
                "[nic.lan]\n# removed, `web` has it:\n# tap = \"t\"\nbridge = \"b\"",
            ),
            (
                "nic.lan.ip = \"10.0.0.1/8\"\r\nvcpu = 1\r\n",
                "# removed, `web` has it:\n# nic.lan.ip = \"10.0.0.1/8\"\r\nvcpu = 1\r\n",
            ),
            (
                "[nic]\nlan.gateway = \"10.0.0.2\"\n",
                "[nic]\n# removed, `web` has it:\n# lan.gateway = \"10.0.0.2\"\n",
            ),
            (
                "nic = { lan = { mac = \"a\", bridge = \"b\" } }\n",
                "# removed, `web` has it: mac = \"a\"\nnic = { lan = { bridge = \"b\" } }\n",
            ),
            (
                "nic = { lan = { bridge = \"b\", mac = \"a\" , ip = \"c\" } }",
                "# removed, `web` has it: mac = \"a\"\n# removed, `web` has it: ip = \"c\"\nnic = \
                 { lan = { bridge = \"b\" } }",
            ),
            (
                "x = 1\nnic.lan = {tap = \"a\"}\n",
                "x = 1\n# removed, `web` has it: tap = \"a\"\nnic.lan = {}\n",
            ),
            (
                "[nic]\nlan = {\n  # a, b\n  mac = \"a\",\n  ip = \"c\"\n}\n",
                "[nic]\n# removed, `web` has it: mac = \"a\"\n# removed, `web` has it: ip = \
                 \"c\"\nlan = {\n  # a, b\n\n\n}\n",
            ),
            (
                "mac = \"a\"\n[nic.lan]\nbridge = \"b\"",
                "# removed, `web` has it:\n# mac = \"a\"\n[nic.lan]\nbridge = \"b\"\n\n[nic.net]\n",
            ),
            (
                "ip = \"a\"\nnic = { lan = {} }\n",
                "# removed, `web` has it:\n# ip = \"a\"\nnic = { net = {}, lan = {} }\n",
            ),
            (
                "mac = \"a\"\ndns = []\n[nic.lan]\n",
                "# removed, `web` has it:\n# mac = \"a\"\ndns = []\n[nic.lan]\n",
            ),
            (
                "[display]\nvnc = \"127.0.0.1:5901\"\npasswordFile = \"/p\"\n",
                "[display]\n# removed, `web` has it:\n# vnc = \"127.0.0.1:5901\"\n# removed, \
                 `web` has it:\n# passwordFile = \"/p\"\n",
            ),
            ("[display]\nvnc = \"unix\"\n", "[display]\nvnc = \"unix\"\n"),
            ("\u{feff}ip = \"a\"\n", "# removed, `web` has it:\n# \u{feff}ip = \"a\"\n"),
            (
                "ready = \"agent\"\ndescription = \"ip = 1\"\n[disk.mac]\npath = \"ip\"\n",
                "ready = \"agent\"\ndescription = \"ip = 1\"\n[disk.mac]\npath = \"ip\"\n",
            ),
            ("mac = \n", "mac = \n"),
        ] {
            assert_eq!(copy(text).text, expected, "{text}");
        }
    }

    #[test]
    fn only_the_value_is_replaced() {
        let text = "cloudInit = { userData = 'a.yaml' } # x\n";
        let path = ["cloudInit", "userData"];
        assert_eq!(value(text, &path).as_deref(), Some("a.yaml"));
        assert_eq!(
            with_value(text, &path, "b\"c").unwrap(),
            "cloudInit = { userData = 'b\"c' } # x\n"
        );
        assert_eq!(with_value("vcpu = 1\n", &path, "x"), None);
    }

    proptest! {
        /// A copy is TOML if the original is, has no unique key, and keeps every other key.
        #[test]
        fn copies_are_toml(lines in proptest::collection::vec(prop::sample::select(vec![
            "vcpu = 2", "mac = \"52:54:00:00:00:01\"", "ip = \"10.0.0.1/8\" # x",
            "ready = \"tcp:22\"",
            "[nic.a]", "[nic.b]", "tap = 'x'", "gateway = '''\n10.0.0.2'''", "dns = [ # \
                 y\n\"1.1.1.1\" ]",
            "nic = { net = { mac = 'x', model = 'e1000e' } }", "[cloudInit]", "hostname = \"h\"",
            "", "# z",
        ]), 0..12)) {
            let text = lines.join("\n");
            let name = "x".parse().unwrap();
            let file = Path::new("/x.toml");
            let read = |text: &str| spec::read(&name, file, text, &mut |_| Ok(vec![]));
            let copied = copy(&text);
            prop_assert!(!keys_of(&copied.text).iter().any(is_unique));
            prop_assert_eq!(DeTable::parse(&text).is_ok(), DeTable::parse(&copied.text).is_ok());
            if let (Ok(vm), Ok(copy)) = (read(&text), read(&copied.text)) {
                prop_assert_eq!(vm.vcpu, copy.vcpu);
                prop_assert_eq!(vm.nics.len(), copy.nics.len());
            }
        }
    }
}
