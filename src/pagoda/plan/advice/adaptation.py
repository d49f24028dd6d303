"""RAG, fine-tuning, both or neither: what a model lacks decides.

What it does not know is put in front of it (retrieval-augmented generation); how it does not behave is trained into it.
Retrieval beats training for knowledge: Ovadia et al., "Fine-Tuning or Retrieval?", arXiv:2312.05934. Both add up:
Balaguer et al., "RAG vs Fine-tuning", arXiv:2401.08406 (6 and 5 points of accuracy on one task).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Change = Literal["never", "rarely", "often"]
Budget = Literal["small", "normal"]
Choice = Literal["rag", "fine-tune", "both", "neither"]

FEW_EXAMPLES = 50  # below, there is nothing to train on and something to test with
ENOUGH_EXAMPLES = 1000  # LIMA (arXiv:2305.11206) changed style and format with as many, well chosen

TITLES: dict[Choice, str] = {
    "rag": "RAG",
    "fine-tune": "fine-tune",
    "both": "both, RAG first",
    "neither": "neither: prompts first",
}


@dataclass(frozen=True, slots=True)
class Situation:
    """What the task asks of the model. `examples`: how many pairs of input and wanted output are at hand; None: not
    known."""

    own_facts: bool = False  # needs documents or data that the model has not seen
    facts_change: Change = "never"
    citations: bool = False  # answers must say where they come from
    style: bool = False  # format, tone or jargon differ from what the model does by itself
    prompts_suffice: bool = False  # instructions and a few examples in the prompt fix that
    examples: int | None = None
    budget: Budget = "normal"


@dataclass(frozen=True, slots=True)
class Adaptation:
    """`reasons` say why, `steps` what to do first, `cautions` what would make the choice wrong."""

    choice: Choice
    reasons: tuple[str, ...]
    steps: tuple[str, ...]
    cautions: tuple[str, ...]


def advise_adaptation(situation: Situation) -> Adaptation:
    """The choice with its reasons."""
    choice = choose(situation)
    return Adaptation(
        choice, tuple(_reasons(situation)), tuple(_steps(situation, choice)), tuple(_cautions(situation, choice))
    )


def choose(situation: Situation) -> Choice:
    """Decide from whether facts are missing and whether behaviour must be trained."""
    facts, behaviour = needs_facts(situation), needs_training(situation)
    if facts and behaviour:
        first = situation.budget == "small" or _too_few(situation)
        return "rag" if first else "both"
    if facts:
        return "rag"
    return "fine-tune" if behaviour and not _too_few(situation) else "neither"


def needs_facts(situation: Situation) -> bool:
    """Whether answers need facts that the model cannot have learnt."""
    return situation.own_facts or situation.citations or situation.facts_change == "often"


def needs_training(situation: Situation) -> bool:
    """Whether the model must behave in a way that prompting does not achieve."""
    return situation.style and not situation.prompts_suffice


def _too_few(situation: Situation) -> bool:
    return situation.examples is not None and situation.examples < FEW_EXAMPLES


def _reasons(s: Situation) -> Iterator[str]:
    if s.facts_change == "often":
        yield "Facts change often: an index is updated in minutes, weights are as old as their last training."
    if s.citations:
        yield "Answers must cite: what was retrieved can be named, what was trained in cannot."
    if s.own_facts:
        yield "It needs facts of your own: retrieval brings them word for word, training on them teaches them poorly."
    if s.own_facts and s.facts_change == "rarely":
        yield "Facts that change rarely still change: re-indexing is cheaper than re-training."
    if needs_training(s):
        yield "Format, tone or jargon that prompts cannot fix is behaviour: a few hundred examples train it in (LoRA)."
    elif s.style:
        yield "Format and tone are fixed by the prompt already: training would add cost and nothing else."
    if needs_training(s) and needs_facts(s) and s.budget == "small":
        yield "The budget is small: RAG needs no training runs and no labelled examples, so it comes first."
    if needs_training(s) and _too_few(s):
        yield f"{s.examples} examples are too few to train on: put the best of them into the prompt, and collect more."
    if not needs_facts(s) and not s.style:
        yield "Nothing that it lacks was named: instructions and examples in the prompt are the cheapest change."


def _steps(s: Situation, choice: Choice) -> Iterator[str]:
    yield "Collect 50 to 200 real questions with good answers: they decide whether any change helps."
    if choice in ("rag", "both"):
        yield "Index the documents in pieces of some hundred tokens; measure first whether the right piece is found."
    if choice in ("fine-tune", "both"):
        if s.examples is None or s.examples < ENOUGH_EXAMPLES:
            yield f"Gather towards {ENOUGH_EXAMPLES:,} examples of the wanted behaviour; quality over number."
        else:
            yield f"Choose the best of your {s.examples:,} examples; quality over number."
        yield "Train a LoRA on the unquantized BF16 base (QLoRA where that does not fit), and compare with the base."
    if choice == "neither":
        yield "Write instructions, show three to five examples, and measure; come back with what still fails."
    if choice == "rag" and needs_training(s):
        yield "Then, with RAG in place, fine-tune on its prompts if format or tone still fail."


def _cautions(s: Situation, choice: Choice) -> Iterator[str]:
    if choice in ("rag", "both"):
        yield "Retrieved text lengthens prompts: plan TTFT and the cost of input tokens with it (pagoda plan --prompt)."
    if choice == "fine-tune":
        yield "Trained-in facts go stale and cannot be cited: if facts start to matter, add retrieval instead."
    if choice in ("fine-tune", "both"):
        yield "A fine-tuned model must be trained anew for each new base model."
