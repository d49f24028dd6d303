#!/usr/bin/env bash
# schemathesis 4.32.5 with pytest-xdist 3.8.0: of all operations that schema.parametrize() tests, one is tested.
#
# Its items all have the node id of their function; pytest's own parametrize gives each one of its own. pytest-xdist keeps
# what is to be run by node id, so all but one are forgotten, without a warning, and the run passes. The scheduler of
# `--dist load` goes by numbers, and runs them all; those of `--dist loadfile` and `--dist loadscope` go by names.
#
# Seen, with three operations: 3 passed alone and with `--dist load`, 1 passed with `--dist loadfile`.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder" && cd "$folder"
bin/pip install --quiet schemathesis==4.32.5 pytest-xdist==3.8.0 pytest==9.2.0 hypothesis==6.170.17
cat >test_schema.py <<'END'
import schemathesis

answer = {"responses": {"200": {"description": "fine"}}}
paths = {f"/{name}": {"get": answer} for name in ("a", "b", "c")}
schema = schemathesis.openapi.from_dict({"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": paths})


@schema.parametrize()
def test_operation(case):
    assert case.path in paths
END
passed() { bin/python -m pytest -q -p no:cacheprovider "$@" test_schema.py | grep -o '[0-9]* passed'; }
seen="$(passed), $(passed -n 2 --dist load), $(passed -n 2 --dist loadfile)"
echo "alone, --dist load, --dist loadfile: $seen"
[[ $seen == "3 passed, 3 passed, 1 passed" ]] || { echo "they behave otherwise now"; exit 1; }
