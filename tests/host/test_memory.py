"""Reverse mode within bounds: recomputed blocks, chunks of the batch, running out of memory. Oracle: the pass that keeps everything."""

from contextlib import contextmanager

import pytest
import torch

from . import reg, tiny
from .test_engines import fixture as engine_fixture

CASES = [*tiny.FAMILIES, "controlnet"]
ADD_IN_PLACE = ("flux", "chroma", "hunyuan_video", "controlnet", "ltxv")  # LTXV only to the arguments of its blocks
_built = {}


def fixture(case):
    if case in ("controlnet", *tiny.ARCHITECTURES):
        return engine_fixture(case)
    if case not in _built:
        t = tiny.build(case)
        _built[case] = t, t.positive, t.negative
    return _built[case]


def reverse(pack, t, positive, negative, bounds, batch=2, model=None, watch=None, at=1, **values):
    """(D, J^T u) inside a real sampling run by ModelBranches.reverse, and the passes it took."""
    host, checkpoint = pack.import_("nodes.host"), pack.import_("nodes.checkpoint")
    passes = []

    class Seen(checkpoint.Recompute):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            passes.append(self)

    def look(guider, x, sigma, options):
        branches = host.ModelBranches(guider.inner_model, [guider.conds["positive"], guider.conds["negative"]], options, bounds)
        alpha, _ = host.alpha_and_s(guider.inner_model.model_sampling, sigma, x)
        u = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        if watch is not None:
            watch(branches)
        return branches.reverse(x, sigma, alpha, u)

    host.Recompute, kept = Seen, host.Recompute
    try:
        result = reg.inside(t, look, model=model, batch=batch, positive=positive, negative=negative, at=at, **values)
    finally:
        host.Recompute = kept
    return *result, passes


def bounds(pack, kind):
    """Everything kept, nothing kept, attention kept, or half the blocks."""
    memory = pack.import_("nodes.memory")

    class Fixed(memory.ReverseMemory):
        def _plan(self, free, required, weights, cast, rows):
            return {"resident": memory.Plan(False), "nothing": memory.Plan(True), "attention": memory.Plan(True, 0, 1e9),
                    "some": memory.Plan(True, 2e5, 4e5)}[kind]  # fmt: skip

    return Fixed()


@pytest.mark.parametrize("case", CASES)
def test_recomputed_blocks_give_the_resident_product(host, pack, case):
    t, positive, negative = fixture(case)
    before = reg.fingerprint(t.patcher)
    d, want, passes = reverse(pack, t, positive, negative, bounds(pack, "resident"))
    assert not passes
    for kind in ("nothing", "attention", "some"):
        state = bounds(pack, kind)
        d_again, got, passes = reverse(pack, t, positive, negative, state)
        assert reg.relative(d_again, d) < 1e-6 and reg.relative(got, want) < 1e-5, kind
        assert passes[-1].recomputed > 0 and not state.notes, (kind, state.notes)
        assert state.copies == (case in ADD_IN_PLACE), case
    assert reg.fingerprint(t.patcher) == before
    assert not any("forward" in vars(m) for m in t.patcher.model.modules())


def test_patches_keyed_by_block_see_their_block_again(host, pack):
    """ComfyUI writes the block's number into one dict as it walks: a second pass must see it as it was at its call."""
    t, positive, negative = fixture("sd15")
    model = t.patcher.clone()
    met = []

    def replaced(q, k, v, extra):
        met.append((tuple(extra["block"]), extra["block_index"]))
        return 2 * v.mean(1, keepdim=True).expand(-1, q.shape[1], -1)

    model.set_model_attn2_replace(replaced, "input", 1)
    _, want, _ = reverse(pack, t, positive, negative, bounds(pack, "resident"), model=model)
    calls = len(met)
    _, plain, _ = reverse(pack, t, positive, negative, bounds(pack, "resident"))
    for kind in ("nothing", "attention"):
        met.clear()
        _, got, _ = reverse(pack, t, positive, negative, bounds(pack, kind), model=model)
        assert reg.relative(got, want) < 1e-5 < reg.relative(plain, want)
        assert len(met) == 2 * calls and set(met) == {(("input", 1), 0)}


