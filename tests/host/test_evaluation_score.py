"""FID, IS and CLIP score of reg_core.evaluation, offline, against formulas written out. Here for conftest's torchvision."""

import json
import os

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason="extra `eval`")
pytestmark = pytest.mark.skipif(os.environ.get("REG_TEST_ATTENTION") == "pytorch", reason="no ComfyUI attention in it: once is enough")

from reg_core.evaluation import sample as sampling  # noqa: E402
from reg_core.evaluation import score as scoring  # noqa: E402
from reg_core.evaluation.__main__ import main  # noqa: E402
from reg_core.evaluation.features import batches, extract, load_extractor, read  # noqa: E402
from reg_core.evaluation.plan import Job, Plan, PlanError, points  # noqa: E402
from reg_core.evaluation.store import Store  # noqa: E402
from reg_core.lab.data import load_digits  # noqa: E402
from reg_core.lab.evaluate import frechet_distance  # noqa: E402
from reg_core.lab.models import load_digits_classifier  # noqa: E402


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """200 real digits as files."""
    folder = tmp_path_factory.mktemp("real")
    for i, image in enumerate(load_digits().images[:200]):
        (folder / f"{i:03d}.png").write_bytes(sampling.png((image + 1) / 2))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished set: real digits with noise that grows with cfg, instead of samples. 2 points x 40 prompts x 3 seeds."""
    out = tmp_path_factory.mktemp("made")
    digits = load_digits()
    plan = Plan(points({"cfg": [1.0, 3.0], "form": ["off"]}), tuple({"prompt": str(int(d))} for d in digits.labels[200:240]), (0, 1, 2))
    with Store(out) as store:
        store.begin(plan)
        for job in plan.jobs():
            image = digits.images[200 + 40 * job.seed + job.prompt]
            noisy = (image + 1) / 2 + 0.1 * plan.points[job.point].labels["cfg"] * sampling.noise([job.noise_seed], image.shape)[0]
            store.put(plan, job, [sampling.png(noisy)], effective_cfg=1.5)
        store.finish(plan)
    return out


def pictures(folder):
    """[N, 1, 8, 8] in -1..1, read by PIL and numpy alone."""
    from PIL import Image

    arrays = [np.asarray(Image.open(path).convert("L"), np.float32) for path in sorted(folder.rglob("*.png"))]
    return torch.from_numpy(np.stack(arrays))[:, None] / 127.5 - 1


def run(*arguments):
    return main(["score", *map(str, arguments)])


def test_fid_and_is_against_formulas(made, real, capsys):
    """Oracles: reg_core.lab.evaluate.frechet_distance, and exp of the mean Kullback-Leibler divergence written out."""
    assert run("--out", made, "--reference", real, "--features", "digits", "--batch", 7) == 0
    report, classifier = json.loads((made / "report.json").read_text()), load_digits_classifier()
    reference = classifier.features(pictures(real))
    for cfg, row in zip((1, 3), report["points"], strict=True):
        images = pictures(made / "images" / f"cfg={cfg},form=off")
        features, p = classifier.features(images), classifier(images).double().softmax(1)
        divergence = (p * (p.log() - p.mean(0).log())).sum(1).mean()
        assert row["metrics"]["fid"]["all"] == pytest.approx(frechet_distance(features, reference), rel=1e-4)
        assert row["metrics"]["is"]["all"] == pytest.approx(divergence.exp().item(), rel=1e-4)
        of_seed = features[2::3]  # file names end in the seed's number
        assert row["metrics"]["fid"]["seeds"][2] == pytest.approx(frechet_distance(of_seed, reference), rel=1e-4)
        assert row["effective_cfg"] == 1.5
    assert report["points"][0]["metrics"]["fid"]["all"] < report["points"][1]["metrics"]["fid"]["all"], "noise makes it worse"
    assert report["images_per_point"] == 120 and report["seeds"] == 3
    printed = capsys.readouterr().out
    assert "| cfg | form | effective cfg | FID | IS |" in printed and printed.strip() == (made / "report.md").read_text().strip()


def test_statistics_stand_for_the_images(made, real, tmp_path):
    """Oracle: the scores against the folder itself; and mu and sigma by numpy."""
    kept = tmp_path / "ref.npz"
    run("--out", made, "--reference", real, "--features", "digits", "--save-stats", kept)
    before = json.loads((made / "report.json").read_text())
    with np.load(kept) as file:
        features = load_digits_classifier().features(pictures(real)).double().numpy()
        np.testing.assert_allclose(file["mu"], features.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(features, rowvar=False), rtol=1e-3, atol=1e-5)
        np.savez(tmp_path / "foreign.npz", mu=file["mu"], sigma=file["sigma"])
        np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
        np.savez(tmp_path / "wrong.npz", mean=np.zeros(5))
    for stats in (kept, tmp_path / "foreign.npz"):  # without a count, as others write them
        run("--out", made, "--reference", stats, "--features", "digits")
        after = json.loads((made / "report.json").read_text())
        for ours, theirs in zip(before["points"], after["points"], strict=True):
            assert theirs["metrics"]["fid"]["all"] == pytest.approx(ours["metrics"]["fid"]["all"], rel=1e-6)
    with pytest.raises(PlanError, match="reference has 5 features, the extractor gives 64"):
        scoring.score_folder(made, tmp_path / "other.npz", load_extractor("digits"))
    with pytest.raises(PlanError, match="want mu and sigma, got mean"):
        scoring.score_folder(made, tmp_path / "wrong.npz", load_extractor("digits"))


def test_holes_are_refused_or_left_out_everywhere(made, real, tmp_path, capsys):
    plan, hole = Store(made).plan(), Job(1, 7, 2)
    with Store(tmp_path) as store:
        store.begin(plan)
        for job in plan.jobs():
            if job != hole:
                store.put(plan, job, [(made / "images" / f"{plan.key(job)}.png").read_bytes()])
    assert run("--out", tmp_path, "--reference", real, "--features", "digits") == 2
    assert "1 of 240 images are missing" in capsys.readouterr().err
    scores = scoring.score_folder(tmp_path, real, load_extractor("digits"), partial=True)
    assert scores.images == 119 and scores.effective_cfg == [None, None]
    kept = [made / "images" / f"{plan.key(Job(0, i, 2))}.png" for i in range(40) if i != 7]  # at the point that has them all, too
    classifier = load_digits_classifier()
    features = classifier.features(torch.cat([pictures_of(path) for path in kept]))
    assert scores.values[0]["fid"]["seeds"][2] == pytest.approx(frechet_distance(features, classifier.features(pictures(real))), rel=1e-4)


def pictures_of(path):
    return read(path).float().mean(0)[None, None] / 127.5 - 1


class Mean(torch.nn.Module):
    """Somebody's own features: without logits."""

    def forward(self, images):
        return images.float().mean((2, 3))


