"""Autoguidance and classifier guidance through ComfyUI's own sampler nodes raise accuracy over unguided sampling of the same seed.

Oracle: a classifier trained apart on real digits. On the weaker digits model, whose unguided samples leave something to mend.
"""

import pytest
import torch

COUNT, STEPS, SEED = 300, 12, 7


class Graph:
    """The nodes a user would connect."""

    def __init__(self, pack, all_nodes):
        self.nodes = all_nodes | pack.nodes
        self.model = self("REGDemoModel", variant="digits_weak")
        self.prompt = self("REGDemoPrompt", digit="all ten in turn")
        self.latent = self("REGDemoLatent", batch_size=COUNT)
        self.classifier = pack.import_("reg_core.demo_models.loading").load_judge("digits")

    def __call__(self, name, **inputs):
        node = self.nodes[name]
        result = node.execute(**inputs) if hasattr(node, "PREPARE_CLASS_CLONE") else getattr(node(), node.FUNCTION)(**inputs)
        return getattr(result, "result", result)[0]

    def rectified(self, model):
        return self(
            "REGGuidance", model=model, form="row_sum", engine="auto", gain=1.0, strength=1.0, start_percent=0.0, end_percent=1.0, refresh=1, data_std=1.0
        )  # fmt: skip

    def by_ksampler(self, model, cfg):
        return self("KSampler", model=model, seed=SEED, steps=STEPS, cfg=cfg, sampler_name="heun", scheduler="karras",
                    positive=self.prompt, negative=self.prompt, latent_image=self.latent, denoise=1.0)  # fmt: skip

    def by_sampler_custom_advanced(self, guider):
        sigmas = self("BasicScheduler", model=self.model, scheduler="karras", steps=STEPS, denoise=1.0)
        noise, sampler = self("RandomNoise", noise_seed=SEED), self("KSamplerSelect", sampler_name="heun")
        return self("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=self.latent)

    def accuracy(self, latent):
        right = self.classifier(latent["samples"]).argmax(1) == torch.arange(COUNT) % 10
        return right.float().mean().item()


@pytest.fixture(scope="module")
def graph(pack, all_nodes):
    return Graph(pack, all_nodes)


@pytest.fixture(scope="module")
def unguided(graph):
    with torch.inference_mode():
        by_ksampler = graph.by_ksampler(graph.model, 1.0)
        by_guider = graph.by_sampler_custom_advanced(graph("BasicGuider", model=graph.model, conditioning=graph.prompt))
    assert torch.allclose(by_ksampler["samples"], by_guider["samples"], atol=1e-5), "the same seed"
    return graph.accuracy(by_ksampler)


def guided(graph, kind, door, rectified):
    model = graph.model
    if kind == "reward":
        digit = graph("REGRewardDigit", digit=-1)
        model = graph("REGRewardGuidance", model=model, reward=digit, scale=1.0 if rectified else 0.4, rectified=rectified, start_percent=0.0, end_percent=1.0)
        if door == "KSampler":
            return graph.by_ksampler(model, 1.0)
        return graph.by_sampler_custom_advanced(graph("BasicGuider", model=model, conditioning=graph.prompt))
    weaker, scale = graph("REGWeakModel", model=model, damping=0.3), 4.0 if rectified else 2.5
    model = graph.rectified(model) if rectified else model
    if door == "KSampler":
        return graph.by_ksampler(graph("REGReferenceModel", model=model, reference_model=weaker), scale)
    return graph.by_sampler_custom_advanced(graph("REGAutoguidance", model=model, weak_model=weaker, positive=graph.prompt, scale=scale))


@pytest.mark.parametrize("kind", ["autoguidance", "reward"])
@pytest.mark.parametrize("door", ["KSampler", "SamplerCustomAdvanced"])
@pytest.mark.parametrize("rectified", [False, True])
def test_guidance_raises_accuracy_through_the_real_nodes(graph, unguided, kind, door, rectified):
    found = graph.accuracy(guided(graph, kind, door, rectified))
    print(f"\n{kind} by {door}, rectified={rectified}: accuracy {unguided:.3f} -> {found:.3f}")
    assert found > unguided + 0.02
