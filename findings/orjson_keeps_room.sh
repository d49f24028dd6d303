#!/usr/bin/env bash
# orjson 3.13.0: what dumps returns occupies the room in which it was written, as long as it is kept.
#
# The bytes object is written into a buffer of at least 4 KB that grows by doubling, and is handed out with its length set,
# not cut down to it. sys.getsizeof tells the length. Who sends it at once sees nothing of that; who keeps many, as a store
# of answers does, pays 4 KB for each short one. A copy, memoryview(made).tobytes(), has the room that it needs. 3.11.5
# did so too, with 1 KB at least.
#
# Seen: 20,000 results of 12 bytes are 79 MB of resident memory, their copies 1 MB.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && "$folder/bin/pip" install --quiet orjson==3.13.0
"$folder/bin/python" - <<'END'
import resource
import sys

import orjson

COUNT = 20_000


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


before = resident()
made = [orjson.dumps(f"{number:010}") for number in range(COUNT)]
each = (resident() - before) / COUNT
before = resident()
copies = [memoryview(one).tobytes() for one in made]
copied = (resident() - before) / COUNT
print(f"{len(made[0])} bytes, getsizeof {sys.getsizeof(made[0])}: {each:.0f} of resident memory, a copy {copied:.0f}")
assert copies == made and sys.getsizeof(made[0]) < 64, "orjson behaves otherwise now"
assert each > 3000 and copied < 200, "orjson behaves otherwise now"
END
