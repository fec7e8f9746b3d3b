"""Every exception this package raises, as one tree.

A message has three parts: what is wrong with the value seen, what is accepted, what to do next. Library code raises;
only the command line prints and turns `exit_code` into the status of the process.
"""

from __future__ import annotations


class WanS2VError(Exception):
    """Base of all errors a user can cause or must act on."""

    exit_code = 1


class UsageError(WanS2VError, ValueError):
    """An option or argument has a value that is not accepted, or names a file that does not exist."""

    exit_code = 2


class OtherRunError(UsageError):
    """What an earlier run has kept is not of the run that is asked for."""


class MediaError(WanS2VError):
    """A file given as input exists but its content cannot be used."""


class AudioError(MediaError):
    """Sound that cannot be read, is empty, or holds NaN."""


class AudioTooShortError(AudioError):
    """Sound shorter than the speech encoder's receptive field."""


class ImageError(MediaError):
    """A picture that cannot be read or is too small or too large."""


class VideoError(MediaError):
    """A video (pose or result) that cannot be read."""


class CheckpointError(WanS2VError):
    """Weights that are missing, damaged, of another model, or in a format that is not supported."""


class DownloadError(WanS2VError):
    """A model could not be fetched."""


class PromptExtensionError(WanS2VError):
    """A language model did not write a prompt."""


class OutputError(WanS2VError):
    """The result could not be written, or what was written is not what was asked for."""


class RunStoppedError(WanS2VError):
    """A run was asked to stop, and what it has done is kept."""

    exit_code = 130


class NumericsError(WanS2VError):
    """Latents or pixels became NaN or infinite."""


def reason_of(error: BaseException) -> str:
    """What the system or a library says about a failure, on one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