def test_what_acts_on_a_network_during_its_call_only_is_noticed(host, pack):
    """REG Weak Model damps layers while apply_model runs; the backward pass comes later, and would recompute undamped."""
    t, positive, negative = fixture("sd15")
    damped = pack.nodes["REGWeakModel"].execute(t.patcher, 0.3).result[0]
    _, want, _ = reverse(pack, t, positive, negative, bounds(pack, "resident"), model=damped)
    state = pack.import_("nodes.memory").ReverseMemory("checkpoint")
    _, got, _ = reverse(pack, t, positive, negative, state, model=damped)
    assert reg.relative(got, want) < 1e-5 and not state.last.recompute
    assert len(state.notes) == 1 and "second pass differs" in state.notes[0]
    assert not reg.relative(reverse(pack, t, positive, negative, bounds(pack, "resident"))[1], want) < 1e-3, "damping must act"


def test_a_second_pass_is_told_what_the_arguments_of_blocks_took(host, pack):
    """Oracle: what the first pass counted."""
    t, positive, negative = fixture("sd15")
    state = pack.import_("nodes.memory").ReverseMemory("checkpoint")
    (first,), (second,) = (reverse(pack, t, positive, negative, state)[2] for _ in range(2))
    assert first.expected == 0 and first.arguments > 0
    assert second.expected == second.arguments == first.arguments


def test_cast_weights_are_not_pinned(host, pack):
    """With manual cast the graph of a resident pass holds a converted copy of every weight; blocks drop theirs."""
    t = tiny.build("sd3", dtype=torch.bfloat16, manual_cast=torch.float32)
    plain = tiny.build("sd3")
    converted = dict(t.patcher.model.diffusion_model.named_parameters())
    for name, weight in plain.patcher.model.diffusion_model.named_parameters():
        weight.copy_(converted[name].to(torch.float32))
    weights = 4 * sum(p.numel() for b in t.patcher.model.diffusion_model.joint_blocks for p in b.parameters())
    memory = pack.import_("nodes.memory")
    found = {}
    for name, model in (("cast", t), ("plain", plain)):
        state = memory.ReverseMemory("auto")
        _, product, (one,) = reverse(pack, model, model.positive, model.negative, state)
        found[name] = product, one, state.last
    cast, held = (found[name][1].block_bytes + found[name][1].attention_bytes for name in ("cast", "plain"))
    assert cast - held > 0.5 * weights, "the host must convert its weights"  # those that only the prompt passes are not saved
    assert found["cast"][2].blocks == 0 < found["plain"][2].blocks, "where weights are converted no block is kept whole"
    assert found["cast"][1].kept_blocks == 0 < found["cast"][1].recomputed
    assert reg.relative(found["cast"][0], found["plain"][0]) < 1e-4


def test_automatic_choice_counts_in_the_first_pass(host, pack):
    """Plenty of memory: everything is kept from the second call on. Little: blocks as far as they fit, and what is kept stays below."""
    t, positive, negative = fixture("sd15")
    memory = pack.import_("nodes.memory")
    state = memory.ReverseMemory("auto")
    _, want, passes = reverse(pack, t, positive, negative, state)
    assert len(passes) == 1 and state.last.recompute
    total = passes[0].block_bytes + passes[0].attention_bytes
    assert reverse(pack, t, positive, negative, state)[2] == [] and not state.last.recompute
    state = memory.ReverseMemory("auto")
    needs = {}

    def little(branches):
        needs["required"] = memory.PASS_NEEDS * 2 * branches.memory_required(torch.empty(1, *t.latent_shape))
        branches.free_memory = lambda x: (needs["required"] + total / 2) / memory.FREE_SHARE

    for _ in range(2):
        _, got, (one,) = reverse(pack, t, positive, negative, state, watch=little)
        assert reg.relative(got, want) < 1e-5 and one.recomputed > 0 and not state.notes
        attention = max(total / 4, 1)  # the one that crosses the line
        assert 0 < one.kept_blocks <= state.last.blocks and one.kept_attention < state.last.attention + attention


