"""Fields of a request that speak of functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

Name = Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Strict(BaseModel):
    """Fields of which each is known; others are refused."""

    model_config = ConfigDict(extra="forbid")


class Function(Strict):
    """A function that may be called; `strict` changes nothing: all calls follow the schema."""

    name: Name
    description: StrictStr | None = None
    parameters: Mapping[str, Any] | None = None
    strict: StrictBool | None = None


class Tool(Strict):
    """What an answer may call; there are functions alone."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """Returns the tool as chat templates know it."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class ChosenFunction(Strict):
    """The name of a function that must be called."""

    name: StrictStr


class ChosenTool(Strict):
    """A function that must be called."""

    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"] | ChosenTool


class CalledFunction(Strict):
    """A function with the arguments that it was called with."""

    name: Name
    arguments: StrictStr  # JSON


class Called(Strict):
    """A call in an earlier answer."""

    id: Annotated[StrictStr, Field(min_length=1)]
    type: Literal["function"]
    function: CalledFunction
