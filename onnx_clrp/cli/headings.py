"""Help that lists a command's options under headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

_HEADINGS: Mapping[str, Sequence[str]] = {
    "Options": (),
    "The data": (
        *("format", "annotations", "images", "split", "units"),
        *("synsets", "classes", "limit"),
    ),
    "What is measured": (
        *("experiments", "patches", "probability", "tolerance", "steps"),
        *("neurons", "stages", "shuffled_pictures", "most_objects", "batch"),
        *("seed", "largest", "only_right"),
    ),
    "What is explained": ("target", "top", "labels", "layer", "neuron", "top_neurons", "at"),
    "Method": (
        *("method", "contrast", "difference", "signed"),
        *("rules", "rules_for", "avg_pool", "max_pool"),
    ),
    "The model": ("input", "logits", "input_range", "extension", "feed", "device", "half"),
    "Its pictures": ("preset", "mean", "std", "scale", "channels", "resize", "crop"),
}
"""The names of the options under each; all others come first."""


class Headed(click.Command):
    """A command whose options stand under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options with their help, one section after the other."""
        places = {name: heading for heading, names in _HEADINGS.items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections[places.get(param.name or "", "Options")].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
