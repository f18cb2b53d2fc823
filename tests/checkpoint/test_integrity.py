"""Files of checkpoints that disks, copies and strangers have changed: found out, or the same tensors."""

import pickle
import random
import shutil
import struct
import zipfile
import zlib

import pytest
import torch

from focal_det.checkpoint.integrity import DamagedError, contents, damage

END = 22  # bytes of a zip archive's last record


@pytest.fixture(scope="module")
def saved():
    torch.manual_seed(0)
    return {"model": {"a": torch.randn(60), "b": torch.arange(5), "c": torch.randn(2, 3)}, "iteration": 7}


@pytest.fixture
def whole(saved, tmp_path):
    path = tmp_path / "model_0000007.pth"
    torch.save(saved, path)
    assert damage(path) is None
    return path


def same(one, other):
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def test_what_was_written_is_read(saved, whole):
    assert same(contents(whole), saved)


def test_every_length_that_a_cut_file_may_have_is_found_out(whole):
    data = whole.read_bytes()
    for length in [0, 1, END, *range(100, len(data), 97), len(data) - END, len(data) - 1]:
        whole.write_bytes(data[:length])
        assert damage(whole), length
    whole.write_bytes(b"\0" * len(data))  # a name that reached the disk before its content
    assert damage(whole) == "it is cut off, or never was a checkpoint"
    whole.write_bytes(b"")
    assert damage(whole) == "it is empty"


def test_a_flipped_bit_is_found_out_or_changes_nothing(saved, whole):
    data, draw = whole.read_bytes(), random.Random(0)
    ends = range(len(data) - 250, len(data))  # the directory's end, where each bit is of consequence
    places = [*(8 * place + draw.randrange(8) for place in ends), *draw.sample(range(8 * len(data)), 500)]
    found = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        whole.write_bytes(flipped)
        if damage(whole):
            found += 1
        else:
            assert same(contents(whole), saved), place
    assert found > len(places) // 3  # the rest are dates, rights and filling


def test_a_flipped_bit_in_a_tensor_is_found_out_where_pytorch_reads_it(saved, whole):
    data = bytearray(whole.read_bytes())
    place = data.index(saved["model"]["a"].numpy().tobytes()) + 3
    data[place] ^= 64
    whole.write_bytes(data)
    assert not same(torch.load(whole, weights_only=True), saved)  # PyTorch takes it
    assert "is not as it was written" in damage(whole)


def rewritten(path, *, compression=zipfile.ZIP_STORED, extra=()):
    """The same records in an archive of Python's, and more of them."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in [*records, *extra]:
            archive.writestr(name, data)


def test_a_bomb_is_not_unpacked(whole):
    rewritten(whole, compression=zipfile.ZIP_DEFLATED, extra=[("model_0000007/data/9", b"\0" * 10**7)])
    assert whole.stat().st_size < 10**5
    assert damage(whole) == "it holds compressed records, which PyTorch does not write"
    with pytest.raises(DamagedError, match="compressed"):
        contents(whole)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(whole):
    rewritten(whole, extra=[("model_0000007/data/0", b"\0" * 240)])
    assert damage(whole) == "it holds two records of one name"


def test_records_that_lie_in_one_another_are_refused(tmp_path):
    data, names = b"x" * 1000, [f"a/{number}" for number in range(3)]
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(data), 1000, 1000, 3, 0) + b"a/0" + data
    entry = (20, 20, 0, 0, 0, 0, zlib.crc32(data), 1000, 1000, 3, 0, 0, 0, 0, 0, 0)
    directory = b"".join(struct.pack("<4s6H3L5H2L", b"PK\1\2", *entry) + name.encode() for name in names)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(directory), len(local), 0)
    path = tmp_path / "model_0000007.pth"
    path.write_bytes(local + directory + end)
    assert damage(path) == "its records are larger than the file"


def test_a_directory_that_says_less_than_it_has_is_refused(whole):
    rewritten(whole)
    data = bytearray(whole.read_bytes())
    data[-END + 8 : -END + 12] = struct.pack("<2H", 1, 1)  # other readers stop after so many records
    whole.write_bytes(data)
    assert damage(whole) == "its directory is not as PyTorch writes it"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_that_would_run_something_is_refused_and_nothing_is_run(whole, tmp_path):
    torch.save({"model": {}, "trainer": Touch(tmp_path / "made")}, whole)
    # not PyTorch's first words, which are how to open it all the same
    assert damage(whole).startswith("it cannot be read as plain data: Unsupported global: GLOBAL io.open was not")
    whole.write_bytes(pickle.dumps({"model": Touch(tmp_path / "made")}))
    assert damage(whole) == "it is cut off, or never was a checkpoint"
    assert not (tmp_path / "made").exists()


def test_a_folder_and_a_name_without_file_are_named(whole, tmp_path):
    assert damage(tmp_path) == "it is a folder"
    assert damage(tmp_path / "none.pth") == "no such file"
    torch.save([1], whole)
    assert damage(whole) == "it holds a list, not a checkpoint"
    shutil.copy(__file__, whole)
    assert damage(whole) == "it is cut off, or never was a checkpoint"
