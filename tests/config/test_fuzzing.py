"""Configurations and checkpoints that somebody gives: words or a result, and nothing made on disk.

See tests/fuzzed.py for FOCAL_DET_FUZZ_EXAMPLES and FOCAL_DET_FUZZ_SEED.
"""
# ruff: noqa: PT017 - an input may be answered by an error or by a result

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fuzzed import fuzz, mutated
from hypothesis import strategies as st

from focal_det.checkpoint.safe_load import SafeCheckpointer
from focal_det.config.load import load_config, read_config
from focal_det.errors import InputError

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]


def keys(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield prefix + key
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


KEYS = st.sampled_from(sorted(keys(load_config("")))) | st.text(max_size=8)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(
        [10**400, "__import__('os').mkdir('made')", "${HOME}", "((1,)", "!!python/name:os.system", [[], {}]]
    ),
)
VALUES = st.recursive(
    ODD,
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.none() | st.integers() | st.dates(), part, max_size=3)
    ),
    max_leaves=5,
)


def nested(settings):
    found = {}
    for key, value in settings.items():
        *path, leaf = key.split(".")
        node = found
        for part in path:
            child = node.get(part)
            if not isinstance(child, dict):
                node[part] = child = {}
            node = child
        node[leaf] = value
    return found


@pytest.fixture
def in_empty(tmp_path, monkeypatch):
    """A folder to work in, in which nothing but this file may be made."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder / "mine.yaml"
    assert {path.name for path in folder.iterdir()} <= {"mine.yaml"}


@fuzz(
    st.dictionaries(KEYS, VALUES, max_size=6).map(lambda d: yaml.dump(nested(d)).encode("utf-8", "replace"))
    | mutated(
        (ROOT / "configs/quickstart.yaml").read_bytes(),
        b"MODEL: {ANCHOR_GENERATOR: {SIZES: !!python/object/apply:eval ['[[x, x * 2**(1.0/3)] for x in [32]]']}}",
        (ROOT / "configs/Base-RetinaNet-FPN.yaml").read_bytes(),
    ),
    quick=60,
)
def test_files_of_configuration(tries, in_empty):
    def attempt(data):
        in_empty.write_bytes(data)
        try:
            cfg, found, _ = read_config(in_empty)
            problems = found.errors
        except InputError as error:
            problems = error.problems
        else:
            cfg.dump()
        assert all(str(in_empty) in problem for problem in problems)

    tries(attempt, "YAML configurations")


@fuzz(st.lists(st.tuples(KEYS, st.text(max_size=10) | VALUES.map(repr)), max_size=4), quick=40)
def test_keys_on_the_command_line(tries, in_empty):
    def attempt(pairs):
        try:
            load_config("", [word for pair in pairs for word in pair]).dump()
        except InputError as error:
            assert all(error.problems)

    tries(attempt, "KEY VALUE words")


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


CONTENT = {"model": {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}, "iteration": 3, "best": {"AP": 1.5}}
ARRAYS = {"model": {"weight": np.ones((1, 1), np.float32), "bias": np.zeros(1)}, "__author__": "x"}
FILES = [(".pth", saved(CONTENT)), (".pth", saved(CONTENT, _use_new_zipfile_serialization=False))]
FILES += [(".pkl", pickle.dumps(ARRAYS, protocol)) for protocol in range(6)]


@fuzz(st.sampled_from(FILES).flatmap(lambda f: st.tuples(st.just(f[0]), mutated(f[1]))), quick=120)
def test_bytes_of_checkpoints(tries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    model = torch.nn.Linear(1, 1)

    def attempt(named):
        path = tmp_path / f"w{named[0]}"
        path.write_bytes(named[1])
        try:
            SafeCheckpointer(model).load(str(path))
        except Exception as error:  # which `check_weights` reports
            assert not isinstance(error, MemoryError)
        assert {p.name for p in tmp_path.iterdir()} <= {"w.pth", "w.pkl"}

    tries(attempt, "checkpoints")
