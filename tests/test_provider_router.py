"""Which providers a task may take, and what becomes of the list of them while tasks wait."""

from __future__ import annotations

import copy
import gc
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
)

from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    InvalidValue,
    StrategyInUse,
    UnknownProvider,
)
from async_task_manager.strategies.base import ALL, Role, _Home
from async_task_manager.strategies.concurrent_limit import ConcurrentLimitStrategy
from async_task_manager.strategies.provider_router import Provider, ProviderRouterStrategy
from async_task_manager.task import Task


async def nothing() -> None: ...


def task(provider: object = None) -> Task[None]:
    return Task(nothing, None if provider is None else {"provider": provider})


def names(branches: Any) -> list[str]:
    return [branch.name for branch in branches]


def router(*providers: str) -> ProviderRouterStrategy:
    return ProviderRouterStrategy([Provider(name) for name in providers])


class Listener:
    """Where a chain would be."""

    def __init__(self, policy: Role, refuses: Exception | None = None) -> None:
        self.heard: list[str] = []
        self.refuses = refuses
        policy._home = _Home(self)

    def policy_changed(self, policy: Role, key: Hashable) -> None:
        assert key is ALL
        self.heard.append("changed")

    def policy_restructured(self, policy: Role) -> None:
        self.heard.append("restructured")
        if self.refuses is not None:
            raise self.refuses


# ---------------------------------------------------------------- where a task may go


def test_a_task_without_a_pin_may_go_to_all_that_are_enabled_in_order() -> None:
    some = ProviderRouterStrategy([Provider("P1"), Provider("P2", enabled=False), Provider("P3")])
    bare = task()
    pin = some.pin_of(bare)
    assert pin is None
    assert bare._metadata is None  # no dict was made for it
    assert names(some.branches(pin)) == ["P1", "P3"]
    assert names(some.all_branches(pin)) == ["P1", "P2", "P3"]
    assert some.pin_of(Task(nothing, {"provider": None})) is None
    assert some.pin_of(Task(nothing, {"other": "P1"})) is None


def test_a_pinned_task_may_go_there_alone_and_only_while_it_is_enabled() -> None:
    some = router("P1", "P2")
    pin = some.pin_of(task("P2"))
    assert pin == "P2"
    assert names(some.branches(pin)) == names(some.all_branches(pin)) == ["P2"]
    some["P2"].disable()
    assert names(some.branches(pin)) == []
    assert names(some.all_branches(pin)) == ["P2"]
    some["P2"].enable()
    assert names(some.branches(pin)) == ["P2"]


def test_field_names_another_or_is_a_callable() -> None:
    by_name = ProviderRouterStrategy([Provider("P1")], field="where")
    assert by_name.pin_of(Task(nothing, {"where": "P1", "provider": "P9"})) == "P1"
    by_call = ProviderRouterStrategy([Provider("P1")], field=lambda task: task.name[:2])
    assert by_call.pin_of(_named("P1-request")) == "P1"
    with pytest.raises(UnknownProvider, match="P2"):
        by_call.pin_of(_named("P2-request"))


def _named(name: str) -> Task[None]:
    async def work() -> None: ...

    work.__qualname__ = name
    return Task(work)


@pytest.mark.parametrize(
    ("pin", "hint"),
    [
        ("grok", "; did you mean 'groq'?"),
        ("GROQ", "; did you mean 'groq'?"),
        ("openai", "; did you mean 'OpenAI'?"),
        ("mistral", ")"),
        ("", ")"),
    ],
)
def test_an_unknown_pin_is_refused_with_what_is_known(pin: str, hint: str) -> None:
    one = task(pin)
    with pytest.raises(UnknownProvider) as caught:
        router("groq", "OpenAI").pin_of(one)
    says = f"{one!r} is pinned to no provider {pin!r} (known: 'groq', 'OpenAI')"
    assert str(caught.value).startswith(says)
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize("pin", [1, True, 0, ["P1"], b"P1"])
def test_a_pin_of_another_type_is_refused(pin: object) -> None:
    one = task(pin)
    with pytest.raises(InvalidType) as caught:
        router("P1").pin_of(one)
    assert str(caught.value) == f"the provider of {one!r} must be a name or None, not {pin!r}"


# ---------------------------------------------------------------- enable and disable


