# Option types of the VM file: they accept the values that `qvm check` accepts.
{ lib }:
let
  inherit (lib) types;

  # A type that also calls `check`; `description` is part of the module system's error messages.
  restrict =
    type: description: check:
    types.addCheck type check // {
      inherit description;
      descriptionClass = "noun";
    };

  # Whether "4G" is at least `least` and at most `most` KiB, and a multiple of `step` KiB.
  isSize =
    {
      least,
      most,
      step ? 1,
    }:
    text:
    let
      parts = builtins.match "0*([0-9]{1,13})([KkMmGgTt]|[KMGT]iB)" text;
      number = lib.toIntBase10 (builtins.elemAt parts 0);
      unit =
        {
          k = 1;
          m = 1024;
          g = 1024 * 1024;
          t = 1024 * 1024 * 1024;
        }
        .${lib.toLower (builtins.substring 0 1 (builtins.elemAt parts 1))};
    in
    # The first comparison also excludes an overflow of the others.
    parts != null
    && number <= most / unit
    && number * unit >= least
    && lib.mod (number * unit) step == 0;

  mib = 1024;
  tib = 1024 * 1024 * 1024;
  # An option that is not set unless the configuration sets it.
  key =
    type: description:
    lib.mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  digest =
    name: digits: base64:
    types.strMatching "(${name}:)?[0-9a-fA-F]{${toString digits}}|${name}-${base64}";
in
{
  inherit key;

  # Options of the usual types. A path of the host is a string: a path value (`./image.qcow2`) would
  # be copied into the store.
  bool = key types.bool;
  text = key types.str;
  texts = key (types.listOf types.str);
  within = least: most: key (types.ints.between least most);
  one = words: key (types.enum words);
  table = description: options: key (types.submodule { inherit options; }) description;
  tables =
    description: options: key (types.attrsOf (types.submodule { inherit options; })) description;

  sha256 = digest "sha256" 64 "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=";
  sha512 = digest "sha512" 128 "[A-Za-z0-9+/]{85}[AQgw]==";

  memory =
    restrict (types.either types.int types.str)
      "size from 16M to 16T in whole MiB, as in \"4G\", or a number of MiB"
      (
        value:
        if builtins.isInt value then
          value >= 16 && value <= 16 * tib / mib
        else
          isSize {
            least = 16 * mib;
            most = 16 * tib;
            step = mib;
          } value
      );

  reserve =
    restrict (types.either types.ints.unsigned types.str)
      "size up to 1024T, as in \"4G\", or a number of MiB"
      (
        value:
        builtins.isInt value
        || isSize {
          least = 0;
          most = 1024 * tib;
        } value
      );

  diskSize = restrict types.str "size from 1M to 1024T, as in \"20G\"" (isSize {
    least = mib;
    most = 1024 * tib;
  });

  bandwidth = restrict types.str "size from 64K to 512T, as in \"50M\"" (isSize {
    least = 65536;
    most = 512 * tib;
  });

  sectorSize = types.enum [
    512
    4096
  ];

  ready = restrict types.str "one of \"running\", \"agent\", \"cloud-init\", \"tcp:PORT\"" (
    text:
    let
      port = builtins.match "tcp:0*([0-9]{1,5})" text;
      number = lib.toIntBase10 (builtins.head port);
    in
    builtins.elem text [
      "running"
      "agent"
      "cloud-init"
    ]
    || port != null && number >= 1 && number <= 65535
  );

  uidRange = restrict types.str "range of user IDs from 1000 on, as in \"1900000000-1900065535\"" (
    text:
    let
      parts = builtins.match "0*([0-9]{1,10})-0*([0-9]{1,10})" text;
      ends = map lib.toIntBase10 parts;
      first = builtins.elemAt ends 0;
      last = builtins.elemAt ends 1;
      contains = uid: first <= uid && uid <= last;
    in
    parts != null
    && first >= 1000
    && last >= first
    && last < 4294967295
    && !contains 65534
    && !contains 65535
  );

  # A file that must not be in the store, where every user can read it. Older nixpkgs have no
  # `externalPath`.
  secretFile =
    types.externalPath or (restrict types.str "absolute path not in the Nix store" (
      text: lib.hasPrefix "/" text && !lib.hasPrefix "${builtins.storeDir}/" text
    ));
}
