# The program, its units, generators, completions and documents; `make install` puts them in their places.
{
  lib,
  rustPlatform,
}:
let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;
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
  # They boot guests, and build them by mmdebstrap first: `make test`.
  doCheck = false;
  installPhase = ''
    runHook preInstall
    make install PREFIX=$out DESTDIR= BINARY="$(find target -path '*/release/qvm' -type f | head -n 1)"
    runHook postInstall
  '';
  meta = {
    description = manifest.description;
    license = with lib.licenses; [ mit asl20 ];
    platforms = [ "x86_64-linux" ];
    mainProgram = "qvm";
  };
}