def test_own_features(made, real):
    scores = scoring.score_folder(made, real, Mean())
    assert scores.features == 3 and set(scores.values[0]) == {"fid"}
    assert isinstance(load_extractor("reg_core.evaluation.features:Digits"), torch.nn.Module)
    for name, message in (("nobody:f", "nobody"), ("json:loads", "loads"), ("resnet", "got 'resnet'")):
        with pytest.raises((PlanError, TypeError), match=message):
            load_extractor(name)
    with pytest.raises(PlanError, match="belong to the features 'inception'"):
        load_extractor("digits", weights=real)


def test_images_of_different_sizes(tmp_path):
    """Oracle: one at a time."""
    paths = []
    for i, size in enumerate((8, 8, 16, 8, 8, 8)):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(sampling.png(torch.rand(3, size, size)))
    assert [tuple(batch.shape) for batch in batches(paths, 2)] == [(2, 3, 8, 8), (1, 3, 16, 16), (2, 3, 8, 8), (1, 3, 8, 8)]
    together, alone = extract(paths, Mean(), 2)[0], torch.cat([extract([path], Mean())[0] for path in paths])
    assert torch.equal(together, alone)


def test_clip_score_by_a_local_model(made, host, tmp_path):
    """A CLIP with random weights in a folder, no download. Oracle: its projections and their cosine, written out."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.CLIPConfig(text_config=sizes | dict(eos_token_id=49407), vision_config=sizes | dict(image_size=32, patch_size=16), projection_dim=16)
    with torch.inference_mode(False):
        model = transformers.CLIPModel(config).eval()
        model.save_pretrained(tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(host.path / "comfy" / "sd1_tokenizer")
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(pixels, tokenizer).save_pretrained(tmp_path)

    paths, prompts = [tmp_path / f"{i}.png" for i in range(6)], ["a cat", "a dog", "digits 1 2 3", "x", "a red cat", "the sea"]
    for path in paths:
        path.write_bytes(sampling.png(torch.rand(3, 32, 32)))
    score = scoring.ClipScore(str(tmp_path), 4)

    mean, std = (torch.tensor(v)[:, None, None] for v in (pixels.image_mean, pixels.image_std))
    expected = []
    with torch.no_grad():
        for path, prompt in zip(paths, prompts, strict=True):
            seen = model.visual_projection(model.vision_model(pixel_values=((read(path) / 255 - mean) / std)[None]).pooler_output)
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
            expected.append(100 * torch.cosine_similarity(seen, text).item())
    assert np.std(expected) > 0.5
    order = np.argsort(expected)[::-1].tolist()  # best first: the best three are not floored at 0
    for chosen in (order[:1], order[:3], order):
        mean = score([paths[i] for i in chosen], [prompts[i] for i in chosen])
        assert mean == pytest.approx(max(0.0, np.mean([expected[i] for i in chosen])), abs=1e-3)
    assert score([paths[order[0]]], [prompts[order[0]]]) > 1
