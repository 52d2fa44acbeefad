"""Files of tensors: safetensors and what torch.save writes. Reading executes nothing in them."""

from __future__ import annotations

import os
import pickle
import re
import stat
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ops.config import UserError
from ops.files import open_regular
from ops.text import printable

FLOATS = ("F64", "F32", "F16", "BF16")
OTHERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")
OS_ERROR = re.compile(r"\(os error (\d+)\)")
NOT_ALLOWED = re.compile(r"GLOBAL (\S+)")
#: Lines of torch's messages that say how to execute what a file names, or where to complain.
ADVICE = re.compile(r"weights_only|Weights only load|Check the documentation|file an issue")


class CheckpointError(UserError):
    """A file, model folder or run folder that cannot be used."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file, contiguous and on the CPU, with texts by name.

    Raises CheckpointError for values that are not finite, OSError where the disk refuses.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        check_finite(name, tensor)
    try:
        save_file(plain, path, None if metadata is None else dict(metadata))
    except SafetensorError as error:  # it has the system's error in its text alone
        code = OS_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    path.chmod(0o644)  # safetensors makes it readable by its owner only; folders are often shared


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises CheckpointError where it cannot be read or does not fit into memory.
    """
    with open_tensors(path) as file:
        return {name: file.get(name) for name in file.header}


def load_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model`, which lies on the device meta, from a safetensors file.

    Names, types and shapes are compared before memory is taken; floating-point tensors become
    float32. Raises CheckpointError, naming the tensor, where they are not the model's, where a
    value is not finite, and where the file cannot be read.
    """
    with open_tensors(path) as file:
        _check_header(path, file.header, model)
        tensors = {name: file.get(name) for name in file.header}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
            check_finite(f"{path}: {name}", tensors[name])
    return tensors


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError where a tensor has values that are nan or infinite."""
    if not (tensor.is_floating_point() and tensor.numel()) or tensor.is_meta:
        return
    lowest, highest = torch.aminmax(tensor)  # one pass, and nan is passed on
    if not (torch.isfinite(lowest) and torch.isfinite(highest)):
        raise CheckpointError(
            f"{printable(name)} holds values that are nan or infinite: the weights are unusable. "
            "Take an earlier checkpoint, or another copy."
        )


def check_memory(path: Path, size: int) -> None:
    """Raise CheckpointError where `size` bytes, claimed by a file, exceed this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise CheckpointError(
            f"{path} claims {size / 2**30:,.1f} GiB of tensors; this machine has "
            f"{memory / 2**30:,.1f} GiB of memory."
        )


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """torch.save, which raises OSError where the disk refuses to write."""
    with open(path, "wb") as file:
        recorder = _ErrorRecorder(file)
        try:
            torch.save(state, cast(IO[bytes], recorder))
        except RuntimeError:  # torch's writer reports any failure as its own
            if recorder.error is not None:
                raise OSError(
                    recorder.error.errno, recorder.error.strerror, str(path)
                ) from recorder.error
            raise


def load_state(
    path: Path, device: str | torch.device = "cpu", ignored: Collection[Any] = ()
) -> Any:
    """What torch.save wrote, of tensors, numbers, strings and containers alone.

    `ignored` are pairs of a class to put in the place of another and that one's name. Raises
    CheckpointError, with the reason in one line, where the file cannot be read.
    """
    with open_state(path) as file:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(list(ignored)):
                warnings.simplefilter("ignore")  # about the age of the file's format
                return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # a parser of foreign bytes raises what it likes
            raise CheckpointError(unreadable(path, error)) from None


@contextmanager
def state_errors_explained(path: Path) -> Iterator[None]:
    """Raise what torch's load_state_dict raises for a foreign state as a CheckpointError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(unreadable(path, error)) from error


@contextmanager
def open_state(path: Path) -> Iterator[IO[bytes]]:
    """A file that torch.save wrote, open; raises CheckpointError where it is not a regular one."""
    try:
        file = open_regular(path)
    except (OSError, UserError) as error:
        raise CheckpointError(f"{path} is not a file that can be read: {error}") from None
    with file:
        yield file


class Stored(NamedTuple):
    """A tensor as a safetensors header describes it."""

    dtype: str
    shape: tuple[int, ...]


class TensorFile:
    """An open safetensors file: its header by name, its metadata, and its tensors on demand."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        with _explained(path):
            names = file.keys()  # it is no mapping itself
            slices = {name: file.get_slice(name) for name in names}
            self.header = {
                name: Stored(part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
            self.metadata: dict[str, str] = file.metadata() or {}

    def get(self, name: str) -> Tensor:
        with _explained(self._path):
            tensor: Tensor = self._file.get_tensor(name)
            return tensor

    def get_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor; raises CheckpointError."""
        with _explained(self._path):
            rows: Tensor = self._file.get_slice(name)[start:stop]
            return rows


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """A safetensors file, open; raises CheckpointError where it cannot be read."""
    with _explained(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is not a file.")
        check_memory(path, path.stat().st_size)
        file = safe_open(path, framework="pt")
    with file as opened:
        yield TensorFile(path, opened)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise what safetensors raises as a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a parser of foreign bytes raises what it likes
        raise CheckpointError(unreadable(path, error)) from None


def unreadable(path: Path, error: Exception) -> str:
    """The message about a file that a parser refused with `error`."""
    found = NOT_ALLOWED.search(str(error))
    if isinstance(error, pickle.UnpicklingError) and found:
        return (
            f"{path} cannot be read as a checkpoint: it names {printable(found[1], 100)}, and only "
            "tensors, numbers, strings and containers of these are read."
        )
    lines = [line for line in str(error).splitlines() if line.strip() and not ADVICE.search(line)]
    reason = printable(lines[0].strip(), 200).rstrip(".") if lines else "it is corrupt"
    if not isinstance(error, SafetensorError | RuntimeError | OSError):  # these are sentences
        reason = f"{type(error).__name__}: {reason}"
    return f"{path} cannot be read as a checkpoint: {reason}. Restore it from a copy."


def _check_header(path: Path, header: Mapping[str, Stored], model: nn.Module) -> None:
    """Raise CheckpointError unless a header's tensors are those of `model` on the device meta."""
    wanted = model.state_dict()
    for name, (dtype, shape) in header.items():
        shown = f"{path}: {printable(name, 100)}"
        if name not in wanted:
            raise CheckpointError(f"{shown} is no tensor of the model that config.json describes.")
        if shape != tuple(wanted[name].shape):
            raise CheckpointError(
                f"{shown} is {shape}, but config.json asks for {tuple(wanted[name].shape)}."
            )
        if dtype not in (FLOATS if wanted[name].is_floating_point() else OTHERS):
            raise CheckpointError(
                f"{shown} has the type {printable(dtype, 20)}, not {wanted[name].dtype}."
            )
    found = {name: torch.empty_like(wanted[name]) for name in header}
    missing = model.load_state_dict(found, strict=False).missing_keys
    if missing:
        more = f", nor {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{path} has no {missing[0]}{more}, which config.json asks for.")


class _ErrorRecorder:
    """A file for torch.save that remembers the first error of the disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()
