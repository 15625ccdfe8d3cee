"""The functions that a service offers: their names, and what arguments they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from async_task_manager._validate import number as number_in_range
from async_task_manager._validate import optional
from async_task_manager.errors import InvalidType, InvalidValue

__all__ = ["Function", "Registry"]

LONGEST_NAME = 100


class Function:
    """One registered function, and a model of its arguments made from its signature."""

    def __init__(self, fn: Callable[..., Any], name: str, run_timeout: float | None) -> None:
        self.fn = fn
        self.name = name
        self.run_timeout = run_timeout
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(fn))
        self.doc = inspect.getdoc(fn) or ""
        self.parameters = _parameters(fn, name)
        self._aliases = {f"a{i}": p.name for i, p in enumerate(self.parameters)}
        self.model = self._model()

    def _model(self) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for field, parameter in zip(self._aliases, self.parameters, strict=True):
            needed = parameter.default is inspect.Parameter.empty
            default = ... if needed else parameter.default
            given = parameter.annotation
            kind = Any if given is inspect.Parameter.empty else given
            # By an alias: a parameter may have a name that a model's field can't.
            fields[field] = (kind, Field(default, alias=parameter.name))
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=False, title=self.name)
        try:
            return create_model("Arguments", __config__=config, **fields)
        except Exception as error:  # whatever pydantic has against an annotation
            raise InvalidType(f"task {self.name!r} takes what no JSON can be: {error}") from error

    def by_name(self, args: dict[str, Any] | list[Any]) -> dict[str, Any]:
        """Arguments by name, from those by position.

        Raises:
            InvalidValue: more than the function takes.
        """
        if isinstance(args, dict):
            return args
        if len(args) > len(self.parameters):
            raise InvalidValue(
                f"{self.name} takes {len(self.parameters)} arguments, not {len(args)}"
            )
        return {p.name: value for p, value in zip(self.parameters, args, strict=False)}

    def check(self, args: bytes) -> BaseModel:
        """The arguments, from a JSON object; a ValidationError names those that are wrong."""
        return self.model.model_validate_json(args)

    def bound(self, args: bytes) -> Callable[[], Any]:
        """The call that is to be made.

        Raises:
            ValidationError: the arguments don't fit the function (it was changed meanwhile).
        """
        model = self.check(args)
        positional = []
        named = {}
        for field, parameter in zip(self._aliases, self.parameters, strict=True):
            value = getattr(model, field)
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                named[parameter.name] = value
        return partial(self.fn, *positional, **named)


def _parameters(fn: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(fn, eval_str=True)
    except NameError as error:
        raise InvalidType(f"task {name!r}: an annotation can't be resolved: {error}") from None
    parameters = list(signature.parameters.values())
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidType(
                f"task {name!r}: {parameter} takes anything, so nothing could be checked; "
                "name the arguments"
            )
    return parameters


class Registry:
    """The functions by name."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}

    def add(
        self, fn: Callable[..., Any], *, name: str | None = None, run_timeout: float | None = None
    ) -> Function:
        """Registers a function.

        Raises:
            InvalidType: it isn't one, or takes what can't be checked.
            InvalidValue: the name is taken, or unfit.
        """
        if not callable(fn):
            raise InvalidType(f"a task must be a function, not {fn!r}")
        called = name if name is not None else getattr(fn, "__name__", None)
        if not isinstance(called, str) or not called or len(called) > LONGEST_NAME:
            raise InvalidValue(
                f"a task's name must be a str of 1 to {LONGEST_NAME} characters, not {called!r}"
            )
        if called in self._functions:
            raise InvalidValue(f"there is a task named {called!r} already")
        optional(number_in_range, "run_timeout", run_timeout, above=0)
        function = self._functions[called] = Function(fn, called, run_timeout)
        return function

    def get(self, name: str | None) -> Function:
        """The function of that name; the only one, where none is given.

        Raises:
            InvalidValue: there is none, or a name is needed.
        """
        if name is None:
            if len(self._functions) == 1:
                return next(iter(self._functions.values()))
            raise InvalidValue(f"must be one of {self._known()}")
        function = self._functions.get(name)
        if function is None:
            near = get_close_matches(name, self._functions, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidValue(f"there is no task {name!r} (known: {self._known()}){hint}")
        return function

    def _known(self) -> str:
        return ", ".join(map(repr, self._functions)) or "none is registered"

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __iter__(self) -> Iterator[Function]:
        return iter(self._functions.values())

    def __len__(self) -> int:
        return len(self._functions)
