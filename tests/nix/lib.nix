# As much of nixpkgs' `lib` and of its module system as nix/module.nix uses, for a test on a machine that has no nixpkgs. A value of a
# type is checked as nixpkgs checks it; what is used beyond this is an error of the evaluation.
rec {
  inherit (builtins) mapAttrs concatStringsSep isAttrs;

  mkOption = option: option // { _type = "option"; };
  mkEnableOption = what: mkOption { type = types.bool; default = false; description = "Whether to enable ${what}."; };
  mkIf = condition: content: if condition then content else { };
  literalExpression = text: text;
  nameValuePair = name: value: { inherit name value; };
  mapAttrs' = f: set: builtins.listToAttrs (map (name: f name set.${name}) (builtins.attrNames set));
  optionalString = yes: text: if yes then text else "";
  optionalAttrs = yes: set: if yes then set else { };
  mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
  filterAttrs =
    keep: set:
    builtins.listToAttrs (
      map (name: nameValuePair name set.${name}) (
        builtins.filter (name: keep name set.${name}) (builtins.attrNames set)
      )
    );

  # A type takes where it is and a value, and gives the value back, with defaults in it.
  types = rec {
    check =
      what: ok: at: value:
      if ok value then value else throw "${at}: ${builtins.toJSON value} is not ${what}";
    anything = check "anything" (_: true);
    package = anything;
    bool = check "a boolean" builtins.isBool;
    str = check "a string" builtins.isString;
    enum = words: check "one of ${builtins.toJSON words}" (value: builtins.elem value words);
    strMatching = pattern: check "as ${pattern}" (value: builtins.isString value && builtins.match pattern value != null);
    ints = {
      between = least: most: check "a number from ${toString least} to ${toString most}" (
        value: builtins.isInt value && value >= least && value <= most
      );
      unsigned = check "a number from 0" (value: builtins.isInt value && value >= 0);
      positive = check "a positive number" (value: builtins.isInt value && value > 0);
    };
    nullOr = type: at: value: if value == null then null else type at value;
    either =
      one: other: at: value:
      if (builtins.tryEval (builtins.deepSeq (one at value) true)).success then one at value else other at value;
    listOf =
      type: at: value:
      if builtins.isList value then map (type at) value else throw "${at}: ${builtins.toJSON value} is not a list";
    attrsOf =
      type: at: value:
      if builtins.isAttrs value then
        builtins.mapAttrs (name: type "${at}.${name}") value
      else
        throw "${at}: ${builtins.toJSON value} is not a set";
    submodule =
      module: at: value:
      if builtins.isAttrs value then
        builtins.mapAttrs (name: module.freeformType "${at}.${name}") (
          builtins.removeAttrs value (builtins.attrNames module.options)
        )
        // builtins.mapAttrs (
          name: option: option.type "${at}.${name}" (value.${name} or option.default)
        ) module.options
      else
        throw "${at}: ${builtins.toJSON value} is not a set";
  };

  # The options of a module with the values of a configuration.
  given =
    options: at: values:
    types.submodule { inherit options; freeformType = at: _: throw "there is no option ${at}"; } at values;
}
