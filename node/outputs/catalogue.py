"""THE list of objects the node can send back. Adding one is a file with a `build`, and a line here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from node.outputs import activation, capture, keyobjects, presentation, report, segmentation, segments
from node.outputs.context import Context, Output

OUTPUTS = (  # in build order: the report and the key objects refer to what comes before them
    Output("seg", segmentation.build),
    Output("seg-subtypes", segments.build_binary),
    Output("labelmap", segments.build_labelmap),
    Output("pm", activation.build),
    Output("sc", capture.build),
    Output("sr", report.build),
    Output("csr", report.build_comprehensive),
    Output("gsps", presentation.build),
    Output("kos", keyobjects.build),
)
ALL_NAMES = tuple(output.name for output in OUTPUTS)
NAMES = ("seg", "sc", "sr")
"""What is built unless somebody asks by name: the objects that archives and viewers of every age take."""


def build_all(context: Context, names: Collection[str] = NAMES) -> dict[str, list[Dataset]]:
    """Build the outputs in `names`, whatever their order there. Raises ValueError for an unknown name."""
    unknown = sorted(set(names) - set(ALL_NAMES))
    if unknown:
        raise ValueError(f"unknown output {unknown[0]!r}; there are {', '.join(ALL_NAMES)}")
    built: dict[str, list[Dataset]] = {name: list(made) for name, made in context.built.items()}
    with disable_value_validation():  # what is illegal in the source is carried on as it is
        for output in OUTPUTS:
            if output.name in names:
                built[output.name] = output.build(replace(context, built=dict(built)))
    return {name: built[name] for name in ALL_NAMES if name in names}
