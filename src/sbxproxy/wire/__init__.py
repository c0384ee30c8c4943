"""Wire formats: pure functions between bytes and frozen values, without sockets, event loop or policy."""
