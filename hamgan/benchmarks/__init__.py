"""Benchmarks: what parts of the project cost on the machine they run on. scripts/benchmark.py is
their command line.
"""
