"""The two families of error: Transient is retried, Permanent is shown to a person."""

from __future__ import annotations


class IchnodeError(Exception):
    """Base of every error the node raises itself."""


class TransientError(IchnodeError):
    """Worth trying again later without anybody's help (peer down, broker away, disk busy).

    `after_s`: the peer asked to be left alone for so long.
    """

    def __init__(self, message: str = "", after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class OutOfReach(TransientError):
    """Files are out of reach for now: a bucket is away, another machine holds them. No attempt failed."""


class PermanentError(IchnodeError):
    """Trying again cannot help.

    `code` is a stable upper-case word for machines; the message names the object and the next
    step for people. Both end up in the PACS when a series cannot be analysed.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SettingsError(IchnodeError):
    """The settings cannot be used; the message says which key and what to write instead."""


class IllegalTransition(IchnodeError):
    """A state change that the transition tables do not list was asked for."""
