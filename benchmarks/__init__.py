"""What sbxproxy costs, beside other proxies and no proxy, in one interleaved run: ``python -m benchmarks --help``."""
