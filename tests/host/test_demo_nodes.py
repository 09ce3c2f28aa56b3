"""The REGDemo nodes against the library's own denoisers and against pictures written out by hand."""

import comfy.model_base
import pytest
import torch

from . import reg, tiny


@pytest.fixture(scope="module")
def digits(pack):
    def run(name, **values):
        return pack.nodes[name].execute(**values).result[0]

    prompts = {d: run("REGDemoPrompt", digit=d) for d in ("3", "no prompt")}
    return tiny.Tiny("digits", run("REGDemoModel", variant="digits"), (1, 8, 8), prompts["3"], prompts["no prompt"])


@pytest.fixture(scope="module")
def clothes(pack):
    def run(name, **values):
        return pack.nodes[name].execute(**values).result[0]

    assert run("REGDemoLatent", batch_size=2, pictures="fashion")["samples"].shape == (2, 1, 28, 28)
    prompts = [run("REGDemoPrompt", digit=d) for d in ("dress", "no prompt")]
    return tiny.Tiny("fashion", run("REGDemoModel", variant="fashion_weak"), (1, 28, 28), *prompts)


def test_an_optional_input_that_is_null_has_its_default(pack):
    """Graphs made by other programs write null. Oracle: the same call without the input."""
    demo = pack.nodes["REGDemoLatent"]
    null, without = (demo.execute(batch_size=2, **more).result[0]["samples"] for more in ({"pictures": None}, {}))
    assert null.shape == without.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("variant", ["digits", "digits_weak", "fashion", "fashion_weak"])
def test_the_model_is_the_librarys_denoiser(host, pack, digits, clothes, variant):
    digits = clothes if variant.startswith("fashion") else digits
    model = pack.nodes["REGDemoModel"].execute(variant=variant).result[0]
    denoiser = pack.import_("reg_core.demo_models.loading").load_model(variant)

    def look(guider, x, sigma, options):
        return x, sigma, host.samplers.calc_cond_batch(guider.inner_model, [guider.conds["positive"], guider.conds["negative"]], x, sigma, options)

    for at in (0, 1, 2):
        x, sigma, (cond, uncond) = reg.inside(digits, look, model=model, batch=4, at=at)
        assert torch.allclose(cond, denoiser(x, sigma, torch.full((4,), 3)), atol=1e-4)
        assert torch.allclose(uncond, denoiser(x, sigma), atol=1e-4)
    assert model.model.model_type == comfy.model_base.ModelType.EDM


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product", "schedule"])
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
def test_every_form_and_engine_keeps_drawing_the_digit(host, pack, digits, form, engine):
    model, trace = reg.apply(pack, digits.patcher, form, engine, data_std=0.75)
    out = tiny.sample(digits, model, cfg=5.0, steps=12, batch=8, sampler="heun", scheduler="karras")
    classifier = pack.import_("reg_core.demo_models.loading").load_judge("digits")
    assert (classifier(out).argmax(1) == 3).all()
    assert form == "schedule" or {r.engine for r in trace.last.rows} == {engine}
    assert trace.last.notes == []
    # a trained denoiser's Jacobian: nothing at high noise, near the identity at the end
    means = [r.correction_mean for r in trace.last.rows]
    assert means[0] < 0.1 and max(means[-6:]) > 0.3 and trace.last.share < 0.7


def test_clothes_are_drawn_as_asked_for(host, pack, clothes):
    out = tiny.sample(clothes, reg.apply(pack, clothes.patcher)[0], cfg=3.0, steps=10, batch=6, sampler="heun", scheduler="karras")
    judge = pack.import_("reg_core.demo_models.loading").load_judge("fashion")
    assert out.shape == (6, 1, 28, 28) and (judge(out.clamp(-1, 1)).argmax(1) == 3).all()  # a dress
    (sheet,) = pack.nodes["REGDemoDecode"].execute({"samples": out}, scale=3, columns=3).result
    assert sheet.shape == (1, 2 * 86, 3 * 86, 3)
    assert torch.allclose(sheet[0, 1:85:3, 1:85:3, 0], ((out[0, 0] + 1) / 2).clamp(0, 1))


