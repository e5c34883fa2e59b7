"""`edgekit bench`: how fast an engine is here, and how near that is to what the memory allows."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.bench.compare import compare, read_earlier
from edgekit.bench.report import BenchReport
from edgekit.bench.run import MEASURED, BenchOptions, bench_engine
from edgekit.bench.tables import to_csv, to_markdown
from edgekit.cli import options as shared
from edgekit.cli.progress import ProgressLine
from edgekit.device import read_device
from edgekit.engine import find_engine
from edgekit.errors import StorageError
from edgekit.planning import write_bandwidth

_PRINTERS = {"md": to_markdown, "csv": to_csv, "json": BenchReport.to_json}
_COUNT = click.IntRange(min=0)


@click.command("bench", epilog="Example: edgekit bench -p 512 -n 128 -d 0 -r 5")
@click.argument("engine", required=False)
@click.option("-p", "prompt_tokens", type=_COUNT, multiple=True, default=[512], show_default=True,
              metavar="N", help="Prefill this many tokens; repeatable, 0 for none.")  # fmt: skip
@click.option("-n", "new_tokens", type=_COUNT, multiple=True, default=[128], show_default=True,
              metavar="N", help="Decode this many tokens; repeatable, 0 for none.")  # fmt: skip
@click.option("-d", "depths", type=_COUNT, multiple=True, default=[0], show_default=True,
              metavar="N", help="Tokens in the KV cache before decode; repeatable.")  # fmt: skip
@click.option("-r", "repetitions", type=click.IntRange(min=1), default=5, show_default=True,
              metavar="N", help="Runs of each test after the warm-up.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="Default: the backend's choice.")
@click.option("--md", "shape", flag_value="md", default=True, help="Print Markdown (default).")
@click.option("--json", "shape", flag_value="json", help="Print JSON with every sample.")
@click.option("--csv", "shape", flag_value="csv", help="Print one CSV line per test.")
@click.option("--compare", "earlier_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Show ratios to an earlier `--json`.")  # fmt: skip
@shared.store
@shared.trtllm
def command(
    engine: str | None,
    prompt_tokens: tuple[int, ...],
    new_tokens: tuple[int, ...],
    depths: tuple[int, ...],
    repetitions: int,
    threads: int | None,
    shape: str,
    earlier_file: Path | None,
    store: Path,
) -> None:
    """Measure an engine's prefill and decode throughput, latency and memory.

    ENGINE is a directory or a name in the store; the default is the newest engine there.
    """
    earlier = None if earlier_file is None else read_earlier(earlier_file)
    options = BenchOptions(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        depths=depths,
        repetitions=repetitions,
        threads=threads,
    )
    with ProgressLine() as progress:
        report = bench_engine(find_engine(store, engine), options, report=progress, notify=_tell)
    click.echo(_PRINTERS[shape](report))
    if report.bound is not None and report.bound.source == MEASURED:
        try:
            write_bandwidth(store, read_device(), report.bound.bandwidth_bytes_per_s)
        except StorageError as exc:
            _tell(f"warning: the bandwidth is not kept for `edgekit plan`: {exc}")
    for warning in report.warnings():
        _tell(f"warning: {warning}")
    if earlier is not None:
        click.echo("\n" + compare(report, earlier), err=shape != "md")


def _tell(text: str) -> None:
    click.echo(text, err=True)
