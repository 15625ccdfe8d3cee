"""Tables in a config: limits, stages, costs, secrets; and what it all means in words."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from async_task_manager.config import ConfigError, FlowConfig, build_chain, parse_config
from async_task_manager.config.costs import Estimate, at_path, parse_estimate
from async_task_manager.config.example import example
from async_task_manager.config.outcomes import RetriesStrategy
from async_task_manager.config.secrets import hidden
from async_task_manager.config.stages import make_strategy, strategy_names
from async_task_manager.config.words import in_words, paces
from async_task_manager.errors import NonRetryable, RateLimited
from async_task_manager.strategies import (
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
)
from async_task_manager.task import Outcome


def flow(text: str) -> FlowConfig:
    """A config of one provider, p, with these lines; what follows [[ stands outside it."""
    lines, bracket, rest = text.partition("[[")
    whole = f'[[providers]]\nname = "p"\nbase_url = "http://p"\n{lines}\n{bracket}{rest}'
    return parse_config(tomllib.loads(whole))


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        flow(text)
    return str(caught.value)


def test_a_limit_may_be_a_table() -> None:
    (provider,) = flow(
        """
slack = 0.1
limits = [
    "9/s",
    { rate = "30/minute", key = "model", slack = 0 },
    { rate = "900 tokens/hour" },
    { strategy = "token_bucket", rate = 5, burst = 10, cost = "images" },
]
"""
    ).providers
    plain, keyed, tokens, bucket, slots, *_ = provider.strategies()
    assert isinstance(plain, SlidingWindowStrategy) and plain.slack == 0.1
    assert isinstance(keyed, SlidingWindowStrategy) and (keyed.key, keyed.slack) == ("model", 0)
    assert isinstance(tokens, SlidingWindowStrategy) and tokens.cost == "tokens"
    assert isinstance(bucket, TokenBucketStrategy) and (bucket.rate, bucket.burst) == (5, 10)
    assert isinstance(slots, ConcurrentLimitStrategy)
    assert provider.units == ("tokens", "images")
    assert provider.keys == ("model",)
    assert provider.labels == (
        "9/s",
        "30/minute per model",
        "900 tokens/hour",
        "token_bucket (rate = 5, burst = 10, cost = images)",
        "100 at once",
    )


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('limits = [{ rate = "9/s", kee = "model" }]', r"limits\[0\]\.kee: .*did you mean 'key'"),
        ("limits = [{}]", r"limits\[0\]\.rate: is missing"),
        ('limits = ["9/s", { rate = "9" }]', r"limits\[1\]\.rate: a rate is written .* not '9'"),
        ('limits = [{ rate = "9/s", slack = -1 }]', r"limits\[0\]\.slack: must be .* not -1"),
        ('limits = [{ strategy = "token_bukket" }]', "no strategy 'token_bukket'; did you mean"),
        (
            'limits = [{ strategy = "token_bucket", rat = 1 }]',
            "'token_bucket' has no parameter 'rat'; did you mean 'rate'",
        ),
        ('limits = [{ strategy = "token_bucket", rate = 1 }]', "needs the parameter 'burst'"),
        (
            'limits = [{ strategy = "token_bucket", rate = -1, burst = 1 }]',
            "'token_bucket': rate must be a finite number above 0, not -1",
        ),
        ('limits = [{ strategy = "priority_queue" }]', "'priority_queue' is no limit"),
        ("cost = -1", r"providers\[0\]\.cost: cost must be .* at least 0, not -1"),
        ('cost = "chars/"', r"cost: an estimate is a number, .* not 'chars/'"),
        ('cost = "chars/0"', r"cost: the divisor of chars must be .* above 0, not 0"),
        ("cost = [1]", r"cost: cost must be a number, not \[1\]"),
        ('settle = "usage tokens"', "settle: a path is written like .* not 'usage tokens'"),
        ("settle = 3", "settle: must be a path such as 'usage.total_tokens', not 3"),
        ('[[chain]]\nstrategy = "xyz"', r"chain\[0\]: there is no strategy 'xyz'; there are "),
        ('[[chain]]\nlevels = "x"', r"chain\[0\]: strategy must name one"),
        ("[[chain]]\nstrategy = 3", r"chain\[0\]: strategy must name one, .* not 3"),
        ('[[chain]]\nstrategy = "providers"\nx = 1', r"'providers' has no parameters, not x"),
        ('[[chain]]\nstrategy = "providers"\n' * 2, r"chain: strategy 'providers' may stand there"),
        (
            '[[chain]]\nstrategy = "priority_queue"\naging = -1',
            r"chain\[0\]: strategy 'priority_queue': aging must be .* above 0, not -1",
        ),
    ],
)
def test_an_error_in_a_table_says_where_it_is(lines: str, says: str) -> None:
    assert re.search(says, refused(lines)), refused(lines)


def test_a_stage_that_is_no_table() -> None:
    with pytest.raises(ConfigError, match=r"chain\[0\]: must be a table, not 'x'"):
        parse_config({"providers": [{"name": "p", "base_url": "http://p"}], "chain": ["x"]})


def test_the_chain_is_as_the_file_has_it() -> None:
    text = """
[[chain]]
strategy = "concurrent_limit"
max_concurrent = 7

[[chain]]
strategy = "providers"

[[chain]]
strategy = "priority_queue"
key = "rank"
aging = 60
"""
    total, router, order, retries = build_chain(flow(text)).stages
    assert isinstance(retries, RetriesStrategy)
    assert isinstance(total, ConcurrentLimitStrategy) and total.max_concurrent == 7
    assert isinstance(router, ProviderRouterStrategy)
    assert isinstance(order, PriorityQueueStrategy)
    last = build_chain(flow('[[chain]]\nstrategy = "time_based"')).stages
    assert isinstance(last[1], ProviderRouterStrategy) and len(last) == 3


# ---- strategies of other packages ---------------------------------------------------------------

THIRD_PARTY = '''
from async_task_manager.strategies import ConcurrentLimitStrategy

class PoliteStrategy(ConcurrentLimitStrategy):
    """One at a time."""

    def __init__(self) -> None:
        super().__init__(1)

def anything(**options):
    return ConcurrentLimitStrategy(len(options))

def nothing():
    return 3

number = 3
one = ConcurrentLimitStrategy(1)

def shared():
    return one
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that was installed beside this one, with strategies of its own."""
    (tmp_path / "polite_atm.py").write_text(THIRD_PARTY)
    info = tmp_path / "polite_atm-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polite-atm\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[async_task_manager.strategies]\n"
        "polite = polite_atm:PoliteStrategy\nanything = polite_atm:anything\n"
        "nothing = polite_atm:nothing\nshared = polite_atm:shared\nnumber = polite_atm:number\n"
        "broken = polite_atm:gone\npriority_queue = polite_atm:nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "polite_atm", raising=False)


@pytest.mark.usefixtures("third_party")
def test_strategies_of_other_packages() -> None:
    assert {"polite", "priority_queue", "token_bucket"} <= set(strategy_names())
    config = flow('limits = [{ strategy = "polite" }]\n[[chain]]\nstrategy = "polite"')
    polite, router, _ = build_chain(config).stages
    assert isinstance(polite, ConcurrentLimitStrategy) and polite.max_concurrent == 1
    assert isinstance(router, ProviderRouterStrategy)
    assert type(router["p"].limits[0]).__name__ == "PoliteStrategy"
    assert isinstance(make_strategy({"strategy": "priority_queue"}), PriorityQueueStrategy)
    made = make_strategy({"strategy": "anything", "a": 1, "b": 2})
    assert isinstance(made, ConcurrentLimitStrategy) and made.max_concurrent == 2


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"strategy": "polit"}, "no strategy 'polit'; did you mean 'polite'"),
        ({"strategy": "polite", "x": 1}, "'polite' has no parameter 'x'; its parameters are none"),
        ({"strategy": "nothing"}, "'nothing' gave no strategy but 3"),
        ({"strategy": "number"}, r"'number' \(polite_atm:number\) cannot be called"),
        ({"strategy": "broken"}, r"'broken' .* cannot be loaded: AttributeError"),
    ],
)
def test_what_other_packages_may_get_wrong(table: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_strategy(table)


@pytest.mark.usefixtures("third_party")
def test_stages_that_cannot_stand_together() -> None:
    assert re.search(
        "chain: the same strategy stands twice", refused('[[chain]]\nstrategy = "shared"\n' * 2)
    )


def test_every_strategy_has_a_name() -> None:
    for name in ("delayed", "fixed_window", "sliding_window", "time_based"):
        assert name in strategy_names()
    assert "provider_router" not in strategy_names()


# ---- costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "body", "chars", "cost"),
    [
        (500, None, 0, 500),
        (0.5, None, 0, 0.5),
        ("chars/4", None, 9, 3),
        ("chars/4", None, 8, 2),
        ("max_tokens", {"max_tokens": 7}, 9, 7),
        ("limits.0.max", {"limits": [{"max": 7}]}, 9, 7),
        ("chars/4 + max_tokens + 10", {"max_tokens": 7.5}, 8, 19.5),
        ("max_tokens", {}, 9, None),
        ("max_tokens", {"max_tokens": "7"}, 9, None),
        ("max_tokens", {"max_tokens": True}, 9, None),
        ("max_tokens", {"max_tokens": -7}, 9, None),
        ("max_tokens", None, 9, None),
    ],
)
def test_an_estimate(spec: float | str, body: object, chars: int, cost: float | None) -> None:
    assert parse_estimate(spec).of(body, chars) == cost


