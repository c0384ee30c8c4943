"""The slots of the pipeline, and the stages that come with it."""

from __future__ import annotations

__all__ = [
    "Handler",
    "Inspector",
    "Pipeline",
    "PolicyStage",
    "Terminator",
    "TlsTerminator",
    "Transform",
    "TransformFactory",
    "check_handler",
    "check_observer",
    "check_policy",
    "check_sniffer",
    "check_terminator",
    "check_transform",
    "run_stage",
]

from typing import TYPE_CHECKING

from sbxproxy.lazy import face

if TYPE_CHECKING:
    from sbxproxy.stages.inspector import Inspector
    from sbxproxy.stages.pipeline import Pipeline, run_stage
    from sbxproxy.stages.slots import (
        Handler,
        PolicyStage,
        Terminator,
        Transform,
        TransformFactory,
        check_handler,
        check_observer,
        check_policy,
        check_sniffer,
        check_terminator,
        check_transform,
    )
    from sbxproxy.stages.terminator import TlsTerminator

face(
    __name__,
    {
        "inspector": "Inspector",
        "pipeline": "Pipeline run_stage",
        "slots": (
            "Handler PolicyStage Terminator Transform TransformFactory check_handler check_observer check_policy check_sniffer "
            "check_terminator check_transform"
        ),
        "terminator": "TlsTerminator",
    },
)
