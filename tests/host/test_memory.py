"""Reverse mode within bounds: recomputed blocks, running out of memory. Oracle: the pass that keeps everything."""

from contextlib import contextmanager

import pytest
import torch

from . import reg, tiny
from .test_engines import fixture as engine_fixture

CASES = [*tiny.FAMILIES, "controlnet"]
ADD_IN_PLACE = ("flux", "chroma", "hunyuan_video", "hunyuan_image", "controlnet", "longcat", "ltx", "pixeldit")  # LTX only to the arguments of its blocks
_built = {}


def fixture(case):
    if case in ("controlnet", *tiny.ARCHITECTURES):
        return engine_fixture(case)
    if tiny.missing(case):
        pytest.skip(tiny.missing(case))
    if case not in _built:
        t = tiny.build(case)
        _built[case] = t, t.positive, t.negative
    return _built[case]


def reverse(pack, t, positive, negative, backward, batch=None, model=None, at=1, **values):
    """(D, J^T u) inside a real sampling run by ModelBranches.reverse, and the passes that recomputed blocks."""
    branches_of, levels = pack.import_("nodes.host.branches"), pack.import_("nodes.host.noise_levels")
    module, recompute = pack.import_("nodes.backward.reverse"), pack.import_("nodes.backward.recompute")
    passes = []

    class Seen(recompute.Recompute):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            passes.append(self)

    def look(guider, x, sigma, options):
        conds = [guider.conds["positive"], guider.conds["negative"]]
        branches = branches_of.ModelBranches(guider.inner_model, conds, x, sigma, options, branches_of.Passes(backward, {("alone", 0, x.shape): True}))
        point = levels.point_at(guider.inner_model.model_sampling, x, sigma)
        u = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        return branches.reverse(point, u)

    batch = batch or tiny.batches(t.name)[-1]
    module.Recompute, kept = Seen, module.Recompute
    try:
        result = reg.inside(t, look, model=model, batch=batch, positive=positive, negative=negative, at=at, **values)
    finally:
        module.Recompute = kept
    return *result, passes


def backward(pack, mode):
    return pack.import_("nodes.backward.reverse").BackwardPass(mode)


@pytest.mark.parametrize("case", CASES)
def test_recomputed_blocks_give_the_resident_product(host, pack, case):
    t, positive, negative = fixture(case)
    before = reg.fingerprint(t.patcher)
    try:
        d, want, passes = reverse(pack, t, positive, negative, backward(pack, "resident"))
    except RuntimeError as error:
        if "no autograd formula" not in str(error):
            raise
        pytest.skip(f"a kernel of this ComfyUI has no derivative: {error}")
    assert not passes
    if case == "trellis2":
        pytest.skip("its blocks take objects of its own instead of tensors: nothing is recomputed")
    state = backward(pack, "checkpoint")
    d_again, got, passes = reverse(pack, t, positive, negative, state)
    assert reg.relative(d_again, d) < 1e-6 and reg.relative(got, want) < 1e-5
    assert passes and not state.notes, state.notes
    assert any(p.compared for p in passes), "a second pass is compared with its first"
    assert passes[-1].copies == (case == "hunyuan3d" or case.startswith(ADD_IN_PLACE)), case
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
    _, want, _ = reverse(pack, t, positive, negative, backward(pack, "resident"), model=model)
    calls = len(met)
    _, plain, _ = reverse(pack, t, positive, negative, backward(pack, "resident"))
    met.clear()
    _, got, _ = reverse(pack, t, positive, negative, backward(pack, "checkpoint"), model=model)
    assert reg.relative(got, want) < 1e-5 < reg.relative(plain, want)
    assert len(met) == 2 * calls and set(met) == {(("input", 1), 0)}


