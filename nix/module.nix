# services.qvm: VMs with the keys of the VM file, checked when the system is built.
#
# The VM files are in /etc/qvm/vms, and the generator of qvm makes the units from them, as on every
# other system. This module adds what is specific to NixOS: a `switch` stops no guest, and the store
# keeps the QEMU of running guests.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.qvm;
  inherit (lib) types;
  toml = pkgs.formats.toml { };
  guests = import ./guests.nix { inherit lib pkgs; };

  # Keys that are not set are not written. Empty tables are: they have a meaning.
  written = lib.filterAttrsRecursive (_: value: value != null);
  vmFiles = lib.mapAttrs (name: vm: toml.generate "${name}.toml" (written vm)) cfg.vms;
  settings = written cfg.settings;

  # By their paths below /etc/qvm.
  files =
    lib.mapAttrs' (name: lib.nameValuePair "vms/${name}.toml") vmFiles
    // lib.optionalAttrs (settings != { }) { "qvm.toml" = toml.generate "qvm.toml" settings; };
  # All files together, since VMs may conflict with each other.
  checked = pkgs.runCommand "qvm-files" { nativeBuildInputs = [ cfg.package ]; } ''
    mkdir -p $out/vms
    ${lib.concatLines (lib.mapAttrsToList (path: file: "cp ${file} $out/${lib.escapeShellArg path}") files)}
    qvm --config-dir $out --state-dir . --runtime-dir . check --no-user-data
  '';

  # The path of the program that a switch does not change: loaded units and running supervisors find
  # the new program there.
  qvm = "/etc/qvm/bin/qvm";

  # Garbage collector roots of the QEMUs that guests were started with. The collector itself finds
  # files that QEMU has open, but not those that QEMU opens later, such as the ROM of a new device.
  roots = "/nix/var/nix/gcroots/qvm";
  root = "${roots}/$1@${baseNameOf cfg.qemu}";
  addRoot = pkgs.writeShellScript "qvm-add-root" ''
    ${pkgs.coreutils}/bin/ln -sfn ${cfg.qemu} "${root}"
  '';
  # All roots of the VM: a supervisor that was restarted after a switch has added one for the new
  # QEMU. They stay unless qvm proves that no QEMU of the VM is running.
  removeRoots = pkgs.writeShellScript "qvm-remove-roots" ''
    if ${qvm} exec-stop-post --probe "$1" 2>/dev/null; then
      ${pkgs.coreutils}/bin/rm -f ${roots}/"$1"@*
    fi
  '';

  qemuUnit = {
    overrideStrategy = "asDropin";
    # A switch reloads the unit whatever has changed in it, and never restarts it.
    reloadIfChanged = true;
    stopIfChanged = false;
    environment.QVM_QEMU = lib.getExe' cfg.qemu "qemu-system-x86_64";
    path = [ cfg.qemu ];
  };
  # For the template and for each declared VM: NixOS calls both drop-ins overrides.conf, and systemd
  # reads only the instance's.
  vmUnit = qemuUnit // {
    after = [ "qvm-replace.service" ];
    serviceConfig = {
      ExecStart = [
        ""
        "${qvm} run %i"
      ];
      ExecReload = [
        ""
        "${qvm} reload %i"
      ];
      ExecStartPre = "${addRoot} %i";
      ExecStopPost = [
        ""
        "${qvm} exec-stop-post %i"
        "${removeRoots} %i"
      ];
      ReadWritePaths = "-${roots}";
    };
  };

  label = "[a-z][a-z0-9-]{0,15}";
  # Assertions about the names in a table of the VM.
  labelled =
    vm: key: what: table:
    lib.mapAttrsToList (name: _: {
      assertion = builtins.match label name != null;
      message = "services.qvm.vms.${vm}.${key}.${lib.strings.escapeNixIdentifier name}: invalid name of a ${what}: use 1 to 16 of a-z, 0-9 and `-`, a letter first";
    }) (if table == null then { } else table);
