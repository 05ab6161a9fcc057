"""Errors that name the field, the value and the cure."""

from __future__ import annotations


class ReconError(ValueError):
    """A fault the user can mend: says which field, which value, and what to do.

    Args:
        field: the setting, header element or array at fault.
        problem: what is wrong with it, with the value.
        cure: what to change, as an imperative sentence.
    """

    def __init__(self, field: str, problem: str, cure: str) -> None:
        super().__init__(f"{field}: {problem}. {cure}")
        self.field = field
        self.problem = problem
        self.cure = cure

    def __reduce__(self) -> tuple[type[ReconError], tuple[str, str, str]]:
        """Travel between processes: pickle would hand the joined words to the three arguments."""
        return type(self), (self.field, self.problem, self.cure)


class SettingError(ReconError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(ReconError):
    """Measured data or their description cannot be used."""


class MissingPartError(ReconError):
    """An optional package or device was asked for by name and is absent."""
