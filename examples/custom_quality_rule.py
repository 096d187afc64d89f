"""Drops documents by a rule of one's own: texts that shout, and lines of advertising.

    python examples/custom_quality_rule.py

The recipe names the function as `FILE.py:NAME` (docs/custom-code.md). What a rule drops, and what it takes out, stands
in the funnel under the rule's own names.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from data_prep.quality import Drop, Judgement, TextFacts

TEXTS = ["The sea was quiet.", "BUY THIS BOAT NOW", "A boat came home.\nAdvertisement: new boats"]
RECIPE = """
data:
  sources: [{{name: texts, path: {folder}/texts.txt, text_documents: paragraph}}]
  quality: {{rules: [{{rule: custom, code: {code}, options: {{max_capitals: 0.5}}}}]}}
  tokenizer: {{kind: byte}}
model: {{num_layers: 1, hidden_size: 32, num_heads: 2, context_length: 16}}
train: {{steps: 1}}
"""


def no_shouting(facts: TextFacts, max_capitals: float) -> Judgement:
    """A text that is mostly capitals goes; lines of advertising are taken out of the others.

    `facts.text` is the text; `facts.lines`, `facts.word_ids` and the like are made when they are first asked for. A
    rule gives a `Drop`, or the text that is left.
    """
    letters = [character for character in facts.text if character.isalpha()]
    capitals = sum(character.isupper() for character in letters) / max(1, len(letters))
    if capitals > max_capitals:
        return Drop("shouting", f"{capitals:.2f} > {max_capitals}")  # the reason, and why exactly
    return "\n".join(line for line in facts.lines if not line.startswith("Advertisement:"))


def main(folder: Path) -> dict[str, list[int]]:
    """Prepares three texts; returns what became of them: the funnel's key -> [documents, bytes]."""
    from configs.common.files import read_json
    from configs.safety.trust import trusting
    from configs.schema.recipe import load
    from data_prep.stages.pipeline import prepare_inline

    (folder / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    recipe = folder / "texts.yaml"
    recipe.write_text(RECIPE.format(folder=folder, code=f"{Path(__file__).resolve()}:no_shouting"))
    with trusting([Path(__file__).parent]):
        # In this process: for tests, and for a debugger. `prepare` does the same on Ray's workers.
        data = prepare_inline(load(recipe, [f"out={folder}/run"]))
    counts: dict[str, list[int]] = read_json(data.directory / "documents" / "manifest.json")["counts"]["texts"]
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for key, (documents, size) in main(Path(temporary)).items():
            print(f"{key:24} {documents:3} documents {size:5} bytes")
