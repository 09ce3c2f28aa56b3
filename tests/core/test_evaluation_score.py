"""FID, IS and CLIP score of reg_core.evaluation, offline, against formulas written out.

Oracles: scipy's matrix square root, torch's own KL divergence, CLIP's projections and their cosine.
"""

import io
import json

import hosts
import numpy as np
import pytest
import torch
from PIL import Image

from reg_core.demo_models.data import load_digits
from reg_core.demo_models.loading import load_judge
from reg_core.evaluation import score as scoring
from reg_core.evaluation.__main__ import main
from reg_core.evaluation.features import batches, extract, load_extractor, read
from reg_core.evaluation.metrics import Statistics, frechet, inception_score
from reg_core.evaluation.plan import Job, Plan, PlanError, points
from reg_core.evaluation.store import Store
from reg_core.files import FileError


def png(image):
    """An image [C, H, W] in 0..1 as the bytes of a PNG file."""
    pixels, buffer = (image * 255).round().clamp(0, 255).byte().movedim(0, -1).numpy(), io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frechet_by_scipy(a, b):
    """|m - m'|^2 + tr(C + C' - 2 sqrt(C C')) of features, by scipy's matrix square root."""
    linalg = pytest.importorskip("scipy.linalg")
    a, b = a.double().numpy(), b.double().numpy()
    ca, cb = (np.atleast_2d(np.cov(v, rowvar=False)) for v in (a, b))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)


def test_frechet_is_the_formula_with_scipys_matrix_root():
    a, b = normal(300, 5), normal(200, 5, seed=1) @ normal(5, 5, seed=2) + 0.3
    assert frechet(Statistics.of(a), Statistics.of(b)) == pytest.approx(frechet_by_scipy(a, b), rel=1e-8)
    assert frechet(Statistics.of(b), Statistics.of(a)) == pytest.approx(frechet_by_scipy(a, b), rel=1e-8)
    assert frechet(Statistics.of(a), Statistics.of(a)) == pytest.approx(0, abs=1e-9)


def test_frechet_of_known_gaussians():
    """N(0, I) and N(1, 4 I) in three dimensions: 3 * 1 of the means, 3 * (2 - 1)^2 of the covariances."""
    mean, eye = torch.zeros(3).double(), torch.eye(3).double()
    assert frechet(Statistics(mean, eye, 9), Statistics(mean + 1, 4 * eye, 9)) == pytest.approx(6, rel=1e-12)


def test_frechet_of_fewer_images_than_features():
    """Covariances without full rank. Oracle: the same Gaussians in the plane that holds them, turned into 40 dimensions."""
    turn = torch.linalg.qr(normal(40, 40).double())[0][:, :3]
    a, b = normal(4, 3, seed=1).double(), 2 * normal(4, 3, seed=2).double() + 1
    flat = frechet(Statistics.of(a), Statistics.of(b))
    assert frechet(Statistics.of(a @ turn.T), Statistics.of(b @ turn.T)) == pytest.approx(flat, rel=1e-5)


