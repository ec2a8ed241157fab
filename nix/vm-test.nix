# A NixOS host with a VM of qvm in it: it starts, a switch does not stop it, and the collector takes nothing that it needs. Run by
# `nix flake check`, which needs KVM; Debian's host is tested by `make test-host`.
{ pkgs, ... }:
let
  # A boot sector that counts on the serial port, and knows the power button.
  guest = pkgs.runCommand "boot-guest" { nativeBuildInputs = [ pkgs.binutils pkgs.qemu-utils ]; } ''
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
    services.qvm.vms.web = vm;
    virtualisation.memorySize = 2048;
    specialisation.changed.configuration.services.qvm.vms.web = {
      cpuWeight = 300;
      vcpu = 2;
    };
  };
  testScript = ''
    import json

    def status():
        return json.loads(host.succeed("qvm status --json web || true"))[0]

    host.wait_for_unit("qvm@web.service")
    host.wait_until_succeeds("qvm log web | grep -q BOOT-GUEST-READY")
    pid = status()["pid"]
    host.succeed("test -e /nix/var/nix/gcroots/qvm/web")

    host.succeed("/run/current-system/specialisation/changed/bin/switch-to-configuration test")
    host.wait_until_succeeds("[ $(systemctl show -P CPUWeight qvm@web) = 300 ]")
    after = status()
    assert after["pid"] == pid, "the switch has stopped the guest"
    assert [change["key"] for change in after["pending"]] == ["vcpu"], after["pending"]

    host.succeed("nix-collect-garbage")
    host.succeed("qvm reboot --force web")
    assert status()["pid"] == pid

    host.succeed("systemctl stop qvm@web")
    assert status()["lastStop"]["reason"] == "stopped"
    host.succeed("test ! -e /nix/var/nix/gcroots/qvm/web")
    host.shutdown()
  '';
}
