"""The evaluation report of a head-CT haemorrhage model: figures with intervals, pictures, a table of models.

`summarise` turns cases into plain JSON figures, `write` puts them before a reader, `compare` sets summaries
side by side. It judges what it is given: it runs no network, calibrates nothing and chooses no threshold.
"""

from workers.training.report.case import Case, study
from workers.training.report.compare import compare
from workers.training.report.summary import summarise
from workers.training.report.write import write

__all__ = ["Case", "compare", "study", "summarise", "write"]
