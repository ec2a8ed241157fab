# A stand-in for nixpkgs' evaluation of a NixOS configuration: it returns what it was given.
{
  modules,
  prefix,
  system,
}:
{
  config.system.build.images =
    builtins.mapAttrs
      (variant: _: {
        passthru.config = {
          assertions = builtins.concatMap (module: module.assertions or [ ]) modules;
          given = { inherit modules prefix system; };
          system.build.image = "/store/${variant}";
          image.filePath = "nixos.qcow2";
        };
      })
      {
        qemu = null;
        qemu-efi = null;
      };
}