@pytest.mark.parametrize("where", ["first", "second"])
def test_cancel_within_a_pass(host, pack, monkeypatch, where):
    """ComfyUI's interrupt is asked for at every block, in both passes, and leaves through autograd as what it is."""
    t, positive, negative = fixture("sd15")
    management = host.model_management
    before, asked, limit = reg.fingerprint(t.patcher), [], {"first": 5, "second": 15}[where]
    real = management.throw_exception_if_processing_interrupted

    def ask():
        asked.append(1)
        if len(asked) > limit:
            raise management.InterruptProcessingException
        real()

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", ask)
    with pytest.raises(management.InterruptProcessingException):
        reverse(pack, t, positive, negative, bounds(pack, "nothing"))
    monkeypatch.undo()
    assert len(asked) == limit + 1 and reg.fingerprint(t.patcher) == before
    assert not any("forward" in vars(m) for m in t.patcher.model.modules())


@contextmanager
def small_device(t, most):
    """The network runs out of memory with more than `most` samples that need a gradient."""
    rows = []

    def refuse(module, args, kwargs):
        x = args[0] if args else kwargs["x"]
        if x.requires_grad:
            rows.append(len(x))
            if len(x) > most:
                raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")

    handle = t.patcher.model.diffusion_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("case", ["sd15", "flux", "wan", "hunyuan_dit"])
def test_out_of_memory_halves_the_batch(host, pack, case):
    """First nothing is kept, then fewer samples at a time. Conds differ between samples. Oracle: the whole batch at once."""
    t, *_ = fixture(case)
    texts = [t.conditioning(text)[0] for text in ("one", "two", "three", "four", "five")]
    context = torch.cat([c[0] for c in texts])
    entries = {k: torch.cat([c[1][k] for c in texts]) if isinstance(v, torch.Tensor) and v.shape[0] == 1 else v for k, v in texts[0][1].items()}
    positive = [[context, entries]]
    memory = pack.import_("nodes.memory")
    d, want, _ = reverse(pack, t, positive, t.negative, bounds(pack, "resident"), batch=5)
    state = memory.ReverseMemory("auto")
    with small_device(t, 2) as rows:
        d_again, got, _ = reverse(pack, t, positive, t.negative, state, batch=5)
        first = rows.copy()
        rows.clear()
        reverse(pack, t, positive, t.negative, state, batch=5)
    assert reg.relative(d_again, d) < 1e-5 and reg.relative(got, want) < 1e-4
    assert first[:3] == [5, 5, 2] and set(rows) <= {1, 2} and sum(rows) == 5, (first, rows)  # learned for the run
    assert len(state.notes) == 2 and "2 of 5 samples" in state.notes[1]
    wrong = reverse(pack, t, t.positive, t.negative, bounds(pack, "resident"), batch=5)[1]
    assert reg.relative(wrong, want) > 1e-3, "the samples' conds must matter"


def test_masks_and_areas_are_cut_with_their_samples(host, pack):
    t, *_ = fixture("sd15")
    masks = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(2))
    first, second = t.conditioning("one")[0], t.conditioning("two")[0]
    positive = [[first[0], first[1] | {"mask": masks, "mask_strength": 0.7}], [second[0], second[1] | {"area": (10, 8, 2, 4), "strength": 0.5}]]
    memory = pack.import_("nodes.memory")
    _, want, _ = reverse(pack, t, positive, t.negative, bounds(pack, "resident"), batch=4)
    with small_device(t, 1) as rows:
        _, got, _ = reverse(pack, t, positive, t.negative, memory.ReverseMemory("checkpoint"), batch=4)
    assert reg.relative(got, want) < 1e-4 and rows[-8:] == [1] * 8


