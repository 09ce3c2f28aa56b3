"""What recomputed blocks keep. Oracle: counted on paper. Tensors have 4000 bytes, and so has each block's argument."""

import pytest
import torch


@pytest.fixture
def recomputed(pack):
    """recomputed(blocks, products, attention, **budgets): the Recompute of a differentiated pass over blocks of so many products, each of
    which saves a tensor, and of an attention that saves one, if wanted."""
    checkpoint = pack.import_("nodes.checkpoint")

    def run(blocks, products, attention, **budgets):
        class Block(torch.nn.Module):
            def forward(self, x):
                for _ in range(products):
                    x = x * table
                return recompute.attention(None, x, x, x) if attention else x

        with torch.inference_mode(False), torch.enable_grad():
            table = torch.ones(1000)
            network = torch.nn.ModuleList(Block() for _ in range(blocks))
            recompute = checkpoint.Recompute(lambda func, q, k, v: q * table, **budgets)
            y = x = torch.ones(1000, requires_grad=True)
            with recompute.over(network):
                for block in network:
                    y = block(y)
                torch.autograd.grad(y.sum(), x)
        return recompute

    return run


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (55_000, 0), (56_000, 1), (80_000, 1), (96_000, 2), (175_000, 3), (176_000, 4)])
def test_blocks_are_kept_as_they_surely_fit(recomputed, budget, kept):
    """A block of 10 products keeps 10 times its argument, beside four arguments; before one was seen, 16 times are assumed."""
    found = recomputed(4, 10, False, block_budget=budget)
    assert found.block_bytes == 4 * 40_000 and found.kept_blocks == 40_000 * kept
    assert found.recomputed == 4 - kept


@pytest.mark.parametrize(("budget", "kept"), [(55_000, 0), (56_000, 1)])
def test_attention_counts_in_what_a_block_is_taken_to_keep(recomputed, budget, kept):
    """Ten products and an attention want 44 000 bytes beside three arguments."""
    found = recomputed(3, 10, True, block_budget=budget, attention_budget=1e9)
    assert found.kept_blocks == 44_000 * kept and found.recomputed == 3 - kept


@pytest.mark.parametrize(("budget", "expected", "kept"), [(12_000, 0, 0), (13_000, 0, 1), (13_000, 12_000, 1), (20_000, 20_000, 0), (21_000, 20_000, 1)])
def test_attention_is_kept_beside_the_arguments_of_all_blocks(recomputed, budget, expected, kept):
    """Three arguments of 4000 bytes are foreseen from the first on, or what an earlier pass has told; then one attention is kept."""
    found = recomputed(3, 1, True, attention_budget=budget, expected=expected)
    assert found.kept_attention == 4000 * kept and found.attention_bytes == 3 * 4000


def test_a_later_pass_knows_the_arguments_of_all_blocks(pack, recomputed):
    """Told in bytes a sample, for as many samples as are next. Three arguments of 4000 bytes were of two samples."""
    state = pack.import_("nodes.memory").ReverseMemory("checkpoint")
    assert state.plan(1e9, 0, 1e6, False, 2).arguments == 0
    state.learn(recomputed(3, 1, True), 2)
    assert state.plan(1e9, 0, 1e6, False, 5).arguments == 5 * 6000


def test_copies_keep_the_layout_that_kernels_count_on(pack):
    """Oracle: strides and bytes by hand. Rows padded to 16 stay aligned, a mask for all heads is not copied for each, and a slice
    of a fused projection brings nothing of its neighbours along."""
    private_copy = pack.import_("nodes.thaw").private_copy
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
