//! The reader of VM files, and `qvm check`. Every broken VM file is refused with exactly the
//! message in the file beside it. `QVM_BLESS=1 cargo test --test it spec::check` rewrites the
//! messages; review the difference before committing it.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use qvm::{
    cli::verb::check,
    spec::{self, Format, Invalid, Link, Origin, Problem, Source, Vm, check::across},
    store::layout::Layout,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn bad() -> PathBuf {
    root().join("tests/bad")
}

/// The files in a directory with this suffix, by name.
fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|file| file.to_string_lossy().ends_with(suffix)).collect();
    files.sort();
    files
}

/// The differences of two texts, line by line.
fn difference(want: &str, got: &str) -> String {
    let (mut want, mut got) = (want.lines(), got.lines());
    let mut out = String::new();
    loop {
        match (want.next(), got.next()) {
            (None, None) => return out,
            (want, got) if want == got => {}
            (want, got) => {
                out.extend(want.map(|line| format!("-{line}\n")));
                out.extend(got.map(|line| format!("+{line}\n")));
            }
        }
    }
}

#[test]
fn each_bad_file_has_its_message() {
    let files = files(&bad(), ".toml");
    assert!(files.len() >= 45, "only {} files in tests/bad", files.len());
    let mut wrong = String::new();
    for file in files {
        let Err(invalid) = spec::load(&file) else {
            wrong.push_str(&format!("{}: was taken\n", file.display()));
            continue;
        };
        let here = format!("{}/", bad().display());
        let got = format!("{invalid}\n").replace(&here, "");
        let beside = file.with_extension("stderr");
        if std::env::var_os("QVM_BLESS").is_some() {
            fs::write(&beside, &got).unwrap();
        }
        let want = fs::read_to_string(&beside).unwrap_or_default();
        if want != got {
            wrong.push_str(&format!("{}:\n{}", beside.display(), difference(&want, &got)));
        }
    }
    assert!(wrong.is_empty(), "QVM_BLESS=1 rewrites these messages:\n{wrong}");
}

/// Reads a text as the VM `web` in `/etc/qvm/vms`; the user-data is always the same.
fn read(text: &str) -> Result<Vm, Vec<Problem>> {
    read_as("web", text)
}

fn read_as(name: &str, text: &str) -> Result<Vm, Vec<Problem>> {
    let file = PathBuf::from(format!("/etc/qvm/vms/{name}.toml"));
    spec::read(&name.parse().unwrap(), &file, text, &mut |_| Ok(b"#cloud-config\n".to_vec()))
}

fn shown(problems: Vec<Problem>) -> String {
    Invalid(problems).to_string()
}

#[test]
fn every_example_is_valid_and_short() {
    let files = files(&root().join("examples"), ".toml");
    assert!(files.len() >= 8, "only {} examples", files.len());
    let vms: Vec<Vm> = files
        .iter()
        .map(|file| {
            let text = fs::read_to_string(file).unwrap();
            assert!(text.starts_with("# "), "{} does not say why", file.display());
            assert!(text.lines().count() < 20, "{} is too long", file.display());
            spec::load(file).unwrap_or_else(|invalid| panic!("{invalid}"))
        })
        .collect();
    let problems = across(&vms.iter().collect::<Vec<_>>(), &[]);
    assert_eq!(problems, [], "the examples do not go together");
}

#[test]
fn reference_has_exactly_the_reader_keys() {
    let text = fs::read_to_string(root().join("docs/reference/vm-file.md")).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() > 2)
        .collect();
    let documented: Vec<String> =
        rows.iter().map(|cells| cells[0].trim_matches('`').to_owned()).collect();
    let unique: BTreeSet<String> = documented.iter().cloned().collect();
    assert_eq!(documented.len(), unique.len(), "a key has two rows");
    assert_eq!(&unique, spec::keys());
    assert!(rows.iter().all(|cells| cells.len() == 5), "{rows:?}");
}

#[test]
fn every_block_of_the_reference_is_valid() {
    let text = fs::read_to_string(root().join("docs/reference/vm-file.md")).unwrap();
    let blocks: Vec<&str> =
        text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 9);
    for block in blocks {
        read(block).unwrap_or_else(|problems| panic!("{block}\n{}", shown(problems)));
    }
}

