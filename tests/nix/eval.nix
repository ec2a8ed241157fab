# The output of nix/module.nix for definitions of services.qvm.
{
  vms ? { },
  guests ? { },
  settings ? { },
  # The paths of qvm and other programs.
  store ? "/store",
  # Whether a script is represented by its text instead of a path.
  scriptTexts ? false,
}:
let
  lib = import ./lib.nix;
  pkgs = {
    path = ./.;
    formats.toml = _: {
      generate = name: value: {
        inherit name value;
        __toString = _: "/store/${name}";
      };
    };
    runCommand = name: _: script: {
      inherit name script;
      __toString = _: "/store/${name}";
    };
    writeShellScript = name: text: if scriptTexts then text else "${store}/${name}";
    callPackage = _: _: "${store}/qvm";
    qemu_kvm = "${store}/qemu";
    coreutils = "${store}/coreutils";
  };
  module = import ../../nix/module.nix { inherit config lib pkgs; };
  options = module.options.services.qvm;
  made = module.config;
  # Definitions of the test override those of the module, which are defaults.
  merged = builtins.mapAttrs (
    name: vm: vm // (vms.${name} or { }) // { image = vm.image or { } // vms.${name}.image or { }; }
  ) made.services.qvm.vms;
  config = {
    services.qvm = lib.given options "services.qvm" {
      enable = true;
      inherit settings guests;
      vms = vms // merged;
    };
    systemd.package = "${store}/systemd";
  };

  # The definitions of a unit as NixOS writes them into its file or its drop-in.
  lines =
    section: values:
    lib.concatLines (
      [ "[${section}]" ]
      ++ builtins.concatLists (
        lib.mapAttrsToList (
          key: value: map (one: "${key}=${shown one}") (if builtins.isList value then value else [ value ])
        ) values
      )
    );
  shown = value: if builtins.isBool value then (if value then "true" else "false") else toString value;
  text =
    unit:
    lines "Unit" (
      unit.unitConfig or { }
      // lib.optionalAttrs (unit ? after) { After = toString unit.after; }
      // lib.optionalAttrs (unit ? restartTriggers) { X-Restart-Triggers = toString unit.restartTriggers; }
    )
    + lines "Service" (
      {
        Environment =
          lib.mapAttrsToList (key: value: builtins.toJSON "${key}=${value}") unit.environment or { }
          ++ [
            # Every unit of NixOS has a PATH.
            (builtins.toJSON "PATH=${
              lib.concatStringsSep ":" (
                map (package: "${package}/bin") (unit.path or [ ] ++ [ pkgs.coreutils config.systemd.package ])
              )
            }")
          ];
      }
      // lib.optionalAttrs (unit.reloadIfChanged or false) { X-ReloadIfChanged = true; }
      // unit.serviceConfig or { }
    );
  rendered = builtins.mapAttrs (
    _: unit: {
      dropIn = (unit.overrideStrategy or "asDropinIfExists") == "asDropin";
      text = text unit;
      reloadIfChanged = unit.reloadIfChanged or false;
      stopOnRemoval = unit.unitConfig.X-StopOnRemoval or true;
      path = unit.path or [ ];
      environment = unit.environment or { };
      script = unit.script or null;
      serviceConfig = unit.serviceConfig or { };
    }
  );
in
{
  # The VM files.
  files = builtins.mapAttrs (name: _: (builtins.head made.systemd.services."qvm@${name}".restartTriggers).value) (
    vms // made.services.qvm.vms
  );
  etc = builtins.mapAttrs (_: file: file.source) made.environment.etc;
  assertions = map (one: one.message) (builtins.filter (one: !one.assertion) made.assertions);
  units = rendered made.systemd.services;
  userUnits = rendered made.systemd.user.services;
  generators = made.systemd.generators;
  userGenerators = made.systemd.user.generators;
  systemPackages = made.environment.systemPackages;
  tmpfilesPackages = made.systemd.tmpfiles.packages;
  guests = builtins.mapAttrs (_: guest: {
    inherit (guest.given) prefix;
    modules = builtins.length guest.given.modules;
    cloudInit = (builtins.head guest.given.modules).services.cloud-init.enable;
  }) config.services.qvm.guests;
}
