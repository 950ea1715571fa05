"""What mkdocs does beside its plugins: results of benchmarks/results, formulas as MathML.

A line `<!-- results: FILE -->` becomes the tables of that file: of Markdown as it is, of JSON lines
the times and the memory of every row. Formulas need no script, and no other server, in a browser.
"""

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
DIRECTIVE = re.compile(r"<!-- results: (\S+) -->")
FORMULA = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>'
    r'|<div class="arithmatex">\s*\\\[(?P<block>.*?)\\\]\s*</div>',
    re.DOTALL,
)
TAG = re.compile(r"\\tag\{(.*?)\}")
COLUMNS = {
    "form": "form",
    "total_ms": "ms",
    "time_ratio": "time / anchor",
    "peak_mib": "peak MiB",
    "ms_per_step": "ms per step",
    "overhead_ms": "overhead, ms",
}
CONDITIONS = ("processor", "threads", "torch", "date", "commit")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures of benchmarks/results as results/NAME.png."""
    for picture in sorted(RESULTS.glob("*.png")):
        name = f"results/{picture.name}"
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put results in the place of their directives."""
    return DIRECTIVE.sub(lambda found: results(RESULTS / found[1]), markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn LaTeX into MathML."""
    return FORMULA.sub(formula, content)


def results(file: Path) -> str:
    """Tables of a file, their conditions folded."""
    if file.suffix == ".md":
        return "\n\n".join(map(section, re.split(r"^(?=## )", file.read_text("utf-8"), flags=re.M)))
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    groups = dict.fromkeys(row["group"] for row in rows)
    return "\n\n".join(group([row for row in rows if row["group"] == name]) for name in groups)


def section(text: str) -> str:
    """A section of `python -m benchmarks compare`: its title as text, its conditions folded."""
    text = re.sub(r"^## (.*)", r"`\1`", text)
    listed = re.search(r"^- .*(?:\n- .*)*", text, flags=re.M)
    if listed is None:
        return text
    folded = '??? note "Measured with"\n\n' + indented(listed[0])
    return text[: listed.start()] + folded + text[listed.end() :]


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def group(rows: list[dict[str, object]]) -> str:
    """One table of measurements that belong together."""
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [[COLUMNS[key] for key in columns], ["---"] * len(columns)]
    lines += [[cell(row.get(key)) for key in columns] for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    found = ", ".join(f"{key} {', '.join(unique(rows, key))}" for key in CONDITIONS)
    return f"**{rows[0]['group']}**\n\n{table}\n\n<small>{found}</small>"


def unique(rows: Iterable[dict[str, object]], key: str) -> list[str]:
    return sorted({str(row[key]) for row in rows})


def cell(value: object) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def formula(found: re.Match[str]) -> str:
    """MathML of a formula; the number of a numbered one beside it."""
    if found["inline"] is not None:
        return convert(html.unescape(found["inline"]))
    latex = html.unescape(found["block"])
    number = TAG.search(latex)
    math = convert(TAG.sub("", latex).strip(), display="block")
    if number is None:
        return f'<div class="equation">{math}</div>'
    label = f'<span class="number">({number[1]})</span>'
    return f'<div class="equation" id="equation-{number[1]}">{math}{label}</div>'
