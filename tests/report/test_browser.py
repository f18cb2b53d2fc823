"""The page in a real browser: nothing is broken, nothing is fetched, nothing sticks out."""

import json
import os
import re
import shutil
import subprocess

import pytest
from PIL import Image

from focal_det.report import compare_runs, write_comparison, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REQUIRED = os.environ.get("FOCAL_DET_REQUIRE_BROWSER") == "1"

pytestmark = pytest.mark.skipif(
    BROWSER is None and not REQUIRED,
    reason="no chromium, chromium-browser or google-chrome; FOCAL_DET_REQUIRE_BROWSER=1 makes that an error",
)

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
]

# Looks at the page that it is put behind, and leaves what it saw in the title.
PROBE = """
<script>
window.addEventListener("load", () => {
  const seen = {
    images: [...document.images].map(image => image.naturalWidth),
    headings: [...document.querySelectorAll("h2, h3, h4")].map(heading => heading.textContent.trim()),
    charts: [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().width),
    labels: [...document.querySelectorAll("svg text")].map(label => label.textContent),
    legend: [...document.querySelectorAll(".legend li")].map(label => label.textContent),
    classes: [...document.querySelectorAll(".classes tbody tr td:first-child")].map(cell => cell.textContent),
    resources: performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 60)),
    width: innerWidth,
    sticksOut: document.documentElement.scrollWidth - innerWidth,
  };
  document.title = JSON.stringify(seen);
});
</script>
"""


def browse(page, profile, *words):
    """Run the browser on a file; return what it printed."""
    if BROWSER is None:
        pytest.fail("FOCAL_DET_REQUIRE_BROWSER=1, but there is no chromium, chromium-browser or google-chrome")
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *words, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def look_at(page, folder, width):
    """Return what the probe saw in a copy of the page, in a window of so many pixels."""
    copy = folder / f"probed{width}.html"
    copy.write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    done = browse(copy, folder / f"profile{width}", f"--window-size={width},900", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    unescaped = title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(unescaped), done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture
def page(folder, make_run):
    run = folder / "run"
    return run / "report.html" if run.is_dir() else write_report(make_run(run), images=2)


@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_window(folder, page, width):
    seen, log = look_at(page, folder, width)
    assert "CONSOLE" not in log  # where the browser tells errors and warnings
    assert seen["width"] == width
    assert len(seen["images"]) == 8
    assert min(seen["images"]) > 0
    assert len(seen["charts"]) == 5  # precision and recall, thresholds, loss, AP, lr
    assert min(seen["charts"]) > 200
    assert [label for label in seen["labels"] if "$" in label or "\\" in label] == []
    assert {"recall", "precision", "iterations", "loss", "lr"} <= set(seen["labels"])
    assert any("$_owl$" in label for label in seen["legend"])
    assert seen["classes"] == ["cat", "<b>&dog", "$_owl$", "absent"]
    assert seen["resources"] == [name for name in seen["resources"] if name.startswith("data:")]
    assert seen["sticksOut"] <= 0
    assert seen["headings"] == [
        "Test set made_up",
        "By class",
        "Precision and recall",
        "What costs AP",
        "What a score is worth",
        "Confusions between classes",
        "Errors by size",
        "Images",
        "Worst",
        "Best",
        "Training",
        "Configuration",
        "Hardware and versions",
    ]


def test_two_runs_side_by_side_in_a_narrow_window(tmp_path, make_run):
    first = make_run(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    found = tmp_path / "b" / "inference" / "made_up" / "coco_instances_results.json"
    found.write_text(json.dumps(json.loads(found.read_text())[::2]))
    seen, log = look_at(write_comparison(compare_runs(first, tmp_path / "b", images=1), tmp_path), tmp_path, 500)
    assert "CONSOLE" not in log
    assert seen["sticksOut"] <= 0
    assert min(seen["images"]) > 0
    assert len(seen["charts"]) == 7  # four losses, AP, AP50, lr
    assert [label for label in seen["legend"] if label not in "AB"] == []
    assert seen["resources"] == [name for name in seen["resources"] if name.startswith("data:")]
    assert seen["headings"][:5] == ["What differs", "Code, data and machine", "Keys", "Test set made_up", "By class"]


def test_a_screenshot_shows_something(folder, page):
    screenshot = folder / "page.png"
    browse(page, folder / "profile", "--window-size=1000,1400", f"--screenshot={screenshot}")
    with Image.open(screenshot) as image:
        assert image.size == (1000, 1400)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 500  # images and curves, not a blank page
