# A NixOS host with VMs of qvm: a switch to another configuration stops no guest, and the garbage
# collector removes nothing that a guest needs. Run by `nix flake check`, which needs KVM. `make
# test-host` tests a Debian host.
{ pkgs, lib, ... }:
let
  # A boot sector that counts on the serial port, and reacts to the power button.
  guest =
    pkgs.runCommand "boot-guest"
      {
        nativeBuildInputs = [
          pkgs.binutils
          pkgs.qemu-utils
        ];
      }
      ''
        mkdir $out
        bash ${../tests/guest/boot}/build $out
      '';
  vm = {
    accel = "tcg";
    mem = "64M";
    autostart = true;
    image.path = "${guest}/boot-count.qcow2";
  };
in
{
  name = "qvm";
  nodes.host = {
    imports = [ ./module.nix ];
    services.qvm.enable = true;
    services.qvm.vms = {
      web = vm;
      db = vm;
    };
    virtualisation.memorySize = 2048;
    specialisation = {
      changed.configuration.services.qvm.vms.web = {
        cpuWeight = 300;
        vcpu = 2;
      };
      # Another QEMU and another live key at once.
      upgraded.configuration.services.qvm = {
        qemu = pkgs.qemu_test;
        vms.web.cpuWeight = 400;
      };
      removed.configuration.services.qvm.vms = lib.mkForce { db = vm; };
    };
  };
  testScript =
    { nodes, ... }:
    let
      inherit (nodes.host.system.build) toplevel;
    in
    ''
      import json

      def status(name="web"):
          return json.loads(host.succeed(f"qvm status --json {name} || true"))[0]

      def switch(specialisation):
          host.succeed(f"${toplevel}/specialisation/{specialisation}/bin/switch-to-configuration test")

      for name in ["web", "db"]:
          host.wait_for_unit(f"qvm@{name}.service")
          host.wait_until_succeeds(f"qvm log {name} | grep -q BOOT-GUEST-READY")
      doctor = json.loads(host.execute("qvm doctor --json")[1])
      assert [one["level"] for one in doctor if one["about"] == "qemu"] == ["ok"], doctor
      pid = status()["pid"]
      other = status("db")["pid"]

      with subtest("a switch applies live keys and leaves the rest pending"):
          switch("changed")
          host.wait_until_succeeds("[ $(systemctl show -P CPUWeight qvm@web) = 300 ]")
          after = status()
          assert after["pid"] == pid, "the switch has stopped the guest"
          assert [change["key"] for change in after["pending"]] == ["vcpu"], after["pending"]

      with subtest("a switch to another QEMU applies live keys as well"):
          switch("upgraded")
          host.wait_until_succeeds("[ $(systemctl show -P CPUWeight qvm@web) = 400 ]")
          assert status()["pid"] == pid, "the switch has stopped the guest"
          assert status("db")["pid"] == other, "the switch has stopped the guest"

      with subtest("a VM that is removed from the configuration keeps running"):
          switch("removed")
          host.succeed(f"kill -0 {pid}")
          host.fail("test -e /etc/qvm/vms/web.toml")

      with subtest("the garbage collector keeps what running guests need"):
          host.succeed("${toplevel}/bin/switch-to-configuration test")
          host.succeed("ls /nix/var/nix/gcroots/qvm/web@*")
          host.succeed("nix-collect-garbage")
          host.succeed("qvm reboot --force web")
          assert status()["pid"] == pid, "the garbage collection has stopped the guest"

      with subtest("a stop removes the roots"):
          host.succeed("systemctl stop qvm@web")
          assert status()["lastStop"]["reason"] == "stopped"
          host.fail("ls /nix/var/nix/gcroots/qvm/web@*")
          host.succeed("ls /nix/var/nix/gcroots/qvm/db@*")
      host.shutdown()
    '';
}