def test_enable_and_disable_tell_the_chain_and_only_when_something_changes() -> None:
    some = router("P1", "P2")
    listener = Listener(some)
    some["P1"].enable()
    assert listener.heard == []
    some["P1"].disable()
    some["P1"].disable()
    assert listener.heard == ["changed"]
    assert not some["P1"].enabled
    assert names(some.branches(None)) == ["P2"]
    some["P1"].enable()
    some["P1"].enable()
    assert listener.heard == ["changed", "changed"]
    assert names(some.branches(None)) == ["P1", "P2"]


def test_a_provider_without_a_router_keeps_its_switch() -> None:
    free = Provider("P1")
    free.disable()
    some = ProviderRouterStrategy([free])
    assert list(some.branches(None)) == []
    some.remove("P1")
    free.enable()
    assert free.enabled
    assert len(some) == 0

    orphan = router("P1")["P1"]  # the router is gone
    gc.collect()
    orphan.disable()
    assert not orphan.enabled


# ---------------------------------------------------------------- add and remove


def test_like_a_list_of_providers_by_name() -> None:
    p1, p2 = Provider("P1"), Provider("P2")
    some = ProviderRouterStrategy(iter([p1, p2]))
    assert some["P1"] is p1
    assert list(some) == [p1, p2]
    assert some.names == ("P1", "P2")
    assert len(some) == 2
    assert "P1" in some and p2 in some
    assert "P3" not in some and Provider("P1") not in some and None not in some
    for provider in some:  # whoever iterates may remove
        some.remove(provider.name)
    assert not len(some)
    with pytest.raises(UnknownProvider, match=r"'P1' \(known: there is none at present\)"):
        some["P1"]


@pytest.mark.parametrize("name", ["P3", 3, None])
def test_an_unknown_name(name: Any) -> None:
    for ask in (router("P1").__getitem__, router("P1").remove, router("P1").all_branches):
        if name is not None or ask.__name__ != "all_branches":
            with pytest.raises(UnknownProvider) as caught:
                ask(name)
            says = f"there is no provider {name!r} (known: 'P1')"
            assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("index", "order"),
    [
        (None, ["P1", "P2", "P0"]),
        (0, ["P0", "P1", "P2"]),
        (1, ["P1", "P0", "P2"]),
        (2, ["P1", "P2", "P0"]),
    ],
)
def test_add_takes_its_place_and_tells_the_chain(index: int | None, order: list[str]) -> None:
    some = router("P1", "P2")
    listener = Listener(some)
    some.add(Provider("P0"), index=index)
    assert listener.heard == ["restructured"]
    assert list(some.names) == names(some.branches(None)) == names(some.all_branches(None)) == order
    assert some.pin_of(task("P0")) == "P0"


def test_a_disabled_provider_is_added_disabled() -> None:
    some = router("P1")
    some.add(Provider("P2", enabled=False))
    assert names(some.branches(None)) == ["P1"]


@pytest.mark.parametrize(
    ("add", "error", "says"),
    [
        (lambda r: r.add(Provider("P1")), InvalidValue, "named 'P1' already"),
        (lambda r: r.add("P3"), InvalidType, "must be a Provider, not 'P3'"),
        (lambda r: r.add(Provider("P3"), index=3), InvalidValue, "index .* at most 2, not 3"),
        (lambda r: r.add(Provider("P3"), index=-1), InvalidValue, "index .* at least 0.* not -1"),
        (lambda r: r.add(Provider("P3"), index=True), InvalidType, "index .* not True"),
        (lambda r: r.add(Provider("P3"), index="0"), InvalidType, "index .* not '0'"),
    ],
)
def test_a_refused_add_changes_nothing(add: Any, error: type[Exception], says: str) -> None:
    some = router("P1", "P2")
    listener = Listener(some)
    with pytest.raises(error, match=says):
        add(some)
    assert some.names == ("P1", "P2")
    assert listener.heard == []


def test_a_provider_belongs_to_one_router() -> None:
    first, second = router("P1", "P2"), router("P3")
    with pytest.raises(StrategyInUse, match=r"Provider\('P1'\) belongs to another router"):
        second.add(first["P1"])
    provider = first["P1"]
    first.remove("P1")
    second.add(provider, index=0)
    provider.disable()
    assert names(second.branches(None)) == ["P3"]
    assert names(first.branches(None)) == ["P2"]


