"""A job from start to end: nothing stands under the final name before it is whole and good enough.

What is made grows in `OUTPUT.partial`, a folder beside the output, which an interrupt leaves for the next run of the
same job; another job's leftovers are thrown away.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from threadpoolctl import threadpool_limits

from pagoda.backends.cores import usable_cores
from pagoda.engine.device import torch_device
from pagoda.errors import CapacityError, ConfigError, PagodaError, QualityError
from pagoda.quantize.job import Job, Progress
from pagoda.quantize.methods import find_method
from pagoda.quantize.settings import QuantizeSettings
from pagoda.sources import resolve

JOB_FILE = "job.json"
NOT_OF_THE_RESULT = ("max_kld", "verify", "device", "threads", "force")  # settings that change nothing of what is made


def quantize(
    source: Path | str,
    output: Path | str,
    settings: QuantizeSettings,
    *,
    progress: Progress = lambda what, done, total: None,
    say: Callable[[str], None] = lambda line: None,
    objection: Callable[[Path], str | None] = lambda made: None,
) -> Path:
    """Quantize the model `source`, a path or a name, as `settings.to` says, to the file or folder `output`: → that.

    `objection` looks at what was made before it gets its name, and says why it must not.

    Raises ConfigError if the output exists and `settings.force` is not set, a setting cannot be, or the device is not
    there; SourceError for a name that leads nowhere; FormatError for damaged weights; CapacityError for a full disk or
    memory; QualityError beyond `settings.max_kld`, or where there is an objection.
    Interrupted by whatever, the same call goes on where it was.
    """
    output = Path(output)
    method = find_method(settings.to)
    _check_output(output, settings)
    torch_device(settings.device)  # raises while nothing is made yet
    source = resolve(source, progress=progress).path if isinstance(source, str) else source
    work = output.with_name(output.name + ".partial")
    try:
        _open_work(work, source, settings, say)
        with threadpool_limits(settings.threads or usable_cores()):  # BLAS would take a thread for each CPU there is
            finished = method.run(Job(source, work, settings.to.lower(), settings, progress, say))
        if settings.verify:
            _verify(finished, source, method.largest_kld, work, settings, say)
        _judge(finished, source, work, settings, progress, say)
        if (why := objection(finished)) is not None:
            shutil.rmtree(work, ignore_errors=True)
            raise QualityError(f"{why}; nothing was kept")
        _put(finished, output)
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise _explained(error, work) from error
    return output


def default_output(model_name: str, settings: QuantizeSettings) -> Path:
    """NAME-METHOD in the current folder, with the suffix of what the method makes."""
    suffix = find_method(settings.to).suffix
    return Path(f"{model_name}-{settings.to.upper() if suffix else settings.to.lower()}{suffix}")


def _check_output(output: Path, settings: QuantizeSettings) -> None:
    if output.exists() and not settings.force:
        raise ConfigError(f"{output} exists; name another with -o, or replace it with --force")
    if output.is_dir() and not (output / "config.json").is_file():
        raise ConfigError(f"{output} is a folder that holds no model; name another with -o")


def _open_work(work: Path, source: Path, settings: QuantizeSettings, say: Callable[[str], None]) -> None:
    mark = _fingerprint(source, settings)
    job_file = work / JOB_FILE
    found = None
    with suppress(OSError, ValueError):
        found = json.loads(job_file.read_text())
    if found == mark:
        say(f"going on with {work}")
        return
    if work.exists():
        if not job_file.exists():
            raise ConfigError(f"{work} exists and is not an unfinished job; remove it, or name another output with -o")
        say(f"starting over: {work} is of another job")
        shutil.rmtree(work)
    work.mkdir(parents=True)
    job_file.write_text(json.dumps(mark))


def _fingerprint(source: Path, settings: QuantizeSettings) -> dict[str, str]:
    """A mark that is equal only for jobs that make the same thing."""
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    wanted = {key: value for key, value in asdict(settings).items() if key not in NOT_OF_THE_RESULT}
    digest = hashlib.sha256(json.dumps([stats, wanted], default=str).encode()).hexdigest()
    return {"source": str(source.absolute()), "to": settings.to.lower(), "digest": digest}


def _verify(
    finished: Path,
    source: Path,
    largest_kld: float | None,
    work: Path,
    settings: QuantizeSettings,
    say: Callable[[str], None],
) -> None:
    """QualityError, with nothing left, where the result cannot be served or, of a conversion, says something else."""
    from pagoda.scoring.verify import check_serves, divergence  # needs the engine

    try:
        if largest_kld is None:
            check_serves(finished, settings.threads)
            return
        found = divergence(finished, source, settings.threads)
    except CapacityError as error:
        say(f"not verified: {error}")
        return
    except PagodaError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise QualityError(f"what was made cannot be served: {error}; nothing was kept") from error
    say(f"verified: KL divergence from the source is {found:.5f} nats")
    if not found <= largest_kld:
        shutil.rmtree(work, ignore_errors=True)
        raise QualityError(
            f"what was made predicts a text otherwise than its source: the mean KL divergence is {found:.4f}, at most "
            f"{largest_kld:g} is rounding; nothing was kept. Please report this; --no-verify keeps the result"
        )


def _judge(
    finished: Path, source: Path, work: Path, settings: QuantizeSettings, progress: Progress, say: Callable[[str], None]
) -> None:
    """QualityError, with nothing left, if the result is further from its source than the user wants."""
    if settings.max_kld is None:
        return
    from pagoda.scoring.report import measure  # needs the engine: not for every job

    quality = measure(finished, source, threads=settings.threads, progress=progress)
    assert quality.kld is not None
    say(f"mean KL divergence from the source: {quality.kld:.4f}")
    if not quality.kld <= settings.max_kld:
        shutil.rmtree(work, ignore_errors=True)
        raise QualityError(
            f"the mean KL divergence is {quality.kld:.4f}, more than --max-kld {settings.max_kld:g}; nothing was kept. "
            "Take more bits, or --imatrix auto"
        )


def _put(finished: Path, output: Path) -> None:
    """Give the finished file or folder its final name; a folder that was there goes away only when the new one is."""
    if output.is_dir():
        old = output.with_name(output.name + ".old")
        os.replace(output, old)
        os.replace(finished, output)
        shutil.rmtree(old)
    else:
        os.replace(finished, output)


def _explained(error: OSError, work: Path) -> PagodaError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(
            f"the disk is full: {error.filename or work}; make room and run the same command again, it goes on there"
        )
    return ConfigError(f"{error.filename or work} cannot be written: {error.strerror or error}")
