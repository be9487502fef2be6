"""Errors of an evaluation that a user can do something about."""

from __future__ import annotations


class RefusedError(ValueError):
    """The settings do not suit the model or the problems; the message says why."""


class BusyError(OSError):
    """A results file is being written by another process."""


class LostProcessError(ConnectionError):
    """Another process of the launch ended before its part was done."""