def test_a_provider_whose_router_is_gone_is_free() -> None:
    provider = Provider("P1")
    ProviderRouterStrategy([provider])
    gc.collect()
    assert ProviderRouterStrategy([provider])["P1"] is provider


def test_an_add_that_the_chain_refuses_is_undone() -> None:
    """The chain refuses a provider with a limit that counts for another chain."""
    some = router("P1")
    listener = Listener(some, refuses=StrategyInUse("elsewhere"))
    late = Provider("P2")
    with pytest.raises(StrategyInUse, match="elsewhere"):
        some.add(late)
    assert list(some.names) == names(some.branches(None)) == ["P1"]
    listener.refuses = None
    some.add(late)
    assert list(some.names) == ["P1", "P2"]


def test_remove_tells_the_chain() -> None:
    some = router("P1", "P2")
    listener = Listener(some)
    some.remove("P1")
    assert listener.heard == ["restructured"]
    assert some.names == ("P2",)
    assert names(some.branches(None)) == names(some.all_branches(None)) == ["P2"]
    with pytest.raises(UnknownProvider, match="'P1'"):
        some.pin_of(task("P1"))


def test_what_queued_tasks_are_pinned_to_is_removed_by_force_only() -> None:
    some = router("P1", "P2")
    listener = Listener(some)
    for pin in ("P1", None, "P2", "P1"):
        some.arrive(pin)
    with pytest.raises(InvalidState, match=r"'P1' .* 2 queued tasks are pinned to it.*force=True"):
        some.remove("P1")
    some.leave("P1")
    some.leave(None)
    with pytest.raises(InvalidState, match=r"'P1' .* 1 queued task is pinned to it"):
        some.remove("P1")
    assert some.names == ("P1", "P2")
    assert listener.heard == []

    some.leave("P1")
    some.remove("P1")
    some.remove("P2", force=True)
    assert listener.heard == ["restructured", "restructured"]
    assert names(some.branches("P2")) == []
    with pytest.raises(UnknownProvider, match="no provider 'P2'"):
        some.all_branches("P2")

    # Back under the same name, it has what is still pinned to that.
    some.add(Provider("P2"))
    with pytest.raises(InvalidState, match="1 queued task"):
        some.remove("P2")
    some.leave("P2")
    some.remove("P2")


def test_pins_that_nothing_has_any_more_are_forgotten() -> None:
    some = router(*(f"P{n}" for n in range(100)))
    for n in range(100):
        some.arrive(f"P{n}")
        some.leave(f"P{n}")
    assert len(some._pinned) == 0


class Lives(RuleBasedStateMachine):
    """Any sequence of changes against a list of (name, enabled) pairs and a list of pins."""

    pins = Bundle("pins")

    def __init__(self) -> None:
        super().__init__()
        self.router = router("a")
        self.model = [("a", True)]
        self.pinned: list[str] = []

    def known(self) -> list[str]:
        return [name for name, _ in self.model]

    @rule(name=st.sampled_from("abcd"), where=st.integers(0, 4), enabled=st.booleans())
    def add(self, name: str, where: int, enabled: bool) -> None:
        provider = Provider(name, enabled=enabled)
        if name in self.known() or where > len(self.model):
            with pytest.raises(InvalidValue):
                self.router.add(provider, index=where)
        else:
            self.router.add(provider, index=where)
            self.model.insert(where, (name, enabled))

    @rule(name=st.sampled_from("abcd"), force=st.booleans())
    def remove(self, name: str, force: bool) -> None:
        if name not in self.known():
            with pytest.raises(UnknownProvider):
                self.router.remove(name, force=force)
        elif name in self.pinned and not force:
            with pytest.raises(InvalidState, match=f" {self.pinned.count(name)} queued"):
                self.router.remove(name)
        else:
            self.router.remove(name, force=force)
            self.model = [entry for entry in self.model if entry[0] != name]

    @rule(name=st.sampled_from("abcd"), enabled=st.booleans())
    def switch(self, name: str, enabled: bool) -> None:
        if name in self.router:
            provider = self.router[name]
            (provider.enable if enabled else provider.disable)()
            self.model = [(n, enabled if n == name else e) for n, e in self.model]

    @rule(target=pins, name=st.sampled_from("abcd"))
    def arrive(self, name: str) -> str:
        self.router.arrive(name)
        self.pinned.append(name)
        return name

    @rule(name=consumes(pins))
    def leave(self, name: str) -> None:
        self.router.leave(name)
        self.pinned.remove(name)

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.router = copy.deepcopy(self.router)

    @invariant()
    def agrees(self) -> None:
        enabled = [name for name, is_enabled in self.model if is_enabled]
        assert list(self.router.names) == names(self.router.all_branches(None)) == self.known()
        assert names(self.router.branches(None)) == enabled
        for name in "abcd":
            assert (name in self.router) is (name in self.known())
            assert names(self.router.branches(name)) == [n for n in enabled if n == name]


