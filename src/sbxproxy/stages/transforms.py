"""A sandbox's plugin transforms, each made once for a step of the policy."""

from __future__ import annotations

__all__ = ["Transforms"]

import dataclasses
from collections.abc import Mapping

from sbxproxy.errors import StageError
from sbxproxy.policy import action as actions
from sbxproxy.secrets import Secret, Secrets
from sbxproxy.stages.slots import Transform, TransformFactory, check_transform


class Transforms:
    """A sandbox's plugin transforms: made when first needed, and again when one of their secrets has changed."""

    __slots__ = ("_factories", "_made", "_secrets")

    def __init__(self, factories: Mapping[str, TransformFactory], secrets: Secrets) -> None:
        """Take what a policy may name, and where its secrets come from."""
        self._factories = factories
        self._secrets = secrets
        self._made: dict[int, tuple[actions.UsePlugin, dict[str, Secret], Transform]] = {}

    def forget(self) -> None:
        """Drop what was made: the policy that asked for it is no longer in force."""
        self._made.clear()

    def body_limit(self, step: actions.UsePlugin) -> int:
        """Return how much of a body the plugin wants to see, by its class or factory, without making one."""
        factory = self._factories.get(step.name)
        if dataclasses.is_dataclass(factory):
            for member in dataclasses.fields(factory):
                if member.name == "body_limit" and isinstance(member.default, int):
                    return member.default
        limit = getattr(factory, "body_limit", 0)
        return limit if isinstance(limit, int) else 0

    async def get(self, step: actions.UsePlugin) -> Transform:
        """Return the transform of *step*.

        Raises:
            SecretError: one of its secrets can't be had.
            StageError: there is no such plugin, or it can't be made from its options.
        """
        secrets = {name: await self._secrets.get(name) for name in step.secrets}
        made = self._made.get(id(step))
        if made is not None and made[0] is step and made[1] == secrets:
            return made[2]
        factory = self._factories.get(step.name)
        if factory is None:
            raise StageError(f"no transform is named {step.name!r}")
        options = step.render({name: secret.reveal() for name, secret in secrets.items()}, wrap=Secret)
        failure = ""
        try:
            transform = factory(**options)
            check_transform(transform)
            wanted = getattr(transform, "body_limit", 0)
        except Exception as error:  # noqa: BLE001  # a factory's error may quote its options, so it is no context either
            failure = type(error).__name__
        if failure:
            raise StageError(f"transform {step.name!r} can't be made from its config: {failure}")
        if wanted > self.body_limit(step):  # it would be shown no body, and might take that for an empty one
            raise StageError(f"transform {step.name!r} wants a body, and its class or factory has no such body_limit")
        self._made[id(step)] = (step, secrets, transform)
        return transform
