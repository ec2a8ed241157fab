# The module, the package and the NixOS test, evaluated with a real nixpkgs. Every attribute is one
# evaluation.
{
  nixpkgs,
  # Definitions of services.qvm.
  vms ? { },
  guests ? { },
  settings ? { },
}:
let
  system = "x86_64-linux";
  pkgs = import nixpkgs { inherit system; };
  ours = import ../../nix { inherit pkgs; };
  flake = (import ../../flake.nix).outputs {
    self = { };
    nixpkgs = { legacyPackages.${system} = pkgs; };
  };
  host =
    module:
    (import (nixpkgs + "/nixos/lib/eval-config.nix") {
      system = null;
      modules = [
        ours.module
        {
          nixpkgs.pkgs = pkgs;
          boot.loader.grub.device = "/dev/vda";
          fileSystems."/" = {
            device = "/dev/vda1";
            fsType = "ext4";
          };
          system.stateVersion = "25.11";
          services.qvm.enable = true;
        }
        module
      ];
    }).config;
  given = host { services.qvm = { inherit vms guests settings; }; };
in
{
  inherit (ours.package) version drvPath;
  # The options, and the messages of failed assertions: much faster than a whole system.
  options = {
    inherit (given.services.qvm) vms settings;
    failed = map (one: one.message) (builtins.filter (one: !one.assertion) given.assertions);
  };
  toplevel = given.system.build.toplevel.drvPath;
  # As written to files: by name, the `text` of the unit.
  units = builtins.mapAttrs (_: unit: unit.text) given.systemd.units;
  userUnits = builtins.mapAttrs (_: unit: unit.text) given.systemd.user.units;
  guestFacts = builtins.mapAttrs (_: guest: {
    inherit (guest.networking) hostName;
    cloudInit = guest.services.cloud-init.enable;
    virtioDisk = builtins.elem "virtio_blk" guest.boot.initrd.availableKernelModules;
    serialConsole = builtins.elem "console=ttyS0" guest.boot.kernelParams;
    # The system that `nixos-rebuild --target-host` would activate in the guest.
    toplevel = guest.system.build.toplevel.drvPath;
  }) given.services.qvm.guests;
  imagePaths = builtins.mapAttrs (_: vm: vm.image.path) given.services.qvm.vms;
  disabled = (host { services.qvm.enable = pkgs.lib.mkForce false; }).system.build.toplevel.drvPath;
  vmTest = ours.vm-test.driver.drvPath;
  flake = {
    package = flake.packages.${system}.default.drvPath;
    module = (host { imports = [ flake.nixosModules.default ]; }).system.build.toplevel.drvPath;
    check = flake.checks.${system}.vm-test.drvPath;
  };
  documentation =
    let
      evaluated = pkgs.lib.evalModules {
        modules = [
          ours.module
          {
            _module.check = false;
            _module.args = { inherit pkgs; };
          }
        ];
      };
    in
    (pkgs.nixosOptionsDoc { options = { inherit (evaluated.options) services; }; }).optionsJSON.drvPath;
}