def test_estimates_and_settlements_are_by_unit() -> None:
    limits = 'limits = ["9 tokens/s", "9 images/s"]\n'
    (provider,) = flow(limits + 'cost = 5\nsettle = "used"').providers
    assert provider.estimates == {"tokens": Estimate(5), "images": Estimate(5)}
    assert provider.settled == {"tokens": "used", "images": "used"}
    tables = 'cost = { tokens = "chars/4" }\nsettle = { images = "n" }'
    (provider,) = flow(limits + tables).providers
    assert provider.estimates == {"tokens": Estimate(per_char=0.25)}
    assert provider.settled == {"images": "n"}
    (provider,) = flow(limits).providers
    assert not provider.estimates and not provider.settled


def test_what_stands_at_a_path() -> None:
    value = {"a": [{"b": 1}]}
    assert at_path(value, "a.0.b") == 1
    assert at_path(value, "a.1.b") is at_path(value, "a.b") is at_path(value, "a.0.b.c") is None


# ---- secrets ------------------------------------------------------------------------------------


def test_secrets_that_are_written_out_are_hidden_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLASHED", 'ab/cd"efgh')
    (provider,) = flow(
        'headers = { Authorization = "Bearer very/secret", Accept = "text/plain", '
        'x-api-key = "short", X-Own = "${SLASHED}" }'
    ).providers
    text = 'Bearer very/secret, very\\/secret, very/secret; text/plain; short; ab/cd\\"efgh; ab/cd'
    assert hidden(text, provider.secrets()) == "***, ***, ***; text/plain; short; ***; ab/cd"


