"""The `pagoda` command: a table of verbs, each imported only when it is used, and one place that shows errors."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import pagoda
from pagoda.config import debug
from pagoda.errors import ConfigError, PagodaError

FOOTER = (
    "Settings may also stand in pagoda.toml (threads = 4) or in the environment (PAGODA_THREADS=4); the flag wins. "
    "What concerns one call (-o, and what inspect, advise and doctor show) is a flag alone."
)

FIRST_STEPS = """\
pagoda serve          a server with a small model, which is fetched the first time (98 MB);
                      open http://127.0.0.1:8000 in a browser, or point an OpenAI client at /v1
pagoda chat           the same model, in this terminal
pagoda plan MODEL     whether a model fits here, and how fast it will be
pagoda serve MODEL    a GGUF file, a Hugging Face folder, or hf:owner/repo
pagoda doctor         what this machine has, and what it can do at most
pagoda --help         everything else\
"""


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb's function lives and what it is for."""

    target: str  # module:function
    help: str
    example: str


VERBS = {
    "serve": Verb("pagoda.cli.serve:serve", "Answer OpenAI API requests over HTTP.", "pagoda serve --port 8080"),
    "gateway": Verb(
        "pagoda.cli.gateway:gateway",
        "Put cache, keys, budgets, routing and metrics before other servers.",
        "pagoda gateway http://127.0.0.1:8001 --cache sqlite",
    ),
    "deploy": Verb("pagoda.cli.overview:deploy", "Spread engines over a cluster: `deploy ray`.", "pagoda deploy ray"),
    "deploy ray": Verb(
        "pagoda.cli.deploy_ray:deploy_ray",
        "Run engines on a Ray cluster, with gateways before them.",
        "pagoda deploy ray smollm2-135m --replicas 2",
    ),
    "chat": Verb("pagoda.cli.chat:chat", "Talk to a model in the terminal.", "pagoda chat smollm2-135m"),
    "generate": Verb(
        "pagoda.cli.generate:generate",
        "Answer a JSONL file of prompts into another.",
        "pagoda generate prompts.jsonl -o answers.jsonl --max-tokens 64",
    ),
    "pull": Verb("pagoda.cli.pull:pull", "Download a model into the cache.", "pagoda pull smollm2-135m"),
    "plan": Verb(
        "pagoda.cli.plan:plan",
        "Say what fits where, how fast, and what it costs.",
        "pagoda plan llama-3-8b --on a100-80gb,rtx4090,this --tpot 50",
    ),
    "plan finetune": Verb(
        "pagoda.cli.plan_finetune:plan_finetune",
        "Say what memory and time a fine-tuning run takes.",
        "pagoda plan finetune smollm2-135m --data chat.jsonl --rank 8",
    ),
    "inspect": Verb("pagoda.cli.inspect:inspect", "Show what a model file holds.", "pagoda inspect model.gguf"),
    "quantize": Verb(
        "pagoda.cli.quantize:quantize",
        "Make a model smaller: GGUF formats, GPTQ, AWQ, NF4.",
        "pagoda quantize smollm2-135m --to q4_k_m --imatrix auto -o small.gguf",
    ),
    "convert": Verb(
        "pagoda.cli.convert:convert",
        "Turn GGUF files into Hugging Face folders and back.",
        "pagoda convert smollm2-135m -o smollm2-bf16",
    ),
    "adapter": Verb(
        "pagoda.cli.overview:adapter",
        "Swap a running server's LoRA adapters, and back; convert them.",
        "pagoda adapter history sql",
    ),
    "adapter deploy": Verb(
        "pagoda.cli.adapter_deploy:deploy",
        "Move an adapter's name on a running server to a new version.",
        "pagoda adapter deploy sql ./sql-v2 --check './check.sh' --url http://127.0.0.1:8000",
    ),
    "adapter rollback": Verb(
        "pagoda.cli.adapter_rollback:rollback", "And back to the one before.", "pagoda adapter rollback sql"
    ),
    "adapter history": Verb(
        "pagoda.cli.adapter_history:history", "Show what was deployed.", "pagoda adapter history sql"
    ),
    "adapter convert": Verb(
        "pagoda.cli.adapter_convert:convert",
        "Turn PEFT folders into GGUF adapters and back.",
        "pagoda adapter convert adapter/ --model smollm2-135m -o adapter.gguf",
    ),
    "merge": Verb(
        "pagoda.cli.merge:merge",
        "Make a LoRA adapter part of its model's weights.",
        "pagoda merge smollm2-135m adapter/ -o merged.gguf --to q4_k_m",
    ),
    "compare": Verb(
        "pagoda.cli.compare:compare",
        "Measure how much worse quantized models are than their original.",
        "pagoda compare model-F16.gguf model-Q4_K_M.gguf model-gptq --plot quality.svg",
    ),
    "finetune": Verb(
        "pagoda.cli.finetune:finetune",
        "Train a LoRA adapter on the weights that are served.",
        "pagoda finetune smollm2-135m --data chat.jsonl -o adapter",
    ),
    "doctor": Verb("pagoda.cli.doctor:doctor", "Check what this machine has to run models.", "pagoda doctor"),
    "advise": Verb(
        "pagoda.cli.advise:advise",
        "Say whether RAG, fine-tuning, both or neither fits the task, and why.",
        "pagoda advise --own-facts --facts-change often --citations --no-style --budget small",
    ),
    "advise format": Verb(
        "pagoda.cli.advise_format:advise_format_verb",
        "Say which weight format to take on a device.",
        "pagoda advise format llama-3-8b --on rtx4090",
    ),
    "advise speculation": Verb(
        "pagoda.cli.advise_speculation:advise_speculation_verb",
        "Say what speculative decoding gains, and when it loses.",
        "pagoda advise speculation --acceptance 0.7 --cost 0.05 --model llama-3-70b --format awq --on a100-80gb",
    ),
    "advise finetune": Verb(
        "pagoda.cli.advise_finetune:advise_finetune_verb",
        "Show the memory of full, LoRA and QLoRA fine-tuning.",
        "pagoda advise finetune llama-3-8b --on rtx4090 --rank 16 --targets q,k,v",
    ),
    "eval": Verb(
        "pagoda.cli.eval_overview:overview", "Measure answers, and stop changes that worsen them.", "pagoda eval"
    ),
    "eval run": Verb(
        "pagoda.cli.eval_run:run",
        "Score the answers to a test set.",
        "pagoda eval run qa.jsonl --metrics faithfulness,context_recall --judge smollm2-135m -o current.json",
    ),
    "eval gate": Verb(
        "pagoda.cli.eval_gate:gate",
        "Fail if answers got worse than the baseline's.",
        "pagoda eval gate --baseline baseline.json --current current.json --threshold 0.05",
    ),
    "eval diff": Verb(
        "pagoda.cli.eval_diff:diff", "Show the cases that changed.", "pagoda eval diff baseline.json current.json"
    ),
    "eval report": Verb(
        "pagoda.cli.eval_report:report",
        "Write one HTML file of an evaluation.",
        "pagoda eval report current.json --baseline baseline.json -o report.html",
    ),
    "eval calibrate": Verb(
        "pagoda.cli.eval_calibrate:calibrate",
        "Measure a judge by people's labels.",
        "pagoda eval calibrate --labels labels.jsonl --judge smollm2-135m -o judge.json",
    ),
    "eval testset": Verb(
        "pagoda.cli.eval_testset:draft_testset",
        "Draft a test set from documents.",
        "pagoda eval testset docs/ -o qa.jsonl",
    ),
    "eval init": Verb(
        "pagoda.cli.eval_init:init", "Write the gate's CI files.", "pagoda eval init . --target app:answer"
    ),
    "keys create": Verb(
        "pagoda.cli.keys:create",
        "Make a client's key, with its budget.",
        "pagoda keys create alice --keys-file keys.db --tokens-per-day 1000000 --usd-per-month 20",
    ),
    "keys": Verb(
        "pagoda.cli.keys:show",
        "List clients' keys; `keys create`, `rotate`, `revoke`.",
        "pagoda keys --keys-file keys.db",
    ),
    "keys list": Verb("pagoda.cli.keys:show", "List keys and what they used.", "pagoda keys list --keys-file keys.db"),
    "keys rotate": Verb(
        "pagoda.cli.keys:rotate", "Give a key a new secret.", "pagoda keys rotate alice --keys-file keys.db"
    ),
    "keys revoke": Verb(
        "pagoda.cli.keys:revoke", "Make a key worth nothing.", "pagoda keys revoke alice --keys-file keys.db"
    ),
    "top": Verb(
        "pagoda.cli.top:top", "Show what a server does now, in the terminal.", "pagoda top --url http://127.0.0.1:8000"
    ),
    "cost": Verb(
        "pagoda.cli.overview:cost", "Sum up what requests have cost: `cost report`.", "pagoda cost report log.jsonl"
    ),
    "cost report": Verb(
        "pagoda.cli.cost_report:cost_report",
        "Sum up what requests have cost.",
        "pagoda cost report requests.jsonl --from 2026-11-01 --by tenant",
    ),
    "cache": Verb(
        "pagoda.cli.cache_overview:overview",
        "Look into the semantic cache; train and measure what decides in it.",
        "pagoda cache",
    ),
    "cache stats": Verb("pagoda.cli.cache_store:stats", "Count a store's entries.", "pagoda cache stats"),
    "cache search": Verb(
        "pagoda.cli.cache_store:search",
        "Find the kept questions nearest to a text.",
        "pagoda cache search 'what is rust?'",
    ),
    "cache show": Verb("pagoda.cli.cache_store:show", "Show one entry.", "pagoda cache show ce-0123456789ab"),
    "cache delete": Verb("pagoda.cli.cache_store:delete", "Forget entries.", "pagoda cache delete --tag docs"),
    "cache train": Verb(
        "pagoda.cli.cache_verifier:train_verifier",
        "Make a verifier of labelled pairs.",
        "pagoda cache train pairs.jsonl.gz -o verifier.json",
    ),
    "cache evaluate": Verb(
        "pagoda.cli.cache_verifier:evaluate",
        "Measure how many repeats are found at which share of wrong hits.",
        "pagoda cache evaluate pairs.jsonl.gz --plot curve.svg",
    ),
    "bench": Verb(
        "pagoda.cli.bench:bench",
        "Measure the engine; `bench serve` measures a server.",
        "pagoda bench model.gguf --prompt 512 --gen 128 --batch 1,16",
    ),
    "bench speculation": Verb(
        "pagoda.cli.bench_speculation:bench_speculation",
        "Measure what guessing tokens ahead gains on your prompts.",
        "pagoda bench speculation model.gguf --prompts prompts.jsonl --draft-model small.gguf",
    ),
    "bench serve": Verb(
        "pagoda.cli.bench_serve:bench_serve",
        "Load any OpenAI-compatible server and time its answers.",
        "pagoda bench serve --url http://127.0.0.1:8000 --concurrency 16",
    ),
}