@pytest.mark.parametrize("case", ["controlnet", "patch", "wrapper"])
def test_a_batch_that_cannot_be_cut_takes_differences(host, pack, case):
    t, positive, negative = fixture("controlnet" if case == "controlnet" else "sd15")
    model = t.patcher.clone()
    if case == "patch":
        model.set_model_attn2_patch(lambda q, k, v, extra: (q, k, v))
    if case == "wrapper":
        model.add_wrapper_with_key(host.patcher_extension.WrappersMP.DIFFUSION_MODEL, "other", lambda executor, *a, **k: executor(*a, **k))
    patched, trace = reg.apply(pack, model, "row_sum", "reverse")
    with small_device(t, 1) as rows:
        out = tiny.sample(t, patched, positive=positive, negative=negative, batch=2)
    assert torch.isfinite(out).all() and set(rows) == {2}
    assert {r.engine for r in trace.last.rows} == {"finite_difference"} and "Tried to allocate" in str(trace)


def test_notes_reach_the_trace_once(host, pack):
    t, *_ = fixture("sd15")
    patched, trace = reg.apply(pack, t.patcher, "scalar", "reverse")
    want = tiny.sample(t, patched, batch=4)
    with small_device(t, 2):
        out = tiny.sample(t, patched, batch=4)
    assert reg.relative(out, want) < 1e-4
    assert {r.engine for r in trace.last.rows} == {"reverse"}
    assert len(trace.last.notes) == 2 and "2 of 4 samples" in trace.last.notes[1]


def test_fewer_samples_from_the_start_where_memory_is_short(host, pack):
    t, *_ = fixture("sd15")
    memory = pack.import_("nodes.memory")
    _, want, _ = reverse(pack, t, t.positive, t.negative, bounds(pack, "resident"), batch=4)
    state = memory.ReverseMemory("auto")

    def little(branches):
        branches.free_memory = lambda x: 3.5 * memory.PASS_NEEDS * branches.memory_required(x[:1])

    with small_device(t, 2) as rows:
        _, got, _ = reverse(pack, t, t.positive, t.negative, state, batch=4, watch=little)
    assert rows == [2, 2] and "2 of 4 samples at a time" in state.notes[0]
    assert reg.relative(got, want) < 1e-4


def test_blocks_are_found(host, pack):
    """Every family has blocks, none inside another, and no layer alone."""
    blocks = pack.import_("nodes.blocks").blocks
    for case in tiny.FAMILIES:
        network = fixture(case)[0].patcher.model.diffusion_model
        found = list(blocks(network))
        assert found and len(set(map(id, found))) == len(found), case
        inner = {id(m) for block in found for m in block.modules() if m is not block}
        assert not any(id(block) in inner for block in found), case
        share = sum(p.numel() for b in found for p in b.parameters()) / sum(p.numel() for p in network.parameters())
        assert share > 0.25, (case, share)  # ACE-Step's lyric encoder is no part of the latent's way


class InPlace(torch.nn.Module):
    """Blocks in a list. `kind`: what is written to, and when; `written`: the same without writing."""

    class Block(torch.nn.Module):
        def __init__(self, kind, index):
            super().__init__()
            self.kind, self.index, self.first, self.second = kind, index, torch.nn.Tanh(), torch.nn.Sigmoid()

        def forward(self, x, table):
            if self.kind == "inside":  # after tanh saved its result
                y = self.first(x)
                z = self.second(y)
                y += z * table
                return self.second(y * z)
            if self.kind == "shared" and self.index == 1:  # an argument without gradient, which the block before holds as well
                table = table.mul_(0.9)
            return self.second(self.first(x * table) * x)

    def __init__(self, kind):
        super().__init__()
        self.kind, self.blocks = kind, torch.nn.ModuleList(self.Block(kind, i) for i in range(3))

    def forward(self, x, table):
        table, x = table.clone(), x * 1.0
        for block in self.blocks:
            before = x
            x = block(x, table)
            if self.kind == "argument":  # what the block was given, once it is through
                before += 1.0
        return x


