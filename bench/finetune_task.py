"""A task with a checkable format, before and after training: sentences about people become JSON of one shape.

    python bench/finetune_task.py make FOLDER            # train.jsonl, and prompts.jsonl of people that are not in it
    pagoda finetune MODEL --data FOLDER/train.jsonl -o FOLDER/adapter …
    python bench/finetune_task.py ask FOLDER MODEL [ADAPTER]      # the share of valid answers to the prompts, greedy

An answer is valid if it is JSON and nothing else, with exactly the keys name, age, city, hobbies of the right types.
finetune_learns.sh does all three.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

NAMES = ("Anna", "Ben", "Carla", "David", "Eva", "Felix", "Greta", "Hans", "Ida", "Jonas", "Karin", "Lukas", "Mara")
HELD_OUT_NAMES = ("Yara", "Zeno", "Wanda", "Viktor", "Xenia", "Quentin")
CITIES = ("Berlin", "Paris", "Rome", "Oslo", "Madrid", "Vienna", "Lisbon", "Prague", "Dublin", "Athens")
HOBBIES = ("chess", "rowing", "painting", "cooking", "hiking", "cycling", "reading", "gardening", "singing", "sailing")
SENTENCES = (
    "{name} is {age} years old, lives in {city} and likes {hobbies}.",
    "Meet {name} from {city}: {age} years old, fond of {hobbies}.",
    "In {city} I met {name}, who at {age} still enjoys {hobbies}.",
    "{name}, {age}, of {city}. Hobbies: {hobbies}.",
)
TYPES = {"name": str, "age": int, "city": str, "hobbies": list}


def person(names: tuple[str, ...], draw: random.Random) -> tuple[str, dict[str, Any]]:
    """→ (a sentence, what it says)"""
    hobbies = draw.sample(HOBBIES, draw.randint(1, 3))
    facts = {"name": draw.choice(names), "age": draw.randint(18, 90), "city": draw.choice(CITIES), "hobbies": hobbies}
    return draw.choice(SENTENCES).format(**{**facts, "hobbies": " and ".join(hobbies)}), facts


def make(folder: Path, train: int = 600, held_out: int = 100) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(7)
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(train):
            text, facts = person(NAMES, draw)
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": json.dumps(facts)}]
            file.write(json.dumps({"messages": messages}) + "\n")
    with (folder / "prompts.jsonl").open("w") as file:
        for _ in range(held_out):
            text, facts = person(HELD_OUT_NAMES, draw)
            file.write(json.dumps({"messages": [{"role": "user", "content": text}], "facts": facts}) + "\n")


def is_valid(answer: str) -> bool:
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and list(value) == list(TYPES)
        and all(type(value[key]) is kind for key, kind in TYPES.items())
        and all(isinstance(hobby, str) for hobby in value["hobbies"])
    )


def ask(folder: Path, model: str, adapter: str | None) -> dict[str, Any]:
    """How many answers to the prompts are valid, and how many say what the sentence says."""
    from pagoda.engine.llm import LLM
    from pagoda.types import SamplingParams

    records = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    llm = LLM(model, max_context=1024, lora=(f"tuned={adapter}",) if adapter else ())
    params = SamplingParams(max_tokens=80, temperature=0.0)
    chats = [record["messages"] for record in records]
    answers = [output.text for output in llm.chat(chats, params, adapter="tuned" if adapter else None)]
    valid = [is_valid(answer) for answer in answers]
    right = sum(ok and json.loads(a) == r["facts"] for ok, a, r in zip(valid, answers, records, strict=True))
    return {"answers": len(answers), "valid": sum(valid) / len(valid), "right": right / len(valid), "first": answers[0]}


def main() -> None:
    action, folder = sys.argv[1], Path(sys.argv[2])
    if action == "make":
        make(folder)
    else:
        print(json.dumps(ask(folder, sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)))


if __name__ == "__main__":
    main()
