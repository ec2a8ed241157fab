//! The guest's screen and keyboard: screenshots, VNC, typed text.

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

/// The width, the height, and the number of pixels that are not black.
fn picture(png: &[u8]) -> (u32, u32, usize) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let lit = pixels.chunks(3).filter(|pixel| pixel.iter().any(|colour| *colour > 16)).count();
    (info.width, info.height, lit)
}

#[test]
fn screenshot_shows_firmware_text() {
    let Some(lab) = started("[display]\n") else { return };
    let file = lab.path().join("screen.png");
    lab.ok(&["screenshot", "web", file.to_str().unwrap()]);
    let (width, height, lit) = picture(&fs::read(&file).unwrap());
    assert!(width >= 640 && height >= 350, "{width}x{height}");
    // SeaBIOS prints the boot device in text mode.
    assert!(lit > 100, "the screen is black");
    let output = lab.qvm(&["screenshot", "web", "-"]);
    assert_eq!(picture(&output.stdout).0, width);
    let refusal = lab.refused(&["screenshot", "web", "/nonexistent/screen.png"]);
    refusal.is(ErrorCode::FileMissing, 1).golden("control", "screenshot-to-no-directory");
    lab.refused(&["vnc", "web"]).is(ErrorCode::ScreenNotServed, 3).golden("control", "no-vnc");
    lab.ok(&["kill", "web"]);
}

#[test]
fn keys_work_without_a_screen() {
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
    // The firmware reads it as the right key.
    lab.ok(&["sendkey", "web", "ctrl-alt-del"]);
    lab.says("web", "BOOT-GUEST-READY", 2);
    lab.ok(&["kill", "web"]);
    lab.refused(&["sendkey", "web", "a"]).is(ErrorCode::NotRunning, 3);
}

/// The first message of a VNC server (RFC 6143, 7.1.1), and its security types.
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

/// Selects a security type and, with a password, answers the challenge (7.2.2); whether the server
/// accepts it.
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

/// DES by openssl(1), as triple DES with the same key three times; VNC reverses the bits of each
/// byte.
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

/// Whether openssl(1) exists.
fn openssl() -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok();
    assert!(there || !crate::lab::required("openssl"), "openssl is missing");
    there
}

/// Initializes the session (7.3); returns the width and height of the screen.
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

/// Requests a picture of one pixel (7.5.3, 7.6.1).
fn sees(stream: &mut (impl Read + Write)) {
    stream.write_all(&[3, 0, 0, 0, 0, 0, 0, 1, 0, 1]).unwrap();
    let mut kind = [0; 4];
    stream.read_exact(&mut kind).unwrap();
    assert_eq!(kind[0], 0, "no picture");
    for _ in 0..u16::from_be_bytes([kind[2], kind[3]]) {
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        let number = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
        // Raw encoding with four bytes a pixel, the default.
        assert_eq!(head[8..12], [0; 4]);
        stream.read_exact(&mut vec![0; number(4) * number(6) * 4]).unwrap();
    }
}

/// A free port of this host, from the first port of VNC; another one for each test.
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
fn vnc_port_requires_a_password() {
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
    // The password is in no file that others can read.
    let plan = lab.ok(&["plan", "web"]);
    let line = fs::read(format!("/proc/{}/cmdline", lab.qemu_pid("web"))).unwrap();
    for text in [plan, String::from_utf8_lossy(&line).into_owned()] {
        assert!(text.contains("none,password=on") && !text.contains("se,cr"), "{text}");
    }
    lab.ok(&["kill", "web"]);
}

/// Starts the next supervisor, and waits until it has adopted QEMU: the VM counts as running
/// without it as well.
fn taken_over(lab: &mut Lab, name: &str) {
    let index = lab.run(name);
    let pid = lab.supervisor(index).id();
    until("the next supervisor has it", || lab.status(name)["supervisorPid"] == pid);
    lab.wait_state(name, "running");
}

