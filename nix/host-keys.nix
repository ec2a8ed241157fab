# The keys of the host's settings as options, as docs/host.toml.md has them. What is not set is not written.
{ lib }:
let
  inherit (lib) types;

  key =
    type: description:
    lib.mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
in
{
  reserveMem = key (types.either types.ints.unsigned types.str) "How much of the host's memory guests do not get.";
  admission = key (types.enum [ "refuse" "wait" "off" ]) "What becomes of a start that the host's memory is not enough for.";
  uidRange = key types.str "The user ids that QEMUs may run as: the first and the last.";
}
