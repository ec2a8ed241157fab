# nix/package.nix with a stand-in for nixpkgs: the arguments of the derivation.
let
  lib = import ./lib.nix;
  made = import ../../nix/package.nix {
    inherit lib;
    stdenv = {
      buildPlatform.canExecute = _: true;
      hostPlatform.rust.cargoShortTarget = "x86_64-unknown-linux-gnu";
    };
    buildPackages = { };
    rustPlatform.buildRustPackage = arguments: arguments;
    versionCheckHook = "versionCheckHook";
  };
in
{
  inherit (made)
    pname
    version
    meta
    installFlags
    dontCargoInstall
    ;
  # A path that does not exist cannot be in the source.
  sources = map builtins.pathExists made.src;
}
