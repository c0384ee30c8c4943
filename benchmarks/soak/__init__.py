"""A soak: every kind of visitor at once for minutes, policies that change under them, and figures that must stay flat."""
