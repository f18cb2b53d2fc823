"""Files and overrides become a configuration, and every wrong key or value is named with its place."""

import pytest
from config_files import problems_of, write_layers

from focal_det.config.load import UNSET_NUM_CLASSES, load_config
from focal_det.errors import InputError

pytestmark = pytest.mark.detectron2


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\nSEED: 3\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\n")
    cfg = load_config(tmp_path / "top.yaml", ["SEED", "4"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.5, 8, 4)


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["DATASETS.TEST", "my_set"], "TEST", ("my_set",)),
        (["DATASETS.TEST", "('my_set')"], "TEST", ("my_set",)),
        (["DATASETS.TEST", "('a', 'b')"], "TEST", ("a", "b")),
    ],
)
def test_a_single_name_is_a_list_of_one(overrides, key, value):
    assert load_config("", overrides).DATASETS[key] == value


def test_numbers_are_read_as_the_key_needs_them(tmp_path):
    (tmp_path / "c.yaml").write_text("SOLVER: {BASE_LR: 1e-3, STEPS: '(5, 6)'}\nOUTPUT_DIR: 12\n")
    cfg = load_config(tmp_path / "c.yaml", ["SOLVER.MOMENTUM", "1"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.OUTPUT_DIR) == (0.001, (5, 6), "12")
    assert load_config("", ["OUTPUT_DIR", "2024_01_01"]).OUTPUT_DIR == "2024_01_01"
    assert isinstance(cfg.SOLVER.MOMENTUM, float)


def test_files_and_bases_may_be_those_of_the_package(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("_BASE_: [focal_det://quickstart.yaml, top.yaml]\n")
    (tmp_path / "top.yaml").write_text("SEED: 5\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(["focal_det://paper/table1b.yaml"]).DATASETS.TEST == ("coco_2014_minival",)
    cfg, read = load_config("mine.yaml"), load_config("focal_det://quickstart.yaml")
    assert (cfg.SEED, cfg.MODEL) == (5, read.MODEL)
    (tmp_path / "other.yaml").write_text("_BASE_: focal_det://quikstart.yaml\n")
    (problem,) = problems_of("other.yaml")
    assert problem.startswith(
        "config file other.yaml: _BASE_: config file focal_det://quikstart.yaml: no configuration"
    )
    assert problem.endswith("did you mean focal_det://quickstart.yaml?")
    (problem,) = problems_of("configs/bccd.yaml")
    assert problem == "config file configs/bccd.yaml: no such file; did you mean focal_det://bccd.yaml?"


def test_classes_that_nobody_set_are_left_to_the_data():
    assert load_config("").MODEL.RETINANET.NUM_CLASSES == UNSET_NUM_CLASSES
    assert load_config("", ["MODEL.RETINANET.NUM_CLASSES", "80"]).MODEL.RETINANET.NUM_CLASSES == 80


def test_every_wrong_key_and_value_comes_at_once_with_its_place(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("MODEL: {RETINANET: {NUM_CLASES: 3, NUM_CONVS: many}}\nSOLVER: 5\nVERSION: 1\n")
    found = problems_of(path, ["NUM_CLASSES", "3", "SEED", "two", "NO.SUCH", "1", "MODEL.FOCAL_DET.LOSS.HEAT", "1"])
    assert found == [
        f"{path}: unknown key MODEL.RETINANET.NUM_CLASES; did you mean MODEL.RETINANET.NUM_CLASSES?",
        f"{path}: MODEL.RETINANET.NUM_CONVS is 'many', but takes an integer such as 4",
        f"{path}: SOLVER is a group of keys, but is set to 5; set one of its keys, such as SOLVER.LR_SCHEDULER_NAME",
        f"{path}: VERSION is 1, but only configurations of version 2 are read",
        "command line: unknown key NUM_CLASSES; did you mean MODEL.RETINANET.NUM_CLASSES?",
        "command line: SEED is 'two', but takes an integer such as -1",
        "command line: unknown key NO.SUCH",
        "command line: unknown key MODEL.FOCAL_DET.LOSS.HEAT; did you mean MODEL.FOCAL_DET.LOSS.BETA? "
        "A key of your own comes with its plug-in: add --plugin",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "None"),
        ("SOLVER.STEPS", "('a', 3)"),
        ("MODEL.RETINANET.IOU_THRESHOLDS", "['a', 'b']"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64]"),
        ("DATASETS.TEST", "(1, 2)"),
        ("SOLVER.AMP.ENABLED", "1"),
    ],
)
def test_values_of_the_wrong_kind_are_named(key, value):
    (problem,) = problems_of("", [key, value])
    assert problem.startswith(f"command line: {key} is ")
    assert "but takes " in problem


def test_an_empty_value_in_a_file_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("MODEL: {WEIGHTS: }\n")
    assert "MODEL.WEIGHTS is None, but takes a text" in problems_of(tmp_path / "c.yaml")[0]


def test_a_key_without_a_value_is_named():
    assert "'SEED' is left over" in problems_of("", ["SOLVER.BASE_LR", "1", "SEED"])[0]
    assert "name a configuration by --config-file a.yaml" in problems_of("", ["a.yaml", "SEED", "1"])[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A: !!python/object/apply:os.getcwd []", "only plain data is allowed"),
        ("A: [1, 2", "not YAML"),
        ("- 1\n- 2\n", "not a mapping"),
        ("", "not a mapping"),
        ("_BASE_: [c2.yaml, 3]\n", "_BASE_ is 3; name a file"),
        ("_BASE_: c.yaml\n", "lead back to themselves"),
        ("\x00", "c.yaml"),
    ],
)
def test_files_that_are_no_configuration_are_named(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    (tmp_path / "c2.yaml").write_text("SEED: 1\n")
    (problem,) = problems_of(path)
    assert problem.startswith(f"config file {path}: ")
    assert message in problem


def test_a_value_that_python_refuses_to_read_is_a_text():
    for value in ("{[]: 1}", "-" * 5000 + "1"):
        assert "but takes a number" in problems_of("", ["SOLVER.GAMMA", value])[0]


def test_a_name_with_a_nul_is_no_file(tmp_path):
    (tmp_path / "c.yaml").write_text('_BASE_: "a\\0b"\n')
    assert "its name holds a NUL character" in problems_of(tmp_path / "c.yaml")[0]


def test_a_faulty_base_is_named_with_the_file_that_names_it(tmp_path):
    path = write_layers(tmp_path, low="- 1\n", top="SEED: 1\n")
    assert problems_of(path) == [f"config file {tmp_path}/low.yaml, _BASE_ of {path}: not a mapping of keys to values"]
    (tmp_path / "low.yaml").unlink()
    assert problems_of(path) == [f"config file {tmp_path}/low.yaml, _BASE_ of {path}: no such file"]


def test_of_several_bases_the_last_wins_and_each_may_have_bases(tmp_path):
    lowest = write_layers(tmp_path, lowest="SEED: 1\nOUTPUT_DIR: low\n", one="SEED: 2\n")
    (tmp_path / "two.yaml").write_text("VIS_PERIOD: 7\n")
    (tmp_path / "top.yaml").write_text(f"_BASE_: [{lowest}, two.yaml]\nVIS_PERIOD: 8\n")
    cfg = load_config(tmp_path / "top.yaml")
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.VIS_PERIOD) == (2, "low", 8)


def test_a_missing_file_is_named(tmp_path):
    assert problems_of(tmp_path / "no.yaml") == [f"config file {tmp_path / 'no.yaml'}: no such file"]


def test_a_link_to_itself_is_no_file(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(InputError, match=r"config file .*loop\.yaml: no such file"):
        load_config(tmp_path / "loop.yaml")
