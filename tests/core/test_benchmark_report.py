"""The benchmark's meters against known quantities, its ratios and page against numbers worked out by hand."""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import measure, meters, report, suites
from benchmarks.suites import MODES


def test_memory_meter_finds_the_bytes_of_tensors():
    """Oracle: sizes by hand; two tensors live at once, a third after them, and one that was there before."""
    with torch.inference_mode():
        before = torch.ones(1_000_000)
        with meters.CpuMemory() as memory:
            first = torch.ones(5_000_000)  # 20 MB
            second = torch.ones(2_500_000)  # 10 MB
            del first, second, before
            third = torch.ones(6_000_000)  # 24 MB
            del third
    assert memory.peak == pytest.approx(30e6, abs=1e4) and memory.whole(7) == memory.peak + 7
    with meters.CpuMemory() as memory:
        pass
    assert memory.peak == 0


def test_memory_meter_sees_what_a_backward_pass_keeps():
    """Oracle: each of three squarings keeps its argument, so that four tensors of 4 MB live at the end; without gradient two do."""
    x = torch.ones(1_000_000)
    peaks = {}
    for grad in (False, True):
        with meters.CpuMemory() as memory, torch.set_grad_enabled(grad):
            y = x.clone().requires_grad_(grad)
            for _ in range(3):
                y = y * y
            if grad:
                torch.autograd.grad(y.sum(), y)
            del y
        peaks[grad] = memory.peak
    assert peaks[False] == pytest.approx(8e6, abs=1e4) and peaks[True] >= 16e6 - 1e4


def test_host_reads_are_counted_under_inference_mode():
    """Oracle: the lines below, by eye: five of them read."""
    with torch.inference_mode():
        t = torch.arange(3.0)
        with meters.HostReads() as reads:
            float(t.max())
            t[0].item()
            t.tolist()
            if t[1] > 0:
                int(t[2])
            _ = t * 2 + t.sum()
    assert reads.count == 5


def test_waits_are_the_warnings_that_cuda_gives(monkeypatch):
    """Oracle: the text of PyTorch's own warning (c10/cuda/CUDAFunctions.cpp), given twice among others."""
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with meters.CudaWaits() as waits:
        for text in ("called a synchronizing CUDA operation", "something else", "called a synchronizing CUDA operation"):
            warnings.warn(text, stacklevel=1)
    assert waits.count == 2 and modes == ["warn", 0]


