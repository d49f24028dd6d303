"""What `pagoda eval init` writes: a GitHub workflow, a GitLab job and a pre-commit hook that run the gate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pagoda.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What the files are filled in with."""

    testset: str = "data/qa_testset.jsonl"
    baseline: str = "metrics/baseline.json"
    metrics: str = "context_precision,context_recall,faithfulness,answer_relevancy"
    judge: str = "smollm2-135m"
    target: str = ""  # a URL or module:function, where answers do not stand in the test set
    install: str = ""  # the command that installs Pagoda in the job; empty: of what the job's variable PAGODA says
    paths: tuple[str, ...] = ("prompts/**", "chunking/**", "embedding_model")

    @property
    def install_line(self) -> str:
        """The command; without one, the shell's own refusal tells which variable to set."""
        return self.install or 'pip install "${PAGODA:?set this variable to what pip installs Pagoda from}"'

    @property
    def run(self) -> str:
        target = f" --target {self.target}" if self.target else ""
        asked = f"--metrics {self.metrics} --judge {self.judge}{target}"
        return f"pagoda eval run {self.testset} {asked} -o metrics/current.json"

    @property
    def gate(self) -> str:
        return f"pagoda eval gate --baseline {self.baseline} --current metrics/current.json --threshold 0.05"


def github(pipeline: Pipeline) -> str:
    paths = "".join(f"      - '{path}'\n" for path in pipeline.paths)
    variable = "" if pipeline.install else "    env:\n      PAGODA: ${{ vars.PAGODA }}\n"
    return f"""name: RAG quality gate

on:
  pull_request:
    paths:
{paths}
jobs:
  evaluate:
    runs-on: ubuntu-latest
    timeout-minutes: 30
{variable}    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: '3.12'
      - run: {pipeline.install_line}
      - name: Evaluate
        run: {pipeline.run}
      - name: Quality gate
        run: >-
          {pipeline.gate}
          --markdown "$GITHUB_STEP_SUMMARY" --junit metrics/gate.xml
      - if: always()
        uses: actions/upload-artifact@v4
        with:
          name: evaluation
          path: metrics/
"""


def gitlab(pipeline: Pipeline) -> str:
    changes = "".join(f"        - {path}\n" for path in pipeline.paths)
    return f"""rag-quality-gate:
  image: python:3.12
  rules:
    - changes:
{changes}  script:
    - {pipeline.install_line}
    - {pipeline.run}
    - {pipeline.gate} --junit metrics/gate.xml
  artifacts:
    when: always
    paths: [metrics/]
    reports:
      junit: metrics/gate.xml
"""


def pre_commit(pipeline: Pipeline) -> str:
    files = "|".join(path.replace("/**", "/") for path in pipeline.paths)
    return f"""repos:
  - repo: local
    hooks:
      - id: rag-quality-gate
        name: RAG quality gate
        language: system
        pass_filenames: false
        files: ^({files})
        entry: sh -c '{pipeline.run} && {pipeline.gate}'
"""


FILES = {
    ".github/workflows/rag-eval.yml": github,
    ".gitlab/rag-eval.yml": gitlab,
    ".pre-commit-rag-eval.yaml": pre_commit,
}


def install_command(direct_url: str | None, version: str) -> str:
    """How a job installs what is installed here. Empty: from a folder or file of this machine, which no job has.

    direct_url: of the installed package (PEP 610), None where it came from an index.
    """
    if direct_url is None:
        return f"pip install pagoda-llm=={version}"
    found = json.loads(direct_url)
    url, vcs = found["url"], found.get("vcs_info")
    if not url.startswith("https://"):
        return ""
    return f"pip install {vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else f"pip install {url}"


def write_files(folder: Path, pipeline: Pipeline) -> list[Path]:
    """Write all of them below `folder`. Raises ConfigError, before any is written, where one is there already."""
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise ConfigError(f"{', '.join(there)} is there already; move it away first")
    written = []
    for name, make in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(pipeline))
        written.append(path)
    return written
