"""Implements `replica compress` and `replica decompress`: files in, files out, checked in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path

from configs.common.files import atomic_path, refuse_existing, refuse_unwritable
from configs.common.notices import say
from configs.common.progress import progress_bar
from configs.safety.terminal import unguarded
from configs.schema.recipe import load_run
from eval.codec.codec import MOST_BYTES, Coded, Coder, check_size, compress, decompress
from eval.codec.container import NotACodedFile
from pretrain.checkpoint.choice import Choice, choose_checkpoint

SUFFIX = ".replica"
STREAM = "-"  # standard input or output


def compress_files(arguments: Namespace) -> None:
    """Compresses each file; nothing takes its final name before it was decoded again.

    Raises:
        ValueError: for a file that cannot be read or written, and as `eval.codec.codec.compress`.
    """
    run = load_run(arguments.run).run_directory
    pairs = _targets(arguments, lambda name: name + SUFFIX)
    checkpoint = choose_checkpoint(run, Choice(arguments.checkpoint_step, arguments.best))
    opened = cache(lambda: Coder.open(checkpoint, arguments.device))
    for source, target in pairs:
        data = _read(source)
        with progress_bar(f"{_shown(source)}: coding tokens") as bar:
            coded = compress(
                opened, data, arguments.threads, arguments.streams, lambda done, of: bar.update(done, total=of)
            )

        def check(file: Path, name: str = _shown(source)) -> None:
            if arguments.verify:
                decode_in_fresh_process(run, file, name)

        _write(target, coded.file, check)
        _tell(target, coded, arguments.verify)


def decompress_files(arguments: Namespace) -> None:
    """Brings each file back; with `--test`, only compares what comes out with the checksum.

    Raises:
        ValueError: for a file that cannot be read or written, and as `eval.codec.codec.decompress`.
    """
    run = load_run(arguments.run).run_directory
    pairs = [(file, "") for file in arguments.files] if arguments.test else _targets(arguments, _without_suffix)
    for source, target in pairs:
        file, name = _read(source, limit=2 * MOST_BYTES), _shown(source)
        try:
            with progress_bar(f"{name}: decoding tokens") as bar:
                data = decompress(run, file, lambda done, of: bar.update(done, total=of))
        except ValueError as error:
            raise ValueError(f"{name}: {error}; nothing was written") from error
        if not arguments.test:
            _write(target, data)
        if target != STREAM:
            print(f"{target or name}: {len(data):,} bytes, as they were coded")


# --------------------------------------------------------------------------------------------------------------- files
def _targets(arguments: Namespace, named: Callable[[str], str]) -> list[tuple[str, str]]:
    """Pairs each source with where it goes, before any work is done.

    Raises:
        ValueError: for one output of several files, an output that exists or cannot be made, or a terminal.
    """
    files: list[str] = arguments.files
    if arguments.out is not None and len(files) > 1:
        raise ValueError(f"-o names one output, but there are {len(files)} files; leave it out, or give one file")
    pairs = [(file, arguments.out or (STREAM if file == STREAM else named(file))) for file in files]
    for source, target in pairs:
        if target == STREAM:
            if sys.stdout.isatty():
                raise ValueError("standard output is a terminal, and a file's bytes do not belong there; give -o FILE")
        elif source != STREAM and Path(target).exists() and Path(target).samefile(source):
            raise ValueError(f"{target} is the input itself; choose another output with -o")
        else:
            refuse_unwritable(Path(target))
            refuse_existing(Path(target), arguments.force)
    repeated = [target for _, target in pairs if [other for _, other in pairs].count(target) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} would be written twice; give each file once")
    return pairs


def _without_suffix(name: str) -> str:
    if not name.endswith(SUFFIX) or Path(name).name == SUFFIX:
        raise ValueError(f"{name} does not end in {SUFFIX}; name the output with -o")
    return name.removesuffix(SUFFIX)


def _shown(source: str) -> str:
    return "standard input" if source == STREAM else source


def _read(source: str, limit: int = MOST_BYTES) -> bytes:
    """Reads a file or standard input.

    Raises:
        ValueError: for one that is missing, no file, or larger than what is coded at a time.
    """
    try:
        if source == STREAM:
            data = sys.stdin.buffer.read(limit + 1)
        else:
            path = Path(source)
            if path.is_dir():
                raise ValueError("it is a directory; pack it to one file first, such as with tar")
            if limit == MOST_BYTES:
                check_size(path.stat().st_size)
            with path.open("rb") as stream:
                data = stream.read(limit + 1)
        if limit == MOST_BYTES:
            check_size(len(data))
        elif len(data) > limit:
            raise NotACodedFile(f"it has more than {limit:,} bytes, which no coded file has")
    except ValueError as error:
        raise ValueError(f"{_shown(source)}: {error}") from error
    return data


def _write(target: str, data: bytes, check: Callable[[Path], None] = lambda _: None) -> None:
    """Writes a file, or to standard output; `check` sees the bytes in a file before anyone else does."""
    if target != STREAM:
        with atomic_path(Path(target)) as temporary:
            temporary.write_bytes(data)
            check(temporary)
        return
    with tempfile.TemporaryDirectory(prefix="replica-") as directory:
        file = Path(directory) / f"output{SUFFIX}"
        file.write_bytes(data)
        check(file)
    unguarded(sys.stdout).buffer.write(data)


def decode_in_fresh_process(run: Path, file: Path, name: str) -> None:
    """Decodes a coded file where nothing of this process is left: its memory, its threads, its caches.

    Raises:
        ValueError: when it does not come back.
    """
    say(f"{name}: decoding it again in a fresh process")
    command = [sys.executable, "-m", "launch.cli", "decompress", "--test", str(run), str(file)]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        raise ValueError(
            f"{name}: the coded file did not come back in a fresh process (exit code {code}, see above), so it was "
            "not written; try --threads 1"
        )


def _tell(target: str, coded: Coded, verified: bool) -> None:
    header, size = coded.header, len(coded.file)
    rate = f", {8 * size / header.bytes:.3f} bits per byte" if header.bytes else ""
    how = {"model": "coded by the model", "xz": "stored as xz", "stored": "stored as it is"}[header.form]
    why = f", because {header.reason}" if header.reason else ""
    checked = "decoded again and equal" if verified else "not decoded again"
    text = f"{_shown_target(target)}: {header.bytes:,} bytes in {size:,}{rate}; {how}{why}; {checked}"
    if target == STREAM:
        say(text)
    else:
        print(text)


def _shown_target(target: str) -> str:
    return "standard output" if target == STREAM else target
