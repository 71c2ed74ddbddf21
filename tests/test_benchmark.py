"""The harness measures what it says; every work runs through it at a tiny size."""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from balms_det.runtime.errors import InputError
from lab.benchmark import (
    WORKS,
    Comparison,
    detector,
    inputs,
    records,
    report,
    sizes_of,
)
from lab.benchmark.detector import largest_differences_of_detections
from lab.benchmark.measure import measure

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
import benchmark as tool

KEYS = {
    "work", "device", "dtype", "classes", "peer", "ours_s", "peer_s", "ratio", "ours_peak_mb",
    "peer_peak_mb", "max_abs_diff", "repeat", "versions",
}  # fmt: skip
TINY = {
    "classes": 12, "proposals": 30, "detections": 10, "side": 64, "rois": 16,
    "images": 20, "annotations": 90, "peer_images": 10,
}  # fmt: skip


def compare(ours, peer, **kwargs):
    return measure(Comparison("peer", ours, peer, **kwargs), device="cpu", repeat=3)


def test_times_are_medians_of_the_same_number_of_runs():
    calls = {"ours": 0, "peer": 0}

    def sleeping(name, seconds):
        def work():
            calls[name] += 1
            time.sleep(seconds)

        return work

    record = compare(sleeping("ours", 0.01), sleeping("peer", 0.05))
    assert 0.01 <= record["ours_s"] and 0.05 <= record["peer_s"]
    assert record["ratio"] == record["peer_s"] / record["ours_s"] > 1
    low, high = record["peer_range_s"]
    assert low <= record["peer_s"] <= high
    assert calls["ours"] == calls["peer"] == 3 + 2  # to warm up, and for outputs and memory


def test_ours_and_the_peer_take_turns():
    order = []
    compare(lambda: order.append("ours"), lambda: order.append("peer"))
    assert order[-6:] == ["ours", "peer", "peer", "ours", "ours", "peer"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux only")
def test_peak_memory_is_of_the_run_alone():
    held = np.ones(200 * 2**20, dtype=np.uint8)  # not counted, for it was there before

    def work(megabytes):
        return lambda: int(np.ones(megabytes * 2**20, dtype=np.uint8).sum())  # freed at once

    record = compare(work(50), work(100))
    assert record["ours_peak_mb"] == pytest.approx(50, abs=5)
    assert record["peer_peak_mb"] == pytest.approx(100, abs=5)
    assert len(held)


def test_memory_that_was_freed_before_does_not_hide_what_is_used():
    arrays = [np.ones(2**16, dtype=np.uint8) for _ in range(800)]  # kept by the allocator
    del arrays
    record = compare(lambda: [np.ones(2**16, dtype=np.uint8) for _ in range(800)], None)
    assert record["ours_peak_mb"] is None or record["ours_peak_mb"] == pytest.approx(50, abs=5)


def test_outputs_that_are_not_compared_have_no_difference():
    assert compare(lambda: 1, lambda: 1)["max_abs_diff"] is None
    assert compare(lambda: 1, lambda: 3, difference=lambda a, b: abs(a - b))["max_abs_diff"] == 2


def test_the_time_of_a_part_is_scaled_to_the_whole():
    record = compare(lambda: None, lambda: time.sleep(0.01), peer_part=0.1)
    assert record["peer_s"] >= 0.1
    assert record["peer_part"] == 0.1
    assert "peer_part" not in compare(lambda: None, lambda: None)


def test_a_peer_that_runs_out_of_memory_is_recorded_so():
    def too_much():
        return torch.ones(2**50)

    record = compare(lambda: None, too_much)
    assert record["peer_error"] == "out of memory"
    assert record["peer_s"] is record["ratio"] is record["peer_peak_mb"] is None
    assert record["ours_s"] is not None
    with pytest.raises(ZeroDivisionError):
        compare(lambda: None, lambda: 1 / 0)


def test_nothing_to_compare_with_leaves_the_peers_numbers_empty():
    record = compare(lambda: None, None)
    assert record["peer_s"] is record["ratio"] is record["max_abs_diff"] is None


@pytest.fixture
def small_models(monkeypatch):
    """R-18 with narrow heads in the place of R-50, which takes seconds a step."""
    model_config = inputs.model_config
    small = (
        "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
        "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 32,
    )  # fmt: skip
    monkeypatch.setattr(detector, "model_config", lambda *args: model_config(*args, *small))


# Which converts models by OpenVINO.
OWN_PROCESS = {"exported_image": pytest.mark.own_process}


@pytest.mark.e2e
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=OWN_PROCESS.get(name, ())) for name in WORKS]
)
def test_every_work_runs_and_its_outputs_are_the_peers(name, small_models):
    found = list(records(name, device="cpu", repeat=1, sizes=TINY))
    assert found
    for record in found:
        assert set(record) >= KEYS
        assert record["work"] == name
        assert record["ours_s"] > 0
        difference = record["max_abs_diff"]
        assert difference is None or difference < 1e-3
        json.dumps(record, allow_nan=False)
    assert len({(r["variant"], r["peer"], r["dtype"]) for r in found}) == len(found)


