//! The guest's screen and keyboard: photographed, served by VNC, typed at.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use qvm::value::ErrorCode;
use serde_json::json;

use crate::lab::{Lab, guest, until};

fn started(more: &str) -> Option<Lab> {
    let image = guest("boot-keys.qcow2")?;
    let lab = Lab::new();
    lab.vm("web", &image, more);
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    Some(lab)
}

/// Width, height, and how many of the picture's pixels are not black.
fn picture(png: &[u8]) -> (u32, u32, usize) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let lit = pixels.chunks(3).filter(|pixel| pixel.iter().any(|colour| *colour > 16)).count();
    (info.width, info.height, lit)
}

#[test]
fn a_picture_shows_what_the_firmware_wrote() {
    let Some(lab) = started("[display]\n") else { return };
    let file = lab.path().join("screen.png");
    lab.ok(&["screenshot", "web", file.to_str().unwrap()]);
    let (width, height, lit) = picture(&fs::read(&file).unwrap());
    assert!(width >= 640 && height >= 350, "{width}x{height}");
    // SeaBIOS says what it boots from, in text.
    assert!(lit > 100, "the screen is black");
    let output = lab.qvm(&["screenshot", "web", "-"]);
    assert_eq!(picture(&output.stdout).0, width);
    let refusal = lab.refused(&["screenshot", "web", "/nonexistent/screen.png"]);
    refusal.is(ErrorCode::FileMissing, 1).golden("control", "screenshot-to-no-directory");
    lab.refused(&["vnc", "web"]).is(ErrorCode::ScreenNotServed, 3).golden("control", "no-vnc");
    lab.ok(&["kill", "web"]);
}

#[test]
fn without_a_screen_there_is_none_and_keys_go_in_all_the_same() {
    let Some(lab) = started("") else { return };
    let refusal = lab.refused(&["screenshot", "web", "-"]);
    refusal.is(ErrorCode::NoScreen, 1).golden("control", "no-screen");
    let text = "Hello, World! ~`1234567890-=[];'\\,./ !@#$%^&*()_+{}:\"|<>?";
    lab.ok(&["type", "--enter", "web", text]);
    lab.says("web", &format!("{text}\r"), 1);
    lab.ok(&["sendkey", "web", "shift-a", "b", "f5"]);
    lab.says("web", "Ab?", 1);
    let refusal = lab.refused(&["type", "web", "größe"]);
    refusal.is(ErrorCode::CharacterUnknown, 1).golden("control", "character-unknown");
    let refusal = lab.refused(&["sendkey", "web", "ctrl-alt-bogus"]);
    refusal.is(ErrorCode::KeyUnknown, 2).golden("control", "key-unknown");
    // The firmware takes it for what it is.
    lab.ok(&["sendkey", "web", "ctrl-alt-del"]);
    lab.says("web", "BOOT-GUEST-READY", 2);
    lab.ok(&["kill", "web"]);
    lab.refused(&["sendkey", "web", "a"]).is(ErrorCode::NotRunning, 3);
}

/// What a VNC server says first (RFC 6143, 7.1.1), and the kinds of security that it offers.
fn handshake(stream: &mut (impl Read + Write)) -> Vec<u8> {
    let mut version = [0; 12];
    stream.read_exact(&mut version).unwrap();
    assert_eq!(&version, b"RFB 003.008\n");
    stream.write_all(&version).unwrap();
    let mut count = [0];
    stream.read_exact(&mut count).unwrap();
    let mut kinds = vec![0; count[0].into()];
    stream.read_exact(&mut kinds).unwrap();
    kinds
}

const NONE: u8 = 1;
const PASSWORD: u8 = 2;

