"""Builds the parts of a recipe's evaluation: perplexity, compressors, translation, benchmarks, answers, samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common.layout import MANIFEST
from configs.common.progress import progress_bar
from configs.common.versions import installed
from configs.schema.evaluation import Benchmarks, BenchmarkTask, ChatSet, PerplexitySet, PreferenceSet
from configs.schema.pair_sets import TranslationSet
from configs.schema.recipe import Recipe
from data_prep.tokens.gaps import has_gaps, no_gaps, without_escapes
from data_prep.tokens.shards import load_manifest
from eval.information.information_parts import information_parts
from eval.likelihood.bound_notes import bound_inputs, bound_noted
from eval.parts import Part, Scored
from eval.results import Sample
from eval.stage_facts import is_assistant, tuned_of
from eval.summaries.summary_parts import pair_inputs, summary_parts
from pretrain.parallel.lockstep import ALONE, Lockstep

if TYPE_CHECKING:
    from data_prep.decontamination.decontaminate import Touched
    from data_prep.decontamination.evaluation_sets import SetText
    from data_prep.tokens.vocab import Vocab
    from eval.chat_setting import ChatSetting
    from eval.reading.reader import Reader
    from pretrain.generation.sampling import Sampling

_PROMPT_TOKENS = 48
_REFERENCE_CHARACTERS = 400


@dataclass
class Scorer:
    """Builds and runs the parts of an evaluation of one model.

    Attributes:
        reader: asks the model.
        common: inputs of every score: the checkpoint, the code version, the comparison with training data.
        sets: `perplexity set NAME`, … -> identities of its files.
        ranks: the ranks that evaluate together.
    """

    recipe: Recipe
    reader: Reader
    vocab: Vocab
    touched: Touched | None
    common: dict[str, Any]
    sets: dict[str, Any]
    progress: bool = True
    ranks: Lockstep = ALONE
    _texts: dict[str, list[SetText]] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------------------ parts
    def parts(self) -> list[Part]:
        """Returns all parts, in the order of scoring."""
        section = self.recipe.evaluation
        # Benchmarks first, because their data may need a network, and a failure should come early.
        parts = [
            self.part(f"benchmark/{entry.shown}", self._benchmark(entry), self._score_task, entry)
            for entry in section.benchmarks.entries
        ]
        if section.samples.prompts:
            own = self._shown() | {"prompts": section.samples.prompts} | (self._chat() if self.assistant else {})
            parts.append(self.part("samples/prompts", own, self._sample_prompts))
        for item in section.perplexity:
            own = self._perplexity(item)
            parts.append(self.part(f"perplexity/{item.name}", own, self._score_texts, item))
            if not self.recipe.parents:  # the same numbers for each stage
                parts.append(self.part(f"compression/{item.name}", _compressed(own), self._compress, item))
        for item in section.perplexity[:1]:
            own = self._perplexity(item) | self._shown()
            if not self.assistant:
                parts.append(self.part("samples/document", own, self._sample_document, item))
        for pairs in section.translation:
            parts.append(self.part(f"translation/{pairs.name}", pair_inputs(self, pairs), self._translate, pairs))
        parts += information_parts(self)
        parts += summary_parts(self)
        if self.assistant and (tuned := self._tuned()) is not None:
            own = {"data": load_manifest(tuned.data_directory).fingerprint, "tuned": _held_out(tuned)}
            parts.append(self.part(f"conversations/{tuned.name.rpartition('.')[2]}", own, self._converse, tuned))
        for chat in section.chat:
            own = self._set("chat", chat) | self._chat()
            parts.append(self.part(f"chat/{chat.name}", own, self._answer, chat))
        for preference in section.preference:
            own = self._set("preference", preference) | self._chat()
            parts.append(self.part(f"preference/{preference.name}", own, self._prefer, preference))
        return parts

    @property
    def assistant(self) -> bool:
        """Tells whether the model is one that answers."""
        return is_assistant(self.recipe)

    def part(self, name: str, inputs: dict[str, Any], work: Callable[..., Scored], *arguments: Any) -> Part:
        """See `eval.parts.PartMaker.part`."""
        bootstrap = self.recipe.evaluation.bootstrap_samples
        common = {
            **self.common,
            "bootstrap": bootstrap,
            "precision": self.reader.precision,
            **bound_inputs(self.recipe),
        }
        return Part(name, {**common, "own": inputs}, partial(self._scored, work, *arguments))

    def _scored(self, work: Callable[..., Scored], *arguments: Any) -> Scored:
        """Scores a part, and names the precision in every score that the model's reading gives."""
        scored, precision = work(*arguments), self.reader.precision
        if work == self._compress:
            return scored
        results = [replace(result, settings={**result.settings, "precision": precision}) for result in scored.results]
        return replace(scored, results=bound_noted(self.recipe, results))

    def _benchmark(self, entry: BenchmarkTask) -> dict[str, Any]:
        own = {**entry.model_dump(mode="json"), "chat_template": self._asked_in_template(entry)}
        return {**own, "files": self.sets.get("benchmark tasks"), "lm_eval": installed("lm_eval")}

    def _perplexity(self, item: PerplexitySet) -> dict[str, Any]:
        settings = item.model_dump(mode="json", exclude={"path"})
        rules = self.recipe.data.normalize.model_dump(mode="json") if item.normalize == "training" else None
        return {**settings, "files": self.sets.get(f"perplexity set {item.name}"), "rules": rules}

    def _asked_in_template(self, entry: BenchmarkTask) -> bool:
        return bool(entry.chat_template) and self.assistant

    def _set(self, kind: str, item: ChatSet | PreferenceSet) -> dict[str, Any]:
        settings = item.model_dump(mode="json", exclude={"path"})
        return {**settings, "files": self.sets.get(f"{kind} set {item.name}"), "seed": self.recipe.seed}

    def _chat(self) -> dict[str, Any]:
        """Inputs of scores in the chat template."""
        return {"chat": self.recipe.chat.model_dump(mode="json")}

    def _shown(self) -> dict[str, Any]:
        settings = self.recipe.evaluation.samples.model_dump(mode="json", exclude={"prompts"})
        return {"samples": settings, "seed": self.recipe.seed}

    # ----------------------------------------------------------------------------------------------------------- scores
    def _score_task(self, entry: BenchmarkTask) -> Scored:
        from eval.harness.benchmarks import benchmark_results

        section = self.recipe.evaluation
        own = section.benchmarks.model_copy(update={"tasks": [entry]})
        self._fetch_in_turn(own, entry.task)
        samples = section.bootstrap_samples
        chat = self._asked_in_template(entry)
        return benchmark_results(own, self.reader, self.vocab, samples, self.progress, self.touched, chat)

    def _fetch_in_turn(self, section: Benchmarks, task: str) -> None:
        """Lets one rank fetch the data of a task of lm-eval's own; the others then find it on their disk."""
        if self.ranks.count == 1 or _is_local(section, task):
            return
        from eval.harness.benchmarks import fetch_tasks, load_lm_eval

        load_lm_eval()
        with self.ranks.main_first(f"data of {task}"):
            fetch_tasks(section)

    def _texts_of(self, item: PerplexitySet) -> list[SetText]:
        if item.name not in self._texts:
            from data_prep.decontamination.evaluation_sets import read_set

            self._texts[item.name] = read_set(item, self.recipe.data.normalize)
        return self._texts[item.name]

    def _score_texts(self, item: PerplexitySet) -> Scored:
        from eval.likelihood.perplexity_set import perplexity_set_results

        samples = self.recipe.evaluation.bootstrap_samples
        documents = self._texts_of(item)
        with progress_bar(f"perplexity of {item.name}: windows", None, self.progress) as bar:
            return perplexity_set_results(item, documents, self.reader, self.vocab, samples, bar.update, self.touched)

    def _compress(self, item: PerplexitySet) -> Scored:
        from eval.likelihood.perplexity_set import compressed_set_results

        def compress() -> Scored:
            with progress_bar(f"compressors on {item.name}", 3, self.progress) as bar:
                results = compressed_set_results(item, self._texts_of(item))
                bar.update(3)
            return Scored(results)

        return self.ranks.of_main(compress, f"compressors on {item.name}")

    def _translate(self, pairs: TranslationSet) -> Scored:
        from eval.generation.translation import translation_results
        from eval.pairs.prompts import read_pairs

        section = self.recipe.evaluation
        count = len(read_pairs(pairs)[1])
        with progress_bar(f"translation of {pairs.name}: pairs", count, self.progress) as bar:
            return translation_results(
                pairs, self.reader, self.vocab, section.bootstrap_samples, bar.update, self.touched
            )

    # ------------------------------------------------------------------------------------------------------- assistants
    def _tuned(self) -> Recipe | None:
        """Returns the recipe of the fine-tuning whose held-out conversations are scored, if they are still there."""
        tuned = tuned_of(self.recipe)
        return tuned if tuned is not None and (tuned.data_directory / MANIFEST).is_file() else None

    def _converse(self, tuned: Recipe) -> Scored:
        from eval.likelihood.conversations import conversation_results

        section = self.recipe.evaluation
        with progress_bar("held-out conversations", None, self.progress) as bar:
            return conversation_results(tuned, self.reader, self.vocab, section.bootstrap_samples, bar.update)

    def _answer(self, item: ChatSet) -> Scored:
        from eval.generation.chat_tasks import chat_results

        with progress_bar(f"answers to {item.name}", None, self.progress) as bar:
            return chat_results(item, self.reader, self._setting(), bar.update, self.touched)

    def _prefer(self, item: PreferenceSet) -> Scored:
        from eval.preference_accuracy import preference_results

        with progress_bar(f"rewards of {item.name}: answers", None, self.progress) as bar:
            return preference_results(item, self.reader, self._setting(), bar.update, self.touched)

    def _setting(self) -> ChatSetting:
        from data_prep.tokens.chat_template import ChatTemplate
        from eval.chat_setting import ChatSetting

        samples = self.recipe.evaluation.bootstrap_samples
        return ChatSetting(ChatTemplate(self.vocab), self.recipe.chat, self.recipe.seed, samples)

    # ---------------------------------------------------------------------------------------------------------- samples
    def _described(self) -> str:
        section = self.recipe.evaluation.samples
        given = {"temperature": section.temperature, "top_k": section.top_k, "top_p": section.top_p}
        named = {key: value for key, value in given.items() if value is not None}
        return ", ".join(f"{key.replace('_', '-')} {value:g}" for key, value in named.items())

    def _sampling(self, seed: int) -> Sampling:
        from pretrain.generation.sampling import Sampling

        section = self.recipe.evaluation.samples
        return Sampling(section.temperature, section.top_k, section.top_p, seed)

    def _continued(self, text: str, seed: int) -> str:
        """Samples a continuation of the text; an empty text gives the beginning of a document."""
        from eval.generation.completions import Stops, sample

        most = self.recipe.evaluation.samples.max_new_tokens
        return sample(self.reader, Stops(self.vocab), self.vocab.prompt(text), most, self._sampling(seed))

    def _replied(self, text: str, seed: int) -> str:
        """Samples the answer to a user's message."""
        from data_prep.chat.messages import Message
        from data_prep.tokens.chat_template import ChatTemplate
        from eval.generation.completions import Stops, sample

        section, template = self.recipe.evaluation.samples, ChatTemplate(self.vocab)
        system = self.recipe.chat.system
        messages = [*([Message.of("system", system)] if system else []), Message.of("user", text)]
        stops = Stops(self.vocab, end_ids=template.end_ids)
        return sample(self.reader, stops, template.prompt(messages), section.max_new_tokens, self._sampling(seed))

    def _sample_prompt(self, number: int, prompt: str) -> Sample:
        """Lets the model answer a prompt, fill in its gaps, or continue it."""
        seed, title = self.recipe.seed + number, f"Prompt {number}"
        if self.assistant:
            return Sample("chat", title, prompt, self._replied(prompt, seed), self._described())
        if not has_gaps(prompt):
            plain = without_escapes(prompt)
            return Sample("prompt", title, plain, self._continued(plain, seed), self._described())
        from eval.generation.infill import infill

        if self.recipe.model.causal:
            raise ValueError(no_gaps("the model reads from left to right"))
        text = infill(self.reader, self.vocab, prompt, self._sampling(seed))
        return Sample("infill", title, prompt, text, self._described())

    def _sample_prompts(self) -> Scored:
        section = self.recipe.evaluation.samples
        out = []
        with progress_bar("samples", len(section.prompts), self.progress) as bar:
            for number, prompt in enumerate(section.prompts, start=1):
                out.append(self._sample_prompt(number, prompt))
                bar.update(number)
        return Scored(samples=out)

    def _sample_document(self, item: PerplexitySet) -> Scored:
        """Continues a paragraph from the middle of the set's first document, and shows the real continuation."""
        text = passage(next(one.text for one in self._texts_of(item) if one.text))
        most = max(1, min(_PROMPT_TOKENS, self.reader.context_length // 2))
        ids = self.vocab.encode(text[: 16 * _PROMPT_TOKENS])[:most]
        prompt = self.vocab.decode(ids).rstrip("\ufffd")  # a character may be cut
        reference = text[len(prompt) :][:_REFERENCE_CHARACTERS]
        continued = self._continued(prompt, self.recipe.seed)
        title = f"A passage of {item.name}, continued"
        return Scored(samples=[Sample("document", title, prompt, continued, self._described(), reference)])


def _compressed(own: dict[str, Any]) -> dict[str, Any]:
    """What decides the sizes of a compressed set: not what the model reads, nor how."""
    return own | dict.fromkeys(("stride", "context", "windows", "start_token", "words"))


def _is_local(section: Benchmarks, task: str) -> bool:
    """Tells whether a task's file lies in `include_path`: then so does its data."""
    quote = "[\"']?"  # JSON is YAML too
    named = re.compile(
        rf"(?:^|[{{,]) *{quote}(?:task|group){quote}: *{quote}{re.escape(task)}{quote} *(?:$|[,}}#])", re.MULTILINE
    )
    files = [] if section.include_path is None else Path(section.include_path).rglob("*.y*ml")
    return any(named.search(file.read_text(encoding="utf-8", errors="replace")) for file in files)


def _held_out(tuned: Recipe) -> list[Any]:
    """What decides which of a stage's conversations are scored, and by which weights."""
    objective = tuned.train.objective
    return [tuned.train.validation.max_tokens, objective.model_dump(mode="json") if objective else None]


def passage(text: str) -> str:
    """Returns the text from the first paragraph that begins in its second half, or the whole text."""
    place = text.find("\n\n", len(text) // 2)
    return (text[place + 2 :] if place >= 0 else "") or text
