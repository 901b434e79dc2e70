"""Our speed and memory against others' code; run by `python -m tests.benchmarks`, and collected by no test."""
