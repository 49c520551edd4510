"""Errors that say what came, what is allowed and the cure."""

from __future__ import annotations


class OrcawatchError(Exception):
    """Base of every error that orcawatch raises on purpose; the command line prints it without a traceback."""

    exit_code = 1


class InputError(OrcawatchError):
    """A value, file or folder that a user gave cannot be used (exit code 2)."""

    exit_code = 2


class ConfigError(InputError):
    """The configuration file is wrong; the text lists every fault at once."""


class AudioError(InputError):
    """An audio file or stream cannot be read, or cannot be scored."""


class BundleError(InputError):
    """A bundle is damaged, incomplete, or made for another version."""


class WeightsError(InputError):
    """Pretrained weights are missing, or do not fit the network."""


class TrainingError(InputError):
    """A data set or a recipe cannot be trained on."""
