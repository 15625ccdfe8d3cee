"""How fast it is: `python -m benchmarks` prints the table of docs/benchmarks.md."""
