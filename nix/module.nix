# services.qvm: VMs as they are in VM files, checked when the system is built.
#
# The VM files land in /etc/qvm/vms, and qvm's own generator makes the units from them, as on every other system. What is here beside
# is what NixOS has of its own: that a `switch` stops no guest, and that the store keeps what a running QEMU may need.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.qvm;
  toml = pkgs.formats.toml { };
  keys = import ./keys.nix { inherit lib; freeform = toml.type; };

  # Only what is set is written. A table that is set and empty is written: it means something.
  written =
    value:
    if builtins.isAttrs value then
      lib.mapAttrs (_: written) (lib.filterAttrs (_: inner: inner != null) value)
    else
      value;
  vmFile = name: vm: toml.generate "${name}.toml" (written vm);

  settings = written cfg.settings;
  hostFile = toml.generate "qvm.toml" settings;

  # Beside each other, since what one of them takes another one cannot have.
  checked =
    pkgs.runCommand "qvm-vms"
      {
        nativeBuildInputs = [ cfg.package ];
      }
      ''
        mkdir -p $out/vms
        ${lib.concatStringsSep "\n" (
          lib.mapAttrsToList (name: vm: "cp ${vmFile name vm} $out/vms/${name}.toml") cfg.vms
        )}
        ${lib.optionalString (settings != { }) "cp ${hostFile} $out/qvm.toml"}
        qvm --config-dir $out --state-dir . --runtime-dir . check --no-user-data
      '';

  roots = "/nix/var/nix/gcroots/qvm";
  # Where a newer supervisor is found by one that replaces itself.
  qvm = "/run/current-system/sw/bin/qvm";
in
{
  options.services.qvm = {
    enable = lib.mkEnableOption "qvm, virtual machines by QEMU without libvirt";
    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The qvm to use.";
    };
    qemu = lib.mkOption {
      type = lib.types.package;
      default = pkgs.qemu_kvm;
      defaultText = lib.literalExpression "pkgs.qemu_kvm";
      description = "The QEMU to use. A guest that runs stays on the one that it was started with.";
    };
    settings = lib.mkOption {
      type = lib.types.submodule {
        freeformType = toml.type;
        options = import ./host-keys.nix { inherit lib; };
      };
      default = { };
      example = { reserveMem = "4G"; admission = "wait"; };
      description = "The host's settings for all VMs, with the keys of qvm.toml (docs/host.toml.md).";
    };
    vms = lib.mkOption {
      type = lib.types.attrsOf (
        lib.types.submodule {
          freeformType = toml.type;
          options = keys;
        }
      );
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
        VMs by name, with the keys of the VM file (docs/qvm.toml.md). A change is never applied to a running guest by stopping it: what counts at
        once does so, and `qvm status` shows the rest as pending. A VM that is taken out goes on until `qvm gc`.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = lib.mapAttrsToList (name: vm: {
      assertion = (vm.cloudInit.passwordHash or null) == null;
      message = "services.qvm.vms.${name}.cloudInit.passwordHash would be in the store, where everybody reads it: write it into a file outside, and its path to cloudInit.userData";
    }) cfg.vms;

    environment.systemPackages = [ cfg.package ];
    environment.etc =
      lib.mapAttrs' (
        name: _: lib.nameValuePair "qvm/vms/${name}.toml" { source = "${checked}/vms/${name}.toml"; }
      ) cfg.vms
      // lib.optionalAttrs (settings != { }) { "qvm/qvm.toml".source = "${checked}/qvm.toml"; };

    users.groups.qvm = { };
    systemd.packages = [ cfg.package ];
    systemd.generators.qvm-generator = "${cfg.package}/lib/systemd/system-generators/qvm-generator";
    systemd.tmpfiles.rules = [
      "d /run/qvm 2750 root qvm -"
      "d /var/lib/qvm 2750 root qvm -"
      "d ${roots} 0755 root root -"
    ];

    systemd.services = {
      # Every VM's unit: never restarted by a switch, whatever has changed in it.
      "qvm@" = {
        overrideStrategy = "asDropin";
        restartIfChanged = false;
        stopIfChanged = false;
        environment.QVM_QEMU = "${cfg.qemu}/bin/qemu-system-x86_64";
        path = [ cfg.qemu ];
        serviceConfig = {
          ExecStart = [
            ""
            "${qvm} run %i"
          ];
          # What QEMU has open the collector finds by itself in /proc. What it may open later, as for a device that is added, it cannot
          # know of: so what the guest was started with stays for as long as it runs.
          ReadWritePaths = "-${roots}";
          ExecStartPre = "${pkgs.coreutils}/bin/ln -sfn ${cfg.qemu} ${roots}/%i";
          ExecStopPost = [
            ""
            "${qvm} reap %i"
            "${pkgs.runtimeShell} -c '[ -e /run/qvm/%i/record.json ] || rm -f ${roots}/%i'"
          ];
        };
      };
      # By the path that a switch leads to the newer program.
      qvm-network = {
        overrideStrategy = "asDropin";
        serviceConfig.ExecStart = [
          ""
          "${qvm} lend"
        ];
      };
      # A newer qvm takes over from the supervisors that run, in their places; no guest notices.
      qvm-replace = {
        description = "Newer supervisors for the virtual machines of qvm";
        wantedBy = [ "multi-user.target" ];
        restartTriggers = [ cfg.package ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
        };
        script = ''
          ${pkgs.systemd}/bin/systemctl list-units --plain --no-legend --state=running 'qvm@*.service' | while read -r unit _; do
            ${pkgs.systemd}/bin/systemctl kill --kill-whom=main --signal=SIGUSR2 "$unit" || true
          done
        '';
      };
    }
    // lib.mapAttrs' (
      name: vm:
      lib.nameValuePair "qvm@${name}" {
        overrideStrategy = "asDropin";
        restartIfChanged = false;
        stopIfChanged = false;
        # `qvm reload`: weights and the like at once, the rest is pending.
        reloadTriggers = [ (vmFile name vm) ];
      }
    ) cfg.vms;
  };
}
