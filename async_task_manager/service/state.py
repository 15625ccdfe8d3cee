"""What the limits and users' histories are, as data that survives a restart."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from async_task_manager.strategies.base import Role, Router
from async_task_manager.strategies.chain import Chain

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["dump_state", "load_state", "pieces_of", "read_ranks", "write_ranks"]

SLICE = 1000
"""Numbers written at once."""

logger = logging.getLogger("async_task_manager.service")


def dump_state(chain: Chain, now: float, wall: float) -> dict[str, Any]:
    """The state of every policy of the chain, and the instant at which it is true."""
    policies = {}
    for name, policy in _policies(chain):
        state = policy.dump()
        if state is not None:
            policies[name] = {"was": _signature(policy), "state": state}
    return {"now": now, "wall": wall, "policies": policies}


def pieces_of(value: Any) -> Iterator[str]:
    """The value as JSON, in pieces each of which takes a millisecond at most to make."""
    if isinstance(value, dict):
        yield "{"
        for i, (name, item) in enumerate(value.items()):
            yield f"{',' if i else ''}{json.dumps(name)}:"
            yield from pieces_of(item)
        yield "}"
    elif isinstance(value, list | tuple) and len(value) > SLICE:
        comma = "["
        for start in range(0, len(value), SLICE):
            part = value[start : start + SLICE]
            if any(isinstance(item, list | tuple | dict) for item in part):
                for item in part:
                    yield comma
                    yield from pieces_of(item)
                    comma = ","
            else:
                yield comma + json.dumps(part)[1:-1]
                comma = ","
        yield "]"
    elif isinstance(value, list | tuple) and any(isinstance(i, list | tuple | dict) for i in value):
        for i, item in enumerate(value):
            yield "," if i else "["
            yield from pieces_of(item)
        yield "]"
    else:
        yield json.dumps(value)


def load_state(chain: Chain, saved: Any, wall: float) -> float:
    """Gives the policies of a fresh chain their states back; gives the wall time of the state.

    Chain time goes on from where it was, plus the time that passed since: what a policy wrote
    down is true again. A policy that was changed meanwhile starts anew.
    """
    if saved is None:
        return 0.0
    chain.now = saved["now"] + max(0.0, wall - saved["wall"])
    for name, policy in _policies(chain):
        kept = saved["policies"].get(name)
        if kept is None:
            continue
        if kept["was"] != _signature(policy):
            logger.warning("%r stands where %s was: it starts anew", policy, kept["was"])
            continue
        try:
            policy.load(kept["state"])
        except Exception:
            logger.warning("the state of %r does not fit: it may start anew", policy, exc_info=True)
    wall_then: float = saved["wall"]
    return wall_then


def write_ranks(chain: Chain, task: Task[Any]) -> str | None:
    """The ranks that the task got at intake, as JSON, and what they are made of: they compare only
    where that is the same. None: they are nothing that JSON can hold.
    """
    try:
        return json.dumps([_orders(chain), chain.ranks(task)])
    except (TypeError, ValueError):
        return None


def read_ranks(chain: Chain, text: str | None) -> tuple[Any, ...] | None:
    """The ranks; None: there are none that compare with what this chain gives."""
    if text is None:
        return None
    orders, ranks = json.loads(text)
    return _tuples(ranks) if orders == _orders(chain) else None


def _orders(chain: Chain) -> list[str]:
    return [type(order).__name__ for order in chain.orders]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _policies(chain: Chain) -> Iterator[tuple[str, Role]]:
    """Every policy with a name that is the same after a restart: its place."""
    for i, stage in enumerate(chain.stages):
        if isinstance(stage, Role):
            yield f"{i}", stage
            if isinstance(stage, Router):
                for branch in stage.all_branches(None):
                    for j, limit in enumerate(branch.limits):
                        yield f"{i}.{branch.name}.{j}", limit


def _signature(policy: object) -> str:
    # Not its numbers: they may change, and what a window has seen it has seen.
    key = re.sub(r" at 0x[0-9a-f]+", "", repr(getattr(policy, "key", None)))
    return f"{type(policy).__name__} by {key}"