class Verbs(TyperGroup):
    """Imports the verb that is called; the list of verbs needs no import. A verb may have two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        words = 2 if " ".join(args[:2]) in VERBS else 1
        name = " ".join(args[:words])
        if name not in VERBS:
            return super().resolve_command(ctx, args)  # fails, with a suggestion
        return name, _load(name), args[words:]


def verbs_of(group: str) -> str:
    """A line for each verb of two words that begins with `group`, as `cache stats` with `cache`: name and help."""
    names = [name for name in VERBS if name.startswith(f"{group} ")]
    width = max(map(len, names), default=0)
    return "\n".join(f"pagoda {name:<{width}}  {VERBS[name].help}" for name in names)


def _load(name: str) -> Any:
    module, function = VERBS[name].target.split(":")
    listed = verbs_of(name)
    # \b keeps the lines of a paragraph as they are.
    epilog = (f"\b\n{listed}\n\n" if listed else "") + f"Example: {VERBS[name].example}"
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, epilog=epilog)(getattr(importlib.import_module(module), function))
    return typer.main.get_command(single)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pagoda {pagoda.__version__}")
        raise typer.Exit()


app = typer.Typer(cls=Verbs, rich_markup_mode=None, pretty_exceptions_enable=False)
for _name, _verb in VERBS.items():
    app.command(_name, help=_verb.help, hidden=" " in _name)(lambda: None)


@app.callback(epilog=FOOTER, invoke_without_command=True)
def start(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors; or set PAGODA_DEBUG=1.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Pagoda takes a language model from a file to a production service on the hardware you have.

    Example: pagoda chat
    """
    if ctx.invoked_subcommand is None:
        typer.echo(FIRST_STEPS)


def main() -> NoReturn:
    """Run the command line. Exits with 2 for wrong settings, 1 for other errors, 130 after Ctrl-C."""
    show_tracebacks = debug() or "--debug" in sys.argv
    try:
        typer.main.get_command(app).main(prog_name="pagoda")
        sys.exit(0)
    except PagodaError as error:
        if show_tracebacks:
            raise
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:  # a full disk, a folder that is not there
        if show_tracebacks or not isinstance(error.filename, str | None):
            raise
        where = f"{error.filename}: " if error.filename else ""
        typer.secho(f"error: {where}{error.strerror or error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
