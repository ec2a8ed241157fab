# What nix/module.nix makes of a configuration of services.qvm.
{ vms, settings ? { } }:
let
  lib = import ./lib.nix;
  pkgs = {
    formats.toml = _: {
      type = lib.types.anything;
      generate = name: value: { inherit name value; __toString = _: "/store/${name}"; };
    };
    runCommand = name: _: script: { inherit name script; __toString = _: "/store/${name}"; };
    callPackage = _: _: "/store/qvm";
    qemu_kvm = "/store/qemu";
    coreutils = "/store/coreutils";
    systemd = "/store/systemd";
    runtimeShell = "/store/bash";
  };
  module = import ../../nix/module.nix { inherit config lib pkgs; };
  options = module.options.services.qvm;
  config.services.qvm = lib.given options "services.qvm" { enable = true; inherit settings vms; };
  made = module.config;
  units = made.systemd.services;
in
{
  # As they are rendered.
  files = builtins.mapAttrs (name: _: (builtins.head units."qvm@${name}".reloadTriggers).value) vms;
  etc = builtins.mapAttrs (_: file: file.source) made.environment.etc;
  assertions = map (one: one.message) (builtins.filter (one: !one.assertion) made.assertions);
  template = builtins.removeAttrs units."qvm@" [ ];
  names = builtins.attrNames units;
  restarts = builtins.attrNames (
    lib.filterAttrs (name: unit: builtins.match "qvm@.*" name != null && (unit.restartIfChanged || unit.stopIfChanged)) units
  );
}
