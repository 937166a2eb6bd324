"""What a tuning table can hold rows for: a kind of kernel, its tile numbers and how a search varies them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from fdmoe_kernels.layer import MoELayer

R = TypeVar("R", bound="DataclassInstance")


@dataclass(frozen=True, eq=False)
class Form(Generic[R]):
    """One kind of kernel.

    row         a frozen dataclass of ints; fields with a default may be missing in a table
    allowed     the values of each field, rising: what a table may hold, and the steps of a search
    fitted      what the kernel makes of a row for a layer and a token count; rows with the same are one candidate
    supported   whether the form runs on a device with a dtype
    neighbours  what a search tries from a row; by default a step up and a step down of each field
    """

    name: str
    row: type[R]
    allowed: Mapping[str, Sequence[int]]
    fitted: Callable[[R, MoELayer, int], Hashable]
    neighbours: Callable[[Form[R], R], Iterator[R]] | None = None
    supported: Callable[[torch.device, torch.dtype], bool] = lambda _device, _dtype: True

    def candidates(self, row: R) -> list[R]:
        """Rows near `row`, each valid, none twice, `row` not among them."""
        found = (self.neighbours or steps)(self, row)
        return [candidate for candidate in dict.fromkeys(found) if candidate != row and not self.problem(candidate)]

    def parse(self, values: Mapping[str, Any]) -> R:
        """A row of a table. Raises ValueError that names the field, its value and what is allowed."""
        names = {field.name: field for field in fields(self.row)}
        for name in values:
            if name not in names:
                raise ValueError(f"{name} is no field of {self.name}; {', '.join(names)} are")
        for name, field in names.items():
            if name not in values and field.default is MISSING:
                raise ValueError(f"{name} is missing; one of {_listed(self.allowed[name])} is needed")
        for name, value in values.items():
            if type(value) is not int or value not in self.allowed[name]:
                raise ValueError(f"{name} is {value!r}; one of {_listed(self.allowed[name])} is needed")
        return self.row(**values)

    def problem(self, row: R) -> str | None:
        """What is not allowed in a row, in words; None if all is."""
        for field in fields(self.row):
            value = getattr(row, field.name)
            if value not in self.allowed[field.name]:
                return f"{field.name} is {value}; one of {_listed(self.allowed[field.name])} is needed"
        return None


def steps(form: Form[R], row: R) -> Iterator[R]:
    """The rows that differ from `row` in one field by one allowed step."""
    for field in fields(form.row):
        allowed = list(form.allowed[field.name])
        at = allowed.index(getattr(row, field.name))
        for beside in (at - 1, at + 1):
            if 0 <= beside < len(allowed):
                yield replace(row, **{field.name: allowed[beside]})


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
