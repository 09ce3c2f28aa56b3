"""Conds of a prompt, as a backward pass wants them."""

import torch


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
