"""Random inputs of every node: a result, or one short line. Oracle: the schema says how many results there are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ..core.anything import anything, drawn, outcome
from . import inputs


@pytest.fixture(scope="module")
def cases(host, pack):
    """[(node class, schema, valid inputs)]. What samples is left out here: the soak does that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack.import_("nodes.calibrate"), "sample_once", lambda *args, **options: torch.zeros(1, 1, 8, 8))
        yield [(pack.nodes[name], pack.nodes[name].define_schema(), values) for name, values in inputs.valid(pack, host.io).items()]


def near(given, data):
    """A value of the input's kind or at its edges, or anything."""
    kind = str(given.io_type)
    usual = [st.sampled_from(list(given.options))] if getattr(given, "options", None) else []
    if kind in ("FLOAT", "INT"):
        between = st.floats if kind == "FLOAT" else st.integers
        usual += [st.sampled_from([given.min, given.max, given.default]), between(given.min, given.max)]
    if kind == "STRING":
        usual += [st.text(alphabet="0123456789.,:;-e \n", max_size=20), st.text(max_size=20)]
    return data.draw(st.one_of(*usual, anything))


def test_any_input_of_any_node(cases):
    results = 0

    @drawn
    @given(st.data())
    def one(data):
        nonlocal results
        node, schema, values = data.draw(st.sampled_from(cases), label="node")
        changed = data.draw(st.lists(st.sampled_from(schema.inputs), max_size=3, unique=True), label="inputs")
        values = values | {g.id: near(g, data) for g in changed}
        if schema.is_input_list:
            values = {name: value if isinstance(value, list) and data.draw(st.booleans()) else [value] for name, value in values.items()}
        output = outcome(lambda: node.execute(**values))
        if output is not None:
            assert len(output.result) == len(schema.outputs)
            results += 1

    one()
    assert results > 20


@pytest.mark.parametrize("node_id", ["REGLoadCalibration"])
def test_any_name_of_a_table(pack, node_id):
    @drawn
    @given(st.one_of(st.text(), anything))
    def one(table):
        outcome(lambda: pack.nodes[node_id].execute(table), FileNotFoundError)
        outcome(lambda: pack.nodes[node_id].fingerprint_inputs(table), FileNotFoundError)

    one()
