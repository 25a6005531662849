"""Every error that lora-hub raises on purpose, by what the user does next.

::

    LoraHubError                 1   a bug of ours, when raised as such
      UsageError                 2   wrong argument, wrong state, missing extra
        InvalidReferenceError        not org/task[@version]
        StateError                   the model or adapter is not in the state that the call needs
        MissingExtraError            an optional dependency is not installed
        PluginError                  names the plugin and its distribution
      NotFoundError              3   no such adapter, version, file or module
      RegistryError              4   registry, network or login
      UntrustedError             5   unsigned, or the signer is not trusted for this name
      IntegrityError             6   bytes do not match their digest
      PolicyError                7   refused by a policy or a lock: rewritten version, rollback, limits
      MalformedError             8   a malformed adapter
        DocumentError                a malformed document; `.context` is a path such as `files[1].size`
          UnsupportedSchemaError     written by a newer lora-hub
      CompatibilityError         9   the adapter does not fit the base model
      VersionConflictError      10   the version exists with other content
      MachineError              11   disk full, permission, lock timeout

The number is the exit code of the command line. `hint` says what to do next, most often as a command.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Self

_READ_AGAIN = "the file is damaged, or neither lora-hub nor PEFT wrote it: save or download it again"


class LoraHubError(Exception):
    """Base of all errors that lora-hub raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def within(self, where: str) -> Self:
        """Return the same error, saying where it is."""
        error = copy.copy(self)
        error.message = f"{where}: {self.message}"
        return error

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class UsageError(LoraHubError):
    """The call itself is wrong: an argument, an option, a combination of them."""

    exit_code = 2


class InvalidReferenceError(UsageError):
    """The text is not a reference of the form ``org/task[@version]``."""


class StateError(UsageError):
    """The model or the adapter is not in the state that the call needs."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""


class PluginError(UsageError):
    """A plugin is broken, or two plugins contradict each other."""


class NotFoundError(LoraHubError):
    """There is no such adapter, version, file or module."""

    exit_code = 3


class RegistryError(LoraHubError):
    """The registry, the network or the login refused."""

    exit_code = 4


class UntrustedError(LoraHubError):
    """Unsigned, or signed by somebody whom the policy does not trust for this name."""

    exit_code = 5


class IntegrityError(LoraHubError):
    """Bytes do not match the digest that stands for them."""

    exit_code = 6


class PolicyError(LoraHubError):
    """A policy or a lock refuses: a rewritten version, a rollback, a limit."""

    exit_code = 7


class MalformedError(LoraHubError):
    """The adapter is malformed, or uses mathematics that lora-hub does not implement."""

    exit_code = 8


class DocumentError(MalformedError):
    """A document is malformed; ``context`` is the path of the offending value."""

    def __init__(self, message: str, *, context: str = "", hint: str | None = None) -> None:
        super().__init__(f"`{context}`: {message}" if context else message, hint=hint or _READ_AGAIN)
        self.context = context


class UnsupportedSchemaError(DocumentError):
    """The document was written by a newer lora-hub."""


class CompatibilityError(LoraHubError):
    """The adapter does not fit the base model."""

    exit_code = 9


class VersionConflictError(LoraHubError):
    """The version exists with other content."""

    exit_code = 10


class MachineError(LoraHubError):
    """This machine refused: disk full, permission, lock timeout."""

    exit_code = 11


class UnsavedAdapterWarning(UserWarning):
    """A trained adapter is about to be left out of what is being saved."""
