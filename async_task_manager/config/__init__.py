"""One TOML file becomes a chain of strategies."""

from __future__ import annotations

from async_task_manager.config.flow import FlowConfig, build_chain, load_config, parse_config
from async_task_manager.config.problems import ConfigError
from async_task_manager.config.provider import ProviderConfig

__all__ = [
    "ConfigError",
    "FlowConfig",
    "ProviderConfig",
    "build_chain",
    "load_config",
    "parse_config",
]