# ---- in words -----------------------------------------------------------------------------------


def test_the_example_is_sound_and_means_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk-very-secret")
    config = parse_config(tomllib.loads(example()))
    assert [provider.name for provider in config.providers] == ["groq", "spare"]
    text = "\n".join(in_words(config))
    assert "1. Higher priority first" in text
    assert "groq: 30/minute, 6000 tokens/minute, 14400/day@America/Los_Angeles, 4 at once" in text
    assert "groq   0.167 requests/s, 600 an hour, 14,400 a day: 14400/day@America/Los_" in text
    assert "5,995 tokens a minute (6000 tokens/minute): it binds instead if a request" in text
    assert "Switched off: spare." in text
    assert "very-secret" not in text
    unfolded = example().replace("# [[", "[[").replace("# strategy", "strategy")
    assert len(build_chain(parse_config(tomllib.loads(unfolded))).stages) == 4


def test_what_the_example_has_as_comments_are_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk-very-secret")
    said = re.sub(
        r"^# (\[providers\.|\w+ = )", r"\1", example().partition("# Without these")[0], flags=re.M
    )
    groq, spare = parse_config(tomllib.loads(said)).providers
    assert groq.retry and groq.breaker and not spare.retry and not spare.breaker
    breaker, by_default = groq.strategies()[4], spare.strategies()[3]
    assert repr(breaker).replace(".0", "") == repr(by_default).replace(".0", "")
    assert repr(groq.retries()) == repr(spare.retries())


