"""Files of diverged trainings that a stranger made are bad input, and no other file of the machine is read."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
import yaml
from fuzzed import fuzz
from hypothesis import strategies as st

from focal_det.cli.main import main
from focal_det.divergence.dump import _config_of

pytestmark = pytest.mark.detectron2


class Evil:
    def __reduce__(self):
        return open, ("evil", "w")


@pytest.fixture
def refused(sound_step, tmp_path, monkeypatch, capsys):
    """What is said of a file after `change(record)`, which is bad input; a change may give another content."""
    monkeypatch.chdir(tmp_path)

    def say(change):
        record = torch.load(sound_step, weights_only=True)
        torch.save(change(record) or record, tmp_path / "mine.pth")
        assert main(["replay", "mine.pth"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: mine.pth: ")
        return err.removeprefix("error: mine.pth: ")

    return say


@pytest.mark.parametrize("what", ["evil", "cut", "empty"])
def test_a_damaged_file_or_program_is_bad_input(sound_step, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.pth"
    data = sound_step.read_bytes()
    path.write_bytes({"evil": pickle.dumps(Evil()), "cut": data[:5000], "empty": b""}[what])
    assert main(["replay", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")
    assert not (tmp_path / "evil").exists()


ODD_METHOD = OrderedDict()
ODD_METHOD.get = 3  # what the reader of pickles allows, and `get` then means


def of_image(key, value):
    return lambda record: record["batch"][1].update({key: value})


def of_weight(value):
    return lambda record: record["model"].update({"head.cls_score.bias": value})


REFUSED = {
    "another content": (lambda record: [1, 2], "it holds a list"),
    "another format": (lambda record: record.update(format=torch.ones(2)), "format 2 is what this version reads"),
    "a truth value for a number": (lambda record: record.update(rank=True), "rank is missing or of the wrong type"),
    "a number of no training": (lambda record: record.update(iteration=10**400), "iteration is missing"),
    "a rank below 0": (lambda record: record.update(rank=-1), "rank is missing or of the wrong type"),
    "a dictionary with methods of its own": (lambda record: record.update(losses=ODD_METHOD), "losses is missing"),
    "a loss that is a text": (lambda record: record["losses"].update(loss_cls="1"), "losses are not numbers by name"),
    "a loss without a name": (lambda record: record["losses"].update({3: 1.0}), "losses are not numbers by name"),
    "gradients by number": (lambda record: record.update(bad_gradients=[3]), "bad_gradients are not names"),
    "a share": (lambda record: record.update(shares=[1]), "its shares do not add up to its batch"),
    "a share of none": (lambda record: record.update(shares=[2, 0]), "its shares do not add up to its batch"),
    "no image": (lambda record: record.update(batch=[]), "its batch is not made of uint8 images"),
    "an image in float": (of_image("image", torch.zeros(3, 8, 8)), "its batch is not made of uint8 images"),
    "an image in grey": (of_image("image", torch.zeros(1, 8, 8, dtype=torch.uint8)), "its batch is not made of"),
    "an image of 3 TB": (
        of_image("image", torch.zeros(1, dtype=torch.uint8).expand(3, 10**6, 10**6)),
        "its images are larger than the file",
    ),
    "a height": (of_image("height", 10**400), "its batch is not made of uint8 images"),
    "boxes that are nowhere": (of_image("boxes", torch.zeros(3, 4, device="meta")), "its batch is not made of"),
    "sparse boxes": (of_image("boxes", torch.zeros(3, 4).to_sparse()), "its batch is not made of uint8 images"),
    "classes in float": (of_image("classes", torch.zeros(3)), "its batch is not made of uint8 images"),
    "a class beyond the last": (of_image("classes", torch.tensor([0, 3, 0])), "a class is outside of -1 to 2"),
    "a class below -1": (of_image("classes", torch.tensor([0, -2, 0])), "a class is outside of -1 to 2"),
    "a weight without a name": (lambda record: record["model"].update({3: torch.ones(1)}), "are not tensors by name"),
    "a weight nowhere": (of_weight(torch.zeros(27, device="meta")), "its weights are not tensors by name"),
    "a weight with gradient": (of_weight(torch.zeros(27, requires_grad=True)), "its weights are not tensors by name"),
    "a weight in float64": (of_weight(torch.zeros(27).double()), "1 of them, first head.cls_score.bias"),
    "a weight more": (lambda record: record["model"].update(a=torch.ones(2)), "1 of them, first a"),
    "an unknown key": (lambda record: record.update(config="MODEL: {NONE: 3}"), "its configuration: unknown key"),
    "no YAML": (lambda record: record.update(config="A: ["), "its configuration is not YAML: "),
    "half a character": (lambda record: record.update(config="\ud800"), "its configuration is not YAML: "),
    "a model of no size": (
        lambda record: record.update(config=record["config"].replace("NUM_CONVS: 1", "NUM_CONVS: -1")),
        "its configuration: MODEL.RETINANET.NUM_CONVS is -1; it must be in [0, 100]",
    ),
    "a model too large": (
        lambda record: record.update(config=record["config"].replace("  NUM_CLASSES: 3", f"  NUM_CLASSES: {10**40}")),
        "its configuration: MODEL.RETINANET.NUM_CLASSES is 1",
    ),
    "a model of parts that do not fit": (
        lambda record: record.update(config=record["config"].replace("RES5_DILATION: 1", "RES5_DILATION: 2")),
        "no model can be built from its configuration (",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_of_other_content_is_bad_input(refused, what):
    change, words = REFUSED[what]
    assert words in refused(change)


@pytest.mark.parametrize("text", ["_BASE_: {}", "<<: {{_BASE_: [{}]}}", '"\\u005fBASE_": {}'])
def test_no_other_file_is_read_though_the_configuration_names_one(refused, tmp_path, text):
    (tmp_path / "secret.yaml").write_text("SECRET: 3\n")
    said = refused(lambda record: record.update(config=text.format(tmp_path / "secret.yaml")))
    assert said == "its configuration has a _BASE_, which names another file and which no training writes\n"


def test_names_are_shown_without_what_a_terminal_obeys(kept, refused, capsys, tmp_path):
    evil = "\x1b]0;title\x07\nall is well\u202e\ud800"
    shown = "\\x1b]0;title\\x07\\nall is well\\u202e\\ud800"

    def change(record):
        record["losses"][evil] = 1.0
        record["batch"][1]["file_name"] = evil

    path = kept(lambda model, batch: batch[1]["instances"].gt_boxes.tensor[2, 2].fill_(float("nan")))
    record = torch.load(path, weights_only=True)
    change(record)
    torch.save(record, path)
    assert main(["replay", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"loss_box_reg inf, {shown} 1\n" in said
    assert f"verdict: image 2 of 2, {shown}: " in said
    assert "\x1b" not in said
    assert "\\x1b]0;" in refused(lambda record: record.update(config='"\\e]0;title": 3'))


def test_a_run_on_the_last_of_many_gpus_is_done_again_on_the_one_that_is_here(sound_step, monkeypatch):
    text = torch.load(sound_step, weights_only=True)["config"].replace("DEVICE: cpu", "DEVICE: cuda:7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _config_of(text)[0].MODEL.DEVICE == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    cfg, notes = _config_of(text)
    assert cfg.MODEL.DEVICE == "cpu"
    assert "NO GPU HERE" in notes[0]


def places(node, above=()):
    """Where in the record something stands: keys from the top, of dictionaries and lists."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