def test_ratios_are_medians_of_rounds():
    """Oracle: by hand. Rounds 2/1, 6/4, 9/3; their median is 2. Outside of the model 1.2 against 0.6 of a step, 2 and 2, 1 and 1."""
    own = [meters.Times(*times) for times in ((2.0, 1.0, 1.2), (6.0, 2.0, 2.0), (9.0, 3.0, 1.0))]
    plain = [meters.Times(*times) for times in ((1.0, 1.0, 0.6), (4.0, 1.0, 2.0), (3.0, 1.0, 1.0))]
    found = {"title": "t", "own": own, "plain": plain, "rows": 2.0, "calls": 1.0}
    result = measure._timed(found, MODES["default"])
    assert result["time"] == {"median": 2.0, "low": 1.5, "high": 3.0} and result["processor"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert result["seconds"]["median"] == 6.0 and result["plain"] == 3.0 and result["outside"] == 0.0
    assert measure._timed(found | {"profiled": (own[0], plain[0])}, MODES["default"])["outside"] == pytest.approx(0.2)  # 0.6 s of a step of 3 s
    assert measure._timed(found, MODES["reverse_resident"])["outside"] is None


def test_neither_drift_nor_bursts_reach_the_ratio():
    """Oracle: made up. Two rows take 2 s and three 3 s on a machine that gets slower all the time, with four bursts; 2.4 of 2 rows is 1.2."""
    rows, beside = [3, 2, 2, 3, 2] * 6, meters.Beside()
    for i, n in enumerate(rows):
        slow = 1 + 0.02 * i
        own, plain = n * slow * (5 if i in (3, 7) else 1), 2 * slow * (5 if i in (11, 20) else 1)
        beside.add(n, meters.Times(own, own, 0.1 * own), meters.Times(plain, plain, 0.05))
    own, plain = beside.totals()
    assert own.wall / plain.wall == pytest.approx(1.2) and own.processor / plain.processor == pytest.approx(1.2)
    assert plain.outside == pytest.approx(30 * 0.05) and own.outside == pytest.approx(0.1 * sum(rows), rel=0.5)
    seldom = meters.Beside()
    for i, n in enumerate([3, 2, 2, 2]):
        seldom.add(n, meters.Times(n * 1.0, 1.0), meters.Times(2.0, 1.0) if i % 2 else None)
    own, plain = seldom.totals()
    assert (own.wall, plain.wall) == (9.0, 8.0)
    with pytest.raises(ValueError, match="beside any of 0"):
        meters.Beside().totals()


def test_memory_and_reads_beside_plain_guidance():
    """Oracle: by hand."""
    base = {"peak": 100, "activations": 40, "reads": 1.0, "waits": None, "cleared": 1}
    own = base | {"peak": 150, "activations": 90, "reads": 3.0, "cleared": 3}
    result = measure._against_plain(own, base, MODES["default"], True, "cpu")
    assert result["memory"] == 1.5 and result["reads"] == 2.0 and result["cleared"] == 2 and result["waits"] is None and result["activations"] == 90
    assert result["targets"] == {"time": 1.15, "memory": 1.10}
    assert measure._against_plain(own, base, MODES["default"], False, "cpu")["targets"] == {"time": None, "memory": None}


def _result(suite="cpu", kind="cpu", waits=None):
    def mode(name, ratio, memory):
        target = {"time": MODES[name].time.get(kind), "memory": MODES[name].memory.get(kind)}
        seconds = {"median": 2.0 * ratio, "low": 2.0, "high": 3.0}
        time = {"median": ratio, "low": ratio - 0.01, "high": ratio + 0.01}
        return {
            "title": MODES[name].title, "seconds": seconds, "time": time, "processor": time, "peak": 2e9, "activations": 3e8, "memory": memory, "rows": 2.25,
            "calls": 1.0, "reads": 1.0, "waits": waits, "cleared": 0, "outside": 0.004, "notes": ["fell back"] if name == "default" else [],
            "targets": target,
        }  # fmt: skip

    def case(axis, size):
        about = dict(name=f"{axis}{size}", title="A model", network="net", size=[4, size, size], batch=1, steps=8, rounds=3, minutes=1.2)
        about |= dict(cfg=7.0, sampler="euler", scheduler="karras", dtype="float32", memory_steps=2, axis=axis, weights=int(1.7e9))
        return about | {"modes": {"cfg": mode("cfg", 1.0, 1.0), "default": mode("default", 1.10, 1.2), "schedule": mode("schedule", 1.02, 1.0)}}

    machine = dict(device="A processor", threads=2, torch="2", comfyui="0.3", python="3", date="today")
    cases = [case("", 32), case("size", 16), case("size", 32)]
    return {"suite": suite, "kind": kind, "machine": machine, "cases": cases}


def test_page_says_what_is_over(tmp_path):
    """Oracle: the figures above beside the targets of the issue: 1.02 > 1.01 in time, 1.2 > 1.10 in memory, the rest within."""
    (tmp_path / "cpu.json").write_text(json.dumps(_result()))
    report.write(tmp_path, tmp_path)
    page = (tmp_path / "cost.md").read_text()
    rows = {line.split(" | ")[0].lstrip("| "): line for line in page.splitlines() if line.startswith("| ")}
    shipped, schedule = rows[f"{MODES['default'].title} (1)"], rows[MODES["schedule"].title]
    assert "**1.10** (1.09 to 1.11) | 1.15 | 1.10 |" in shipped and "1.20 | 1.10 **over**" in shipped and "300 MB | 2.25 | 0.40 %" in shipped
    assert "1.01 **over**" in schedule and "1. fell back" in page
    assert "today; 4 minutes." in page and "Not measured yet" in page and "6.91 to 19.49 GB" in page
    assert (tmp_path / "images" / "cost-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_table_says_which_modes_had_more_rounds():
    """Oracle: the sum on paper, and a case kept from before the key was there."""
    case = _result()["cases"][0]
    assert report.table(case, "cpu")[2].endswith(" 3 rounds.")
    assert report.table(case | {"rounds": 1}, "cpu")[2].endswith(" 1 round.")
    assert " 3 rounds, and 10 of these modes: plain guidance; `schedule`." in report.table(case | {"close": 7}, "cpu")[2]


def test_page_holds_every_suite_kept(tmp_path):
    """Oracle: two results in, two headings out, the GPU's first and with its waits."""
    (tmp_path / "cpu.json").write_text(json.dumps(_result()))
    (tmp_path / "cuda.json").write_text(json.dumps(_result("cuda", "cuda", waits=1.5)))
    report.write(tmp_path, tmp_path)
    page = (tmp_path / "cost.md").read_text()
    assert page.count("## A processor") == 2 and page.index("waits |") < page.index("2 threads") and "Not measured yet" not in page
    with pytest.raises(FileNotFoundError, match="run the benchmark first"):
        report.write(tmp_path / "nothing", tmp_path)


def test_the_verdict_comes_first_and_holds_the_ends_of_every_machine():
    """Oracle: by hand. Two models on one machine, `default` at 1.1 and 1.3; a model whose plain guidance is not two rows is left out."""
    modes = {"default": {"time": {"median": 1.3}, "memory": 1.02, "targets": {"time": 1.15}}}
    other = {"default": {"time": {"median": 1.1}, "memory": None, "targets": {"time": 1.15}}}
    apart = {"default": {"time": {"median": 9.0}, "memory": 9.0, "targets": {"time": None}}}
    cases = [{"axis": "", "batch": 1, "modes": m} for m in (modes, other, apart)] + [{"axis": "size", "batch": 2, "modes": modes}]
    lines = report.verdict([{"machine": {"device": "Toaster"}, "cases": cases}]).splitlines()
    assert lines[0] == "| as multiples of plain guidance | Toaster, batch 1 |"
    assert [line.split(" | ")[1].rstrip(" |") for line in lines[2:8]] == ["", "1.10 to 1.30", "1.02", "", "", ""]
    page = (Path(__file__).resolve().parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
    assert page.index("as multiples of plain guidance") < page.index("## Every model") < page.index("## How it was measured")


def test_summary_has_every_case_that_is_no_scaling():
    """Oracle: the figures above, by eye."""
    lines = report.summary([_result("cuda", "cuda", waits=0.0), _result()]).splitlines()
    (shipped,) = (i for i, title in enumerate(lines[4].split(" | ")) if title == MODES["default"].title)
    assert len(lines) == 8 and all(line.startswith("| A processor | A model | 1.02, 1.00 |") for line in lines[6:])
    assert [line.split(" | ")[shipped] for line in lines[6:]] == ["1.10, 1.20"] * 2


def test_one_case_measured_again():
    """Oracle: by eye. The second case is the new one, the order is the suite's; another machine's figures are refused."""

    def result(names, minutes, **machine):
        cases = [{"name": name, "from": minutes} for name in names]
        return {"suite": "tiny", "machine": {"device": "A", "date": "1"} | machine, "cases": cases}

    merged = command._replaced(result(["tiny_eps", "tiny_digits", "no longer"], 2), result(["tiny_v", "tiny_digits"], 3, date="2"))
    assert [(case["name"], case["from"]) for case in merged["cases"]] == [("tiny_eps", 2), ("tiny_v", 3), ("tiny_digits", 3)]
    assert merged["machine"]["date"] == "2"
    with pytest.raises(ValueError, match="another device"):
        command._replaced(merged, result(["tiny_v"], 3, device="B"))


def test_an_interrupted_suite_keeps_what_it_measured(tmp_path, monkeypatch):
    """Oracle: by eye. Of three cases the third fails; on the same machine an earlier one of it stays, on another nothing does."""
    earlier = {"suite": "tiny", "kind": "cpu", "machine": {"device": "A"}, "cases": [{"name": name, "from": "earlier"} for name in ("tiny_eps", "tiny_digits")]}
    path = tmp_path / "tiny.json"
    for device, names in (("A", ["tiny_eps", "tiny_v", "tiny_digits"]), ("B", ["tiny_eps", "tiny_v"])):

        def run_case(case, *rest):
            if case.name == "tiny_sdxl":
                raise RuntimeError("out of memory")
            return {"name": case.name, "from": "now"}

        monkeypatch.setattr(command, "run_case", run_case)
        monkeypatch.setattr(command, "build", lambda *given: None)
        monkeypatch.setattr(command, "_unload", lambda: None)
        monkeypatch.setattr(command, "machine", lambda kind, device=device: {"device": device})
        monkeypatch.setattr(command.host, "start", lambda cpu: None)
        monkeypatch.setattr(command.report, "table", lambda case, kind: [case["name"]])
        path.write_text(json.dumps(earlier))
        with pytest.raises(RuntimeError, match="out of memory"):
            command.main(["--suite", "tiny", "--out", str(tmp_path)])
        kept = json.loads(path.read_text())
        assert [case["name"] for case in kept["cases"]] == names and kept["machine"]["device"] == device
        assert [case["from"] for case in kept["cases"]] == ["now", "now", "earlier"][: len(names)]


def test_memory_measured_again():
    """Oracle: by eye. Only memory and reads are new, of the case asked for; other modes than the kept ones are refused, and nothing is lost."""
    kept = _result()
    kept["cases"] = [case | {"name": name} for case, name in zip(kept["cases"], "abc", strict=True)]
    new = {"name": "b", "memory_steps": 5, "modes": {name: {"peak": 7, "memory": 0.5, "reads": 9.0} for name in kept["cases"][1]["modes"]}}
    merged = command._with_memory(json.loads(json.dumps(kept)), {"machine": kept["machine"] | {"date": "later"}, "cases": [new]})
    assert merged["cases"][0] == kept["cases"][0] and merged["cases"][2] == kept["cases"][2] and merged["machine"] == kept["machine"]
    mode, before = merged["cases"][1]["modes"]["default"], kept["cases"][1]["modes"]["default"]
    assert merged["cases"][1]["memory_steps"] == 5 and mode == before | {"peak": 7, "memory": 0.5, "reads": 9.0}
    del new["modes"]["cfg"]
    with pytest.raises(ValueError, match="b was kept with cfg, default, schedule"):
        command._with_memory(kept, {"machine": kept["machine"], "cases": [new]})
    with pytest.raises(ValueError, match="--memory: the kept results have another torch"):
        command._with_memory(kept, {"machine": kept["machine"] | {"torch": "1"}, "cases": []})


def test_authors_ratios_stand_beside_ours():
    """Oracle: the authors' two numbers for SDXL at 1024, 6.91 and 19.49 GB, whose ratio is their highest, 2.82."""
    case = _result("cuda", "cuda", waits=0.0)["cases"][0]
    stated = {name: "\n".join(report.table(case | {"network": name, "size": [4, 128, 128]}, "cuda")) for name in ("sdxl", "sd15", "digits")}
    assert "| 1.21 to 1.88 |  | 19.49 GB (6.91 GB) | 2.82 |" in stated["sdxl"]
    assert "| 1.21 to 1.88 |  |  | 1.21 to 2.82 |" in stated["sd15"] and "authors" not in stated["digits"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--suite", "tiny", "--case", "tiny_ep"], "no tiny_ep in suite tiny, which has tiny_eps"),
        (["--suite", "tiny", "--mode", "default"], "--mode, --steps and --rounds go with --case"),
        (["--suite", "tiny", "--case", "tiny_v", "--mode", "default", "--keep"], "not with --keep"),
        (["--suite", "tiny", "--keep"], "--keep goes with --case"),
        (["--suite", "tiny", "--case", "tiny_v", "--mode", "defualt"], "no defualt"),
        (["--suite", "tiny", "--case", "tiny_v", "--steps", "0"], "--steps must be 1 or more, got 0"),
        (["--suite", "tiny", "--case", "tiny_v", "--rounds", "-1"], "--rounds must be 1 or more, got -1"),
        (["--suite", "cpu", "--memory", "--keep", "--case", "digits"], "--memory goes with --case and --suite alone"),
        (["--suite", "tiny", "--memory"], "toys keep no results"),
        (["--suite", "cuda"], "sees no CUDA device"),
        (["--suite", "huge"], "huge"),
    ],
)
def test_bad_input_is_named(given, said, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        command.main(given)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_memory_again_needs_results(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--suite", "cpu", "--memory", "--out", str(tmp_path)])
    assert f"no results in {tmp_path}" in capsys.readouterr().err


def test_no_comfyui_is_said_so(monkeypatch, tmp_path):
    from benchmarks import host

    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no ComfyUI at {tmp_path}"):
        host.start(cpu=True)
    assert not any(name.startswith("comfy.") for name in sys.modules)


def test_further_rounds_are_of_the_close_modes_only():
    """Oracle: by hand, for three modes of which two are close: two rounds of all and three more of the two, forth and back."""
    case = replace(suites.TINY[0], modes=("cfg", "schedule", "default"), rounds=2, close=3)
    rounds = [measure._of_round(case, i) for i in range(5)]
    assert rounds == [("cfg", "schedule", "default"), ("default", "schedule", "cfg"), ("cfg", "schedule"), ("schedule", "cfg"), ("cfg", "schedule")]
    assert measure.runs_of(case, "cpu") == 3 + 2 * 3 + 3 * 2
    asked = SimpleNamespace(case=[case.name], keep=False, mode=None, steps=None, rounds=2)
    assert command._cut(case, asked).close == 0, "--rounds is the number there will be"
    assert command._cut(case, SimpleNamespace(**vars(asked) | {"rounds": None})) == case


def test_every_suite_has_its_baseline_and_names_apart():
    for cases in suites.SUITES.values():
        assert all(case.modes[0] == suites.CFG and set(case.modes) <= MODES.keys() for case in cases)
        assert len({case.name for case in cases}) == len(cases)
        assert all(case.steps % case.beside == 0 for case in cases), "plain guidance would be weighed unevenly"
