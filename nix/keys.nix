# The keys of a VM file as options: the names, the types and the bounds are those of docs/qvm.toml.md, which tells what they mean.
# What is not set is not written, so that qvm's own defaults hold. Keys of a later qvm may be written as well: they are passed on.
{ lib, freeform }:
let
  inherit (lib) types;

  key =
    type: description:
    lib.mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  table = options: types.submodule { freeformType = freeform; inherit options; };
  tables = options: types.nullOr (types.attrsOf (table options));

  bool = key types.bool;
  text = key types.str;
  texts = key (types.listOf types.str);
  within = least: most: key (types.ints.between least most);
  one = words: key (types.enum words);
  size = key (types.either types.ints.positive types.str);
  # A path of the host as a string. A path of Nix's own (`./image.qcow2`) would be copied into the store, where everybody reads it.
  file = key types.str;

  image = {
    url = text "Where the image is published: `https://`, `http://` or `file:///`.";
    path = file "An image that is a file of this host.";
    sha256 = text "The SHA-256 of the file as it is published: hex digits, or `sha256-BASE64` as Nix prints it.";
    sha512 = text "The SHA-512 of the file as it is published, in hex.";
    checksums = text "Address of a SHA256SUMS or SHA512SUMS file that lists the image by its name.";
    insecureNoChecksum = bool "Take a download without knowing its checksum.";
  };
  # Said of the first disk only.
  clone = one [ "copy" "overlay" ] "Whether the disk is a copy of the image, or holds what differs from it.";

  nic = {
    mac = text "A unicast address; without it a stable one of qvm's choice.";
    ip = text "The guest's address with its prefix length, told to it by cloud-init; without it DHCP.";
    gateway = text "The guest's gateway, in the net of `ip`.";
    dns = texts "The guest's name servers.";
    bridge = text "A bridge of the host; without it, QEMU's user-mode network.";
    antiSpoof = bool "Let nothing out of the guest but from its own addresses; on behind a bridge.";
    forward = texts "Ports of the host that lead into a user-mode network: `\"[ADDRESS:]HOSTPORT:GUESTPORT[/udp]\"`.";
  };
in
nic
// {
  description = text "One line about the VM.";
  autostart = bool "Start the VM with the host.";
  after = texts "Start after these VMs, and stop before them.";
  vcpu = within 1 255 "How many vCPUs.";
  mem = size "The guest's memory, as in `\"4G\"`, or a number of MiB.";
  cpuWeight = within 1 10000 "The VM's part of the CPU time beside others (cgroup v2 `cpu.weight`).";
  cpuQuota = within 1 51200 "The most CPU time, in percent of one CPU.";
  cpu = key (table {
    pin = texts "CPUs of the host for the vCPUs: one list for each, as in `\"2-3\"`, or one for all.";
  }) "The vCPUs.";
  memoryMax = size "The most memory that QEMU may take of the host.";
  ioWeight = within 1 10000 "The VM's part of the disks' time beside others (cgroup v2 `io.weight`).";
  oomScoreAdjust = within (-1000) 1000 "How gladly the kernel ends this QEMU when memory runs out.";
  ready = key (types.strMatching "running|agent|cloud-init|tcp:[0-9]+") "When the VM counts as started.";
  readyTimeoutSec = within 1 86400 "How long that may take, in seconds.";
  readyFailure = one [ "continue" "fail" ] "What a guest that is not ready in time leads to.";
  hostShutdown = one [ "stop" "suspend" ] "Whether the guest is shut down or its state saved when the host goes down.";
  shutdownTimeoutSec = within 1 86400 "How long a clean shutdown may take, in seconds.";
  accel = one [ "auto" "kvm" "tcg" ] "What runs the guest's code.";
  firmware = one [ "bios" "uefi" "uefi-secure" ] "What the guest boots by.";
  operators = texts "Who may change the VM beside root: users, and groups as in `\"@admins\"`.";
  isolation = one [ "on" "strict" "off" ] "How far QEMU is kept apart from the host and from other VMs.";
  onPanic = one [ "restart" "stop" "pause" ] "What a panic of the guest's kernel leads to.";
  onGuestReboot = one [ "apply" "reset" ] "Whether pending changes are taken up when the guest reboots.";
  tapHeal = one [ "heal" "report" "off" ] "What follows when a tap loses its bridge.";
  diskSizeG = within 1 1048576 "The size of the first disk in GiB; it only grows.";
  image = key (table (image // { inherit clone; })) "What the first disk is made from, once.";

  disk = lib.mkOption {
    type = tables {
      size = text "As in `\"20G\"`; it only grows.";
      format = one [ "qcow2" "raw" ] "How bytes lie in the file.";
      path = file "A disk file of your own.";
      device = file "A block device.";
      inherit clone;
      bus = one [ "virtio" "sata" "nvme" ] "What the guest sees it at.";
      media = one [ "disk" "cdrom" ] "What the guest sees.";
      readOnly = bool "Nothing is written to it.";
      image = key (table image) "What the disk is made from, once.";
    };
    default = null;
    description = "Disks by name; `root` is the first.";
  };
  nic = lib.mkOption {
    type = tables (
      nic
      // {
        mtu = within 576 65535 "The MTU behind a bridge.";
        isolated = bool "Neither hear nor reach other isolated NICs of the bridge.";
        model = one [ "virtio" "e1000e" ] "What the guest sees.";
        link = one [ "up" "down" ] "Whether the guest sees a cable plugged in.";
        tap = text "The name of the host's interface.";
      }
    );
    default = null;
    description = "NICs by name; `net` is the first.";
  };

  display = key (table {
    vnc = text "Where its screen is served by VNC: `\"unix\"`, or a port of this host as in `\"127.0.0.1:5901\"`.";
    passwordFile = file "The password for a port; its path on the host.";
  }) "A screen for the guest; an empty set gives it one that nobody is shown.";

  cloudInit = key (table {
    hostname = text "The guest's host name.";
    user = text "An account with sudo.";
    sshAuthorizedKeys = texts "Who may log in there.";
    passwordHash = text "Not here: it would be in the store, where everybody reads it. Use `userData`.";
    userData = file "Path of your own user-data on the host, such as a secret's in `/run`; it is read when the VM is started.";
  }) "What the guest is told by a NoCloud seed; an empty set will do.";
}
