"""Benchmarks: the operators beside a textbook implementation and other libraries, on the same inputs in one run."""
