"""A snapshot goes on as the original would, and neither hears of the other."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
from test_chain_oracle import FewestRunning, Life

from async_task_manager import Chain, InvalidState, InvalidType, InvalidValue, Task, TaskManager
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    DelayedStrategy,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
    Usage,
)
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._reasons import Waiting
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.task import Outcome


async def nothing() -> None: ...


# ---- random lives -------------------------------------------------------------------------------


def state_of(chain: Chain) -> Any:
    return (
        sorted((task.metadata["number"], task.state) for task in chain.tasks()),
        chain.queued,
        chain.running,
        chain.next_wake(chain.now),
        repr(chain.usage(chain.now)),
    )


class CopiedLife(Life):
    """In which the chain is swapped for its snapshot again and again, and nobody notices."""

    def __init__(self, seed: int, events: int) -> None:
        super().__init__(seed, events)
        self.swaps = 0
        self.left: list[tuple[Chain, Any]] = []

    def round(self, eventful: bool) -> None:
        if self.rng.random() < 0.2:
            self.swap()
        super().round(eventful)

    def swap(self) -> None:
        world = self.chain
        running = list(world.running.values())
        running += [one for task in running if isinstance(task, Batch) for one in task.members]
        before = state_of(world.machine)
        twin, ghosts = snapshot_of(world.machine, running)
        assert state_of(twin) == before
        assert set(ghosts) == {*world.machine.tasks(), *running}
        assert all(ghost.id == task.id and ghost is not task for task, ghost in ghosts.items())
        self.left.append((world.machine, before))
        world.machine, world.stages = twin, list(twin.stages)
        world.tasks = {number: ghosts.get(task, task) for number, task in world.tasks.items()}
        world.running = {order: ghosts[task] for order, task in world.running.items()}
        self.swaps += 1

    def judge(self) -> None:
        """The limits of a copy have no history; but what was left behind stands still."""
        for chain, before in self.left:
            assert state_of(chain) == before


class CopiedLifeWithBatches(CopiedLife):
    batches = True


@pytest.mark.parametrize("kind", [CopiedLife, CopiedLifeWithBatches])
def test_a_snapshot_goes_on_as_the_original(kind: type[CopiedLife]) -> None:
    swaps = 0
    for seed in range(250):
        life = kind(seed, 12 + seed % 30)
        try:
            life.live()
        except Exception as error:
            raise AssertionError(f"life {seed}: {error!r}") from error
        swaps += life.swaps
    assert swaps > 1_000


# ---- explanations of random states --------------------------------------------------------------


def open_up(limit: Limit) -> None:
    """It admits everything from now on."""

    def ready_at(key: Hashable, cost: float, now: float) -> float:
        return now

    limit.ready_at = ready_at  # type: ignore[method-assign]
    limit.changed()


def limits_of(chain: Chain) -> list[Limit]:
    return [policy for policy in chain._policies() if isinstance(policy, Limit)]


class ExplainedLife(Life):
    """In which it is asked for random tasks why they wait, and the answer is put to the test."""

    explained = 0

    def round(self, eventful: bool) -> None:
        super().round(eventful)
        waiting: list[Task[Any]] = self.chain.machine.tasks()
        if waiting and self.rng.random() < 0.5:
            self.explain(min(waiting, key=lambda task: self.rng.random()))

    def explain(self, task: Task[Any]) -> None:
        chain: Chain = self.chain.machine
        answer = chain.explain(task, self.now)
        assert answer.reasons, f"{task!r} waits for nothing"
        self.explained += 1
        if not any(isinstance(stage, FewestRunning) for stage in chain.stages):
            self.others_change_nothing(chain, task, answer)
        self.the_named_ones_lead_to_the_start(chain, task, answer)

    def others_change_nothing(self, chain: Chain, task: Task[Any], answer: Waiting) -> None:
        places = [id(limit) for limit in limits_of(chain)]
        named = {places.index(id(r.stage)) for r in answer.reasons if id(r.stage) in places}
        twin, ghosts = snapshot_of(chain)
        for place, limit in enumerate(limits_of(twin)):
            if place not in named:
                open_up(limit)
        self.start_all(twin)
        assert ghosts[task].state != "running", f"{answer} doesn't bind"

    def the_named_ones_lead_to_the_start(
        self, chain: Chain, task: Task[Any], answer: Waiting
    ) -> None:
        twin, ghosts = snapshot_of(chain)
        ghost = ghosts[task]
        opened: set[BaseStrategy] = set()
        while ghost.state == "queued":
            reasons = twin.explain(ghost, self.now).reasons
            assert reasons
            if not all(isinstance(reason.stage, Limit) for reason in reasons):
                return  # a hold, or a router without an open provider
            fresh = [r.stage for r in reasons if r.stage not in opened]
            assert fresh, f"{reasons} are open already"
            for limit in fresh:
                assert isinstance(limit, Limit)
                open_up(limit)
                opened.add(limit)
            self.start_all(twin)

    def start_all(self, chain: Chain) -> None:
        while True:
            task = chain.pull(self.now)
            if task is not None:
                chain.begun(task, self.now)
            elif chain.next_wake(self.now) > self.now:
                return

    def judge(self) -> None:
        pass


class ExplainedLifeWithBatches(ExplainedLife):
    batches = True


@pytest.mark.parametrize(("kind", "seeds"), [(ExplainedLife, 300), (ExplainedLifeWithBatches, 200)])
def test_what_an_explanation_names_is_what_binds(kind: type[ExplainedLife], seeds: int) -> None:
    explained = 0
    for seed in range(seeds):
        life = kind(seed, 12 + seed % 30)
        try:
            life.live()
        except Exception as error:
            raise AssertionError(f"life {seed}: {error!r}") from error
        explained += life.explained
    assert explained > 3 * seeds


# ---- one by one ---------------------------------------------------------------------------------


def full(*stages: BaseStrategy, tasks: int = 3, **metadata: Any) -> tuple[Chain, list[Task[Any]]]:
    """A chain in which the first task runs and the others wait."""
    chain = Chain(*stages)
    made = [Task(nothing, dict(metadata)) for _ in range(tasks)]
    for task in made:
        chain.add(task, 0.0)
    first = chain.pull(0.0)
    assert first is not None
    chain.begun(first, 0.0)
    assert chain.pull(0.0) is None
    return chain, made


def test_without_the_running_tasks_what_they_hold_stays_taken() -> None:
    chain, (first, second, _) = full(ConcurrentLimitStrategy(1))
    alone = chain.snapshot()
    assert alone.next_wake(5.0) == float("inf")
    twin, ghosts = snapshot_of(chain, [first])
    twin.finish(ghosts[first], Outcome("success", 0.0, 1.0), 1.0)
    started = twin.pull(1.0)
    assert started is ghosts[second]
    assert (second.state, chain.queued, twin.queued) == ("queued", 2, 1)
    assert chain.pull(1.0) is None


def test_a_live_change_reaches_the_copy_alone() -> None:
    chain, _ = full(ConcurrentLimitStrategy(1))
    twin = chain.snapshot()
    twin["concurrent_limit"].max_concurrent = 3
    assert twin.pull(0.0) is not None
    assert chain["concurrent_limit"].max_concurrent == 1
    assert chain.pull(0.0) is None


def test_a_ghost_shares_the_work_and_never_runs_what_can_run_once() -> None:
    work = nothing()
    chain = Chain(ConcurrentLimitStrategy(1))
    data = {"user": "ann"}
    task = Task(work, data)
    chain.add(task, 0.0)
    (ghost,) = chain.snapshot().tasks()
    assert (ghost.id, ghost.name, ghost.metadata) == (task.id, task.name, data)
    assert ghost.metadata is data
    with pytest.raises(InvalidState, match="work of the original"):
        ghost._work()  # type: ignore[misc, operator]
    assert ghost.cancel()
    assert task.state == "queued"
    assert task.cancel()


def test_keys_stay_the_objects_that_they_are() -> None:
    class Tenant:
        """Equal to itself alone."""

    ann, bob = Tenant(), Tenant()
    limit = ConcurrentLimitStrategy(1, key=lambda task: (task.metadata["tenant"], 1))
    chain, _ = full(limit, tasks=2, tenant=ann)
    twin = chain.snapshot()
    for tenant in (ann, bob):
        twin.add(Task(nothing, {"tenant": tenant}), 0.0)
    started = twin.pull(0.0)
    assert started is not None
    assert started.metadata["tenant"] is bob
    assert twin.pull(0.0) is None


class Foreign(BaseStrategy):
    def add_task(self, task: Task) -> None: ...

    def get_next_task(self) -> Task | None:
        return None

    async def get_sleep_interval(self) -> float | None:
        return None


def test_what_cannot_be_foreseen_says_so() -> None:
    with pytest.raises(InvalidState, match=r"Foreign object .* the four methods only"):
        Chain(ConcurrentLimitStrategy(1), Foreign()).snapshot()

    class Unique(ConcurrentLimitStrategy):
        def __deepcopy__(self, memo: object) -> Any:
            raise TypeError("there is one of me")

    with pytest.raises(InvalidState, match=r"cannot be copied: TypeError\('there is one of me'\)"):
        Chain(Unique(1)).snapshot()


def test_a_snapshot_needs_no_deep_recursion() -> None:
    """Lanes lead to nodes, and nodes to lanes: thousands of them in a row."""
    chain = Chain(ConcurrentLimitStrategy(1, key="a"), ConcurrentLimitStrategy(1, key="b"))
    for i in range(3_000):
        chain.add(Task(nothing, {"a": i // 2, "b": (i + 1) // 2}), 0.0)
    while chain.pull(0.0) is not None:
        pass
    twin = chain.snapshot()
    assert twin.queued == chain.queued > 0


def test_a_snapshot_is_for_looking_and_not_for_running() -> None:
    chain, _ = full(ConcurrentLimitStrategy(1))
    twin = chain.snapshot()
    with pytest.raises(InvalidState, match="has tasks running"):
        TaskManager(twin)


# ---- by name ------------------------------------------------------------------------------------


def test_stages_and_providers_go_by_name() -> None:
    window = SlidingWindowStrategy(30, 60)
    groq = Provider("groq", [window, ConcurrentLimitStrategy(8)])
    router = ProviderRouterStrategy([groq, Provider("openai")])
    order, slots, pace = PriorityQueueStrategy(), ConcurrentLimitStrategy(3), DelayedStrategy(1)
    chain = Chain(order, router, slots, pace)
    assert chain["groq"] is groq
    assert chain[0] is chain["priority_queue"] is chain["PriorityQueue"] is order
    assert chain["ConcurrentLimitStrategy"] is chain["concurrent limit"] is slots
    assert list(chain) == [order, router, slots, pace]
    with pytest.raises(IndexError):
        chain[4]
    with pytest.raises(InvalidValue, match=r"no provider 'grok' .*; did you mean 'groq'\?$"):
        chain["grok"]
    with pytest.raises(InvalidValue, match=r"known: 'groq', 'openai', 'priority_queue', .*'\)$"):
        chain["anthropic"]
    with pytest.raises(InvalidType, match=r"not 1\.5"):
        chain[1.5]  # type: ignore[index]


def test_a_name_that_two_go_by_is_no_name() -> None:
    chain = Chain(ConcurrentLimitStrategy(1), PriorityQueueStrategy(), ConcurrentLimitStrategy(2))
    with pytest.raises(InvalidValue, match=r"may mean chain\[0\] and chain\[2\]: say which"):
        chain["concurrent_limit"]
    chain = Chain(
        ProviderRouterStrategy([Provider("groq")]), ProviderRouterStrategy([Provider("groq")])
    )
    with pytest.raises(InvalidValue, match=r"chain\[0\]'s groq and chain\[1\]'s groq"):
        chain["groq"]


def test_a_strategy_without_a_telling_name_goes_by_all_of_it() -> None:
    class Strategy(ConcurrentLimitStrategy):
        pass

    chain = Chain(Strategy(1))
    assert chain["Strategy"] is chain[0]


def test_a_provider_passes_on_the_parameters_of_its_limits() -> None:
    window, slots = SlidingWindowStrategy(30, 60), ConcurrentLimitStrategy(8)
    chain = Chain(ProviderRouterStrategy([Provider("groq", [window, slots])]))
    setattr(chain["groq"], "max_requests", 60)  # noqa: B010  # as in what_if
    assert chain["groq"].max_requests == window.max_requests == 60
    assert chain["groq"].max_concurrent == 8
    with pytest.raises(AttributeError, match="did you mean 'max_requests'"):
        chain["groq"].max_request = 60
    with pytest.raises(AttributeError, match=r"theirs: max_concurrent, max_requests, min_interval"):
        _ = chain["groq"].color
    with pytest.raises(InvalidValue, match="max_concurrent must be"):
        chain["groq"].max_concurrent = -1
    two = Provider("two", [ConcurrentLimitStrategy(1), ConcurrentLimitStrategy(2)])
    with pytest.raises(AttributeError, match=r"'two' has 2 limits with a 'max_concurrent'"):
        two.max_concurrent = 3
    with pytest.raises(AttributeError, match="theirs: none"):
        _ = Provider("bare").max_concurrent


# ---- usage of what is no built-in limit ---------------------------------------------------------


class Bare(Limit):
    def ready_at(self, key: Hashable, cost: float, now: float) -> float:
        return now + 1

    def acquire(self, key: Hashable, cost: float, now: float) -> None: ...

    def usage(self, key: Hashable, now: float) -> Usage:
        return Usage(1.25, 2)


def test_a_limit_without_words_of_its_own_is_told_by_its_numbers() -> None:
    limit = Bare()
    assert limit.tell(limit.usage(None, 0)) == "has 1.25 of 2 in use (Bare())"
