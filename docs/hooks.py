"""What mkdocs does beside its plugins: results of benchmarks/results, formulas as MathML.

A line `<!-- results: FILE -->` becomes the tables of that file: of Markdown as it is, of JSON lines
the times and the memory of every row. Formulas need no script, and no other server, in a browser.
"""

import html
import json
import re
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
PRIME = re.compile(r"<msup>(<mi>\w</mi>)<mi>&#x02032;</mi></msup>")
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
    """Tables of a file, with their conditions folded away."""
    if file.suffix == ".md":
        return "\n\n".join(map(section, re.split(r"^(?=## )", file.read_text("utf-8"), flags=re.M)))
    return measurements([json.loads(line) for line in file.read_text("utf-8").splitlines()])


def section(text: str) -> str:
    """A part of a report; of one by `python -m benchmarks compare`, what is no table is folded."""
    title, *blocks = text.strip().split("\n\n")
    if not title.startswith("## "):
        return "\n\n".join(table(block) for block in [title, *blocks])
    budget, arguments = re.match(r"## (\w+, \d+ \w+) ?(.*)", title).groups()
    arguments = arguments.replace("'", "")  # of the shell
    arguments = f" `{arguments}`" if arguments else ""
    folded = folded_note("\n\n".join(blocks[1:]))
    return f"**{budget}**{arguments}\n\n{table(blocks[0])}\n\n{folded}"


def table(block: str) -> str:
    """A table in a frame that scrolls, a list of conditions folded; another block as it is."""
    if block.startswith("- "):
        return folded_note(block)
    if not block.startswith("|"):
        return block
    return f'<div class="results" markdown>\n\n{block.replace("test/", "")}\n\n</div>'


def folded_note(text: str) -> str:
    return '??? note "Measured with"\n\n' + "".join(f"    {line}\n" for line in text.splitlines())


def measurements(rows: list[dict[str, object]]) -> str:
    """A table of all rows; what is measured stands in the first of those that belong together."""
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [["case", *(COLUMNS[key] for key in columns)], ["---"] * (1 + len(columns))]
    above = None
    for row in rows:
        name = "" if row["group"] == above else row["group"]
        lines.append([name, *(cell(row.get(key)) for key in columns)])
        above = row["group"]
    values = {key: sorted({str(row[key]) for row in rows}) for key in CONDITIONS}
    conditions = "\n".join(f"- {key}: {', '.join(found)}" for key, found in values.items())
    rendered = table("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return f"{rendered}\n\n{folded_note(conditions)}"


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return str(value)


def formula(found: re.Match[str]) -> str:
    """MathML of a formula; the number of a numbered one beside it."""
    if found["inline"] is not None:
        return math_of(html.unescape(found["inline"]))
    latex = html.unescape(found["block"])
    number = TAG.search(latex)
    math = math_of(TAG.sub("", latex).strip(), display="block")
    if number is None:
        return f'<div class="equation">{math}</div>'
    label = f'<span class="number">({number[1]})</span>'
    return f'<div class="equation" id="equation-{number[1]}">{math}{label}</div>'


def math_of(latex: str, display: str = "inline") -> str:
    """MathML; a prime, which is raised in itself, is no exponent, which would be smaller too."""
    return PRIME.sub(r"<mrow>\1<mo>&#x02032;</mo></mrow>", convert(latex, display=display))
