"""The engines on the families that test_engines.py leaves out: exact products, and a real KSampler.

None of them refuses an engine. test_truth.py has the forms of every family.
"""

import inspect

import comfy.model_management
import comfy.ops
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import tiny, tiny_engines

FAMILIES = [name for name in tiny.FAMILIES if name not in tiny.ARCHITECTURES]
CASES = [(family, form, engine) for family in FAMILIES for form, engine in (("row_sum", "finite_difference"), ("scalar", "reverse"))]
# One of every kind of network: these take every form, and a wrong derivative.
KINDS = (
    "chroma", "auraflow", "pixart_sigma", "lumina2", "qwen_image", "hunyuan_video", "ltxv", "hunyuan_dit", "stable_cascade", "stable_audio", "ace_step",
)  # fmt: skip
CASES += [(family, form, engine) for family in KINDS for form in tiny_engines.FORMS for engine in tiny_engines.ENGINES if (family, form, engine) not in CASES]
FUSED = "no autograd formula"  # as PyTorch says of a fused kernel without derivative


def built(family):
    if tiny.missing(family):
        pytest.skip(tiny.missing(family))
    comfy.model_management.current_loaded_models.clear()  # or ComfyUI collects garbage for each MODEL that is gone
    return tiny.build(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_dot_products_agree(host, pack, family):
    """<u, J v> = <J^T u, v> between torch.func.jvp and reverse mode, and J v = central differences."""
    t = built(family)
    if not tiny.RECIPES[family].dual:
        pytest.skip("torch.func.jvp cannot differentiate it")
    if family == "ace_step15":
        pytest.skip("its rows depend on each other: jvp of a lone prompt is another network's; test_truth.py has it")
    try:
        found = tiny_engines.products(pack, t)
    except RuntimeError as error:
        if FUSED not in str(error):
            raise
        pytest.skip(f"a kernel of this ComfyUI has no derivative: {error}")
    assert found.agree, found


@pytest.mark.parametrize("family, form, engine", CASES)
def test_every_engine_samples(host, pack, family, form, engine):
    found = tiny_engines.sampled(pack, built(family), form, engine, steps=2)
    if any(FUSED in note for note in found.notes):  # the run said so, and went on with differences
        assert engine == "reverse" and found.sound
        return
    assert found.served_by(engine), found


@pytest.mark.parametrize("family", ["pixart_sigma", "hunyuan_dit", "auraflow"])
def test_host_that_chooses_the_attention_kernel(host, pack, monkeypatch, family):
    """ComfyUI on some CUDA machines asks for flash attention itself, over any choice from outside. And PixArt and
    Hunyuan-DiT call attention without transformer_options, so that the override cannot reach them."""
    if host.attention != "pytorch":
        pytest.skip("only PyTorch's attention has kernels to choose from")
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        pytest.skip(f"ComfyUI does not choose on PyTorch {torch.__version__}")

    def own_choice(*args, **kwargs):
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION], set_priority=True):
            return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", own_choice)
    found = tiny_engines.sampled(pack, built(family), "scalar", "reverse", steps=2)
    assert found.served_by("reverse"), found


@pytest.mark.parametrize("family", [*tiny.ARCHITECTURES, *KINDS])
def test_a_wrong_derivative_is_noticed(host, pack, monkeypatch, family):
    """Twice the true product: the self-check must see it wherever J is not 0, also on flow models, which start where it is."""
    jacobian = pack.import_("reg_core.jacobian")
    right = jacobian.reverse

    def wrong(*args):
        denoised, product = right(*args)
        return denoised, 2 * product

    monkeypatch.setattr(jacobian, "reverse", wrong)
    found = tiny_engines.sampled(pack, tiny.build(family), "scalar", "reverse", steps=4)
    assert "self-check" in " ".join(found.notes), found.engines
