"""One page of HTML with a picture that shows its values where the pointer is, and the tables; it needs no network.

The picture is matplotlib's SVG. What its labelled lines hold is put next to it as JSON, in the SVG's own coordinates,
and a short script of this package finds the value under the pointer.
"""

from __future__ import annotations

import html
import io
import json
import math
import re
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 1500
"""Of a line, that the page knows; of a longer one every n-th, and the last."""

POINT = 72.0
"""Dots per inch of an SVG."""

STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
pre{font:13px/1.2 ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;overflow-x:auto}
figure{position:relative;margin:0;background:#fff;border-radius:6px;overflow-x:auto}
figure svg{display:block;width:100%;min-width:44rem;height:auto}
#tip{position:absolute;display:none;pointer-events:none;background:#fffffff2;color:#222;border:1px solid #bbb;
border-radius:4px;padding:.3em .6em;font-size:12px;white-space:pre;box-shadow:0 1px 4px #0003}
#tip i{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:2px}
@media (prefers-color-scheme:dark){body{background:#1b1d22;color:#ddd}}
"""

SCRIPT = """
const panels=JSON.parse(document.getElementById("values").textContent);
const box=document.querySelector("figure"),svg=box.querySelector("svg"),tip=document.getElementById("tip");
const rule=document.createElementNS("http://www.w3.org/2000/svg","line");
rule.setAttribute("stroke","#555");rule.setAttribute("stroke-dasharray","3 3");svg.appendChild(rule);
const view=svg.viewBox.baseVal;
function nearest(xs,x){let a=0,b=xs.length-1;while(b-a>1){const m=a+b>>1;if(xs[m]<x)a=m;else b=m}
return x-xs[a]<xs[b]-x?a:b}
function hide(){tip.style.display="none";rule.setAttribute("visibility","hidden")}
function show(event){
const r=svg.getBoundingClientRect(),x=(event.clientX-r.left)/r.width*view.width,
y=(event.clientY-r.top)/r.height*view.height;
const p=panels.find(p=>x>=p.box[0]-4&&x<=p.box[2]+4&&y>=p.box[1]&&y<=p.box[3]);
if(!p||!p.lines.length)return hide();
let at=null;tip.textContent="";
for(const line of p.lines){const i=nearest(line.at,x);
if(at===null||Math.abs(line.at[i]-x)<Math.abs(at-x)){at=line.at[i];tip.dataset.x=line.x[i]}}
tip.append(`${p.x}: ${tip.dataset.x}`);
for(const line of p.lines){const i=nearest(line.at,at);if(Math.abs(line.at[i]-at)>25)continue;
const swatch=document.createElement("i");swatch.style.background=line.color;
tip.append(document.createElement("br"),swatch,`${line.name}: ${line.y[i]}`)}
for(const[k,v]of Object.entries({x1:at,x2:at,y1:p.box[1],y2:p.box[3],visibility:"visible"}))rule.setAttribute(k,v);
tip.style.display="block";
const left=(event.clientX-r.left)+14,over=left+tip.offsetWidth>r.width;
tip.style.left=(over?event.clientX-r.left-tip.offsetWidth-14:left)+"px";tip.style.top=(event.clientY-r.top+10)+"px"}
svg.addEventListener("pointermove",show);svg.addEventListener("pointerdown",show);svg.addEventListener("pointerleave",hide);
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style></head>
<body>{picture}<pre>{table}</pre>{script}</body></html>
"""

PICTURE = """<figure aria-label="{title}">{svg}<div id="tip"></div></figure>
<script type="application/json" id="values">{values}</script>
"""


def page(title: str, figure: Figure | None, table: str) -> str:
    """The page.

    Args:
        title: in one line, as text.
        figure: the picture, if there is one.
        table: what the terminal prints, as HTML.
    """
    picture = script = ""
    if figure is not None:
        svg, values = _svg(figure), json.dumps(values_of(figure)).replace("<", "\\u003c")
        picture = PICTURE.format(title=html.escape(title, quote=True), svg=svg, values=values)
        script = f"<script>{SCRIPT}</script>"
    return PAGE.format(title=html.escape(title), style=STYLE, picture=picture, table=table, script=script)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lightning_lr"}):
        figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1).replace(' height="', ' data-height="', 1)


def values_of(figure: Figure) -> list[dict[str, Any]]:
    """For each panel with labelled lines: its box, the name of its axis, and the points of each line."""
    height = figure.get_figheight() * POINT
    panels = []
    for ax in figure.axes:
        lines = [entry for line in ax.get_lines() if (entry := _line(ax, line, height)) is not None]
        if lines:
            (left, bottom), (right, top) = ax.get_window_extent().get_points() * POINT / figure.dpi
            box = [round(float(edge), 2) for edge in (left, height - top, right, height - bottom)]
            panels.append({"box": box, "x": _axis_name(ax), "lines": lines})
    return panels


def _line(ax: Axes, line: Any, height: float) -> dict[str, Any] | None:
    name = str(line.get_label())
    x, y = np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)
    if name.startswith("_") or len(x) < 2 or len(x) != len(y):
        return None
    chosen = sorted({*range(0, len(x), math.ceil(len(x) / POINTS)), len(x) - 1})
    kept = [i for i in chosen if math.isfinite(x[i]) and math.isfinite(y[i])]
    at: Any = ax.transData.transform([(x[i], 1.0) for i in kept])[:, 0] * POINT / ax.figure.dpi if kept else []
    points = sorted(zip((round(float(place), 2) for place in at), kept, strict=True))
    return {
        "name": name,
        "color": matplotlib.colors.to_hex(line.get_color()),
        "at": [place for place, _ in points],
        "x": [f"{x[i]:,.6g}" for _, i in points],
        "y": [f"{y[i]:.4g}" for _, i in points],
    } if points else None  # fmt: skip


def _axis_name(ax: Axes) -> str:
    """What the horizontal axis counts; of panels that share one, the lowest names it."""
    shared = ax.get_shared_x_axes().get_siblings(ax)
    named = [other.get_xlabel() for other in (ax, *shared) if other.get_xlabel()]
    return named[0].partition("\n")[0] if named else "x"
