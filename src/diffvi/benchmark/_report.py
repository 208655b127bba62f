from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 980px; margin: 2rem auto; padding: 0 1rem; }
 h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
 figure { margin: 0; } img { max-width: 100%; height: auto; } p.note { color: #555; }
 .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
 th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; } th:first-child { text-align: left; }
 pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
</style></head><body>
<h1>{{ title }}</h1>
{% for line in intro %}<p>{{ line }}</p>{% endfor %}
{% for section in sections %}<h2>{{ section.title }}</h2>
{% if section.note %}<p class="note">{{ section.note }}</p>{% endif %}
{% if section.image %}<figure><img alt="{{ section.title }}" src="data:image/png;base64,{{ section.image }}"></figure>{% endif %}
{% if section.table %}<div class="scroll">{{ section.table | safe }}</div>{% endif %}
{% if section.text %}<pre>{{ section.text }}</pre>{% endif %}
{% endfor %}</body></html>
"""


def write_report(
    path: str | Path,
    title: str,
    intro: Sequence[str],
    sections: Sequence[tuple[str, Figure | pd.DataFrame | str, str]],
) -> Path:
    """Write one HTML file that needs nothing beside itself.

    Parameters
    ----------
    path
        File to write.
    title
        Its title.
    intro
        Paragraphs at the top.
    sections
        Title, content (a figure, a table or text) and a note for each section.

    Returns
    -------
    The path.

    Examples
    --------
    >>> import pandas as pd
    >>> from diffvi.benchmark import write_report
    >>> table = pd.DataFrame({"score": [0.12345]}, index=["kNN"])
    >>> path = write_report("report.html", "A report", ["One paragraph."], [("Scores", table, "Lower is better.")])
    >>> "0.123" in path.read_text()
    True
    """
    rendered = []
    for name, content, note in sections:
        entry = {"title": name, "note": note}
        if isinstance(content, Figure):
            buffer = io.BytesIO()
            content.savefig(buffer, dpi=110, bbox_inches="tight")
            plt.close(content)
            entry["image"] = base64.b64encode(buffer.getvalue()).decode()
        elif isinstance(content, pd.DataFrame):
            entry["table"] = content.to_html(border=0, index_names=False, na_rep="", float_format=lambda v: f"{v:.3f}")
        else:
            entry["text"] = content
        rendered.append(entry)
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    path = Path(path)
    path.write_text(page.render(title=title, intro=intro, sections=rendered), encoding="utf-8")
    return path
