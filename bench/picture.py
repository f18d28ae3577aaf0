"""The tables of the file systems as a picture: a group of bars for each workload."""

from pathlib import Path

Ratios = dict[str, dict[str, float]]


def draw(target: Path, parts: dict[str, Ratios]) -> None:
    """Write a PNG with a diagram for each part; bars are multiples of a plain directory's time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    height = max(map(len, parts.values())) * 0.42 + 1
    figure, axes = pyplot.subplots(1, len(parts), figsize=(9 * len(parts), height), squeeze=False)
    for axis, (title, ratios) in zip(axes[0], parts.items(), strict=True):
        names = [name for name in next(iter(ratios.values())) if name != "plain"]
        width = 0.8 / len(names)
        for index, name in enumerate(names):
            places = [row + index * width for row in range(len(ratios))]
            values = [row[name] for row in ratios.values()]
            axis.barh(places, values, width, label=name)
        axis.set_yticks([row + 0.4 - width / 2 for row in range(len(ratios))], list(ratios))
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel("time, as a multiple of a plain directory's")
        axis.set_title(title)
        axis.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=100)
