# Without flakes: `(import ./nix { }).package`, and `imports = [ (import ./nix { }).module ];` in a configuration.
{
  pkgs ? import <nixpkgs> { },
}:
{
  package = pkgs.callPackage ./package.nix { };
  module = ./module.nix;
  vm-test = pkgs.testers.runNixOSTest ./vm-test.nix;
}
