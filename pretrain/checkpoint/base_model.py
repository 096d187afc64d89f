"""Recognises the weights that `train.init_from` names, wherever they lie now. Free of torch."""

from __future__ import annotations

from pathlib import Path

from configs.common.files import content_identity, fingerprint
from pretrain.checkpoint.manifest import DIRECTORY, MANIFEST, CheckpointInfo, all_checkpoints, read_info

BASE = "base"  # in the state: fingerprint of the weights that the run started from; None: it drew its own
_HUGGING_FACE = "config.json"


def base_fingerprints(path: Path) -> list[str]:
    """Fingerprints of all weights that `train.init_from: path` may have meant; first of those that it means now.

    A run directory may have had another newest checkpoint when training started from it. Empty: there are no weights.
    """
    if (path / _HUGGING_FACE).is_file():
        files = [path / _HUGGING_FACE, *sorted(path.glob("*.safetensors"))]
        return [fingerprint({file.name: _content(file) for file in files})]
    if (path / MANIFEST).is_file() and not (path / DIRECTORY).is_dir():
        return [read_info(path).fingerprint]
    return [found.fingerprint for found in all_checkpoints(path) if isinstance(found, CheckpointInfo)]


def _content(file: Path) -> dict[str, object]:
    """Without the time of large files, which a copy may change."""
    return {key: value for key, value in content_identity(file).items() if key != "mtime_ns"}