def detections(boxes, classes, scores):
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes, found.scores = torch.tensor(classes).long(), torch.tensor(scores)
    return found


def test_a_detection_that_one_side_lacks_counts_with_its_score():
    box, other = [0, 0, 10, 10], [50, 50, 60, 60]
    both = detections([box, other], [1, 2], [0.9, 0.5])

    def difference(ours, peer):
        return max(largest_differences_of_detections(ours, peer).values())

    assert difference(both, both) == 0
    swapped = detections([other, box], [2, 1], [0.5, 0.9])
    assert difference(both, swapped) == 0
    one = detections([box], [1], [0.9])
    assert difference(both, one) == difference(one, both) == 0.5
    assert difference(one, detections([box], [1], [0.8])) == pytest.approx(0.1)
    assert difference(one, detections([[0, 0.25, 10, 10]], [1], [0.9])) == 0.25
    of_another_class = detections([box], [2], [0.3])
    assert difference(one, of_another_class) == pytest.approx(0.9)
    none = detections([], [], [])
    assert difference(none, none) == 0
    assert difference(none, one) == difference(one, none) == pytest.approx(0.9)
    moved = detections([[0, 0.25, 10, 10]], [1], [0.8])
    apart = largest_differences_of_detections(one, moved)
    assert apart == pytest.approx({"scores": 0.1, "pixels": 0.25})


def test_the_operations_of_both_sides_are_counted_while_they_warm_up():
    sizes = {"classes": 50, "detections": 4}
    found = list(records("mask_head", device="cpu", repeat=2, sizes=sizes))
    pixels, channels = 4 * 14 * 14, 256

    def products(per_pixel, masks):
        """Of four convolutions, one transposed to twice the size, and the masks at that size."""
        return pixels * ((4 * per_pixel + 4) * channels**2 + 4 * masks * channels)

    # Winograd's algorithm has 16 products for 4 pixels, in the place of 9 for each.
    for record, ours in zip(found, (products(9, 1), products(4, 1)), strict=True):
        ratio = record["peer_arithmetic_s"] / record["ours_arithmetic_s"]
        assert ratio == pytest.approx(products(9, 50) / ours, rel=1e-6)
    for record in records("mask_head", device="cpu", repeat=1, sizes=sizes):
        assert "ours_arithmetic_s" not in record


def test_operations_are_timed_one_by_one():
    a = torch.ones(400, 400)

    def work():
        return (a @ a).exp()

    record = measure(Comparison("peer", work, None), device="cpu", repeat=1, operations=True)
    times = record["ours_operations_s"]
    assert {"mm", "exp", "other"} <= set(times)
    assert all(seconds >= 0 for seconds in times.values())
    assert record["peer_operations_s"] is None
    assert "ours_operations_s" not in compare(work, None)


def test_functions_are_timed_where_pytorch_does_not_do_the_work():
    numbers = [float(i) for i in range(300_000)]

    def work():
        return sorted(numbers, key=lambda x: -x)

    record = measure(Comparison("peer", work, None), device="cpu", repeat=1, operations=True)
    assert {"builtins.sorted", "test_benchmark.<lambda>", "other"} <= set(
        record["ours_operations_s"]
    )


