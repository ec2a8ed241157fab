//! Files: an image into the cache, a disk out of it, a seed; beside the programs that read or write the same bytes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use qvm::{
    disk,
    image::{Patience, Tools, qemu_img::QemuImg},
    seed::documents,
    spec::{self, Vm},
    store::identity::Identity,
    sys::{
        file,
        progress::{Cancel, Quiet},
    },
};

use crate::{
    figure::{Figure, Outcome, Sample, time},
    machine,
    place::{Place, in_turns, places, timed},
};

const MIB: usize = 256;
const TIMES: usize = 9;

pub(crate) fn measure() -> Outcome<Vec<Figure>> {
    let places = places()?;
    let place = places.first().ok_or("no place")?;
    let image = image(place.path())?;
    let server = serve(image.clone())?;
    let output = Command::new("sha256sum").arg(&image).output()?;
    let text = String::from_utf8(output.stdout)?;
    let sha256 = text.split(' ').next().ok_or("no digest")?;
    let vm = format!(
        "[image]\nurl = \"http://{server}/image.qcow2\"\nsha256 = \"{sha256}\"\n\
         [cloudInit]\nuser = \"op\"\nsshAuthorizedKeys = [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5rJ3mUq0kT7m5S4m8xv0bq2vY1n6c3Zp9wQe7dR8sT\"]\n"
    );
    for place in &places {
        fs::write(place.layout().vm_file(&"one".parse()?), &vm)?;
    }
    let vm = spec::load(&place.layout().vm_file(&"one".parse()?))?;
    let pulled = pulled(&places, &image, sha256)?;
    Ok(vec![copied(place, &vm, &image)?, pulled, seeded(place, &vm)?])
}

fn pulled(places: &[Place], image: &Path, sha256: &str) -> Outcome<Figure> {
    let mut pulls: Vec<Sample> = places.iter().map(|_| Sample::default()).collect();
    let mut hash = Sample::default();
    for round in 0..TIMES {
        for (nr, place) in in_turns(places, round) {
            if round > 0 {
                timed(&mut place.qvm(&["image", "rm", sha256]))?;
            }
            pulls[nr].push(timed(&mut place.qvm(&["image", "pull", "one"]))?);
        }
        hash.push(timed(Command::new("sha256sum").arg(image).stdout(Stdio::null()))?);
    }
    let what = "image into the cache, 256 MiB by HTTP";
    let figure = Figure::times(what, ("0.6 ×", 0.6), &pulls[0], ("sha256sum", &hash));
    Ok(figure.before(pulls.get(1)))
}

/// qvm's disk is on stable storage when it is there; so is what stands beside it.
fn copied(place: &Place, vm: &Vm, image: &Path) -> Outcome<Figure> {
    let tools = Tools {
        qemu_img: QemuImg::new("qemu-img"),
        patience: Patience::default(),
        now: jiff::Timestamp::now(),
    };
    let wanted = vm.disks.first().ok_or("no disk")?;
    let (mut copy, mut cp) = (Sample::default(), Sample::default());
    let other = place.path().join("copy.qcow2");
    for nr in 0..TIMES {
        let paths = place.paths(&format!("copy{nr}"))?;
        file::make_dir(&paths.state)?;
        let (images, cancel) = (place.layout().images(), Cancel::default());
        let begun = Instant::now();
        disk::ensure(wanted, &paths, &images, &tools, &mut Quiet, &cancel)?;
        copy.push(begun.elapsed());
        fs::remove_dir_all(&paths.state)?;
        let begun = Instant::now();
        timed(Command::new("cp").args([image, &other]))?;
        timed(Command::new("sync").arg(&other))?;
        cp.push(begun.elapsed());
        fs::remove_file(&other)?;
    }
    let beside = ("cp and sync", &cp);
    Ok(Figure::times("disk from a cached qcow2, 256 MiB", ("1.2 ×", 1.2), &copy, beside))
}

fn seeded(place: &Place, vm: &Vm) -> Outcome<Figure> {
    let uuid = "6b2d3e0c-31e5-4b2f-9b3a-2f1d5c0e7a11";
    let mut identity = Identity::new(vm, uuid.into(), "6b2d3e0c", "pc-q35-10.0");
    identity.add_macs(vm, "host", &BTreeSet::new());
    let dir = place.path().join("seed");
    fs::create_dir(&dir)?;
    let documents = documents::documents(vm, &identity).ok_or("no seed")?;
    for (name, bytes) in [
        ("meta-data", documents.meta_data.as_bytes()),
        ("network-config", documents.network_config.as_bytes()),
        ("user-data", documents.user_data.as_slice()),
    ] {
        fs::write(dir.join(name), bytes)?;
    }
    let (mut own, mut other) = (Sample::default(), Sample::default());
    let (iso, other_iso) = (place.path().join("seed.iso"), place.path().join("other.iso"));
    let program = ["genisoimage", "xorriso"].into_iter().find(|program| machine::has(program));
    let arguments: &[&str] = match program {
        Some("xorriso") => &["-as", "mkisofs"],
        _ => &[],
    };
    for _ in 0..TIMES {
        let begun = Instant::now();
        let documents = documents::documents(vm, &identity).ok_or("no seed")?;
        file::write_if_changed(&iso, &documents::image(&documents)?, 0o600)?;
        own.push(begun.elapsed());
        fs::remove_file(&iso)?;
        if let Some(program) = program {
            let mut command = Command::new(program);
            command.args(arguments).args(["-quiet", "-V", "cidata", "-J", "-r", "-o"]);
            command.arg(&other_iso).arg(&dir).stdout(Stdio::null()).stderr(Stdio::null());
            other.push(timed(&mut command)?);
            fs::remove_file(&other_iso)?;
        }
    }
    let limit = std::time::Duration::from_millis(2);
    let figure = Figure {
        beside: program
            .map_or("no genisoimage, no xorriso".into(), |program| format!("{program} {other}")),
        ..Figure::alone(
            "seed ISO, made and on disk",
            "2 ms",
            time(own.median()),
            own.median() <= limit,
        )
    };
    Ok(figure.extra())
}

/// A qcow2 image full of noise: nothing to be left out or packed.
fn image(dir: &Path) -> Outcome<PathBuf> {
    let (raw, image) = (dir.join("image.raw"), dir.join("image.qcow2"));
    let mut noise = io::Read::take(File::open("/dev/urandom")?, (MIB as u64) << 20);
    io::copy(&mut noise, &mut File::create(&raw)?)?;
    timed(
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &image]),
    )?;
    fs::remove_file(&raw)?;
    Ok(image)
}

/// Serves one file on 127.0.0.1 to whoever asks, as long as the program runs.
fn serve(file: PathBuf) -> Outcome<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever goes away in the middle has a reason.
            let _ = answer(stream, &file);
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, file: &Path) -> io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    io::copy(&mut file, &mut stream).map(drop)
}
