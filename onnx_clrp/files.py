"""Writes files whole or not at all, and makes file names out of untrusted text."""

import os
import secrets
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2s
from pathlib import Path
from typing import BinaryIO

from onnx_clrp.errors import ClrpError

LONGEST_NAME = 60  # bytes, so that two names and a suffix fit the 255 of common file systems


def write_whole(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path`, replacing what was there only once every byte is on the disk."""
    with open_whole(path) as file:
        file.write(data)


@contextmanager
def open_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends, and vanishes if it fails."""
    with open_together(path) as (file,):
        yield file


@contextmanager
def open_together(*paths: str | Path) -> Iterator[Sequence[BinaryIO]]:
    """Binary files that become `paths` when the block ends: all of them or none.

    They are put in place in the given order, so that the last may refer to the others.
    """
    targets = [Path(path) for path in paths]
    # Not tempfile's: its files are private to the owner, ours take the umask like any other.
    temporaries = [t.parent / f".onnx-clrp-{secrets.token_hex(8)}.tmp" for t in targets]
    try:
        for target in targets:
            _refuse_special(target)
        try:
            with ExitStack() as stack:
                files = [stack.enter_context(open(temporary, "xb")) for temporary in temporaries]
                yield files
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())  # or a crash could leave a new name on an empty file
            _rename_all(temporaries, targets)
        finally:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise ClrpError(f"cannot write {str(paths[-1])!r}: {reason}") from error


def _rename_all(temporaries: list[Path], targets: list[Path]) -> None:
    """Rename files in order; if one cannot be, those before it become what they were."""
    with ExitStack() as after, ExitStack() as undo:
        for temporary, target in zip(temporaries[:-1], targets[:-1], strict=True):
            kept = temporary.with_suffix(".old")
            after.callback(kept.unlink, missing_ok=True)
            with suppress(OSError, NotImplementedError):  # nothing is there, or it takes no links
                os.link(target, kept, follow_symlinks=False)
            os.replace(temporary, target)
            undo.callback(_restore, kept, target)
        os.replace(temporaries[-1], targets[-1])
        undo.pop_all()


def _restore(kept: Path, target: Path) -> None:
    if os.path.lexists(kept):
        os.replace(kept, target)
    else:
        target.unlink(missing_ok=True)


def safe_name(text: str) -> str:
    """A readable part of a file name, at most 60 bytes, that stays in its folder.

    A text that has to be cut ends in a short hash, so that long texts stay apart.
    """
    plain = "".join(character if _is_plain(character) else " " for character in _composed(text))
    name = "_".join(plain.split()).strip("._-") or "unnamed"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = blake2s(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    kept = name.encode()[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
    return f"{kept.rstrip('._-')}-{digest}"


def _refuse_special(target: Path) -> None:
    """A folder, device or pipe is never replaced by a file of its name."""
    if "\0" in str(target):
        raise OSError("a file name cannot hold the character NUL")
    if target.exists() and not target.is_file():
        raise OSError(f"{'a folder' if target.is_dir() else 'a device or pipe'} has that name")


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text[:4096])


def _is_plain(character: str) -> bool:
    """Letters, marks and numbers of any script, and the three joints of a file name."""
    return unicodedata.category(character)[0] in "LMN" or character in "._-"
