# NixOS configurations of guests, evaluated beside the configuration of their host.
{ lib, pkgs }:
let
  # Defaults of a guest of qvm; `vm` has the keys of its VM file.
  defaults = name: vm: {
    imports = [ (pkgs.path + "/nixos/modules/profiles/qemu-guest.nix") ];
    nixpkgs.pkgs = lib.mkDefault pkgs;
    networking.hostName = lib.mkDefault name;
    # `qvm console` is the serial port.
    boot.kernelParams = [ "console=ttyS0" ];
    services.qemuGuest.enable = lib.mkDefault true;
    services.cloud-init.enable = lib.mkDefault (vm.cloudInit != null);
  };
in
{
  # The type of a guest's configuration. Its value is the configuration of the image, with file
  # systems and boot loader.
  type =
    vmOf:
    lib.mkOptionType {
      name = "nixosConfiguration";
      description = "NixOS configuration";
      descriptionClass = "noun";
      inherit (lib.types.deferredModule) check;
      merge =
        loc: defs:
        let
          name = lib.last loc;
          vm = vmOf name;
          guest = import (pkgs.path + "/nixos/lib/eval-config.nix") {
            system = null;
            prefix = loc;
            modules = [
              (defaults name vm)
            ]
            ++ map (def: lib.setDefaultModuleLocation def.file def.value) defs;
          };
          images = guest.config.system.build.images;
          image = if builtins.elem vm.firmware [ null "bios" ] then images.qemu else images.qemu-efi;
        in
        image.passthru.config;
    };

  # The path of the image of a configuration of that type.
  image = guest: "${guest.system.build.image}/${guest.image.filePath}";
}
