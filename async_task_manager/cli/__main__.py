"""`python -m async_task_manager.cli` is `atm`."""

from __future__ import annotations

from async_task_manager.cli import main

if __name__ == "__main__":
    main()