#[test]
fn flat_keys_equal_named_tables() {
    let flat = read(
        "diskSizeG = 20\nbridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\nip = \"10.0.0.2/24\"\n\
         gateway = \"10.0.0.1\"\ndns = [\"10.0.0.1\"]\n[image]\npath = \"x.qcow2\"\n\
         clone = \"overlay\"\n",
    )
    .unwrap();
    let named = read(
        "[disk.root]\nsize = \"20G\"\nclone = \"overlay\"\n[disk.root.image]\npath = \"x.qcow2\"\n\
         [nic.net]\nbridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\nip = \"10.0.0.2/24\"\n\
         gateway = \"10.0.0.1\"\ndns = [\"10.0.0.1\"]\n",
    )
    .unwrap();
    assert_eq!(flat.disks, named.disks);
    assert_eq!(flat.nics, named.nics);
    let Source::Image(image) = &flat.disks[0].source else { panic!("{:?}", flat.disks) };
    assert_eq!(image.origin, Origin::Path("/etc/qvm/vms/x.qcow2".into()));
    assert_eq!(flat.at("nic.net.bridge"), "/etc/qvm/vms/web.toml:2");
    assert_eq!(named.at("nic.net.bridge"), "/etc/qvm/vms/web.toml:7");
    assert_eq!(named.at("nic.net.tap"), "/etc/qvm/vms/web.toml:6");
    assert_eq!(named.at("vcpu"), "/etc/qvm/vms/web.toml");
}

#[test]
fn missing_keys_have_defaults() {
    let vm = read("vcpu = 1").unwrap();
    assert_eq!((vm.vcpu, vm.mem.to_string().as_str()), (1, "1G"));
    assert_eq!((vm.cpu_weight.get(), vm.shutdown_timeout.get()), (100, 120));
    assert!(!vm.autostart && vm.after.is_empty() && vm.cloud_init.is_none());
    let [root] = vm.disks.as_slice() else { panic!("{:?}", vm.disks) };
    assert_eq!((root.name.as_str(), &root.source), ("root", &Source::Existing));
    let [net] = vm.nics.as_slice() else { panic!("{:?}", vm.nics) };
    assert_eq!((net.name.as_str(), &net.link), ("net", &Link::User { forward: Vec::new() }));
}

#[test]
fn tables_keep_the_order_of_the_file() {
    let vm = read(
        "[disk.zeta]\nsize = \"1G\"\n[disk.alpha]\nsize = \"1G\"\n[disk.root]\nbus = \"sata\"\n\
         [nic.zeta]\n[nic.net]\n[nic.alpha]\n",
    )
    .unwrap();
    let disks: Vec<&str> = vm.disks.iter().map(|disk| disk.name.as_str()).collect();
    let nics: Vec<&str> = vm.nics.iter().map(|nic| nic.name.as_str()).collect();
    assert_eq!(disks, ["root", "zeta", "alpha"]);
    assert_eq!(nics, ["net", "zeta", "alpha"]);
}

#[test]
fn default_nic_is_net() {
    let nics = |text: &str| -> Vec<String> {
        read(text).unwrap().nics.iter().map(|nic| nic.name.to_string()).collect()
    };
    assert_eq!(nics("[nic]\n"), [""; 0]);
    assert_eq!(nics("nic = {}\n"), [""; 0]);
    assert_eq!(nics("[nic.lan]\n"), ["lan"]);
    assert_eq!(nics("forward = []\n[nic.lan]\n"), ["net", "lan"]);
}

#[test]
fn tap_names_derive_from_vm_and_nic() {
    let vm = read(
        "bridge = \"br0\"\n[nic.lan]\nbridge = \"br0\"\n[nic.x]\nbridge = \"br0\"\ntap = \"t\"\n",
    )
    .unwrap();
    let taps: Vec<String> = vm
        .nics
        .iter()
        .map(|nic| match &nic.link {
            Link::Bridge { tap, .. } => tap.to_string(),
            Link::User { .. } => panic!("{nic:?}"),
        })
        .collect();
    assert_eq!(taps, ["qvm-web", "qvm-web_lan", "t"]);
    assert!(read_as("eleven-long", "bridge = \"br0\"").is_ok());
    assert!(read_as("twelve--long", "bridge = \"br0\"").is_err());
}