/// Chooses a kind of security and, for a password, answers the challenge (7.2.2): whether the server takes it.
fn let_in(stream: &mut (impl Read + Write), password: Option<&str>) -> bool {
    let kind = if password.is_some() { PASSWORD } else { NONE };
    stream.write_all(&[kind]).unwrap();
    if let Some(password) = password {
        let mut challenge = [0; 16];
        stream.read_exact(&mut challenge).unwrap();
        stream.write_all(&encrypted(password, &challenge)).unwrap();
    }
    let mut result = [0; 4];
    stream.read_exact(&mut result).unwrap();
    result == [0; 4]
}

/// DES by openssl(1), as its triple form with one key three times; VNC has each byte's bits in the other order.
fn encrypted(password: &str, challenge: &[u8; 16]) -> Vec<u8> {
    let key: String = (0..24)
        .map(|at| password.as_bytes().get(at % 8).copied().unwrap_or(0).reverse_bits())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut openssl = Command::new("openssl")
        .args(["enc", "-des-ede3", "-nopad", "-K", &key])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(challenge).unwrap();
    let output = openssl.wait_with_output().unwrap();
    assert_eq!(output.stdout.len(), 16, "{output:?}");
    output.stdout
}

/// Whether there is an openssl(1) to encrypt with.
fn openssl() -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok();
    assert!(there || !crate::lab::required("openssl"), "openssl is missing");
    there
}

/// Goes on to where pictures are asked for (7.3); the screen's width and height.
fn begin(stream: &mut (impl Read + Write)) -> (u16, u16) {
    stream.write_all(&[1]).unwrap();
    let mut told = [0; 24];
    stream.read_exact(&mut told).unwrap();
    let length = u32::from_be_bytes(told[20..24].try_into().unwrap());
    let mut name = vec![0; length.try_into().unwrap()];
    stream.read_exact(&mut name).unwrap();
    let number = |at: usize| u16::from_be_bytes([told[at], told[at + 1]]);
    (number(0), number(2))
}

/// Asks for a picture of one pixel, and gets one (7.5.3, 7.6.1).
fn sees(stream: &mut (impl Read + Write)) {
    stream.write_all(&[3, 0, 0, 0, 0, 0, 0, 1, 0, 1]).unwrap();
    let mut kind = [0; 4];
    stream.read_exact(&mut kind).unwrap();
    assert_eq!(kind[0], 0, "no picture");
    for _ in 0..u16::from_be_bytes([kind[2], kind[3]]) {
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        let number = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
        // Raw, four bytes a pixel, since nothing else was asked for.
        assert_eq!(head[8..12], [0; 4]);
        stream.read_exact(&mut vec![0; number(4) * number(6) * 4]).unwrap();
    }
}

/// A port of this host that nobody has, from VNC's first one on; another for each test.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(5900);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::SeqCst));
    ports.by_ref().take(200).find(free).unwrap()
}