TestLives = Lives.TestCase


# ---------------------------------------------------------------- construction


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: ProviderRouterStrategy([]), InvalidValue, "at least one provider"),
        (lambda: router("P1", "P1"), InvalidValue, "named 'P1' already"),
        (lambda: ProviderRouterStrategy(5), InvalidType, "list of providers, not 5"),  # type: ignore[arg-type]
        (lambda: ProviderRouterStrategy(["P1"]), InvalidType, "must be a Provider, not 'P1'"),  # type: ignore[list-item]
        (lambda: ProviderRouterStrategy([Provider("P1")], field=None), InvalidType, "field .*None"),  # type: ignore[arg-type]
        (lambda: Provider(""), InvalidType, "not ''"),
        (lambda: Provider(1), InvalidType, "not 1"),  # type: ignore[arg-type]
        (lambda: Provider("P1", [5]), InvalidType, "limits of 'P1' .* not 5"),  # type: ignore[list-item]
    ],
)
def test_bad_parameters(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_limits_are_read_and_changed_through_the_router() -> None:
    limit = ConcurrentLimitStrategy(2)
    some = ProviderRouterStrategy([Provider("P1", limits=[limit])])
    some["P1"].limits[0].max_concurrent = 8  # type: ignore[attr-defined]
    assert limit.max_concurrent == 8
    assert some["P1"].limits == (limit,)


# ---------------------------------------------------------------- copies and words


def test_a_deep_copy_is_a_router_of_its_own() -> None:
    original = ProviderRouterStrategy(
        [Provider("P1", [ConcurrentLimitStrategy(2)]), Provider("P2")]
    )
    original.arrive("P1")
    listener = Listener(original)
    twin = copy.deepcopy(original)
    twin["P1"].disable()
    twin["P1"].limits[0].max_concurrent = 9  # type: ignore[attr-defined]
    twin.leave("P1")
    twin.remove("P1")
    assert twin.names == ("P2",)
    assert names(original.branches(None)) == ["P1", "P2"]
    assert original["P1"].limits[0].max_concurrent == 2  # type: ignore[attr-defined]
    with pytest.raises(InvalidState, match="1 queued task"):
        original.remove("P1")
    assert listener.heard == []


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copied_provider_belongs_to_no_router(copied: Any) -> None:
    some = router("P1", "P2")
    some["P1"].disable()
    twin = copied(some["P1"])
    assert not twin.enabled
    twin.enable()
    assert names(some.branches(None)) == ["P2"]
    assert ProviderRouterStrategy([twin]).names == ("P1",)


def test_repr_is_the_call() -> None:
    some = ProviderRouterStrategy(
        [Provider("P1", limits=[ConcurrentLimitStrategy(2)]), Provider("P2", enabled=False)],
        field="where",
    )
    text = (
        "ProviderRouterStrategy([Provider('P1', limits=[ConcurrentLimitStrategy(2)]), "
        "Provider('P2', enabled=False)], field='where')"
    )
    assert repr(some) == text
    assert repr(eval(text)) == text
    assert repr(router("P1")) == "ProviderRouterStrategy([Provider('P1')])"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"enabled": "no"}, "enabled of 'a' must be True or False, not 'no'"),
        ({"limits": ConcurrentLimitStrategy(1)}, "limits of 'a' must be a list of limits"),
        ({"limits": 3}, "limits of 'a' must be a list of limits, not 3"),
    ],
)
def test_bad_parameters_of_a_provider(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidType, match=message):
        Provider("a", **parameters)