ODD = st.sampled_from(
    [
        *(None, True, 0, -1, 10**400, 0.5, float("nan"), "", "\0\x1b[2J", b"x", (1,), [], {}, [[]], {None: []}, 3j),
        *(OrderedDict(), torch.Size([2]), torch.float32, torch.device("cpu"), ODD_METHOD),
        *(torch.tensor(1), torch.zeros(0), torch.zeros(2, 4), torch.ones(3), torch.full((3,), 2), torch.ones(3).bool()),
        *(torch.zeros(3, 0, 4, dtype=torch.uint8), torch.zeros(1).expand(2, 10**12), torch.zeros(3, device="meta")),
        *(torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.complex64)),
        torch.nn.Parameter(torch.zeros(2, 4)),
        *(torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 4, dtype=torch.float8_e5m2)),
    ]
)


@fuzz(st.lists(st.tuples(st.integers(0), ODD, st.sampled_from("rd")), min_size=1, max_size=2), quick=30)
def test_records_of_strangers(tries, sound_step, tmp_path, capsys):
    original = torch.load(sound_step, weights_only=True)
    original["config"] = yaml.safe_load(original["config"])
    where = sorted(places(original), key=len)
    where = [place for place in where if place[0] != "model"] + [place for place in where if place[0] == "model"][:20]
    mine = tmp_path / "mine.pth"

    def attempt(edits):
        record = copy.deepcopy(original)
        for number, value, kind in edits:
            *above, last = where[number % len(where)]
            node = record
            try:
                for key in above:
                    node = node[key]
                if kind == "r":
                    node[last] = value
                else:
                    del node[last]
            except (KeyError, IndexError, TypeError):  # what the edit before took away
                return
        if isinstance(record.get("config"), dict):
            try:
                record["config"] = yaml.safe_dump(record["config"])
            except yaml.YAMLError:  # tensors cannot stand in it
                return
        torch.save(record, mine)
        code = main(["replay", str(mine)])
        out, err = capsys.readouterr()
        assert code == 0 or (code == 2 and not out)
        assert all(line.startswith((f"error: {mine}: ", "warning: ")) for line in err.splitlines())
        assert "\x1b" not in out + err

    tries(attempt, "files of diverged trainings")