fn at_port(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

#[test]
fn vnc_is_served_at_a_socket_without_and_at_a_port_with_a_password() {
    let Some(lab) = started("[display]\nvnc = \"unix\"\n") else { return };
    if !openssl() {
        return;
    }
    let socket = lab.runtime("web", "vnc.sock");
    assert_eq!(lab.ok(&["vnc", "web"]), format!("unix:{}\n", socket.display()));
    assert_eq!(lab.status("web")["vnc"], format!("unix:{}", socket.display()));
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let mut viewer = UnixStream::connect(&socket).unwrap();
    assert_eq!(handshake(&mut viewer), [NONE]);
    assert!(let_in(&mut viewer, None));
    assert!(begin(&mut viewer).0 >= 640);
    sees(&mut viewer);
    lab.ok(&["kill", "web"]);
    assert!(!socket.exists());

    let (port, image) = (port(), guest("boot-keys.qcow2").unwrap());
    let tcp = format!("[display]\nvnc = \"127.0.0.1:{port}\"\npasswordFile = \"web.vnc\"\n");
    lab.vm("web", &image, &tcp);
    let secret = lab.file("web").with_file_name("web.vnc");
    let refused = |code, exit, section: &str| {
        let refusal = lab.refused(&["start", "web"]).without_log();
        refusal.is(code, exit);
        refusal.masked(&port.to_string(), "PORT").golden("control", section);
    };
    refused(ErrorCode::VncPasswordMissing, 1, "vnc-without-password");
    fs::write(&secret, "much-too-long\n").unwrap();
    refused(ErrorCode::VncPasswordInvalid, 1, "vnc-long-password");
    fs::write(&secret, b"\xff\xfe\n").unwrap();
    refused(ErrorCode::VncPasswordInvalid, 1, "vnc-password-no-text");
    fs::write(&secret, "se,cr=t\n").unwrap();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    refused(ErrorCode::PortInUse, 75, "vnc-port-in-use");
    drop(taken);
    lab.ok(&["start", "web"]);
    assert_eq!(lab.ok(&["vnc", "web"]), format!("127.0.0.1:{port}\n"));
    for (password, good) in [("wrong", false), ("", false), ("se,cr=t", true)] {
        let mut viewer = at_port(port);
        assert_eq!(handshake(&mut viewer), [PASSWORD]);
        assert_eq!(let_in(&mut viewer, Some(password)), good, "{password:?}");
    }
    // The password is nowhere that others can read it.
    let plan = lab.ok(&["plan", "web"]);
    let line = fs::read(format!("/proc/{}/cmdline", lab.qemu_pid("web"))).unwrap();
    for text in [plan, String::from_utf8_lossy(&line).into_owned()] {
        assert!(text.contains("none,password=on") && !text.contains("se,cr"), "{text}");
    }
    lab.ok(&["kill", "web"]);
}

/// Starts the next supervisor, and waits until it has the QEMU: without one that is running as well.
fn taken_over(lab: &mut Lab, name: &str) {
    let index = lab.run(name);
    let pid = lab.supervisor(index).id();
    until("the next supervisor has it", || lab.status(name)["supervisorPid"] == pid);
    lab.wait_state(name, "running");
}

#[test]
fn viewers_outlive_a_supervisor_that_is_killed() {
    let image = guest("boot-keys.qcow2");
    let (Some(image), true) = (image, openssl()) else { return };
    let port = port();
    let mut lab = Lab::new();
    lab.vm("web", &image, "[display]\nvnc = \"unix\"\n");
    let tcp = format!("[display]\nvnc = \"127.0.0.1:{port}\"\npasswordFile = \"tcp.vnc\"\n");
    lab.vm("tcp", &image, &tcp);
    fs::write(lab.file("tcp").with_file_name("tcp.vnc"), "secret\n").unwrap();
    let socket = lab.runtime("web", "vnc.sock");
    let supervisors = ["web", "tcp"].map(|name| lab.run(name));
    lab.wait_state("web", "running");
    lab.wait_state("tcp", "running");
    let enter = || {
        let (mut by_socket, mut by_port) = (UnixStream::connect(&socket).unwrap(), at_port(port));
        assert_eq!(
            (handshake(&mut by_socket), handshake(&mut by_port)),
            (vec![NONE], vec![PASSWORD])
        );
        assert!(let_in(&mut by_socket, None) && let_in(&mut by_port, Some("secret")));
        begin(&mut by_socket);
        begin(&mut by_port);
        sees(&mut by_socket);
        sees(&mut by_port);
        (by_socket, by_port)
    };
    let (mut by_socket, mut by_port) = enter();
    let pids = ["web", "tcp"].map(|name| lab.qemu_pid(name));
    for index in supervisors {
        lab.supervisor(index).kill().unwrap();
        lab.exit_code(index);
    }
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "somebody else listens");
    sees(&mut by_socket);
    sees(&mut by_port);
    for name in ["web", "tcp"] {
        taken_over(&mut lab, name);
    }
    // The new ones let in as the old ones did, and who is in stays.
    let mut later = enter();
    sees(&mut by_socket);
    sees(&mut by_port);
    sees(&mut later.0);
    assert_eq!(["web", "tcp"].map(|name| lab.qemu_pid(name)), pids);
    lab.ok(&["kill", "web", "tcp"]);
}

