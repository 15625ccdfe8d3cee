"""Each task goes to the best of the providers that can take it now."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from async_task_manager._validate import exact, number, one_of, whole
from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    InvalidValue,
    StrategyInUse,
    UnknownProvider,
)
from async_task_manager.strategies._fields import check_field, said
from async_task_manager.strategies._routing import KEYS, Load, Policy, as_told, measure, spread
from async_task_manager.strategies.base import Branch, Limit, Router

if TYPE_CHECKING:
    from async_task_manager.task import Outcome, Task

__all__ = ["Provider", "ProviderRouterStrategy"]


class Provider(Branch):
    """One of a router's providers: its name and its limits, all of which must admit a task.

    Args:
        name: Non-empty; unique in its router.
        limits: Limits of this provider alone. Set their parameters at any time:
            ``router["P1"].limits[0].max_concurrent = 8`` acts on the queue at once.
        enabled: Whether tasks may go there; see `disable`.
        weight: Its part under the policies ``"weighted"`` and ``"least_loaded"``, above 0.
        price: What a task costs there, at least 0, in whatever unit all of them share: for the
            policy ``"cheapest"``.

    A copy belongs to no router.
    """

    __slots__ = ("_price", "_weight", "exact_weight")

    exact_weight: int | Fraction

    def __init__(
        self,
        name: str,
        limits: Iterable[Limit] = (),
        enabled: bool = True,
        *,
        weight: float = 1,
        price: float = 0,
    ) -> None:
        super().__init__(name, limits, enabled)
        self.weight = weight
        self.price = price

    @property
    def weight(self) -> float:
        """Its part. It can be set at any time."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = number(f"weight of {self.name!r}", value, above=0)
        self.exact_weight = exact(value)

    @property
    def price(self) -> float:
        """What a task costs there. It can be set at any time."""
        return self._price

    @price.setter
    def price(self, value: float) -> None:
        self._price = number(f"price of {self.name!r}", value, at_least=0)

    def enable(self) -> None:
        """Tasks may go there again; what waited for it is looked at at once."""
        self._switch(True)

    def disable(self) -> None:
        """Nothing more starts there; what is pinned to it waits, what runs goes on."""
        self._switch(False)

    def _switch(self, enabled: bool) -> None:
        if enabled is not self._enabled:
            self._enabled = enabled
            router = self._router() if self._router is not None else None
            if isinstance(router, ProviderRouterStrategy):
                router._reopen()
                router.changed()

    def __reduce__(self) -> tuple[Any, ...]:
        numbers = {
            "_weight": self._weight,
            "_price": self._price,
            "exact_weight": self.exact_weight,
        }
        return type(self), (self.name, self._limits, self._enabled), (None, numbers)

    def __repr__(self) -> str:
        limits = f", limits={list(self._limits)!r}" if self._limits else ""
        enabled = "" if self._enabled else ", enabled=False"
        weight = f", weight={self._weight!r}" if self._weight != 1 else ""
        price = f", price={self._price!r}" if self._price else ""
        return f"{type(self).__name__}({self.name!r}{limits}{enabled}{weight}{price})"


