"""The detectors that the paper compares with its own, and the envelope of figure 2 over all of them."""

import re
from pathlib import Path

import pytest

from focal_det.paper.competitors import (
    COLUMNS,
    compared_in_table2,
    envelope,
    load_competitors,
    published_speeds,
)

PAPER = Path(__file__).parents[3] / "shared" / "PAPER.md"
SIX = {  # Table 2: AP/AP50/AP75/APs/APm/APl
    "Faster R-CNN+++": "34.9/55.7/37.4/15.6/38.7/50.9",
    "Faster R-CNN with FPN": "36.2/59.1/39.0/18.2/39.0/48.2",
    "Faster R-CNN by G-RMI": "34.7/55.5/36.7/13.5/38.1/52.0",
    "Faster R-CNN with TDM": "36.8/57.7/39.2/16.2/39.8/52.1",
    "YOLOv2": "21.6/44.0/19.2/5.0/22.4/35.5",
    "SSD513": "31.2/50.4/33.3/10.2/34.5/49.8",
    "DSSD513": "33.2/53.3/35.2/13.0/35.4/51.1",
}
SPEEDS = {  # figure 2: ms, AP
    **{"YOLOv2": (25, 21.6), "SSD321": (61, 28.0), "DSSD321": (85, 28.0), "R-FCN": (85, 29.9)},
    **{"SSD513": (125, 31.2), "DSSD513": (156, 33.2), "Faster R-CNN with FPN": (172, 36.2)},
}


def test_table_2s_competitors_have_their_six_columns():
    found = {name: other.table2 for name, other in compared_in_table2().items()}
    figures = {name: [float(figure) for figure in six.split("/")] for name, six in SIX.items()}
    assert found == {name: dict(zip(COLUMNS, row, strict=True)) for name, row in figures.items()}
    assert all(other.backbone for other in compared_in_table2().values())


def test_a_detector_in_both_has_the_same_ap_and_the_text_names_who_has_one_stage():
    for other in load_competitors().values():
        assert not (other.table2 and other.figure2) or other.table2["AP"] == other.figure2["AP"]
    one = [name for name, other in load_competitors().items() if other.stages == 1]
    assert one == ["YOLOv2", "SSD321", "DSSD321", "SSD513", "DSSD513"]


def test_figure_2_has_their_times_and_those_of_table_1e():
    speeds = published_speeds()
    assert {name: at for name, at in speeds.items() if name in load_competitors()} == SPEEDS
    ours = [name for name in speeds if name not in SPEEDS]
    assert ours == [f"R-{depth}-{scale}" for depth in (50, 101) for scale in (400, 500, 600, 700, 800)]
    assert (speeds["R-50-500"], speeds["R-101-800"]) == ((72, 32.5), (198, 37.8))


@pytest.mark.skipif(not PAPER.is_file(), reason="the page with the paper's tables is not beside this checkout")
def test_figures_against_the_page_of_the_papers_tables():
    text = " ".join(PAPER.read_text().split())
    for name, (ms, ap) in SPEEDS.items():
        assert f"{'FPN FRCN' if name.endswith('FPN') else name} {ap:.1f}, {ms}" in text
    compared = re.search(r"Compared there \(AP\): ([^*]*?)\. \*\*3", text)[1]
    assert [float(ap) for ap in re.findall(r"\d\d\.\d", compared)] == [float(six[:4]) for six in SIX.values()]


def test_the_envelope_is_what_none_beats_in_both():
    assert envelope([(3, 30), (1, 10), (2, 20), (2, 15), (4, 25), (5, 31)]) == [(1, 10), (2, 20), (3, 30), (5, 31)]


@pytest.mark.parametrize("ms_of_r_50_500", [72, 73])  # Table 1e's, and that of figure 2's list
def test_two_of_the_papers_competitors_lie_on_the_envelope(ms_of_r_50_500):
    speeds = published_speeds() | {"R-50-500": (ms_of_r_50_500, 32.5)}
    names = {at: name for name, at in speeds.items()}
    # YOLOv2 is below the 25 AP that the caption leaves out. SSD321 is not: nothing is both faster and better.
    best = ["YOLOv2", "SSD321", "R-50-400", "R-50-500", "R-101-500", "R-50-700", "R-101-600", "R-101-700", "R-101-800"]
    assert [names[point] for point in envelope(speeds.values())] == best


def test_ssd321_is_below_the_line_from_yolov2_to_retinanets_fastest():
    # "upper envelope" as straight lines over all points, and not as steps: SSD321 is below it
    speeds = published_speeds()
    (x0, y0), (x1, y1) = speeds["YOLOv2"], speeds["R-50-400"]
    x, y = speeds["SSD321"]
    assert y < y0 + (y1 - y0) * (x - x0) / (x1 - x0) == pytest.approx(29.82, abs=0.01)
