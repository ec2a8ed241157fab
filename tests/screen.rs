//! The guest's screen and keyboard: photographed, served by VNC, typed at.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod lab;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

use lab::{Lab, guest, until};

fn started(more: &str) -> Option<Lab> {
    let image = guest("boot-keys.qcow2")?;
    let lab = Lab::new();
    lab.vm("web", &image, more);
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    Some(lab)
}

fn failed(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let output = lab.qvm(arguments);
    assert!(!output.status.success(), "{output:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
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
    let (code, said) = failed(&lab, &["screenshot", "web", "/nonexistent/screen.png"]);
    assert!(code == Some(1) && said.contains("/nonexistent/"), "{said}");
    assert_eq!(failed(&lab, &["vnc", "web"]).0, Some(3));
    lab.ok(&["kill", "web"]);
}

#[test]
fn without_a_screen_there_is_none_and_keys_go_in_all_the_same() {
    let Some(lab) = started("") else { return };
    let (code, said) = failed(&lab, &["screenshot", "web", "-"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("it has no screen; `[display]` in the VM file gives it one"), "{said}");
    let text = "Hello, World! ~`1234567890-=[];'\\,./ !@#$%^&*()_+{}:\"|<>?";
    lab.ok(&["type", "--enter", "web", text]);
    lab.says("web", &format!("{text}\r"), 1);
    lab.ok(&["sendkey", "web", "shift-a", "b", "f5"]);
    lab.says("web", "Ab?", 1);
    let (code, said) = failed(&lab, &["type", "web", "größe"]);
    assert!(code == Some(1) && said.contains("`ö` is not on a US keyboard"), "{said}");
    let (code, said) = failed(&lab, &["sendkey", "web", "ctrl-alt-bogus"]);
    assert!(code == Some(2) && said.contains("`bogus` is not a key"), "{said}");
    // The firmware takes it for what it is.
    lab.ok(&["sendkey", "web", "ctrl-alt-del"]);
    lab.says("web", "BOOT-GUEST-READY", 2);
    lab.ok(&["kill", "web"]);
    assert_eq!(failed(&lab, &["sendkey", "web", "a"]).0, Some(3));
}

/// What a VNC server says first (RFC 6143, 7.1.1), and the kinds of security that it offers.
fn handshake(mut stream: impl Read + Write) -> Vec<u8> {
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

#[test]
fn vnc_is_served_at_a_socket_of_the_group_and_at_a_port_with_a_password() {
    const NONE: u8 = 1;
    const PASSWORD: u8 = 2;
    let Some(lab) = started("[display]\nvnc = \"unix\"\n") else { return };
    let socket = lab.runtime("web", "vnc.sock");
    assert_eq!(lab.ok(&["vnc", "web"]), format!("unix:{}\n", socket.display()));
    assert_eq!(lab.status("web")["vnc"], format!("unix:{}", socket.display()));
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(handshake(UnixStream::connect(&socket).unwrap()), [NONE]);
    lab.ok(&["kill", "web"]);
    assert!(!socket.exists());

    let port = (5900..6100).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap();
    let image = guest("boot-keys.qcow2").unwrap();
    let tcp = format!("[display]\nvnc = \"127.0.0.1:{port}\"\npasswordFile = \"web.vnc\"\n");
    lab.vm("web", &image, &tcp);
    let secret = lab.file("web").with_file_name("web.vnc");
    let (code, said) = failed(&lab, &["start", "web"]);
    assert!(code == Some(1) && said.contains("web.vnc` does not exist"), "{said}");
    fs::write(&secret, "much-too-long\n").unwrap();
    assert!(failed(&lab, &["start", "web"]).1.contains("has 13 bytes, and VNC takes 1 to 8"));
    fs::write(&secret, "se,cr=t\n").unwrap();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (code, said) = failed(&lab, &["start", "web"]);
    assert!(
        code == Some(75) && said.contains(&format!("cannot listen on `127.0.0.1:{port}`")),
        "{said}"
    );
    drop(taken);
    lab.ok(&["start", "web"]);
    assert_eq!(lab.ok(&["vnc", "web"]), format!("127.0.0.1:{port}\n"));
    assert_eq!(handshake(TcpStream::connect(("127.0.0.1", port)).unwrap()), [PASSWORD]);
    // The password is nowhere that others can read it.
    let plan = lab.ok(&["plan", "web"]);
    assert!(!plan.contains("se,cr"), "{plan}");
    let kept = lab.runtime("web", "vnc.password");
    assert_eq!(fs::read(&kept).unwrap(), b"se,cr=t");
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    lab.ok(&["kill", "web"]);
    until("nothing of it is left", || !kept.exists());
}