class ProviderRouterStrategy(Router):
    """A task goes, when it starts, to the best provider that is enabled and open now.

    Open means that all limits of the provider admit the task at this instant, so that a provider
    which is full never holds back what another can take. Which of the open ones is best, is the
    policy:

    | ``policy`` | prefers |
    |---|---|
    | ``"ordered"`` | the first in order |
    | ``"weighted"`` | smooth weighted round robin by ``weight``: exact over every cycle |
    | ``"least_loaded"`` | the fewest running tasks, with the new one, over ``weight`` |
    | ``"fastest"`` | the lowest latency, a moving average; a failure counts as slower than all |
    | ``"cheapest"`` | the lowest ``price`` |
    | ``"earliest"`` | the one that was used least recently |
    | a function | ``policy(task, providers)`` gives them, best first; it must be quick and pure |

    Ties go to the first in order. A task that failed at a provider prefers those at which it has
    not failed, or longest ago. A task pinned by ``metadata["provider"]`` goes to that provider
    only, and waits for it while it is disabled.

    Like a list of providers by name: ``router["P1"]``, ``"P1" in router``, ``len(router)``, and
    iteration, in order.

    Args:
        providers: One or more, best first.
        field: Where the pin is: a metadata name, or a callable that gets the task. It gives a
            provider's name; None or missing: any provider will do.
        policy: Which is preferred; it can be set at any time.
        half_life: Seconds, above 0, after which the latency of a provider that isn't used counts
            half: so that a slow one is tried again some time. For the policy ``"fastest"``.

    Raises:
        UnknownProvider: from `pin_of`, and so from ``add_task``; also ``router[name]``.
        InvalidValue, InvalidType: no provider, a name twice, something else than a provider.
        StrategyInUse: a provider belongs to another router.

    A choice costs the limits of the providers that are asked; a change of providers looks at
    every waiting task: O(n), and rare.
    """

    def __init__(
        self,
        providers: Iterable[Provider],
        *,
        field: str | Callable[[Task], object] = "provider",
        policy: Policy = "ordered",
        half_life: float = 60.0,
    ) -> None:
        check_field("field", field)
        if not isinstance(providers, Iterable):
            raise InvalidType(f"providers must be a list of providers, not {providers!r}")
        self._field = field
        self.policy = policy
        self._half_life = number("half_life", half_life, above=0)
        self._providers: list[Provider] = []
        self._by_name: dict[str, Provider] = {}
        self._loads: dict[Provider, Load] = {}
        self._pinned: Counter[Hashable] = Counter()
        for provider in providers:
            self.add(provider)
        if not self._providers:
            raise InvalidValue("providers must name at least one provider")

    @property
    def policy(self) -> Policy:
        """Which of the open providers is preferred."""
        return self._policy

    @policy.setter
    def policy(self, value: Policy) -> None:
        self._policy = value if callable(value) else one_of("policy", value, tuple(KEYS))

    # ---- the providers ----------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The providers' names, in the order in which they are tried."""
        return tuple(provider.name for provider in self._providers)

    def add(self, provider: Provider, *, index: int | None = None) -> None:
        """Adds a provider, before the one at ``index`` (0 to ``len(router)``), else as the last.

        What waits, and could go there, is looked at at once.
        """
        if not isinstance(provider, Provider):
            raise InvalidType(f"a provider must be a Provider, not {provider!r}")
        if provider.name in self._by_name:
            raise InvalidValue(f"there is a provider named {provider.name!r} already")
        if provider._router is not None and provider._router() is not None:
            raise StrategyInUse(f"{provider!r} belongs to another router; make one for each")
        end = len(self._providers)
        at = end if index is None else whole("index", index, at_least=0, at_most=end)
        self._providers.insert(at, provider)
        self._by_name[provider.name] = provider
        self._loads[provider] = Load()
        provider._router = weakref.ref(self)
        self._reopen()
        try:
            self.restructured()
        except StrategyInUse:  # a limit of the provider stands elsewhere; nothing has happened yet
            self._drop(provider)
            raise

    def remove(self, name: str, *, force: bool = False) -> None:
        """Removes a provider; what runs there goes on. The last one may go, too.

        Args:
            name: The provider's name.
            force: Remove it even though queued tasks are pinned to it. They end as rejected, with
                `UnknownProvider`.

        Raises:
            UnknownProvider: there is none of that name.
            InvalidState: queued tasks are pinned to it, and not ``force``.
        """
        provider = self[name]
        pinned = self._pinned[name]
        if pinned and not force:
            tasks = "1 queued task is" if pinned == 1 else f"{pinned} queued tasks are"
            raise InvalidState(
                f"provider {name!r} cannot be removed: {tasks} pinned to it; "
                "wait for them, cancel them, or pass force=True"
            )
        self._drop(provider)
        self.restructured()

    def _drop(self, provider: Provider) -> None:
        self._providers.remove(provider)
        del self._by_name[provider.name]
        del self._loads[provider]
        provider._router = None
        self._reopen()

    def __getitem__(self, name: str) -> Provider:
        provider = self._by_name.get(name)
        if provider is None:
            raise self._unknown("there is", name)
        return provider

    def __contains__(self, provider: object) -> bool:
        return provider in self._by_name or provider in self._providers

    def __iter__(self) -> Iterator[Provider]:
        return iter(tuple(self._providers))

    def __len__(self) -> int:
        return len(self._providers)

    def _reopen(self) -> None:
        self._open = tuple(provider for provider in self._providers if provider.enabled)

    def _unknown(self, who: str, name: str) -> UnknownProvider:
        lower = {known.lower(): known for known in self._by_name}
        near = get_close_matches(str(name).lower(), lower, 1)
        known = ", ".join(map(repr, self._by_name)) or "there is none at present"
        hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
        return UnknownProvider(f"{who} no provider {name!r} (known: {known}){hint}")

    # ---- the role ---------------------------------------------------------------------------

    def pin_of(self, task: Task) -> str | None:
        """The name of the provider that the task must go to; None: any will do."""
        pin = said(self._field, task)
        if pin is None:
            return None
        if not isinstance(pin, str):
            raise InvalidType(f"the provider of {task!r} must be a name or None, not {pin!r}")
        if pin not in self._by_name:
            raise self._unknown(f"{task!r} is pinned to", pin)
        return pin

    def all_branches(self, pin: Hashable) -> Sequence[Provider]:
        """All providers, or the one that the pin names; raises UnknownProvider if it is gone."""
        return self._providers if pin is None else (self[pin],)  # type: ignore[index]  # pin_of gives names

    def branches(self, pin: Hashable) -> Sequence[Provider]:
        """Those of them that are enabled."""
        if pin is None:
            return self._open
        return [provider for provider in self._open if provider.name == pin]

    def choose(self, branches: Sequence[Branch], task: Task, now: float) -> Sequence[Branch]:
        """They, best first for this task."""
        found = cast("Sequence[Provider]", branches)
        policy, loads = self._policy, self._loads
        if callable(policy):
            found = as_told(policy(task, found), found)
        elif (key := KEYS[policy]) is not None:
            found = sorted(found, key=lambda p: key(p, loads[p], now, self._half_life))
        failed = task._run.failed_at if task._run is not None else None
        if failed:
            latest = {name: number for number, name in enumerate(failed)}
            found = sorted(found, key=lambda p: latest.get(p.name, -1))
        return found

    def took(self, branch: Branch, others: Sequence[Branch], now: float) -> None:
        """Notes who was taken, and instead of whom."""
        taken = cast("Provider", branch)
        load = self._loads[taken]
        load.running += 1
        load.last = now
        if self._policy == "weighted":
            spread(taken, cast("Sequence[Provider]", others), self._loads)

    def ended(self, branch: Branch, outcome: Outcome, now: float) -> None:
        """Notes how it went."""
        provider = cast("Provider", branch)
        load = self._loads.get(provider)
        if load is not None and load.running:  # else it was removed meanwhile
            load.running -= 1
            measure(provider, outcome, self._loads, now, self._half_life)

    def arrive(self, pin: Hashable) -> None:
        """One more queued task has this pin."""
        if pin is not None:
            self._pinned[pin] += 1

    def leave(self, pin: Hashable) -> None:
        """One less."""
        if pin is not None:
            self._pinned[pin] -= 1
            if not self._pinned[pin]:
                del self._pinned[pin]

    # ---- copies and words -------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = super().__deepcopy__(memo)
        for provider in twin:
            provider._router = weakref.ref(twin)
        return twin

    def __repr__(self) -> str:
        field = "" if self._field == "provider" else f", field={self._field!r}"
        policy = "" if self._policy == "ordered" else f", policy={self._policy!r}"
        half_life = "" if self._half_life == 60 else f", half_life={self._half_life}"
        return f"{type(self).__name__}({self._providers!r}{field}{policy}{half_life})"
