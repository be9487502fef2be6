"""How each official implementation's recorded arguments read as settings of this project.

A module holds METHODS: the name of a recorded method -> a function from a case to settings.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

Case = dict[str, Any]

METHODS: dict[str, Callable[[Case], dict[str, Any]]] = {
    name: settings_of
    for module in pkgutil.iter_modules(__path__)
    for name, settings_of in importlib.import_module(f"{__name__}.{module.name}").METHODS.items()
}
