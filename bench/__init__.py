"""Benchmarks: throughput and memory against the peer, and where the time goes. `make bench` runs them."""
