"""Benchmarks: nsrun against bwrap, a hand-written floor, and whatever peers are installed."""