def test_the_throughput_in_the_long_run() -> None:
    (provider,) = flow(
        """
slack = 1
cost = 30
limits = [
    "60/59s",
    "120 tokens/119s",
    { rate = "9/s", key = "model" },
    { strategy = "token_bucket", rate = 5, burst = 10 },
    { strategy = "delayed", delay_seconds = 1 },
]
"""
    ).providers
    assert [(pace.unit, pace.per_second, pace.key, pace.requests) for pace in paces(provider)] == [
        (None, 1.0, None, 1.0),
        ("tokens", 1.0, None, pytest.approx(1 / 30)),
        (None, 4.5, "model", float("inf")),
        (None, 5, None, 5.0),
    ]
    text = "\n".join(in_words(flow('limits = ["60/59s"]\nslack = 1')))
    assert "p  1 requests/s, 3,600 an hour, 86,400 a day: 60/59s is what binds" in text
    text = "\n".join(in_words(flow('limits = ["60 tokens/s"]\nmax_concurrent = 3')))
    assert "p  as many requests as 3 at once are" in text
    assert "3,429 tokens a minute (60 tokens/s), by what requests cost" in text


def test_two_providers_add_up() -> None:
    one = {"base_url": "http://p", "limits": ["1/s", "9 images/s"], "slack": 0, "cost": 0}
    config = parse_config(
        {
            "providers": [
                one | {"name": "a"},
                one | {"name": "b", "settle": "n", "limits": ["1/s", {"rate": "5/s", "key": "k"}]},
            ],
            "chain": [{"strategy": "concurrent_limit", "max_concurrent": 3}],
        }
    )
    text = "\n".join(in_words(config))
    assert "1. At most 3 tasks at once." in text
    assert "300 requests a minute for each k (5/s per k)" in text
    assert "all  2 requests/s, 7,200 an hour, 172,800 a day" in text


# ---- retries ------------------------------------------------------------------------------------


def test_retries_are_by_provider() -> None:
    config = parse_config(
        {
            "providers": [
                {"name": "a", "base_url": "http://a"},
                {
                    "name": "b",
                    "base_url": "http://b",
                    "retry": {
                        "max_attempts": 2,
                        "backoff": {"kind": "fixed", "seconds": 3},
                        "budget": False,
                    },
                },
                {"name": "c", "base_url": "http://c", "retry": False},
                {"name": "d", "base_url": "http://d", "retry": {"backoff": "linear"}},
            ]
        }
    )
    a, b, c, d = (provider.retries() for provider in config.providers)
    assert c is None and a is not None and b is not None and d is not None
    assert (a.max_attempts, b.max_attempts) == (5, 2)
    assert a.budget is not None and (a.budget.ratio, b.budget) == (1.0, None)
    assert b.backoff(7) == 3
    assert repr(d.backoff).startswith("linear(")
    assert isinstance(build_chain(config).stages[-1], RetriesStrategy)
    assert "'b': RetryStrategy(2" in repr(build_chain(config).stages[-1])
    text = "\n".join(in_words(config))
    assert "What failed is tried again:" in text
    assert f"{config.providers[0].name}: up to {a.max_attempts} attempts; what was" in text


