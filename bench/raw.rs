//! QEMU without qvm: the same command line, the least that a driver of QMP can do.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};
use qvm::machine::fd;

use crate::{
    figure::Outcome,
    place::{Owned, Watched},
};

/// The command line of a process, word for word, but that it opens its one disk itself: raw QEMU is handed no descriptors of files.
pub(crate) fn command_line(pid: u32, disk: &Path) -> Outcome<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    let all = bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut all = all.collect::<Vec<String>>().into_iter();
    let (mut words, mut set) = (Vec::new(), None);
    while let Some(word) = all.next() {
        if word == "-add-fd" {
            let given = all.next().unwrap_or_default();
            set = given.split(',').find_map(|part| Some(part.strip_prefix("set=")?.to_owned()));
        } else {
            words.push(word);
        }
    }
    words.pop();
    let set = format!("/dev/fdset/{}", set.ok_or("QEMU was handed no disk")?);
    let disk = disk.to_string_lossy();
    Ok(words.into_iter().map(|word| word.replace(&set, &disk)).collect())
}

/// The command line for the same devices as an administrator would write it, without the options by
/// which qvm secures and manages QEMU.
pub(crate) fn by_hand(disk: &Path) -> Vec<String> {
    let drive = format!("file={},format=qcow2,if=none,id=root", disk.display());
    let mut words: Vec<String> = "qemu-system-x86_64 -nodefaults -S -display none -machine q35 \
        -accel tcg -cpu max -smp 1 -m 32M \
        -chardev socket,id=qmp,fd=3,server=on,wait=off -mon chardev=qmp,mode=control \
        -chardev socket,id=serial,fd=5,server=on,wait=off -serial chardev:serial \
        -chardev socket,id=agent,fd=4,server=on,wait=off \
        -device pvpanic -object rng-builtin,id=entropy -device virtio-rng-pci,rng=entropy \
        -device virtio-balloon-pci -device virtio-serial-pci \
        -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 \
        -netdev user,id=net -device virtio-net-pci,netdev=net,romfile="
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    // The ports for disks and NICs that are plugged in later.
    for port in 1..=HOTPLUG_PORTS {
        let port = format!("pcie-root-port,id=port{port},chassis={port},slot={port}");
        words.extend(["-device".to_owned(), port]);
    }
    let disk = ["-drive", &drive, "-device", "virtio-blk-pci,drive=root"];
    words.extend(disk.map(str::to_owned));
    words
}

/// How many root ports a VM of qvm has.
const HOTPLUG_PORTS: u32 = 15;

/// A QEMU whose guest runs.
pub(crate) struct Raw {
    monitor: BufReader<UnixStream>,
    qemu: Watched,
    _child: Owned,
}

impl Raw {
    /// From exec to the answer to `cont`.
    pub(crate) fn start(words: &[String], dir: &Path) -> Outcome<(Self, Duration)> {
        let (program, arguments) = words.split_first().ok_or("no command line")?;
        let socket = |number: i32| dir.join(format!("raw.{number}"));
        let begun = Instant::now();
        let mut fds = Vec::new();
        for number in [fd::QMP, fd::AGENT, fd::SERIAL] {
            let _ = fs::remove_file(socket(number));
            let parent_fd: OwnedFd = UnixListener::bind(socket(number))?.into();
            fds.push(FdMapping { parent_fd, child_fd: number });
        }
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Owned(command.fd_mappings(fds)?.spawn()?);
        drop(command);
        let mut monitor = BufReader::new(UnixStream::connect(socket(fd::QMP))?);
        monitor.read_line(&mut String::new())?;
        call(&mut monitor, "qmp_capabilities")?;
        call(&mut monitor, "cont")?;
        let took = begun.elapsed();
        Ok((Self { monitor, qemu: Watched::new(child.pid())?, _child: child }, took))
    }

    /// From `quit` to the end of the process.
    pub(crate) fn quit(mut self) -> Outcome<Duration> {
        let begun = Instant::now();
        self.monitor.get_mut().write_all(b"{\"execute\": \"quit\"}\n")?;
        Ok(self.qemu.gone()? - begun)
    }
}

fn call(monitor: &mut BufReader<UnixStream>, name: &str) -> Outcome<()> {
    monitor.get_mut().write_all(format!("{{\"execute\": \"{name}\"}}\n").as_bytes())?;
    loop {
        let mut line = String::new();
        if monitor.read_line(&mut line)? == 0 || line.starts_with("{\"error\"") {
            return Err(format!("QEMU did not take `{name}`: {line}").into());
        }
        if line.starts_with("{\"return\"") {
            return Ok(());
        }
    }
}
