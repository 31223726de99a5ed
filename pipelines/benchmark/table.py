"""A benchmark's table, in Markdown and HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cprfl.evaluation.comparison import bootstrap_gains
from pipelines.benchmark.cells import Cell

GROUPS = {"total": "mAP", "head": "mAP_head", "medium": "mAP_medium", "tail": "mAP_tail"}
HEADINGS = [
    "method", *GROUPS, "against LR", "seconds", "trained parameters", "memory, MB",
    "chosen by the folds",
]  # fmt: skip
_RESAMPLES = 1000


@dataclass
class Row:
    """A method with its cells.

    Attributes:
        name: of the method.
        cells: one per seed, those that ended well.
        logits: of the test images [n, c], one per cell.
        failures: what went wrong, or why it was not run.
    """

    name: str
    cells: list[Cell] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def mean(self, metric: str) -> float:
        """Mean over the seeds; NaN where no cell has it."""
        values = [cell.metrics[metric] for cell in self.cells if metric in cell.metrics]
        return float(np.mean(values)) if values else float("nan")

    def shown(self, metric: str) -> str:
        """Mean and standard deviation over the seeds."""
        values = [cell.metrics[metric] for cell in self.cells if metric in cell.metrics]
        if not values:
            return "-"
        return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def difference(row: Row, reference: Row, targets_NC: np.ndarray) -> str:
    """Points of mAP above the reference, and the interval of 95 % of the paired bootstrap's resamples of the images."""
    gains = [
        bootstrap_gains(logits, reference.logits[min(number, len(reference.logits) - 1)], targets_NC, _RESAMPLES, 0)
        for number, logits in enumerate(row.logits)
    ]
    low, high = np.quantile(np.mean(gains, axis=0), [0.025, 0.975])
    return f"{row.mean('mAP') - reference.mean('mAP'):+.1f} [{low:+.1f}, {high:+.1f}]"


def lines(rows: Sequence[Row], reference: str, targets_NC: np.ndarray) -> list[list[str]]:
    """The table's cells, the best method first; those without a result are not in it."""
    there = {row.name: row for row in rows if row.cells}
    table = []
    for row in sorted(there.values(), key=lambda row: -row.mean("mAP")):
        cells = row.cells
        against = "-"
        if reference in there and row.name != reference:
            against = difference(row, there[reference], targets_NC)
        memory = max(cell.memory_mb for cell in cells)
        gpu = max(cell.gpu_memory_mb for cell in cells)
        table.append([
            row.name, *(row.shown(metric) for metric in GROUPS.values()), against,
            f"{np.mean([cell.seconds for cell in cells]):.0f}", f"{cells[0].trained_parameters:,}",
            f"{memory:.0f}" + (f" + {gpu:.0f} on the GPU" if gpu else ""), _chosen(cells[0]),
        ])  # fmt: skip
    return table


def _chosen(cell: Cell) -> str:
    """What the folds chose, with the shares of members that have one."""
    shares = {
        name.removeprefix("folds/share/"): value
        for name, value in cell.found.items()
        if name.startswith("folds/share/")
    }
    said = [f"{share:.2f} {name}" for name, share in shares.items() if share > 0]
    if "folds/epochs" in cell.found:
        said.append(f"{cell.found['folds/epochs']:.0f} epochs")
    return ", ".join(said) or "-"


def in_markdown(title: str, about: Sequence[str], table: Sequence[Sequence[str]], failures: Sequence[str]) -> str:
    """The table with what it is about, as Markdown."""
    parts = [f"# {title}", "", *(f"{line}\n" for line in about)]
    parts += [f"| {' | '.join(HEADINGS)} |", "|" + "|".join(["---", *["---:"] * (len(HEADINGS) - 2), "---"]) + "|"]
    parts += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in table]
    if failures:
        parts += ["", "Without a result:", "", *(f"- {line}" for line in failures)]
    return "\n".join(parts) + "\n"


def in_html(title: str, about: Sequence[str], table: Sequence[Sequence[str]], failures: Sequence[str]) -> str:
    """The table with what it is about, as one page that needs nothing else."""
    escape = html.escape
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table)
    lost = "".join(f"<li>{escape(line)}</li>" for line in failures)
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in about)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1>{paragraphs}<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + (f"<h2>Without a result</h2><ul>{lost}</ul>" if lost else "")
        + "</html>\n"
    )


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2433; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem } p { margin: .3rem 0; color: #4a5468 } div { overflow-x: auto }
table { border-collapse: collapse; margin-top: 1rem; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .5rem; text-align: right; border-bottom: 1px solid #dde2ea; white-space: nowrap }
th { color: #4a5468; font-weight: 600; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left }
td:last-child { white-space: normal; color: #4a5468; font-size: .85em; min-width: 13rem }
tbody tr:first-child { background: #eef5ee }
@media (prefers-color-scheme: dark) {
  body { background: #14181f; color: #e3e7ee } p, th, td:last-child { color: #a3adbd }
  th, td { border-color: #2c3442 } tbody tr:first-child { background: #1d2a20 } }
"""
