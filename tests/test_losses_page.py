"""docs/losses.md, run as it stands, but small: its commands are checked as a start is, its Python is executed."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from focal_det.cli.main import main as run_tool
from focal_det.cli.train import main as train
from focal_det.config.load import load_config
from focal_det.modeling.heir_losses import HEIR_LOSSES
from focal_det.paper.runs import row_config
from focal_det.paper.tables import find_table
from focal_det.registries import DENSE_LOSS_REGISTRY

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "losses.md").read_text()
OWN = PAGE.index("## A loss of your own")  # tests/config/test_plugins.py runs what follows
SMALL = [
    *("DATASETS.TRAIN", "('shapes_train_3_64px',)", "DATASETS.TEST", "('shapes_val_2_64px',)"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")


def test_the_commands_start(capsys):
    commands = re.findall(r"```sh\n(python train_net\.py .*?)```", PAGE[:OWN], re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))[2:]
        assert train([*words, *SMALL, "--preflight-only"]) == 0, capsys.readouterr().err
    (command,) = re.findall(r"`focal-det (analyze alpha [^`]*)`", PAGE)
    assert run_tool([*shlex.split(command), *SMALL]) == 0, capsys.readouterr().err
    assert "alpha by inverse frequency" in capsys.readouterr().out


def test_the_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE[:OWN], re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        torch.manual_seed(0)
        exec(block, {})


def test_every_loss_is_in_the_table_with_the_keys_that_it_reads():
    keys = dict(re.findall(r"^\| `(\w+)`.* \| \$?.* \| (.*) \| .* \|$", PAGE, re.MULTILINE))
    for name, loss in DENSE_LOSS_REGISTRY:
        if loss.__module__.startswith("focal_det."):
            named = keys[name] + "".join(keys[other] for other in keys if f"`{other}`" in keys[name])  # "as `OHEMLoss`"
            assert [key for key in loss.reads if key.rsplit(".", 1)[1] not in named] == []


def test_every_heir_has_a_full_configuration_that_makes_it():
    found, rows = set(), find_table("heirs").rows
    for path in (ROOT / "configs" / "heirs").glob("[!B]*.yaml"):  # not what they share
        cfg = load_config(path)
        name = cfg.MODEL.FOCAL_DET.LOSS.NAME
        assert type(DENSE_LOSS_REGISTRY.get(name)(cfg)).__name__ == name
        of_row = row_config(rows[{"quality_focal": "qfl", "varifocal": "vfl"}.get(path.stem, path.stem)], "full")
        cfg.OUTPUT_DIR = of_row.OUTPUT_DIR
        assert cfg == of_row  # the table's row is the same training
        found.add(name)
    assert found == {loss.__name__ for loss in HEIR_LOSSES}