in
{
  options.services.qvm = {
    enable = lib.mkEnableOption "qvm, a supervisor of QEMU virtual machines";
    package = lib.mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The qvm package to use.";
    };
    qemu = lib.mkOption {
      type = types.package;
      default = pkgs.qemu_kvm;
      defaultText = lib.literalExpression "pkgs.qemu_kvm";
      description = "The QEMU package to use. A running guest stays on the QEMU that it was started with.";
    };
    settings = lib.mkOption {
      type = types.submodule { options = import ./host-keys.nix { inherit lib; }; };
      default = { };
      example = {
        reserveMem = "4G";
        admission = "wait";
      };
      description = "The host's settings for all VMs, with the keys of qvm.toml (docs/reference/host-settings.md).";
    };
    vms = lib.mkOption {
      type = types.attrsOf (types.submodule { options = import ./keys.nix { inherit lib; }; });
      default = { };
      example = lib.literalExpression ''
        {
          web = {
            autostart = true;
            mem = "4G";
            diskSizeG = 20;
            bridge = "br0";
            image.path = "/srv/images/debian-13-genericcloud-amd64.qcow2";
            cloudInit.userData = "/run/secrets/web.user-data.yaml";
          };
        }
      '';
      description = ''
        VMs by name, with the keys of the VM file (docs/reference/vm-file.md). A switch stops no running guest: it applies live keys, and
        `qvm status` shows other changes as pending. A VM that is removed from the configuration runs until `qvm gc` or a shutdown.
      '';
    };
    guests = lib.mkOption {
      type = types.attrsOf (guests.type (name: cfg.vms.${name}));
      default = { };
      example = lib.literalExpression ''
        {
          web = {
            services.nginx.enable = true;
            networking.firewall.allowedTCPPorts = [ 80 ];
            system.stateVersion = "26.05";
          };
        }
      '';
      description = ''
        NixOS configurations of guests by the name of the VM. The default of the VM's `image.path` is an image of that configuration.
        qvm makes the VM's disk from the image once: a later change of the configuration does not change an existing disk.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = lib.concatLists (
      lib.mapAttrsToList (
        name: vm:
        [
          {
            assertion =
              builtins.match "[a-z0-9]([a-z0-9-]*[a-z0-9])?" name != null && builtins.stringLength name <= 63;
            message = "services.qvm.vms.${lib.strings.escapeNixIdentifier name}: invalid name of a VM: use 1 to 63 of a-z, 0-9 and `-`, with a letter or digit at both ends";
          }
          {
            assertion = vm.cloudInit.passwordHash or null == null;
            message = "services.qvm.vms.${name}.cloudInit.passwordHash: every user can read the Nix store: write the hash into a file outside of the store, and set cloudInit.userData to the path of that file";
          }
        ]
        ++ labelled name "disk" "disk" vm.disk
        ++ labelled name "nic" "NIC" vm.nic
      ) cfg.vms
      # Else the message of a guest's assertion does not contain the name of the guest.
      ++ lib.mapAttrsToList (
        name: guest:
        map (one: one // { message = "services.qvm.guests.${name}: ${one.message}"; }) guest.assertions
      ) cfg.guests
    );

    services.qvm.vms = lib.mapAttrs (_: guest: {
      image.path = lib.mkDefault (guests.image guest);
    }) cfg.guests;

    environment.systemPackages = [
      cfg.package
      cfg.qemu
    ];
    environment.etc =
      {
        "qvm/bin".source = "${cfg.package}/bin";
      }
      // lib.mapAttrs' (
        path: _: lib.nameValuePair "qvm/${path}" { source = "${checked}/${path}"; }
      ) files;

    boot.kernelModules = [
      "tun"
      "vhost_net"
    ];
    users.groups.qvm = { };

    systemd = {
      packages = [ cfg.package ];
      generators.qvm-generator = "${cfg.package}/lib/systemd/system-generators/qvm-generator";
      user.generators.qvm-generator = "${cfg.package}/lib/systemd/user-generators/qvm-generator";
      tmpfiles.packages = [ cfg.package ];
      tmpfiles.settings."10-qvm-roots".${roots}.d = {
        mode = "0755";
        user = "root";
        group = "root";
      };

      services = {
        "qvm@" = vmUnit;
        qvm-network = {
          overrideStrategy = "asDropin";
          serviceConfig.ExecStart = [
            ""
            "${qvm} lend"
          ];
        };
        # A new program replaces the supervisors of running VMs, without an effect on the guests.
        qvm-replace = {
          description = "Replacement of the supervisors of virtual machines";
          wantedBy = [ "multi-user.target" ];
          restartTriggers = [ cfg.package ];
          path = [ config.systemd.package ];
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
          };
          script = ''
            systemctl list-units --plain --no-legend --state=running 'qvm@*.service' | while read -r unit _; do
              pid=$(systemctl show --property=MainPID --value "$unit")
              if [ "$pid" != 0 ] && ! [ "/proc/$pid/exe" -ef ${cfg.package}/bin/qvm ]; then
                systemctl kill --kill-whom=main --signal=SIGUSR2 "$unit" || true
              fi
            done
          '';
        };
      }
      // lib.mapAttrs' (
        name: file:
        lib.nameValuePair "qvm@${name}" (
          vmUnit
          // {
            # A change of the VM file alone changes the unit, too. With `reloadIfChanged` it is a
            # reload.
            restartTriggers = [ file ];
            # A VM that is removed from the configuration keeps running. Not for the template: with
            # `enable = false`, guests would run on under units that no longer exist.
            unitConfig.X-StopOnRemoval = false;
          }
        )
      ) vmFiles;

      # VMs of users, which run under the users' own service managers.
      user.services."qvm@" = qemuUnit;
    };
  };
}