/// When a change of where the screen is served becomes real, if one is pending. A QEMU that is a script is another one as well.
fn pending(status: &serde_json::Value) -> Option<String> {
    let all = status["pending"].as_array().unwrap();
    let one = all.iter().find(|one| one["key"] == "display.vnc")?;
    Some(one["takesEffect"].as_str().unwrap().to_owned())
}

#[test]
fn the_screen_is_moved_while_the_guest_runs() {
    let Some(lab) = started("[display]\nvnc = \"unix\"\n") else { return };
    if !openssl() {
        return;
    }
    let socket = lab.runtime("web", "vnc.sock");
    let image = guest("boot-keys.qcow2").unwrap();
    let (first, pid) = (port(), lab.qemu_pid("web"));
    let secret = lab.file("web").with_file_name("web.vnc");
    fs::write(&secret, "one\n").unwrap();
    let apply = |display: &str| {
        lab.vm("web", &image, display);
        lab.ok(&["apply", "web"]);
        lab.status("web")
    };
    let at =
        |port: u16| format!("[display]\nvnc = \"127.0.0.1:{port}\"\npasswordFile = \"web.vnc\"\n");
    let enters = |port: u16, password: &str| {
        let mut viewer = at_port(port);
        assert_eq!(handshake(&mut viewer), [PASSWORD]);
        let_in(&mut viewer, Some(password))
    };
    let mut viewer = UnixStream::connect(&socket).unwrap();
    assert_eq!(handshake(&mut viewer), [NONE]);
    assert!(let_in(&mut viewer, None));
    begin(&mut viewer);

    let status = apply(&at(first));
    assert_eq!(status["vnc"], format!("127.0.0.1:{first}"));
    assert_eq!(pending(&status), None);
    assert!(!socket.exists());
    assert!(enters(first, "one"));
    // Who looked already goes on to.
    sees(&mut viewer);
    // Another password, at the same port.
    fs::write(&secret, "two\n").unwrap();
    assert_eq!(apply(&at(first))["notes"], json!([]));
    assert!(enters(first, "two") && !enters(first, "one"));
    // A port that somebody has: it is said, and the guest does not mind.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = taken.local_addr().unwrap().port();
    assert!(number >= 5900, "{number}");
    lab.vm("web", &image, &at(number));
    let refusal = lab.refused(&["apply", "web"]);
    assert_eq!(refusal.code, ErrorCode::NotApplied);
    refusal.masked(&number.to_string(), "PORT").golden("control", "apply-of-a-used-port");
    let status = lab.status("web");
    assert!(status["vnc"].is_null() && pending(&status) == Some("live".into()), "{status}");
    assert_eq!(lab.notes("web"), ["screen-not-served display.vnc"]);
    drop(taken);
    assert_eq!(apply(&at(number))["notes"], json!([]));
    assert!(enters(number, "two"));
    // Nowhere; and from there it is QEMU that would have to be started for it.
    let status = apply("[display]\n");
    assert_eq!((&status["vnc"], pending(&status)), (&json!(null), None));
    until("nobody listens any more", || TcpStream::connect(("127.0.0.1", number)).is_err());
    let status = apply("[display]\nvnc = \"unix\"\n");
    assert_eq!(pending(&status), Some("next-reboot".into()));
    assert!(!socket.exists() && status["vnc"].is_null());
    sees(&mut viewer);
    assert_eq!(lab.qemu_pid("web"), pid);
    lab.ok(&["kill", "web"]);
}

