# The part of nixpkgs' `lib` and module system that nix/ uses, for a machine without nixpkgs. A
# value is checked like in nixpkgs; an unknown name fails the evaluation.
rec {
  inherit (builtins)
    mapAttrs
    concatStringsSep
    concatLists
    isAttrs
    ;

  mkOption = option: option // { _type = "option"; };
  mkEnableOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      description = "Whether to enable ${what}.";
    };
  mkIf = condition: content: if condition then content else { };
  # Definitions in the tests have no defaults to override.
  mkDefault = value: value;
  mkOptionType =
    {
      name,
      description,
      descriptionClass,
      check,
      merge,
    }:
    types.check description check
    // {
      __functor =
        _: at: value:
        if check value then
          merge (filter builtins.isString (builtins.split "\\." at)) [
            {
              file = "<test>";
              inherit value;
            }
          ]
        else
          throw "${at}: ${shown value} is not ${description}";
    };
  setDefaultModuleLocation = _: module: module;
  literalExpression = text: text;

  filter = builtins.filter;
  last = list: builtins.elemAt list (builtins.length list - 1);
  optional = yes: value: if yes then [ value ] else [ ];
  optionalAttrs = yes: set: if yes then set else { };
  concatLines = lines: builtins.concatStringsSep "" (map (line: line + "\n") lines);
  nameValuePair = name: value: { inherit name value; };
  mapAttrs' = f: set: builtins.listToAttrs (map (name: f name set.${name}) (builtins.attrNames set));
  mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
  filterAttrs =
    keep: set:
    builtins.listToAttrs (
      map (name: nameValuePair name set.${name}) (
        builtins.filter (name: keep name set.${name}) (builtins.attrNames set)
      )
    );
  filterAttrsRecursive =
    keep: set:
    mapAttrs (_: value: if isAttrs value then filterAttrsRecursive keep value else value) (
      filterAttrs keep set
    );

  hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
  toLower = builtins.replaceStrings [ "K" "M" "G" "T" ] [ "k" "m" "g" "t" ];
  toIntBase10 = text: builtins.fromJSON (builtins.head (builtins.match "0*([0-9]+)" text));
  mod = number: by: number - by * (number / by);
  escapeShellArg = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'";
  strings.escapeNixIdentifier =
    text: if builtins.match "[a-zA-Z_][a-zA-Z0-9_'-]*" text != null then text else builtins.toJSON text;
  getExe' = package: name: "${package}/bin/${name}";

  importTOML = file: builtins.fromTOML (builtins.readFile file);
  fileset = {
    unions = files: files;
    toSource = { root, fileset }: fileset;
  };
  licenses = {
    mit = "MIT";
    asl20 = "Apache-2.0";
  };

  shown = value: if builtins.isPath value then toString value else builtins.toJSON value;

  # A type is a function of the option's path and a value, which returns the value with its
  # defaults.
  types = rec {
    check = description: ok: {
      inherit description ok;
      __functor =
        self: at: value:
        if self.ok value then value else throw "${at}: ${shown value} is not ${self.description}";
    };
    addCheck =
      type: ok:
      type
      // {
        __functor =
          self: at: value:
          if (builtins.tryEval (ok (type at value))).value then
            value
          else
            throw "${at}: ${shown value} is not ${self.description}";
      };
    anything = check "anything" (_: true);
    package = anything;
    deferredModule.check = value: builtins.isAttrs value || builtins.isFunction value || builtins.isPath value;
    bool = check "a boolean" builtins.isBool;
    str = check "a string" builtins.isString;
    int = check "an integer" builtins.isInt;
    enum = words: check "one of ${builtins.toJSON words}" (value: builtins.elem value words);
    strMatching =
      pattern:
      check "a string matching the pattern ${pattern}" (
        value: builtins.isString value && builtins.match pattern value != null
      );
    ints = {
      between =
        least: most:
        check "a number from ${toString least} to ${toString most}" (
          value: builtins.isInt value && value >= least && value <= most
        );
      unsigned = check "a number from 0" (value: builtins.isInt value && value >= 0);
    };
    nullOr = type: check "" (_: true) // { __functor = _: at: value: if value == null then null else type at value; };
    either =
      one: other:
      check "" (_: true)
      // {
        __functor =
          _: at: value:
          if (builtins.tryEval (builtins.deepSeq (one at value) true)).success then
            one at value
          else
            other at value;
      };
    listOf =
      type: at: value:
      if builtins.isList value then map (type at) value else throw "${at}: ${shown value} is not a list";
    attrsOf =
      type: at: value:
      if builtins.isAttrs value then
        builtins.mapAttrs (name: type "${at}.${name}") value
      else
        throw "${at}: ${shown value} is not a set";
    submodule =
      { options }:
      at: value:
      if !builtins.isAttrs value then
        throw "${at}: ${shown value} is not a set"
      else
        builtins.mapAttrs (
          name: _:
          if options ? ${name} then
            options.${name}.type "${at}.${name}" (value.${name} or options.${name}.default)
          else
            throw "The option `${at}.${name}' does not exist"
        ) (options // value);
  };

  # The values of options with their defaults.
  given =
    options: at: values:
    types.submodule { inherit options; } at values;
}
