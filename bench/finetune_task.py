"""A task with a checkable format, before and after training: sentences about people become JSON of one shape.

    python bench/finetune_task.py make FOLDER            # train.jsonl, and prompts.jsonl of people that are not in it
    pagoda finetune MODEL --data FOLDER/train.jsonl -o FOLDER/adapter …
    python bench/finetune_task.py score ANSWERS.jsonl    # of `pagoda generate FOLDER/prompts.jsonl`: how many are valid

An answer is valid if it is JSON and nothing else, with exactly the keys name, age, city, hobbies of the right types.
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


def answer_of(line: dict[str, Any]) -> str:
    """The text of a line that `pagoda generate` writes."""
    found = line.get("text", line.get("answer", line.get("output")))
    if isinstance(found, list):
        found = found[0]
    if not isinstance(found, str):
        found = line["choices"][0]["message"]["content"]
    return found


def main() -> None:
    action, path = sys.argv[1], Path(sys.argv[2])
    if action == "make":
        make(path)
        return
    answers = [answer_of(json.loads(line)) for line in path.read_text().splitlines()]
    valid = sum(map(is_valid, answers))
    print(json.dumps({"answers": len(answers), "valid": valid, "share": valid / len(answers)}))


if __name__ == "__main__":
    main()
