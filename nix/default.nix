# Without flakes: `(import ./nix { }).package`, and `imports = [ ./nix/module.nix ];` in a
# configuration.
{
  pkgs ? import <nixpkgs> { },
}:
{
  package = pkgs.callPackage ./package.nix { };
  module = ./module.nix;
  vm-test = pkgs.testers.runNixOSTest ./vm-test.nix;
}