def test_a_retry_in_the_chain_stands_for_all() -> None:
    table = (
        '[[chain]]\nstrategy = "retry"\nmax_attempts = 2\nbackoff = { kind = "fixed", seconds = 3 }'
    )
    stages = build_chain(flow(table)).stages
    assert isinstance(stages[0], RetryStrategy) and stages[0].backoff(1) == 3
    assert [type(stage).__name__ for stage in stages] == ["RetryStrategy", "ProviderRouterStrategy"]
    assert len(build_chain(flow("retry = false")).stages) == 3


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("retry = true", "retry: must be a table or false, not True"),
        ("retry = { max_attempts = 0 }", "retry: strategy 'retry': max_attempts must be"),
        ("retry = { attempts = 3 }", "has no parameter 'attempts'; did you mean 'max_attempts'"),
        ("retry = { backoff = 3 }", "backoff must be a table or one of exponential, .* not 3"),
        ('retry = { backoff = "expo" }', "there is no backoff 'expo'"),
        ('retry = { backoff = "linaer" }', "no backoff 'linaer'; did you mean 'linear'"),
        ("retry = { backoff = { bse = 1 } }", "backoff: .*unexpected keyword argument 'bse'"),
        ("retry = { backoff = { base = -1 } }", "backoff: base must be .* not -1"),
        ("retry = { budget = 3 }", "budget must be a table, not 3"),
        ("retry = { budget = { ratio = -1 } }", "budget: ratio must be .* not -1"),
    ],
)
def test_a_retry_that_cannot_be(lines: str, says: str) -> None:
    assert re.search(says, refused(lines)), refused(lines)


# ---- what else a provider says ------------------------------------------------------------------


def test_weights_prices_and_the_policy_reach_the_router() -> None:
    config = parse_config(
        {
            "policy": "cheapest",
            "providers": [
                {"name": "a", "base_url": "http://a", "weight": 3, "price": 0.2},
                {"name": "b", "base_url": "http://b", "breaker": False, "limit_headers": False},
            ],
        }
    )
    router = build_chain(config).stages[2]
    assert isinstance(router, ProviderRouterStrategy)
    assert (router.policy, router["a"].weight, router["a"].price) == ("cheapest", 3, 0.2)
    assert [type(limit).__name__ for limit in router["b"].limits] == [
        "ConcurrentLimitStrategy",
        "CooldownStrategy",
    ]


def test_a_breaker_counts_what_the_provider_is_at_fault_for() -> None:
    (provider,) = flow("breaker = { min_calls = 1, cooldown = 5 }").providers
    for error, opens in (
        (NonRetryable(), False),
        (RateLimited(), False),
        (TimeoutError(), True),
    ):
        breaker = provider.strategies()[1]
        assert isinstance(breaker, CircuitBreakerStrategy) and breaker.cooldown == 5
        grant = breaker.acquire(None, 1, 0.0)
        breaker.release(grant, Outcome("failure", 0.0, 0.0, error), 0.0)
        assert (breaker.ready_at(None, 1, 0.0) > 0) is opens


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("weight = 0", "weight: must be .* above 0, not 0"),
        ("price = -1", "price: must be .* at least 0, not -1"),
        ("breaker = 3", "breaker: must be a table or false, not 3"),
        ("breaker = { cooldwn = 3 }", "no parameter 'cooldwn'; did you mean 'cooldown'"),
        ("breaker = { cooldown = -3 }", "'circuit_breaker': cooldown must be .* not -3"),
        ("limit_headers = 3", "limit_headers: must be true, false or a table of headers, not 3"),
        ("limit_headers = { a = 3 }", "limit_headers: a must be the name of a header, not 3"),
    ],
)
def test_what_else_may_be_wrong(lines: str, says: str) -> None:
    assert re.search(says, refused(lines)), refused(lines)


def test_a_policy_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"policy: policy must be one of 'ordered', .* 'fast'"):
        parse_config({"policy": "fast", "providers": [{"name": "p", "base_url": "http://p"}]})
