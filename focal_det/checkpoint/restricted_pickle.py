"""Read a pickle as data: arrays, numbers and texts in lists and dictionaries, and nothing else.

A pickle is a program. Only those of its instructions are accepted that make plain data, and only those names may be
called that NumPy's arrays are stored by. These names lead to functions of this file, which trust nothing in the pickle:
NumPy's own believe what it says about where in memory an array's objects are. The memory that a file takes grows with
its size alone, whereas Python's own reader fills 3 GB for one of 9 bytes that stores an object under a high number.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from ..errors import first_line

_REFUSED = "such a file can run any program, so it is not read"
_MOST_INSTRUCTIONS = 1_000_000  # some 25 an array
_MOST_TUPLES = 50_000  # some 4 an array; 200 000 within one another crash Python
# fmt: off
_INSTRUCTIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT",
    "DICT", "SETITEM", "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE", "GLOBAL",
    "STACK_GLOBAL", "REDUCE", "BUILD",
}
# fmt: on
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU][0-9]{1,6}")


def load_arrays(file: IO[bytes]) -> Any:
    """Return what a pickle holds, if that is arrays, numbers and texts in lists and dictionaries.

    Raises:
        pickle.UnpicklingError: anything else is in it; nothing of it was run.
        Exception: whatever else pickle raises on a damaged file.
    """
    data = file.read()
    _check_instructions(data)
    return _ArraysOnly(data).load()


def _check_instructions(data: bytes) -> None:
    """Refuse what would run something, not end, or fill the memory."""
    tuples = 0
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            name = instruction.name
            if name not in _INSTRUCTIONS:
                raise pickle.UnpicklingError(f"it uses pickle's {name}, where weights are arrays alone; {_REFUSED}")
            tuples += name.startswith("TUPLE")
            if number > _MOST_INSTRUCTIONS or tuples > _MOST_TUPLES:
                raise pickle.UnpicklingError("it has more parts than a file of weights can have")
            if name.endswith("PUT") and not 0 <= int(argument or 0) <= number:
                raise pickle.UnpicklingError(f"it notes an object under the number {argument}, which is damage")
    except ValueError as error:  # of pickletools, on something that is not a pickle
        raise pickle.UnpicklingError(f"it is damaged ({first_line(error)})") from error


class _Stateless:
    """Something to call that the file cannot change: pickle's BUILD would set attributes of a function."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"it changes what it calls; {_REFUSED}")


class _Dtype:
    """Stands for NumPy's dtype, of numbers, truth values and texts, in the file's byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and _PLAIN_DTYPE.fullmatch(code)):
            raise pickle.UnpicklingError(f"it holds an array of {code!r:.40}, where weights are numbers; {_REFUSED}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """(version, byte order, and then None and numbers that follow from the rest)"""
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError(f"it holds an array of records, where weights are numbers; {_REFUSED}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what `_check_instructions` has accepted."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._left = 4 * len(data) + 2**20  # bytes that may still be made: a file can ask for one part again and again
        self._known = {
            ("collections", "OrderedDict"): _Stateless(dict),
            ("_codecs", "encode"): _Stateless(self._encode),
            ("__builtin__", "bytes"): _Stateless(lambda: b""),
            ("numpy", "ndarray"): _Stateless(lambda *_: None),
            ("numpy", "dtype"): _Stateless(_Dtype),
        }
        for core in ("numpy.core", "numpy._core"):  # NumPy 1's and 2's name
            self._known |= {
                (f"{core}.multiarray", "_reconstruct"): _Stateless(lambda *_: _Array(self)),
                (f"{core}.multiarray", "scalar"): _Stateless(lambda dtype, raw: self.array(raw, dtype, (1,), "C")[0]),
                (f"{core}.numeric", "_frombuffer"): _Stateless(lambda *given: self.array(*given[:4])),
            }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, where weights are arrays alone; {_REFUSED}")
        return self._known[module, name]

    def array(self, raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        """Make an array of these bytes, of exactly their number."""
        if isinstance(raw, str):  # written by Python 2
            raw = self._encode(raw, "latin1")
        if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("it holds an array that is damaged")
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError(f"it holds an array of shape {shape!r:.60} with {len(raw)} bytes")
        self._take(len(raw))
        return np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C").copy(order="K")

    def _encode(self, text: Any, encoding: Any = None) -> bytes:
        """Return the bytes that protocols without bytes store as a text."""
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it holds a text that is damaged")
        self._take(len(text))
        return text.encode("latin1")

    def _take(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise pickle.UnpicklingError("it asks for far more memory than its own size")


class _Array(np.ndarray):
    """An array without elements, which its state fills."""

    _reader: _ArraysOnly

    def __new__(cls, reader: _ArraysOnly) -> _Array:
        array = super().__new__(cls, (0,))
        array._reader = reader
        return array

    def __setstate__(self, state: Any) -> None:
        """(version, shape, dtype, whether in Fortran's order, bytes)"""
        _, shape, dtype, is_fortran, raw = state
        reader = self.__dict__.pop("_reader", None)
        if reader is None:
            raise pickle.UnpicklingError("it fills an array twice, which is damage")
        filled = reader.array(raw, dtype, shape, "F" if is_fortran else "C")
        super().__setstate__(filled.__reduce__()[2])