/// As an earlier qvm started it: QEMU itself listens.
#[test]
fn a_qemu_that_listens_by_itself_is_left_to_it() {
    let Some(image) = guest("boot-keys.qcow2") else { return };
    let mut lab = Lab::new();
    let socket = lab.runtime("web", "vnc.sock");
    let qemu = lab.path().join("qemu");
    let script = format!(
        "#!/bin/sh\nfor word do shift; case $word in none,password=on) word=unix:{} ;; esac\n\
         set -- \"$@\" \"$word\"; done\nexec qemu-system-x86_64 \"$@\"\n",
        socket.display()
    );
    fs::write(&qemu, script).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    lab.qemu = Some(qemu.into());
    // One that is kept apart could make no socket.
    lab.vm("web", &image, "isolation = \"off\"\n[display]\nvnc = \"unix\"\n");
    let first = lab.run("web");
    lab.wait_state("web", "running");
    lab.supervisor(first).kill().unwrap();
    lab.exit_code(first);
    assert_eq!(handshake(&mut UnixStream::connect(&socket).unwrap()), [NONE]);
    taken_over(&mut lab, "web");
    assert_eq!(handshake(&mut UnixStream::connect(&socket).unwrap()), [NONE]);
    // Nor does a changed VM file take that from it.
    lab.vm("web", &image, "isolation = \"off\"\n[display]\n");
    lab.ok(&["apply", "web"]);
    let status = lab.status("web");
    assert_eq!(status["vnc"], format!("unix:{}", socket.display()));
    assert_eq!(pending(&status), Some("next-reboot".into()), "{status}");
    assert_eq!(handshake(&mut UnixStream::connect(&socket).unwrap()), [NONE]);
    lab.ok(&["kill", "web"]);
    assert!(!socket.exists());
}

/// The sockets of `protocol` that listen, in the network of process `pid`, by their local addresses.
fn listening(pid: &str, protocol: &str) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/{protocol}")).unwrap_or_default();
    let listens = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (at, state) = (fields.next()?, fields.nth(1)?);
        // TCP_LISTEN; a UDP socket that no one has connected is TCP_CLOSE (include/net/tcp_states.h).
        (state == if protocol.starts_with("tcp") { "0A" } else { "07" }).then(|| at.to_owned())
    };
    table.lines().skip(1).filter_map(listens).collect()
}

/// Of all that a VM can have, only what the VM file says so opens a port.
#[test]
fn nothing_listens_on_the_network_unless_the_vm_file_says_so() {
    let (Some(image), Some(network)) =
        (guest("boot-keys.qcow2"), crate::lab::network::Network::new())
    else {
        return;
    };
    let mut lab = Lab::new();
    lab.network = Some(network);
    let more = "vcpu = 2\ncpuWeight = 200\n[display]\nvnc = \"unix\"\n\
                [cloudInit]\nhostname = \"web\"\n[disk.data]\nsize = \"1M\"\n\
                [nic.net]\nbridge = \"br0\"\n[nic.user]\nmodel = \"e1000e\"\n";
    lab.vm("web", &image, more);
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    let mut viewer = UnixStream::connect(lab.runtime("web", "vnc.sock")).unwrap();
    assert_eq!(handshake(&mut viewer), [NONE]);
    let status = lab.status("web");
    for key in ["pid", "supervisorPid"] {
        let pid = status[key].to_string();
        for protocol in ["tcp", "tcp6", "udp", "udp6"] {
            let open = listening(&pid, protocol);
            assert!(open.is_empty(), "{key} {protocol}: {open:?}");
        }
    }
    lab.ok(&["kill", "web"]);
    // That one would be seen.
    let port = port();
    let more = format!("[display]\nvnc = \"127.0.0.1:{port}\"\npasswordFile = \"p\"\n");
    lab.vm("web", &image, &more);
    fs::write(lab.file("web").with_file_name("p"), "secret\n").unwrap();
    lab.ok(&["start", "web"]);
    let pid = lab.status("web")["supervisorPid"].to_string();
    assert_eq!(listening(&pid, "tcp"), [format!("0100007F:{port:04X}")]);
    lab.ok(&["kill", "web"]);
}