@pytest.mark.parametrize("kind", ["inside", "shared", "argument"])
def test_writes_in_place_are_noticed_and_survived(pack, kind):
    """Oracle: numerical differentiation in float64."""
    checkpoint, blocks = pack.import_("nodes.checkpoint"), pack.import_("nodes.blocks").blocks
    network = InPlace(kind)
    with torch.inference_mode(False):
        g = torch.Generator().manual_seed(0)
        x, u, table = (torch.randn(6, generator=g, dtype=torch.float64) for _ in range(3))
        eye = 1e-6 * torch.eye(6, dtype=torch.float64)
        want = torch.stack([(u * (network(x + e, table) - network(x - e, table))).sum() for e in eye]) / 2e-6

        def product(copies):
            recompute = checkpoint.Recompute(None, copies=copies)
            z = x.clone().requires_grad_()
            with recompute.over(blocks(network)), torch.enable_grad():
                got = torch.autograd.grad(network(z, table), z, u)[0]
            assert recompute.recomputed == 3
            return got

        with pytest.raises(RuntimeError, match=checkpoint.IN_PLACE):
            product(copies=False)
        assert torch.allclose(product(copies=True), want, atol=1e-7)


def test_weights_come_on_the_stream_that_computes(host, pack):
    """ComfyUI's own streams take back what a backward pass still reads. Oracle: its own switch, seen from within; put back, also after an error."""
    t = tiny.build("sd15")
    management, module = host.model_management, pack.import_("nodes.host")

    def look(guider, x, sigma, options):
        branches = module.ModelBranches(guider.inner_model, [guider.conds["positive"], guider.conds["negative"]], options)
        with pytest.raises(ZeroDivisionError), branches.differentiable("reverse", x):
            seen.append((management.NUM_STREAMS, management.get_offload_stream(torch.device("cuda"))))
            raise ZeroDivisionError
        seen.append(management.NUM_STREAMS)

    seen, before = [], management.NUM_STREAMS
    management.NUM_STREAMS = 2
    try:
        reg.inside(t, look)
    finally:
        management.NUM_STREAMS = before
    assert seen == [(0, None), 2]


def test_paged_weights_are_copied_before_they_are_taken_back(host, pack, monkeypatch):
    """A host whose patcher says that it is dynamic, with what it paged in on each layer. Oracle: J^T u of the plain one; the pages, which
    are overwritten here as soon as a layer has run."""
    t = tiny.build("sd15")
    want, plain, _ = reverse(pack, t, t.positive, t.negative, bounds(pack, "resident"))
    layers = [m for m in t.patcher.model.diffusion_model.modules() if isinstance(m, torch.nn.Conv2d)]

    def paged(layer):
        def forward(x):
            page = layer._v_weight
            assert not page.is_inference(), "autograd would refuse it"
            page.copy_(layer.weight)
            out = torch.nn.functional.conv2d(x, page, layer.bias, layer.stride, layer.padding)
            with torch.no_grad():
                page.data.fill_(float("nan"))
            return out

        return forward

    for layer in layers:
        layer._v_weight = torch.empty_like(layer.weight)
        layer.forward = paged(layer)
    pages = [layer._v_weight for layer in layers]
    monkeypatch.setattr(type(t.patcher), "is_dynamic", lambda self: True, raising=False)
    memory = pack.import_("nodes.memory").ReverseMemory("checkpoint")
    with torch.inference_mode(False):
        got, product, _ = reverse(pack, t, t.positive, t.negative, memory)
    assert memory.copies and not memory.notes and reg.relative(got, want) < 1e-5 and reg.relative(product, plain) < 1e-4
    assert [id(layer._v_weight) for layer in layers] == [id(page) for page in pages]
