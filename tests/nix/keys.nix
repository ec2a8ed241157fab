# Every key with an option in nix/keys.nix and nix/host-keys.nix, as the documents write it.
let
  lib = import ./lib.nix // {
    # Types that show their parts.
    mkOption = option: option;
    types = (import ./lib.nix).types // {
      nullOr = type: type;
      attrsOf = type: { named = type; };
      submodule = module: { inherit (module) options; };
    };
  };
  below =
    at: options:
    builtins.concatLists (
      builtins.attrValues (
        builtins.mapAttrs (
          name: option:
          let
            type = option.type;
            named = builtins.isAttrs type && type ? named;
            inner = if named then type.named else type;
            path = "${at}${name}" + (if named then ".NAME" else "");
          in
          if builtins.isAttrs inner && inner ? options then below "${path}." inner.options else [ path ]
        ) options
      )
    );
in
{
  vm = below "" (import ../../nix/keys.nix { inherit lib; });
  host = below "" (import ../../nix/host-keys.nix { inherit lib; });
}
