"""Strategies: small policies that are composed in a chain; one file each."""

from async_task_manager.strategies.adaptive import AdaptiveStrategy
from async_task_manager.strategies.adaptive_algorithms import (
    Aimd,
    Gradient,
    LimitAlgorithm,
    Sample,
    Vegas,
)
from async_task_manager.strategies.backoff import (
    Backoff,
    decorrelated,
    exponential,
    fibonacci,
    fixed,
    linear,
)
from async_task_manager.strategies.base import (
    ALL,
    BaseStrategy,
    Branch,
    Collector,
    Feedback,
    GroupOrder,
    Hold,
    Limit,
    Order,
    RetryAt,
    Role,
    Router,
    Sampling,
    Source,
    Usage,
    WallTime,
)
from async_task_manager.strategies.bulk import BulkStrategy, Item
from async_task_manager.strategies.chain import Chain
from async_task_manager.strategies.circuit_breaker import CircuitBreakerStrategy
from async_task_manager.strategies.concurrent_limit import ConcurrentLimitStrategy
from async_task_manager.strategies.cooldown import CooldownStrategy
from async_task_manager.strategies.cost_estimator import CostEstimator
from async_task_manager.strategies.deadline import DeadlineStrategy
from async_task_manager.strategies.delayed import DelayedStrategy
from async_task_manager.strategies.fair_share import FairShareStrategy
from async_task_manager.strategies.fixed_window import FixedWindowStrategy
from async_task_manager.strategies.priority_queue import PriorityQueueStrategy
from async_task_manager.strategies.provider_router import Provider, ProviderRouterStrategy
from async_task_manager.strategies.resources import Resources
from async_task_manager.strategies.retry import RetryBudget, RetryStrategy
from async_task_manager.strategies.sliding_window import SlidingWindowStrategy
from async_task_manager.strategies.time_based import Schedule, TimeBasedStrategy
from async_task_manager.strategies.token_bucket import TokenBucketStrategy
from async_task_manager.strategies.weighted_round_robin import WeightedRoundRobinStrategy

__all__ = [
    "ALL",
    "AdaptiveStrategy",
    "Aimd",
    "Backoff",
    "BaseStrategy",
    "Branch",
    "BulkStrategy",
    "Chain",
    "CircuitBreakerStrategy",
    "Collector",
    "ConcurrentLimitStrategy",
    "CooldownStrategy",
    "CostEstimator",
    "DeadlineStrategy",
    "DelayedStrategy",
    "FairShareStrategy",
    "Feedback",
    "FixedWindowStrategy",
    "Gradient",
    "GroupOrder",
    "Hold",
    "Item",
    "Limit",
    "LimitAlgorithm",
    "Order",
    "PriorityQueueStrategy",
    "Provider",
    "ProviderRouterStrategy",
    "Resources",
    "RetryAt",
    "RetryBudget",
    "RetryStrategy",
    "Role",
    "Router",
    "Sample",
    "Sampling",
    "Schedule",
    "SlidingWindowStrategy",
    "Source",
    "TimeBasedStrategy",
    "TokenBucketStrategy",
    "Usage",
    "Vegas",
    "WallTime",
    "WeightedRoundRobinStrategy",
    "decorrelated",
    "exponential",
    "fibonacci",
    "fixed",
    "linear",
]
