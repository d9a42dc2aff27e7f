"""The one error of configuration: a sentence for the user, shown without a traceback, exit code 2."""


class ConfigError(ValueError):
    """Something that the user gave (a flag, a file, a model folder, too little memory) cannot be served as it is."""