#[test]
fn format_follows_the_file_name() {
    for (keys, format) in [
        ("path = 'a.qcow2'", Format::Qcow2),
        ("path = 'a.raw'", Format::Raw),
        ("path = 'a.img'\nformat = 'qcow2'", Format::Qcow2),
        ("path = 'a.iso'\nmedia = 'cdrom'", Format::Raw),
        ("device = '/dev/sr0'\nmedia = 'cdrom'", Format::Raw),
        ("device = '/dev/sdb'", Format::Raw),
        ("size = '1G'", Format::Qcow2),
    ] {
        let vm = read(&format!("[disk.x]\n{keys}")).unwrap_or_else(|p| panic!("{}", shown(p)));
        assert_eq!(vm.disks[1].format, format, "{keys}");
    }
    assert!(read("[disk.x]\npath = 'a.img'").is_err());
}

#[test]
fn unusual_paths_are_accepted() {
    for name in ["a,b.qcow2", "a\"b.qcow2", "a b.qcow2", "ä.qcow2", "-a.qcow2", "a=b.qcow2"] {
        let vm = read(&format!("[disk.x]\npath = '{name}'")).unwrap();
        assert_eq!(vm.disks[1].source, Source::File(format!("/etc/qvm/vms/{name}").into()));
    }
    let vm = read("[image]\nurl = 'file:///srv/a%20b%2C.qcow2'").unwrap();
    let Source::Image(image) = &vm.disks[0].source else { panic!("{:?}", vm.disks) };
    assert_eq!(image.origin, Origin::Path("/srv/a b,.qcow2".into()));
    for url in ["file:///a%0ab", "file:///a%00b", "file:///a%zz", "file:///a%2", "file:a"] {
        assert!(read(&format!("[image]\nurl = '{url}'")).is_err(), "{url} was taken");
    }
}

#[test]
fn user_data_headers_are_accepted() {
    let check = |data: &str| {
        let data = data.as_bytes().to_vec();
        let name = "web".parse().unwrap();
        let text = "[cloudInit]\nuserData = 'x'";
        spec::read(&name, Path::new("/x/web.toml"), text, &mut |_| Ok(data.clone()))
    };
    for good in [
        "#cloud-config",
        "#cloud-config\n# nothing yet\n",
        "#cloud-config \r\na: 1\r\n",
        "#!/bin/sh\n: {",
        "#include\nhttps://example.org/x\n",
        "#include-once\nhttps://example.org/x\n",
        "#cloud-boothook\n: {",
        "#cloud-config-archive\n- a\n",
        "## template: jinja\n#cloud-config\n{% if x %}",
        "Content-Type: multipart/mixed; boundary=\"x\"\n",
        "MIME-Version: 1.0\n",
    ] {
        let vm = check(good).unwrap_or_else(|p| panic!("{good}: {}", shown(p)));
        assert_eq!(vm.cloud_init.unwrap().user_data.unwrap().bytes, good.as_bytes());
    }
    for bad in
        ["", "packages: [htop]", "# cloud-config\n", "#cloud-config\n- a", "#cloud-config\nx"]
    {
        assert!(check(bad).is_err(), "{bad:?} was taken");
    }
    let problems = check("#cloud-config\na: 1\nb: [\n").unwrap_err();
    assert!(problems[0].message.starts_with("`/x/x:4` is not YAML"), "{}", problems[0]);
    assert!(check(&format!("#cloud-config\n# {}", "x".repeat(1 << 20))).is_err());
}

