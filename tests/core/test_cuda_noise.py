"""The noise of a CUDA card, made without one.

Oracles: the known answers of Philox's authors (Random123, kat_vectors), numbers that a card printed, the card itself where there is one.
"""

import math

import numpy as np
import pytest
import torch

from reg_core.lab.fronts.cuda_noise import H200_BLOCKS, philox, randn


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_gives_its_authors_answers(counter, key, want):
    words = philox(tuple(np.array([word], dtype=np.uint64) for word in counter), key)
    assert tuple(int(word[0]) for word in words) == want


def test_a_cards_first_numbers():
    """What torch.randn(12, device="cuda") printed after torch.manual_seed(0)."""
    want = [-0.92466, -0.42534, -2.64385, 0.14518, -0.12086, -0.57973, -0.62285, -0.32839, -1.07454, -0.36314, -1.67105, 2.26550]
    assert torch.allclose(randn((3, 4), 0).flatten(), torch.tensor(want), atol=1e-5)


def test_numbers_are_dealt_to_threads():
    """One block of 256 threads: place p is of turn p // 1024, thread p % 256 and that thread's number p % 1024 // 256, by hand."""
    got, seed = randn((2000,), 7 + 2**40, blocks=1), 7 + 2**40
    for place in (0, 255, 256, 700, 1023, 1024, 1999):
        counter = (place // 1024, 0, place % 256, 0)
        words = [int(w[0]) for w in philox(tuple(np.array([word], dtype=np.uint64) for word in counter), seed)]
        which = place % 1024 // 256
        u, v = ((word + 0.5) / 2**32 for word in words[2 * (which // 2) :][:2])
        wave = math.cos if which % 2 else math.sin
        assert float(got[place]) == pytest.approx(math.sqrt(-2 * math.log(u)) * wave(2 * math.pi * v), abs=1e-5)


def test_they_are_normal_and_differ_by_seed():
    from scipy.stats import kstest

    a, b = randn((2500, 28), 0), randn((2500, 28), 1000)
    assert kstest(a.flatten().double().numpy(), "norm").pvalue > 0.01
    assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([a.flatten()[:-1], a.flatten()[1:]]))[0, 1])) < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_card_draws_the_same():
    blocks = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    want = torch.randn(2500, 1, 28, 28, device="cuda", generator=torch.Generator("cuda").manual_seed(2500))
    assert torch.allclose(randn((2500, 1, 28, 28), 2500, blocks), want.cpu(), atol=1e-5)
    assert blocks != H200_BLOCKS or torch.allclose(randn((2500, 1, 28, 28), 2500), want.cpu(), atol=1e-5)
