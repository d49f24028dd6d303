#!/usr/bin/env bash
# datasets 5.2.0: the same two rows are changed by both ways in, and each changes something else.
#
# Rows of training data for tool calls: an answer that happens to be a date, and the arguments of different functions.
# From a file of JSON lines, strings of a column that all look like dates become datetimes, whose text is another one;
# arguments stay as they are. From a list of dicts the strings stay, but all arguments get the keys of all rows, with
# null where there was none, which a chat template then writes out.
#
# Seen: load_dataset('json') makes '2024-01-31' datetime(2024, 1, 31, 0, 0) and keeps {'city': 'Rome'}; Dataset.from_list
# keeps '2024-01-31' and makes {'city': 'Rome', 'x': None, 'y': None}.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cd "$folder" && HF_HOME="$folder" HF_HUB_OFFLINE=1 bin/python - <<'END' 2> errors || { cat errors; exit 1; }
import datetime
import json

from datasets import Dataset, load_dataset

ROWS = [
    {"answer": "2024-01-31", "call": {"name": "weather", "arguments": {"city": "Rome"}}},
    {"answer": "2024-02-29", "call": {"name": "add", "arguments": {"x": 1, "y": 2}}},
]
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in ROWS)
from_file = load_dataset("json", data_files="rows.jsonl", split="train")[0]
from_list = Dataset.from_list(ROWS)[0]
for name, row in (("the file", from_file), ("the list", from_list)):
    print(f"from {name}: {row['answer']!r}, {row['call']['arguments']}")
assert from_file["answer"] == datetime.datetime(2024, 1, 31), "datasets behaves otherwise now"
assert from_file["call"]["arguments"] == {"city": "Rome"}, "datasets behaves otherwise now"
assert from_list["answer"] == "2024-01-31", "datasets behaves otherwise now"
assert from_list["call"]["arguments"] == {"city": "Rome", "x": None, "y": None}, "datasets behaves otherwise now"
END
