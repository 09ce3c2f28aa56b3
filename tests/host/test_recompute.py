"""What recomputed blocks count and copy. Oracle: counted on paper. Tensors have 4000 bytes, and so has each block's argument."""

import pytest
import torch


class Block(torch.nn.Module):
    def forward(self, x, table, options):
        for _ in range(10):
            x = x * table  # saves table and x
        return x


@pytest.mark.parametrize("blocks", [1, 4])
def test_activations_are_those_of_a_resident_pass(pack, blocks):
    """A block saves its 10 factors where x needs a gradient; PyTorch saves `table` for x's gradient only."""
    module = pack.import_("nodes.backward.recompute")
    network = torch.nn.ModuleList(Block() for _ in range(blocks))
    ticks = []
    with torch.inference_mode(False), torch.enable_grad():
        table = torch.full((1000,), 0.9)
        recompute = module.Recompute(verify=True, tick=lambda: ticks.append(1))
        y = x = torch.ones(1000, requires_grad=True)
        with recompute.over(network):
            for block in network:
                y = block(y, table, {})
            (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(grad, torch.full((1000,), 0.9 ** (10 * blocks)))
    assert recompute.activations == blocks * 10 * 4000
    assert len(ticks) == 2 * blocks and recompute.mismatch() == 0 and len(recompute.compared) == 10 * blocks
    assert not any("forward" in vars(block) for block in network)


def test_a_second_pass_that_differs_is_measured(pack):
    """The second pass multiplies by 1.2 where the first multiplied by 1: fingerprints differ by a fifth."""
    module = pack.import_("nodes.backward.recompute")

    class Counts(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return (x * (1 if self.calls == 1 else 1.2)).sin().sin()

    with torch.inference_mode(False), torch.enable_grad():
        recompute, block = module.Recompute(verify=True), Counts()
        x = torch.full((8,), 1e-3, requires_grad=True)
        with recompute.over([block]):
            torch.autograd.grad(block(x).sum(), x)
    assert recompute.mismatch() == pytest.approx(0.2, rel=1e-3)


def test_copies_keep_the_layout_that_kernels_count_on(pack):
    """Oracle: strides and bytes by hand. Rows padded to 16 stay aligned, a mask for all heads is not copied for each, and a slice
    of a fused projection brings nothing of its neighbours along."""
    private_copy = pack.import_("nodes.backward.thaw").private_copy
    padded = torch.randn(2, 1, 5, 16)[..., :7].expand(2, 8, 5, 7)
    fused = torch.randn(2, 5, 96)[..., 32:64]
    for tensor, strides, size in (
        (torch.randn(2, 5, 16)[..., :7], (80, 16, 1), 2 * 80 - 9),
        (padded, (80, 0, 16, 1), 2 * 80 - 9),
        (fused, (160, 32, 1), 320),
        (torch.randn(4, 3), (3, 1), 12),
        (torch.tensor(2.0), (), 1),
    ):
        copy = private_copy(tensor)
        assert torch.equal(copy, tensor) and copy.data_ptr() != tensor.data_ptr()
        assert copy.stride() == strides and copy.untyped_storage().nbytes() == 4 * size
