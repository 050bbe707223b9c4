"""Errors of the library: one base type, so that a server can turn any of them into words in one place."""


class MegaContextError(Exception):
    """Base of every error that mc_core raises on purpose."""


class ConfigError(MegaContextError, ValueError):
    """A setting or a model description that cannot work; the message names the field and the limit."""


class BudgetError(MegaContextError, ValueError):
    """A working context that cannot fit its budget W (pins and tail alone cost more than W)."""


class PinRoomError(BudgetError):
    """More pins than the budget has room for; ``left``: tokens that can still be pinned."""

    def __init__(self, message: str, left: int) -> None:
        super().__init__(message)
        self.left = left


class PlanError(MegaContextError, ValueError):
    """An edit plan that would break an invariant of the working context; nothing was changed."""


class SpanMissingError(MegaContextError, LookupError):
    """Token ids that were evicted and that the store could not give back."""


class StoreError(MegaContextError, RuntimeError):
    """The store failed or refused (fenced); nothing was acknowledged."""


class QueueFullError(MegaContextError, RuntimeError):
    """The engine's bounded queue is full; try again later."""


class CancelledTurnError(MegaContextError, RuntimeError):
    """The turn was cancelled by its client or by shutdown before it was acknowledged."""
