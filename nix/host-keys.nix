# The keys of the host's settings as options, as docs/reference/host-settings.md describes them.
{ lib }:
let
  inherit (import ./types.nix { inherit lib; }) key reserve uidRange;
in
{
  reserveMem = key reserve "The part of the host's memory that guests do not get.";
  admission = key (lib.types.enum [ "refuse" "wait" "off" ]) "What happens to a start that exceeds the host's memory.";
  uidRange = key uidRange "The user IDs that QEMU processes may run as: the first and the last.";
}