def test_inception_score_by_hand_and_at_its_ends():
    logits = 3 * normal(50, 10)
    p = torch.softmax(logits.double(), 1)
    want = torch.nn.functional.kl_div(p.mean(0).log().expand(50, 10), p, reduction="batchmean").exp().item()
    assert inception_score(logits) == pytest.approx(want, rel=1e-9)
    assert inception_score(1000 * torch.eye(10)) == pytest.approx(10, rel=1e-9)
    assert inception_score(torch.zeros(8, 10)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: frechet(Statistics.of(normal(10, 3)), Statistics.of(normal(10, 4))),
        lambda: Statistics.of(normal(1, 3)),
        lambda: Statistics.of(normal(10)),
        lambda: inception_score(normal(10)),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_size(call):
    with pytest.raises(ValueError, match=r"\d"):
        call()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """200 real digits as files."""
    folder = tmp_path_factory.mktemp("real")
    for i, image in enumerate(load_digits().images[:200]):
        (folder / f"{i:03d}.png").write_bytes(png((image + 1) / 2))
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
            noisy = (image + 1) / 2 + 0.1 * plan.points[job.point].labels["cfg"] * normal(*image.shape, seed=job.noise_seed)
            store.put(plan, job, [png(noisy)], share=1.5)
        store.finish(plan)
    return out


def pictures(folder):
    """[N, 1, 8, 8] in -1..1, read by PIL and numpy alone."""
    arrays = [np.asarray(Image.open(path).convert("L"), np.float32) for path in sorted(folder.rglob("*.png"))]
    return torch.from_numpy(np.stack(arrays))[:, None] / 127.5 - 1


def run(*arguments):
    return main(["score", *map(str, arguments)])


def test_fid_and_is_against_formulas(made, real, capsys):
    """Oracles: scipy's matrix square root, and exp of the mean Kullback-Leibler divergence written out."""
    assert run("--out", made, "--reference", real, "--features", "digits", "--batch", 7) == 0
    report, classifier = json.loads((made / "report.json").read_text()), load_judge("digits")
    reference = classifier.features(pictures(real))
    for cfg, row in zip((1, 3), report["points"], strict=True):
        images = pictures(made / "images" / f"cfg={cfg},form=off")
        features, p = classifier.features(images), classifier(images).double().softmax(1)
        divergence = (p * (p.log() - p.mean(0).log())).sum(1).mean()
        assert row["metrics"]["fid"]["all"] == pytest.approx(frechet_by_scipy(features, reference), rel=1e-4)
        assert row["metrics"]["is"]["all"] == pytest.approx(divergence.exp().item(), rel=1e-4)
        of_seed = features[2::3]  # file names end in the seed's number
        assert row["metrics"]["fid"]["seeds"][2] == pytest.approx(frechet_by_scipy(of_seed, reference), rel=1e-4)
        assert row["share"] == 1.5
    assert report["points"][0]["metrics"]["fid"]["all"] < report["points"][1]["metrics"]["fid"]["all"], "noise makes it worse"
    assert report["images_per_point"] == 120 and report["seeds"] == 3
    printed = capsys.readouterr().out
    assert "| cfg | form | share of plain guidance | FID | IS |" in printed and printed.strip() == (made / "report.md").read_text().strip()


def test_statistics_stand_for_the_images(made, real, tmp_path):
    """Oracle: the scores against the folder itself; and mu and sigma by numpy."""
    kept = tmp_path / "ref.npz"
    run("--out", made, "--reference", real, "--features", "digits", "--save-stats", kept)
    before = json.loads((made / "report.json").read_text())
    with np.load(kept) as file:
        features = load_judge("digits").features(pictures(real)).double().numpy()
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
    with pytest.raises(FileError, match=r"wrong.npz: want an .npz with mu \[F\] and sigma \[F, F\], got mean"):
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
    assert scores.images == 119 and scores.share == [None, None]
    kept = [made / "images" / f"{plan.key(Job(0, i, 2))}.png" for i in range(40) if i != 7]  # at the point that has them all, too
    classifier = load_judge("digits")
    features = classifier.features(torch.cat([pictures_of(path) for path in kept]))
    assert scores.values[0]["fid"]["seeds"][2] == pytest.approx(frechet_by_scipy(features, classifier.features(pictures(real))), rel=1e-4)


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
        paths[-1].write_bytes(png(torch.rand(3, size, size)))
    assert [tuple(batch.shape) for batch in batches(paths, 2)] == [(2, 3, 8, 8), (1, 3, 16, 16), (2, 3, 8, 8), (1, 3, 8, 8)]
    together, alone = extract(paths, Mean(), 2)[0], torch.cat([extract([path], Mean())[0] for path in paths])
    assert torch.equal(together, alone)


def test_clip_score_by_a_local_model(tmp_path):
    """A CLIP with random weights in a folder, no download. Oracle: its projections and their cosine, written out."""
    transformers = hosts.torchmetrics()
    torch.manual_seed(3)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["<|startoftext|>", "<|endoftext|>", *(c + "</w>" for c in letters), *letters]
    tokenizer = transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text = sizes | dict(vocab_size=len(words), bos_token_id=0, eos_token_id=1, pad_token_id=1)
    config = transformers.CLIPConfig(text_config=text, vision_config=sizes | dict(image_size=32, patch_size=16), projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(pixels, tokenizer).save_pretrained(tmp_path)

    paths, prompts = [tmp_path / f"{i}.png" for i in range(6)], ["a cat", "a dog", "digits 1 2 3", "x", "a red cat", "the sea"]
    for path in paths:
        path.write_bytes(png(torch.rand(3, 32, 32)))
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
