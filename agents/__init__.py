"""Agents: one module each, a composition of offpolicy_jax's functions. `REGISTRY` names them."""

import difflib
import importlib
from typing import Any

from offpolicy_jax.errors import UserError

REGISTRY = {
    "sac": "agents.sac",
    "sac_discrete": "agents.sac_discrete",
    "dsac_t": "agents.dsac_t",
    "pmoe": "agents.pmoe",
    "pmoe_ppo": "agents.pmoe_ppo",
    "mdpo": "agents.mdpo",
    "mdpo_on_policy": "agents.mdpo_on_policy",
    "dqn": "agents.dqn",
    "proto_value": "agents.proto_value",
    "ppo": "agents.ppo",
    "props": "agents.props",
    "ailboost": "agents.ailboost",
    "dac": "agents.dac",
    "iq_learn": "agents.iq_learn",
    "value_dice": "agents.value_dice",
    "bc": "agents.bc",
}


def load(name: str) -> Any:
    """The module of an agent. Raises UserError with the nearest names if there is none."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name.lower(), REGISTRY, n=3, cutoff=0.4) or sorted(REGISTRY)
        raise UserError(f"unknown agent {name!r}: did you mean {' or '.join(near)}?")
    return importlib.import_module(REGISTRY[name])