def test_what_acts_on_a_network_during_its_call_only_is_noticed(host, pack):
    """REG Weak Model damps layers while apply_model runs; the backward pass comes later, and would recompute undamped."""
    t, positive, negative = fixture("sd15")
    damped = pack.nodes["REGWeakModel"].execute(t.patcher, 0.3).result[0]
    _, want, _ = reverse(pack, t, positive, negative, backward(pack, "resident"), model=damped)
    state = backward(pack, "checkpoint")
    _, got, passes = reverse(pack, t, positive, negative, state, model=damped)
    assert reg.relative(got, want) < 1e-5 and len(passes) == 1 and state.mode == "resident"
    assert len(state.notes) == 1 and "second pass differs" in state.notes[0]
    assert not reg.relative(reverse(pack, t, positive, negative, backward(pack, "resident"))[1], want) < 1e-3, "damping must act"


def test_converted_weights_are_not_kept(host, pack):
    """With manual cast the graph of a resident pass holds a converted copy of every weight. They count as activations, and blocks drop theirs."""
    t = tiny.build("sd3", dtype=torch.bfloat16, manual_cast=torch.float32)
    plain = tiny.build("sd3")
    converted = dict(t.patcher.model.diffusion_model.named_parameters())
    for name, weight in plain.patcher.model.diffusion_model.named_parameters():
        weight.copy_(converted[name].to(torch.float32))
    weights = 4 * sum(p.numel() for b in t.patcher.model.diffusion_model.joint_blocks for p in b.parameters())
    found = {}
    for name, model in (("cast", t), ("plain", plain)):
        _, product, (one,) = reverse(pack, model, model.positive, model.negative, backward(pack, "auto"))
        found[name] = product, one.activations
    assert found["cast"][1] - found["plain"][1] > 0.5 * weights, "the host must convert its weights"  # those that only the prompt passes are not saved
    assert reg.relative(found["cast"][0], found["plain"][0]) < 1e-4


def test_automatic_choice_counts_in_the_first_pass(host, pack, monkeypatch):
    """Plenty of memory: everything is kept from the second call on. Half of what is counted, or more samples than fit: blocks."""
    t, positive, negative = fixture("sd15")
    state = backward(pack, "auto")
    _, want, (first,) = reverse(pack, t, positive, negative, state)
    assert reverse(pack, t, positive, negative, state)[2] == []
    share = pack.import_("nodes.backward.reverse").FREE_SHARE
    for part, batch, passes in ((1.01, 2, 0), (0.99, 2, 1), (1.01, 3, 1)):
        monkeypatch.setattr(host.model_management, "get_free_memory", lambda *args, part=part: part * first.activations / share)
        _, got, again = reverse(pack, t, positive, negative, state, batch=batch)
        assert len(again) == passes and not state.notes
        assert batch != 2 or reg.relative(got, want) < 1e-5


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
        reverse(pack, t, positive, negative, backward(pack, "checkpoint"))
    monkeypatch.undo()
    assert len(asked) == limit + 1 and reg.fingerprint(t.patcher) == before
    assert not any("forward" in vars(m) for m in t.patcher.model.modules())


@contextmanager
def small_device(t, fits):
    """Passes that need a gradient run out of memory, but for those that recompute blocks where `fits` says so."""
    passes = []

    def refuse(network, args, kwargs):
        x = args[0] if args else kwargs["x"]
        if x.requires_grad:
            recomputes = any("forward" in vars(m) for m in network.modules())
            passes.append(recomputes)
            if not (recomputes and fits):
                raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")

    handle = t.patcher.model.diffusion_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def test_out_of_memory_computes_blocks_twice(host, pack):
    """Oracle: the pass with enough memory. What was learned holds for the run, and the trace says it once."""
    t, *_ = fixture("sd15")
    want = tiny.sample(t, reg.apply(pack, t.patcher, "scalar", "reverse", memory="resident")[0])
    patched, trace = reg.apply(pack, t.patcher, "scalar", "reverse", memory="resident")
    with small_device(t, True) as passes:
        out = tiny.sample(t, patched)
    assert reg.relative(out, want) < 1e-4
    assert {r.engine for r in trace.last.rows} == {"reverse"} and passes == [False, True, True, True]
    assert trace.last.notes == ["reverse mode ran out of memory: blocks are computed twice from here on"]


