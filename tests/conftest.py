"""``SBXPROXY_ENGINE=0 pytest`` runs all tests with the engine off where they don't ask for it."""

from __future__ import annotations

import os

from sbxproxy.settings import Settings

if os.environ.get("SBXPROXY_ENGINE") == "0":
    Settings.__init__.__kwdefaults__["engine"] = False
