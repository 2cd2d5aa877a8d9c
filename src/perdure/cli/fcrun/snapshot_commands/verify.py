"""fcrun snapshot verify"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.reports import Finding, Verification

NAME = "verify"
HELP = "Read and check everything of snapshots, or of the whole store; exit status 1 when something is wrong"
GROUP = "Snapshots"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="also restore each, compare its memory, check its disk; of one whose memory is kept elsewhere it is only "
        "said that it was not restored: that is no failure",
    )
    parser.add_argument("--format", default="text", choices=("text", "json"), help="'json': one report a line")
    parser.add_argument("-q", "--quiet", action="store_true", help="only what is wrong, or was not restored")
    parser.add_argument("snapshots", nargs="*", metavar="SNAPSHOT", help="none: the whole store")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    status = 0
    with node() as client:
        for ref in options.snapshots or [None]:
            report = client.store.verify(ref, thorough=options.thorough)
            status = max(status, 1 if report.findings else 0)
            if options.format == "json":
                print(json.dumps(msgspec.to_builtins(report)), flush=True)
                continue
            for finding in report.findings:
                print(_line(finding), flush=True)
                if finding.hint and not options.quiet:
                    print(f"  {finding.hint}")
            for left in report.not_restored:
                print(f"snapshot {left.snapshot} was not restored: {left.reason}", flush=True)
                if not options.quiet:
                    print(f"  {left.hint}")
            if not options.quiet:
                print(_summary(ref, report), flush=True)
    sys.stdout.flush()
    return status


def _line(finding: Finding) -> str:
    where = finding.object
    if finding.layer and finding.layer not in where:
        where += f", layer {finding.layer[:12]}"
    if finding.frame is not None:
        where += f", frame {finding.frame}"
    return f"{where}: {finding.problem}"


def _summary(ref: str | None, report: Verification) -> str:
    what = "the store" if ref is None else ref
    verdict = _format.count(len(report.findings), "finding") if report.findings else "sound"
    read = f"{_format.count(report.snapshots, 'snapshot')}, {report.blobs} blobs ({_format.size(report.blob_bytes)})"
    text = f"{what}: {verdict}: {read}, {report.frames} frames ({_format.size(report.content_bytes)}) read"
    if report.restored or report.not_restored:
        text += f", {report.restored} restored"
    if report.not_restored:
        text += f", {len(report.not_restored)} not restored"
    if report.remote:
        text += f"; not read, as they are kept elsewhere: {_format.count(len(report.remote), 'layer')}"
    if report.orphans:
        orphans = f"{_format.count(report.orphans, 'blob')} ({_format.size(report.orphan_bytes)})"
        text += f"; nobody needs {orphans}: fcrun snapshot gc"
    return text
