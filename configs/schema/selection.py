"""Defines the section `data.select`: which part of the training text stays, by code lengths of language models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.section import PatternText, Section


class Select(Section):
    """Keeps a part of the training text, chosen by bits per byte of one model, or by their difference for two models.

    The difference is that of Moore and Lewis (2010). Documents of the validation split all stay.
    """

    rule: Literal["low", "middle", "high", "random"] = Field(
        "low",
        description="Which documents to keep: those with the lowest, the middle or the highest value. The value is the "
        "bits per byte by `scores`, less those by `minus`. random: a choice without scores, as a control.",
    )
    keep: float = Field(gt=0, le=1, description="Share of the bytes of training text to keep.")
    scores: list[PatternText] = Field([], description="Files that `replica score` wrote, all with one model.")
    minus: list[PatternText] = Field(
        [],
        description="Files that `replica score` wrote with another model. With a model of the wanted text in `scores` "
        "and one of all text here, `low` is the choice of Moore and Lewis.",
    )
    sources: list[str] | None = Field(
        None, description="Choose among the documents of these sources. All others stay. Null: all sources."
    )
    each_source: bool = Field(False, description="Keep this share of every source, not of all sources together.")
    seed: int = Field(0, ge=0, lt=2**63, description="Another seed gives another choice (rule `random`).")

    @model_validator(mode="after")
    def _scores_fit(self) -> Select:
        if self.rule == "random" and (self.scores or self.minus):
            raise ValueError("`rule: random` uses no scores; leave out `scores` and `minus`, or set another rule")
        if self.rule != "random" and not self.scores:
            raise ValueError(
                f"`rule: {self.rule}` needs `scores`; write them by `replica score RUN --data RECIPE --out "
                "FILE.parquet`, or set `rule: random`"
            )
        if self.sources == []:
            raise ValueError("`sources` is empty; name some, or leave it out")
        return self
