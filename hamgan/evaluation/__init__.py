"""Evaluation: features, metrics, reference statistics, protocol, runner and report."""