def test_latents_of_the_other_model_are_refused(host, pack, digits, clothes):
    for model, other in ((digits, clothes), (clothes, digits)):
        with pytest.raises(ValueError, match="takes latents of .* got .*: set pictures of REG Demo Latent"):
            tiny.sample(tiny.dataclasses.replace(model, latent_shape=other.latent_shape), steps=2)


def test_any_core_sampler_and_scheduler_runs(host, pack, digits):
    for sampler in ("euler", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "lcm", "euler_ancestral", "ddim"):
        for scheduler in ("normal", "karras", "simple", "sgm_uniform", "exponential"):
            assert torch.isfinite(tiny.sample(digits, steps=4, sampler=sampler, scheduler=scheduler)).all(), (sampler, scheduler)


def test_decode_makes_a_sheet_in_reading_order(pack):
    decode = pack.nodes["REGDemoDecode"].execute
    latents = torch.stack([torch.full((1, 8, 8), v) for v in (-1.0, -0.5, 0.0, 0.5, 3.0)])
    (sheet,) = decode({"samples": latents}, scale=2, columns=2).result
    assert sheet.shape == (1, 3 * 18, 2 * 18, 3), "a frame of half a latent pixel around each"
    assert sheet[0, 0, 0, 0] == sheet[0, 17, 9, 0] == 0.25
    cells = [sheet[0, 18 * r + 9, 18 * c + 9, 0].item() for r in range(3) for c in range(2)]
    assert cells == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 0.0])
    (batch,) = decode({"samples": latents}, scale=3, columns=0).result
    assert batch.shape == (5, 24, 24, 3) and batch.min() >= 0 and batch.max() <= 1
    with pytest.raises(ValueError, match=r"\[1, 4, 8, 8\]"):
        decode({"samples": torch.zeros(1, 4, 8, 8)}, scale=2, columns=2)


def test_bad_values_are_named(pack):
    with pytest.raises(ValueError, match="eleven"):
        pack.nodes["REGDemoPrompt"].execute(digit="eleven")
    with pytest.raises(ValueError, match="nope"):
        pack.nodes["REGDemoModel"].execute(variant="nope")
    with pytest.raises(ValueError, match="nope"):
        pack.nodes["REGDemoLatent"].execute(batch_size=1, pictures="nope")


def test_prompts_are_one_class_each(pack):
    """By number or by name: the same ten rows; all in turn, and none."""
    run = pack.nodes["REGDemoPrompt"].execute
    names = "T-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
    for i, name in enumerate(names):
        for prompt in (str(i), name):
            assert torch.equal(run(digit=prompt).result[0][0][0], torch.eye(10)[i][None, None])
    assert torch.equal(run(digit="all ten in turn").result[0][0][0][:, 0], torch.eye(10))
    assert not run(digit="no prompt").result[0][0][0].any()


def test_digits_in_turn(host, pack, digits):
    prompt = pack.nodes["REGDemoPrompt"].execute(digit="all ten in turn").result[0]
    out = tiny.sample(digits, positive=prompt, batch=23, steps=12, scheduler="karras")
    classifier = pack.import_("reg_core.demo_models.loading").load_judge("digits")
    assert (classifier(out).argmax(1) == torch.arange(23) % 10).float().mean() > 0.9


def test_half_batches_and_mixed_prompts(host, pack, digits):
    """Conditioning of two digits averaged by ComfyUI's own node is a valid prompt: the label is linear."""
    seven = pack.nodes["REGDemoPrompt"].execute(digit="7").result[0]
    (mixed,) = host.nodes.ConditioningAverage().addWeighted(seven, digits.positive, 0.5)
    assert mixed[0][0][0, 0, 3] == mixed[0][0][0, 0, 7] == 0.5
    assert torch.isfinite(tiny.sample(digits, positive=mixed, batch=3)).all()
