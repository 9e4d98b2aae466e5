"""Benchmarks: whether answers follow their instructions, judged by rules."""
