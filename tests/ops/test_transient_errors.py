"""Errors of the machine are retried; those of the content pass at once."""

from __future__ import annotations

import errno
import io

import pytest
from PIL import Image

from ops import images, transient_errors
from ops.images import ImageError, decode_image, image_size
from ops.transient_errors import TransientError, is_transient, retried


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient_errors, "WAITS", (0.0, 0.0))


class Failing:
    """Raises an error so many times, then returns 7."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return 7


TRANSIENT = [
    *(OSError(getattr(errno, name), name) for name in ("EIO", "ESTALE", "EMFILE", "ENOMEM")),
    *(OSError(getattr(errno, name), name) for name in ("ETIMEDOUT", "EBUSY", "ENETDOWN")),
    *(MemoryError(), TimeoutError(), ConnectionResetError()),
]
CONTENT = [
    *(FileNotFoundError(errno.ENOENT, "no"), PermissionError(errno.EACCES, "no")),
    *(
        OSError("image file is truncated"),
        OSError(errno.EISDIR, "a folder"),
        ImageError("empty", ""),
    ),
    *(ValueError(), ZeroDivisionError()),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_errors_of_the_machine_are_retried(error: Exception) -> None:
    passing, lasting = Failing(error, 2), Failing(error, 9)
    assert retried(passing, "a.jpg") == 7
    with pytest.raises(TransientError, match=r"a\.jpg cannot be read now, after 3 tries"):
        retried(lasting, "a.jpg")
    assert (passing.calls, lasting.calls) == (3, 3)


@pytest.mark.parametrize("error", CONTENT, ids=repr)
def test_errors_of_the_content_pass_at_once(error: Exception) -> None:
    failing = Failing(error, 9)
    with pytest.raises(type(error)):
        retried(failing, "a.jpg")
    assert failing.calls == 1


def test_an_error_that_describes_another_is_as_transient() -> None:
    def read(number: int) -> None:
        try:
            raise OSError(number, "of the disk")
        except OSError:
            raise ImageError("unreadable", "of the disk") from None

    for number, expected in ((errno.EIO, True), (errno.ENOENT, False)):
        with pytest.raises(ImageError) as caught:
            read(number)
        assert is_transient(caught.value) is expected


def test_what_has_been_retried_is_not_retried_again() -> None:
    failing = Failing(TransientError("read elsewhere"), 9)
    with pytest.raises(TransientError, match="elsewhere"):
        retried(failing, "a.jpg")
    assert failing.calls == 1


class BadDisk(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "bad sector")


def test_a_disk_that_fails_under_a_decoder_is_no_broken_image() -> None:
    with pytest.raises(OSError, match="bad sector"):
        image_size(BadDisk())


@pytest.mark.parametrize("is_short", [True, False])
def test_a_decoder_that_lacks_memory_is_transient_where_an_image_has_none(
    monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    def load(self: object) -> None:
        raise MemoryError("a petabyte")

    def allocate(size: int) -> bytes:
        raise MemoryError

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "BMP")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    if is_short:
        monkeypatch.setattr(images, "bytearray", allocate, raising=False)
    with pytest.raises(MemoryError if is_short else ImageError, match="a petabyte"):
        decode_image(buffer.getvalue())
