# The qvm program. `make install` puts the units, generators, completions and documents in place.
{
  lib,
  stdenv,
  buildPackages,
  rustPlatform,
  versionCheckHook,
}:
let
  manifest = lib.importTOML ../Cargo.toml;
in
rustPlatform.buildRustPackage {
  pname = manifest.package.name;
  inherit (manifest.workspace.package) version;
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../CHANGELOG.md
      ../LICENSE-APACHE
      ../LICENSE-MIT
      ../Makefile
      ../README.md
      ../bench
      ../docs
      ../examples
      ../qmp
      ../src
      ../systemd
      ../tests
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;
  # The tests boot guests that mmdebstrap builds: `make test`.
  doCheck = false;

  # The default install phase runs `make install`, which also prints the manual pages.
  dontCargoInstall = true;
  installFlags = [
    "PREFIX=${placeholder "out"}"
    "BINARY=target/${stdenv.hostPlatform.rust.cargoShortTarget}/release/qvm"
  ]
  ++ lib.optional (
    !stdenv.buildPlatform.canExecute stdenv.hostPlatform
  ) "EMULATOR=${stdenv.hostPlatform.emulator buildPackages}";

  doInstallCheck = true;
  nativeInstallCheckInputs = [ versionCheckHook ];

  meta = {
    inherit (manifest.package) description;
    license = [
      lib.licenses.mit
      lib.licenses.asl20
    ];
    platforms = [ "x86_64-linux" ];
    mainProgram = "qvm";
  };
}
