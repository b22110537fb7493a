"""What a model gains by time: the quality of its forms against the milliseconds that an image takes."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

_MARKERS = "osD^vPX*<>"


def plot_quality_against_time(points: Mapping[str, tuple[float, float]], quality: str, path: str | Path) -> None:
    """Draw {name: (ms an image, quality)} into `path` (its suffix is the format); names up to the first hyphen share a
    colour, what follows has a marker. `quality` is what the y axis is called."""
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    families, kinds = ([*dict.fromkeys(name.partition("-")[i] for name in points)] for i in (0, 2))
    for name, (ms, value) in points.items():
        family, _, kind = name.partition("-")
        marker = _MARKERS[kinds.index(kind) % len(_MARKERS)]
        style = {"color": f"C{families.index(family) % 10}", "marker": marker, "edgecolors": "black", "linewidths": 0.5}
        axes.scatter(ms, value, s=70, label=name, **style)
    axes.set(xlabel="ms an image, median", ylabel=quality, xscale="log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    times = [ms for ms, _ in points.values()]
    if max(times) > 8 * min(times):  # with every digit of a decade the numbers would lie on each other
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    figure.savefig(path)
