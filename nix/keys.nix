# The keys of a VM file as options. Names, types and bounds are those of docs/qvm.toml.md. A key
# that is not set is not written, so that the program's own default applies.
{ lib }:
let
  inherit (lib) types;
  inherit (import ./types.nix { inherit lib; })
    key
    memory
    diskSize
    ready
    secretFile
    ;

  table = options: types.submodule { inherit options; };
  tables = options: types.attrsOf (table options);

  bool = key types.bool;
  text = key types.str;
  texts = key (types.listOf types.str);
  within = least: most: key (types.ints.between least most);
  one = words: key (types.enum words);
  digest =
    name: digits: base64:
    key (types.strMatching "(${name}:)?[0-9a-fA-F]{${toString digits}}|${name}-${base64}");
  # A path of the host, as a string: a path value (`./image.qcow2`) would be copied into the store.
  file = key types.str;

  image = {
    url = text "Address of the image: `https://`, `http://` or `file:///`.";
    path = file "An image that is a file of this host.";
    sha256 = digest "sha256" 64 "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=" "The SHA-256 of the file as it is published: hex digits, or `sha256-BASE64` as Nix prints it.";
    sha512 = digest "sha512" 128 "[A-Za-z0-9+/]{85}[AQgw]==" "The SHA-512 of the file as it is published: hex digits, or `sha512-BASE64`.";
    checksums = text "Address of a SHA256SUMS or SHA512SUMS file that lists the image by its name.";
    insecureNoChecksum = bool "Accept a download without a checksum.";
  };
  # A key of the first disk's image only.
  clone = one [ "copy" "overlay" ] "Whether the disk is a copy of the image, or contains only the differences from it.";

  nic = {
    mac = text "A unicast address. Without it, qvm chooses a stable one.";
    ip = text "The guest's address with its prefix length, passed on by cloud-init. Without it, DHCP.";
    gateway = text "The guest's gateway, in the network of `ip`.";
    dns = texts "The guest's name servers.";
    bridge = text "A bridge of the host. Without it, QEMU's user-mode network.";
    antiSpoof = bool "Drop frames of the guest that do not come from its own addresses. On by default with `bridge`.";
    forward = texts "Ports of the host that are forwarded into a user-mode network: `\"[ADDRESS:]HOSTPORT:GUESTPORT[/udp]\"`.";
  };
in
nic
// {
  description = text "One line about the VM.";
  autostart = bool "Start the VM with the host.";
  after = texts "Start after these VMs, and stop before them.";
  vcpu = within 1 255 "The number of vCPUs.";
  mem = key memory "The guest's memory, as in `\"4G\"`, or a number of MiB.";
  cpuWeight = within 1 10000 "The VM's share of CPU time relative to others (cgroup v2 `cpu.weight`).";
  cpuQuota = within 1 51200 "The limit of CPU time, in percent of one CPU.";
  cpu = key (table {
    pin = texts "CPUs of the host for the vCPUs: one list for each, as in `\"2-3\"`, or one for all.";
  }) "The vCPUs.";
  memoryMax = key memory "The limit of QEMU's memory.";
  ioWeight = within 1 10000 "The VM's share of disk time relative to others (cgroup v2 `io.weight`).";
  oomScoreAdjust = within (-1000) 1000 "`oom_score_adj` of QEMU (proc_pid_oom_score_adj(5)).";
  ready = key ready "When the VM counts as started.";
  readyTimeoutSec = within 1 86400 "The time limit for `ready`, in seconds.";
  readyFailure = one [ "continue" "fail" ] "What happens to a guest that is not ready in time.";
  hostShutdown = one [ "stop" "suspend" ] "Whether a shutdown of the host shuts the guest down or saves its state.";
  shutdownTimeoutSec = within 1 86400 "The time limit for a clean shutdown, in seconds.";
  accel = one [ "auto" "kvm" "tcg" ] "The accelerator.";
  firmware = one [ "bios" "uefi" "uefi-secure" ] "The firmware.";
  operators = texts "Users that may control the VM beside root, and groups as in `\"@admins\"`.";
  isolation = one [ "on" "strict" "off" ] "How strictly QEMU is isolated from the host and from other VMs.";
  onPanic = one [ "restart" "stop" "pause" ] "What happens after a panic of the guest's kernel.";
  onGuestReboot = one [ "apply" "reset" ] "Whether a reboot of the guest applies pending changes.";
  tapHeal = one [ "heal" "report" "off" ] "What happens when a tap loses its bridge.";
  diskSizeG = within 1 1048576 "The size of the first disk in GiB. It can only grow.";
  image = key (table (image // { inherit clone; })) "The image that the first disk is made from, once.";

  disk = key (tables {
    size = key diskSize "The size, as in `\"20G\"`. It can only grow.";
    format = one [ "qcow2" "raw" ] "The format of the file.";
    path = file "A disk file of your own.";
    device = file "A block device.";
    inherit clone;
    bus = one [ "virtio" "sata" "nvme" ] "The bus in the guest.";
    media = one [ "disk" "cdrom" ] "The medium in the guest.";
    readOnly = bool "Attach the disk read-only.";
    image = key (table image) "The image that the disk is made from, once.";
  }) "Disks by name. `root` is the first.";

  nic = key (tables (
    nic
    // {
      mtu = within 576 65535 "The MTU behind a bridge.";
      isolated = bool "Isolate the NIC from other isolated NICs of the bridge.";
      model = one [ "virtio" "e1000e" ] "The model of the NIC in the guest.";
      link = one [ "up" "down" ] "The state of the link in the guest.";
      tap = text "The name of the host's interface.";
    }
  )) "NICs by name. `net` is the first. An empty set is a VM without network.";

  display = key (table {
    vnc = text "Where the screen is served by VNC: `\"unix\"`, or a loopback address and port as in `\"127.0.0.1:5901\"`.";
    passwordFile = key secretFile "File on the host with the password for a port.";
  }) "The guest's screen. An empty set is a screen that is not served.";

  cloudInit = key (table {
    hostname = text "The guest's host name.";
    user = text "An account with sudo.";
    sshAuthorizedKeys = texts "SSH keys that may log in to that account.";
    passwordHash = text "Refused, since every user can read the Nix store. Use `userData`.";
    userData = key secretFile "File on the host with your own user-data, such as a secret in `/run`, read at the start of the VM.";
  }) "The contents of the NoCloud seed. An empty set is a seed with defaults.";
}
