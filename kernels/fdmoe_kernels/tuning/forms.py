"""All forms. A new kind of kernel registers here, and can then be tuned and have rows in the tables."""

from __future__ import annotations

from typing import Any

from fdmoe_kernels.hopper.tiles import HOPPER
from fdmoe_kernels.tiles import TRITON
from fdmoe_kernels.tuning.form import Form

FORMS: dict[str, Form[Any]] = {form.name: form for form in (TRITON, HOPPER)}