#[test]
fn viewers_survive_supervisor_crash() {
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
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "another process listens");
    sees(&mut by_socket);
    sees(&mut by_port);
    for name in ["web", "tcp"] {
        taken_over(&mut lab, name);
    }
    // The new sockets accept the same clients, and connected viewers stay connected.
    let mut later = enter();
    sees(&mut by_socket);
    sees(&mut by_port);
    sees(&mut later.0);
    assert_eq!(["web", "tcp"].map(|name| lab.qemu_pid(name)), pids);
    lab.ok(&["kill", "web", "tcp"]);
}

/// The pending changes of the screen. A QEMU that is a script differs too.
fn pending(status: &serde_json::Value) -> Option<String> {
    let all = status["pending"].as_array().unwrap();
    let one = all.iter().find(|one| one["key"] == "display.vnc")?;
    Some(one["takesEffect"].as_str().unwrap().to_owned())
}

#[test]
fn screen_address_changes_live() {
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
    // Connected viewers stay connected.
    sees(&mut viewer);
    // Another password at the same port.
    fs::write(&secret, "two\n").unwrap();
    assert_eq!(apply(&at(first))["notes"], json!([]));
    assert!(enters(first, "two") && !enters(first, "one"));
    // A port in use: the failure is reported, and the guest keeps running.
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
    // No address; another address afterward requires a new QEMU process.
    let status = apply("[display]\n");
    assert_eq!((&status["vnc"], pending(&status)), (&json!(null), None));
    until("the port is closed", || TcpStream::connect(("127.0.0.1", number)).is_err());
    let status = apply("[display]\nvnc = \"unix\"\n");
    assert_eq!(pending(&status), Some("next-reboot".into()));
    assert!(!socket.exists() && status["vnc"].is_null());
    sees(&mut viewer);
    assert_eq!(lab.qemu_pid("web"), pid);
    lab.ok(&["kill", "web"]);
}

/// As an earlier qvm started it: QEMU itself listens.
#[test]
fn screen_of_listening_qemu_is_kept() {
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
    // A sandboxed QEMU could not create a socket.
    lab.vm("web", &image, "isolation = \"off\"\n[display]\nvnc = \"unix\"\n");
    let first = lab.run("web");
    lab.wait_state("web", "running");
    lab.supervisor(first).kill().unwrap();
    lab.exit_code(first);
    assert_eq!(handshake(&mut UnixStream::connect(&socket).unwrap()), [NONE]);
    taken_over(&mut lab, "web");
    assert_eq!(handshake(&mut UnixStream::connect(&socket).unwrap()), [NONE]);
    // A changed VM file does not remove that screen either.
    lab.vm("web", &image, "isolation = \"off\"\n[display]\n");
    lab.ok(&["apply", "web"]);
    let status = lab.status("web");
    assert_eq!(status["vnc"], format!("unix:{}", socket.display()));
    assert_eq!(pending(&status), Some("next-reboot".into()), "{status}");
    assert_eq!(handshake(&mut UnixStream::connect(&socket).unwrap()), [NONE]);
    lab.ok(&["kill", "web"]);
    assert!(!socket.exists());
}

/// The local addresses of the listening sockets of `protocol` in the network namespace of process
/// `pid`.
fn listening(pid: &str, protocol: &str) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/{protocol}")).unwrap_or_default();
    let listens = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (at, state) = (fields.next()?, fields.nth(1)?);
        // TCP_LISTEN; an unconnected UDP socket is TCP_CLOSE (include/net/tcp_states.h).
        (state == if protocol.starts_with("tcp") { "0A" } else { "07" }).then(|| at.to_owned())
    };
    table.lines().skip(1).filter_map(listens).collect()
}

/// A VM with every key opens only the ports of its VM file.
#[test]
fn only_configured_ports_listen() {
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
    // A listening socket would be found.
    let port = port();
    let more = format!("[display]\nvnc = \"127.0.0.1:{port}\"\npasswordFile = \"p\"\n");
    lab.vm("web", &image, &more);
    fs::write(lab.file("web").with_file_name("p"), "secret\n").unwrap();
    lab.ok(&["start", "web"]);
    let pid = lab.status("web")["supervisorPid"].to_string();
    assert_eq!(listening(&pid, "tcp"), [format!("0100007F:{port:04X}")]);
    lab.ok(&["kill", "web"]);
}
