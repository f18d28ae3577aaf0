"""Tables as pictures: of the file systems, bars for each workload; of a fleet, how it grows."""

from pathlib import Path

Ratios = dict[str, dict[str, float]]
Lines = dict[str, dict[int, float]]


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


def lines(target: Path, parts: dict[str, Lines]) -> None:
    """Write a PNG with a diagram for each part; lines are milliseconds by number of hosts."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(parts), figsize=(7 * len(parts), 5.5), squeeze=False, sharey=True
    )
    for axis, (title, drawn) in zip(axes[0], parts.items(), strict=True):
        for name, values in drawn.items():
            axis.plot(list(values), list(values.values()), marker="o", label=name)
        hosts = sorted({one for values in drawn.values() for one in values})
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(hosts, [f"{one:,}" for one in hosts])
        axis.set_xlabel("hosts, ten pods each")
        axis.set_ylabel("milliseconds")
        axis.yaxis.set_tick_params(labelleft=True)
        axis.minorticks_off()
        axis.grid(visible=True, linewidth=0.3)
        axis.set_title(title)
    names = axes[0][0].get_legend_handles_labels()
    figure.legend(*names, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(target, dpi=100)
