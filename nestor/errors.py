"""Every error that Nestor raises on purpose.

Three families under ``NestorError``. Each message says what is wrong, where, and what to do.

* ``UserError``: what was given is wrong (inputs, paths, artifacts, settings, an illegal schedule).
* ``Unsupported``: Nestor cannot do this yet; names the op, the line of the model, and a way around.
* ``InternalError``: our fault; carries the directory that reproduces it, when one was written.
"""

from __future__ import annotations


class NestorError(Exception):
    """Base of all errors raised by Nestor."""


class UserError(NestorError):
    """What the caller gave is wrong; the message says what, where, and what to do."""


class InputError(UserError, TypeError, ValueError):
    """A call's inputs do not match the compiled signature (number, dtype, shape or device)."""


class IndexOutOfRange(UserError, IndexError):
    """A data-dependent index of a gather or scatter lies outside its tensor."""


class ArtifactError(UserError):
    """An artifact cannot be read: truncated, altered, of another version, or for another CPU."""


class OutputError(UserError, OSError):
    """An output path cannot be written; nothing was left behind."""


class IRError(UserError):
    """IR that breaks a rule of the verifier or does not parse; located."""


class IllegalSchedule(UserError):
    """A schedule changes what a kernel computes; ``witness`` holds the concrete counter-example.

    Attributes:
        question: one of ``coverage``, ``dependence``, ``buffer``, ``bounds``, ``value``.
        witness: mapping from a description (``"S"``, ``"before"``, …) to concrete instances.
    """

    def __init__(
        self, message: str, *, question: str = "", witness: dict[str, object] | None = None
    ):
        super().__init__(message)
        self.question = question
        self.witness = dict(witness or {})


class LegalityUnknown(UserError):
    """The checker could not decide within its budget; counted, and treated as a refusal."""


class Unsupported(NestorError):
    """Nestor cannot do this yet; names the op, the line in the model, and a way around."""


class ExportError(Unsupported):
    """The model could not be exported by ``torch.export`` (data-dependent control flow, …)."""


class InternalError(NestorError):
    """A fault of Nestor itself; ``reproducer`` is the directory that shows it, if any."""

    def __init__(self, message: str, *, reproducer: str | None = None):
        super().__init__(message)
        self.reproducer = reproducer


class RefusedByTriton(InternalError):
    """Triton makes no code of a kernel that was proved."""