@pytest.mark.parametrize("memory", ["auto", "resident", "checkpoint"])
def test_memory_that_does_not_suffice_takes_differences(host, pack, memory, caplog):
    t, *_ = fixture("sd15")
    want = tiny.sample(t, reg.apply(pack, t.patcher)[0])
    patched, trace = reg.apply(pack, t.patcher, "row_sum", "reverse", memory=memory)
    with small_device(t, False) as passes, caplog.at_level("WARNING"):
        out = tiny.sample(t, patched)
    assert len(trace.last.notes) == len([m for m in caplog.messages if m.startswith("REG")]) == 1, "said once"
    assert reg.relative(out, want) < 1e-4 and len(passes) == (1 if memory == "checkpoint" else 2)
    assert {r.engine for r in trace.last.rows} == {"finite_difference"} and "Tried to allocate" in str(trace)


def test_blocks_are_found(host, pack):
    """Every family has blocks, none inside another, and no layer alone."""
    blocks = pack.import_("nodes.backward.blocks").blocks
    for case in filter(lambda name: not tiny.missing(name), tiny.FAMILIES):
        network = fixture(case)[0].patcher.model.diffusion_model
        found = list(blocks(network))
        assert found and len(set(map(id, found))) == len(found), case
        inner = {id(m) for block in found for m in block.modules() if m is not block}
        assert not any(id(block) in inner for block in found), case
        way = sum(p.numel() for name, p in network.named_parameters() if not name.startswith(("img_emb.", "control_adapter.")))
        share = sum(p.numel() for b in found for p in b.parameters()) / way
        assert share > 0.25, (case, share)  # ACE-Step's lyric encoder is no part of the latent's way, nor are Wan's of pictures and cameras


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
    module, blocks = pack.import_("nodes.backward.recompute"), pack.import_("nodes.backward.blocks").blocks
    network = InPlace(kind)
    with torch.inference_mode(False):
        g = torch.Generator().manual_seed(0)
        x, u, table = (torch.randn(6, generator=g, dtype=torch.float64) for _ in range(3))
        eye = 1e-6 * torch.eye(6, dtype=torch.float64)
        want = torch.stack([(u * (network(x + e, table) - network(x - e, table))).sum() for e in eye]) / 2e-6

        def product(copies):
            recompute = module.Recompute(copies=copies, verify=True)
            z = x.clone().requires_grad_()
            with recompute.over(blocks(network)), torch.enable_grad():
                got = torch.autograd.grad(network(z, table), z, u)[0]
            assert len(recompute.compared) >= 3
            return got

        with pytest.raises(RuntimeError, match=module.IN_PLACE):
            product(copies=False)
        assert torch.allclose(product(copies=True), want, atol=1e-7)


def test_weights_come_on_the_stream_that_computes(host, pack):
    """ComfyUI's own streams take back what a backward pass still reads. Oracle: its own switch, seen from within; put back, also after an error."""
    management, module = host.model_management, pack.import_("nodes.host.branches")
    before, management.NUM_STREAMS = management.NUM_STREAMS, 2
    try:
        with pytest.raises(ZeroDivisionError), module._settings_for_a_derivative():
            assert management.NUM_STREAMS == 0 and management.get_offload_stream(torch.device("cuda")) is None
            assert getattr(management, "in_training", True)
            raise ZeroDivisionError
        assert management.NUM_STREAMS == 2 and not getattr(management, "in_training", False)
    finally:
        management.NUM_STREAMS = before


def test_paged_weights_are_copied_before_they_are_taken_back(host, pack, monkeypatch):
    """A host whose patcher says that it is dynamic, with what it paged in on each layer. Oracle: J^T u of the plain one; the pages, which
    are overwritten here as soon as a layer has run."""
    t = tiny.build("sd15")
    want, plain, _ = reverse(pack, t, t.positive, t.negative, backward(pack, "resident"))
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
    state = backward(pack, "checkpoint")
    with torch.inference_mode(False):
        got, product, passes = reverse(pack, t, t.positive, t.negative, state)
    assert passes[-1].copies and not state.notes and reg.relative(got, want) < 1e-5 and reg.relative(product, plain) < 1e-4
    assert [id(layer._v_weight) for layer in layers] == [id(page) for page in pages]
