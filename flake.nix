{
  description = "qvm: a direct QEMU process supervisor";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { nixpkgs, ... }:
    let
      system = "x86_64-linux";
      ours = import ./nix { pkgs = nixpkgs.legacyPackages.${system}; };
    in
    {
      packages.${system}.default = ours.package;
      nixosModules.default = ours.module;
      checks.${system}.vm-test = ours.vm-test;
    };
}