#[test]
fn ssh_keys_with_options_are_accepted() {
    let key = "AAAAC3NzaC1lZDI1NTE5AAAAIJ5rJ3mUq0kT7m5S4m8xv0bq2vY1n6c3Zp9wQe7dR8sT";
    for line in [
        format!("ssh-ed25519 {key}"),
        format!("ssh-ed25519 {key} op@desk with a comment"),
        format!("restrict,command=\"echo a b\" ssh-ed25519 {key}"),
        // e = 65537, and a modulus of nine bytes.
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAACQDExMTExMTExA==".into(),
    ] {
        let text = format!("[cloudInit]\nsshAuthorizedKeys = ['{line}']");
        read(&text).unwrap_or_else(|problems| panic!("{}", shown(problems)));
    }
}

#[test]
fn messages_contain_no_secrets() {
    for text in [
        "[cloudInit]\npasswordHash = 'hunter2'",
        "[cloudInit]\npassword = 'hunter2'",
        "[cloudInit]\npasswordHash = hunter2",
        "[cloudInit]\npasswordHash = ['hunter2']",
        "[cloudInit]\nsshAuthorizedKeys = ['-----BEGIN OPENSSH PRIVATE KEY----- hunter2']",
    ] {
        let message = shown(read(text).unwrap_err());
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn problems_are_structured() {
    let problems = read("vcpu = 0\n[image]\npath = 'x'\nurl = 'ftp://x'\n").unwrap_err();
    let json = serde_json::to_value(&problems[0]).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "file": "/etc/qvm/vms/web.toml", "line": 1, "column": 8, "key": "vcpu",
            "message": "0 is out of range: the range is 1 to 255", "hint": null,
        })
    );
    let lines: Vec<Option<usize>> = problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [Some(1), Some(4), Some(4)]);
}

#[test]
fn special_files_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("dir.toml")).unwrap();
    fs::write(path("large.toml"), vec![b'#'; 10 << 20]).unwrap();
    std::os::unix::fs::symlink("not-there.toml", path("dangling.toml")).unwrap();
    // An open of the FIFO would block.
    nix::unistd::mkfifo(&path("pipe.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, message) in [
        ("dir.toml", "this is a directory, not a regular file"),
        ("large.toml", "the file is larger than 1 MiB"),
        ("dangling.toml", "cannot follow the symbolic link to `not-there.toml`: No such file"),
        ("pipe.toml", "this is a device, a pipe or a socket, not a regular file"),
        ("absent.toml", "cannot read the file: No such file or directory"),
        ("absent", "cannot read the file"),
    ] {
        let Invalid(problems) = spec::load(&path(name)).unwrap_err();
        assert_eq!(problems.len(), 1, "{name}");
        assert!(problems[0].message.starts_with(message), "{}", problems[0]);
    }
    fs::write(path("web.toml"), "vcpu = 2").unwrap();
    std::os::unix::fs::symlink("web.toml", path("link.toml")).unwrap();
    assert_eq!(spec::load(&path("link.toml")).unwrap().name.as_str(), "link");
    fs::write(path(".hidden.toml"), "nonsense").unwrap();
    fs::write(path("note.txt"), "nonsense").unwrap();
    let all = spec::load_all(dir.path());
    let names: Vec<_> = all.iter().map(|(file, _)| file.file_name().unwrap()).collect();
    assert_eq!(
        names,
        ["dangling.toml", "dir.toml", "large.toml", "link.toml", "pipe.toml", "web.toml"]
    );
    assert!(spec::load_all(&path("nowhere")).is_empty());
}