def test_box_selection_is_bit_identical():
    for record in records("box_selection", device="cpu", repeat=1, sizes={"classes": 100}):
        assert record["max_abs_diff"] == 0
        assert record["sizes"]["candidates"] > 1000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no_such_work"], "there is no work 'no_such_work'"),
        (["box_selection", "--device", "tpu"], "--device is 'tpu'; choose cpu or cuda"),
        (["box_selection", "--repeat", "0"], "--repeat is 0"),
        (["box_selection", "--classes", "80", "0"], "--classes is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        tool.main(arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="PyTorch finds no GPU"):
        tool.main(["box_selection", "--device", "cuda"])


@pytest.mark.e2e
def test_the_tool_measures_every_combination_of_sizes(tmp_path, capsys):
    stored = tmp_path / "records.json"
    sizes = ["--classes", "5", "12", "--proposals", "20", "30"]
    tool.main(["box_selection", *sizes, "--repeat", "1", "--json", str(stored)])
    found = json.loads(stored.read_text())
    expected = {(k, r) for k in (5, 12) for r in (20, 30)}
    assert {(r["classes"], r["sizes"]["proposals"]) for r in found} == expected
    command = f"python tools/benchmark.py box_selection {' '.join(sizes)} --repeat 1"
    assert {r["command"] for r in found} == {command}
    assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_the_peer_can_be_left_out(tmp_path):
    stored = tmp_path / "records.json"
    sizes = ["--classes", "5", "--proposals", "20", "--repeat", "1"]
    tool.main(["box_selection", *sizes, "--without-peer", "--json", str(stored)])
    for record in json.loads(stored.read_text()):
        assert record["ours_s"] > 0
        assert record["peer_s"] is record["max_abs_diff"] is None


def test_sizes_have_defaults_of_lvis():
    assert sizes_of("box_selection") == {"classes": 1203, "proposals": 1000, "detections": 300}
    assert all(math.isfinite(n) and n > 0 for name in WORKS for n in sizes_of(name).values())


def stored(**changes):
    record = {
        "work": "box_selection", "variant": "", "device": "cpu", "dtype": "float32", "classes": 80,
        "peer": "detectron2", "ours_s": 0.01, "peer_s": 2.5, "ratio": 250.0,
        "ours_range_s": [0.009, 0.02], "peer_range_s": [2.0, 3.0], "ours_peak_mb": 10.4,
        "peer_peak_mb": 100.6, "max_abs_diff": 0.0, "repeat": 5,
        "sizes": {"classes": 80, "proposals": 1000}, "machine": "a machine",
        "versions": {"torch": "2.11"}, "command": "python tools/benchmark.py box_selection",
    }  # fmt: skip
    return {**record, **changes}


def test_a_table_gives_what_was_measured():
    text = report.table([stored(), stored(classes=5, sizes={"classes": 5, "proposals": 1000})])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[:4]]
    assert rows[0] == [
        "work", "classes", "peer", "ours", "peer's", "ratio", "peak MB", "peer's MB", "diff.",
    ]  # fmt: skip
    assert rows[2] == [
        "box_selection", "80", "detectron2", "10 ms (9 to 20)", "2.5 s (2 to 3)", "250", "10",
        "101", "0",
    ]  # fmt: skip
    for part in ("1,000 proposals; medians of 5 runs", "a machine.", "torch 2.11.", "```"):
        assert part in text
    assert text.count("python tools/benchmark.py box_selection") == 1


def test_a_size_that_a_work_does_not_have_is_a_dash():
    rows = report.table([stored(), stored(sizes={"classes": 80})]).splitlines()
    assert rows[2].startswith("| box_selection | 1,000 |")
    assert rows[3].startswith("| box_selection | - |")


def test_what_was_not_measured_is_a_dash_and_never_a_zero():
    nothing = dict.fromkeys(
        ["peer_s", "ratio", "peer_range_s", "ours_peak_mb", "peer_peak_mb", "max_abs_diff"]
    )
    row = report.table([stored(**nothing)]).splitlines()[2]
    assert row.count("| - ") == 5
    failed = stored(**nothing, peer_error="out of memory")
    assert "| out of memory |" in report.table([failed])
    part = report.table([stored(peer_part=0.1)])
    assert "detectron2 did 0.1 of the work; its time is scaled to the whole." in part


def test_operations_have_a_table_of_their_own():
    ours = {"convolution": 0.004, "mm": 0.003, "other": 0.001}
    peer = {"convolution": 1.5, **{f"small_{i}": 0.1 - 0.01 * i for i in range(10)}, "other": 0.02}
    text = report.operation_tables([stored(ours_operations_s=ours, peer_operations_s=peer)])
    table = text[text.index("| operation |") :]
    rows = table[: table.index("\n\n")].splitlines()
    assert rows[2] == "| convolution | 4 ms | 1.5 s |"
    assert rows[3] == "| small_0 | - | 100 ms |"
    # The five longest of each side, of which one is the same.
    assert rows[6] == "| small_3 | - | 70 ms |" and rows[7] == "| mm | 3 ms | - |"
    assert rows[-1] == "| other | 1 ms | 230 ms |"  # what has no row is among it
    assert len(rows) == 2 + 6 + 1
    alone = report.operation_tables([stored(ours_operations_s=ours, peer_operations_s=None)])
    assert "| mm | 3 ms | - |" in alone and "| other | 1 ms | - |" in alone
    assert report.operation_tables([stored()]) == ""  # not timed by operation


def test_a_summary_is_of_what_has_a_peer():
    nothing = dict.fromkeys(["peer_s", "ratio", "peer_range_s", "peer_peak_mb", "max_abs_diff"])
    lines = report.summary([stored(), stored(**nothing)]).splitlines()
    row = "| box_selection | detectron2 | 2.5 s → 10 ms | 250 | 0.1 | 0 |"
    assert lines[2:] == [row, "", "a machine."]


def test_scaling_is_drawn_also_where_the_peer_ran_out_of_memory(tmp_path):
    few = stored()
    nothing = dict.fromkeys(["peer_s", "ratio", "peer_range_s", "peer_peak_mb", "max_abs_diff"])
    many = stored(classes=9000, sizes={"classes": 9000, "proposals": 1000}, **nothing)
    report.plot_scaling([many, few], str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 1000
    with pytest.raises(InputError, match="there is nothing to plot over"):
        report.plot_scaling([few, few], str(tmp_path / "other.png"))
    with pytest.raises(InputError, match="the plot cannot be written"):
        report.plot_scaling([many, few], str(tmp_path / "no_such_folder" / "plot.png"))
