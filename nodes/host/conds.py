"""Conds of a prompt."""

import torch


def is_present(conds, sigma) -> bool:
    """Whether a prompt has an entry at the noise level sigma [B]: they may be bounded in time."""
    bounds = [(c.get("timestep_start"), c.get("timestep_end")) for c in conds]
    if any(start is None and end is None for start, end in bounds):
        return True
    now = float(sigma[0])
    return any((start is None or now <= start) and (end is None or now >= end) for start, end in bounds)


def same_conds(a, b) -> bool:
    """Whether two cond lists are one, or hold the same entries."""
    return a is b or (a is not None and b is not None and [*map(id, a)] == [*map(id, b)])


def thawed_cond(cond: dict) -> dict:
    """A cond entry whose model inputs are ordinary tensors; call it outside of inference mode."""
    return cond | {"model_conds": {k: _thawed(v) for k, v in cond.get("model_conds", {}).items()}}


def _thawed(value):  # of class CONDRegular and its like
    inner = getattr(value, "cond", None)
    if isinstance(inner, torch.Tensor):
        return value._copy_with(inner.clone())
    if isinstance(inner, list) and all(isinstance(t, torch.Tensor) for t in inner):
        return value._copy_with([t.clone() for t in inner])
    return value


def networks_of(conds) -> list[torch.nn.Module]:
    """The networks behind the control nets, adapters and GLIGEN of a cond list."""
    found = []
    for cond in conds:
        if "gligen" in cond:
            found.append(cond["gligen"][1].model)
        control = cond.get("control")
        while control is not None:
            held = [getattr(value, "model", value) for value in vars(control).values()]  # or a ModelPatcher's
            found += [module for module in held if isinstance(module, torch.nn.Module)]
            control = getattr(control, "previous_controlnet", None)
    return found
