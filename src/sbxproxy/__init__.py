"""An egress firewall for code sandboxes, to embed in any Trio program.

A ``Proxy`` holds ``Sandbox`` objects; each stands behind a policy that may change while it runs. Pipeline parts are in
``sbxproxy.stages``, and what tests need in ``sbxproxy.testing``.
"""

from __future__ import annotations

__all__ = [
    "CallableSource",
    "ClientError",
    "ClientProtocolError",
    "CommandSource",
    "ConfigurationError",
    "DnsAnswered",
    "EnvironmentSource",
    "Event",
    "FileSource",
    "Flow",
    "FlowClosed",
    "FlowOpened",
    "JsonLines",
    "LimitError",
    "Limits",
    "ListenerAuth",
    "Pipeline",
    "Policy",
    "PolicyChanged",
    "PolicyError",
    "PolicyProblem",
    "Problem",
    "Proxy",
    "RequestDone",
    "Sandbox",
    "SbxproxyError",
    "Secret",
    "SecretError",
    "SecretSource",
    "Secrets",
    "Settings",
    "StageError",
    "UpstreamError",
    "__version__",
    "open_unix_listener",
]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sbxproxy.errors import (
        ClientError,
        ClientProtocolError,
        ConfigurationError,
        LimitError,
        PolicyError,
        PolicyProblem,
        SbxproxyError,
        SecretError,
        StageError,
        UpstreamError,
    )
    from sbxproxy.events import DnsAnswered, Event, FlowClosed, FlowOpened, JsonLines, PolicyChanged, Problem, RequestDone
    from sbxproxy.flow import Flow
    from sbxproxy.fronts import ListenerAuth
    from sbxproxy.net import open_unix_listener
    from sbxproxy.policy import Policy
    from sbxproxy.proxy import Proxy
    from sbxproxy.sandbox import Sandbox
    from sbxproxy.secrets import (
        CallableSource,
        CommandSource,
        EnvironmentSource,
        FileSource,
        Secret,
        Secrets,
        SecretSource,
    )
    from sbxproxy.settings import Limits, Settings
    from sbxproxy.stages import Pipeline

face(
    __name__,
    {
        "errors": (
            "ClientError ClientProtocolError ConfigurationError LimitError PolicyError PolicyProblem SbxproxyError SecretError "
            "StageError UpstreamError"
        ),
        "events": "DnsAnswered Event FlowClosed FlowOpened JsonLines PolicyChanged Problem RequestDone",
        "flow": "Flow",
        "fronts": "ListenerAuth",
        "net": "open_unix_listener",
        "policy": "Policy",
        "proxy": "Proxy",
        "sandbox": "Sandbox",
        "secrets": "CallableSource CommandSource EnvironmentSource FileSource Secret SecretSource Secrets",
        "settings": "Limits Settings",
        "stages": "Pipeline",
    },
)
