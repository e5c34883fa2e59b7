"""Why a request gets no answer: a field of it is wrong, or nothing is and it has to wait."""

from __future__ import annotations

from edgekit.errors import EdgekitError, InputError


class FieldError(InputError):
    """A field of a request is wrong; `field` says which, in the request's own names."""

    def __init__(self, name: str, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.field = name
        self.code = code


class BusyError(EdgekitError):
    """As many requests wait as may; `retry_after_s` is when one of them should have gone."""

    def __init__(self, *, waiting: int, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"{waiting} requests are waiting, the limit is {limit}",
            hint=f"try again in {retry_after_s} s, or start the server with a larger `--queue`",
        )
        self.retry_after_s = retry_after_s


class ClosingError(EdgekitError):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", hint="send it to another replica")


class DeadlineError(EdgekitError):
    """The time that a request may take is over."""

    def __init__(self, *, seconds: float, was_waiting: bool) -> None:
        where = "waiting for a slot" if was_waiting else "being answered"
        super().__init__(
            f"the request took longer than {seconds:g} s, it was {where}",
            hint="ask for fewer tokens, or start the server with a larger `--deadline`",
        )
        self.was_waiting = was_waiting