#[test]
fn hostile_file_names_are_escaped() {
    for name in [
        "a\nb.toml",
        "\u{1b}[2J.toml",
        "a,b.toml",
        "a\"b.toml",
        &format!("{}.toml", "x".repeat(200)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        fs::write(&file, "vcpu = 1").unwrap();
        let message = spec::load(&file).unwrap_err().to_string();
        assert!(
            message.contains("is not a VM name") || message.contains("at most 63"),
            "{message}"
        );
        assert_eq!(message.lines().count(), 2, "{message}");
        assert!(!message.contains('\u{1b}'), "{message}");
    }
}

#[test]
fn large_files_are_refused_briefly() {
    let many =
        |count: usize, line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
    for text in [
        many(10_000, &|nr| format!("k{nr}=1\n")),
        "a=1\n".repeat(20_000),
        "[a]\n".repeat(20_000),
        "a\n".repeat(50_000),
        "[a\n".repeat(30_000),
        "a = x y\n".repeat(10_000),
        format!("{}a=1", "a.".repeat(500_000)),
        format!("[{}a]", "a.".repeat(500_000)),
        format!("a={}", "[".repeat(1_000_000)),
        format!("a={}", "{a=".repeat(300_000)),
        format!("after=[{}]", many(50_000, &|nr| format!("'n{nr}',"))),
        format!("forward=[{}]", many(50_000, &|nr| format!("'{}:1',", nr + 1))),
        many(10_000, &|nr| format!("[nic.n{nr}]\n")),
        many(10_000, &|nr| format!("[disk.d{nr}]\nsize='1G'\n")),
        format!("description='{}'", "x".repeat(1_000_000)),
    ] {
        let problems = read(&text).unwrap_err();
        assert!((1..=101).contains(&problems.len()), "{} problems", problems.len());
        assert!(shown(problems).len() < 100_000, "{:.40}", text);
    }
    let user_data = |data: String| {
        let text = "[cloudInit]\nuserData = 'x'";
        let read = &mut |_: &Path| Ok(data.clone().into_bytes());
        spec::read(&"web".parse().unwrap(), Path::new("/x/web.toml"), text, read)
    };
    let bomb =
        many(30, &|nr| format!("a{}: &a{} [{}]\n", nr + 1, nr + 1, format!("*a{nr},").repeat(8)));
    assert!(user_data(format!("#cloud-config\na0: &a0 [x]\n{bomb}")).is_err());
    assert!(user_data(format!("#cloud-config\na:\n{}", "- ".repeat(300_000))).is_err());
    // Nested brackets look like those of a script; the test is that the reader ends.
    assert!(user_data(format!("#cloud-config\na: {}", "[".repeat(1_000_000))).is_ok());
}

/// Several VM files, each with its name, as `across` sees them.
fn across_of(files: &[(&str, &str)]) -> Vec<String> {
    let vms: Vec<Vm> = files
        .iter()
        .map(|(name, text)| read_as(name, text).unwrap_or_else(|p| panic!("{}", shown(p))))
        .collect();
    let problems = across(&vms.iter().collect::<Vec<_>>(), &["broken".parse().unwrap()]);
    problems.iter().map(|problem| problem.to_string().replace("/etc/qvm/vms/", "")).collect()
}

#[test]
fn unique_values_conflict_between_vms() {
    let pairs = [
        (
            "mac = '52:54:00:00:00:01'",
            "vcpu = 1\n[nic.lan]\nmac = '52:54:00:00:00:01'",
            "error: b.toml:3: nic.lan.mac: the MAC address `52:54:00:00:00:01` is already used \
             by `a` (a.toml:1)",
        ),
        (
            "ip = '10.0.0.2/24'",
            "ip = '10.0.0.2/8'",
            "error: b.toml:1: ip: the address `10.0.0.2` is already used by `a` (a.toml:1)",
        ),
        (
            "bridge = 'br0'\n[nic.net]\ntap = 'qvm-b'",
            "bridge = 'br0'",
            "error: b.toml:1: bridge: the tap `qvm-b` is already used by `a` (a.toml:3)",
        ),
        (
            "forward = ['80:80']",
            "forward = ['0.0.0.0:80:8080']",
            "error: b.toml:1: forward: the port of `0.0.0.0:80:8080/tcp` is already used by `a` \
             (a.toml:1)",
        ),
        (
            "[disk.x]\npath = '/srv/x.raw'",
            "[disk.y]\npath = '/srv/x.raw'\nreadOnly = true",
            "error: b.toml:2: disk.y.path: the disk `/srv/x.raw` is already used by `a` \
             (a.toml:2)\n\
             hint: two VMs can share a disk if both set `readOnly = true`",
        ),
    ];
    for (a, b, message) in pairs {
        assert_eq!(across_of(&[("a", a), ("b", b)]), [message]);
        assert_eq!(across_of(&[("a", a), ("c", "vcpu = 1")]), [""; 0]);
    }
    for same in [
        "[disk.x]\npath = '/srv/x.iso'\nmedia = 'cdrom'",
        "[disk.x]\npath = '/srv/x.raw'\nreadOnly = true",
        "[image]\npath = '/srv/x.qcow2'",
        "bridge = 'br0'",
    ] {
        assert_eq!(across_of(&[("a", same), ("b", same)]), [""; 0], "{same}");
    }
}

#[test]
fn after_has_no_cycles_and_unknown_vms() {
    assert_eq!(
        across_of(&[("a", "after = ['b', 'broken']"), ("b", "after = ['c']"), ("c", "vcpu = 1")]),
        [""; 0]
    );
    assert_eq!(
        across_of(&[
            ("a", "after = ['c']"),
            ("b", "after = ['a']"),
            ("c", "vcpu = 1\nafter = ['b']")
        ]),
        ["error: c.toml:2: after: cyclic start order: `c` after `b` after `a` after `c`\n\
          hint: remove one of these keys"]
    );
    assert_eq!(
        across_of(&[("cache", "vcpu = 1"), ("web", "after = ['cahce', 'x']")]),
        [
            "error: web.toml:1: after: VM `cahce` does not exist\nhint: did you mean `cache`?",
            "error: web.toml:1: after: VM `x` does not exist",
        ]
    );
    let chain: Vec<(String, String)> =
        (0..300).map(|nr| (format!("v{nr}"), format!("after = ['v{}']", (nr + 1) % 300))).collect();
    let chain: Vec<(&str, &str)> = chain.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    assert_eq!(across_of(&chain).len(), 1);
}

/// Runs `qvm check` over these files; returns the exit code and both outputs, without the
/// directory.
fn run(files: &[(&str, &str)], what: &[&str], json: bool) -> (u8, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout {
        config: dir.path().to_owned(),
        state: dir.path().join("state"),
        runtime: dir.path().join("run"),
    };
    fs::create_dir(layout.vm_files()).unwrap();
    for (name, text) in files {
        fs::write(layout.vm_files().join(name), text).unwrap();
    }
    let here = format!("{}/", dir.path().display());
    let what = what.iter().map(|what| what.replace("HERE/", &here).into()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code =
        check::run(&check::Args { what, json, no_user_data: false }, &layout, &mut out, &mut err);
    let shown = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&here, "");
    assert!(!layout.state.exists() && !layout.runtime.exists(), "something was touched");
    (code, shown(out), shown(err))
}

#[test]
fn check_accepts_names_and_files() {
    let files = [("web.toml", "vcpu = 2\nafter = ['db']"), ("db.toml", "vcpu = 0")];
    let bad = "error: vms/db.toml:1:8: vcpu: 0 is out of range: the range is 1 to 255\n 1 | \
               vcpu = 0\n   |        ^\n";
    let both = (78, "web: ok\n".to_owned(), bad.to_owned());
    assert_eq!(run(&files, &[], false), both);
    assert_eq!(run(&files, &["db", "web"], false), both);
    assert_eq!(run(&files, &["HERE/vms/db.toml", "web", "web"], false), both);
    assert_eq!(run(&files, &["web"], false), (0, "web: ok\n".into(), String::new()));
    let (code, out, err) = run(&files, &["web", "gone"], false);
    assert_eq!((code, out.as_str()), (3, "web: ok\n"));
    assert!(err.starts_with("error: vms/gone.toml: there is no VM `gone`"), "{err}");
    let (code, _, err) = run(&files, &["Not A Name"], false);
    assert_eq!(code, 3);
    assert!(err.starts_with("error: vms: `Not A Name` is not a VM name"), "{err}");
    assert_eq!(run(&files, &["db", "gone"], false).0, 78);
    let (code, out, err) = run(&[], &[], false);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", "there are no VM files in vms\n"));
}

#[test]
fn check_reads_host_settings() {
    let good = [("web.toml", "vcpu = 2"), ("../qvm.toml", "admission = 'off'")];
    let both = (0, "the host settings: ok\nweb: ok\n".into(), String::new());
    assert_eq!(run(&good, &[], false), both);
    assert_eq!(run(&good, &["web"], false), (0, "web: ok\n".into(), String::new()));
    assert_eq!(run(&good, &["HERE/qvm.toml", "web"], false), both);
    // A valid name of a VM.
    let vm = [("qvm.toml", "vcpu = 2")];
    assert_eq!(run(&vm, &[], false), (0, "qvm: ok\n".into(), String::new()));
    let bad = [("../qvm.toml", "admission = true")];
    for asked in [&[][..], &["HERE/qvm.toml"]] {
        let (code, out, err) = run(&bad, asked, false);
        assert_eq!((code, out.as_str()), (78, ""));
        assert!(err.starts_with("error: qvm.toml:1:13: admission: found a boolean"), "{err}");
    }
    assert!(run(&bad, &[], true).1.contains("\"key\": \"admission\""));
}

#[test]
fn check_compares_with_other_files() {
    let files = [("a.toml", "forward = ['80:80']"), ("b.toml", "forward = ['80:81']")];
    for (asked, other) in [("a", "b"), ("b", "a")] {
        let (code, out, err) = run(&files, &[asked], false);
        assert_eq!((code, out.as_str()), (78, ""));
        let start = format!("error: vms/{asked}.toml:1: forward: the port of ");
        assert!(
            err.starts_with(&start) && err.contains(&format!("is already used by `{other}`")),
            "{err}"
        );
    }
    let (code, out, err) = run(&files, &[], false);
    assert_eq!((code, out.as_str()), (78, "a: ok\n"));
    assert!(err.starts_with("error: vms/b.toml:1: forward"), "{err}");
}

#[test]
fn check_prints_only_json() {
    let (code, out, err) = run(&[("db.toml", "vcpu = 0\nx = 1")], &["db", "gone"], true);
    assert_eq!((code, err.as_str()), (78, ""));
    let problems: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    let told: Vec<_> = problems.iter().map(|p| (&p["file"], &p["line"], &p["key"])).collect();
    assert_eq!(
        serde_json::json!(told),
        serde_json::json!([
            ["vms/gone.toml", null, null],
            ["vms/db.toml", 1, "vcpu"],
            ["vms/db.toml", 2, "x"],
        ])
    );
    assert_eq!(run(&[("db.toml", "vcpu = 1")], &[], true), (0, "[]\n".into(), String::new()));
}

/// Text similar to a VM file: lines of real ones, mixed and changed.
fn nearly() -> impl Strategy<Value = String> {
    let lines: Vec<String> = files(&bad(), ".toml")
        .into_iter()
        .chain(files(&root().join("examples"), ".toml"))
        .flat_map(|file| {
            let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
            text.split('\n').map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let line = proptest::sample::select(lines);
    let cut =
        (line, 0usize..80, "[\\PC\r\n\t\"'\\[\\]{}=.,#\\\\]{0,3}").prop_map(|(line, at, put)| {
            let mut at = at.min(line.len());
            while !line.is_char_boundary(at) {
                at -= 1;
            }
            let (before, after) = line.split_at(at);
            if put.is_empty() { line.clone() } else { format!("{before}{put}{after}") }
        });
    proptest::collection::vec(cut, 0..12).prop_map(|lines| lines.join("\n"))
}

fn holds(text: &str) -> Result<(), TestCaseError> {
    let Err(problems) = read(text) else { return Ok(()) };
    prop_assert!(!problems.is_empty());
    let lines = text.split('\n').count();
    for problem in &problems {
        if let (Some(line), Some(column)) = (problem.line, problem.column) {
            prop_assert!((1..=lines).contains(&line), "line {line} of {lines}: {problem}");
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            let length = text.split('\n').nth(line - 1).unwrap().chars().count();
            prop_assert!((1..=length + 1).contains(&column), "column {column}: {problem}");
        } else {
            prop_assert_eq!(&problem.message, "the file is empty");
        }
        let told = problem.to_string();
        prop_assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
        prop_assert!(told.lines().count() <= 4, "{told:?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}|[ -~\n\r\t]{0,200}") {
        holds(&text)?;
    }

    #[test]
    fn no_mutated_file_panics(text in nearly()) {
        holds(&text)?;
    }
}
